"""Correction of p-values for how many there are."""

import numpy as np


def holm(p_values: np.ndarray) -> np.ndarray:
    """p-values (m,) corrected for their number, step down; their order stays.

    >>> holm(np.array([0.01, 0.04, 0.03])).round(3).tolist()
    [0.03, 0.06, 0.06]

    References:
        Holm (1979), Scandinavian Journal of Statistics 6.
    """
    order = np.argsort(p_values)
    corrected = np.maximum.accumulate(p_values[order] * (len(p_values) - np.arange(len(p_values))))
    return np.asarray(np.minimum(1.0, corrected)[np.argsort(order)])
