"""Gains: how much one measurement lies above another on the same units, with a paired interval and p-value."""

import math

import numpy as np
from jaxtyping import Float
from scipy import stats
from torch import Tensor

from metrics.credibility import interval
from metrics.intervals import percentiles

LEAST_UNITS = 6
ROUNDING = 1e-4  # of a gain; float32 sums behind a risk that is clipped to 0


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


def resampled_gain(key: str, gain: float, resampled: Float[np.ndarray, " resamples"], units: int) -> dict[str, float]:
    """``key`` with ``/ci_low``, ``/ci_high`` and ``/p`` from differences of paired resamples; nothing where there are none.

    ``units`` is the number of photographs that were drawn from. Below 6 the gain stands alone, without interval and p: two
    photographs have three different resamples, and where both point one way none of 2000 reaches 0. Six that agree are the
    fewest that a sign test calls significant at 5 % (2 / 2⁶ = .031).
    """
    if not (math.isfinite(gain) and np.isfinite(resampled).any()):
        return {}
    if units < LEAST_UNITS:
        return {key: gain}
    low, high = percentiles(resampled)
    return {key: gain, f"{key}/ci_low": float(low), f"{key}/ci_high": float(high), f"{key}/p": float(two_sided(resampled))}


def fold_gain(
    key: str, own: float, other: float, own_folds: Float[Tensor, " folds"], other_folds: Float[Tensor, " folds"]
) -> dict[str, float]:
    """The same from estimates of disjoint groups of images; nothing where fewer than two groups have both.

    gain ± t(.975, F − 1) · sd / √F, and p of t = gain / (sd / √F): the gain is that of all images, sd the standard deviation of
    the F groups' own differences. For a mean over images it is the paired t-test; a statistic that is not linear in the images
    may have another bias in small groups, which then moves neither the interval nor p off the gain. A gain below 1e-4 is the
    rounding of clipped risks: p = 1. Where every group has the same difference (both clipped, say) and the gain is another one,
    the groups do not tell how sure it is, and it stands alone.
    """
    folds = (own_folds - other_folds).double().cpu()
    folds = folds[folds.isfinite()]
    gain = own - other
    if len(folds) < 2 or not math.isfinite(gain):
        return {}
    mean, alike = folds.mean(), bool((folds == folds[0]).all())
    if alike and abs(gain - folds[0].item()) > ROUNDING:
        return {key: gain}
    low, high = interval(folds - mean + gain)
    t = math.inf if alike else abs(gain) * math.sqrt(len(folds)) / folds.std().item()
    p = 1.0 if abs(gain) < ROUNDING else 2 * float(stats.t.sf(t, len(folds) - 1))
    return {key: gain, f"{key}/ci_low": low, f"{key}/ci_high": high, f"{key}/p": p}
