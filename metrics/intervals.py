"""Confidence intervals that respect what is sampled: photographs, not tokens."""

import warnings

import numpy as np
from jaxtyping import Float

RESAMPLES = 2000
LEVEL = 0.95


def resampled_ratios(
    numerator: Float[np.ndarray, "units *k"], denominator: Float[np.ndarray, "units *k"], seed: int = 0
) -> Float[np.ndarray, "resamples *k"]:
    """Σ numerator / Σ denominator in 2000 resamples of whole units (photographs), drawn with replacement.

    The tokens of a photograph are not independent, so units are drawn; the draw depends on ``seed`` and the number of
    units only, so two methods on the same units are resampled alike. NaN where a resample has a zero denominator.
    """
    units = len(numerator)
    generator = np.random.default_rng(seed)
    weights = generator.multinomial(units, np.full(units, 1 / units), size=RESAMPLES).astype(np.float64)
    below = np.tensordot(weights, denominator, axes=1)
    return np.asarray(np.tensordot(weights, numerator, axes=1) / np.where(below > 0, below, np.nan))


def percentiles(resampled: Float[np.ndarray, "resamples *k"]) -> tuple[Float[np.ndarray, "*k"], Float[np.ndarray, "*k"]]:
    """Ends of the 95 % percentile interval; NaN resamples (a rare token group) are left out, NaN where nothing is left.

    References:
        Efron & Tibshirani (1993), An Introduction to the Bootstrap, chapter 13.
    """
    tail = (1 - LEVEL) / 2
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "All-NaN slice")  # a group without tokens has no interval
        low, high = np.nanquantile(resampled, [tail, 1 - tail], axis=0)
    return np.asarray(low), np.asarray(high)


def bootstrap_ratio(
    numerator: Float[np.ndarray, "units *k"], denominator: Float[np.ndarray, "units *k"], seed: int = 0
) -> tuple[Float[np.ndarray, "*k"], Float[np.ndarray, "*k"]]:
    """95 % percentile interval of Σ numerator / Σ denominator over resampled units."""
    return percentiles(resampled_ratios(numerator, denominator, seed))
