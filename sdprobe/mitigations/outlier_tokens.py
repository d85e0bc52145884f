"""OutlierTokens: repair high-norm tokens where they are detected, and leave all others unchanged."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import avg_pool2d, normalize

from sdprobe.mitigations.base import Mitigation
from sdprobe.mitigations.sums import TokenSums
from sdprobe.tokens.geometry import flatten
from sdprobe.tokens.groups import HIGH_NORM_Z, high_norm
from sdprobe.utilities import settings


class OutlierSums(TokenSums):
    """Also sums ``outliers``, the detected tokens (C,), and counts how many were ``detected``."""

    settings: "OutlierTokens"
    outliers = torch.zeros((), dtype=torch.float64)
    detected = 0

    def update(self, *grids: Float[Tensor, "b c h w"]) -> None:
        if self.settings.mode != "project":
            return
        super().update(*grids)
        [grid] = grids
        mask = high_norm(grid, self.settings.threshold)
        self.outliers = self.outliers + flatten(grid)[mask.flatten(1)].sum(0, dtype=torch.float64)
        self.detected += int(mask.sum())


class OutlierTokens(Mitigation):
    """Replace the tokens that :func:`sdprobe.tokens.groups.high_norm` detects in the given grids.

    Only ``project`` is fitted. If no token was detected in training, then u = 0 and ``project`` changes nothing.

    Args:
        mode: what replaces a detected token x.
            ``project``: x − u uᵀ (x − μ₀), with u the unit vector along the mean of x − μ over the training tokens detected,
            and μ₀ the mean of the other training tokens.
            ``inpaint``: the mean of the undetected tokens in its 3 × 3 neighbourhood; of the whole image where there are none.
            ``mask``: 0. Its cosine with every token is 0, so it is never the best match.
            ``clip``: x with the median norm of its image. Cosines do not change.
        threshold: robust z-score of the log-norm above which a token is detected, above 0.

    Raises:
        InputError: an option out of range.

    References:
        Darcet et al. (2024), Vision Transformers Need Registers, ICLR, arXiv 2309.16588 (high-norm tokens).

    Example:
        >>> import torch
        >>> from sdprobe.mitigations import OutlierTokens
        >>> grids = torch.randn(2, 8, 8, 8)
        >>> grids[:, :, 3, 4] *= 100
        >>> repaired = OutlierTokens("inpaint").fit([]).transform(grids)  # nothing is fitted
        >>> (repaired != grids).any(1)[0].nonzero().tolist()
        [[3, 4]]
    """

    fitted = ("mean", "direction", "detected")

    def __init__(self, mode: str = "project", threshold: float = HIGH_NORM_Z) -> None:
        settings.check("outlier_tokens", threshold=threshold, mode=mode)
        self.mode = mode
        self.threshold = threshold
        self.fit_images = None if mode == "project" else 0

    def fitter(self, size: int = 512) -> OutlierSums:
        return OutlierSums(self)

    def solve(self, sums: OutlierSums) -> dict[str, Tensor]:
        if self.mode != "project":
            return {"mean": torch.empty(0), "direction": torch.empty(0), "detected": torch.tensor(0)}
        mean, tokens = sums.means().mean(0), sums.images * sums.total[0].numel()
        others = ((mean * tokens - sums.outliers) / max(tokens - sums.detected, 1)).float()
        shift = sums.outliers - sums.detected * mean
        direction = normalize(shift, dim=0, eps=torch.finfo(torch.float64).tiny).float()
        return {"mean": others, "direction": direction, "detected": torch.tensor(sums.detected)}

    def apply(
        self, grid: Float[Tensor, "b c h w"], mean: Float[Tensor, " _c"], direction: Float[Tensor, " _c"], **_: Tensor
    ) -> Float[Tensor, "b c h w"]:
        mask = high_norm(grid, self.threshold)
        if not mask.any():
            return grid
        x = grid.float()
        match self.mode:
            case "project":
                u = direction[:, None, None]
                repaired = x - u * (u * (x - mean[:, None, None])).sum(1, keepdim=True)
            case "inpaint":
                repaired = inpainted(x, mask)
            case "mask":
                repaired = torch.zeros_like(x)
            case _:
                repaired = clipped(x)
        return torch.where(mask[:, None], repaired.to(grid.dtype), grid)

    def report(self, detected: Int[Tensor, ""], **_: Tensor) -> dict[str, object]:
        """How many tokens the fit used.

        Returns:
            ``detected``: number of training tokens detected.
        """
        return {"detected": detected.item()}


def inpainted(x: Float[Tensor, "b c h w"], mask: Bool[Tensor, "b h w"]) -> Float[Tensor, "b c h w"]:
    """At every token, the mean of the tokens outside ``mask`` in its 3 × 3 neighbourhood, else of those of the image."""
    clean = (~mask)[:, None].to(x.dtype)
    around = avg_pool2d(clean, 3, stride=1, padding=1)
    local = avg_pool2d(x * clean, 3, stride=1, padding=1) / around.clamp_min(0.1)  # a ninth or more, where there is any
    overall = (x * clean).sum((2, 3), keepdim=True) / clean.sum((2, 3), keepdim=True).clamp_min(1)
    return torch.where(around > 0.1, local, overall)


def clipped(x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
    """Every token with the median norm of its image."""
    norm = x.norm(dim=1, keepdim=True)
    median = norm.flatten(1).median(dim=1).values.view(-1, 1, 1, 1)
    return x * (median / norm.clamp_min(torch.finfo(x.dtype).tiny))
