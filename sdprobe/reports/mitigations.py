"""``experiment=mitigations``: how much position each mitigation removes from a layer, what it costs, and whether it works.

The Pareto figure shows downstream metrics over position accuracy.
"""

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.text import Annotation
from matplotlib.transforms import Bbox
from rich.table import Table

from sdprobe.metrics.intervals import FEWEST
from sdprobe.reports.curves import BLUE, DARK, GREEN, ORANGE, RED, write_figures
from sdprobe.reports.mitigated_layers import (
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
from sdprobe.reports.numbers import MISSING, add_columns, bare_table, markdown, six_digits, with_ends
from sdprobe.reports.run import Run
from sdprobe.utilities.io import write_file, write_rows

COST = ("passes", "fit\nimages", "rank")
WIDTH = 188  # characters of a table with every column
CAPTION = (
    "Each value is followed by its paired difference from none. *: p < .05, adjusted by joint sign flips for all layers and "
    "mitigations of the metric (controls excluded). position: accuracy in 8 bins of a newly trained probe. PCK: @0.10, for all "
    "keypoints and by displacement between source and target. passes: network passes per image, relative to a plain pass. "
    "works: yes, if position accuracy falls significantly, also compared with the random control of equal rank (the largest "
    f"one, if the mitigation has no rank), and if the interval of PCK's difference lies above −{NOTHING}, with a PCK of at "
    f"least {LEAST_PCK:.0%}; no, if PCK falls significantly; otherwise inconclusive."
)
KINDS = {"position": POSITION, "content": CONTENT, "depth": "rmse/all", "PCK": PCK, "V_pos, risks and norms": "r_pos/all"}
# metric → label, whether higher is better
ROWS = {PCK: ("PCK@0.10", True), CONTENT: ("content R²", True), "rmse/all": ("RMSE of depth", False)}
COLOURS = (BLUE, ORANGE, GREEN, "#ad1a72", "#6940a5", RED, "#a67c00", "#64473a", "#3d9aa8")
MARKERS = "osD^v<>PXhp"
SHIFTS = [  # offset of a label from its point, in points, nearest first
    (reach * math.cos(math.radians(angle)), reach * math.sin(math.radians(angle)))
    for reach in (9, 16, 26, 38, 52, 70)
    for angle in (0, 35, 325, 90, 270, 180, 145, 215)
]


def mitigation_tables(runs: Sequence[Run]) -> list[Table]:
    """One table per layer: a row for none and for every mitigation; empty if no run compares mitigations."""
    return [_table(layer) for layer in mitigated_layers(runs)]


def write(runs: Sequence[Run], folder: Path) -> list[Path]:
    """Write ``mitigations.csv`` (all numbers), ``mitigations.md``, ``mitigations_pareto.png``; nothing without a comparison."""
    layers = mitigated_layers(runs)
    if not layers:
        return []
    paths = [folder / "mitigations.csv", folder / "mitigations.md"]
    _write_csv(layers, paths[0])
    write_file(paths[1], "\n".join(_markdown(layer) for layer in layers) + f"\n{CAPTION}\n")
    figure = pareto_figure(layers)
    return paths + (write_figures({"mitigations_pareto": figure}, folder) if figure else [])


def _table(layer: MitigatedLayer) -> Table:
    table = bare_table(_title(layer), f"{CAPTION} {families(layer)}", spaced=True)
    add_columns(table, "mitigation", left=True)
    add_columns(table, *(METRICS[key] for key in _measured(layer)), *COST)
    add_columns(table, "works", left=True)
    for row in layer.rows:
        *cells, works = _row(layer, row)
        table.add_row(*cells, works, style="dim" if row.control else "bold" if works == "yes" else None)
    return table


def _row(layer: MitigatedLayer, row: Row, ends: bool = False) -> list[str]:
    """Label, metrics, cost, verdict."""
    return [row.label, *(_cell(row.cells.get(key), ends) for key in _measured(layer)), *_cost(row), verdict(layer, row)]


def _title(layer: MitigatedLayer) -> str:
    missing = "" if any(row.random for row in layer.rows) else "  (no random_rank: no verdict on what works)"
    return f"Mitigations of {layer.layer}: {layer.setting}{missing}"


def families(layer: MitigatedLayer) -> str:
    """A sentence on the number of comparisons and units behind the stars, or why there are none."""
    if not layer.tested:
        return "No stars: these runs come from an older version that stored no pseudo-values. Run them again."
    parts = []
    for name, key in KINDS.items():
        family = layer.families.get(key)
        if family is not None:
            unit = {PCK: "pictures", "r_pos/all": "groups of images"}.get(key, "photographs")
            few = f" (fewer than {FEWEST}: no star is possible)" if family.units < FEWEST else ""
            parts.append(f"{name} {family.columns} comparisons, {family.units} {unit}{few}")
        elif any(key in row.cells for row in layer.rows):
            parts.append(f"{name} not tested (older version or other photographs: run it again)")
    return f"Tested: {'; '.join(parts)}." if parts else ""


def _measured(layer: MitigatedLayer) -> list[str]:
    """Metrics that at least one row has."""
    return [key for key in METRICS if any(key in row.cells for row in layer.rows)]


def _markdown(layer: MitigatedLayer) -> str:
    """The same table with intervals."""
    heads = ["mitigation", *(METRICS[key] for key in _measured(layer)), *COST, "works", "compared with"]
    lines = [[head.replace("\n", " ") for head in heads], ["---"] * len(heads)]
    for row in layer.rows:
        control = counterpart(layer, row) if POSITION in row.cells and row.label != NONE and not row.control else None
        against = f"{control.label} (rank {_count(control.rank)})" if control else ""
        lines.append([*_row(layer, row, ends=True), against])
    return f"## {_title(layer)}\n\n{markdown(lines)}\n{families(layer)}\n"


def _write_csv(layers: Sequence[MitigatedLayer], path: Path) -> None:
    """A row per layer, mitigation and metric; cells are empty if not measured."""
    numbers = [field.name for field in fields(Cell)]
    rows: list[list[object]] = [["setting", "layer", "mitigation", "metric", *numbers]]
    for layer in layers:
        for row in layer.rows:
            for key in (key for key in (*METRICS, *MORE) if key in row.cells):
                values = (six_digits(getattr(row.cells[key], name)) for name in numbers)
                rows.append([layer.setting, layer.layer, row.label, key, *values])
    write_rows(path, rows)


def _cell(cell: Cell | None, ends: bool = False) -> str:
    if cell is None:
        return MISSING
    value = with_ends(cell.value, *((cell.ci_low, cell.ci_high) if ends else ()))
    if math.isnan(cell.gain):
        return value
    gain = with_ends(cell.gain, *((cell.gain_ci_low, cell.gain_ci_high) if ends else (math.nan, math.nan)), sign=True)
    return f"{value} {gain}{'*' if cell.significant else '' if ends else ' '}"


def _cost(row: Row) -> list[str]:
    images = "–".join(str(count) for count in sorted({row.fit_images[0], row.fit_images[-1]})) if row.fit_images else MISSING
    return [MISSING if math.isnan(row.passes) else f"{row.passes:.3g}", images, _count(row.rank)]


def _count(value: int | None) -> str:
    return MISSING if value is None else str(value)


def dominated(points: np.ndarray) -> np.ndarray:
    """Whether another point is at least as good in both coordinates and better in one, for points (n, 2).

    Lower is better for the first coordinate, higher for the second.

    >>> dominated(np.array([[0.2, 0.5], [0.3, 0.4], [0.3, 0.6], [0.2, 0.5]])).tolist()
    [False, True, False, False]
    """
    less, more = points[:, None, 0] - points[None, :, 0], points[None, :, 1] - points[:, None, 1]
    return np.asarray(((less >= 0) & (more >= 0) & ((less > 0) | (more > 0))).any(1))


def pareto_figure(layers: Sequence[MitigatedLayer]) -> Figure | None:
    """A column per layer, a row per task; None if no task was measured together with position accuracy."""
    tasks = [key for key in ROWS if any(len(_points(layer, key)) > 1 for layer in layers)]
    if not tasks:
        return None
    size = (max(5.2 * len(layers), 7.0), 4.6 * len(tasks) + 1.0)
    figure, axes = plt.subplots(len(tasks), len(layers), figsize=size, squeeze=False, layout="constrained")
    families = list(dict.fromkeys(row.family for layer in layers for row in layer.rows[1:]))
    styles = {name: (COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)]) for i, name in enumerate(families)}
    for line, key in enumerate(tasks):
        for axis, layer in zip(axes[line], layers, strict=True):
            _frame(axis, layer, key)
            _families(axis, layer, key, styles)
    several = len({layer.setting for layer in layers}) > 1
    for axis, layer in zip(axes[0], layers, strict=True):
        axis.set_title(f"{layer.layer}\n{layer.setting}" if several else layer.layer, fontsize=9 if several else 11)
    setting = "" if several else f", {layers[0].setting}"
    figure.suptitle(
        f"Position accuracy and task performance after mitigation{setting}\n"
        "hollow: another mitigation is at least as good in both and better in one\n"
        "bars: 95 % intervals (they may overlap); dotted: chance", fontsize=11,
    )  # fmt: skip
    figure.canvas.draw()  # the layout must be known before labels are placed
    for line, key in enumerate(tasks):
        for axis, layer in zip(axes[line], layers, strict=True):
            _labels(axis, _points(layer, key), styles)
    return figure


def _points(layer: MitigatedLayer, key: str) -> list[tuple[Row, float, float]]:
    """(row, position accuracy, task) of the rows that have both."""
    both = [row for row in layer.rows if POSITION in row.cells and key in row.cells]
    return [(row, row.cells[POSITION].value, row.cells[key].value) for row in both]


def _frame(axis: Axes, layer: MitigatedLayer, key: str) -> None:
    label, higher = ROWS[key]
    axis.set(
        xlabel=f"position accuracy, 8 bins (lower is better)\n{_sampled(layer, POSITION)}",
        ylabel=f"{label} ({'higher' if higher else 'lower'} is better)\n{_sampled(layer, key)}",
    )
    axis.grid(alpha=0.25)
    axis.margins(0.2)
    if not higher:
        axis.invert_yaxis()
    if math.isfinite(layer.chance):
        axis.axvline(layer.chance, color=DARK, ls=":", lw=1)


def _sampled(layer: MitigatedLayer, key: str) -> str:
    """Number of units of a metric's intervals."""
    if key not in layer.families:  # only controls, or an older run
        return ""
    count = layer.families[key].units
    few = ", too few for intervals" if count < FEWEST else ""
    return f"{count} {'pictures' if key == PCK else 'photographs'}{few}"


def _families(axis: Axes, layer: MitigatedLayer, key: str, styles: dict[str, tuple[str, str]]) -> None:
    points = _points(layer, key)
    if not points:
        return
    sign = 1 if ROWS[key][1] else -1
    hollow = dominated(np.array([[x, sign * y] for _, x, y in points]))
    lines: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for (row, x, y), open_ in zip(points, hollow, strict=True):
        colour, marker = _style(row, styles)
        ends = [_bars(row, each) for each in (POSITION, key)]
        axis.errorbar(x, y, xerr=ends[0], yerr=ends[1], color=colour, alpha=0.3, lw=0.8, zorder=1)
        axis.plot(
            x, y, marker, ms=13 if row.label == NONE else 6.5, color=colour, mfc="white" if open_ else colour, mew=1.4,
            zorder=5 if row.label == NONE else 3, gid=row.label,
        )  # fmt: skip
        lines[row.family].append((x, y))
    for name, line in lines.items():
        if len(line) > 1:
            axis.plot(*zip(*sorted(line), strict=True), color=styles[name][0], lw=1.2, alpha=0.8, zorder=2)


def _bars(row: Row, key: str) -> list[list[float]] | None:
    cell = row.cells[key]
    return None if math.isnan(cell.ci_low) else [[max(0.0, cell.value - cell.ci_low)], [max(0.0, cell.ci_high - cell.value)]]


def _labels(axis: Axes, points: list[tuple[Row, float, float]], styles: dict[str, tuple[str, str]]) -> None:
    """Place each label as near to its point as possible without covering points or labels."""
    places = [axis.transData.transform((x, y)) for _, x, y in points]
    taken = [Bbox.from_bounds(x - 7, y - 7, 14, 14) for x, y in places]
    for row, x, y in points:
        colour, _ = _style(row, styles)
        text = axis.annotate(row.label, (x, y), (0, 0), textcoords="offset points", fontsize=7.5, color=colour, va="center")
        text.set(zorder=6, path_effects=[withStroke(linewidth=2, foreground="white")])
        text.set_in_layout(False)
        tried = [_tried(axis, text, shift, taken) for shift in SHIFTS]
        _, best = min(zip(tried, range(len(SHIFTS)), strict=True))  # the nearest of those with the fewest overlaps
        _move(text, SHIFTS[best])
        taken.append(text.get_window_extent())
        if math.hypot(*SHIFTS[best]) > 14:
            line = {"arrowstyle": "-", "lw": 0.5, "color": DARK, "alpha": 0.5, "shrinkA": 0, "shrinkB": 4}
            axis.annotate("", (x, y), SHIFTS[best], textcoords="offset points", arrowprops=line).set_in_layout(False)


def _tried(axis: Axes, text: Annotation, shift: tuple[float, float], taken: list[Bbox]) -> int:
    """Number of points and labels that the label would cover there; leaving the panel counts 100."""
    _move(text, shift)
    box = text.get_window_extent()
    inside = axis.bbox.contains(box.x0, box.y0) and axis.bbox.contains(box.x1, box.y1)
    return sum(box.overlaps(other) for other in taken) + (0 if inside else 100)


def _move(text: Annotation, shift: tuple[float, float]) -> None:
    text.set_position(shift)
    text.set_horizontalalignment("left" if shift[0] > 1 else "right" if shift[0] < -1 else "center")


def _style(row: Row, styles: dict[str, tuple[str, str]]) -> tuple[str, str]:
    return (DARK, "*") if row.label == NONE else styles[row.family]
