"""Shares of variance that a regression explains, with intervals: of content per token group, and of token coordinates."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sdprobe.metrics.clusters import ClusterMetric, column_means
from sdprobe.metrics.intervals import positive_interval, ratio_pseudovalues, with_ends
from sdprobe.metrics.sums import SumMetric

KIND = "content_r2"


class ContentR2(ClusterMetric):
    """R² = 1 − Σ‖ŷ − y‖² / Σ‖y‖² over tokens, of targets y with expectation 0.

    Targets are centred (their mean at the token's position is subtracted) and scaled so that channels have equal weight, so
    the sums run over channels, too. 1 is a perfect readout, 0 is as good as the position mean, and negative values are worse.
    Groups whose targets do not vary have no value.

    Args:
        groups, photos: see :class:`ClusterMetric`.
    """

    higher_is_better = True
    kinds = (KIND,)
    residual: Tensor
    spread: Tensor

    def __init__(self, groups: Sequence[str], photos: int) -> None:
        super().__init__(groups, photos, residual=(), spread=())

    def update(
        self,
        predicted: Float[Tensor, "n v"],
        target: Float[Tensor, "n v"],
        masks: dict[str, Bool[Tensor, " n"]],
        photo: Int[Tensor, " n"],
    ) -> None:
        """Add tokens: predicted and true centred targets, group masks, and the photograph each comes from."""
        target = target.double()
        residual = (predicted.double() - target).square().sum(1)
        self._add(photo, masks, residual=residual, spread=target.square().sum(1))

    def _pseudovalues(self) -> Float[np.ndarray, "photos groups 1"]:
        return 1 - ratio_pseudovalues(self.residual.cpu().numpy(), self.spread.cpu().numpy())[..., None]

    def _intervals(self, values: Float[np.ndarray, "photos groups 1"]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        unexplained = 1 - values
        low, high = positive_interval(unexplained, self.spread.cpu().numpy()[..., None])
        return 1 - column_means(unexplained), 1 - high, 1 - low


class CoordinateR2(SumMetric):
    """R² = 1 − Σ‖ŷ − y‖² / Σ‖y − ȳ‖² of normalised (row, col) coordinates over whole grids, mean of the two axes.

    On whole grids the mean coordinate is 0 and known in advance, so sums per photograph suffice.

    Args:
        photos: number of photographs; photo indices are below it.
    """

    higher_is_better = True
    residual: Tensor
    spread: Tensor

    def __init__(self, photos: int) -> None:
        super().__init__()
        self.add_sums(residual=(photos, 2), spread=(photos, 2))

    def update(self, predicted: Float[Tensor, "n 2"], target: Float[Tensor, "n 2"], photo: Int[Tensor, " n"]) -> None:
        """Add tokens: predicted and true centred coordinates, and the photograph each comes from."""
        self.residual.index_add_(0, photo, (predicted - target).double().square())
        self.spread.index_add_(0, photo, target.double().square())

    def compute(self) -> dict[str, float]:
        """``r2/all`` with ``/ci_low`` and ``/ci_high``; empty if no coordinate varies."""
        residual, spread = self.residual.cpu().numpy(), self.spread.cpu().numpy()
        axes, seen = spread.sum(0) > 0, spread.sum(1) > 0
        if not axes.any():
            return {}
        unexplained = ratio_pseudovalues(residual[seen][:, axes], spread[seen][:, axes]).mean(1)
        low, high = positive_interval(unexplained)
        return with_ends("r2/all", 1 - unexplained.mean(), 1 - high, 1 - low)
