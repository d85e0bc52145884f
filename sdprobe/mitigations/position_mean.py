"""PositionMean: subtract what the mean map says of a position, which is known at test time."""

import logging

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sdprobe.mitigations.base import Mitigation
from sdprobe.mitigations.bases import BASES, columns, smoothed
from sdprobe.mitigations.sums import TokenSums
from sdprobe.tokens.geometry import minus, resized
from sdprobe.utilities import expect
from sdprobe.utilities.errors import InputError

log = logging.getLogger(__name__)


class PositionMean(Mitigation):
    """x − γ G_p with G = Z_c (Z_cᵀ Z_c + λI)⁺ Z_cᵀ M: least squares of the mean map M_p = m_p − μ on functions Z of position.

    μ stays. A grid of another size takes G at the same distance from the nearest border.

    Args:
        basis: Z. ``additive``: one-hots of row and column; ``onehot`` of the position, which makes G = M, the oracle's linear
            erasure; ``cosine``: products of low cosines, and border terms.
        gamma: γ in [0, 1]; the share of G that goes.
        scale: also divide what is left around μ by s_p, its root mean square at p relative to the mean over positions.
        centre: also subtract μ.
        cosines: lowest cosines per axis, constant included; used by ``cosine`` only.
        ridge: λ, at least 0.

    Raises:
        InputError: an option out of range; at the end of a fit, fewer images than the basis has independent columns, since
            the noise of such a mean map writes position back.
    """

    code: Float[Tensor, "c h w"]
    mean: Float[Tensor, " c"]
    spread: Float[Tensor, "h w"]
    rank: Int[Tensor, ""]

    def __init__(
        self,
        basis: str = "additive",
        gamma: float = 1.0,
        scale: bool = False,
        centre: bool = False,
        cosines: int = 4,
        ridge: float = 0.0,
    ) -> None:
        super().__init__("code", "mean", "spread")
        self.register_buffer("rank", torch.tensor(0))
        expect.one_of("basis", basis, BASES)
        expect.between("gamma", gamma, 0, 1)
        expect.at_least("cosines", cosines, 1)
        expect.at_least("ridge", ridge, 0)
        self.basis, self.gamma, self.scale, self.centre, self.cosines, self.ridge = basis, gamma, scale, centre, cosines, ridge
        self._sums: TokenSums | None = None

    def update(self, *grids: Float[Tensor, "b c h w"]) -> None:
        self._sums = self._sums or TokenSums(energy=self.scale)
        self._sums.update(grids[0])

    def finish(self) -> None:
        sums, self._sums = self._sums or TokenSums(), None
        means = sums.means()
        height, width = sums.total.shape[1:]
        code, rank = smoothed(means, self.basis, height, width, self.cosines, self.ridge)
        self._check_images(sums.images, rank, means.shape[1])
        mean = means.mean(0)
        if self.scale:
            self.spread = relative_spread(sums, code + mean).float()
        self.code = code.T.unflatten(1, (height, width)).float().contiguous()
        self.mean = mean.float()
        self.seen.fill_(sums.images)
        self.rank.fill_(rank)

    def transform(self, grid: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        self.check(grid, self.code)
        if not (self.scale or self.centre):
            return minus(grid, self.code, self.gamma)
        mean = self.mean[:, None, None]
        x = minus(grid.float(), self.code, self.gamma) - mean
        if self.scale:
            x = x / resized(self.spread, *grid.shape[-2:])
        return (x if self.centre else x + mean).to(grid.dtype)

    def describe(self) -> dict[str, object]:
        """``fit_images``; ``columns`` of Z and their ``rank`` less the constant."""
        if not self.code.numel():
            return super().describe()
        height, width = self.code.shape[1:]
        count = height * width if self.basis == "onehot" else columns(self.basis, height, width, self.cosines).shape[1]
        return super().describe() | {"columns": count, "rank": self.rank.item()}

    def _check_images(self, images: int, rank: int, channels: int) -> None:
        if images < rank:
            raise InputError(
                f"Expected at least as many fit images as the {self.basis} basis has independent columns, {rank}, "
                f"but got {images}. Use more images, or a smaller basis."
            )
        if images < channels:
            log.warning("%s: %d fit images for %d channels; noise writes position back.", type(self).__name__, images, channels)


def relative_spread(sums: TokenSums, expected: Float[Tensor, "p c"]) -> Float[Tensor, "h w"]:
    """Root mean square of x − ``expected`` at every position over its mean; 1 where nothing varies.

    E ‖x_p − e_p‖² = E ‖x_p‖² − 2 m_p · e_p + ‖e_p‖².
    """
    residual = sums.energy / sums.images - 2 * (sums.means() * expected).sum(1) + expected.square().sum(1)
    spread = residual.clamp_min(0).sqrt()
    relative = spread / spread.mean().clamp_min(torch.finfo(spread.dtype).tiny)
    return torch.where(relative > 0, relative, 1.0).view(sums.total.shape[1:])
