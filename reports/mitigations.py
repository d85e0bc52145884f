"""``experiment=mitigations``: what each mitigation removes from a layer, what it costs, and whether it works."""

import math
import re
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from matplotlib import pyplot as plt
from rich import box
from rich.table import Table

from metrics.intervals import FEWEST
from reports.mitigated_layers import (
    CONTENT,
    LEAST_PCK,
    METRICS,
    MORE,
    NONE,
    NOTHING,
    PCK,
    POSITION,
    Cell,
    MitigatedLayer,
    Row,
    counterpart,
    mitigated_layers,
    verdict,
)
from reports.pareto import pareto_figure
from reports.run import Run
from tokens.io import write_figure, write_file, write_rows

COST = ("passes", "fit\nimages", "rank")
WIDTH = 188  # of a table with every column
CAPTION = (
    "Each value, and behind it its paired difference from none. *: p < .05, adjusted within the metric's family (all layers "
    "and mitigations, without controls) by joint sign flips. position: accuracy in 8 bins of a fresh probe. PCK@0.10, all and "
    "by displacement between source and target. passes: per image, in passes of the plain image. works: position accuracy "
    "falls significantly, and significantly below that of the random control of equal rank (of the largest, for what has no "
    f"rank), and the interval of PCK's difference lies above −{NOTHING}, from a PCK of {LEAST_PCK:.0%} on. Where PCK falls "
    "significantly it does not work; else it is not decided."
)
KINDS = {"position": POSITION, "content": CONTENT, "depth": "rmse/all", "PCK": PCK, "V_pos, risks and norms": "r_pos/all"}


def mitigation_tables(runs: Sequence[Run]) -> list[Table]:
    """One table per layer: none and every mitigation by what was measured; empty where no run compares mitigations."""
    return [_table(layer) for layer in mitigated_layers(runs)]


def write(runs: Sequence[Run], folder: Path) -> list[Path]:
    """``mitigations.csv`` with all numbers, ``mitigations.md``, ``mitigations_pareto.png``; nothing without a comparison."""
    layers = mitigated_layers(runs)
    if not layers:
        return []
    paths = [folder / "mitigations.csv", folder / "mitigations.md"]
    _write_csv(layers, paths[0])
    write_file(paths[1], "\n".join(_markdown(layer) for layer in layers) + f"\n{CAPTION}\n")
    if (figure := pareto_figure(layers)) is not None:
        paths.append(folder / "mitigations_pareto.png")
        write_figure(paths[-1], figure)
        plt.close(figure)
    return paths


def _table(layer: MitigatedLayer) -> Table:
    table = Table(
        title=_title(layer), caption=f"{CAPTION} {families(layer)}", title_justify="left", caption_justify="left",
        box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False,
    )  # fmt: skip
    table.add_column("mitigation", no_wrap=True)
    metrics = _measured(layer)
    for heading in (*(METRICS[key] for key in metrics), *COST):
        table.add_column(heading, no_wrap=True, justify="right")
    table.add_column("works", no_wrap=True)
    for row in layer.rows:
        cells = [_cell(row.cells.get(key)) for key in metrics]
        said = verdict(layer, row)
        table.add_row(row.label, *cells, *_cost(row), said, style="dim" if row.control else "bold" if said == "yes" else None)
    return table


def _title(layer: MitigatedLayer) -> str:
    missing = "" if any(row.random for row in layer.rows) else "  random_rank missing: nothing can count as working"
    return f"Mitigations of {layer.layer}: {layer.setting}{missing}"


def families(layer: MitigatedLayer) -> str:
    """What the stars of a table were adjusted for, and over how many units; or why there are none."""
    if not layer.tested:
        return "These runs were measured by an older version, which kept nothing to test with: no stars. Run them again."
    parts = []
    for name, key in KINDS.items():
        family = layer.families.get(key)
        if family is not None:
            unit = {PCK: "pictures", "r_pos/all": "groups of images"}.get(key, "photographs")
            few = f": fewer than {FEWEST}, so no star is possible" if family.units < FEWEST else ""
            parts.append(f"{name} {family.columns} columns, {family.units} {unit}{few}")
        elif any(key in row.cells for row in layer.rows):
            parts.append(f"{name} not tested (run it again: an older version, or other photographs)")
    return f"Families: {'; '.join(parts)}." if parts else ""


def _measured(layer: MitigatedLayer) -> list[str]:
    """Metrics that any row has."""
    return [key for key in METRICS if any(key in row.cells for row in layer.rows)]


def _markdown(layer: MitigatedLayer) -> str:
    """The same table with intervals."""
    metrics = _measured(layer)
    heads = ["mitigation", *(METRICS[key].replace("\n", " ") for key in metrics), *(name.replace("\n", " ") for name in COST)]
    lines = [f"## {_title(layer)}", "", "| " + " | ".join([*heads, "works", "compared with"]) + " |"]
    lines.append("|" + " --- |" * (len(heads) + 2))
    for row in layer.rows:
        cells = [_cell(row.cells.get(key), ends=True) for key in metrics]
        control = counterpart(layer, row) if POSITION in row.cells and row.label != NONE and not row.control else None
        rank = f" (rank {_count(control.rank)})" if control else ""
        against = f"{control.label}{rank}" if control else ""
        lines.append("| " + " | ".join([row.label, *cells, *_cost(row), verdict(layer, row), against]) + " |")
    return "\n".join([*lines, "", families(layer), ""])


def _write_csv(layers: Sequence[MitigatedLayer], path: Path) -> None:
    """A row per layer, mitigation and metric; empty cells where nothing was measured."""
    numbers = [field.name for field in fields(Cell)]
    rows = [["setting", "layer", "mitigation", "metric", *numbers]]
    for layer in layers:
        for row in layer.rows:
            for key in (*METRICS, *MORE):
                if (cell := row.cells.get(key)) is not None:
                    values = [getattr(cell, name) for name in numbers]
                    texts = ["" if math.isnan(value) else f"{value:.6g}" for value in values]
                    rows.append([layer.setting, layer.layer, row.label, key, *texts])
    write_rows(path, rows)


def _cell(cell: Cell | None, ends: bool = False) -> str:
    if cell is None:
        return "–"
    value = _number(cell.value) + (_interval(cell.ci_low, cell.ci_high) if ends else "")
    if math.isnan(cell.gain):
        return value
    gain = _number(cell.gain, sign=True) + (_interval(cell.gain_ci_low, cell.gain_ci_high) if ends else "")
    return f"{value} {gain}{'*' if cell.significant else '' if ends else ' '}"


def _interval(low: float, high: float) -> str:
    return "" if math.isnan(low) else f" [{_number(low)}, {_number(high)}]"


def _cost(row: Row) -> list[str]:
    images = "–" if not row.fit_images else "–".join(str(count) for count in sorted({row.fit_images[0], row.fit_images[-1]}))
    return ["–" if math.isnan(row.passes) else f"{row.passes:.3g}", images, _count(row.rank)]


def _count(value: int | None) -> str:
    return "–" if value is None else str(value)


def _number(value: float, sign: bool = False) -> str:
    """Two decimals without the leading zero, with a true minus."""
    text = re.sub(r"^([+-]?)0\.", r"\1.", f"{value:{'+' if sign else ''}.2f}")
    return text.replace("-", "−")
