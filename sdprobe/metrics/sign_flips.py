"""Sign-flip test: which of many paired differences are not 0, with p-values for the whole family.

If a mitigation does nothing, raw and mitigated values are exchangeable in every photograph, so the sign of the difference is
random. One random sign per photograph flips all columns at once, which keeps their correlation. The largest statistic over the
columns makes the p-values valid for the whole family.

References:
    Westfall & Young (1993), Resampling-Based Multiple Testing, chapter 2. Winkler et al. (2014), NeuroImage 92 (sign flips).
"""

import numpy as np
from jaxtyping import Float

from sdprobe.metrics.intervals import FEWEST

EXACT = 12  # up to this number of units all flips are used
FLIPS = 4096
CHUNK = 512
TIE = 1e-9  # tolerance for rounding: equal statistics count, also those of a mean of 0


def adjusted_p(values: Float[np.ndarray, "n k"], seed: int = 0) -> Float[np.ndarray, " k"]:
    """p-value of every column for a mean of 0, adjusted for the k columns.

    It is the share of flips whose largest ``|Σ d|`` / √Σ d² over all columns is at least that of the column. Within a
    column, and among columns with equally many values, this statistic has the order of ``|mean|`` / standard error. A column
    with missing values is compared by the same statistic, in which fewer values need a larger ``|mean|`` / standard error.

    All 2ⁿ⁻¹ flips are used up to n = 12 units, else 4,096 seeded ones with the identity. NaN values are left out of their
    column. If all differences are 0, p is 1. p is NaN for a column with fewer than 6 units, where no p below .05 is possible.

    Args:
        values: paired differences (or their pseudo-values) by unit and column.
        seed: of the flips.
    """
    present = np.isfinite(values)
    counted = present.sum(0) >= FEWEST
    filled = np.where(present, values, 0.0)[:, counted]
    size = np.sqrt((filled**2).sum(0))
    unit = filled / np.where(size > 0, size, 1)  # Σ unit² = 1; |Σ unit| has the order of |mean| / standard error
    own = np.abs(unit.sum(0))
    reached = np.zeros(unit.shape[1])
    signs = _signs(len(values), seed)
    for start in range(0, len(signs), CHUNK):
        largest = np.abs(signs[start : start + CHUNK] @ unit).max(1, initial=0.0)
        reached += (largest[:, None] >= own - TIE).sum(0)
    p_values = np.full(values.shape[1], np.nan)
    p_values[counted] = reached / len(signs)
    return p_values


def _signs(units: int, seed: int) -> Float[np.ndarray, "flips {units}"]:
    """Rows of ±1, the first all +1. A flip and its opposite give the same value, so the sign of the first unit is fixed."""
    if units <= EXACT:
        bits = (np.arange(2 ** max(units - 1, 0))[:, None] >> np.arange(max(units - 1, 0))) & 1
        return np.concatenate([np.ones((len(bits), 1)), 1.0 - 2 * bits], axis=1)[:, :units]
    signs = np.random.default_rng(seed).choice((-1.0, 1.0), size=(FLIPS, units))
    signs[0] = 1
    return np.asarray(signs)
