"""OutlierTokens: repair tokens of high norm where they are found, and leave all others alone."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import avg_pool2d, normalize

from sdprobe.mitigations.base import Mitigation
from sdprobe.mitigations.sums import TokenSums
from sdprobe.tokens.geometry import flatten
from sdprobe.tokens.groups import HIGH_NORM_Z, high_norm
from sdprobe.utilities import expect


class OutlierTokens(Mitigation):
    """What becomes of the tokens that :func:`sdprobe.tokens.groups.high_norm` finds in the grids it is given.

    Args:
        mode: ``project``: x − u uᵀ (x − μ₀), u the unit mean of x − μ over the detected training tokens, μ₀ the mean of the
            others, which outliers do not pull; ``inpaint``: the mean of the tokens around it (3 × 3) that are not detected,
            of all such tokens of the image where there are none;
            ``mask``: 0, whose cosine with everything is 0, so that it is no match; ``clip``: as long as the image's median
            token, which changes nothing for cosines.
        threshold: robust z of the log-norm above which a token is detected.

    Only ``project`` is fitted. Without a detection in training u = 0, and it changes nothing.

    Raises:
        InputError: an option out of range.
    """

    mean: Float[Tensor, " c"]
    direction: Float[Tensor, " c"]
    detected: Int[Tensor, ""]

    def __init__(self, mode: str = "project", threshold: float = HIGH_NORM_Z) -> None:
        super().__init__("mean", "direction")
        self.register_buffer("detected", torch.tensor(0))
        expect.positive("threshold", threshold)
        self.mode = expect.one_of("mode", mode, ("project", "inpaint", "mask", "clip"))
        self.threshold = threshold
        self.fit_images = None if mode == "project" else 0
        self._sums: tuple[TokenSums, Tensor, int] | None = None

    def update(self, *grids: Float[Tensor, "b c h w"]) -> None:
        if self.mode != "project":
            return
        grid = grids[0]
        mask = high_norm(grid, self.threshold)
        sums, outliers, found = self._sums or (TokenSums(), torch.zeros((), dtype=torch.float64, device=grid.device), 0)
        sums.update(grid)
        outliers = outliers + flatten(grid)[mask.flatten(1)].sum(0, dtype=torch.float64)
        self._sums = sums, outliers, found + int(mask.sum())

    def finish(self) -> None:
        if self.mode != "project":
            return
        sums, outliers, found = self._sums or (TokenSums(), torch.empty(0), 0)
        self._sums = None
        mean, tokens = sums.means().mean(0), sums.images * sums.total[0].numel()
        self.mean = ((mean * tokens - outliers) / max(tokens - found, 1)).float()
        self.direction = normalize(outliers - found * mean, dim=0, eps=torch.finfo(torch.float64).tiny).float()
        self.detected.fill_(found)
        self.seen.fill_(sums.images)

    def transform(self, grid: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        if self.mode == "project":
            self.check(grid, self.mean)
        mask = high_norm(grid, self.threshold)
        if not mask.any():
            return grid
        repair = {"project": self._projected, "inpaint": inpainted, "mask": _masked, "clip": clipped}[self.mode]
        return torch.where(mask[:, None], repair(grid.float(), mask).to(grid.dtype), grid)

    def describe(self) -> dict[str, object]:
        """``fit_images``, and how many training tokens were ``detected``; nothing for modes that are not fitted."""
        return super().describe() | {"detected": self.detected.item()} if self.mode == "project" else {}

    def _projected(self, x: Float[Tensor, "b c h w"], _: Bool[Tensor, "b h w"]) -> Float[Tensor, "b c h w"]:
        direction = self.direction[:, None, None]
        return x - direction * (direction * (x - self.mean[:, None, None])).sum(1, keepdim=True)


def inpainted(x: Float[Tensor, "b c h w"], mask: Bool[Tensor, "b h w"]) -> Float[Tensor, "b c h w"]:
    """At every token the mean of the tokens outside ``mask`` in its 3 × 3 neighbourhood, else of those of the image."""
    clean = (~mask)[:, None].to(x.dtype)
    around = avg_pool2d(clean, 3, stride=1, padding=1)
    local = avg_pool2d(x * clean, 3, stride=1, padding=1) / around.clamp_min(0.1)  # a ninth or more, where there is any
    overall = (x * clean).sum((2, 3), keepdim=True) / clean.sum((2, 3), keepdim=True).clamp_min(1)
    return torch.where(around > 0.1, local, overall)


def clipped(x: Float[Tensor, "b c h w"], _: Bool[Tensor, "b h w"]) -> Float[Tensor, "b c h w"]:
    """Every token with the median norm of its image."""
    norm = x.norm(dim=1, keepdim=True)
    median = norm.flatten(1).median(dim=1).values.view(-1, 1, 1, 1)
    return x * (median / norm.clamp_min(torch.finfo(x.dtype).tiny))


def _masked(x: Float[Tensor, "b c h w"], _: Bool[Tensor, "b h w"]) -> Float[Tensor, "b c h w"]:
    return torch.zeros_like(x)
