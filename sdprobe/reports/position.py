"""The table and figures of a position run: accuracy over layers and over the grid, predicted against true position."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from sdprobe.reports.content import content_figures, content_table
from sdprobe.reports.correspondence import correspondence_figures, correspondence_tables
from sdprobe.reports.curves import curve, heading, mitigated, name_layers
from sdprobe.reports.depth import depth_figures, depth_table
from sdprobe.reports.numbers import by_group, captioned, half, intervals, number, over_seeds, random_weights, run_table, tested
from sdprobe.reports.run import Run
from sdprobe.reports.statistics import norm_maps, statistics_figures, statistics_table
from sdprobe.reports.study import study_figures, study_table, write_differences
from sdprobe.tokens.keys import GROUPS, Key, select
from sdprobe.utilities.io import write_figure

matplotlib.use("Agg")  # no display on a cluster


FIGURES = {
    "statistics": statistics_figures, "depth": depth_figures, "content": content_figures,
    "correspondence": correspondence_figures,
}  # fmt: skip
COLOURS = {"test": "#0b6e99", "random_weights": "#d9730d", "shuffled_labels": "#9b9a97", "chance": "#37352f"}
STYLES = {"test": "-", "random_weights": "-", "shuffled_labels": "--", "chance": ":"}
METRICS = ("axis_accuracy", "cell_accuracy", "binned_accuracy")
CAPTION = (
    "shuffled: axis accuracy of a probe trained on shuffled labels; read a group's accuracy beside it, since even a constant "
    "guess scores one half on corner rows."
)


def draw(run: Run, folder: Path) -> list[Path]:
    """Write the figures that a run has data for as PNG; returns their paths."""
    figures = FIGURES.get(run.kind, position_figures)(run)
    if run.kind == "study":
        figures |= study_figures(run)
        if all(f"{layer}/norm" in run.maps for layer in run.layers):  # an interrupted run has no maps
            figures["norm_maps"] = norm_maps(run)
        write_differences(run, folder / "loos2025.csv")
    paths = []
    for name, figure in figures.items():
        paths.append(folder / f"{name}.png")
        write_figure(paths[-1], figure)
        plt.close(figure)
    return paths


def position_figures(run: Run) -> dict[str, Figure]:
    """Every figure that a position run has data for, by file name."""
    figures: dict[str, Figure] = {}
    if len(run.bases) > 1:
        figures["accuracy_over_layers"] = over_layers(run)
    if run.maps:
        figures["accuracy_over_grid"] = over_grid(run)
        figures["predicted_against_true"] = confusion(run)
    return figures


def over_layers(run: Run) -> Figure:
    """Binned accuracy (8 bins per axis, comparable between layers) above, accuracy at each layer's own grid below."""
    figure, axes = plt.subplots(2, 1, figsize=(max(6, 0.32 * len(run.bases) + 2), 7), sharex=True, layout="constrained")
    for axis, metric, title in (
        (axes[0], "binned_accuracy", "8 bins per axis: layers compare"),
        (axes[1], "axis_accuracy", "own grid: chance differs between layers"),
    ):
        for what, label in labels(run).items():
            marker = "o" if what == "test" else None
            band = what in ("test", "random_weights")
            curve(axis, run, what, metric, band=band, ls=STYLES[what], marker=marker, color=COLOURS[what], label=label)
        mitigated(axis, run, metric)
        axis.set(ylim=(0, 1.02), ylabel="position accuracy")
        axis.set_title(title, loc="left", fontsize=10)
        axis.grid(axis="y", alpha=0.3)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    name_layers(axes[1], run)
    heading(figure, "Linear position probe", run, bands=True)
    return figure


def labels(run: Run) -> dict[str, str]:
    """What is drawn over layers, and what the legend calls it."""
    return {
        "test": "this network", "random_weights": random_weights(run), "shuffled_labels": "shuffled labels", "chance": "chance",
    }  # fmt: skip


def over_grid(run: Run) -> Figure:
    """Axis accuracy at every grid position, one panel per layer, one colour scale from 0 to 1."""
    figure, panels = _panels(run.layers)
    for layer, panel in zip(run.layers, panels, strict=False):
        image = panel.imshow(run.maps[f"{layer}/accuracy"], vmin=0, vmax=1, cmap="viridis")
        value, chance = run.value("test", layer, "axis_accuracy"), run.value("chance", layer, "axis_accuracy")
        panel.set_title(f"{layer}  {value:.2f} (chance {chance:.2f})", fontsize=8 if len(run.layers) > 1 else 11)
        panel.set(xlabel="column", ylabel="row") if len(run.layers) == 1 else panel.set_axis_off()
    figure.colorbar(image, ax=panels, shrink=0.8, aspect=30, label="axis accuracy")
    heading(figure, "Axis accuracy over the grid", run)
    return figure


def confusion(run: Run) -> Figure:
    """How often each true row (column) is predicted as each other one, rows and columns side by side."""
    figure, panels = _panels(run.layers, each=2)
    for i, layer in enumerate(run.layers):
        for j, axis in enumerate(("rows", "cols")):
            table = run.maps[f"{layer}/{axis}"]
            panel = panels[2 * i + j]
            image = panel.imshow(table / table.sum(1, keepdims=True).clip(1), vmin=0, vmax=1, cmap="magma")
            panel.set_title(f"{layer} {axis}", fontsize=8 if len(run.layers) > 1 else 11)
            panel.set(xlabel=f"predicted {axis[:-1]}", ylabel=f"true {axis[:-1]}") if len(
                run.layers
            ) == 1 else panel.set_axis_off()
    figure.colorbar(image, ax=panels, shrink=0.8, aspect=30, label="share of tokens")
    heading(figure, "Predicted against true position", run)
    return figure


def _panels(layers: Sequence[str], each: int = 1) -> tuple[Figure, list[Axes]]:
    count = len(layers) * each
    columns = min(count, 8 if count > 8 else max(each, math.ceil(math.sqrt(count))))
    lines = math.ceil(count / columns)
    side = 4.2 if count <= 2 else 1.9
    figure, axes = plt.subplots(
        lines, columns, figsize=(side * columns + 1.2, (side + 0.25) * lines + 0.6), squeeze=False, layout="constrained"
    )
    panels = list(axes.flat)
    for panel in panels[count:]:
        panel.remove()
    return figure, panels[:count]


def position_table(run: Run) -> Table:
    """Rows per layer: three accuracies, and axis accuracy of the shuffled-label control for every token group."""
    shown = run_table(f"Linear position probe: {run.setting}, {tested(run)}", run)
    for header in ("layer", "accuracy", "all", "±", *(group.replace("_", "\n") for group in GROUPS)):
        shown.add_column(header, no_wrap=True, justify="left" if header in ("layer", "accuracy") else "right")
    ends = ["±"] * over_seeds(run)
    for header in ("chance", random_weights(run).replace(" ", "\n", 2), *ends):
        shown.add_column(header, no_wrap=True, justify="right", style="dim")
    for layer in run.layers:
        for metric in METRICS:
            groups = by_group(run, "test", layer, metric)
            nulls = [number(run.value(null, layer, metric)) for null in ("chance", "random_weights")]
            nulls += [half(run, "random_weights", layer, metric) for _ in ends]
            name = layer if metric == METRICS[0] else ""
            own = half(run, "test", layer, metric)
            shown.add_row(name, metric.removesuffix("_accuracy"), groups[0], own, *groups[1:], *nulls)
        shuffled = by_group(run, "shuffled_labels", layer, METRICS[0])
        shown.add_row("", "shuffled", shuffled[0], "", *shuffled[1:], style="dim")
        if run.value("test", layer, "r2") is not None:
            shown.add_row("", "R²", *by_group(run, "test", layer, "r2", ["all"]), half(run, "test", layer, "r2"))
        shown.add_section()
    return captioned(shown, run, intervals(run), CAPTION)


def show(run: Run, console: Console) -> None:
    """Print the table; where output is no terminal it is wide enough for every cell."""
    if not console.is_terminal:
        console.width = max(console.width, 110)
    if run.kind == "correspondence":
        for each in correspondence_tables(run):
            console.print(each)
        return
    tables = {"statistics": statistics_table, "depth": depth_table, "content": content_table}
    console.print(tables.get(run.kind, position_table)(run))
    if run.kind == "study":
        console.print(study_table(run))


def rows(run: Run) -> tuple[list[str], list[list[Any]]]:
    """Columns and rows of the same table with plain numbers: one row per layer, for wandb."""
    keys = sorted({(key.condition, key.quantity) for key in map(Key.parse, select(run.metrics, statistic=""))})
    columns = ["layer", *("/".join(key) for key in keys)]
    return columns, [[layer, *(run.metrics.get(f"{what}/{layer}/{rest}") for what, rest in keys)] for layer in run.layers]
