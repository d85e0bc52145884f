"""LayerTokens: input of the statistics of one layer, computed once per batch.

TokenMeans holds the mean token of the fit images, and the direction from it to high-norm tokens.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Float32, Float64, Int
from torch import Tensor
from torch.nn.functional import normalize

from sdprobe.metrics.sums import SumMetric
from sdprobe.tokens.geometry import flatten

TINY = torch.finfo(torch.float32).tiny


def inverse_norms(norms: Float64[Tensor, "*n"]) -> Float32[Tensor, "*n"]:
    """1 / ‖x‖, the factor that makes a token a unit token; 0 for tokens without a direction (norm below 1e−38).

    >>> inverse_norms(torch.tensor([4.0, 0.0], dtype=torch.float64)).tolist()
    [0.25, 0.0]
    """
    return torch.where(norms > TINY, 1 / norms, 0).float()


@dataclass(frozen=True)
class LayerTokens:
    """Tokens of a batch of grids of one layer and their norms, raw and after a mean is subtracted.

    Tokens are float32, which represents half precision exactly. They are centred before any product, so that a large mean
    costs no precision. Squares in half precision overflow; in float32 they do not. Metrics sum over images in float64.

    Attributes:
        tokens: x, row-major; a view of the grid if that is float32 and channels-last.
        norms: ‖x‖, to float32 precision.
        centred: x − mean; ``tokens`` itself without a mean.
        centred_norms: ‖x − mean‖.
        masks: tokens of each group, by its name.
        height, width: of the grid.
        rank: number of each image in the stream, if images arrive out of order.
    """

    tokens: Float32[Tensor, "b p c"]
    norms: Float64[Tensor, "b p"]
    centred: Float32[Tensor, "b p c"]
    centred_norms: Float64[Tensor, "b p"]
    masks: dict[str, Bool[Tensor, "b p"]]
    height: int
    width: int
    rank: Int[Tensor, " b"] | None = None

    @classmethod
    def of(
        cls,
        grid: Float[Tensor, "b c h w"],
        masks: dict[str, Bool[Tensor, "b h w"]],
        mean: Float[Tensor, " c"] | None = None,
        rank: Int[Tensor, " b"] | None = None,
    ) -> "LayerTokens":
        """From raw grids, the masks of their groups, and the mean token of the fit images."""
        tokens = flatten(grid).contiguous().float()
        norms = torch.linalg.vector_norm(tokens, dim=-1).double()
        centred, centred_norms = tokens, norms
        if mean is not None:
            centred = tokens - mean.to(tokens)
            centred_norms = torch.linalg.vector_norm(centred, dim=-1).double()
        flat = {group: mask.flatten(1) for group, mask in masks.items()}
        return cls(tokens, norms, centred, centred_norms, flat, grid.shape[2], grid.shape[3], rank)

    def __len__(self) -> int:
        """Number of images."""
        return len(self.tokens)

    def grid_mask(self, group: str) -> Bool[Tensor, "b {self.height} {self.width}"]:
        """The mask of a group as a grid."""
        return self.masks[group].unflatten(1, (self.height, self.width))


class TokenMeans(SumMetric):
    """Mean token μ, and the template: the unit vector from μ towards the mean of the detected high-norm tokens.

    Args:
        channels: C.
    """

    total: Tensor
    hot: Tensor
    count: Tensor
    hot_count: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.add_sums(total=(channels,), hot=(channels,))
        self.add_sums(torch.int64, count=(), hot_count=())

    def update(self, grid: Float[Tensor, "b c h w"], mask: Bool[Tensor, "b h w"]) -> None:
        """Add images: raw grids and their high-norm tokens."""
        tokens, chosen = flatten(grid).float(), mask.flatten(1)
        self.total += tokens.sum((0, 1), dtype=torch.float64)
        self.hot += tokens[chosen].sum(0, dtype=torch.float64)
        self.count += chosen.numel()
        self.hot_count += chosen.sum()

    def compute(self) -> tuple[Float[Tensor, " c"], Float[Tensor, " c"]]:
        """μ, and the template: of norm 1, or zeros if nothing was detected (then no token resembles it)."""
        mean = self.total / self.count
        return mean, normalize(self.hot - self.hot_count * mean, dim=0, eps=torch.finfo(torch.float64).tiny)
