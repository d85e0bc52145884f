"""ContentR2: share of what images show beyond their mean at a position that a regression explains, per token group."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torchmetrics import Metric

from metrics.gains import resampled_gain
from metrics.intervals import percentiles, resampled_ratios

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

    def compute(self) -> dict[str, float]:
        """``content_r2/<group>`` with ``/ci_low``, ``/ci_high``, ``/n`` (tokens); none for groups whose targets do not vary."""
        spread = self.spread.cpu().numpy()
        low, high = percentiles(self._resampled()) if self._seen.any() else (np.empty(0), np.empty(0))
        mean = self._mean()
        values: dict[str, float] = {}
        for i, group in enumerate(self.groups):
            if spread[:, i].any():
                key = f"{KIND}/{group}"
                values |= {key: float(mean[i]), f"{key}/ci_low": float(low[i]), f"{key}/ci_high": float(high[i])}
                values[f"{key}/n"] = int(self.count[:, i].sum().item())
        return values

    def gain(self, other: "ContentR2") -> dict[str, float]:
        """``content_r2/<group>`` of this probe minus another's on the same tokens, see :func:`~metrics.gains.resampled_gain`.

        Groups that do not hold the same number of tokens of every photograph for both have no gain.
        """
        if not (self._seen.any() and self.count[:, 0].equal(other.count[:, 0])):
            return {}
        own, others = self._resampled(), other._resampled()
        difference = self._mean() - other._mean()
        found: dict[str, float] = {}
        for i, group in enumerate(self.groups):
            if self.count[:, i].equal(other.count[:, i]):
                units = int((self.count[:, i] > 0).sum())
                found |= resampled_gain(f"{KIND}/{group}", float(difference[i]), own[:, i] - others[:, i], units)
        return found

    @property
    def _seen(self) -> Bool[np.ndarray, " photos"]:
        """Photographs that tokens came from."""
        return np.asarray(self.count[:, 0].cpu().numpy() > 0)

    def _resampled(self) -> Float[np.ndarray, "resamples groups"]:
        residual, spread = (state.cpu().numpy()[self._seen] for state in (self.residual, self.spread))
        return np.asarray(1 - resampled_ratios(residual, spread))

    def _mean(self) -> Float[np.ndarray, " groups"]:
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.asarray(1 - (self.residual.sum(0) / self.spread.sum(0)).cpu().numpy())
