"""``experiment=mitigations``: how much position each mitigation removes from a layer, what it costs, and whether it works.

The Pareto figures show downstream metrics over position accuracy, with the names of the best mitigations.
"""

import math
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from matplotlib.text import Annotation
from matplotlib.transforms import Bbox
from rich.table import Table

from sdprobe.metrics.intervals import FEWEST
from sdprobe.reports import style
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
from sdprobe.reports.run import Run, without_folders
from sdprobe.reports.style import DARK, GREY
from sdprobe.utilities.io import write_file, write_rows

COST = ("passes", "fit\nimages", "rank")
CAPTION = (
    "*: the value differs from that of none, p < .05, adjusted by joint sign flips for all layers and mitigations of the "
    "metric (controls excluded). mitigations.csv has the differences and all intervals. position: accuracy in 8 bins of a "
    "newly trained probe. PCK: @0.10, for all keypoints and by displacement between source and target. passes: network passes "
    "per image, relative to a plain pass. works: yes, if position accuracy falls significantly, also compared with the random "
    "control of equal rank (the largest "
    f"one, if the mitigation has no rank), and if the interval of PCK's difference lies above −{NOTHING}, with a PCK of at "
    f"least {LEAST_PCK:.0%}; no, if PCK falls significantly; otherwise inconclusive."
)
BESIDE_CAPTION = (
    "random energy: the number before it with as much energy removed from each image, along random directions. No test "
    "includes it."
)
KINDS = {"position": POSITION, "content": CONTENT, "depth": "rmse/all", "PCK": PCK, "V_pos, risks and norms": "r_pos/all"}
# metric → label, whether higher is better
ROWS = {PCK: ("PCK@0.10", True), CONTENT: ("content R²", True), "rmse/all": ("RMSE of depth", False)}
BESIDE = "random\nenergy"  # heading
BEST = 6  # mitigations of a panel with a name and a colour
TOGETHER = 3  # layers of a figure, at most
SHIFTS = [  # offset of a label from its point, in points, nearest first
    (reach * math.cos(math.radians(angle)), reach * math.sin(math.radians(angle)))
    for reach in (9, 16, 26, 38, 52, 70)
    for angle in (0, 35, 325, 90, 270, 180, 145, 215)
]


def mitigation_tables(runs: Sequence[Run]) -> list[Table]:
    """One table per layer: a row for none and for every mitigation; empty if no run compares mitigations."""
    return [_table(layer) for layer in mitigated_layers(runs)]


def write(runs: Sequence[Run], folder: Path, form: str = "png") -> list[Path]:
    """Write ``mitigations.csv`` (all numbers), ``mitigations.md`` and Pareto figures; nothing without a comparison."""
    layers = mitigated_layers(runs)
    if not layers:
        return []
    paths = [folder / "mitigations.csv", folder / "mitigations.md"]
    _write_csv(layers, paths[0])
    write_file(paths[1], "\n".join(_markdown(layer) for layer in layers) + f"\n{CAPTION} {_beside(layers)}".rstrip() + "\n")
    return paths + style.write_figures(pareto_figures(layers), folder, form)


def _table(layer: MitigatedLayer) -> Table:
    table = bare_table(_title(layer), " ".join(filter(None, (CAPTION, _beside([layer]), families(layer)))), spaced=True)
    add_columns(table, "mitigation", left=True)
    add_columns(table, *_heads(layer), *COST)
    add_columns(table, "works", left=True)
    for row in layer.rows:
        *cells, works = _row(layer, row)
        table.add_row(*cells, works, style="dim" if row.control else "bold" if works == "yes" else None)
    return table


def _row(layer: MitigatedLayer, row: Row) -> list[str]:
    """Label, metrics, cost, verdict."""
    return [
        row.label,
        *(cell for key in _measured(layer) for cell in _cells(layer, row, key)),
        *_cost(row),
        verdict(layer, row),
    ]


def _heads(layer: MitigatedLayer) -> list[str]:
    """Headings of the metrics, each with that of its control if it has one."""
    return [text for key in _measured(layer) for text in (METRICS[key], *[BESIDE] * _compared(layer, key))]


def _cells(layer: MitigatedLayer, row: Row, key: str) -> list[str]:
    cell = row.cells.get(key)
    energy = math.nan if cell is None else cell.energy
    return [_cell(cell), *[MISSING if math.isnan(energy) else with_ends(energy)] * _compared(layer, key)]


def _beside(layers: Sequence[MitigatedLayer]) -> str:
    """A sentence on the controls of equal energy, if a table shows them."""
    return BESIDE_CAPTION if any(_compared(layer, key) for layer in layers for key in _measured(layer)) else ""


def _compared(layer: MitigatedLayer, key: str) -> bool:
    """Whether the table shows a metric with as much energy removed along random directions."""
    return key in KINDS.values() and any(key in row.cells and not math.isnan(row.cells[key].energy) for row in layer.rows)


def _title(layer: MitigatedLayer) -> str:
    missing = "" if any(row.random for row in layer.rows) else "  (no random_rank: no verdict on what works)"
    return f"Mitigations of {layer.layer}: {_setting(layer)}{missing}"


def _setting(layer: MitigatedLayer) -> str:
    """The setting of a layer, without the folders of a network."""
    network, comma, conditions = layer.setting.partition(",")
    return f"{without_folders(network)}{comma}{conditions}"


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
    """The same table, and what position was compared with."""
    heads = ["mitigation", *_heads(layer), *COST, "works", "compared with"]
    lines = [[head.replace("\n", " ") for head in heads], ["---"] * len(heads)]
    for row in layer.rows:
        control = counterpart(layer, row) if POSITION in row.cells and row.label != NONE and not row.control else None
        against = f"{control.label} (rank {_count(control.rank)})" if control else ""
        lines.append([*(cell.strip() for cell in _row(layer, row)), against])
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


def _cell(cell: Cell | None) -> str:
    return f"{MISSING} " if cell is None else f"{with_ends(cell.value)}{'*' if cell.significant else ' '}"


def _cost(row: Row) -> list[str]:
    images = "–".join(str(count) for count in sorted({row.fit_images[0], row.fit_images[-1]})) if row.fit_images else MISSING
    return [MISSING if math.isnan(row.passes) else f"{row.passes:.3g}", images, _count(row.rank)]


def _count(value: int | None) -> str:
    return MISSING if value is None else str(value)


def dominated(points: np.ndarray) -> np.ndarray:
    """By how many others each of the points (n, 2) is dominated: as good in both coordinates and better in one.

    Lower is better for the first coordinate, higher for the second.

    >>> dominated(np.array([[0.2, 0.5], [0.3, 0.4], [0.3, 0.6], [0.2, 0.5]])).tolist()
    [0, 3, 0, 0]
    """
    less, more = points[:, None, 0] - points[None, :, 0], points[None, :, 1] - points[:, None, 1]
    return np.asarray(((less >= 0) & (more >= 0) & ((less > 0) | (more > 0))).sum(1))


def best(layer: MitigatedLayer, key: str) -> list[str]:
    """The six best mitigations of a layer for a task: those dominated by the fewest others, of these the lowest position.

    Controls, and the layer without mitigation, neither count nor are named.
    """
    points = [(row, x, y) for row, x, y in _points(layer, key) if row.label != NONE and not row.control]
    counts = dominated(_oriented(points, key))
    order = sorted(range(len(points)), key=lambda i: (counts[i], points[i][1], i))
    return [points[i][0].label for i in order[:BEST]]


def pareto_figures(layers: Sequence[MitigatedLayer]) -> dict[str, Figure]:
    """Figures by name, each of at most three layers; none if no task was measured together with position accuracy."""
    parts = [layers[start : start + TOGETHER] for start in range(0, len(layers), TOGETHER)]
    drawn = [pareto_figure(part) for part in parts]
    names = (f"mitigations_pareto{f'_{number}' if number > 1 else ''}" for number in range(1, len(drawn) + 1))
    return {name: figure for name, figure in zip(names, drawn, strict=True) if figure}


def pareto_figure(layers: Sequence[MitigatedLayer]) -> Figure | None:
    """A column per layer, a row per task; None if no task was measured together with position accuracy."""
    tasks = [key for key in ROWS if any(len(_points(layer, key)) > 1 for layer in layers)]
    if not tasks:
        return None
    size = (max(4.8 * len(layers), 7.0), 4.2 * len(tasks) + 1.6)
    figure, axes = style.panels(len(tasks), len(layers), *size)
    named = list(dict.fromkeys(label for key in tasks for layer in layers for label in best(layer, key)))
    styles = {label: style.series(i) for i, label in enumerate(named)}
    for line, key in enumerate(tasks):
        for axis, layer in zip(axes[line], layers, strict=True):
            _scatter(axis, layer, key, styles)
            _frame(axis, layer, key)
    several = len({layer.setting for layer in layers}) > 1
    for axis, layer in zip(axes[0], layers, strict=True):
        text = f"{layer.layer}\n{_setting(layer)}" if several else layer.layer
        axis.set_title(style.wrapped(text, size[0] / len(layers) - 0.8, style.NORMAL), fontsize=style.NORMAL)
    grey: dict[str, Any] = {"ls": "none", "color": GREY}
    marks: dict[str, dict[str, Any]] = {
        "other mitigations": {"marker": "o", "ms": 4, "mfc": "none"},
        "controls": {"marker": "x", "ms": 5},
    }
    drawn = {line.get_marker() for axis in axes.flat for line in axis.get_lines() if line.get_color() == GREY}
    used = {name: mark for name, mark in marks.items() if mark["marker"] in drawn}
    style.legend(figure, [Line2D([], [], **mark, **grey) for mark in used.values()], list(used))
    style.title(
        figure,
        "Position accuracy and task performance after mitigation",
        "" if several else _setting(layers[0]),
        f"named: the {BEST} best of a panel; hollow: another mitigation is at least as good in both and better in one",
        "bars: 95 % intervals (they may overlap); dotted: chance",
    )
    figure.canvas.draw()  # the layout must be known before labels are placed
    for line, key in enumerate(tasks):
        for axis, layer in zip(axes[line], layers, strict=True):
            _labels(axis, layer, key, styles)
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
    axis.margins(0.15)
    style.least_span(axis)
    style.least_span(axis, along="x")
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


def _oriented(points: Sequence[tuple[Row, float, float]], key: str) -> np.ndarray:
    """Points (n, 2) of which lower is better for the first coordinate, higher for the second."""
    sign = 1 if ROWS[key][1] else -1
    return np.array([[x, sign * y] for _, x, y in points]).reshape(-1, 2)


def _scatter(axis: Axes, layer: MitigatedLayer, key: str, styles: dict[str, dict[str, Any]]) -> None:
    points = _points(layer, key)
    counting = [point for point in points if not point[0].control]
    hollow = {row.label: count > 0 for (row, *_), count in zip(counting, dominated(_oriented(counting, key)), strict=True)}
    names = best(layer, key)
    for row, x, y in points:
        kind = _style(row, styles, names)
        ends = [_bars(row, each) for each in (POSITION, key)]
        front = row.label in names or row.label == NONE
        axis.errorbar(x, y, xerr=ends[0], yerr=ends[1], color=kind["color"], alpha=0.5 if front else 0.15, lw=0.9, zorder=1)
        face = "white" if hollow.get(row.label) else kind["color"]
        axis.plot(x, y, **kind, ls="none", mfc=face, mew=1.3, zorder=5 if front else 3, gid=row.label)


def _bars(row: Row, key: str) -> list[list[float]] | None:
    cell = row.cells[key]
    return None if math.isnan(cell.ci_low) else [[max(0.0, cell.value - cell.ci_low)], [max(0.0, cell.ci_high - cell.value)]]


def _labels(axis: Axes, layer: MitigatedLayer, key: str, styles: dict[str, dict[str, Any]]) -> None:
    """Place each name as near to its point as possible without covering points or names."""
    names = best(layer, key)
    points = _points(layer, key)
    places = [axis.transData.transform((x, y)) for _, x, y in points]
    taken = [Bbox.from_bounds(x - 7, y - 7, 14, 14) for x, y in places]
    for row, x, y in points:
        if row.label not in (NONE, *names):
            continue
        colour = _style(row, styles, names)["color"]
        text = axis.annotate(row.label, (x, y), (0, 0), textcoords="offset points", fontsize=8, color=colour, va="center")
        text.set(zorder=6, path_effects=[withStroke(linewidth=2, foreground="white")])
        text.set_in_layout(False)
        tried = [_tried(axis, text, shift, taken) for shift in SHIFTS]
        _, nearest = min(zip(tried, range(len(SHIFTS)), strict=True))  # the nearest of those with the fewest overlaps
        _move(text, SHIFTS[nearest])
        taken.append(text.get_window_extent())
        if math.hypot(*SHIFTS[nearest]) > 14:
            line = {"arrowstyle": "-", "lw": 0.5, "color": DARK, "alpha": 0.5, "shrinkA": 0, "shrinkB": 4}
            axis.annotate("", (x, y), SHIFTS[nearest], textcoords="offset points", arrowprops=line).set_in_layout(False)


def _tried(axis: Axes, text: Annotation, shift: tuple[float, float], taken: list[Bbox]) -> int:
    """Number of points and labels that the label would cover there; leaving the panel counts 100."""
    _move(text, shift)
    box = text.get_window_extent()
    inside = axis.bbox.contains(box.x0, box.y0) and axis.bbox.contains(box.x1, box.y1)
    return sum(box.overlaps(other) for other in taken) + (0 if inside else 100)


def _move(text: Annotation, shift: tuple[float, float]) -> None:
    text.set_position(shift)
    text.set_horizontalalignment("left" if shift[0] > 1 else "right" if shift[0] < -1 else "center")


def _style(row: Row, styles: dict[str, dict[str, Any]], names: Sequence[str]) -> dict[str, Any]:
    """Colour, marker and size of a point."""
    if row.label == NONE:
        return {"color": DARK, "marker": "*", "ms": 13}
    if row.control:
        return {"color": GREY, "marker": "x", "ms": 5}
    if row.label not in names:
        return {"color": GREY, "marker": "o", "ms": 4}
    return {"color": styles[row.label]["color"], "marker": styles[row.label]["marker"], "ms": 7}
