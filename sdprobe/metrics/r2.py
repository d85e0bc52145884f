"""Shares of variance that a regression explains, with intervals: of content per token group, and of token coordinates."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torchmetrics import Metric

from sdprobe.metrics.gains import metric_gains
from sdprobe.metrics.intervals import positive_interval, ratio_pseudovalues, with_ends

KIND = "content_r2"


class ContentR2(Metric):
    """R² = 1 − Σ‖ŷ − y‖² / Σ‖y‖² over tokens, of targets y whose expectation without any activation is 0.

    Targets come centred (their mean at the token's position is removed) and in units in which channels weigh alike, so the
    sums run over channels too: 1 is a perfect readout, 0 what the position mean gives, below 0 worse than that. States are
    sums per photograph and token group, never tokens.

    Args:
        groups: names of the token groups whose masks :meth:`update` receives; ``all`` is always there.
        photos: number of photographs; photo indices lie below it.
    """

    full_state_update = False
    higher_is_better = True
    residual: Tensor
    spread: Tensor
    count: Tensor

    def __init__(self, groups: Sequence[str], photos: int) -> None:
        super().__init__()
        self.groups = ("all", *groups)
        for name in ("residual", "spread", "count"):
            zeros = torch.zeros(photos, len(self.groups), dtype=torch.float64)
            self.add_state(name, zeros, dist_reduce_fx="sum")

    def update(
        self,
        predicted: Float[Tensor, "n v"],
        target: Float[Tensor, "n v"],
        masks: dict[str, Bool[Tensor, " n"]],
        photo: Int[Tensor, " n"],
    ) -> None:
        """Add tokens: predicted and true centred targets, group masks, and the photograph each comes from."""
        target = target.double()
        values = {
            "residual": (predicted.double() - target).square().sum(1),
            "spread": target.square().sum(1),
            "count": torch.ones_like(target[:, 0]),
        }
        for i, group in enumerate(self.groups):
            chosen = slice(None) if group == "all" else masks[group]
            for name, value in values.items():
                getattr(self, name)[:, i].index_add_(0, photo[chosen], value[chosen])

    def pseudovalues(self) -> dict[str, Float[np.ndarray, " photos"]]:
        """``content_r2/<group>`` → what every photograph contributes, see :mod:`~.intervals`; several processes call this
        together. Groups whose targets do not vary have no key."""
        with self.sync_context():
            values = self._values()
        return {f"{KIND}/{group}": values[:, i] for i, group in enumerate(self.groups) if np.isfinite(values[:, i]).any()}

    def compute(self) -> dict[str, float]:
        """``content_r2/<group>`` with ``/ci_low``, ``/ci_high``, ``/n`` (tokens); none for groups whose targets do not vary."""
        unexplained = 1 - self._values()
        low, high = positive_interval(unexplained, self.spread.cpu().numpy())
        values: dict[str, float] = {}
        for i, group in enumerate(self.groups):
            if np.isfinite(unexplained[:, i]).any():
                key, value = f"{KIND}/{group}", 1 - np.nanmean(unexplained[:, i])
                values |= with_ends(key, value, 1 - high[i], 1 - low[i]) | {f"{key}/n": int(self.count[:, i].sum().item())}
        return values

    def gain(self, other: "ContentR2") -> dict[str, float]:
        """``<kind>/<group>`` of this probe minus another's on the same tokens, see :func:`~.metric_gains`."""
        return metric_gains(self, other)

    def _values(self) -> Float[np.ndarray, "photos groups"]:
        return 1 - ratio_pseudovalues(self.residual.cpu().numpy(), self.spread.cpu().numpy())


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
