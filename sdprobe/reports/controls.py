"""``experiment=controls``: the contribution of every source of position, as a table, a waterfall figure and a CSV."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.table import Table

from sdprobe.metrics.intervals import independent_interval, mean_interval, ratio_pseudovalues, two_way_interval
from sdprobe.reports import style
from sdprobe.reports.grouping import control_groups
from sdprobe.reports.numbers import MISSING, add_columns, bare_table, number, with_ends, within
from sdprobe.reports.run import Run, spread
from sdprobe.utilities.io import write_rows

SEEDS = ("random_0", "random_1", "random_2")
PERIODIC = ("random_periodic", "random_periodic_1", "random_periodic_2")
CIRCULAR = ("random_circular", "random_circular_1", "random_circular_2")
ZERO = ("random_zero", "random_zero_1", "random_zero_2")
Side = tuple[tuple[str, str], ...]  # (control, view) pairs to average; several pairs are random networks, ordered by seed


def tested(*cells: str) -> Side:
    """The upright view of these controls."""
    return tuple((cell, "test") for cell in cells)


# name → (description, one side, the side that is subtracted)
CONTRASTS: dict[str, tuple[str, Side, Side]] = {
    "learned": ("trained − random weights", tested("trained"), tested(*SEEDS)),
    "order of weights": ("trained − shuffled entries", tested("trained"), tested("shuffled")),
    "architecture": ("zeros − circular, random weights, periodic texture", tested(*PERIODIC), tested(*CIRCULAR)),
    "position embedding, untrained": ("stored − none, random weights, periodic texture", tested(*PERIODIC), tested(*ZERO)),
    "position embedding": ("stored − none", tested("trained"), tested("position_zero")),
    "places": ("stored − permuted position embeddings", tested("trained"), tested("position_permuted")),
    "origin": ("stored − shifted position embeddings", tested("trained"), tested("position_shifted")),
    "zeros over replicate": ("trained − replicate", tested("trained"), tested("replicate")),
    "zeros over reflect": ("trained − reflect", tested("trained"), tested("reflect")),
    "zeros over circular": ("trained − circular", tested("trained"), tested("circular")),
    "noise": ("noise tensor of training − another", tested("shared"), (("shared", "other_noise"),)),
    "noise, timestep 261": ("noise tensor of training − another", tested("shared_261"), (("shared_261", "other_noise"),)),
    "fixed noise": ("shared − rolled", tested("shared"), tested("rolled")),
    "any noise": ("trained − without noise", tested("trained"), tested("noiseless")),
    "content": ("original − flip-balanced images", tested("trained"), tested("flipped")),
    "framing": ("original images − random crops", tested("trained"), tested("crops")),
    "images over texture": ("original images − 1/f texture", tested("trained"), tested("texture")),
    "border of texture": ("1/f texture − periodic 1/f texture", tested("texture"), tested("periodic")),
    "VAE": ("periodic texture − texture drawn as latents", tested("periodic"), tested("no_vae")),
    "VAE sample": ("mode − sample", tested("trained"), tested("vae_sample")),
    "VAE input": ("[−1, 1] − [0, 1]", tested("trained"), tested("vae_unit")),
}
CAPTION = (
    "Position accuracy in 8 bins per axis, and differences of it. ±: half-width (longer side) of the 95 % interval over test "
    "photographs ({photos}), or both ends if one side is much longer; paired if both controls were tested on the same ones. "
    "With three random networks it also covers the choice of seed; with one (one seed) it does not; with two there is none. "
    "flip: flip attribution, 1: position comes from the network, −1: from the layout of images; –: no position to attribute."
)


@dataclass(frozen=True)
class Estimate:
    """A value and its 95 % interval (NaN if there is none).

    ``paired``: whether both sides were tested on the same photographs. ``seeds``: number of random networks in the mean.
    """

    value: float
    low: float
    high: float
    paired: bool = True
    seeds: int = 0

    @property
    def half(self) -> float:
        """Half-width of the interval, its longer side; NaN below 6 photographs."""
        return max(self.value - self.low, self.high - self.value)


def layers_of(runs: dict[str, Run]) -> list[str]:
    """Layers that every control has, in execution order."""
    every = list(runs.values())
    return [layer for layer in every[0].layers if all(layer in run.layers for run in every)] if every else []


def accuracy(run: Run, layer: str, view: str = "test") -> Estimate | None:
    """Binned accuracy of one view, with the interval of the run."""
    value, low, high = np.array(run.estimate(view, layer, "binned_accuracy"), dtype=float).tolist()  # None becomes NaN
    return None if math.isnan(value) else Estimate(value, low, high)


def contrast(runs: dict[str, Run], name: str, layer: str) -> Estimate | None:
    """One of CONTRASTS; None if a control is missing."""
    _, upper, lower = CONTRASTS[name]
    return difference(runs, layer, upper, lower)


def mean_accuracy(runs: dict[str, Run], layer: str, side: Side) -> Estimate | None:
    """Mean binned accuracy over controls."""
    known = _side(runs, layer, side)
    return None if known is None else _one(known[1], _seeds(side, known[1]))


def difference(runs: dict[str, Run], layer: str, upper: Side, lower: Side) -> Estimate | None:
    """Mean over ``upper`` minus mean over ``lower``. The interval covers photographs, and seeds if a side has several.

    Controls tested on the same photographs are paired. Sides with equally many random networks are paired by seed. Otherwise
    the sides count as independent.
    """
    first, second = _side(runs, layer, upper), _side(runs, layer, lower)
    if first is None or second is None:
        return None
    (names, up), (others, down) = first, second
    seeds = max(_seeds(upper, up), _seeds(lower, down))
    if names == others and (len(up) == len(down) or 1 in (len(up), len(down))):
        return _one(up - down, seeds)
    parts = [_one(table) for table in (up, down)]
    value = parts[0].value - parts[1].value
    if len(up) == len(down) == 1:
        low, high = independent_interval(up[0], down[0])
        return Estimate(value, low, high, paired=False, seeds=seeds)
    half = float(np.hypot(parts[0].half, parts[1].half))  # wider than Welch's: each side has its own quantile
    return Estimate(value, value - half, value + half, paired=False, seeds=seeds)


def _seeds(side: Side, table: np.ndarray) -> int:
    """Number of random networks of a side."""
    return len(table) if len(side) > 1 or side[0][0].startswith("random_") else 0


def _one(table: np.ndarray, seeds: int = 0) -> Estimate:
    """Mean of a table of networks × photographs; its interval covers photographs, and networks if there are several."""
    if len(table) > 1:
        low, high = two_way_interval(table)
    else:
        low, high = (float(end) for end in mean_interval(table[0]))
    shared = table[:, np.isfinite(table).all(0)]  # photographs that all networks have, as in the interval
    return Estimate(float(shared.mean()) if shared.size else math.nan, low, high, seeds=seeds)


def _side(runs: dict[str, Run], layer: str, side: Side) -> tuple[list[str], np.ndarray] | None:
    """(names of photographs, pseudo-values of binned accuracy by control and photograph) of the measured controls.

    None if there are none, or if they were tested on different photographs.
    """
    tables, names = [], []
    for cell, view in side:
        run = runs.get(cell)
        if run is None:
            continue
        if view not in _views(run) or f"{layer}/photo_right" not in run.maps:
            return None
        index = _views(run).index(view)
        right, count = (run.maps[f"{layer}/photo_{name}"][index] for name in ("right", "count"))
        tables.append(ratio_pseudovalues(right, count))
        names.append(run.maps["photos"].tolist())
    return (names[0], np.stack(tables)) if names and all(each == names[0] for each in names) else None


def controls_table(title: str, known: dict[str, Run]) -> Table:
    """Accuracy and flip attribution of every control of a group, then the contrasts, for every layer."""
    layers = layers_of(known)
    table = bare_table(f"Where position comes from: {title}", CAPTION.format(photos=tested_photographs(known)))
    add_columns(table, "control", left=True)
    for layer in layers:
        add_columns(table, layer, "±", "flip")
    first = next(iter(known.values()))
    table.add_row("chance", *(number(first.value("chance", layer, "binned_accuracy")) for layer in layers), style="dim")
    for cell, run in known.items():
        for view in _views(run):
            if view != "rotated":  # flip attribution is computed from it
                name = cell if view == "test" else f"  {view.replace('_', ' ')}"
                table.add_row(name, *(part for layer in layers for part in _cell(run, layer, view)))
    table.add_section()
    for name in CONTRASTS:
        found = [contrast(known, name, layer) for layer in layers]
        if any(found):
            parts = [
                part
                for each in found
                for part in ((number(each.value, sign=True), _within(each), "") if each else (MISSING, "", ""))
            ]
            table.add_row(_named(name, found), *parts)
    return table


def _named(name: str, found: Sequence[Estimate | None]) -> str:
    """A contrast and its description; says if it is based on one random network."""
    return f"{name}: {CONTRASTS[name][0]}" + " (one seed)" * any(each and each.seeds == 1 for each in found)


def _cell(run: Run, layer: str, view: str) -> tuple[str, str, str]:
    found = accuracy(run, layer, view)
    attribution = number(run.value("test", layer, "flip_attribution")) if view == "test" else ""
    return (number(found.value), _within(found), attribution) if found else (MISSING, "", "")


def _within(found: Estimate) -> str:
    return MISSING if math.isnan(found.low) else within(found.value, found.low, found.high)


def _views(run: Run) -> list[str]:
    return [str(view) for view in run.maps["views"]]


def tested_photographs(known: Mapping[str, Run]) -> str:
    """Number of test photographs of the controls."""
    counts = sorted({len(run.maps["photos"]) for run in known.values()})
    return str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"


def controls_tables(runs: Sequence[Run]) -> list[Table]:
    """:func:`controls_table` of every group; nothing where no run is a cell."""
    return [controls_table(title, known) for title, known in control_groups(runs).items()]


def write_controls(groups: Mapping[str, dict[str, Run]], path: Path) -> None:
    """Write controls and contrasts as CSV: group, model, seed, kind, name, layer, value, ci_low, ci_high, chance, paired."""
    names = ("group", "model", "seed", "kind", "name", "layer", "value", "ci_low", "ci_high", "chance", "paired")
    rows: list[Sequence[object]] = [names]
    for title, known in groups.items():
        meta = next(iter(known.values())).meta
        rows += ([title, meta["model"], meta.get("seed"), *row] for row in _csv_rows(known))
    write_rows(path, rows)


def _csv_rows(known: dict[str, Run]) -> list[list[object]]:
    rows: list[list[object]] = []
    for layer in layers_of(known):
        for cell, run in known.items():
            level = run.value("chance", layer, "binned_accuracy")
            rows += [[view, cell, layer, *_ends(accuracy(run, layer, view)), level, ""] for view in _views(run)]
            for metric in ("flip_attribution", "flip_surviving"):
                numbers = run.estimate("test", layer, metric)
                rows += [[metric, cell, layer, *numbers, "", ""]] if numbers[0] is not None else []
        for name in CONTRASTS:
            if each := contrast(known, name, layer):
                rows.append(["contrast", name, layer, *_ends(each), 0, each.paired])
    return rows


def _ends(found: Estimate | None) -> list[float | None]:
    """Value and interval; None for what is missing."""
    values = (found.value, found.low, found.high) if found else (math.nan,) * 3
    return [None if math.isnan(value) else value for value in values]


NULL, PADDED, UNTRAINED, TRAINED = tested(*CIRCULAR), tested(*PERIODIC), tested(*SEEDS), tested("trained")
# (label, controls that reach the level, controls of the level before)
STEPS: tuple[tuple[str, Side, Side], ...] = (
    ("untrained,\ncircular\npadding", NULL, ()),
    ("+ zero\npadding", PADDED, NULL),
    ("+ image\ncontent", UNTRAINED, PADDED),
    ("+ learned\nweights", TRAINED, UNTRAINED),
)
# of networks whose convolutions do not pad
EMBEDDED: tuple[tuple[str, Side, Side], ...] = (
    ("untrained,\nno position\nembedding", tested(*ZERO), ()),
    ("+ position\nembedding", PADDED, tested(*ZERO)),
    *STEPS[2:],
)
UP, DOWN, TOTAL, GREY = style.BLUE, style.ORANGE, style.DARK, style.GREY
LEAST = 0.1  # of the axis of differences, on both sides of 0


def controls_figures(groups: Mapping[str, dict[str, Run]]) -> dict[str, Figure]:
    """:func:`controls_figure` of every group by file name: ``controls``, or ``controls_<title>`` where there are several."""
    names = {title: re.sub(r"[^A-Za-z0-9.]+", "_", title).strip("_") for title in groups}
    alone = len(groups) == 1
    return {
        "controls" if alone else f"controls_{names[title]}": controls_figure(title, known) for title, known in groups.items()
    }


def controls_figure(title: str, known: dict[str, Run]) -> Figure:
    """Per layer. Left: a waterfall from chance to the trained network. Right: every contrast with its interval."""
    every = layers_of(known)
    names = [name for name in CONTRASTS if any(contrast(known, name, layer) for layer in every)]
    height = max(2.8, 0.17 * len(names) + 0.6)
    most = int((style.INCHES - 0.8) / height)
    layers = spread(every, most)
    figure, axes = style.panels(max(1, len(layers)), 2, 12.5, height * max(1, len(layers)) + 0.8, width_ratios=(1, 1.1))
    for row in axes[1:]:
        row[1].sharex(axes[0][1])
    for (left, right), layer in zip(axes, layers, strict=False):
        _waterfall(left, known, layer)
        _forest(right, known, layer, names)
    axes[-1][1].set_xlabel("difference in position accuracy\nline: 95 % interval; grey: includes 0; hollow: no interval")
    left = f"; {len(layers)} of {len(every)} layers, all: controls.csv" * (len(layers) < len(every))
    style.title(figure, f"Where position comes from: {title}", f"{tested_photographs(known)} test photographs{left}")
    return figure


def _waterfall(axis: Axes, runs: dict[str, Run], layer: str) -> None:
    chance = next(iter(runs.values())).value("chance", layer, "binned_accuracy") or 0.0
    base, place, ticks = chance, 0, ["chance"]
    axis.bar(place, chance, color=GREY, width=0.6)
    for label, upper, lower in EMBEDDED if ZERO[0] in runs and CIRCULAR[0] not in runs else STEPS:
        level = mean_accuracy(runs, layer, upper)
        step = difference(runs, layer, upper, lower) if lower else level
        if level is None or step is None:  # if a control is missing, its contribution would be attributed to the next source
            break
        place += 1
        _step(axis, place, base, level.value, step)
        base = level.value
        ticks.append(label)
    if (total := mean_accuracy(runs, layer, TRAINED)) is not None:
        place += 1
        axis.bar(place, total.value, color=TOTAL, width=0.6)
        axis.errorbar(place, total.value, [[total.value - total.low], [total.high - total.value]], color="black", capsize=3)
        axis.text(place, np.nanmax([total.value, total.high]) + 0.02, with_ends(total.value), ha="center", fontsize=9)
        ticks.append("this\nnetwork")
    axis.axhline(chance, color=GREY, linewidth=1, linestyle=":")
    axis.set(ylim=(0, 1.12), ylabel="position accuracy (8 bins)")
    axis.set_xticks(range(len(ticks)), ticks, fontsize=8)
    axis.set_title(layer, loc="left", fontsize=11, fontweight="bold")
    axis.spines[["top", "right"]].set_visible(False)


def _step(axis: Axes, place: int, base: float, level: float, step: Estimate) -> None:
    """A bar from one level to the next; the error bar is the interval of the step."""
    change = level - base
    axis.plot([place - 1.3, place + 0.3], [base, base], color=GREY, linewidth=0.8)
    axis.bar(place, change, bottom=base, color=UP if change >= 0 else DOWN, width=0.6)
    axis.errorbar(place, level, [[step.value - step.low], [step.high - step.value]], color="black", capsize=3, linewidth=1)
    top = np.nanmax([base, level, level + step.high - step.value])
    axis.text(place, top + 0.02, with_ends(change, sign=True), ha="center", fontsize=9)


def _forest(axis: Axes, runs: dict[str, Run], layer: str, names: Sequence[str]) -> None:
    contrasts = [contrast(runs, name, layer) for name in names]
    for place, found in enumerate(contrasts):
        if found is None:
            continue
        sure = found.low > 0 or found.high < 0
        colour = GREY if not sure else UP if found.value > 0 else DOWN
        axis.plot([found.low, found.high], [place, place], color=colour, linewidth=2, solid_capstyle="butt")
        face = "none" if np.isnan(found.low) else colour
        axis.plot(found.value, place, "o", color=colour, markerfacecolor=face, markersize=5)
    axis.axvline(0, color="black", linewidth=0.8)
    low, high = axis.get_xlim()
    axis.set_xlim(min(low, -LEAST), max(high, LEAST))  # small differences stay small
    axis.set_yticks(
        range(len(names)), [_named(name, [found]) for name, found in zip(names, contrasts, strict=True)], fontsize=7.5
    )
    axis.set_ylim(max(1, len(names)) - 0.5, -0.5)
    axis.grid(axis="x", alpha=0.3)
    axis.spines[["top", "right", "left"]].set_visible(False)
    axis.tick_params(axis="y", length=0)
