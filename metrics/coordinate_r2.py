"""CoordinateR2: share of the variance of token coordinates that a regression explains, with an interval."""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torchmetrics import Metric

from metrics.intervals import positive_interval, ratio_pseudovalues, with_ends


class CoordinateR2(Metric):
    """R² = 1 − Σ‖ŷ − y‖² / Σ‖y − ȳ‖² of normalised (row, col) coordinates over whole grids, mean of the two axes.

    On whole grids the mean coordinate is 0 and known beforehand, so sums per photograph suffice.

    Args:
        photos: number of photographs; photo indices lie below it.
    """

    full_state_update = False
    higher_is_better = True
    residual: Tensor
    spread: Tensor

    def __init__(self, photos: int) -> None:
        super().__init__()
        self.add_state("residual", torch.zeros(photos, 2, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("spread", torch.zeros(photos, 2, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, predicted: Float[Tensor, "n 2"], target: Float[Tensor, "n 2"], photo: Int[Tensor, " n"]) -> None:
        """Add tokens: predicted and true centred coordinates, and the photograph each comes from."""
        self.residual.index_add_(0, photo, (predicted - target).double().square())
        self.spread.index_add_(0, photo, target.double().square())

    def compute(self) -> dict[str, float]:
        """``r2/all`` with ``/ci_low`` and ``/ci_high``; nothing where no coordinate varies."""
        residual, spread = self.residual.cpu().numpy(), self.spread.cpu().numpy()
        axes, seen = spread.sum(0) > 0, spread.sum(1) > 0
        if not axes.any():
            return {}
        unexplained = ratio_pseudovalues(residual[seen][:, axes], spread[seen][:, axes]).mean(1)
        low, high = positive_interval(unexplained)
        return with_ends("r2/all", 1 - unexplained.mean(), 1 - high, 1 - low)
