"""PositionMean: subtract the mean activation at each position, smoothed over positions."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sdprobe.mitigations.base import Mitigation
from sdprobe.mitigations.bases import columns, smoothed
from sdprobe.mitigations.sums import TokenSums
from sdprobe.tokens.geometry import minus, resized
from sdprobe.utilities import settings


class PositionMean(Mitigation):
    """x − γ G_p: subtract what is common to all images at a position p.

    The mean map is M_p = m_p − μ, with m_p the mean token at p and μ the mean over all positions. G is its least-squares fit
    by functions Z of position: G = Z_c (Z_cᵀ Z_c + λI)⁺ Z_cᵀ M, with Z_c the centred columns of Z. μ is kept. On a grid of
    another size than in the fit, a token takes G at the same distance from the nearest border.

    Args:
        basis: Z. ``additive``: one-hots of row and of column. ``onehot``: one-hots of the position, so that G = M; this
            removes everything that is linear in position. ``cosine``: products of low cosines, and terms for the border.
        gamma: γ in [0, 1], the share of G that is subtracted.
        scale: also divide the deviation from μ by s_p, its root mean square at p relative to the mean over positions.
        centre: also subtract μ.
        cosines: number of lowest cosines per axis, with the constant, at least 1. Only ``cosine`` uses it.
        ridge: λ, at least 0.

    Raises:
        InputError: an option out of range. At the end of a fit: fewer images than the basis has independent columns, because
            the noise of such a mean map would add position again.

    Example:
        >>> import torch
        >>> from sdprobe.mitigations import PositionMean
        >>> position = torch.randn(1, 8, 4, 4)  # the same in every image
        >>> fitted = PositionMean().fit(position + torch.randn(64, 8, 4, 4))
        >>> fitted.describe()
        {'fit_images': 64, 'columns': 8, 'rank': 6}
        >>> fitted.transform(position.expand(2, -1, -1, -1)).shape
        torch.Size([2, 8, 4, 4])
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
        """Size of the basis.

        Returns:
            ``columns`` of Z, and the ``rank`` of its centred columns.
        """
        height, width = code.shape[1:]
        count = height * width if self.basis == "onehot" else columns(self.basis, height, width, self.cosines).shape[1]
        return {"columns": count, "rank": rank.item()}


def relative_spread(sums: TokenSums, expected: Float[Tensor, "p c"]) -> Float[Tensor, "h w"]:
    """Root mean square of x − ``expected`` at every position, divided by its mean over positions; 1 where nothing varies.

    E ‖x_p − e_p‖² = E ‖x_p‖² − 2 m_p · e_p + ‖e_p‖².
    """
    residual = sums.energy / sums.images - 2 * (sums.means() * expected).sum(1) + expected.square().sum(1)
    spread = residual.clamp_min(0).sqrt()
    relative = spread / spread.mean().clamp_min(torch.finfo(spread.dtype).tiny)
    return torch.where(relative > 0, relative, 1.0).view(sums.total.shape[1:])
