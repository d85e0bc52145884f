"""Table and figures of an equivariance run."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.table import Table

from sdprobe.metrics.equivariance import margin_name, margins
from sdprobe.reports import style
from sdprobe.reports.curves import beside_baselines, heading, own
from sdprobe.reports.numbers import (
    add_columns,
    captioned,
    energy_cells,
    energy_header,
    half,
    intervals,
    number,
    over_seeds,
    random_cells,
    random_header,
    random_weights,
    run_table,
    seeds,
    tested,
)
from sdprobe.reports.report import Drawing, Report, several_layers
from sdprobe.reports.run import Run, of_layer

KIND, PSNR = "equivariance", "equivariance_psnr"
CAPTION = (
    "all: share of a token's squared distance from the mean token that moves with the picture, over all tokens that two "
    "windows show. 1: exact. -1: expected where the windows have nothing in common. ≥ m: of those at least m tokens from every "
    "border of both windows. PSNR: 10 log10(range²/mse) in dB over all tokens; a dash where they are equal. r_pos: share "
    "of variance that position explains. conv_out is the network's prediction."
)
GAINED = "gain: with the mitigation minus without it, ± half-width of the paired interval."


def equivariance_table(run: Run) -> Table:
    """A row per layer: equivariance by distance to the border, PSNR, position variance, random weights."""
    far = _margins(run)[1:]
    compared = any(run.value("gain_over_none", layer, KIND) is not None for layer in run.layers)
    shown = run_table(f"Shift equivariance: {run.heading}, {tested(run)}", run)
    add_columns(shown, "layer", left=True)
    add_columns(shown, "all", "±", *(f"≥ {margin}" for margin in far), "PSNR", "r_pos", *["gain", "±"] * compared)
    add_columns(shown, *energy_header(run), random_header(run), *["±"] * over_seeds(run), dim=True)
    for layer in run.layers:
        gain = [number(run.value("gain_over_none", layer, KIND), sign=True), half(run, "gain_over_none", layer, KIND)]
        shown.add_row(
            layer, f"[bold]{number(run.value('test', layer, KIND))}[/bold]", half(run, "test", layer, KIND),
            *(number(run.value("test", layer, KIND, margin_name(margin))) for margin in far),
            number(run.value("test", layer, PSNR), 1), number(run.value("test", layer, "r_pos")), *gain * compared,
            *energy_cells(run, layer, KIND), *random_cells(run, layer, KIND),
        )  # fmt: skip
    return captioned(shown, run, CAPTION, intervals(run), GAINED * compared)


def by_margin(run: Run) -> Figure:
    """Equivariance over the distance to the border, a line per layer: this network, and random weights beside it."""
    places = _margins(run)
    panels = {"test": own(run)} | ({"random_weights": random_weights(run)} if seeds(run) else {})
    figure, axes = style.panels(1, len(panels), 3.2 * len(panels) + 2.4, 4.4, sharey=True)
    for axis, (condition, text) in zip(axes[0], panels.items(), strict=True):
        for index, layer in enumerate(run.pictured):
            _line(axis, run, condition, layer, places, label=of_layer(layer), **style.series(index))
        axis.set_xticks(range(len(places)), [str(place) for place in places])
        axis.set(xlabel="tokens to the nearest border, at least")
        axis.set_title(text, loc="left", fontsize=style.NORMAL)
        axis.grid(axis="y", alpha=0.3)
    axes[0, 0].set(ylabel="shift equivariance (share)")
    style.least_span(axes[0, 0], high=1.02)
    style.beside(axes[0, -1])
    heading(figure, "Shift equivariance by distance to the border", run, bands=True, layers=run.pictured)
    return figure


def over_layers(run: Run) -> Figure:
    """Equivariance and position variance of every layer, compared with mitigations and random weights."""
    titles = {KIND: "shift equivariance, all tokens that two windows show", "r_pos": "position variance r_pos"}
    return beside_baselines(run, "Shift equivariance and position variance", titles, ("random_weights",), 6.2, ylabel="share")


def _line(axis: Axes, run: Run, condition: str, layer: str, places: list[int], **kind: object) -> None:
    """A layer's equivariance over distances, which are ordered, so a line joins few of them, too."""
    found = [run.estimate(condition, layer, KIND, margin_name(place)) for place in places]
    values, low, high = np.array(found, dtype=float).T  # None becomes NaN
    if np.isfinite(values).any():
        [line] = axis.plot(range(len(places)), values, ms=3.5, lw=1.4, **kind)  # type: ignore[arg-type]
        axis.fill_between(range(len(places)), low, high, color=line.get_color(), alpha=0.12, lw=0)


def _margins(run: Run) -> list[int]:
    """Distances to the border that any layer has."""
    side = max(max(shape[1:]) for shape in run.meta["shapes"].values())
    names = {key.rpartition("/")[2] for key in run.metrics if f"/{KIND}/" in key}
    return [margin for margin in margins(side, 0) if margin_name(margin) in names] or [0]


def _measured(run: Run) -> bool:
    return any(run.value("test", layer, KIND) is not None for layer in run.layers)


REPORT = Report(
    tables=(equivariance_table,),
    drawings={
        "equivariance_by_margin": Drawing(by_margin, _measured, over_layers=True),
        "equivariance_over_layers": Drawing(over_layers, several_layers, over_layers=True),
    },
)
