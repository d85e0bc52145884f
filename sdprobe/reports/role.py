"""Tables and figures of a role run: what edits inside the network cost the prediction, and where position comes back."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.table import Table

from sdprobe.metrics.loss_change import CHANGE, DISPLACEMENT, REEMERGENCE, SHARE, WHERE
from sdprobe.reports import style
from sdprobe.reports.curves import heading, layers_figure
from sdprobe.reports.numbers import (
    MISSING,
    add_columns,
    captioned,
    half,
    intervals,
    number,
    over_seeds,
    random_header,
    run_table,
    seeds,
    tested,
)
from sdprobe.reports.report import Drawing, Report, several_layers
from sdprobe.reports.run import Run, of_layer, spread
from sdprobe.tokens.keys import label_of, steps_of, timestep_of, unmitigated, variant

Estimate = tuple[float | None, float | None, float | None]  # a number and the ends of its interval
CEILING, SHUFFLED, RANDOM = "ceiling", "shuffled_position", "random_energy"
UNSEEN = "the loss does not see this layer"
SINGLE = "one token, which is its own mean"
REBUILT = 0.5  # ρ from which position counts as rebuilt
PANELS = 12
ACCURACY = "binned_accuracy"
CAPTION = (
    "Change of the squared error of the prediction, in percent of the error without the edit. ceiling: the grid replaced by "
    "its spatial mean. share: change divided by that of the ceiling. 4×4, 8×8: error averaged over squares of so many cells. "
    "moved: squared distance of the outputs with and without the edit, divided by the squared norm of the latter. shuffled "
    "map: the mean map of positions in a random order. "
    f"Where the interval of the ceiling holds 0, {UNSEEN}, and its edits are not interpreted."
)
LATER = (
    "ρ = (accuracy with the edit − chance) / (accuracy without − chance), of a position head in 8 bins that is fitted anew "
    "with the edit; sides of fewer tokens have a bin per token. 0: position is gone. 1: it is as readable as without the edit. "
    "A dash: a layer before the edit, or one whose accuracy without the edit is not above chance "
    "by its interval. first: the first later layer with ρ ≥ ½."
)


def seen(run: Run, layer: str) -> bool:
    """Whether the loss sees a layer: its ceiling has an interval, which does not hold 0."""
    _, low, high = run.estimate(CEILING, unmitigated(layer), CHANGE)
    return low is not None and high is not None and not low <= 0 <= high


def unseen(run: Run, layer: str) -> str:
    """Why edits of a layer that is not seen are not interpreted."""
    if list(run.meta.get("shapes", {}).get(layer, ()))[1:] == [1, 1]:
        return SINGLE
    return UNSEEN if run.estimate(CEILING, layer, CHANGE)[1] is not None else "too few photographs for an interval"


def edits_of(run: Run, layer: str) -> list[str]:
    """The edits of a layer."""
    return [name for name in run.layers if label_of(name) and unmitigated(name) == layer]


def loss_table(run: Run) -> Table:
    """Per layer its ceiling, the shuffled map and every edit beside random directions of equal energy."""
    weights = seeds(run)
    shown = run_table(f"Loss by edits inside the network, %: {run.heading}, {tested(run)}", run)
    add_columns(shown, "layer", "edit", left=True)
    add_columns(
        shown, "all", "±", "share", "±", *(where.replace("band_4", "4×4").replace("band_8", "8×8") for where in WHERE[1:])
    )
    add_columns(shown, "moved")
    add_columns(shown, "random\nenergy", "±", *[random_header(run)] * bool(weights), *["±"] * over_seeds(run), dim=True)
    for layer in run.bases:
        if not seen(run, layer):
            shown.add_row(
                layer,
                f"ceiling: {unseen(run, layer)}",
                _percent(run.value(CEILING, layer, CHANGE)),
                _half(run, CEILING, layer, CHANGE),
            )
            shown.add_section()
            continue
        rows = [("ceiling", CEILING, layer), ("shuffled map", SHUFFLED, layer)]
        rows += [(_steps(label_of(edit)), "test", edit) for edit in edits_of(run, layer)]
        for row, (text, condition, name) in enumerate(rows):
            beside = [_percent(run.value(RANDOM, name, CHANGE)), _half(run, RANDOM, name, CHANGE)]
            twins = [_percent(run.value("random_weights", name, CHANGE)), _half(run, "random_weights", name, CHANGE)]
            own = condition == "test"
            shown.add_row(
                "" if row else layer, text, *_estimate(run, condition, name, CHANGE), *_estimate(run, condition, name, SHARE),
                *(_percent(run.value(condition, name, CHANGE, where)) for where in WHERE[1:]),
                _percent(run.value(condition, name, DISPLACEMENT)),
                *(beside if own else ["", ""]), *(twins[: bool(weights) + over_seeds(run)] if own else []),
                style="" if own else "dim",
            )  # fmt: skip
        shown.add_section()
    return captioned(shown, run, intervals(run), CAPTION)


def later_table(run: Run) -> Table:
    """Per edit ρ of every later layer, and the first layer where position is rebuilt; without columns where none was read."""
    later = list(run.meta.get("later") or ())
    shown = run_table(f"Position in later layers, ρ: {run.heading}, {tested(run)}" if later else "", run)
    if not later:
        return shown
    add_columns(shown, "edited", "edit", left=True)
    for name in later:
        add_columns(shown, name, "±")
    add_columns(shown, "first", left=True)
    levels = dict.fromkeys(timestep_of(layer) for layer in run.bases)
    for level in levels:
        plain = [run.value("test", variant(name, timestep=level), ACCURACY) for name in later]
        nulls = [run.value("chance", variant(name, timestep=level), ACCURACY) for name in later]
        for text, values in (("accuracy", plain), ("chance", nulls)):
            cells = [cell for value in values for cell in (number(value), "")]
            shown.add_row("no edit" + ("" if level is None else f", t = {level}"), text, *cells, "", style="dim")
    shown.add_section()
    for layer in run.bases:
        rows = [("ceiling", CEILING, layer)]
        for edit in edits_of(run, layer):
            text = _steps(label_of(edit))
            rows += [(text, "test", edit), (f"random energy of {text}", RANDOM, edit)]
        for row, (text, condition, name) in enumerate(rows):
            cells = [
                cell
                for where in later
                for cell in (
                    number(run.value(condition, name, REEMERGENCE, where), 2),
                    half(run, condition, name, REEMERGENCE, where, lambda value: number(value, 2)),
                )
            ]
            first = first_rebuilt(run, condition, name) or MISSING
            shown.add_row("" if row else layer, text, *cells, first, style="" if condition == "test" else "dim")
        shown.add_section()
    return captioned(shown, run, LATER)


def first_rebuilt(run: Run, condition: str, name: str) -> str | None:
    """The first later layer where ρ is at least ½; None where there is none."""
    rho = {layer: run.value(condition, name, REEMERGENCE, layer) for layer in run.meta.get("later") or ()}
    return next((layer for layer, value in rho.items() if value is not None and value >= REBUILT), None)


def over_layers(run: Run) -> Figure:
    """Top: change of the loss with the interval of the ceiling as a band. Bottom: share of the ceiling."""
    figure, axes = layers_figure(run, 2, 6.5, least=8.5)
    axes[0].set_yscale("symlog", linthresh=1)  # a percent
    axes[0].yaxis.set_major_formatter(lambda value, _place: f"{value:g}")
    places = np.arange(len(run.bases))
    ends = np.array([run.estimate(CEILING, layer, CHANGE)[1:] for layer in run.bases], dtype=float).T * 100
    for place, low, high in zip(places, *ends, strict=True):
        axes[0].fill_between([place - 0.4, place + 0.4], low, high, color=style.GREY, alpha=0.35, lw=1.5)
    axes[0].fill_between([], [], color=style.GREY, alpha=0.35, lw=0, label="ceiling, 95 % interval")
    for axis, metric in zip(axes, (CHANGE, SHARE), strict=True):
        for index, label in enumerate(run.labels):
            for condition in ("test", RANDOM):
                found = [_visible(run, condition, variant(layer, label), metric) for layer in run.bases]
                _draw(axis, found, condition, label, index, 100)
        axis.axhline(0, color=style.DARK, lw=0.8)
    axes[0].set_ylabel("change of the loss, %")
    axes[1].set_ylabel("share of the ceiling, %")
    note: dict[str, Any] = {"rotation": 90, "ha": "center", "va": "bottom", "fontsize": style.SMALL, "color": style.GREY}
    for place, layer in enumerate(run.bases):
        if not seen(run, layer):
            axes[1].text(place, 0, "not seen by the loss" if unseen(run, layer) == UNSEEN else "no ceiling", **note)
    style.least_span(axes[1], 10)
    style.legend(figure, *axes[0].get_legend_handles_labels())
    style.name_layers(axes[-1], run.axis)
    heading(figure, "Loss of the prediction by edits inside the network", run, bands=True)
    return figure


def reemergence(run: Run) -> Figure:
    """ρ over later layers, a panel per edited layer."""
    later = list(run.meta["later"])
    layers = spread([layer for layer in run.bases if _followed(run, layer)], PANELS)
    columns = min(2, len(layers))
    rows = -(-len(layers) // columns)
    figure, axes = style.panels(rows, columns, 5.5 * columns, 2.6 * rows + 1.5, sharex=True, sharey=True)
    points = len(later) < style.FEW  # alike in all panels, though fewer layers are left after a deep edit
    for axis, layer in zip(axes.flat, layers, strict=False):
        for index, edit in enumerate(edits_of(run, layer)):
            for condition in ("test", RANDOM):
                _draw(axis, _later(run, condition, edit, later), condition, label_of(edit), index, points=points)
        values, low, high = np.array(_later(run, CEILING, layer, later), dtype=float).T
        style.curve(axis, values, low, high, False, points, label="ceiling", color=style.GREY, ls="--", marker="s")
        axis.axhline(REBUILT, color=style.DARK, ls=":", lw=0.8)
        axis.set_title(f"edited: {of_layer(layer)}", fontsize=style.NORMAL, loc="left")
        axis.grid(axis="y", alpha=0.3)
        style.name_layers(axis, later)
    axes[0, 0].set_ylim(bottom=min(0, axes[0, 0].get_ylim()[0]))  # of all panels
    for axis in axes[:, 0]:
        axis.set_ylabel("ρ")
    for axis in axes.flat[len(layers) :]:
        axis.remove()
    handles = {
        text: handle
        for axis in axes.flat[: len(layers)]
        for handle, text in zip(*axis.get_legend_handles_labels(), strict=True)
    }
    style.legend(figure, list(handles.values()), list(handles))
    heading(figure, "Position in later layers after an edit", run, layers=layers)
    return figure


def _draw(
    axis: Axes, found: Sequence[Estimate], condition: str, label: str, index: int, scale: float = 1, points: bool | None = None
) -> None:  # fmt: skip
    """Draw a curve of an edit, or of its random directions of equal energy."""
    kind, text = style.series(index), _steps(label)
    if condition == RANDOM:
        kind, text = {"color": kind["color"], "ls": ":", "marker": "x", "main": False}, f"{text}, random energy"
    style.curve(axis, *(scale * np.array(found, dtype=float).T), label=text, **{**kind, "points": points})


def _later(run: Run, condition: str, name: str, later: Sequence[str]) -> list[Estimate]:
    return [run.estimate(condition, name, REEMERGENCE, layer) for layer in later]


def _visible(run: Run, condition: str, name: str, metric: str) -> Estimate:
    """A number with its interval; None where the loss does not see the layer."""
    return run.estimate(condition, name, metric) if seen(run, name) else (None, None, None)


def _followed(run: Run, layer: str) -> bool:
    return any(run.value(CEILING, layer, REEMERGENCE, later) is not None for later in run.meta.get("later") or ())


def _estimate(run: Run, condition: str, name: str, metric: str) -> list[str]:
    value = _percent(run.value(condition, name, metric))
    return [f"[bold]{value}[/bold]" if condition == "test" and metric == CHANGE else value, _half(run, condition, name, metric)]


def _steps(label: str) -> str:
    return " → ".join(steps_of(label))


def _percent(value: float | None) -> str:
    return MISSING if value is None else number(100 * value, 2, sign=True)


def _half(run: Run, condition: str, name: str, metric: str) -> str:
    return half(run, condition, name, metric, write=lambda value: number(100 * value, 2))


REPORT = Report(
    tables=(loss_table, later_table),
    drawings={
        "loss_change_over_layers": Drawing(over_layers, several_layers, over_layers=True),
        "reemergence": Drawing(reemergence, lambda run: any(_followed(run, layer) for layer in run.bases)),
    },
)
