"""DepthError: how far predicted depth is off, per token group, with intervals over photographs."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torchmetrics import Metric

from metrics.gains import resampled_gain
from metrics.intervals import percentiles, resampled_ratios

KINDS = ("rmse", "abs_rel", "delta1")
NEAREST = 1e-3  # a linear map may predict depth below zero, of which no ratio can be taken
RATIO = 1.25


def errors(predicted: Float[Tensor, " n"], target: Float[Tensor, " n"]) -> Float[Tensor, "n 3"]:
    """Per token, in float64: squared error; |ŷ − y| / y; whether max(ŷ / y, y / ŷ) < 1.25.

    The last two raise predictions to at least 0.001. ``target`` is positive.
    """
    predicted, target = predicted.double(), target.double()
    positive = predicted.clamp_min(NEAREST)
    near = torch.maximum(positive / target, target / positive) < RATIO
    return torch.stack([(predicted - target).square(), (positive - target).abs() / target, near.double()], dim=1)


class DepthError(Metric):
    """Root mean squared error (in the unit of depth), mean relative error and share of tokens within a ratio of 1.25.

    States are sums per photograph and token group, and over the grid, never tokens. Tokens whose target is NaN are left out.

    Args:
        height, width: of the grid.
        groups: names of the token groups whose masks :meth:`update` receives; ``all`` is always there.
        photos: number of photographs; photo indices lie below it.
    """

    full_state_update = False
    sums: Tensor
    count: Tensor
    map_sum: Tensor
    map_count: Tensor

    def __init__(self, height: int, width: int, groups: Sequence[str], photos: int) -> None:
        super().__init__()
        self.groups = ("all", *groups)
        zeros = {
            "sums": (photos, len(self.groups), len(KINDS)),
            "count": (photos, len(self.groups)),
            "map_sum": (height, width),
            "map_count": (height, width),
        }
        for name, shape in zeros.items():
            self.add_state(name, torch.zeros(shape, dtype=torch.float64), dist_reduce_fx="sum")

    def update(
        self,
        predicted: Float[Tensor, " n"],
        target: Float[Tensor, " n"],
        where: Int[Tensor, "n 2"],
        masks: dict[str, Bool[Tensor, " n"]],
        photo: Int[Tensor, " n"],
    ) -> None:
        """Add tokens: predicted and true depth, (row, col), group masks, and the photograph each comes from."""
        known = target.isfinite()
        for i, group in enumerate(self.groups):
            chosen = known if group == "all" else known & masks[group]
            values = errors(predicted[chosen], target[chosen])
            self.sums[:, i].index_add_(0, photo[chosen], values)
            self.count[:, i].index_add_(0, photo[chosen], torch.ones_like(values[:, 0]))
        row, col = where[known].unbind(1)
        cell = row * self.map_sum.shape[1] + col
        off = (predicted[known].double() - target[known].double()).abs()
        self.map_sum.view(-1).index_add_(0, cell, off)
        self.map_count.view(-1).index_add_(0, cell, torch.ones_like(off))

    def compute(self) -> dict[str, float]:
        """``<kind>/<group>`` with ``/ci_low``, ``/ci_high`` and ``/n`` (tokens); groups without tokens have no key."""
        sums, count = self.sums.cpu().numpy(), self.count.cpu().numpy()
        seen = count.sum(1) > 0
        if not seen.any():
            return {}
        sums, count = sums[seen], count[seen]
        low, high = percentiles(_rooted(resampled_ratios(sums, np.broadcast_to(count[..., None], sums.shape))))
        values: dict[str, float] = {}
        for i, group in enumerate(self.groups):
            total = count[:, i].sum()
            if not total:
                continue
            means = _rooted(sums[:, i].sum(0) / total)
            for k, kind in enumerate(KINDS):
                key = f"{kind}/{group}"
                values[key] = float(means[k])
                values[f"{key}/ci_low"], values[f"{key}/ci_high"] = float(low[i, k]), float(high[i, k])
                values[f"{key}/n"] = int(total)
        return values

    def gain(self, other: "DepthError") -> dict[str, float]:
        """``<kind>/<group>`` of this probe minus another's on the same tokens, see :func:`~metrics.gains.resampled_gain`.

        Groups that do not hold the same number of tokens of every photograph for both have no gain.
        """
        count = self.count.cpu().numpy()[..., None]
        seen = count.sum((1, 2)) > 0
        if not seen.any():
            return {}
        sums = [each.sums.cpu().numpy()[seen] for each in (self, other)]
        below = np.broadcast_to(count[seen], sums[0].shape)
        own, others = (_rooted(resampled_ratios(each, below)) for each in sums)
        with np.errstate(invalid="ignore"):
            mean, base = (_rooted(each.sum(0) / below.sum(0)) for each in sums)
        found: dict[str, float] = {}
        alike = [i for i in range(len(self.groups)) if self.count[:, i].equal(other.count[:, i])]
        for i, group in ((i, self.groups[i]) for i in alike):
            for k, kind in enumerate(KINDS):
                gained = float(mean[i, k] - base[i, k])
                units = int(np.count_nonzero(count[:, i]))
                found |= resampled_gain(f"{kind}/{group}", gained, own[:, i, k] - others[:, i, k], units)
        return found

    def maps(self) -> dict[str, Float[np.ndarray, "_h _w"]]:
        """``error``: mean of |ŷ − y| over the grid, NaN where no token with a depth was seen.

        All processes call this together.
        """
        with self.sync_context(), np.errstate(invalid="ignore"):
            return {"error": self.map_sum.cpu().numpy() / self.map_count.cpu().numpy()}


def _rooted(means: Float[np.ndarray, "*k 3"]) -> Float[np.ndarray, "*k 3"]:
    """Mean squared error becomes its root; the other kinds are means already."""
    return np.concatenate([np.sqrt(means[..., :1]), means[..., 1:]], axis=-1)
