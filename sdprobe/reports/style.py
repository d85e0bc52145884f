"""Style of all figures: colours, markers, sizes, texts that fit, curves over layers, numbers in maps, files.

Colours differ for readers with any of the three common colour deficiencies. Each has its own marker, so that no reader needs
the colour.
"""

import math
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import RendererAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.transforms import ScaledTranslation

from sdprobe.utilities.io import write_figure

matplotlib.use("Agg")  # no display on a cluster
# names of layers, models and images are text: a $ in them starts no formula
matplotlib.rcParams |= {"text.parse_math": False, "pdf.fonttype": 42, "figure.max_open_warning": 0}

BLUE, ORANGE, GREEN, PURPLE = "#0072b2", "#d55e00", "#009e73", "#cc79a7"
AMBER, SKY, BROWN, DARK, GREY = "#e69f00", "#56b4e9", "#6b3a00", "#222222", "#666666"
COLOURS = (BLUE, ORANGE, GREEN, PURPLE, AMBER, SKY, BROWN, DARK)  # of the first, second, … series
MARKERS = "osD^vPX*"  # of the same series
LINES = ("-", "--", "-.", ":")  # of the first eight series, the next eight, …
FORMATS = ("png", "pdf")
DPI = 130
PIXELS = 2000  # longer side of a figure, at most
INCHES = PIXELS / DPI
FEW = 5  # fewer layers are points; a line between them would suggest values between layers
SLANTED = 12  # more layer names than this are vertical
SMALL, NORMAL, LARGE = 8, 9, 10.5  # font sizes: ticks and legends, panels, title
LEAST = 0.1  # of an axis: smaller differences are not enlarged


def series(index: int) -> dict[str, Any]:
    """Colour, marker and line of a series; the first 32 differ."""
    kind = index % len(COLOURS)
    return {"color": COLOURS[kind], "marker": MARKERS[kind], "ls": LINES[index // len(COLOURS) % len(LINES)]}


def panels(rows: int, columns: int, width: float, height: float, **options: Any) -> tuple[Figure, np.ndarray]:
    """(figure, axes of shape (rows, columns)); sides in inches, at most :data:`INCHES`."""
    size = (min(width, INCHES), min(height, INCHES))
    figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained", **options)
    return figure, axes


def sheet(titles: Sequence[str], columns: int = 0, widest: float = 2.6, head: float = 0.7) -> tuple[Figure, list[Axes]]:
    """(figure, a square panel per title) with a margin for a colour bar at the right, and of ``head`` inches for the title.

    ``columns``: panels in a row; 0: as many as give a sheet that is a little wider than high.
    """
    count = len(titles)
    columns = columns or (count if count < 4 else math.ceil(math.sqrt(count)) if count < 10 else 4 if count <= 12 else 8)
    lines = math.ceil(count / columns)
    size = NORMAL if count < 3 else SMALL
    side = min(widest, (INCHES - 1.2) / columns, (INCHES - head) / lines - 0.45)
    texts = [wrapped(text, side - 0.1, size) for text in titles]
    named = 0.1 + 0.16 * max(text.count("\n") + 1 for text in texts)
    figure, axes = panels(lines, columns, max(5.0, (side + 0.06) * columns + 1.1), (side + named) * lines + head)
    used = list(axes.flat[:count])
    for axis, text in zip(used, texts, strict=True):
        axis.set_title(text, fontsize=size)
    for axis in axes.flat[count:]:
        axis.remove()
    return figure, used


def breadth(layers: Sequence[str], least: float, beside: float = 2.0, each: float = 0.3) -> float:
    """Width of a figure over these layers, in inches; ``beside`` is for the axis and what is right of the panel."""
    return min(max(least, each * len(layers) + beside), INCHES)


def curve(
    axis: Axes,
    values: Sequence[float],
    low: Sequence[float] = (),
    high: Sequence[float] = (),
    main: bool = True,
    points: bool | None = None,
    **style: Any,
) -> None:  # fmt: skip
    """Draw a number over layers with its intervals, NaN where there is none; nothing if it was not measured.

    Fewer than :data:`FEW` measured layers are points with error bars, side by side with those of other curves of the axis, and
    a horizontal line without a marker. More are a line with a band, which is paler if the curve is not a ``main`` one.
    ``points`` chooses one of the two, so that panels of a figure can be alike.
    """
    measured = np.isfinite(np.array(values, dtype=float))
    if not measured.any():
        return
    places = np.arange(len(values), dtype=float)
    ends = np.array([low, high], dtype=float) if len(low) else np.full((2, len(values)), np.nan)
    if not (measured.sum() < FEW if points is None else points):
        [line] = axis.plot(places, values, **({"ms": 3.5, "lw": 1.4} | style))
        if np.isfinite(ends).any():
            axis.fill_between(places, *ends, color=line.get_color(), alpha=0.15 if main else 0.06, lw=0)
        return
    if not style.get("marker"):  # a reference: a line as wide as the points of a layer
        axis.hlines(values, places - 0.35, places + 0.35, **{name: style[name] for name in ("ls", "color", "label")}, lw=1.4)
        return
    [line] = axis.plot(places, values, gid="points", **(style | {"ls": "none", "ms": 5}))
    drawn = [each for each in axis.get_lines() if each.get_gid() == "points"]
    if np.isfinite(ends).any():
        axis.vlines(places, *ends, color=line.get_color(), lw=1.4, gid=f"bars {len(drawn)}")
    step = min(0.1, 0.7 * (_width(axis) - 1.5) / len(values) / len(drawn))
    for number, each in enumerate(drawn):  # side by side, in the order of the legend
        shift = ScaledTranslation(step * (number - (len(drawn) - 1) / 2), 0, axis.figure.dpi_scale_trans)
        bars = [bar for bar in axis.collections if bar.get_gid() == f"bars {number + 1}"]
        for artist in (each, *bars):
            artist.set_transform(axis.transData + shift)


def name_layers(axis: Axes, layers: Sequence[str], size: float = SMALL) -> None:
    """Label the horizontal axis with layers, slanted or vertical if there are many. All names, as long as they fit."""
    inches = _width(axis) - 1.5
    step = max(1, math.ceil(len(layers) * 1.25 * size / 72 / inches))
    shown = range(0, len(layers), step)
    rotated: dict[str, Any] = {"rotation": 30, "ha": "right", "rotation_mode": "anchor"}
    if len(layers) > SLANTED:
        rotated = {"rotation": 90}
    elif max(measured(layer, size) for layer in layers) < 0.9 * (inches - 2.5) / len(layers):  # 2.5: a legend beside it
        rotated = {}
    axis.set_xticks(shown, [layers[place] for place in shown], fontsize=size, **rotated)
    axis.set_xlim(-0.6, len(layers) - 0.4)


def _width(axis: Axes) -> float:
    """Width of the figure of an axis, in inches."""
    return float(axis.figure.bbox.width / axis.figure.dpi)


def least_span(
    axis: Axes, span: float = LEAST, low: float | None = None, high: float | None = None, along: str = "y"
) -> None:  # fmt: skip
    """Widen an axis to a least span, so that it does not enlarge small differences; ends stay within limits."""
    bottom, top = axis.get_ylim() if along == "y" else axis.get_xlim()
    missing = max(0.0, span - abs(top - bottom)) / 2
    down, up = min(bottom, top) - missing, max(bottom, top) + missing
    if low is not None and down < low:
        down, up = low, max(up, low + span)
    if high is not None and up > high:
        down, up = min(down, high - span), high
    axis.set(**{f"{along}lim": (down, up) if bottom < top else (up, down)})


def write_cells(axes: Sequence[Axes], size: float = 6.5) -> None:
    """Write the numbers of maps into their cells, where they fit."""
    tables: dict[Axes, np.ndarray] = {
        axis: np.ma.filled(np.ma.asarray(axis.images[0].get_array()), np.nan) for axis in axes if axis.images
    }
    shown = {axis: table for axis, table in tables.items() if max(table.shape[:2]) <= 24}
    for figure in {axis.figure for axis in shown if isinstance(axis.figure, Figure)}:
        figure.draw_without_rendering()  # finds the layout
    for axis, table in shown.items():
        image = axis.images[0]
        box = axis.get_window_extent()
        side = min(box.width / table.shape[1] / len("−.00"), box.height / table.shape[0] / 2)
        if table.ndim != 2 or 72 * side / axis.figure.dpi < 0.62 * size:
            continue
        for (row, column), value in np.ndenumerate(table):
            if np.isfinite(value):
                red, green, blue, _ = image.cmap(image.norm(value))
                dark = 0.2126 * red + 0.7152 * green + 0.0722 * blue < 0.45
                text = f"{round(float(value), 2) + 0.0:.2f}".replace("0.", ".", 1).replace("-", "−")  # no −.00
                axis.text(column, row, text, ha="center", va="center", fontsize=size, color="white" if dark else DARK)


def title(figure: Figure, *lines: str) -> None:
    """Title of a figure; lines are wrapped at its width."""
    inches = figure.get_figwidth() - 0.3
    figure.suptitle("\n".join(wrapped(line, inches, LARGE) for line in lines if line), fontsize=LARGE)


def legend(figure: Figure, handles: Sequence[Any], labels: Sequence[str], size: float = SMALL) -> None:
    """Legend below all panels, in as many columns as fit."""
    inches = figure.get_figwidth() - 0.3
    texts = [wrapped(label, inches - 0.5, size) for label in labels]
    widest = max((measured(line, size) for text in texts for line in text.splitlines()), default=1.0)
    columns = max(1, min(len(texts), int(inches / (widest + 0.5))))
    if texts:
        figure.legend(handles, texts, loc="outside lower center", ncols=columns, frameon=False, fontsize=size)


def beside(axis: Axes, heading: str = "", size: float = SMALL) -> None:
    """Legend right of a panel, if anything has a label."""
    handles, labels = axis.get_legend_handles_labels()
    if handles:
        texts = [wrapped(label, 2.2, size) for label in labels]
        place: dict[str, Any] = {"loc": "upper left", "bbox_to_anchor": (1.01, 1.0), "borderaxespad": 0.0}
        axis.legend(handles, texts, frameon=False, fontsize=size, title=heading or None, title_fontsize=size, **place)


def wrapped(text: str, inches: float, size: float) -> str:
    """A text in lines that are no wider than this at a font size. Words that are wider are broken."""
    lines = []
    for paragraph in text.splitlines():
        line = ""
        for word in paragraph.split(" "):
            if line and measured(f"{line} {word}", size) > inches:
                lines.append(line)
                line = word
            else:
                line = f"{line} {word}" if line else word
            while measured(line, size) > inches and len(line) > 1:
                fits = min(len(line) - 1, max(1, int(len(line) * inches / measured(line, size))))
                while fits > 1 and measured(line[:fits], size) > inches:
                    fits -= 1
                lines.append(line[:fits])
                line = line[fits:]
        lines.append(line)
    return "\n".join(lines)


@cache
def _renderer() -> RendererAgg:
    return RendererAgg(1, 1, 72)


def measured(text: str, size: float) -> float:
    """Width of a line of text, in inches."""
    width, _, _ = _renderer().get_text_width_height_descent(text, FontProperties(size=size), False)
    return float(width) / 72


def write_figures(figures: Mapping[str, Figure], folder: Path, form: str = FORMATS[0]) -> list[Path]:
    """Write figures by name, as ``png`` or ``pdf``, and close them; returns their paths."""
    paths = []
    for name, figure in figures.items():
        paths.append(folder / f"{name}.{form}")
        write(paths[-1], figure)
    return paths


def write(path: Path, figure: Figure) -> None:
    """Write a figure in the format of the file extension, with at most :data:`PIXELS` on its longer side, and close it."""
    write_figure(path, figure, dpi=min(DPI, int(PIXELS / max(figure.get_size_inches()))))
    plt.close(figure)
