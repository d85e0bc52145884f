"""A run's numbers as a tracker compares runs: rows over layers, a few numbers of one layer, and a long table of all."""

import re
from collections.abc import Sequence
from typing import Any

from sdprobe.reports.numbers import units
from sdprobe.reports.run import Run
from sdprobe.reports.tasks import main_task, tracked_of
from sdprobe.tokens.keys import COLUMNS, CONDITIONS, OVER_NONE, Key, base_of, long_form, timestep_of, variant

DEPTH = "layers/depth"
NOISE = "noise/timestep"
GAIN = "gain_over_random_weights"
# condition and, where it is not the layer's own, layer of the null that the summary shows: the first that was measured
NULLS = (("chance", ""), ("same_position", "baseline"), ("constant", ""), ("position_only", ""), ("shuffled_labels", ""))
INSIDE = re.compile(r"\w+_attn_\d+_\w+|block_\d+_norm")  # layers inside attention, and inputs of it
OUTPUTS = ("conv_out", "latent", "noisy_latent")  # no activations inside the network, so not chosen among several layers
NO_SCORE = ("loss", "ridge_level")  # what validation has beside a probe's score
Row = dict[str, Any]


def long_table(run: Run) -> list[list[Any]]:
    """Every number of a run under :data:`~sdprobe.tokens.keys.COLUMNS`, see :func:`~sdprobe.tokens.keys.long_form`."""
    table = []
    for row in (dict(zip(COLUMNS, values, strict=True)) for values in long_form(run.metrics)):
        timestep = _timestep(run, str(row["layer"])) if row["timestep"] is None else row["timestep"]
        table.append([*(row | {"timestep": timestep, "mitigation": row["mitigation"] or run.chain or "none"}).values()])
    return table


def layer_rows(run: Run, network: Sequence[str]) -> list[Row]:
    """A row per measured layer, in execution order; none for the network's inputs, which have no depth.

    ``layers/depth`` is 0 for the first layer of the network and 1 for the last, whichever layers were measured. Those inside
    attention lie between the others. With several noise levels there is a row per layer and level, and
    ``layers_t261/<metric>`` takes the place of ``layers/<metric>``.
    ``layers/<metric>`` is the probe's number, ``layers/<metric>/<condition>`` the same under each null, and
    ``layers/<metric>/gain_over_random_weights`` what it has above the random-weights baseline. In a run that compares
    mitigations, ``mitigations/<metric>/<mitigation>`` is the main number behind each and, as ``none``, without one.

    Args:
        run: a finished run.
        network: every layer of the network, in execution order.
    """
    rows = []
    places = _places(network)
    last = max(*places.values(), 1)
    for layer in run.bases:
        if (index := places.get(base_of(layer))) is not None:
            row = {DEPTH: index / last, "layers/index": index, "layers/name": base_of(layer)}
            measured = _numbers(run, layer) | _mitigated(run, layer)
            if (level := timestep_of(layer)) is not None:
                sections = {"layers": f"layers_t{level}", "mitigations": f"mitigations_t{level}"}
                parts = {name: name.partition("/") for name in measured}
                measured = {f"{sections[parts[name][0]]}/{parts[name][2]}": value for name, value in measured.items()}
            rows.append(row | {"layers/timestep": _timestep(run, layer)} | measured)
    return rows


def noise_rows(run: Run) -> list[Row]:
    """A row per noise level of a run with several: ``noise/<metric>/<layer>`` and, of its main metric, the same of its null and
    of random weights. ``noise/timestep`` and ``noise/level`` are the two names of a level."""
    rows = []
    levels = run.meta.get("noise_level")
    for place, level in enumerate(run.levels if len(run.timesteps) > 1 else ()):
        row: Row = {NOISE: level.meta["timestep"], **({"noise/level": levels[place]} if isinstance(levels, list) else {})}
        for layer in level.layers:
            for metric in tracked_of(run.kind):
                if (value := level.value("test", layer, metric)) is not None:
                    row[f"noise/{metric}/{layer}"] = value
            main = main_task(run.kind).metric
            for condition, null in (
                null_of(level, layer, main),
                ("random_weights", level.value("random_weights", layer, main)),
            ):
                if null is not None:
                    row[f"noise/{main}/{layer}/{condition}"] = null
        rows.append(row)
    return rows


def _places(network: Sequence[str]) -> dict[str, float]:
    """Number of each layer. Those inside attention lie at even distances between the layers around them.

    >>> _places(["conv_in", "mid_attn_0_query", "mid_attn_0"])
    {'conv_in': 0, 'mid_attn_0_query': 0.5, 'mid_attn_0': 1}
    """
    places: dict[str, float] = {}
    within: list[str] = []
    number = -1
    for layer in network:
        within.append(layer)
        if not INSIDE.fullmatch(layer):
            places |= {name: number + place / len(within) for place, name in enumerate(within, 1)} | {layer: number + 1}
            number, within = number + 1, []
    return places


def headline(run: Run, network: Sequence[str]) -> Row:
    """The run's main number at one layer, its interval, its null and its gain: what a table of runs is sorted by.

    Of several layers it is the one that :func:`chosen` names.
    """
    task = main_task(run.kind)
    layer, why = chosen(run)
    if layer is None:
        return {}
    value, low, high = run.estimate("test", layer, task.metric)
    null_is, null = null_of(run, layer, task.metric)
    gain, gain_low, gain_high = _gain(run, layer, task.metric)
    found = {
        "metric": task.metric, "value": value, "value_low": low, "value_high": high, "null": null, "null_is": null_is,
        "random_weights": run.value("random_weights", layer, task.metric), "gain": gain, "gain_low": gain_low,
        "gain_high": gain_high, "n": units(run)[0], "layer": base_of(layer), "layer_is": why, "timestep": timestep_of(layer),
        "depth": next((row[DEPTH] for row in layer_rows(run, network) if row["layers/name"] == base_of(layer)), None),
    }  # fmt: skip
    return {name: number for name, number in found.items() if number is not None}


def chosen(run: Run) -> tuple[str | None, str]:
    """(layer, how it was chosen): by ``choose=``, the only one, or the best on validation images, or else on test images.

    An output is never chosen from several layers. Accuracies whose chance differs between layers are compared by their share
    of what chance leaves, (a - c) / (1 - c).
    """
    choices = run.meta.get("choices") or []
    if len(choices) == 1 and choices[0]["chosen"] in run.layers:
        choice = choices[0]
        return choice["chosen"], f"chosen on {choice['photographs']} validation photographs, of {choice['cells']}"
    task = main_task(run.kind)
    every = {layer: value for layer in run.bases if (value := run.value("test", layer, task.metric)) is not None}
    tested = {layer: value for layer, value in every.items() if base_of(layer) not in OUTPUTS} or every
    if len(tested) < 2:
        return next(iter(tested), None), "the only layer"
    validated = {layer: score for layer, score in _validated(run).items() if layer in tested}
    complete = len(validated) == len(tested)
    scores = validated if complete else tested
    best = (max if task.highest else min)(scores, key=lambda layer: scores[layer])
    how = "most readable at, on validation images" if complete else f"{task.criterion}, on test images"
    return best, f"{how}, of {len(scores)} layers{' and noise levels' * (len(run.timesteps) > 1)}"


def _validated(run: Run) -> dict[str, float]:
    """Scores on validation images, by layer."""
    scores: dict[str, float] = {}
    for text, score in ((text, value) for text, value in run.metrics.items() if text.startswith("val/")):
        key = Key.parse(text)
        if not key.statistic and key.metric not in NO_SCORE and key.layer not in scores:
            chance = run.value("chance", key.layer, key.metric, key.where) or 0.0
            scores[key.layer] = (score - chance) / (1 - chance)
    return scores


def _numbers(run: Run, layer: str) -> Row:
    """The tracked numbers of a layer, under every condition that is measured at it."""
    row: Row = {}
    for metric in tracked_of(run.kind):
        for condition in CONDITIONS:
            value = run.value(condition, layer, metric)
            if value is not None and condition not in ("val", "choice", OVER_NONE):
                row["/".join(["layers", metric, *([] if condition == "test" else [condition])])] = value
        if (gain := _gain(run, layer, metric)[0]) is not None:
            row[f"layers/{metric}/{GAIN}"] = gain
    return row


def _mitigated(run: Run, layer: str) -> Row:
    """The main number of a layer and of its variants, in a run that compares them."""
    metric = main_task(run.kind).metric
    values = {label: run.value("test", variant(layer, label), metric) for label in run.labels}
    if values:
        values["none"] = run.value("test", layer, metric)
    return {f"mitigations/{metric}/{label}": value for label, value in values.items() if value is not None}


def _gain(run: Run, layer: str, metric: str) -> tuple[float | None, float | None, float | None]:
    """What a number has above the random-weights baseline, with its interval where the run has one."""
    measured = run.estimate(GAIN, layer, metric)
    value, random = run.value("test", layer, metric), run.value("random_weights", layer, metric)
    if measured[0] is not None or value is None or random is None:
        return measured
    return value - random, None, None


def null_of(run: Run, layer: str, metric: str) -> tuple[str | None, float | None]:
    """(condition, value) of the null beside a number."""
    for condition, other in NULLS:
        if (value := run.value(condition, other or layer, metric)) is not None:
            return condition, value
    return None, None


def _timestep(run: Run, layer: str) -> int | None:
    """The noise level of a layer; None for what a run at several has but once, such as a baseline without a network."""
    found = timestep_of(layer)
    return (run.timesteps[0] if len(run.timesteps) == 1 else None) if found is None else found
