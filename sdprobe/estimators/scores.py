"""Scores of heads, by condition and layer → numbers under their full keys, with gains of variants over their layers."""

from collections.abc import Iterable, Sequence
from typing import cast

import numpy as np
from torch import nn

from sdprobe.metrics.clusters import ClusterMetric
from sdprobe.tokens.keys import OVER_NONE, label_of, qualified, unmitigated


def entry(*parts: str) -> str:
    """Key of an ``nn.ModuleDict``, which takes no dots, as names of modules of other networks have.

    >>> entry("test", "mid"), "." in entry("test", "layer1.0.conv2")
    ('test/mid', False)
    """
    return "/".join(parts).replace(".", "\N{ONE DOT LEADER}")


def reported(
    scores: nn.ModuleDict, layers: Iterable[str], conditions: Sequence[str]
) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """Numbers of every condition, and pseudo-values of the first one. Variants also get their gain over their layer.

    Args:
        scores: ``<condition>/<layer>`` → its metric.
        layers: layers and variants.
        conditions: the first one is the probe.
    """

    def score(condition: str, layer: str) -> ClusterMetric:
        return cast(ClusterMetric, scores[entry(condition, layer)])

    tested = conditions[0]
    results: dict[str, float] = {}
    units: dict[str, np.ndarray] = {}
    for layer in layers:
        for condition in conditions:
            results |= qualified(condition, layer, score(condition, layer).compute())
        units |= qualified(tested, layer, score(tested, layer).pseudovalues())
        if label_of(layer):
            results |= qualified(OVER_NONE, layer, score(tested, layer).gain(score(tested, unmitigated(layer))))
    return results, units
