"""Position against what a token is good for: which mitigation costs least for what it removes."""

import math
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.text import Annotation
from matplotlib.transforms import Bbox

from metrics.intervals import FEWEST
from reports.mitigated_layers import CONTENT, NONE, PCK, POSITION, MitigatedLayer, Row

# metric → heading, and whether more of it is better
ROWS = {PCK: ("PCK@0.10", True), CONTENT: ("content R²", True), "rmse/all": ("RMSE of depth", False)}
MARKERS = "osD^v<>PXhp"
NEUTRAL = "#37352f"
SHIFTS = [  # of a name from its point, in points, nearest first
    (reach * math.cos(math.radians(angle)), reach * math.sin(math.radians(angle)))
    for reach in (9, 16, 26, 38, 52, 70)
    for angle in (0, 35, 325, 90, 270, 180, 145, 215)
]


def dominated(points: np.ndarray) -> np.ndarray:
    """Of points (n, 2), less of the first and more of the second being better: whether another is as good in both and better
    in one.

    >>> dominated(np.array([[0.2, 0.5], [0.3, 0.4], [0.3, 0.6], [0.2, 0.5]])).tolist()
    [False, True, False, False]
    """
    less, more = points[:, None, 0] - points[None, :, 0], points[None, :, 1] - points[:, None, 1]
    return np.asarray(((less >= 0) & (more >= 0) & ((less > 0) | (more > 0))).any(1))


def pareto_figure(layers: Sequence[MitigatedLayer]) -> Figure | None:
    """A column per layer, a row per measured task; None where no task stands beside position accuracy."""
    tasks = [key for key in ROWS if any(len(_points(layer, key)) > 1 for layer in layers)]
    if not tasks:
        return None
    size = (max(5.2 * len(layers), 7.0), 4.6 * len(tasks) + 1.0)
    figure, axes = plt.subplots(len(tasks), len(layers), figsize=size, squeeze=False, layout="constrained")
    families = list(dict.fromkeys(row.family for layer in layers for row in layer.rows[1:]))
    styles = {name: (_colour(i), MARKERS[i % len(MARKERS)]) for i, name in enumerate(families)}
    for line, key in enumerate(tasks):
        for axis, layer in zip(axes[line], layers, strict=True):
            _frame(axis, layer, key)
            _families(axis, layer, key, styles)
    several = len({layer.setting for layer in layers}) > 1
    for axis, layer in zip(axes[0], layers, strict=True):
        axis.set_title(f"{layer.layer}\n{layer.setting}" if several else layer.layer, fontsize=9 if several else 11)
    setting = "" if several else f", {layers[0].setting}"
    figure.suptitle(
        f"What is left of position, and of the task{setting}\nhollow: another's estimates are better in one and worse in "
        "neither (intervals may overlap); bars: 95 % intervals; dotted: chance", fontsize=11,
    )  # fmt: skip
    figure.canvas.draw()  # lays the panels out, so that labels can be placed in them
    for line, key in enumerate(tasks):
        for axis, layer in zip(axes[line], layers, strict=True):
            _labels(axis, _points(layer, key), styles)
    return figure


def _points(layer: MitigatedLayer, key: str) -> list[tuple[Row, float, float]]:
    """Rows that have both, with position accuracy and task."""
    both = [row for row in layer.rows if POSITION in row.cells and key in row.cells]
    return [(row, row.cells[POSITION].value, row.cells[key].value) for row in both]


def _frame(axis: Axes, layer: MitigatedLayer, key: str) -> None:
    heading, more = ROWS[key]
    axis.set(
        xlabel=f"position accuracy, 8 bins (less is better)\n{_sampled(layer, POSITION)}",
        ylabel=f"{heading} ({'more' if more else 'less'} is better)\n{_sampled(layer, key)}",
    )
    axis.grid(alpha=0.25)
    axis.margins(0.2)
    if not more:
        axis.invert_yaxis()
    if math.isfinite(layer.chance):
        axis.axvline(layer.chance, color=NEUTRAL, ls=":", lw=1)


def _sampled(layer: MitigatedLayer, key: str) -> str:
    """How many units the intervals of a metric rest on."""
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
    """Names beside their points, where they cover neither a point nor another name, as near as there is room."""
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
            line = {"arrowstyle": "-", "lw": 0.5, "color": NEUTRAL, "alpha": 0.5, "shrinkA": 0, "shrinkB": 4}
            axis.annotate("", (x, y), SHIFTS[best], textcoords="offset points", arrowprops=line).set_in_layout(False)


def _tried(axis: Axes, text: Annotation, shift: tuple[float, float], taken: list[Bbox]) -> int:
    """What a name would cover there; leaving the panel counts most."""
    _move(text, shift)
    box = text.get_window_extent()
    inside = axis.bbox.contains(box.x0, box.y0) and axis.bbox.contains(box.x1, box.y1)
    return sum(box.overlaps(other) for other in taken) + (0 if inside else 100)


def _move(text: Annotation, shift: tuple[float, float]) -> None:
    text.set_position(shift)
    text.set_horizontalalignment("left" if shift[0] > 1 else "right" if shift[0] < -1 else "center")


def _style(row: Row, styles: dict[str, tuple[str, str]]) -> tuple[str, str]:
    return (NEUTRAL, "*") if row.label == NONE else styles[row.family]


def _colour(index: int) -> str:
    return ("#0b6e99", "#d9730d", "#448361", "#ad1a72", "#6940a5", "#e03e3e", "#a67c00", "#64473a", "#3d9aa8")[index % 9]
