"""Houses seen from above: the gable front on the left, one long side on the right."""

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from sdprobe.scenes.figure import BASE, DETAIL, PUPIL, SECOND, THIRD, Figure, Landmark, Part, mark
from sdprobe.scenes.shapes import rectangle
from sdprobe.scenes.view import View


def house(rng: Generator) -> Figure:
    """A house whose gable front shows on the left and one long side on the right, with door, windows, chimney."""
    view = View(-rng.uniform(0.35, 1.0), rng.uniform(0.12, 0.42))
    w, length, wall = rng.uniform(0.38, 0.6), rng.uniform(0.4, 0.8), rng.uniform(0.45, 1.05)
    peak = wall + rng.uniform(0.3, 0.75)
    over = rng.uniform(0.04, 0.12)
    drop = over * (peak - wall) / w
    eave = wall - drop
    gable = [(-w, 0, length), (w, 0, length), (w, wall, length), (0, peak, length), (-w, wall, length)]
    side = [(w, 0, -length), (w, 0, length), (w, wall, length), (w, wall, -length)]
    near, far = length + over, -length - over
    right = [(0, peak, near), (w + over, eave, near), (w + over, eave, far), (0, peak, far)]
    left = [(0, peak, near), (-w - over, eave, near), (-w - over, eave, far), (0, peak, far)]
    slope = np.array((peak - wall, w, 0)) / np.hypot(peak - wall, w)
    parts = view.face("roof", left, slope * (-1, 1, 1), SECOND)
    parts += view.face("front", gable, (0, 0, 1), BASE) + view.face("side", side, (1, 0, 0), BASE)
    door, door_marks = _front_openings(rng, view, w, length, wall)
    parts += door + _side_windows(rng, view, w, length, wall)
    chimney, chimney_top = _chimney(rng, view, w, length, peak, wall)
    parts += view.face("roof", right, slope, SECOND) + chimney + _bargeboard(view, w, over, eave, peak, near)
    marks = door_marks | {
        "chimney_top": mark(chimney_top, "chimney"),
        "gable_apex": mark(view.point(0, peak - 0.05, near), "roof", "front", "bargeboard"),
        "ridge_end": mark(view.point(0.04, peak - 0.04 * slope[0] / slope[1], far + 0.05), "roof", "chimney"),
        "front_eave": mark(view.point(-w - 0.7 * over, eave + 0.01, near), "bargeboard"),
        "corner_eave": mark(view.point(w + 0.7 * over, eave + 0.02, near), "bargeboard", "roof"),
        "side_eave": mark(view.point(w + 0.9 * over, eave + 0.1 * drop, far + 0.05), "roof"),
        "front_base": mark(view.point(-w + 0.03, 0.03, length), "front"),
        "corner_base": mark(view.point(w, 0.03, length), "front", "side"),
        "side_base": mark(view.point(w, 0.03, -length + 0.03), "side"),
    }
    return Figure("house", tuple(parts), marks)


def _bargeboard(view: View, w: float, over: float, eave: float, peak: float, z: float) -> list[Part]:
    """The two boards along the front edge of the roof."""
    board = 0.09
    parts: list[Part] = []
    for sign in (-1, 1):
        x = sign * (w + over)
        corners = [(0, peak, z), (x, eave, z), (x, eave - board, z), (0, peak - board, z)]
        parts += view.face("bargeboard", corners, (0, 0, 1), THIRD)
    return parts


def _front_openings(rng: Generator, view: View, w: float, z: float, wall: float) -> tuple[list[Part], dict[str, Landmark]]:
    """Door and, if there is space, a round or square attic window."""
    x, half, tall = rng.uniform(-0.35, 0.35) * w, rng.uniform(0.1, 0.15), rng.uniform(0.5, 0.75) * wall
    door = rectangle(x - half, 0, x + half, tall)
    knob = rectangle(x + half * 0.55, tall * 0.42, x + half * 0.8, tall * 0.52)
    parts: list[Part] = []
    for corners, slot in ((door, DETAIL), (knob, PUPIL)):
        parts += view.face("door", [(x, y, z) for x, y in corners], (0, 0, 1), slot)
    r, y = rng.uniform(0.06, 0.1), wall + 0.05
    ring = [
        (r * np.cos(a), y + r * np.sin(a), z)
        for a in np.linspace(0, 2 * np.pi, 4 if rng.random() < 0.4 else 20, endpoint=False) + 0.785
    ]
    parts += view.face("attic_window", ring, (0, 0, 1), DETAIL)
    marks = {
        "door_centre": mark(view.point(x, 0.6 * tall, z), "door"),
        "attic_window": mark(view.point(0, y, z), "attic_window"),
    }
    return parts, marks


def _side_windows(rng: Generator, view: View, w: float, length: float, wall: float) -> list[Part]:
    """A row of windows with glazing bars on the long side."""
    n, y = int(rng.integers(1, 4)), rng.uniform(0.3, 0.4) * wall
    high = y + rng.uniform(0.3, 0.42) * wall
    parts: list[Part] = []
    half = min(0.14, 0.6 * length / n)
    for z in np.linspace(-length, length, 2 * n + 1)[1::2]:
        pane = rectangle(z - half, y, z + half, high)
        upright = rectangle(z - 0.012, y, z + 0.012, high)
        across = rectangle(z - half, (y + high) / 2 - 0.012, z + half, (y + high) / 2 + 0.012)
        for corners, slot in ((pane, DETAIL), (upright, PUPIL), (across, PUPIL)):
            parts += view.face("window", [(w, y, z) for z, y in corners], (1, 0, 0), slot)
    return parts


def _chimney(
    rng: Generator, view: View, w: float, length: float, peak: float, wall: float
) -> tuple[list[Part], NDArray[np.float64]]:
    """A chimney rising from the visible slope, and the middle of its top."""
    half, x = rng.uniform(0.06, 0.1), w * rng.uniform(0.25, 0.5)
    z, top = length * rng.uniform(-0.6, 0.4), peak + rng.uniform(0.1, 0.35)
    low = peak - (peak - wall) * (x + half) / w
    parts = view.box("chimney", (x - half, low, z - half), (x + half, top, z + half), THIRD)
    return parts, view.point(x, top - 0.01, z)
