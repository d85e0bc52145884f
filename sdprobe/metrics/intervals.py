"""Confidence intervals over sampled units (photographs, pictures of pairs, groups of images, random networks), not tokens.

Every interval is computed from *pseudo-values*: one number per unit, whose mean is the estimate and whose standard deviation
over √n is its standard error. For a mean they are the values of the units. Differences of pseudo-values on the same units are
the pseudo-values of the paired difference.

References:
    Tukey (1958), Annals of Mathematical Statistics 29, p. 614; Efron & Tibshirani (1993), An Introduction to the Bootstrap,
    chapter 11 (pseudo-values). Korn & Graubard (1998), Survey Methodology 24 (proportions of clusters). Graybill & Wang
    (1980), Journal of the American Statistical Association 75 (sums of variance components).
"""

from collections.abc import Mapping
from typing import SupportsFloat

import numpy as np
from jaxtyping import Float
from scipy.special import stdtrit

from sdprobe.tokens.keys import ENDS

LEVEL = 0.95
FEWEST = 6  # units: below it, simulated coverage is too low, and no sign-flip test reaches 5 % (2 / 2⁵ = .0625)
FEWEST_SEEDS = 3  # random networks: two give a single difference, which is too little to estimate how networks differ
# pseudo-count for clusters whose tokens are all correct or all wrong; intervals keep a width when few errors were seen
PRIOR = 0.03

Ends = tuple[Float[np.ndarray, "*k"], Float[np.ndarray, "*k"]]


def ratio_pseudovalues(
    numerator: Float[np.ndarray, "n *k"], denominator: Float[np.ndarray, "n *k"]
) -> Float[np.ndarray, "n *k"]:
    """Jackknife pseudo-values of θ = Σ numerator / Σ denominator over n units: θ + (n − 1)(mean(θ without) − θ without).

    NaN for units whose denominator is 0: they have no such token and do not count in n. With one unit: θ.
    """
    present = denominator > 0
    total, below = numerator.sum(0), denominator.sum(0)
    with np.errstate(invalid="ignore", divide="ignore"):
        ratio, count = total / below, present.sum(0)
        without = np.where(present, np.where(count > 1, (total - numerator) / (below - denominator), ratio), 0.0)
        values = ratio + (count - 1) * (without.sum(0) / count - without)
    return np.where(present, values, np.nan)


def effective_units(weights: Float[np.ndarray, "n *k"]) -> Float[np.ndarray, "*k"]:
    """(Σ w)² / Σ w²: the number of units of equal weight with the same information. n for equal weights, 1 if one unit has all.

    References:
        Kish (1965), Survey Sampling, section 11.7.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(weights.sum(0) ** 2 / (weights**2).sum(0))


def jackknife_pseudovalues(value: float, without: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """Pseudo-values of an estimate, from values on all units and without each: value + (n − 1)(mean(without) − without).

    Their mean is the estimate itself, not the one corrected for bias. NaN for a unit that cannot be left out.
    """
    count = np.isfinite(without).sum()
    if not count:
        return without
    return np.asarray(value + (count - 1) * (np.nanmean(without) - without))


def units_of(values: Float[np.ndarray, "n *k"]) -> Float[np.ndarray, "*k"]:
    """Number of units that have a pseudo-value."""
    return np.asarray(np.isfinite(values).sum(0), dtype=float)


def mean_interval(values: Float[np.ndarray, "n *k"]) -> Ends:
    """mean ± t(.975, n − 1) · sd / √n; NaN below 6 units. It always contains the estimate."""
    count, mean, half = _moments(values)
    return np.where(count >= FEWEST, mean - half, np.nan), np.where(count >= FEWEST, mean + half, np.nan)


def share_interval(values: Float[np.ndarray, "n *k"], weights: Float[np.ndarray, "n *k"] | None = None) -> Ends:
    """Wilson's interval for a share in [0, 1] of clustered tokens, with the effective number of tokens n / ρ.

    ρ is the share of the variance p(1 − p) between units: (SS + κ) / ((n − 1) p (1 − p) + κ), with SS the sum of squared
    deviations of the pseudo-values and κ = 0.03. Quantiles are those of t with n − 1 degrees of freedom. ρ is 1 if all units
    are correct, or all are wrong. NaN below 6 units, and below 6 effective units of unequal ``weights``.
    """
    count, mean, _ = _moments(values)
    with np.errstate(invalid="ignore", divide="ignore"):
        share = np.clip(mean, 0, 1)
        spread = np.nansum((values - mean) ** 2, axis=0)
        effective = count * ((count - 1) * share * (1 - share) + PRIOR) / (spread + PRIOR)
        square = _quantile(count) ** 2
        centre = (share + square / (2 * effective)) / (1 + square / effective)
        half = np.sqrt(square * (share * (1 - share) / effective + square / (4 * effective**2))) / (1 + square / effective)
        low, high = np.minimum(centre - half, share), np.maximum(centre + half, share)  # equal up to rounding at 0 and 1
    enough = _enough(count, weights)
    return np.where(enough, np.maximum(low, 0), np.nan), np.where(enough, np.minimum(high, 1), np.nan)


def positive_interval(values: Float[np.ndarray, "n *k"], weights: Float[np.ndarray, "n *k"] | None = None) -> Ends:
    """mean · exp(± t · se / mean), for errors, which are never negative.

    NaN where the mean is not positive, below 6 units, and below 6 effective units of unequal ``weights``.
    """
    count, mean, half = _moments(values)
    enough = _enough(count, weights) & (mean > 0)
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        factor = np.exp(np.where(enough, half / mean, np.nan))
    return np.asarray(mean / factor), np.asarray(mean * factor)


def two_way_interval(table: Float[np.ndarray, "seeds units"]) -> tuple[float, float]:
    """Interval for the mean of a table of random networks × units, over other networks and other units.

    With mean squares MS_s of networks, MS_n of units and MS_e of the residual, the half width is the square root of
    [t²(S − 1) · max(0, MS_s − MS_e) + t²(N − 1) · max(MS_n, MS_e)] / (S N). Each variance component has the quantile of its
    own degrees of freedom. NaN below 3 networks or 6 units. Units without a value in any one network are left out.
    """
    table = table[:, np.isfinite(table).all(0)]
    seeds, units = table.shape
    if seeds < FEWEST_SEEDS or units < FEWEST:
        return np.nan, np.nan
    mean, rows, columns = table.mean(), table.mean(1), table.mean(0)
    rest = ((table - rows[:, None] - columns + mean) ** 2).sum() / ((seeds - 1) * (units - 1))
    by_seed, by_unit = units * rows.var(ddof=1), seeds * columns.var(ddof=1)
    square = _quantile(seeds) ** 2 * max(0.0, by_seed - rest) + _quantile(units) ** 2 * max(by_unit, rest)
    half = float(np.sqrt(square / (seeds * units)))
    return float(mean) - half, float(mean) + half


def independent_interval(upper: Float[np.ndarray, " n"], lower: Float[np.ndarray, " m"]) -> tuple[float, float]:
    """Welch's interval for mean(``upper``) − mean(``lower``) of different units; NaN if one has fewer than 6.

    References:
        Welch (1947), Biometrika 34.
    """
    variances, freedoms, means = [], [], []
    for side in (upper, lower):
        values = side[np.isfinite(side)]
        if len(values) < FEWEST:
            return np.nan, np.nan
        variances.append(values.var(ddof=1) / len(values))
        freedoms.append(len(values) - 1)
        means.append(values.mean())
    total = sum(variances)
    difference = float(means[0] - means[1])
    if total == 0:
        return difference, difference
    freedom = total**2 / sum(variance**2 / df for variance, df in zip(variances, freedoms, strict=True))
    half = float(stdtrit(freedom, (1 + LEVEL) / 2) * np.sqrt(total))
    return difference - half, difference + half


def present_units(values: Mapping[str, Float[np.ndarray, " n"]]) -> dict[str, Float[np.ndarray, " m"]]:
    """Leave out units that have no value under any key: photographs that were not tested."""
    if not values:
        return {}
    seen = np.isfinite(np.stack(list(values.values()))).any(0)
    return {key: value[seen] for key, value in values.items()}


def with_ends(key: str, value: SupportsFloat, low: SupportsFloat, high: SupportsFloat) -> dict[str, float]:
    """``key`` with ``/ci_low`` and ``/ci_high``; without ends if they are NaN, empty if the value is not finite."""
    number, *ends = (float(end) for end in (value, low, high))
    if not np.isfinite(number):
        return {}
    interval = {f"{key}/{end}": value for end, value in zip(ENDS, ends, strict=True)}
    return {key: number} | (interval if np.isfinite(ends).all() else {})


def _enough(count: np.ndarray, weights: np.ndarray | None) -> np.ndarray:
    return np.asarray((count if weights is None else np.minimum(count, effective_units(weights) + 1e-9)) >= FEWEST)


def _moments(values: Float[np.ndarray, "n *k"]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Number of units, mean and half width t · sd / √n of every column. NaN units are left out."""
    count = units_of(values)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.nansum(values, axis=0) / count
        spread = np.nansum((values - mean) ** 2, axis=0)
        half = _quantile(count) * np.sqrt(spread / (count - 1) / count)
    return count, np.asarray(mean), np.asarray(half)


def _quantile(count: np.ndarray | int) -> np.ndarray:
    """97.5 % quantile of t with count − 1 degrees of freedom."""
    return np.asarray(stdtrit(np.maximum(np.asarray(count, dtype=float) - 1, 1), (1 + LEVEL) / 2))
