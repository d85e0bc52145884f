"""Laws of every figure: pixels, texts inside the canvas, tick labels apart, no line between two points, colours."""

import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from sdprobe.reports import style
from sdprobe.reports.dispatch import figures
from sdprobe.reports.run import spread
from tests.reports import fabricated as fabricated_runs
from tests.reports.fabricated import KINDS, behind, fabricated

# Machado, Oliveira & Fernandes 2009: linear RGB as seen without one kind of cone
SEEN = {
    "all": np.eye(3),
    "protanopia": np.array([[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]),
    "deuteranopia": np.array([[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]]),
    "tritanopia": np.array([[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.3039]]),
}
XYZ = np.array([[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.072175], [0.0193339, 0.119192, 0.9503041]])
LEAST_DIFFERENCE = 15  # CIE 1976; about 2 can just be told apart side by side
LEAST_CONTRAST = 2.2  # to white, of lines that also have a marker


def linear(colour: str) -> np.ndarray:
    channels = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)


def lab(rgb: np.ndarray) -> np.ndarray:
    relative = XYZ @ rgb.clip(0, 1) / XYZ.sum(1)
    x, y, z = np.where(relative > 216 / 24389, np.cbrt(relative), (24389 / 27 * relative + 16) / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("reader", SEEN)
def test_every_reader_tells_the_colours_apart(reader: str) -> None:
    colours = {colour: lab(SEEN[reader] @ linear(colour)) for colour in (*style.COLOURS, style.GREY)}
    for (name, one), (other, two) in itertools.combinations(colours.items(), 2):
        assert np.linalg.norm(one - two) >= LEAST_DIFFERENCE, (name, other)
    for colour in colours:
        assert 1.05 / (float((XYZ @ linear(colour))[1]) + 0.05) >= LEAST_CONTRAST, colour


def test_no_series_needs_its_colour() -> None:
    found = [style.series(index) for index in range(32)]
    assert len({(each["marker"], each["ls"]) for each in found}) == 32


# --- every figure ----------------------------------------------------------------------------------------------------

DRAWN = ((46, "content"), (2, "depth"))  # curves of many layers, panels of a few; the others are slow to draw


def many(count: int) -> list[str]:
    """Names of layers, the longest of the supported networks among them."""
    return ["conv_in", *(f"down_{i}_attn_{i}_transformer_{i}" for i in range(count - 1))]


@pytest.fixture
def fine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Grids too fine for numbers in their cells, which take long to draw."""
    monkeypatch.setattr(fabricated_runs, "SIDE", 32)


def slow(*values: object) -> object:
    return pytest.param(*values, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    ("count", "kind"),
    [
        (count, kind) if (count, kind) in DRAWN else slow(count, kind)
        for count, kind in itertools.product((46, 1, 2, 4, 5, 12, 13), KINDS)
    ],
)
@pytest.mark.usefixtures("fine")
def test_figures_of_any_number_of_layers_fit_and_can_be_read(tmp_path: Path, count: int, kind: str) -> None:
    run = fabricated(kind, many(count), model="/a/very/long/path/of/a/folder/" + "checkpoint" * 6)
    check(figures(run), tmp_path)


@pytest.mark.parametrize("kind", ["content", *map(slow, [kind for kind in KINDS if kind != "content"])])
@pytest.mark.parametrize("count", [1, *map(slow, (3, 9))])
@pytest.mark.usefixtures("fine")
def test_so_do_those_of_many_mitigations(tmp_path: Path, kind: str, count: int) -> None:
    labels = [f"position_mean_{number}_cosine" for number in range(9)]
    check(figures(behind(kind, *labels, layers=many(count))), tmp_path)


OTHER_AXES = ("equivariance_by_margin",)  # not over layers: a line may join few points


def check(drawn: dict[str, Figure], folder: Path) -> None:
    for name, figure in drawn.items():
        assert "long/path" not in figure.get_suptitle(), "a title has no path"
        figure.canvas.draw()
        box, (width, height) = figure.get_tightbbox(figure.canvas.get_renderer()), figure.get_size_inches()  # type: ignore[attr-defined]
        inside = min(box.x0, box.y0, width - box.x1, height - box.y1)
        assert inside > -0.03, f"{name}: a text leaves the canvas by {-inside:.2f} inches"
        for axis in figure.axes:
            assert not list(overlaps(axis)), f"{name}: names of layers overlap"
            for line in axis.get_lines() if name not in OTHER_AXES else ():
                values = np.asarray(line.get_ydata(), dtype=float)
                joined = line.get_linestyle() != "None" and np.isfinite(values).sum() in range(2, style.FEW)
                assert not joined or len(set(values)) == 1 or axis.images, f"{name}: a line joins a few layers"
        [path] = style.write_figures({name: figure}, folder)
        with Image.open(path) as picture:
            assert max(picture.size) <= style.PIXELS, name


def overlaps(axis: Axes) -> Iterator[tuple[str, str]]:
    """Neighbouring tick labels of the horizontal axis that touch."""
    labels = [label for label in axis.get_xticklabels() if label.get_text() and label.get_visible()]
    for one, other in itertools.pairwise(labels):
        first, second = one.get_window_extent(), other.get_window_extent()
        slant = np.deg2rad(one.get_rotation())
        between = abs(second.x1 - first.x1) * np.sin(slant)  # between the lines on which two slanted texts stand
        apart = between >= one.get_fontsize() * axis.figure.dpi / 72 if 0 < slant < 1.5 else second.x0 >= first.x1 - 1
        if axis.xaxis.get_visible() and axis.axison and not apart:
            yield one.get_text(), other.get_text()


# --- parts -----------------------------------------------------------------------------------------------------------


def test_few_layers_are_points_with_bars_and_many_a_line_with_a_band() -> None:
    for values, joined in (([0.1, np.nan, 0.3, 0.2], False), ([0.1, 0.2, 0.3, 0.2, 0.5], True)):
        _, axis = plt.subplots()
        style.curve(axis, values, np.subtract(values, 0.1), np.add(values, 0.1), label="a", **style.series(0))
        [line], [interval] = axis.get_lines(), axis.collections
        assert (line.get_linestyle() == "-") is joined
        np.testing.assert_allclose(line.get_ydata(), values)
        ends = interval.get_paths()[int(np.nanargmax(values)) if not joined else 0].vertices[:, 1]
        assert np.nanmax(ends) == pytest.approx(np.nanmax(values) + 0.1)
    _, axis = plt.subplots()
    style.curve(axis, [np.nan, np.nan])
    assert not axis.get_lines()


def test_small_changes_stay_small() -> None:
    _, axis = plt.subplots()
    axis.set_ylim(0.5, 0.505)
    style.least_span(axis, 0.1)
    assert axis.get_ylim() == pytest.approx((0.4525, 0.5525))
    axis.set_ylim(0.995, 1.0)
    style.least_span(axis, 0.1, high=1)
    assert axis.get_ylim() == pytest.approx((0.9, 1))
    axis.set_ylim(0.005, 0)
    style.least_span(axis, 0.1, low=0)
    assert axis.get_ylim() == pytest.approx((0.1, 0)), "an inverted axis stays inverted"


def test_texts_are_wrapped_at_their_width_and_lose_nothing() -> None:
    text = "Linear position probe: " + "a" * 300 + " and $more$ words"
    lines = style.wrapped(text, 3, 9).splitlines()
    assert all(style.measured(line, 9) <= 3 for line in lines) and "".join(lines).replace(" ", "") == text.replace(" ", "")


def test_cells_have_their_numbers_where_they_fit() -> None:
    for side, written in ((4, 16), (30, 0)):
        figure, axes = style.sheet(["one"])
        axes[0].imshow(np.linspace(-1, 1, side * side).reshape(side, side), cmap="magma")
        style.write_cells(axes)
        assert len(axes[0].texts) == written
    assert figure.get_suptitle() == ""


def test_a_figure_that_is_too_large_is_written_with_fewer_dots(tmp_path: Path) -> None:
    style.write(tmp_path / "a.png", Figure(figsize=(30, 2)))
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.width in range(1900, style.PIXELS + 1)


@pytest.mark.parametrize("count", [1, 11, 12, 13, 46, 200])
def test_pictured_layers_are_spread_evenly(count: int) -> None:
    names = list(map(str, range(count)))
    shown = spread(names)
    assert len(shown) == min(count, 12) == len(set(shown)) and (shown[0], shown[-1]) == (names[0], names[-1])
    assert np.ptp(np.diff(list(map(int, shown)))) <= 1 if count > 1 else True
