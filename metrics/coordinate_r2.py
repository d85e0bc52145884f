"""CoordinateR2: share of the variance of token coordinates that a regression explains, with an interval."""

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torchmetrics import Metric

from metrics.intervals import bootstrap_ratio


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
        """``r2/all`` with ``/ci_low`` and ``/ci_high``."""
        residual, spread = self.residual.cpu().numpy(), self.spread.cpu().numpy()
        seen = spread.sum(1) > 0
        low, high = bootstrap_ratio(residual[seen], spread[seen])
        value = 1 - residual.sum(0) / spread.sum(0)
        return {
            "r2/all": float(value.mean()),
            "r2/all/ci_low": float(np.mean(1 - high)),
            "r2/all/ci_high": float(np.mean(1 - low)),
        }
