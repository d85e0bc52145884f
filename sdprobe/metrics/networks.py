"""The random-weights baseline: means over several random networks, with intervals over networks and photographs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

import numpy as np

from sdprobe.metrics.gains import holding
from sdprobe.metrics.intervals import two_way_interval, with_ends
from sdprobe.tokens.keys import Key, select

# prefixes of metrics within [0, 1]
SHARES = (
    "axis_accuracy", "cell_accuracy", "binned_accuracy", "pck_", "delta1", "copy_share", "r_cor", "r_norm", "credibility",
)  # fmt: skip
# conditions that are kept of a random network, and their names in the baseline
CONDITIONS = {"test": "random_weights", "zero_shot": "random_weights_zero_shot"}
Value = TypeVar("Value")


@dataclass(frozen=True)
class Network:
    """Results of one random-weights network: numbers, pseudo-values by key, predictions and tokens if the probe keeps any."""

    results: dict[str, float]
    pseudovalues: dict[str, np.ndarray]
    predictions: dict[str, np.ndarray] = field(default_factory=dict)
    tokens: dict[str, np.ndarray] = field(default_factory=dict)


def renamed(numbers: Mapping[str, Value]) -> dict[str, Value]:
    """The kept numbers, under their names in the baseline.

    >>> renamed({"test/mid/rmse/all": 0.5, "chance/mid/rmse/all": 0.9})
    {'random_weights/mid/rmse/all': 0.5}
    """
    return {
        str(replace(Key.parse(text), condition=name)): value
        for condition, name in CONDITIONS.items()
        for text, value in select(numbers, condition=condition).items()
    }


def merged(networks: Sequence[Network]) -> dict[str, float]:
    """Means over the networks that have a key, their number, and an interval if pseudo-values are available."""
    means: dict[str, float] = {}
    for key in dict.fromkeys(key for network in networks for key in select(network.results, statistic="")):
        having = [network for network in networks if key in network.results]
        means |= {key: float(np.mean([network.results[key] for network in having])), f"{key}/seeds": len(having)}
        if f"{key}/n" in having[0].results:
            means[f"{key}/n"] = having[0].results[f"{key}/n"]
        tables = [network.pseudovalues[key] for network in having if key in network.pseudovalues]
        if len(tables) == len(having) and len({len(table) for table in tables}) == 1:
            low, high = two_way_interval(np.stack(tables))
            if Key.parse(key).metric.startswith(SHARES):
                low, high = (float(np.clip(end, 0, 1)) for end in (low, high))
            # risks are reported clipped, but their pseudo-values are not
            means |= holding(key, means[key], with_ends(key, means[key], low, high))
    return means
