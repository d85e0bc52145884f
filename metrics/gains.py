"""Gains: how much one measurement lies above another on the same units, with a paired interval and p-value."""

import math

import numpy as np
from jaxtyping import Float
from scipy import stats
from torch import Tensor

from metrics.credibility import interval
from metrics.intervals import percentiles


def two_sided(resampled: Float[np.ndarray, "resamples *k"]) -> Float[np.ndarray, "*k"]:
    """Bootstrap p-value of a difference: twice the share of resamples on the rarer side of 0, where 0 is on both sides.

    (1 + count) / (1 + resamples) of a side, so that it is never 0; at most 1; NaN resamples are left out.

    >>> two_sided(np.array([[1.0, 0.0], [2.0, 0.0], [3.0, 0.0]])).tolist()
    [0.5, 1.0]

    References:
        Davison & Hinkley (1997), Bootstrap Methods and their Application, chapter 4.
    """
    count = np.isfinite(resampled).sum(0)
    rarer = np.minimum((resampled <= 0).sum(0), (resampled >= 0).sum(0))
    return np.asarray(np.minimum(1.0, 2 * (1 + rarer) / (1 + count)))


def resampled_gain(key: str, gain: float, resampled: Float[np.ndarray, " resamples"]) -> dict[str, float]:
    """``key`` with ``/ci_low``, ``/ci_high`` and ``/p`` from differences of paired resamples; nothing where there are none."""
    if not (math.isfinite(gain) and np.isfinite(resampled).any()):
        return {}
    low, high = percentiles(resampled)
    return {key: gain, f"{key}/ci_low": float(low), f"{key}/ci_high": float(high), f"{key}/p": float(two_sided(resampled))}


def fold_gain(
    key: str, own: float, other: float, own_folds: Float[Tensor, " folds"], other_folds: Float[Tensor, " folds"]
) -> dict[str, float]:
    """The same from estimates of disjoint groups of images: a paired t-test; nothing where fewer than two groups have both."""
    folds = (own_folds - other_folds).double().cpu()
    folds = folds[folds.isfinite()]
    if len(folds) < 2 or not math.isfinite(own - other):
        return {}
    low, high = interval(folds)
    spread = folds.std().item()
    t = abs(folds.mean().item()) * math.sqrt(len(folds)) / spread if spread else (math.inf if folds.any() else 0.0)
    p = 2 * float(stats.t.sf(t, len(folds) - 1))
    return {key: own - other, f"{key}/ci_low": low, f"{key}/ci_high": high, f"{key}/p": p}
