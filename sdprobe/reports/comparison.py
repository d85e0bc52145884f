"""Figures of several runs: the main number of each task over layers and timesteps, and tasks against each other.

Curves of one figure come from runs that may be compared, see :mod:`sdprobe.reports.grouping`. A figure has at most
:data:`MOST` curves.
"""

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Annotation
from matplotlib.transforms import Bbox

from sdprobe.reports import style
from sdprobe.reports.grouping import Condition, comparable, conditions, curves, differing, named, natural, replicate
from sdprobe.reports.numbers import units
from sdprobe.reports.run import Run
from sdprobe.reports.tasks import TASKS, Task
from sdprobe.reports.tracked import OUTPUTS, chosen

MOST = 8  # curves of a figure
NOISE = ("layers", "timesteps", "layers_timesteps")  # figures of a task
LINES = 24  # rows of a map
SHARED = ("backbone", "backbone.weights", "mitigation", "timestep", "probe.solver")  # that titles say
SHIFTS = ((5, 4), (5, -6), (-5, 4), (-5, -6), (0, 10), (0, -11), (6, 14), (6, -16), (-6, 14), (-6, -16))  # of names, in points
# figures of the noise levels of one run
COMPARISONS = (
    "selected_layers",
    *(f"{name}_{task}" for task in dict.fromkeys(task.name for task in TASKS.values()) for name in NOISE),
)
PARTS = ("query", "key", "value", "out", "cross_query", "cross_out", "ff")  # inside attention, in execution order
STAGE = re.compile(
    rf"(conv_in|down_\d+|mid|up_\d+|conv_out)(?:_(res|attn)_(\d+)|_(upsample|downsample))?(?:_(?:b(\d+)_)?({'|'.join(PARTS)}))?"
)
STAGES = {"conv_in": 0, "down": 1, "mid": 2, "up": 3, "conv_out": 4}
BLOCK = re.compile(r"block_(\d+)(_norm)?")  # of a diffusion transformer


@dataclass(frozen=True)
class Point:
    """A number with its interval, NaN without one; of several seeds their mean, with the lowest and the highest."""

    value: float
    low: float
    high: float
    seeds: tuple[float, ...]


@dataclass(frozen=True)
class Group:
    """Runs of one task that may be compared. ``title`` names their images."""

    task: Task
    title: str
    runs: list[Run]
    first: bool  # whether it is the largest group of the task

    @property
    def stem(self) -> str:
        """Part of file names: the task, and the images in all groups but the largest."""
        return (
            self.task.name if self.first else f"{self.task.name}_{re.sub(r'[^A-Za-z0-9.]+', '_', self.title).strip('_')}"[:80]
        )

    @property
    def controls(self) -> bool:
        """Whether these are controls, which have figures of their own."""
        return any(run.meta.get("control") for run in self.runs)

    def points(self, runs: Sequence[Run]) -> dict[str, Point]:
        """Layer → main number, of repetitions."""
        seeds = list(map(replicate, runs))
        layers = dict.fromkeys(layer for run in runs for layer in run.bases)
        found = {layer: point(self.task, runs, layer, seeds) for layer in layers}
        return {layer: each for layer, each in found.items() if each is not None}


@dataclass(frozen=True)
class Drawn:
    """Figures by file name, and sentences on what they leave out."""

    figures: dict[str, Figure] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def groups_of(runs: Sequence[Run]) -> list[Group]:
    """The groups of every task, in the order of tasks, larger groups first."""
    found = []
    for task in dict.fromkeys(TASKS.values()):
        own = [
            run for run in runs if TASKS.get(run.kind) is task and any(value_of(run, layer) is not None for layer in run.bases)
        ]
        split = comparable(own)
        found += [Group(task, title, group, not place) for place, (title, group) in enumerate(split.items())]
    return found


def value_of(run: Run, layer: str) -> float | None:
    """A run's main number at a layer, in the task's unit; None if it was not measured."""
    task = TASKS.get(run.kind)
    value = run.value("test", layer, task.metric) if task else None
    return None if value is None or task is None else task.scale * value


def selected_layer(run: Run) -> tuple[str, str]:
    """(layer, images on which it was chosen: ``val`` or ``test``, empty for a single layer); an output is never chosen from
    several layers."""
    inside = [layer for layer in run.bases if layer not in OUTPUTS and value_of(run, layer) is not None]
    if run.kind not in TASKS:
        return "", ""
    layer, how = chosen(run)
    images = "" if len(inside) < 2 else "val" if "validation" in how else "test"
    return layer or "", images


def point(task: Task, runs: Sequence[Run], layer: str, seeds: Sequence[object]) -> Point | None:
    """A task's number at a layer; ``seeds`` are those of the runs. A seed that was measured several times counts once."""
    found: dict[object, list[list[float]]] = defaultdict(list)
    for run, seed in zip(runs, seeds, strict=True):
        numbers = np.array(run.estimate("test", layer, task.metric), dtype=float)  # None becomes NaN
        if np.isfinite(numbers[0]):
            found[seed].append((task.scale * numbers).tolist())
    if not found:
        return None
    means = [np.mean(each, axis=0) for each in found.values()]
    values = tuple(float(mean[0]) for mean in means)
    if len(means) == 1:
        value, low, high = means[0].tolist()
        return Point(value, low, high, values)
    ends = [end for mean in means for end in mean.tolist() if np.isfinite(end)]  # of every seed, or the bar would be too short
    return Point(float(np.mean(values)), min(ends), max(ends), values)


def in_order(layers: Iterable[str]) -> list[str]:
    """Layers in execution order, whichever runs they come from. Layers of unknown names follow in the given order.

    >>> in_order(["up_1", "conv_out", "mid", "mid_attn_0", "down_0_res_1", "down_0_attn_0", "up_0_upsample", "down_0"])
    ['down_0_attn_0', 'down_0_res_1', 'down_0', 'mid_attn_0', 'mid', 'up_0_upsample', 'up_1', 'conv_out']
    >>> in_order(["mid_attn_0", "mid_attn_0_b1_query", "mid_attn_0_ff", "mid_attn_0_key", "mid_res_0"])
    ['mid_res_0', 'mid_attn_0_key', 'mid_attn_0_ff', 'mid_attn_0_b1_query', 'mid_attn_0']
    >>> in_order(["block_10", "block_2", "block_2_norm", "patch"])
    ['patch', 'block_2_norm', 'block_2', 'block_10']
    """
    return sorted(dict.fromkeys(layers), key=_place)


def _place(layer: str) -> tuple[int, ...]:
    if layer in OUTPUTS[1:]:
        return -1, OUTPUTS.index(layer)
    if layer == "patch":
        return 5, -1
    if numbered := BLOCK.fullmatch(layer):
        return 5, int(numbered[1]), int(not numbered[2])
    found = STAGE.fullmatch(layer)
    if found is None:
        return (9,)
    stage, kind, number, resampled, block, part = found.groups()
    name, _, index = stage.rpartition("_") if stage not in STAGES else (stage, "", "0")
    within = (int(number), int(kind == "attn")) if kind else (98, 0) if resampled else (99, 0)  # a stage's output is its last
    inside = (0, int(block or 0), PARTS.index(part)) if part else (1,)
    return STAGES[name], int(index), *within, *inside


def comparison_figures(groups: Sequence[Group]) -> Drawn:
    """Every figure that the runs have data for."""
    drawn = Drawn()
    for group in groups:
        if not group.controls:
            _over_layers(group, drawn)
            _over_timesteps(group, drawn)
    largest: dict[str, Group] = {}
    for group in groups:
        if not group.controls:
            largest.setdefault(group.task.name, group)
    _selected(list(largest.values()), drawn)
    for name, group in largest.items():
        if name != "position" and "position" in largest:
            same = [each for each in groups if each.task.name == "position" and each.title == group.title]
            _against(same[0] if same else largest["position"], group, drawn)
    return drawn


def _chosen(group: Group, known: Sequence[Condition], name: str, drawn: Drawn) -> list[Condition]:
    """At most :data:`MOST` conditions: those most like the others, and of these the ones with most layers. A note names the
    rest, and the filter that shows each."""

    def rank(condition: Condition) -> tuple[int, int]:
        common = sum(
            sum(other.known.get(key) == condition.known.get(key) for other in known) * 2 <= len(known)
            for key in condition.names
        )
        return common, -len(group.points(condition.runs))

    kept = sorted(range(len(known)), key=lambda place: rank(known[place]))[:MOST]
    left = [condition for place, condition in enumerate(known) if place not in kept]
    if left:
        lines = [f"  {condition.label}: {condition.filter(group.runs)}".rstrip(": ") for condition in left]
        drawn.notes.append(
            "\n".join(
                [f"{name} shows {MOST} of {len(known)} curves, most like each other. Left out, and how to show them:", *lines]
            )
        )
    return _relabelled([known[place] for place in sorted(kept)])


def _relabelled(shown: Sequence[Condition]) -> list[Condition]:
    """Conditions that are labelled by what differs among them."""
    names = differing(condition.known for condition in shown)
    return [replace(condition, names=names) for condition in shown]


def _titled(figure: Figure, group: Group, text: str, shown: Sequence[Condition], every: int, *lines: str) -> None:
    left = f"{len(shown)} of {every} curves; report.txt names the others and the filters that show them" * (len(shown) < every)
    head = f"{group.task.label[:1].upper()}{group.task.label[1:]}, {text}"
    style.title(figure, head, ": ".join(filter(None, (group.title, _shared(shown)))), *lines, left)


def _shared(shown: Sequence[Condition]) -> str:
    """The main settings that curves share."""
    return named(shown[0].known, [name for name in SHARED if name not in shown[0].names])


def _spread(group: Group, shown: Sequence[Condition]) -> str:
    """What the bars or bands of a figure mean."""
    several = {len({replicate(run) for run in condition.runs}) > 1 for condition in shown}
    counts = sorted({count for run in group.runs if (count := units(run)[0]) is not None})
    sampled = f"{'–'.join(map(str, sorted({counts[0], counts[-1]})))} {units(group.runs[0])[1]}" if counts else "test units"
    seeds = "where several seeds were measured: their mean, and the outer ends of their intervals" if True in several else ""
    return f"bars, bands: 95 % intervals over {sampled}{'; ' * bool(seeds)}{seeds}"


def _axes(group: Group, width: float, entries: int) -> tuple[Figure, Axes]:
    figure, axes = style.panels(1, 1, width, 4.6 + 0.2 * entries)
    axis = axes[0, 0]
    axis.set_ylabel(group.task.label)
    axis.grid(axis="y", alpha=0.3)
    return figure, axis


def _limits(group: Group, axis: Axes) -> None:
    """The axis has 0, and all of the range of an accuracy, so that small differences stay small."""
    low, high = axis.get_ylim()
    accuracy = group.task.metric.endswith("accuracy")
    axis.set_ylim(min(low, 0) if low < 0 else 0, 1.02 if accuracy else high)
    style.least_span(axis)


def _colours(shown: Sequence[Condition]) -> list[dict[str, Any]]:
    """The style of every curve; timesteps alone go from dark to light, as the noise level rises."""
    styles = [style.series(place) for place in range(len(shown))]
    if list(shown[0].names) == ["timestep"]:
        ramp = plt.get_cmap("viridis")(np.linspace(0, 0.85, len(shown)))
        styles = [each | {"color": colour} for each, colour in zip(styles, ramp, strict=True)]
    return styles


def _over_layers(group: Group, drawn: Drawn) -> None:
    """The main number over layers, a curve per condition; seeds of a condition are averaged."""
    known = curves(group.runs)
    layers = in_order(layer for condition in known for layer in group.points(condition.runs))
    if len(layers) < 2:
        return
    name = f"layers_{group.stem}"
    shown = _chosen(group, known, name, drawn)
    layers = in_order(layer for condition in shown for layer in group.points(condition.runs))
    figure, axis = _axes(group, style.breadth(layers, 7.5), len(shown))
    for condition, look in zip(shown, _colours(shown), strict=True):
        points = group.points(condition.runs)
        missing = Point(math.nan, math.nan, math.nan, ())
        found = [points.get(layer, missing) for layer in layers]
        _curve(axis, np.array([[each.value, each.low, each.high] for each in found]).T, condition.label, look)
    _chance(group, axis, layers)
    style.name_layers(axis, layers)
    _limits(group, axis)
    _legend(figure, axis)
    _titled(figure, group, "over layers", shown, len(known), _spread(group, shown))
    drawn.figures[name] = figure


def _curve(axis: Axes, numbers: np.ndarray, label: str, look: dict[str, Any]) -> None:
    """Lines with bands over at least five layers in a row; other layers are points with bars, beside those of other curves."""
    measured = np.isfinite(numbers[0])
    stretches = np.split(np.flatnonzero(measured), np.flatnonzero(np.diff(np.flatnonzero(measured)) > 1) + 1)
    number = len({line.get_gid() for line in axis.get_lines()})
    points = np.concatenate([each for each in stretches if len(each) < style.FEW] or [np.empty(0, dtype=int)])
    x = points + 0.09 * ((number + 1) // 2) * (-1) ** number
    for each in (each for each in stretches if len(each) >= style.FEW):
        axis.plot(each, numbers[0, each], ms=3.5, lw=1.4, gid=label, label=label, **look)
        axis.fill_between(each, *numbers[1:, each], color=look["color"], alpha=0.15, lw=0)
        label = ""
    if len(points):
        axis.plot(x, numbers[0, points], ms=4.5, gid=label, label=label, **(look | {"ls": "none"}))
        axis.vlines(x, *numbers[1:, points], color=look["color"], lw=1.2)


def _legend(figure: Figure, axis: Axes) -> None:
    """A legend below, unless there is one curve, whose settings the title says."""
    handles, labels = axis.get_legend_handles_labels()
    if len(labels) > 1:
        style.legend(figure, handles, labels)


def _chance(group: Group, axis: Axes, layers: Sequence[str]) -> None:
    """A line at chance level where all layers share it."""
    found = (run.value("chance", layer, group.task.metric) for run in group.runs for layer in run.bases if layer in layers)
    levels = {round(level, 6) for level in found if level is not None}
    if len(levels) == 1:
        axis.axhline(levels.pop(), color=style.GREY, ls=":", lw=1, label="chance")


def _without_timestep(run: Run) -> dict[str, str]:
    return {name: value for name, value in conditions(run).items() if name != "timestep"}


def _over_timesteps(group: Group, drawn: Drawn) -> None:
    """The main number over timesteps: a curve per condition and layer, and from three timesteps on a map of all layers."""
    known = _relabelled([each for each in curves(group.runs, _without_timestep) if len(each.timesteps) > 1])
    if not known:
        return
    table: dict[tuple[int, int, str], Point] = {}
    for place, each in enumerate(known):
        for step in each.timesteps:
            runs = [run for run in each.runs if int(run.meta["timestep"]) == step]
            table |= {(place, step, layer): found for layer, found in group.points(runs).items()}
    _timestep_curves(group, known, table, drawn)
    if len({step for _, step, _ in table}) > 2 and len({layer for *_, layer in table}) > 1:
        _timestep_map(group, known, table, drawn)


def _timestep_curves(group: Group, known: list[Condition], table: dict[tuple[int, int, str], Point], drawn: Drawn) -> None:
    name = f"timesteps_{group.stem}"
    shown = _chosen(group, known, name, drawn)
    each = MOST // len(shown)
    figure, axis = _axes(group, 7.5, MOST)
    number, cut = 0, False
    sign = 1 if group.task.highest else -1
    noise = _noise(known)
    for condition in shown:
        place = next(place for place, each in enumerate(known) if each.runs is condition.runs)
        layers = {layer: [p.value for key, p in table.items() if key[0] == place and key[2] == layer] for *_, layer in table}
        ranked = sorted(
            (layer for layer in layers if len(layers[layer]) > 1 and layer not in OUTPUTS),
            key=lambda x: -max(sign * v for v in layers[x]),
        )
        cut |= len(ranked) > each
        for layer in in_order(ranked[:each]):
            found = sorted(
                (noise.get((where, step), step), p)
                for (where, step, other), p in table.items()
                if (where, other) == (place, layer)
            )
            label = f"{layer}, {condition.label}" if len(shown) > 1 else layer
            _timestep_curve(axis, found, number, label)
            number += 1
    _limits(group, axis)
    steps = sorted({step for _, step, _ in table})
    if not noise:
        axis.set_xticks(steps if len(steps) <= MOST else steps[:: math.ceil(len(steps) / MOST)])
    axis.set_xlabel("noise level, share of noise" if noise else "timestep")
    _legend(figure, axis)
    chosen = f"the {each} best layers" if cut else ""
    _titled(figure, group, "over timesteps", shown, len(known), chosen, _spread(group, shown))
    drawn.figures[name] = figure


def _noise(known: Sequence[Condition]) -> dict[tuple[int, int], float]:
    """(Number of a condition, timestep) → its share of noise, if they have different noise schedules; else empty."""
    runs = [(place, run.meta) for place, condition in enumerate(known) for run in condition.runs]
    found = {(place, int(meta["timestep"])): float(meta.get("noise_level", math.nan)) for place, meta in runs}
    recorded = all(map(math.isfinite, found.values()))
    return found if recorded and len({meta.get("schedule_hash") for _, meta in runs}) > 1 else {}


def _timestep_curve(axis: Axes, found: list[tuple[float, Point]], number: int, label: str) -> None:
    """A line with a band from five timesteps on; fewer are points with bars, beside those of other curves."""
    look, line = style.series(number), len(found) >= style.FEW
    span = 0 if line else 0.006 * (found[-1][0] - found[0][0] or 1)
    x = [step + span * ((number + 1) // 2) * (-1) ** number for step, _ in found]
    value, low, high = ([getattr(p, name) for _, p in found] for name in ("value", "low", "high"))
    axis.plot(x, value, ms=4.5, lw=1.2, label=label, **(look if line else look | {"ls": "none"}))
    if line:
        axis.fill_between(x, low, high, color=look["color"], alpha=0.15, lw=0)
    else:
        axis.vlines(x, low, high, color=look["color"], lw=1)


def _timestep_map(group: Group, known: list[Condition], table: dict[tuple[int, int, str], Point], drawn: Drawn) -> None:
    """A row per condition and timestep, a column per layer; white: not measured."""
    layers = in_order(layer for *_, layer in table)
    rows = sorted({(place, step) for place, step, _ in table})[:LINES]
    numbers = [[table[(*row, layer)].value if (*row, layer) in table else math.nan for layer in layers] for row in rows]
    figure, axes = style.panels(1, 1, style.breadth(layers, 7.5, beside=3.5, each=0.5), 0.32 * len(rows) + 1.7)
    axis = axes[0, 0]
    image = axis.imshow(numbers, aspect="auto", cmap="viridis", vmin=min(0.0, np.nanmin(numbers)))
    names = [f"{known[place].label}, {step}" if len(known) > 1 else str(step) for place, step in rows]
    axis.set_yticks(range(len(rows)), [style.wrapped(text, 3.0, style.SMALL) for text in names], fontsize=style.SMALL)
    axis.set_ylabel("timestep")
    style.name_layers(axis, layers)
    axis.set_xlim(-0.5, len(layers) - 0.5)
    figure.colorbar(image, ax=axis, label=group.task.label)
    _titled(figure, group, "over layers and timesteps", known, len(known))
    style.write_cells([axis])
    drawn.figures[f"layers_timesteps_{group.stem}"] = figure


def _pairing(run: Run) -> dict[str, str]:
    """What two tasks on the same network share: everything but the settings of probes and data modules."""
    apart = ("probe", "datamodule")
    return {name: value for name, value in conditions(run).items() if name.partition(".")[0] not in apart}


def _selected(groups: Sequence[Group], drawn: Drawn) -> None:
    """The selected layer of every run with several: a row per network, timestep and mitigation, a marker per task."""
    lines: dict[str, set[tuple[int, str]]] = defaultdict(set)
    for condition in curves([run for group in groups for run in group.runs], _pairing):
        for number, group in enumerate(groups):
            own = [run for run in group.runs if any(run is each for each in condition.runs)]
            found = {layer for layer, images in map(selected_layer, own) if images}
            if found:
                lines[condition.label] |= {(number, layer) for layer in found}
    rows = sorted(lines, key=natural)[:LINES]
    if not rows:
        return
    layers = in_order(layer for row in rows for _, layer in lines[row])
    figure, axes = style.panels(1, 1, style.breadth(layers, 7.5, beside=4.5, each=0.5), 0.42 * len(rows) + 2.2)
    axis = axes[0, 0]
    for number, group in enumerate(groups):
        shift = 0.16 * (number - (len(groups) - 1) / 2) * (len(groups) > 1)  # markers of tasks do not cover each other
        places = [
            (layers.index(layer), place + shift) for place, row in enumerate(rows) for n, layer in lines[row] if n == number
        ]
        look = style.series(number) | {"ls": "none"}
        axis.plot([x for x, _ in places], [y for _, y in places], ms=7, label=f"{group.task.criterion} ({group.title})", **look)
    style.name_layers(axis, layers)
    axis.set_yticks(range(len(rows)), [style.wrapped(row, 3.2, style.SMALL) for row in rows], fontsize=style.SMALL)
    axis.set(ylim=(len(rows) - 0.5, -0.5))
    axis.grid(alpha=0.3)
    _legend(figure, axis)
    note = "chosen on validation images where the probe has them, else on the test images; several markers: runs that differ"
    style.title(figure, "Selected layer, of those measured without outputs", note)
    drawn.figures["selected_layers"] = figure


def _against(positions: Group, group: Group, drawn: Drawn) -> None:
    """A task's number over position accuracy, a point per layer, a colour per network, timestep and mitigation."""
    found: list[tuple[str, dict[str, tuple[Point, Point]]]] = []
    both = curves([*positions.runs, *group.runs], _pairing)
    for condition in both:
        sides = []
        for each in (positions, group):
            own = curves([run for run in each.runs if any(run is other for other in condition.runs)])
            sides.append([(one.label * (len(own) > 1), each.points(one.runs)) for one in own])
        pairs = [
            (
                ", ".join(filter(None, (condition.label, *texts))),
                {layer: (one[layer], two[layer]) for layer in one if layer in two},
            )
            for texts, (one, two) in (zip(*side, strict=True) for side in product(*sides))
        ]
        found += [max(pairs, key=lambda pair: len(pair[1]))] if pairs else []
    name = f"position_against_{group.task.name}"
    if sum(len(points) for _, points in found) < 2:
        drawn.notes.append(
            f"There is no figure {name}: it needs two layers that runs of both tasks measured with the same network, timestep "
            "and mitigation."
        )
        return
    found = sorted(sorted(found, key=lambda each: -len(each[1]))[:MOST], key=lambda each: natural(each[0]))
    found = [each for each in found if each[1]]
    shared = found[0][0] if len(found) == 1 else _shared(both)
    figure, axis = _axes(group, 7.5, len(found))
    for number, (label, points) in enumerate(found):
        look = style.series(number) | {"ls": "none"}
        x, y = ([each[side] for each in points.values()] for side in (0, 1))
        [line] = axis.plot([p.value for p in x], [p.value for p in y], ms=5.5, label=label, **look)
        colour = line.get_color()
        axis.vlines([p.value for p in x], [p.low for p in y], [p.high for p in y], color=colour, lw=0.7, alpha=0.5)
        axis.hlines([p.value for p in y], [p.low for p in x], [p.high for p in x], color=colour, lw=0.7, alpha=0.5)
    axis.set(xlabel=f"{positions.task.label} ({positions.title})", ylabel=f"{group.task.label} ({group.title})", xlim=(0, 1.02))
    _limits(group, axis)
    axis.grid(alpha=0.3)
    _legend(figure, axis)
    head = f"{group.task.label[:1].upper()}{group.task.label[1:]} over position accuracy"
    style.title(figure, head, shared, "a point: one layer; bars: 95 % intervals or range of seeds")
    named_points = [(layer, one.value, two.value) for _, points in found for layer, (one, two) in points.items()]
    if len(named_points) <= LINES:
        _name_points(figure, axis, named_points)
    drawn.figures[name] = figure


def _name_points(figure: Figure, axis: Axes, points: Sequence[tuple[str, float, float]]) -> None:
    """Name points, each where its name covers the fewest other names and points and stays in the panel."""
    figure.draw_without_rendering()  # finds the layout
    taken = [Bbox.from_bounds(x - 7, y - 7, 14, 14) for x, y in axis.transData.transform([place[1:] for place in points])]
    for name, x, y in points:
        text = axis.annotate(name, (x, y), (0, 0), textcoords="offset points", fontsize=7, va="center")
        text.set_in_layout(False)

        def covered(shift: tuple[float, float], text: Annotation = text) -> int:
            text.set_position(shift)
            text.set_horizontalalignment("left" if shift[0] > 0 else "right" if shift[0] < 0 else "center")
            box = text.get_window_extent()
            inside = axis.bbox.contains(box.x0, box.y0) and axis.bbox.contains(box.x1, box.y1)
            return sum(box.overlaps(other) for other in taken) + 100 * (not inside)

        covered(min(SHIFTS, key=covered))
        taken.append(text.get_window_extent())
