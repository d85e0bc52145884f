"""LowRank: mitigations that take a few directions out of every token, and how many they may take."""

import logging

from jaxtyping import Float
from torch import Tensor

from sdprobe.mitigations.base import Mitigation
from sdprobe.mitigations.sums import TokenSums
from sdprobe.utilities.errors import InputError

log = logging.getLogger(__name__)
WARN, REFUSE = 0.1, 0.5


def check_rank(name: str, rank: int, channels: int) -> None:
    """Warns above a tenth of the channels.

    Raises:
        InputError: above half of them, which leaves less than it takes.
    """
    if rank > REFUSE * channels:
        raise InputError(
            f"Expected the rank of {name} to be at most half of the {channels} channels, but got {rank}. "
            "Use a lower rank, or a layer with more channels."
        )
    if rank > WARN * channels:
        log.warning("%s: rank %d is more than a tenth of %d channels; content goes with it.", name, rank, channels)


class LowRank(Mitigation):
    """x − L R (x − μ) with L (C, r) and R (r, C); R L = I makes it a projection along r directions. μ stays."""

    mean: Float[Tensor, " c"]
    left: Float[Tensor, "c r"]
    right: Float[Tensor, "r c"]

    def __init__(self) -> None:
        super().__init__("mean", "left", "right")
        self._sums: TokenSums | None = None

    def begin(self) -> TokenSums:
        """The empty sums of a fit; with second moments unless a subclass needs less."""
        return TokenSums(second=True)

    def update(self, *grids: Float[Tensor, "b c h w"]) -> None:
        self._sums = self._sums or self.begin()
        self._sums.update(grids[0])

    def factors(self, sums: TokenSums) -> tuple[Float[Tensor, "c r"], Float[Tensor, "r c"]]:
        """L and R, float64."""
        raise NotImplementedError

    def finish(self) -> None:
        sums, self._sums = self._sums or self.begin(), None
        mean = sums.means().mean(0)
        left, right = self.factors(sums)
        check_rank(type(self).__name__, left.shape[1], len(mean))
        self.mean, self.left, self.right = mean.float(), left.float().contiguous(), right.float().contiguous()
        self.seen.fill_(sums.images)

    def transform(self, grid: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        self.check(grid, self.mean)
        x = grid.float()
        kept = self.right @ (x - self.mean[:, None, None]).flatten(2)
        return (x - (self.left @ kept).view(x.shape)).to(grid.dtype)

    def describe(self) -> dict[str, object]:
        """``fit_images``, and the ``rank`` r of what is taken."""
        return super().describe() | ({"rank": self.left.shape[1]} if self.mean.numel() else {})
