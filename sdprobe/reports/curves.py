"""Figures that probes share: numbers over layers beside their baselines, and maps over the token grid."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sdprobe.metrics.intervals import FEWEST
from sdprobe.reports import style
from sdprobe.reports.numbers import over_seeds, random_weights, seeds, tested, units, unmeasured
from sdprobe.reports.run import Run
from sdprobe.reports.style import BLUE, DARK, GREEN, GREY, ORANGE
from sdprobe.tokens.keys import label_of, variant

# line, marker and colour of a network and its baselines
STYLES: dict[str, dict[str, Any]] = {
    "test": {"ls": "-", "marker": "o", "color": BLUE}, "random_weights": {"ls": "-", "marker": "s", "color": ORANGE},
    "shuffled_labels": {"ls": "--", "marker": "v", "color": GREY, "main": False}, "chance": {"ls": ":", "color": DARK},
    "position_only": {"ls": "-.", "marker": "^", "color": GREEN, "main": False},
    "constant": {"ls": ":", "color": DARK, "main": False},
}  # fmt: skip
LABELS = {
    "test": "this network", "shuffled_labels": "shuffled labels", "chance": "chance", "position_only": "position only",
    "constant": "constant",
}  # fmt: skip
COLUMNS = 8  # panels in a row, at most
MITIGATED = 2  # the series of the first mitigation; the network and its random weights have those before it


def curve(
    axis: Axes, run: Run, condition: str, metric: str, group: str = "all", *, mitigation: str = "", scale: float = 1.0,
    **kind: Any,
) -> None:  # fmt: skip
    """Draw a number over layers with its intervals; nothing if it was not measured."""
    found = [run.estimate(condition, variant(layer, mitigation), metric, group) for layer in run.bases]
    style.curve(axis, *(scale * np.array(found, dtype=float).reshape(-1, 3).T), **kind)  # None becomes NaN


def mitigated(axis: Axes, run: Run, metric: str, group: str = "all", *, scale: float = 1.0) -> None:
    """Draw a curve per mitigation that the run compares."""
    for number, label in enumerate(run.labels, start=MITIGATED):
        curve(axis, run, "test", metric, group, mitigation=label, scale=scale, label=f"with {label}", **style.series(number))


def own(run: Run, name: str = LABELS["test"]) -> str:
    """Label of the numbers of the measured network; it says if they are those without mitigation."""
    return f"{name}, without mitigation" if run.labels else name


def layers_figure(run: Run, panels: int, height: float, least: float = 6.5, beside: float = 2.0) -> tuple[Figure, list[Axes]]:
    """Panels below each other; the width grows with the number of layers, the height with their longest name."""
    width = style.breadth(run.axis, least, beside)
    names = max(style.measured(name, style.SMALL) for name in run.axis)
    figure, axes = style.panels(panels, 1, width, height + names, sharex=True)
    for axis in axes[:, 0]:
        axis.grid(axis="y", alpha=0.3)
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
            texts = {"test": own(run), "random_weights": random_weights(run)}
            curve(axis, run, condition, metric, label=texts.get(condition) or labels[condition], **STYLES[condition])
        mitigated(axis, run, metric)
        axis.set(**settings)
        axis.set_title(text, loc="left", fontsize=style.NORMAL)
    style.legend(figure, *axes[0].get_legend_handles_labels())
    style.name_layers(axes[-1], run.axis)
    heading(figure, title, run, bands=True)
    return figure


@dataclass(frozen=True)
class Grid:
    """A panel of :func:`grids`: a number at every grid position of a layer; without axis labels the axes are hidden."""

    title: str
    table: np.ndarray
    x: str = ""
    y: str = ""


def grids(
    run: Run, title: str, panels: Sequence[Grid], bar: str, beside: int = 1, cells: bool = False, **kind: Any
) -> Figure:  # fmt: skip
    """A panel per layer (or ``beside`` panels per layer) on one colour scale; ``bar`` labels the scale.

    A layer and its variants with mitigations are in one row. Axes are drawn only if there is one layer. ``cells``: whether
    numbers are written into the cells, where they fit.
    """
    single = len(panels) == beside
    row = beside * (1 + len(run.labels))
    columns = row if run.labels and row <= COLUMNS and not single else 0
    figure, axes = style.sheet([panel.title for panel in panels], columns, widest=4.2 if len(panels) < 3 else 2.6)
    for axis, panel in zip(axes, panels, strict=True):
        image = axis.imshow(panel.table, **kind)
        axis.set(xlabel=panel.x, ylabel=panel.y) if single and panel.x else axis.set_axis_off()
    figure.colorbar(image, ax=axes, shrink=0.8, aspect=30, label=bar)
    heading(figure, title, run, layers=run.pictured)
    if cells:
        style.write_cells(axes)
    return figure


def heading(figure: Figure, title: str, run: Run, bands: bool = False, layers: Sequence[str] = ()) -> None:
    """Figure title: quantity, network, test images; the meaning of the ``bands``; whether these ``layers`` are only a part."""
    setting = (run.heading if bands else f"{run.heading}, {tested(run)}") + ("" if run.meta["complete"] else ", INCOMPLETE")
    shown, every = len([layer for layer in layers if not label_of(layer)]), len(run.bases)
    part = f"{shown} of {every} layers; all: python -m sdprobe.reports RUN --layers all" if 0 < shown < every else ""
    style.title(figure, title, setting, _bands(run) if bands else "", part, unmeasured(run).rstrip(".") if run.chain else "")


def _bands(run: Run) -> str:
    count, name = units(run)
    kind = "bands" if len(run.bases) >= style.FEW else "bars"
    if count is not None and count < FEWEST:
        return f"no {kind}: {count} {name} are too few for intervals"
    both = f"; for random weights also over {seeds(run)}" if over_seeds(run) else ""
    return f"{kind}: 95 % intervals over {'' if count is None else f'{count} '}{name}{both}"
