"""Comparison of runs: a table with a row per run and layer, and figures over layers and timesteps."""

import logging
import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.table import Table

from sdprobe.reports.dispatch import REPORTS, report_of
from sdprobe.reports.grouping import checkpoints, fingerprint, meta, mitigation, names
from sdprobe.reports.numbers import MISSING, bare_table, ends, markdown, seeds, units
from sdprobe.reports.run import Run
from sdprobe.reports.style import COLOURS
from sdprobe.tokens.keys import ENDS
from sdprobe.utilities.io import write_file, write_rows

log = logging.getLogger(__name__)
TASKS = {report.task.name: report.task for report in REPORTS.values() if report.task}
MARKERS = "os^Dvp*X"
MEANS = "means over seeds; intervals of the runs are in runs.csv"
Cell = tuple[str, int, str]  # name of the run (checkpoint and conditions), timestep, layer
Means = dict[Cell, float]
COLUMNS: dict[str, Callable[[Run], Any]] = {
    "run": lambda run: run.folder.as_posix(),
    "probe": lambda run: run.kind,
    **{name: meta(name) for name in ("model", "weights", "timestep", "seed")},
    "test_images": lambda run: run.meta["images"].get("test"),
    "noise": meta("noise"),
    "mitigation": mitigation,
    **{name: meta(name) for name in ("padding", "control", "image_size")},
    "dataset_fingerprint": fingerprint,
    "config_hash": meta("config_hash"),
}
HIDDEN = ("run", "model", "weights", "config_hash")  # the terminal shows a short name of the first three, and not the last
NOTE = (
    "criterion: how the layer was selected. The selection uses the same test images as the value, so the value is slightly too "
    "extreme.\nsample: units of the interval. n < 6, few: too few units for an interval. random weights: the random-weights "
    "baseline at the same layer; it has an interval, over seeds and units, from 3 seeds on."
)
RIGHT = ("timestep", "seed", "test\nimages", "image\nsize", "value")
NUMBERS = ("value", *ENDS, "random_weights", *(f"random_weights_{end}" for end in (*ENDS, "seeds")))


def comparison_figures(runs: list[Run]) -> dict[str, Figure]:
    """Every figure that the runs have data for, by file name."""
    tasks = _tasks(runs)
    if not tasks:
        return {}
    named = names(tasks)
    values = {task: means(group, named) for task, group in tasks.items()}
    figures = {
        f"layers_{task}": over_layers(values[task], _layers(group), task)
        for task, group in tasks.items() if _most_layers(group) > 1
    }  # fmt: skip
    for task, group in tasks.items():
        if len({cell[1] for cell in values[task]}) > 1:
            figures[f"timesteps_{task}"] = over_timesteps(values[task], _layers(group), task)
            figures[f"layers_timesteps_{task}"] = over_both(values[task], _layers(group), task)
    every = [run for group in tasks.values() for run in group]
    if _most_layers(every) > 1:
        figures["selected_layers"] = selected_layers(values, _layers(every))
    positions = values.get("position", {})
    for task, others in values.items():
        if task != "position" and len(positions.keys() & others.keys()) > 1:
            figures[f"position_against_{task}"] = against_position(positions, others, task)
        elif len({cell[1:] for cell in positions} & {cell[1:] for cell in others}) > 1 and task != "position":
            log.warning(
                "No figure of position against %s: no name occurs in both tasks (%s; %s). Compare fewer runs at a time.",
                task, *("; ".join(sorted({cell[0] for cell in cells})) for cells in (positions, others)),
            )  # fmt: skip
    return figures


def means(runs: Sequence[Run], named: dict[int, str] | None = None) -> Means:
    """Main number by name, timestep and layer: the mean over seeds; runs of the same seed are averaged first.

    ``named``: :func:`sdprobe.reports.grouping.names` of all runs, if these are only a part of them.
    """
    named = names({"": runs}) if named is None else named
    values: dict[Cell, dict[Any, list[float]]] = defaultdict(lambda: defaultdict(list))
    for run in runs:
        for layer in run.bases:
            if (value := value_of(run, layer)) is not None:
                values[named[id(run)], int(run.meta["timestep"]), layer][run.meta.get("seed")].append(value)
    return {cell: float(np.mean([np.mean(found) for found in seeds.values()])) for cell, seeds in values.items()}


def over_layers(values: Means, layers: list[str], task: str) -> Figure:
    """The main number over layers: a panel per name, a curve per timestep."""
    timesteps = _timesteps(values)
    size = max(6.5, 0.3 * len(layers) + 3), 3.1, 0.8
    figure, panels = _panels(values, size, f"{TASKS[task].label} over layers\n{MEANS}", sharey=True)
    for model, axis in panels.items():
        for timestep, colour in zip(timesteps, _ramp(len(timesteps)), strict=True):
            curve = [values.get((model, timestep, layer), np.nan) for layer in layers]
            if not np.isnan(curve).all():
                axis.plot(curve, "-o", ms=3, lw=1.4, color=colour, label=f"timestep {timestep}")
        _finish(axis, task)
    axis.set_xticks(range(len(layers)), layers, rotation=90 if len(layers) > 12 else 30, fontsize=8)
    return figure


def over_timesteps(values: Means, layers: list[str], task: str) -> Figure:
    """The main number over timesteps: a panel per name, a curve per layer.

    Of many layers eight are drawn: those with the highest number, or the lowest if the criterion asks for that.
    """
    sign = 1 if TASKS[task].highest else -1
    most = {layer: max(sign * v for c, v in values.items() if c[2] == layer) for layer in {cell[2] for cell in values}}
    kept = set(sorted(most, key=lambda layer: -most[layer])[: len(COLOURS)])
    end = "highest" if sign > 0 else "lowest"
    cut = f": the {len(kept)} of {len(most)} layers with the {end} values" if len(kept) < len(most) else ""
    figure, panels = _panels(values, (7.5, 3.1, 0.8), f"{TASKS[task].label} over timesteps{cut}\n{MEANS}", sharey=True)
    for model, axis in panels.items():
        for layer, colour in zip([layer for layer in layers if layer in kept], COLOURS, strict=False):
            points = sorted((cell[1], value) for cell, value in values.items() if cell[0] == model and cell[2] == layer)
            if points:
                axis.plot(*zip(*points, strict=True), "-o", ms=3.5, lw=1.4, color=colour, label=layer)
        _finish(axis, task)
    axis.set_xlabel("timestep")
    return figure


def over_both(values: Means, layers: list[str], task: str) -> Figure:
    """The main number over layers and timesteps: a map per name; white: not measured."""
    timesteps = _timesteps(values)
    size = max(6.0, 0.3 * len(layers) + 3), 0.35 * len(timesteps) + 0.9, 1.4
    figure, panels = _panels(values, size, f"{TASKS[task].label} over layers and timesteps\n{MEANS}")
    low, high = min(values.values()), max(values.values())
    for model, axis in panels.items():
        table = [[values.get((model, timestep, layer), np.nan) for layer in layers] for timestep in timesteps]
        image = axis.imshow(table, aspect="auto", vmin=low, vmax=high, cmap="viridis")
        axis.set_yticks(range(len(timesteps)), [str(timestep) for timestep in timesteps], fontsize=8)
        axis.set_ylabel("timestep")
    axis.set_xticks(range(len(layers)), layers, rotation=90, fontsize=8)
    figure.colorbar(image, ax=list(panels.values()), label=TASKS[task].label)
    return figure


def selected_layers(tasks: Mapping[str, Means], layers: list[str]) -> Figure:
    """The layer that each task's criterion selects: a row per name and timestep. ``tasks`` has :func:`means` of each task."""
    chosen = {(*line, task): layer for task, values in tasks.items() for line, layer in selection(values, task).items()}
    layers = [layer for layer in layers if layer in chosen.values()]
    lines = sorted({cell[:2] for cell in chosen})
    figure, axis = plt.subplots(figsize=(max(6.5, 0.45 * len(layers) + 4.5), 0.35 * len(lines) + 1.8), layout="constrained")
    count = len(tasks)
    for number, task in enumerate(tasks):
        shift = 0.16 * (number - (count - 1) / 2)  # markers of tasks that select the same layer do not overlap
        found = [(layers.index(layer), lines.index(cell[:2]) + shift) for cell, layer in chosen.items() if cell[2] == task]
        x, y = zip(*found, strict=True)
        axis.plot(x, y, MARKERS[number % 8], ms=7, color=COLOURS[number % 8], label=TASKS[task].criterion)
    axis.set_xticks(range(len(layers)), layers, rotation=30, ha="right", fontsize=8)
    axis.set_yticks(range(len(lines)), [f"{model}, {timestep}" for model, timestep in lines], fontsize=8)
    axis.set(ylim=(len(lines) - 0.5, -0.5), xlim=(-0.5, len(layers) - 0.5))
    axis.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=min(count, 2), frameon=False, fontsize=9)
    figure.suptitle("Selected layer by criterion, network and timestep\n(means over seeds; intervals: runs.csv)", fontsize=11)
    return figure


def selection(values: Means, task: str) -> dict[tuple[str, int], str]:
    """(name, timestep) → the layer that the task's criterion selects; the first of equal ones."""
    sign = 1 if TASKS[task].highest else -1
    found: dict[tuple[str, int], tuple[float, str]] = {}
    for (name, timestep, layer), value in values.items():
        if (name, timestep) not in found or sign * value > found[name, timestep][0]:
            found[name, timestep] = sign * value, layer
    return {line: layer for line, (_, layer) in found.items()}


def against_position(positions: Means, others: Means, task: str) -> Figure:
    """A task's number over position accuracy: a point per layer and timestep, a colour per name."""
    shared = sorted(positions.keys() & others.keys())
    figure, axis = plt.subplots(figsize=(7, 5), layout="constrained")
    for number, model in enumerate(sorted({cell[0] for cell in shared})):
        points = [(positions[cell], others[cell], cell) for cell in shared if cell[0] == model]
        x_values, y_values = [x for x, _, _ in points], [y for _, y, _ in points]
        marker = MARKERS[(number + number // 8) % 8]
        axis.plot(x_values, y_values, marker, ms=5, alpha=0.8, label=model, color=COLOURS[number % 8])
        for x, y, (_, timestep, layer) in points if len(shared) <= 24 else []:
            text = f"{layer}, {timestep}" if len({cell[1] for cell in shared}) > 1 else layer
            axis.annotate(text, (x, y), xytext=(4, 3), textcoords="offset points", fontsize=7)
    axis.set(xlabel=TASKS["position"].label, ylabel=TASKS[task].label)
    axis.grid(alpha=0.3)
    axis.legend(frameon=False, fontsize=9)
    figure.suptitle(f"{TASKS[task].label} over position accuracy: {len(shared)} layers and timesteps", fontsize=11)
    return figure


def _tasks(runs: list[Run]) -> dict[str, list[Run]]:
    """Runs with a main number, by task."""
    tasks: dict[str, list[Run]] = {}
    for run in runs:
        if selected_layer(run) and (task := report_of(run).task):
            tasks.setdefault(task.name, []).append(run)
    return tasks


def _layers(runs: Sequence[Run]) -> list[str]:
    """Layers of all runs in execution order; layers of smaller runs are inserted between those of larger runs."""
    order: list[str] = []
    for run in sorted(runs, key=lambda run: -len(run.bases)):
        for number, layer in enumerate(run.bases):
            if layer not in order:
                before = [order.index(name) for name in run.bases[:number] if name in order]
                order.insert(max(before, default=-1) + 1, layer)
    return order


def _most_layers(runs: Sequence[Run]) -> int:
    return len({layer for run in runs for layer in run.bases})


def _ramp(count: int) -> list[tuple[float, ...]]:
    """Colours from dark to light, as the noise level rises."""
    return [plt.get_cmap("viridis")(0.85 * i / max(count - 1, 1)) for i in range(count)]


def _timesteps(values: Means) -> list[int]:
    return sorted({cell[1] for cell in values})


def _panels(
    values: Means, size: tuple[float, float, float], title: str, sharey: bool = False
) -> tuple[Figure, dict[str, Axes]]:
    """(figure, panel by name); ``size``: width, height of a panel, height of the rest."""
    models = sorted({cell[0] for cell in values})
    width, height, rest = size
    figure, axes = plt.subplots(
        len(models), 1, figsize=(width, height * len(models) + rest), squeeze=False, sharex=True, sharey=sharey,
        layout="constrained",
    )  # fmt: skip
    for axis, model in zip(axes.flat, models, strict=True):
        axis.set_title(model, loc="left", fontsize=10)
    figure.suptitle(title, fontsize=11)
    return figure, dict(zip(models, axes.flat, strict=True))


def _finish(axis: Axes, task: str) -> None:
    axis.set_ylabel(TASKS[task].label)
    axis.grid(axis="y", alpha=0.3)
    axis.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0), ncols=math.ceil(len(axis.lines) / 12))


def value_of(run: Run, layer: str) -> float | None:
    """A run's main number at a layer, in the task's unit; None if it was not measured."""
    task = report_of(run).task
    value = run.value("test", layer, task.metric) if task else None
    return None if value is None or task is None else task.scale * value


def selected_layer(run: Run) -> str | None:
    """The layer that the criterion of the run's task selects; None if the run has no number."""
    task = report_of(run).task
    values = {layer: value for layer in run.bases if (value := value_of(run, layer)) is not None}
    if task is None or not values:
        return None
    return (max if task.highest else min)(values, key=lambda layer: values[layer])


def rows(runs: list[Run]) -> list[dict[str, Any]]:
    """A row per run and layer: conditions, main number with interval, the same for random weights."""
    found = []
    for run in runs:
        for layer, task in [(layer, task) for layer in run.bases if (task := report_of(run).task)]:
            numbers = [*run.estimate("test", layer, task.metric), *run.estimate("random_weights", layer, task.metric)]
            numbers.append(run.value("random_weights", layer, task.metric, end="seeds"))
            found.append(
                {name: read(run) for name, read in COLUMNS.items()}
                | {"layer": layer, "metric": task.metric, "units": sampled(run)}
                | dict(zip(NUMBERS, numbers, strict=True))
            )
    return found


def write_tables(runs: list[Run], folder: Path) -> list[Path]:
    """Write all rows as ``runs.csv`` and ``runs.md``; numbers as in metrics.json."""
    header = [*COLUMNS, "layer", "metric", "units", *NUMBERS]
    table = [[_text(row[name]) for name in header] for row in rows(runs)]
    paths = [folder / "runs.csv", folder / "runs.md"]
    write_rows(paths[0], [header, *table])
    lines = [header, ["---"] * len(header), *([cell.replace("|", r"\|") for cell in row] for row in table)]
    write_file(paths[1], markdown(lines))
    return paths


def run_comparison(runs: list[Run]) -> Table:
    """A row per run: the conditions in which runs differ, the selected layer, its number with interval, random weights.

    Conditions that all runs share are in the caption.
    """
    named = checkpoints(runs)
    texts = {"model": [named[id(run)] for run in runs]}
    texts |= {name: [_text(read(run)) for run in runs] for name, read in COLUMNS.items() if name not in HIDDEN}
    varying = {name: column for name, column in texts.items() if len(set(column)) > 1}
    shared = [f"{name.replace('_', ' ')} {column[0]}" for name, column in texts.items() if name not in varying and any(column)]
    table = bare_table(
        f"{len(runs)} runs, each at the layer that its criterion selects (all layers: runs.csv, runs.md)",
        "\n".join([*([f"All runs: {', '.join(shared)}."] if shared else []), NOTE]),
    )
    headers = [name.replace("_", "\n") for name in varying]
    for header in ("run", *headers, "metric", "criterion", "layer", "value", "95 % interval", "sample", "random\nweights"):
        table.add_column(header, overflow="fold", justify="right" if header in RIGHT else "left")
    for i, run in enumerate(runs):
        table.add_row("/".join(run.folder.parts[-2:]), *(column[i] or MISSING for column in varying.values()), *_selected(run))
    return table


def _selected(run: Run) -> tuple[str, ...]:
    """Metric, criterion, layer, number, interval, sample, number of random weights, as text."""
    layer, task = selected_layer(run), report_of(run).task
    if layer is None or task is None:
        return *[MISSING] * 4, "", "", ""

    def written(value: float) -> str:
        return f"{task.scale * value:.{3 if abs(task.scale * value) < 10 else 1}f}"

    value, _, _ = run.estimate("test", layer, task.metric)
    random, low, _ = run.estimate("random_weights", layer, task.metric)
    parts = [] if random is None else [written(random), seeds(run)]
    if low is not None:
        parts.insert(1, ends(run, "random_weights", layer, task.metric, written))
    interval, baseline = ends(run, "test", layer, task.metric, written), ", ".join(filter(None, parts))
    return task.label, task.criterion, layer, written(value or 0.0), interval, sampled(run), baseline or MISSING


def sampled(run: Run) -> str:
    """The units of a run's intervals: ``12 photographs``."""
    count, name = units(run)
    return "" if count is None else f"{count} {name.removeprefix('test ')}"


def _text(value: Any) -> str:
    return "" if value is None else str(value)
