"""GridAccuracy: accuracy of predicted grid positions per token group, with intervals over photographs."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sdprobe.metrics.clusters import ClusterMetric
from sdprobe.metrics.intervals import ratio_pseudovalues, share_interval
from sdprobe.tokens.geometry import bins

KINDS = ("axis_accuracy", "cell_accuracy", "binned_accuracy")
BINS = 8


def correct(predicted: Int[Tensor, "n 2"], target: Int[Tensor, "n 2"], height: int, width: int) -> Float[Tensor, "n 3"]:
    """Per token: axis accuracy (mean of row correct and column correct), cell accuracy (both correct), binned accuracy.

    Binned accuracy is axis accuracy after each axis is divided into min(8, side) bins, so that layers can be compared.
    """
    right = (predicted == target).double()
    coarse = torch.stack([_binned_hit(predicted, target, axis, side) for axis, side in enumerate((height, width))], dim=1)
    return torch.stack([right.mean(1), right.prod(1), coarse.double().mean(1)], dim=1)


def _binned_hit(predicted: Tensor, target: Tensor, axis: int, side: int) -> Tensor:
    count = min(BINS, side)
    return bins(predicted[:, axis], side, count) == bins(target[:, axis], side, count)


def chance(height: int, width: int) -> dict[str, float]:
    """Expected accuracies of a guess without any information, over all tokens of a grid.

    >>> chance(8, 8) == {"axis_accuracy": 1 / 8, "cell_accuracy": 1 / 64, "binned_accuracy": 1 / 8}
    True
    """
    shares = [
        (torch.bincount(bins(torch.arange(side), side, min(BINS, side))).double() / side).square().sum().item()
        for side in (height, width)
    ]
    return {
        "axis_accuracy": (1 / height + 1 / width) / 2,
        "cell_accuracy": 1 / (height * width),
        "binned_accuracy": sum(shares) / 2,
    }


class GridAccuracy(ClusterMetric):
    """Axis, cell and binned accuracy of position predictions for every token group, with intervals over photographs.

    States also hold how often each position of the grid was correct, and how often row i was predicted as row j.

    Args:
        height, width: of the grid.
        groups, photos: see :class:`ClusterMetric`.
    """

    higher_is_better = True
    kinds = KINDS
    right: Tensor
    map_right: Tensor
    map_count: Tensor
    rows: Tensor
    cols: Tensor

    def __init__(self, height: int, width: int, groups: Sequence[str], photos: int) -> None:
        super().__init__(groups, photos, right=(len(KINDS),))
        self.height, self.width = height, width
        grid = (height, width)
        self.add_sums(map_right=grid, map_count=grid, rows=(height, height), cols=(width, width))

    def update(
        self,
        predicted: Int[Tensor, "n 2"],
        target: Int[Tensor, "n 2"],
        masks: dict[str, Bool[Tensor, " n"]],
        photo: Int[Tensor, " n"],
    ) -> None:
        """Add tokens: predicted and true (row, col), group masks, and the photograph each comes from."""
        right = correct(predicted, target, self.height, self.width)
        self._add(photo, masks, right=right)
        flat, ones = target[:, 0] * self.width + target[:, 1], torch.ones_like(right[:, 0])
        self.map_right.view(-1).index_add_(0, flat, right[:, 0])
        self.map_count.view(-1).index_add_(0, flat, ones)
        for axis, table in enumerate((self.rows, self.cols)):
            cell = target[:, axis] * table.shape[1] + predicted[:, axis]
            table.view(-1).index_add_(0, cell, ones)

    def _sums(self) -> tuple[Float[np.ndarray, "photos groups kinds"], Float[np.ndarray, "photos groups kinds"]]:
        """Numbers of correct tokens, and of tokens."""
        right = self.right.cpu().numpy()
        return right, np.broadcast_to(self.count.cpu().numpy()[..., None], right.shape)

    def _pseudovalues(self) -> Float[np.ndarray, "photos groups kinds"]:
        return ratio_pseudovalues(*self._sums())

    def _intervals(self, values: Float[np.ndarray, "photos groups kinds"]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        right, count = self._sums()
        with np.errstate(invalid="ignore"):
            return right.sum(0) / count.sum(0), *share_interval(values, count)

    def maps(self) -> dict[str, Float[np.ndarray, "_h _w"]]:
        """``accuracy``: axis accuracy over the grid, NaN where no token was seen. ``rows``, ``cols``: counts of
        (true, predicted). All processes call this together."""
        with self.sync_context(should_sync=self.sync_on_compute), np.errstate(invalid="ignore"):
            accuracy = self.map_right.cpu().numpy() / self.map_count.cpu().numpy()
            return {"accuracy": accuracy, "rows": self.rows.cpu().numpy(), "cols": self.cols.cpu().numpy()}
