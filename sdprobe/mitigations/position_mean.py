"""PositionMean: subtract what the mean map says of a position, which is known at test time."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sdprobe.mitigations.base import Mitigation
from sdprobe.mitigations.bases import columns, smoothed
from sdprobe.mitigations.sums import TokenSums
from sdprobe.tokens.geometry import minus, resized
from sdprobe.utilities import settings


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

    fitted = ("code", "mean", "spread", "rank")

    def __init__(
        self,
        basis: str = "additive",
        gamma: float = 1.0,
        scale: bool = False,
        centre: bool = False,
        cosines: int = 4,
        ridge: float = 0.0,
    ) -> None:
        settings.check("position_mean", basis=basis, gamma=gamma, cosines=cosines, ridge=ridge)
        self.basis, self.gamma, self.scale, self.centre, self.cosines, self.ridge = basis, gamma, scale, centre, cosines, ridge

    def fitter(self, size: int = 512) -> TokenSums:
        return TokenSums(self, energy=self.scale)

    def solve(self, sums: TokenSums) -> dict[str, Tensor]:
        means = sums.means()
        height, width = sums.total.shape[1:]
        code, rank = smoothed(means, self.basis, height, width, self.cosines, self.ridge)
        sums.check_images(rank, f"the {self.basis} basis has independent columns", "a smaller basis")
        mean = means.mean(0)
        spread = relative_spread(sums, code + mean).float() if self.scale else torch.empty(0)
        return {"code": sums.as_grid(code), "mean": mean.float(), "spread": spread, "rank": torch.tensor(rank)}

    def apply(
        self,
        grid: Float[Tensor, "b c h w"],
        code: Float[Tensor, "c _h _w"],
        mean: Float[Tensor, " c"],
        spread: Float[Tensor, "*h_w"],
        **_: Tensor,
    ) -> Float[Tensor, "b c h w"]:
        if not (self.scale or self.centre):
            return minus(grid, code, self.gamma)
        x = minus(grid.float(), code, self.gamma) - mean[:, None, None]
        if self.scale:
            x = x / resized(spread, *grid.shape[-2:])
        return (x if self.centre else x + mean[:, None, None]).to(grid.dtype)

    def report(self, code: Float[Tensor, "c h w"], rank: Int[Tensor, ""], **_: Tensor) -> dict[str, object]:
        """``columns`` of Z and their ``rank`` less the constant."""
        height, width = code.shape[1:]
        count = height * width if self.basis == "onehot" else columns(self.basis, height, width, self.cosines).shape[1]
        return {"columns": count, "rank": rank.item()}


def relative_spread(sums: TokenSums, expected: Float[Tensor, "p c"]) -> Float[Tensor, "h w"]:
    """Root mean square of x − ``expected`` at every position over its mean; 1 where nothing varies.

    E ‖x_p − e_p‖² = E ‖x_p‖² − 2 m_p · e_p + ‖e_p‖².
    """
    residual = sums.energy / sums.images - 2 * (sums.means() * expected).sum(1) + expected.square().sum(1)
    spread = residual.clamp_min(0).sqrt()
    relative = spread / spread.mean().clamp_min(torch.finfo(spread.dtype).tiny)
    return torch.where(relative > 0, relative, 1.0).view(sums.total.shape[1:])
