"""LossChange: what a prediction loses when a layer is edited inside the network; and how much position later layers regain."""

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import avg_pool2d

from sdprobe.metrics.grid_accuracy import GridAccuracy
from sdprobe.metrics.intervals import (
    jackknife_pseudovalues,
    mean_interval,
    positive_interval,
    ratio_pseudovalues,
    units_of,
    with_ends,
)
from sdprobe.metrics.sums import SumMetric
from sdprobe.tokens.geometry import border_groups
from sdprobe.tokens.keys import PARTITION

BANDS = {"band_4": 4, "band_8": 8}  # side in cells of the squares over which the error is averaged
WHERE = ("all", *PARTITION, *BANDS)
CHANGE, DISPLACEMENT, SHARE, LOSS = "loss_change", "displacement", "ceiling_share", "prediction_loss"
REEMERGENCE, ACCURACY = "reemergence", "binned_accuracy"
POSITIVE = (DISPLACEMENT, LOSS)  # never negative


def squared_errors(predicted: Float[Tensor, "b c h w"], target: Float[Tensor, "b c h w"]) -> Float[Tensor, "b k"]:
    """Squared error of every image, averaged over values, at each of :data:`WHERE`, float64.

    For a band the error is first averaged over squares of 4 × 4 or 8 × 8 cells. This leaves its low spatial frequencies.

    >>> error = torch.tensor([[1.0, -1.0], [1.0, -1.0]]).repeat(4, 4)[None, None]
    >>> squared_errors(error, torch.zeros_like(error)).tolist()
    [[1.0, 1.0, 1.0, 1.0, 0.0, 0.0]]
    """
    error = predicted.double() - target.double()
    cells = error.square().mean(1)
    _, height, width = cells.shape
    groups = border_groups(height, width, cells.device)
    parts = [cells.flatten(1), *(cells[:, groups[name]] for name in PARTITION)]
    parts += [avg_pool2d(error, side).square().flatten(1) for side in BANDS.values()]
    return torch.stack([part.mean(1) for part in parts], 1)


class LossChange(SumMetric):
    """Δ = Σ (‖ŷ_E − y‖² − ‖ŷ − y‖²) / Σ ‖ŷ − y‖² over photographs, and Σ ‖ŷ_E − ŷ‖² / Σ ‖ŷ‖².

    y is what the network is trained to predict, ŷ its prediction, and ŷ_E its prediction with an edit. Both have the same
    latent and noise. Δ is paired by photograph. It is 0 for an edit that changes nothing, and 1 for one that doubles the loss.
    Numerator and denominator are of the same cells or band, see :func:`squared_errors`. Sums are kept per photograph.

    Args:
        photos: number of photographs; photo indices are below it.

    References:
        Own choice. methods.md, section 22.
    """

    plain: Tensor
    edited: Tensor
    moved: Tensor
    size: Tensor

    def __init__(self, photos: int) -> None:
        super().__init__()
        self.add_sums(plain=(photos, len(WHERE)), edited=(photos, len(WHERE)), moved=(photos,), size=(photos,))

    def update(
        self,
        edited: Float[Tensor, "b c h w"],
        plain: Float[Tensor, "b c h w"],
        target: Float[Tensor, "b c h w"],
        photo: Int[Tensor, " b"],
    ) -> None:
        """Add images: predictions with and without the edit, targets, and the photograph that each image shows."""
        self.edited.index_add_(0, photo, squared_errors(edited, target))
        self.plain.index_add_(0, photo, squared_errors(plain, target))
        self.moved.index_add_(0, photo, (edited.double() - plain.double()).square().flatten(1).mean(1))
        self.size.index_add_(0, photo, plain.double().square().flatten(1).mean(1))

    def pseudovalues(self) -> dict[str, Float[np.ndarray, " photos"]]:
        """``<metric>/<where>`` → contribution of every photograph; NaN for those that were not seen."""
        plain = self.plain.cpu().numpy()
        changes = ratio_pseudovalues(self._changes(), plain)
        moved = ratio_pseudovalues(self.moved.cpu().numpy(), self.size.cpu().numpy())
        return {f"{CHANGE}/{where}": changes[:, i] for i, where in enumerate(WHERE)} | {f"{DISPLACEMENT}/all": moved}

    def compute(self) -> dict[str, float]:
        """``loss_change/<where>`` and ``displacement/all``, with ``/ci_low``, ``/ci_high`` and ``/n`` (photographs)."""
        return reported(self.pseudovalues())

    def loss(self) -> dict[str, float]:
        """``prediction_loss/<where>``: mean squared error of the network without the edit, per value."""
        seen = (self.size > 0).cpu().numpy()
        plain = np.where(seen[:, None], self.plain.cpu().numpy(), np.nan)
        return reported({f"{LOSS}/{where}": plain[:, i] for i, where in enumerate(WHERE)})

    def shares(self, ceiling: "LossChange") -> dict[str, Float[np.ndarray, " photos"]]:
        """``ceiling_share/<where>`` → Δ / Δ of the ceiling, as pseudo-values of every photograph.

        Where the interval of the ceiling holds 0, or there is none, there is no share: the loss does not see the layer.
        """
        limits = ceiling.compute()
        own, most, seen = self._changes(), ceiling._changes(), (self.size > 0).cpu().numpy()
        shares = {}
        for i, where in enumerate(WHERE):
            low, high = (limits.get(f"{CHANGE}/{where}/{end}", 0.0) for end in ("ci_low", "ci_high"))
            if low <= 0 <= high:
                continue
            part, whole = own[:, i], most[:, i]
            without = np.where(seen, (part.sum() - part) / (whole.sum() - whole), np.nan)
            shares[f"{SHARE}/{where}"] = jackknife_pseudovalues(part.sum() / whole.sum(), without)
        return shares

    def _changes(self) -> Float[np.ndarray, "photos k"]:
        return (self.edited - self.plain).cpu().numpy()


def reemergence(edited: GridAccuracy, plain: GridAccuracy, chance: float) -> Float[np.ndarray, " photos"] | None:
    """ρ = (acc_E − chance) / (acc − chance) of a later layer, as pseudo-values of every photograph.

    acc is the accuracy in 8 bins of a position probe, and acc_E that of a probe fitted anew while an earlier layer is edited.
    0: the position code is gone for good. 1: it is as readable as without the edit.

    Returns:
        None unless acc lies above chance by its interval.
    """
    low = plain.compute().get(f"{ACCURACY}/all/ci_low", chance)
    if low <= chance:
        return None
    own, other = (metric.pseudovalues()[f"{ACCURACY}/all"] - chance for metric in (edited, plain))
    count = np.isfinite(own).sum()
    with np.errstate(divide="ignore", invalid="ignore"):
        without = (np.nansum(own) - own) / (np.nansum(other) - other)
        return jackknife_pseudovalues(float(np.nansum(own) / np.nansum(other)), without) if count else None


def reported(values: dict[str, Float[np.ndarray, " photos"]]) -> dict[str, float]:
    """Mean of pseudo-values by name, with ``/ci_low``, ``/ci_high`` and ``/n`` (photographs).

    The ends of ``displacement`` and ``prediction_loss``, which are never negative, are those of :func:`positive_interval`.
    """
    found: dict[str, float] = {}
    for name, column in values.items():
        if np.isfinite(column).any():
            interval = positive_interval if name.partition("/")[0] in POSITIVE else mean_interval
            low, high = interval(column)
            found |= with_ends(name, np.nanmean(column), low, high) | {f"{name}/n": int(units_of(column))}
    return found
