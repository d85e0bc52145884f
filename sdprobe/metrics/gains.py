"""Gains: how much one measurement lies above another on the same units, with the interval of the paired difference."""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Protocol

import numpy as np
from jaxtyping import Float
from torch import Tensor

from sdprobe.metrics.intervals import FEWEST, effective_units, mean_interval, two_way_interval, with_ends
from sdprobe.tokens.keys import ENDS, Key

SAME = 1e-12  # differences below it are rounding
Values = Mapping[str, Float[np.ndarray, " n"]]  # key → pseudo-values by unit


def paired_gains(own: Values, other: Values) -> dict[str, float]:
    """Gain of every key that both have, with ``/ci_low``, ``/ci_high`` and ``/n`` (units): the mean of paired differences.

    Units that only one of the two has make a key unpaired, and it is left out. Below 6 units, or where fewer than 6 differ at
    all, the gain stands alone: how often and how much the others would is unknown.
    """
    keys = [key for key in own if key in other and bool((np.isfinite(own[key]) == np.isfinite(other[key])).all())]
    if not keys:
        return {}
    differences = np.stack([own[key] - other[key] for key in keys], axis=1)
    lows, highs = mean_interval(differences)
    found: dict[str, float] = {}
    for i, key in enumerate(keys):
        units = int(np.isfinite(differences[:, i]).sum())
        if units:
            ends = (lows[i], highs[i]) if (np.abs(differences[:, i]) > SAME).sum() >= FEWEST else (np.nan, np.nan)
            found |= with_ends(key, float(np.nanmean(differences[:, i])), *ends) | {f"{key}/n": units}
    return found


def holding(key: str, gain: float, found: Mapping[str, float]) -> dict[str, float]:
    """A gain under its key, the ends of its interval in ``found`` moved where needed to hold it."""
    ends = {end: found[f"{key}/{end}"] for end in ENDS if f"{key}/{end}" in found}
    moved = {f"{key}/{end}": (min if end == "ci_low" else max)(value, gain) for end, value in ends.items()}
    return {key: gain} | moved


def metric_gains(own: "PerPhotograph", other: "PerPhotograph") -> dict[str, float]:
    """:func:`paired_gains` of two metrics over the same photographs; several processes call this together.

    Groups that do not hold the same number of tokens of every photograph for both have no gain, and below 6 effective
    photographs (few hold most of the tokens) no interval.
    """
    with own.sync_context(), other.sync_context():
        alike = [group for i, group in enumerate(own.groups) if own.count[:, i].equal(other.count[:, i])]
        effective = dict(zip(own.groups, effective_units(own.count.cpu().numpy()), strict=True))
    theirs = other.pseudovalues()
    found = paired_gains({key: value for key, value in own.pseudovalues().items() if Key.parse(key).where in alike}, theirs)
    few = [group for group, units in effective.items() if units + 1e-9 < FEWEST]
    unsure = {name for name in found if (key := Key.parse(name)).statistic in ENDS and key.where in few}
    return {name: value for name, value in found.items() if name not in unsure}


class PerPhotograph(Protocol):
    """A metric with sums per photograph and token group."""

    groups: tuple[str, ...]
    count: Tensor

    def pseudovalues(self) -> dict[str, Float[np.ndarray, " n"]]: ...

    def sync_context(self) -> AbstractContextManager[None]: ...


def over_seeds(tables: Mapping[str, Float[np.ndarray, "seeds n"]]) -> dict[str, float]:
    """Mean of every table of random networks × units, with ``/seeds``; from 3 networks on with an interval over both.

    Over the units that all networks have, as the interval is.
    """
    found: dict[str, float] = {}
    for key, table in tables.items():
        shared = table[:, np.isfinite(table).all(0)]
        if shared.size:
            found |= with_ends(key, float(shared.mean()), *two_way_interval(shared)) | {f"{key}/seeds": len(table)}
    return found
