"""Leace: the smallest affine change after which no linear probe can read position. At test time it needs no positions."""

import torch
from jaxtyping import Float
from torch import Tensor

from sdprobe.mitigations.bases import additive, axis_cosines
from sdprobe.mitigations.low_rank import WARN, LowRank
from sdprobe.mitigations.sums import TokenSums
from sdprobe.utilities import settings


class Leace(LowRank):
    """x − W⁺ U Uᵀ W (x − μ), with W = Σ_xx^(−1/2) and U the left singular vectors of W Σ_xz.

    Z are functions of position, so Σ_xz follows from the mean map. Only the covariance with Z becomes zero. A non-linear probe
    can still read position, and so can a linear probe of other functions of position. The map is oblique, so the variance
    along single directions, and the trace of Σ_xx, may grow.

    Args:
        columns: Z. ``additive``: one-hots of row and of column. ``cosine``: the lowest cosines of each. ``auto``: ``additive``
            where its rank is at most a tenth of the channels C, else ``cosine``.
        cosines: K, cosines per axis, at least 1. None is max(2, ⌊0.05 C⌋).
        tolerance: above 0. Singular values of W Σ_xz up to this one are kept: 0.01 leaves traces of position, 1e-6 leaves
            none.
        shrinkage: estimate Σ_xx by shrinking it towards a multiple of the identity, see
            :func:`~sdprobe.mitigations.leace.shrunk`. Position is removed in both cases. The change is the smallest possible
            for this estimate of Σ_xx.

    Raises:
        InputError: an option out of range. At the end of a fit: a rank above C/2, or fewer images than Z has columns.

    References:
        Belrose et al. (2023), LEACE: Perfect linear concept erasure in closed form, NeurIPS, arXiv 2306.03819.

    Example:
        >>> import torch
        >>> from sdprobe.mitigations import Leace
        >>> fitted = Leace(columns="additive").fit([torch.randn(64, 16, 4, 4)])
        >>> fitted.transform(torch.randn(2, 16, 4, 4)).shape
        torch.Size([2, 16, 4, 4])
    """

    def __init__(
        self, columns: str = "auto", cosines: int | None = None, tolerance: float = 0.01, shrinkage: bool = True
    ) -> None:
        settings.check("leace", columns=columns, tolerance=tolerance, cosines=cosines)
        self.columns, self.cosines, self.tolerance, self.shrinkage = columns, cosines, tolerance, shrinkage

    def factors(self, sums: TokenSums) -> tuple[Float[Tensor, "c r"], Float[Tensor, "r c"]]:
        means = sums.means()
        z = self._functions(*sums.total.shape).to(means.device)
        sums.check_images(z.shape[1], "there are functions of position", "columns=cosine with fewer cosines")
        tokens = sums.images * len(means)
        covariance = sums.covariance()
        sigma = shrunk(covariance, tokens) if self.shrinkage else covariance * (tokens / (tokens - 1))
        cross = (means - means.mean(0)).T @ (z - z.mean(0)) * (sums.images / (tokens - 1))
        values, vectors = torch.linalg.eigh(sigma)
        keep = values > values[-1] * len(values) * torch.finfo(values.dtype).eps
        values, vectors = values[keep], vectors[:, keep]
        whiten, colour = vectors * values.rsqrt() @ vectors.T, vectors * values.sqrt() @ vectors.T
        u, strength, _ = torch.linalg.svd(whiten @ cross, full_matrices=False)
        u = u[:, strength > self.tolerance]
        return colour @ u, u.T @ whiten

    def _functions(self, channels: int, height: int, width: int) -> Float[Tensor, "p k"]:
        fits = height + width - 2 <= WARN * channels
        if self.columns == "additive" or (self.columns == "auto" and fits):
            return additive(height, width)
        return axis_cosines(height, width, self.cosines or max(2, int(0.05 * channels)))


def shrunk(covariance: Float[Tensor, "c c"], tokens: int) -> Float[Tensor, "c c"]:
    """α S + (1 − α) (tr S / C) I with 1 − α = (tr S)² / (N (‖S‖² − (tr S)² / C)), at most 1, for N tokens.

    References:
        Bodnar, Gupta & Parolya (2014), On the strong convergence of the optimal linear shrinkage estimator for large
        dimensional covariance matrix, Journal of Multivariate Analysis 132.
    """
    level = covariance.trace() / len(covariance)
    excess = covariance.square().sum() - level.square() * len(covariance)
    weight = (covariance.trace().square() / (tokens * excess.clamp_min(torch.finfo(excess.dtype).tiny))).clamp(max=1)
    identity = torch.eye(len(covariance), dtype=covariance.dtype, device=covariance.device)
    return torch.lerp(covariance, level * identity, weight)
