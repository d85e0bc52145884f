"""TokenMeans: the mean token of the images that statistics are fitted on, and where high-norm tokens lie from it."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import normalize
from torchmetrics import Metric

from tokens.geometry import flatten


class TokenMeans(Metric):
    """Mean token μ, and the template: the unit direction from μ to the mean of the detected high-norm tokens.

    Args:
        channels: C.
    """

    full_state_update = False
    total: Tensor
    hot: Tensor
    count: Tensor
    hot_count: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        for name in ("total", "hot"):
            self.add_state(name, torch.zeros(channels, dtype=torch.float64), dist_reduce_fx="sum")
        for name in ("count", "hot_count"):
            self.add_state(name, torch.tensor(0), dist_reduce_fx="sum")

    def update(self, grid: Float[Tensor, "b c h w"], mask: Bool[Tensor, "b h w"]) -> None:
        """Add images: raw grids and their high-norm tokens."""
        tokens, chosen = flatten(grid).float(), mask.flatten(1)
        self.total += tokens.sum((0, 1), dtype=torch.float64)
        self.hot += tokens[chosen].sum(0, dtype=torch.float64)
        self.count += chosen.numel()
        self.hot_count += chosen.sum()

    def compute(self) -> tuple[Float[Tensor, " c"], Float[Tensor, " c"]]:
        """(μ, the template: norm 1, or zeros where nothing was detected, which no token resembles)."""
        mean = self.total / self.count
        return mean, normalize(self.hot - self.hot_count * mean, dim=0, eps=torch.finfo(torch.float64).tiny)
