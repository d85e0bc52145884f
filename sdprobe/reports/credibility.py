"""``experiment=credibility_validation``: does a layer's credibility predict what position costs there, or only describe it?"""

import math
from collections.abc import Sequence
from dataclasses import fields
from itertools import product
from pathlib import Path

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.table import Table

from sdprobe.reports.curves import BLUE, DARK, GREEN, ORANGE, RED, write_figures
from sdprobe.reports.mitigated_layers import LEAST_PCK
from sdprobe.reports.numbers import MISSING, bare_table, six_digits, with_ends
from sdprobe.reports.run import Run
from sdprobe.reports.validation import (
    FEWEST_CELLS,
    HARMS,
    RISKS,
    Correlation,
    CredibilityCell,
    Validation,
    credibility_cells,
    validation,
)
from sdprobe.utilities.io import write_rows

COLOURS = (BLUE, ORANGE, GREEN, "#ad1a72", "#6940a5", RED)
MARKERS = "os^Dv<>P"
CAPTION = (
    f"Cells with a raw PCK@0.10 of {LEAST_PCK:.0%} at least. ρ: Spearman, mean over models of the ρ inside each; 95 % "
    "intervals: models drawn with replacement, and layers with all their timesteps within them; of one model they cover its "
    "layers only. baseline: resolution, depth "
    "and raw PCK together, regressed on the ranks of other models (with one model: of other layers). Predictive: the gain on "
    "displaced pairs goes with 1 − credibility at ρ ≥ .5, the interval above .2, and better than the baseline, the interval of "
    "the difference above 0, over at least two models. Descriptive: not shown to predict, which does not show that it cannot."
)
Found = dict[tuple[str, str], Validation]


def credibility_tables(runs: Sequence[Run]) -> list[Table]:
    """One table: every risk against both harms, and the verdict; empty where fewer cells than a model needs have both runs."""
    cells = _enough(runs)
    return [_table(cells, _validated(cells))] if cells else []


def write(runs: Sequence[Run], folder: Path) -> list[Path]:
    """``credibility_validation.csv`` of cells, ``credibility_correlations.csv``, ``credibility_validation.png``, or nothing."""
    cells = _enough(runs)
    if not cells:
        return []
    found = _validated(cells)
    paths = [folder / "credibility_validation.csv", folder / "credibility_correlations.csv"]
    _write_cells(cells, paths[0])
    _write_correlations(found, paths[1])
    return paths + write_figures({"credibility_validation": validation_figure(cells, found)}, folder)


def _enough(runs: Sequence[Run]) -> list[CredibilityCell]:
    """The cells, if there are as many as one model needs."""
    cells = credibility_cells(runs)
    return cells if len(cells) >= FEWEST_CELLS else []


def validation_figure(cells: Sequence[CredibilityCell], found: Found) -> Figure:
    """Harm over risk: a row per harm, a column per risk; cells that do not count are hollow."""
    lines, columns = len(HARMS), len(RISKS)
    size = (3.3 * columns, 3.5 * lines + 0.8)
    figure, axes = plt.subplots(lines, columns, figsize=size, squeeze=False, sharey="row", layout="constrained")
    for line, harm in enumerate(HARMS):
        for column, risk in enumerate(RISKS):
            axis = axes[line, column]
            _scatter(axis, cells, risk, harm)
            axis.set_title(f"ρ {_with_interval(found[risk, harm].risk)}", fontsize=9)
            axis.set(xlabel=RISKS[risk], ylabel=HARMS[harm] if column == 0 else "")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False, fontsize=8)
    each = found["credibility", "gain"]
    over = f"{each.models} model{'' if each.models == 1 else 's'}, {each.risk.cells} cells"
    figure.suptitle(f"{_verdict(found)} ({over}); hollow: raw PCK below {LEAST_PCK:.0%}", fontsize=11)
    return figure


def _validated(cells: Sequence[CredibilityCell]) -> Found:
    return {(risk, harm): validation(cells, risk, harm) for risk, harm in product(RISKS, HARMS)}


def _table(cells: Sequence[CredibilityCell], found: Found) -> Table:
    counted, models = sum(cell.counts for cell in cells), found["credibility", "gain"].models
    every = len({cell.model for cell in cells})
    table = bare_table(
        f"{_verdict(found)}: {counted} of {len(cells)} cells count, {models} of {every} models have enough of them",
        CAPTION,
        spaced=True,
    )
    for header in ("harm", "risk"):
        table.add_column(header)
    for header in ("cells", "ρ", "baseline's ρ", "difference"):
        table.add_column(header, justify="right")
    for (risk, harm), each in found.items():
        bold = "bold" if (risk, harm) == ("credibility", "gain") else None
        texts = [_with_interval(part) for part in (each.risk, each.baseline, each.better)]
        table.add_row(HARMS[harm].replace("\n", " "), RISKS[risk], str(each.risk.cells), *texts, style=bold)
    return table


def _verdict(found: Found) -> str:
    """The verdict in words that claim no more."""
    verdict = found["credibility", "gain"].verdict
    return f"Credibility is {verdict}{'' if verdict == 'predictive' else ', not shown to predict what position costs'}"


def _scatter(axis: Axes, cells: Sequence[CredibilityCell], risk: str, harm: str) -> None:
    models, times = list(dict.fromkeys(c.model for c in cells)), sorted({c.timestep for c in cells})
    for (m, model), (t, timestep) in product(enumerate(models), enumerate(times)):
        shown = [c for c in cells if (c.model, c.timestep) == (model, timestep) and c.has(risk, harm)]
        colour, marker = COLOURS[m % len(COLOURS)], MARKERS[t % len(MARKERS)]
        for counts, face in ((True, colour), (False, "none")):
            x, y = ([getattr(c, name) for c in shown if c.counts == counts] for name in (risk, harm))
            label = f"{model}, timestep {timestep}" if counts else None
            axis.plot(x, y, marker, color=colour, mfc=face, ms=5, alpha=0.8 if counts else 0.4, label=label)
    axis.axhline(0, color=DARK, lw=0.6)
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
