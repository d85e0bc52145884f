"""LowRank: mitigations that remove a few directions from every token, and limits on how many."""

import logging
from functools import cache

from jaxtyping import Float
from torch import Tensor

from sdprobe.mitigations.base import Mitigation
from sdprobe.mitigations.sums import TokenSums
from sdprobe.utilities.errors import InputError

log = logging.getLogger(__name__)
WARN, REFUSE = 0.1, 0.5


def check_rank(name: str, rank: int, channels: int) -> None:
    """Warn if ``rank`` is above a tenth of the channels.

    Raises:
        InputError: it is above half of them.
    """
    if rank > REFUSE * channels:
        raise InputError(
            f"Expected the rank of {name} to be at most half of the {channels} channels, but got {rank}. "
            "Use a lower rank, or a layer with more channels."
        )
    if rank > WARN * channels:
        _warn(name, rank, channels)


@cache
def _warn(name: str, rank: int, channels: int) -> None:
    """Say it once per process: a run has many layers and noise levels."""
    log.warning("%s: rank %d is more than a tenth of %d channels; content goes with it.", name, rank, channels)


class LowRank(Mitigation):
    """x − L R (x − μ) with L (C, r) and R (r, C). With R L = I it is a projection along r directions. μ is kept.

    Attributes:
        second: whether the factors need second moments.
    """

    fitted = ("mean", "left", "right")
    second = True

    def fitter(self, size: int = 512) -> TokenSums:
        return TokenSums(self, second=self.second)

    def factors(self, sums: TokenSums) -> tuple[Float[Tensor, "c r"], Float[Tensor, "r c"]]:
        """The factors of the map.

        Args:
            sums: the fitter, after its last image.

        Returns:
            L (C, r) and R (r, C), float64.

        Raises:
            InputError: the images seen cannot determine them.
        """
        raise NotImplementedError

    def solve(self, sums: TokenSums) -> dict[str, Tensor]:
        mean = sums.means().mean(0)
        left, right = self.factors(sums)
        check_rank(type(self).__name__, left.shape[1], len(mean))
        return {"mean": mean.float(), "left": left.float().contiguous(), "right": right.float().contiguous()}

    def apply(
        self,
        grid: Float[Tensor, "b c h w"],
        mean: Float[Tensor, " c"],
        left: Float[Tensor, "c r"],
        right: Float[Tensor, "r c"],
    ) -> Float[Tensor, "b c h w"]:
        x = grid.float()
        coefficients = right @ (x - mean[:, None, None]).flatten(2)
        return (x - (left @ coefficients).view(x.shape)).to(grid.dtype)

    def report(self, left: Float[Tensor, "c r"], **_: Tensor) -> dict[str, object]:
        """How much is removed.

        Returns:
            ``rank`` r.
        """
        return {"rank": left.shape[1]}
