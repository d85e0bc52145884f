"""``experiment=credibility_validation``: does credibility of a layer predict how much position harms matching there?"""

import math
from collections.abc import Sequence
from dataclasses import fields
from itertools import product
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.table import Table

from sdprobe.reports import style
from sdprobe.reports.mitigated_layers import LEAST_PCK
from sdprobe.reports.numbers import MISSING, bare_table, six_digits, with_ends
from sdprobe.reports.run import Run
from sdprobe.reports.validation import (
    HARMS,
    RISKS,
    Correlation,
    CredibilityCell,
    Validation,
    credibility_cells,
    validation,
)
from sdprobe.utilities.io import write_rows

CAPTION = (
    f"point: one layer at one timestep; only points with a raw PCK@0.10 of at least {LEAST_PCK:.0%} count. ρ: Spearman "
    "correlation within a model, averaged over models. 95 % intervals resample models, and within them layers with all their "
    "timesteps; with one model they cover its layers only. baseline: a regression on resolution, depth and raw PCK, fitted on "
    "other models (with one model: on other layers). Predictive: between 1 − credibility and the gain on displaced pairs, "
    "ρ ≥ .5 with an interval above .2, and an interval of the difference from the baseline above 0, with at least two models. "
    "Descriptive: prediction was not shown, which does not prove that it is impossible."
)
Found = dict[tuple[str, str], Validation]


def credibility_tables(runs: Sequence[Run]) -> list[Table]:
    """One table: every risk against both harms, and the verdict; empty if no model has enough points."""
    cells, found = _validated(runs)
    return [_table(cells, found)] if found else []


def write(runs: Sequence[Run], folder: Path, form: str = "png") -> list[Path]:
    """Write ``credibility_validation.csv`` (points), ``credibility_correlations.csv`` and a figure; nothing without a table."""
    cells, found = _validated(runs)
    if not found:
        return []
    paths = [folder / "credibility_validation.csv", folder / "credibility_correlations.csv"]
    _write_cells(cells, paths[0])
    _write_correlations(found, paths[1])
    return paths + style.write_figures({"credibility_validation": validation_figure(cells, found)}, folder, form)


def validation_figure(cells: Sequence[CredibilityCell], found: Found) -> Figure:
    """Harm over risk: a row per harm, a column per risk; points that do not count are hollow."""
    lines, columns = len(HARMS), len(RISKS)
    size = (3.3 * columns, 3.5 * lines + 0.8)
    figure, axes = style.panels(lines, columns, *size, sharey="row")
    for line, harm in enumerate(HARMS):
        for column, risk in enumerate(RISKS):
            axis = axes[line, column]
            _scatter(axis, cells, risk, harm)
            axis.set_title(f"ρ {_with_interval(found[risk, harm].risk)}", fontsize=9)
            axis.set(xlabel=RISKS[risk], ylabel=HARMS[harm] if column == 0 else "")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    style.legend(figure, handles, labels)
    each = found["credibility", "gain"]
    over = f"{each.models} model{'' if each.models == 1 else 's'}, {each.risk.cells} points"
    style.title(figure, f"{_verdict(found)}; {over}; hollow: raw PCK below {LEAST_PCK:.0%}")
    return figure


def _validated(runs: Sequence[Run]) -> tuple[list[CredibilityCell], Found]:
    """(all points, every validation); no validation if no model has enough points with a gain."""
    cells = credibility_cells(runs)
    found = {(risk, harm): validation(cells, risk, harm) for risk, harm in product(RISKS, HARMS)}
    return cells, found if found["credibility", "gain"].models else {}


def _table(cells: Sequence[CredibilityCell], found: Found) -> Table:
    counted, models = sum(cell.counts for cell in cells), found["credibility", "gain"].models
    every = len({cell.model for cell in cells})
    table = bare_table(
        f"{_verdict(found)}; {counted} of {len(cells)} points count, {models} of {every} models have enough",
        CAPTION,
        spaced=True,
    )
    for header in ("harm", "risk"):
        table.add_column(header)
    for header in ("points", "ρ", "baseline ρ", "difference"):
        table.add_column(header, justify="right")
    for (risk, harm), each in found.items():
        bold = "bold" if (risk, harm) == ("credibility", "gain") else None
        texts = [_with_interval(part) for part in (each.risk, each.baseline, each.better)]
        table.add_row(HARMS[harm].replace("\n", " "), RISKS[risk], str(each.risk.cells), *texts, style=bold)
    return table


def _verdict(found: Found) -> str:
    """The verdict as part of a sentence."""
    verdict = found["credibility", "gain"].verdict
    return f"Credibility is {verdict}{'' if verdict == 'predictive' else ' (not shown to predict harm by position)'}"


def _scatter(axis: Axes, cells: Sequence[CredibilityCell], risk: str, harm: str) -> None:
    models, times = list(dict.fromkeys(c.model for c in cells)), sorted({c.timestep for c in cells})
    for (m, model), (t, timestep) in product(enumerate(models), enumerate(times)):
        shown = [c for c in cells if (c.model, c.timestep) == (model, timestep) and c.has(risk, harm)]
        colour, marker = style.COLOURS[m % len(style.COLOURS)], style.MARKERS[t % len(style.MARKERS)]
        for counts, face in ((True, colour), (False, "none")):
            x, y = ([getattr(c, name) for c in shown if c.counts == counts] for name in (risk, harm))
            label = f"{model}, timestep {timestep}" if counts else None
            axis.plot(x, y, marker, color=colour, mfc=face, ms=5, alpha=0.8 if counts else 0.4, label=label)
    axis.axhline(0, color=style.DARK, lw=0.6)
    style.least_span(axis)
    axis.grid(alpha=0.25)


def _write_cells(cells: Sequence[CredibilityCell], path: Path) -> None:
    names = [field.name for field in fields(CredibilityCell)]
    header = ["risk" if name == "credibility" else name for name in names] + ["counts"]
    write_rows(path, [header, *([six_digits(getattr(cell, name)) for name in names] + [int(cell.counts)] for cell in cells)])


def _write_correlations(found: Found, path: Path) -> None:
    ends = [f"{name}{end}" for name in ("rho", "baseline", "difference") for end in ("", "_ci_low", "_ci_high")]
    rows: list[list[object]] = [["risk", "harm", "models", "cells", *ends, "verdict"]]
    for (risk, harm), each in found.items():
        numbers = [six_digits(x) for c in (each.risk, each.baseline, each.better) for x in (c.rho, c.ci_low, c.ci_high)]
        rows.append([risk, harm, each.models, each.risk.cells, *numbers, each.verdict])
    write_rows(path, rows)


def _with_interval(found: Correlation) -> str:
    return MISSING if math.isnan(found.rho) else with_ends(found.rho, found.ci_low, found.ci_high)
