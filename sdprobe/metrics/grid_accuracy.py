"""GridAccuracy: how often a predicted grid position is right, per token group, with intervals over photographs."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torchmetrics import Metric

from sdprobe.metrics.gains import metric_gains
from sdprobe.metrics.intervals import ratio_pseudovalues, share_interval, with_ends
from sdprobe.tokens.geometry import bins

KINDS = ("axis_accuracy", "cell_accuracy", "binned_accuracy")
BINS = 8


def hits(predicted: Int[Tensor, "n 2"], target: Int[Tensor, "n 2"], height: int, width: int) -> Float[Tensor, "n 3"]:
    """Per token: axis accuracy (mean of row right and column right), cell accuracy (both right), binned accuracy.

    Binned accuracy is axis accuracy after each axis is cut into min(8, side) bins, so that layers compare.
    """
    right = (predicted == target).double()
    coarse = torch.stack([_binned_hit(predicted, target, axis, side) for axis, side in enumerate((height, width))], dim=1)
    return torch.stack([right.mean(1), right.prod(1), coarse.double().mean(1)], dim=1)


def _binned_hit(predicted: Tensor, target: Tensor, axis: int, side: int) -> Tensor:
    count = min(BINS, side)
    return bins(predicted[:, axis], side, count) == bins(target[:, axis], side, count)


def chance(height: int, width: int) -> dict[str, float]:
    """Expected accuracies of a guess that knows nothing, over all tokens of a grid.

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


class GridAccuracy(Metric):
    """Axis, cell and binned accuracy of position predictions for every token group, with intervals.

    States are sums per photograph, never tokens: memory is flat in the number of tokens. They also hold, over the grid,
    how often each position was right, and how often row i was predicted as row j.

    Args:
        height, width: of the grid.
        groups: names of the token groups whose masks :meth:`update` receives; ``all`` is always there.
        photos: number of photographs; photo indices lie below it.
    """

    full_state_update = False
    higher_is_better = True
    right: Tensor
    count: Tensor
    map_right: Tensor
    map_count: Tensor
    rows: Tensor
    cols: Tensor

    def __init__(self, height: int, width: int, groups: Sequence[str], photos: int) -> None:
        super().__init__()
        self.height, self.width = height, width
        self.groups = ("all", *groups)
        zeros = {
            "right": (photos, len(self.groups), len(KINDS)),
            "count": (photos, len(self.groups)),
            "map_right": (height, width),
            "map_count": (height, width),
            "rows": (height, height),
            "cols": (width, width),
        }
        for name, shape in zeros.items():
            self.add_state(name, torch.zeros(shape, dtype=torch.float64), dist_reduce_fx="sum")

    def update(
        self,
        predicted: Int[Tensor, "n 2"],
        target: Int[Tensor, "n 2"],
        masks: dict[str, Bool[Tensor, " n"]],
        photo: Int[Tensor, " n"],
    ) -> None:
        """Add tokens: predicted and true (row, col), group masks, and the photograph each comes from."""
        right = hits(predicted, target, self.height, self.width)
        for i, group in enumerate(self.groups):
            chosen = torch.ones_like(photo, dtype=torch.bool) if group == "all" else masks[group]
            self.right[:, i].index_add_(0, photo[chosen], right[chosen])
            self.count[:, i].index_add_(0, photo[chosen], torch.ones_like(right[chosen, 0]))
        flat = target[:, 0] * self.width + target[:, 1]
        self.map_right.view(-1).index_add_(0, flat, right[:, 0])
        self.map_count.view(-1).index_add_(0, flat, torch.ones_like(right[:, 0]))
        for axis, table in enumerate((self.rows, self.cols)):
            cell = target[:, axis] * table.shape[1] + predicted[:, axis]
            table.view(-1).index_add_(0, cell, torch.ones_like(right[:, 0]))

    def pseudovalues(self) -> dict[str, Float[np.ndarray, " photos"]]:
        """``<kind>/<group>`` → what every photograph contributes, see :mod:`~.intervals`; several processes call this
        together. Groups without tokens have no key.
        """
        with self.sync_context():
            right, count = self.right.cpu().numpy(), self.count.cpu().numpy()[..., None]
        values = ratio_pseudovalues(right, np.broadcast_to(count, right.shape))
        present = [i for i in range(len(self.groups)) if count[:, i].any()]
        return {f"{kind}/{self.groups[i]}": values[:, i, k] for i in present for k, kind in enumerate(KINDS)}

    def gain(self, other: "GridAccuracy") -> dict[str, float]:
        """``<kind>/<group>`` of this probe minus another's on the same tokens, see :func:`~.metric_gains`."""
        return metric_gains(self, other)

    def compute(self) -> dict[str, float]:
        """``<kind>/<group>`` with ``/ci_low``, ``/ci_high`` and ``/n`` (tokens); groups without tokens have no key."""
        right, count = self.right.cpu().numpy(), self.count.cpu().numpy()
        below = np.broadcast_to(count[..., None], right.shape)
        low, high = share_interval(ratio_pseudovalues(right, below), below)
        values: dict[str, float] = {}
        for i, group in enumerate(self.groups):
            total = count[:, i].sum()
            if not total:
                continue
            for k, kind in enumerate(KINDS):
                key = f"{kind}/{group}"
                values |= with_ends(key, right[:, i, k].sum() / total, low[i, k], high[i, k]) | {f"{key}/n": int(total)}
        return values

    def maps(self) -> dict[str, Float[np.ndarray, "_h _w"]]:
        """``accuracy``: axis accuracy over the grid, NaN where no token was seen. ``rows``, ``cols``: counts of
        (true, predicted). Several processes call this together."""
        with self.sync_context(), np.errstate(invalid="ignore"):
            accuracy = self.map_right.cpu().numpy() / self.map_count.cpu().numpy()
            return {"accuracy": accuracy, "rows": self.rows.cpu().numpy(), "cols": self.cols.cpu().numpy()}
