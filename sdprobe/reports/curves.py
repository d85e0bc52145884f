"""Drawing functions that figures share: curves over layers with intervals and baselines, and maps over the token grid."""

import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sdprobe.metrics.intervals import FEWEST
from sdprobe.reports.numbers import over_seeds, random_weights, seeds, tested, units
from sdprobe.reports.run import Run
from sdprobe.tokens.keys import variant
from sdprobe.utilities.io import write_figure

matplotlib.use("Agg")  # no display on a cluster
matplotlib.rcParams["text.parse_math"] = False  # names of layers and models are text: a $ in them starts no formula

BLUE, ORANGE, GREEN, RED, GREY, DARK = "#0b6e99", "#d9730d", "#448361", "#e03e3e", "#9b9a97", "#37352f"
COLOURS = (GREEN, "#9065b0", "#c14c8a", "#64473a", "#a67c00", RED, "#3d9aa8", "#787774")  # one per mitigation
# line style and colour of a network and its baselines
STYLES = {
    "test": ("-", BLUE), "random_weights": ("-", ORANGE), "shuffled_labels": ("--", GREY), "chance": (":", DARK),
    "position_only": ("--", GREEN), "constant": (":", DARK),
}  # fmt: skip
LABELS = {
    "test": "this network", "shuffled_labels": "shuffled labels", "chance": "chance", "position_only": "position only",
    "constant": "constant",
}  # fmt: skip
MANY = 12  # more layer names than this are drawn vertically
COLUMNS = 8  # panels in a row, at most
CHARACTERS = 12  # of a title, per inch


def write_figures(figures: Mapping[str, Figure], folder: Path) -> list[Path]:
    """Write figures as PNG by name, and close them; returns their paths."""
    for name, figure in figures.items():
        write_figure(folder / f"{name}.png", figure)
        plt.close(figure)
    return [folder / f"{name}.png" for name in figures]


def curve(
    axis: Axes, run: Run, condition: str, metric: str, group: str = "all", *, mitigation: str = "", scale: float = 1.0,
    band: bool = True, **style: Any,
) -> None:  # fmt: skip
    """Draw a number over layers, with a band if it has intervals; draw nothing if it was not measured."""
    found = [run.estimate(condition, variant(layer, mitigation), metric, group) for layer in run.bases]
    values, low, high = scale * np.array(found, dtype=float).T  # None becomes NaN
    if np.isnan(values).all():
        return
    [line] = axis.plot(values, **({"ms": 3.5} | style))
    if band and np.isfinite(low).any():
        axis.fill_between(range(len(found)), low, high, color=line.get_color(), alpha=0.18, lw=0)


def mitigated(axis: Axes, run: Run, metric: str, group: str = "all", *, scale: float = 1.0) -> None:
    """Draw a thin curve per mitigation that the run compares."""
    for label, colour in zip(run.labels, cycle(COLOURS)):
        style = {"lw": 1, "ls": "-.", "marker": ".", "color": colour, "label": f"with {label}"}
        curve(axis, run, "test", metric, group, mitigation=label, scale=scale, band=False, **style)


def layers_figure(run: Run, panels: int, height: float) -> tuple[Figure, Sequence[Axes]]:
    """Panels below each other; the width grows with the number of layers."""
    width = max(6, 0.32 * len(run.bases) + 2)
    figure, axes = plt.subplots(panels, 1, figsize=(width, height), sharex=True, squeeze=False, layout="constrained")
    return figure, list(axes[:, 0])


def beside_baselines(
    run: Run,
    title: str,
    metrics: Mapping[str, str],
    baselines: Sequence[str],
    height: float,
    labels: Mapping[str, str] = LABELS,
    **settings: Any,
) -> Figure:
    """A panel per metric and its title: the network, mitigations and baselines; ``settings`` are those of the axes."""
    figure, axes = layers_figure(run, len(metrics), height)
    for axis, (metric, text) in zip(axes, metrics.items(), strict=True):
        for condition in ("test", *baselines):
            style, colour = STYLES[condition]
            label = random_weights(run) if condition == "random_weights" else labels[condition]
            marker, band = "o" if condition == "test" else None, condition in ("test", "random_weights")
            curve(axis, run, condition, metric, band=band, ls=style, marker=marker, color=colour, label=label)
        mitigated(axis, run, metric)
        axis.set(**settings)
        axis.set_title(text, loc="left", fontsize=10)
        axis.grid(axis="y", alpha=0.3)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    name_layers(axes[-1], run)
    heading(figure, title, run, bands=True)
    return figure


@dataclass(frozen=True)
class Grid:
    """A panel of :func:`grids`: a number at every grid position of a layer; without axis labels the axes are hidden."""

    title: str
    table: np.ndarray
    x: str = ""
    y: str = ""


def grids(run: Run, title: str, panels: Sequence[Grid], bar: str, beside: int = 1, **style: Any) -> Figure:
    """A panel per layer (or ``beside`` panels per layer) on one colour scale; ``bar`` labels the scale.

    Axes are drawn only if there is one layer.
    """
    single = len(panels) == beside
    columns = min(len(panels), COLUMNS if len(panels) > COLUMNS else max(beside, math.ceil(math.sqrt(len(panels)))))
    lines = math.ceil(len(panels) / columns)
    side = 4.2 if len(panels) <= 2 else 1.9
    size = (side * columns + 1.2, (side + 0.25) * lines + 0.6)
    figure, axes = plt.subplots(lines, columns, figsize=size, squeeze=False, layout="constrained")
    used, spare = axes.flat[: len(panels)], axes.flat[len(panels) :]
    for axis, panel in zip(used, panels, strict=True):
        image = axis.imshow(panel.table, **style)
        axis.set_title(panel.title, fontsize=11 if single else 8)
        axis.set(xlabel=panel.x, ylabel=panel.y) if single and panel.x else axis.set_axis_off()
    for axis in spare:
        axis.remove()
    figure.colorbar(image, ax=list(used), shrink=0.8, aspect=30, label=bar)
    heading(figure, title, run)
    return figure


def name_layers(axis: Axes, run: Run) -> None:
    """Label the horizontal axis with the layers."""
    many = len(run.bases) > MANY
    axis.set_xticks(range(len(run.bases)), run.bases, rotation=90 if many else 30, ha="center" if many else "right", fontsize=8)


def heading(figure: Figure, title: str, run: Run, bands: bool = False) -> None:
    """Figure title: quantity, network, test images; with ``bands`` the meaning of the bands."""
    lines = [f"{title}: {run.setting}", _bands(run)] if bands else [f"{title}: {run.setting}, {tested(run)}"]
    width = int(CHARACTERS * figure.get_size_inches()[0])
    figure.suptitle("\n".join(textwrap.fill(line, width) for line in lines), fontsize=10.5)


def _bands(run: Run) -> str:
    count, name = units(run)
    if count is not None and count < FEWEST:
        return f"no bands: {count} {name} are too few for intervals"
    both = f"; for random weights also over {seeds(run)}" if over_seeds(run) else ""
    return f"bands: 95 % intervals over {'' if count is None else f'{count} '}{name}{both}"
