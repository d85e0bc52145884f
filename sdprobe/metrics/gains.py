"""Gains: difference of two measurements on the same units, with the interval of the paired difference."""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float
from scipy.special import stdtrit

from sdprobe.metrics.intervals import FEWEST, LEVEL, mean_interval, two_way_interval, with_ends
from sdprobe.tokens.keys import ENDS

SAME = 1e-12  # differences below it are rounding
Values = Mapping[str, Float[np.ndarray, " n"]]  # key → pseudo-values by unit


def paired_gains(own: Values, other: Values) -> dict[str, float]:
    """Gain of every key that both have, with ``/ci_low``, ``/ci_high`` and ``/n`` (units): the mean of paired differences.

    A key is left out if some unit has a value in only one of the two. A gain has no interval below 6 units, or if fewer than 6
    units differ: then too little is known about the size and frequency of differences.
    """
    keys = [key for key in own if key in other and bool((np.isfinite(own[key]) == np.isfinite(other[key])).all())]
    if not keys:
        return {}
    differences = np.stack([own[key] - other[key] for key in keys], axis=1)
    lows, highs = mean_interval(differences)
    gains: dict[str, float] = {}
    for i, key in enumerate(keys):
        units = int(np.isfinite(differences[:, i]).sum())
        if units:
            ends = (lows[i], highs[i]) if (np.abs(differences[:, i]) > SAME).sum() >= FEWEST else (np.nan, np.nan)
            gains |= with_ends(key, float(np.nanmean(differences[:, i])), *ends) | {f"{key}/n": units}
    return gains


def simultaneous_quantile(units: int, comparisons: int) -> float:
    """Quantile of t of two-sided intervals that hold together at level .95, by Bonferroni."""
    return float(stdtrit(units - 1, 1 - (1 - LEVEL) / 2 / max(comparisons, 1)))


def surely_worse(own: Float[np.ndarray, " n"], best: Float[np.ndarray, " n"], others: int) -> bool:
    """Whether a candidate has a lower mean than the one with the highest, by their paired differences.

    Whether the interval of the paired difference excludes 0, at level 1 − .05 / ``others`` (Bonferroni over the comparisons of
    one candidate with all others). If every candidate is compared so with the one that looks best, the truly best is found
    worse in at most 5 % of experiments, whichever looks best. False below 6 units, or if fewer than 6 units differ.

    Args:
        own: pseudo-values of the candidate, by unit.
        best: those of the candidate with the highest mean, of the same units.
        others: number of candidates, less this one.

    References:
        Hsu (1984), Annals of Statistics 12 (multiple comparisons with the best).
    """
    differences = best - own
    differences = differences[np.isfinite(differences)]
    count = len(differences)
    if (np.abs(differences) > SAME).sum() < FEWEST:
        return False
    error = differences.std(ddof=1) / np.sqrt(count)
    return bool(differences.mean() > simultaneous_quantile(count, others) * error)


def holding(key: str, gain: float, numbers: Mapping[str, float]) -> dict[str, float]:
    """A gain under its key, and the ends of its interval in ``numbers``, extended where needed so that they contain it."""
    ends = {end: numbers[f"{key}/{end}"] for end in ENDS if f"{key}/{end}" in numbers}
    moved = {f"{key}/{end}": (min if end == "ci_low" else max)(value, gain) for end, value in ends.items()}
    return {key: gain} | moved


def over_seeds(tables: Mapping[str, Float[np.ndarray, "seeds n"]]) -> dict[str, float]:
    """Mean of every table of random networks × units, with ``/seeds``; from 3 networks on with an interval over both.

    Mean and interval use the units that all networks have.
    """
    means: dict[str, float] = {}
    for key, table in tables.items():
        shared = table[:, np.isfinite(table).all(0)]
        if shared.size:
            means |= with_ends(key, float(shared.mean()), *two_way_interval(shared)) | {f"{key}/seeds": len(table)}
    return means
