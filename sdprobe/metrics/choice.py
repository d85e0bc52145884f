"""The choice among cells, such as layers at noise levels: the best on validation photographs, and what equals it."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from sdprobe.metrics.gains import surely_worse
from sdprobe.metrics.intervals import units_of
from sdprobe.utilities.errors import InputError

FEWEST_PHOTOGRAPHS = 10


@dataclass(frozen=True)
class Choice:
    """The best of several cells.

    chosen: the cell with the highest mean. equal: the other cells that cannot be told from it, the best first. units: number of
    photographs. left_out: cells without a value on some photograph, which are not compared.
    """

    chosen: str
    equal: tuple[str, ...]
    units: int
    left_out: tuple[str, ...] = ()


def choose(scores: Mapping[str, Float[np.ndarray, " n"]]) -> Choice:
    """The cell with the highest mean, and the cells that cannot be told from it.

    A cell is told from it by the interval of their paired difference at level 1 − .05 / (cells − 1), see
    :func:`~sdprobe.metrics.gains.surely_worse`. The set of both holds the truly best cell in at least 95 % of experiments.

    Args:
        scores: cell → pseudo-values of its score by photograph; NaN for photographs that were not measured.

    Raises:
        InputError: fewer than 10 photographs, or no cell was measured.

    Example:
        >>> scores = {"mid": np.arange(10) / 10, "up_1": np.arange(10) / 10 + 0.3, "up_2": np.full(10, np.nan)}
        >>> choose(scores | {"up_0": np.arange(10)[::-1] / 10 + 0.2})
        Choice(chosen='up_1', equal=('up_0',), units=10, left_out=('up_2',))
    """
    counts = {cell: int(units_of(values)) for cell, values in scores.items()}
    units = max(counts.values(), default=0)
    measured = [cell for cell in scores if counts[cell] == units]
    check_photographs(units)
    ordered = sorted(measured, key=lambda cell: -float(np.nanmean(scores[cell])))
    best = ordered[0]
    equal = [cell for cell in ordered[1:] if not surely_worse(scores[cell], scores[best], len(ordered) - 1)]
    return Choice(best, tuple(equal), units, tuple(cell for cell in scores if cell not in measured))


def check_photographs(count: int) -> None:
    """Raise InputError if a choice would rest on fewer than 10 photographs."""
    if count < FEWEST_PHOTOGRAPHS:
        raise InputError(
            f"Expected at least {FEWEST_PHOTOGRAPHS} validation photographs to choose by, but got {count}. Use more images, "
            "protocol=default, or images with a validation split; or leave out choose=."
        )
