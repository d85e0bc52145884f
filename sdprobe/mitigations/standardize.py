"""Standardize: subtract the mean token, and optionally rescale or whiten channels. The reference for all other mitigations."""

import torch
from jaxtyping import Float
from torch import Tensor

from sdprobe.mitigations.base import Mitigation
from sdprobe.mitigations.sums import TokenSums
from sdprobe.utilities import settings


class Standardize(Mitigation):
    """Centre, scale or whiten tokens x with the mean μ and the covariance Σ of all training tokens.

    Args:
        mode: ``centre``: x − μ. ``zscore``: (x − μ) / σ per channel; channels that do not vary are only centred.
            ``zca``: W (x − μ) with W = (Σ + s · tr Σ / C · I)^(−1/2), the whitening that changes x least.
        shrinkage: s, above 0. Only ``zca`` uses it.

    Raises:
        InputError: an option out of range. At the end of a fit: no image was seen.

    References:
        Kessy, Lewin & Strimmer (2018), Optimal whitening and decorrelation, The American Statistician 72 (ZCA).

    Example:
        >>> import torch
        >>> from sdprobe.mitigations import Standardize
        >>> grids = 3 + torch.randn(16, 8, 4, 4)
        >>> fitted = Standardize("zscore").fit([grids])
        >>> round(fitted.transform(grids).std().item(), 2)
        1.0
    """

    fitted = ("mean", "weight")

    def __init__(self, mode: str = "centre", shrinkage: float = 1e-3) -> None:
        settings.check("standardize", mode=mode, shrinkage=shrinkage)
        self.mode = mode
        self.shrinkage = shrinkage

    def fitter(self, size: int = 512) -> TokenSums:
        return TokenSums(self, second=self.mode != "centre")

    def solve(self, sums: TokenSums) -> dict[str, Tensor]:
        weight = torch.empty(0)
        if self.mode != "centre":
            covariance = sums.covariance()
            weight = (self._scale(covariance) if self.mode == "zscore" else self._whitening(covariance)).float()
        return {"mean": sums.means().mean(0).float(), "weight": weight}

    def apply(
        self, grid: Float[Tensor, "b c h w"], mean: Float[Tensor, " c"], weight: Float[Tensor, "_c *_c2"]
    ) -> Float[Tensor, "b c h w"]:
        x = grid.float() - mean[:, None, None]
        if self.mode == "zscore":
            x = x * weight[:, None, None]
        elif self.mode == "zca":
            x = (weight @ x.flatten(2)).view(x.shape)
        return x.to(grid.dtype)

    def _scale(self, covariance: Float[Tensor, "c c"]) -> Float[Tensor, " c"]:
        """1/σ, and 1 for channels whose variance is not above rounding error."""
        variance = covariance.diagonal()
        still = variance <= variance.max() * torch.finfo(torch.float32).eps ** 2
        return variance.masked_fill(still, 1).rsqrt()

    def _whitening(self, covariance: Float[Tensor, "c c"]) -> Float[Tensor, "c c"]:
        values, vectors = torch.linalg.eigh(covariance)
        level = (self.shrinkage * covariance.trace() / len(covariance)).clamp_min(torch.finfo(values.dtype).tiny)
        return vectors * (values.clamp_min(0) + level).rsqrt() @ vectors.T
