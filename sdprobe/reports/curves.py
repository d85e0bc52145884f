"""How every figure of a run draws numbers over layers: the network, its mitigations, intervals, and what these rest on."""

import textwrap
from itertools import cycle
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sdprobe.metrics.intervals import FEWEST
from sdprobe.reports.numbers import over_seeds, seeds, tested, units
from sdprobe.reports.run import Run
from sdprobe.tokens.keys import variant

COLOURS = ("#448361", "#9065b0", "#c14c8a", "#64473a", "#a67c00", "#e03e3e", "#3d9aa8", "#787774")  # of mitigations
MANY = 12  # layers whose names stand upright
CHARACTERS = 13  # of a heading, per inch


def curve(
    axis: Axes, run: Run, what: str, metric: str, group: str = "all", *, mitigation: str = "", scale: float = 1.0,
    band: bool = True, **style: Any,
) -> None:  # fmt: skip
    """A number over the layers behind a mitigation, with a band where it has intervals; nothing where it was not measured."""
    names = [variant(layer, mitigation) for layer in run.bases]
    found = [[run.value(what, name, metric, group, end) for name in names] for end in ("", "ci_low", "ci_high")]
    values, low, high = scale * np.array([[np.nan if value is None else value for value in row] for row in found])
    if np.isnan(values).all():
        return
    [line] = axis.plot(values, **({"ms": 3.5} | style))
    if band and np.isfinite(low).any():
        axis.fill_between(range(len(names)), low, high, color=line.get_color(), alpha=0.18, lw=0)


def mitigated(axis: Axes, run: Run, metric: str, group: str = "all", *, scale: float = 1.0) -> None:
    """A thin curve per mitigation that the run compares."""
    for label, colour in zip(run.labels, cycle(COLOURS)):
        style = {"lw": 1, "ls": "-.", "marker": ".", "color": colour, "label": f"behind {label}"}
        curve(axis, run, "test", metric, group, mitigation=label, scale=scale, band=False, **style)


def name_layers(axis: Axes, run: Run) -> None:
    """The layers along the bottom."""
    many = len(run.bases) > MANY
    axis.set_xticks(range(len(run.bases)), run.bases, rotation=90 if many else 30, ha="center" if many else "right", fontsize=8)


def heading(figure: Figure, title: str, run: Run, bands: bool = False) -> None:
    """What is shown, of what network, on what; with ``bands`` what these are."""
    lines = [f"{title}: {run.setting}", _bands(run)] if bands else [f"{title}: {run.setting}, {tested(run)}"]
    width = int(CHARACTERS * figure.get_size_inches()[0])
    figure.suptitle("\n".join(textwrap.fill(line, width) for line in lines), fontsize=10.5)


def _bands(run: Run) -> str:
    count, name = units(run)
    if count is not None and count < FEWEST:
        return f"no bands: {count} {name} are too few for an interval"
    both = f"; of random weights over {seeds(run)}, too" if over_seeds(run) else ""
    return f"bands: 95 % intervals over {'' if count is None else f'{count} '}{name}{both}"
