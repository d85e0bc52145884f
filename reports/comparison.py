"""Figures of many runs: over layers, over timesteps, the best layer of every task, position against the task."""

import math
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from reports.comparison_table import TASKS, best_layer, value_of
from reports.run import Run

COLOURS = ("#0b6e99", "#d9730d", "#448361", "#9065b0", "#c14c8a", "#64473a", "#e03e3e", "#787774")
MARKERS = "os^Dvp*X"
Cell = tuple[str, int, str]  # checkpoint, timestep, layer


def comparison_figures(runs: list[Run]) -> dict[str, Figure]:
    """Every figure that the runs have data for, by file name."""
    tasks = _tasks(runs)
    if not tasks:
        return {}
    figures = {f"layers_{task}": over_layers(group, task) for task, group in tasks.items() if _most_layers(group) > 1}
    for task, group in tasks.items():
        if len({run.meta["timestep"] for run in group}) > 1:
            figures[f"timesteps_{task}"] = over_timesteps(group, task)
            figures[f"layers_timesteps_{task}"] = over_both(group, task)
    if _most_layers([run for group in tasks.values() for run in group]) > 1:
        figures["best_layer"] = best_layers(tasks)
    positions = means(tasks.get("position", []))
    for task, group in tasks.items():
        if task != "position" and len(positions.keys() & means(group).keys()) > 1:
            figures[f"position_against_{task}"] = against_position(positions, means(group), task)
    return figures


def means(runs: list[Run]) -> dict[Cell, float]:
    """Main number by checkpoint, timestep and layer, averaged over runs that share them (seeds, say)."""
    values = defaultdict(list)
    for run in runs:
        for layer in run.layers:
            if (value := value_of(run, layer)) is not None:
                values[checkpoint(run), int(run.meta["timestep"]), layer].append(value)
    return {cell: float(np.mean(found)) for cell, found in values.items()}


def checkpoint(run: Run) -> str:
    """Network, and its weights where they are not its own."""
    name = Path(str(run.meta["model"])).name
    return name if run.meta["weights"] == "stored" else f"{name}, {run.meta['weights']}"


def over_layers(runs: list[Run], task: str) -> Figure:
    """The main number over layers, a panel per checkpoint, a curve per timestep."""
    values, layers = means(runs), _layers(runs)
    models, timesteps = sorted({cell[0] for cell in values}), sorted({cell[1] for cell in values})
    width = max(6.5, 0.3 * len(layers) + 3)
    figure, axes = plt.subplots(
        len(models), 1, figsize=(width, 3.1 * len(models) + 0.8), squeeze=False, sharex=True, sharey=True, layout="constrained"
    )
    for axis, model in zip(axes.flat, models, strict=True):
        for timestep, colour in zip(timesteps, _ramp(len(timesteps)), strict=True):
            curve = [values.get((model, timestep, layer), np.nan) for layer in layers]
            if not np.isnan(curve).all():
                axis.plot(curve, "-o", ms=3, lw=1.4, color=colour, label=f"timestep {timestep}")
        _finish(axis, model, task)
    axes[-1, 0].set_xticks(range(len(layers)), layers, rotation=90 if len(layers) > 12 else 30, fontsize=8)
    figure.suptitle(f"{TASKS[task].label} over layers", fontsize=11)
    return figure


def over_timesteps(runs: list[Run], task: str) -> Figure:
    """The main number over timesteps, a panel per checkpoint, a curve per layer: the eight best of them."""
    values = means(runs)
    models = sorted({cell[0] for cell in values})
    sign = 1 if TASKS[task].more_is_better else -1
    best = {layer: max(sign * v for c, v in values.items() if c[2] == layer) for layer in {cell[2] for cell in values}}
    kept = set(sorted(best, key=lambda layer: -best[layer])[: len(COLOURS)])
    layers = [layer for layer in _layers(runs) if layer in kept]
    figure, axes = plt.subplots(
        len(models), 1, figsize=(7.5, 3.1 * len(models) + 0.8), squeeze=False, sharex=True, sharey=True, layout="constrained"
    )
    for axis, model in zip(axes.flat, models, strict=True):
        for layer, colour in zip(layers, COLOURS, strict=False):
            points = sorted((cell[1], value) for cell, value in values.items() if cell[0] == model and cell[2] == layer)
            if points:
                axis.plot(*zip(*points, strict=True), "-o", ms=3.5, lw=1.4, color=colour, label=layer)
        _finish(axis, model, task)
    axes[-1, 0].set_xlabel("timestep")
    figure.suptitle(f"{TASKS[task].label} over timesteps", fontsize=11)
    return figure


def over_both(runs: list[Run], task: str) -> Figure:
    """The main number over layers and timesteps, a map per checkpoint; white where nothing was measured."""
    values, layers = means(runs), _layers(runs)
    models, timesteps = sorted({cell[0] for cell in values}), sorted({cell[1] for cell in values})
    width, height = max(6.0, 0.3 * len(layers) + 3), 0.35 * len(timesteps) + 0.9
    figure, axes = plt.subplots(
        len(models), 1, figsize=(width, height * len(models) + 1.4), squeeze=False, sharex=True, layout="constrained"
    )
    low, high = min(values.values()), max(values.values())
    for axis, model in zip(axes.flat, models, strict=True):
        table = [[values.get((model, timestep, layer), np.nan) for layer in layers] for timestep in timesteps]
        image = axis.imshow(table, aspect="auto", vmin=low, vmax=high, cmap="viridis")
        axis.set_yticks(range(len(timesteps)), [str(timestep) for timestep in timesteps], fontsize=8)
        axis.set_ylabel("timestep")
        axis.set_title(model, loc="left", fontsize=10)
    axes[-1, 0].set_xticks(range(len(layers)), layers, rotation=90, fontsize=8)
    figure.colorbar(image, ax=list(axes.flat), label=TASKS[task].label)
    figure.suptitle(f"{TASKS[task].label} over layers and timesteps", fontsize=11)
    return figure


def best_layers(tasks: dict[str, list[Run]]) -> Figure:
    """Which layer is best at every task, a row per checkpoint and timestep."""
    chosen = {
        (checkpoint(run), int(run.meta["timestep"]), task): layer
        for task, runs in tasks.items() for run in runs if (layer := best_layer(run))
    }  # fmt: skip
    layers = [layer for layer in _layers([run for runs in tasks.values() for run in runs]) if layer in chosen.values()]
    lines = sorted({cell[:2] for cell in chosen})
    figure, axis = plt.subplots(figsize=(max(6.5, 0.45 * len(layers) + 4.5), 0.35 * len(lines) + 1.8), layout="constrained")
    count = len(tasks)
    for number, task in enumerate(tasks):
        shift = 0.16 * (number - (count - 1) / 2)  # tasks that agree stay visible beside each other
        found = [(layers.index(layer), lines.index(cell[:2]) + shift) for cell, layer in chosen.items() if cell[2] == task]
        x, y = zip(*found, strict=True)
        axis.plot(x, y, MARKERS[number % 8], ms=7, color=COLOURS[number % 8], label=TASKS[task].label)
    axis.set_xticks(range(len(layers)), layers, rotation=30, ha="right", fontsize=8)
    axis.set_yticks(range(len(lines)), [f"{model}, {timestep}" for model, timestep in lines], fontsize=8)
    axis.set(ylim=(len(lines) - 0.5, -0.5), xlim=(-0.5, len(layers) - 0.5))
    axis.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=count, frameon=False, fontsize=9)
    figure.suptitle("Best layer of every task, by checkpoint and timestep", fontsize=11)
    return figure


def against_position(positions: dict[Cell, float], others: dict[Cell, float], task: str) -> Figure:
    """A task's number over position accuracy, a point per layer and timestep, a colour per checkpoint."""
    shared = sorted(positions.keys() & others.keys())
    figure, axis = plt.subplots(figsize=(7, 5), layout="constrained")
    for number, model in enumerate(sorted({cell[0] for cell in shared})):
        points = [(positions[cell], others[cell], cell) for cell in shared if cell[0] == model]
        x_values, y_values = [x for x, _, _ in points], [y for _, y, _ in points]
        axis.plot(x_values, y_values, MARKERS[number % 8], ms=5, alpha=0.8, label=model, color=COLOURS[number % 8])
        for x, y, (_, timestep, layer) in points if len(shared) <= 24 else []:
            text = f"{layer}, {timestep}" if len({cell[1] for cell in shared}) > 1 else layer
            axis.annotate(text, (x, y), xytext=(4, 3), textcoords="offset points", fontsize=7)
    axis.set(xlabel=TASKS["position"].label, ylabel=TASKS[task].label)
    axis.grid(alpha=0.3)
    axis.legend(frameon=False, fontsize=9)
    figure.suptitle(f"Position against {TASKS[task].label}: {len(shared)} layers and timesteps", fontsize=11)
    return figure


def _tasks(runs: list[Run]) -> dict[str, list[Run]]:
    """Runs with a main number, by task; the study measures position by the same number."""
    tasks: dict[str, list[Run]] = {}
    for run in runs:
        if best_layer(run):
            tasks.setdefault("position" if run.kind == "study" else run.kind, []).append(run)
    return tasks


def _layers(runs: Sequence[Run]) -> list[str]:
    """Layers of all runs in execution order: runs of fewer layers fill in between those of more."""
    order: list[str] = []
    for run in sorted(runs, key=lambda run: -len(run.layers)):
        for number, layer in enumerate(run.layers):
            if layer not in order:
                before = [order.index(name) for name in run.layers[:number] if name in order]
                order.insert(max(before, default=-1) + 1, layer)
    return order


def _most_layers(runs: Sequence[Run]) -> int:
    return len({layer for run in runs for layer in run.layers})


def _ramp(count: int) -> list[tuple[float, ...]]:
    """Colours from dark to light, as the noise level rises."""
    return [plt.get_cmap("viridis")(0.85 * i / max(count - 1, 1)) for i in range(count)]


def _finish(axis: Axes, title: str, task: str) -> None:
    axis.set_title(title, loc="left", fontsize=10)
    axis.set_ylabel(TASKS[task].label)
    axis.grid(axis="y", alpha=0.3)
    axis.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0), ncols=math.ceil(len(axis.lines) / 12))
