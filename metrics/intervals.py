"""Confidence intervals that respect what is sampled: photographs, not tokens."""

import warnings

import numpy as np
from jaxtyping import Float

RESAMPLES = 2000
LEVEL = 0.95


def bootstrap_ratio(
    numerator: Float[np.ndarray, "units *k"], denominator: Float[np.ndarray, "units *k"], seed: int = 0
) -> tuple[Float[np.ndarray, "*k"], Float[np.ndarray, "*k"]]:
    """95 % percentile interval of Σ numerator / Σ denominator when whole units (photographs) are resampled.

    The tokens of a photograph are not independent, so units are drawn with replacement, 2000 times; the draw depends on
    ``seed`` and the number of units only, so two methods on the same units are resampled alike.

    Returns:
        Lower and upper ends. Resamples with a zero denominator (a rare token group) are left out; NaN
        where nothing is left.

    References:
        Efron & Tibshirani (1993), An Introduction to the Bootstrap, chapter 13.
    """
    units = len(numerator)
    generator = np.random.default_rng(seed)
    weights = generator.multinomial(units, np.full(units, 1 / units), size=RESAMPLES).astype(np.float64)
    below = np.tensordot(weights, denominator, axes=1)
    ratios = np.tensordot(weights, numerator, axes=1) / np.where(below > 0, below, np.nan)
    tail = (1 - LEVEL) / 2
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "All-NaN slice")  # a group without tokens has no interval
        low, high = np.nanquantile(ratios, [tail, 1 - tail], axis=0)
    return low, high
