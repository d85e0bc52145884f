"""Chairs seen from above and from one side, turned to the right of the viewer."""

import numpy as np
from numpy.random import Generator

from sdprobe.scenes.figure import BASE, SECOND, THIRD, Figure, Landmark, Part, mark
from sdprobe.scenes.view import View


def chair(rng: Generator) -> Figure:
    """A chair turned to the right of the viewer: four legs, seat, back of slats, rails or a panel, maybe arms."""
    view = View(rng.uniform(0.25, 1.0), rng.uniform(0.25, 0.6))
    w, d, t = rng.uniform(0.4, 0.6), rng.uniform(0.38, 0.52), rng.uniform(0.05, 0.12)
    leg, rise, thick = rng.uniform(0.4, 0.85), rng.uniform(0.55, 1.15), rng.uniform(0.06, 0.1)
    parts: list[Part] = []
    marks: dict[str, Landmark] = {}
    corners = (("back", -1, "right"), ("back", 1, "left"), ("front", -1, "right"), ("front", 1, "left"))
    for depth, sign, side in corners:
        x0 = -w if sign < 0 else w - thick
        z0 = -d if depth == "back" else d - thick
        name = f"{side}_{depth}_leg"
        parts += view.box(name, (x0, 0, z0), (x0 + thick, leg, z0 + thick), THIRD)
        marks[f"{name}_end"] = mark(view.point(x0 + thick / 2, 0.4 * thick, z0 + 0.9 * thick), name)
    parts += view.box("seat", (-w, leg, -d), (w, leg + t, d), BASE)
    top = leg + t + rise
    parts += _back(rng, view, w, d, leg + t, top, thick)
    if rng.random() < 0.35:
        parts += _arms(rng, view, w, d, leg + t, thick)
    for sign, side in ((-1, "right"), (1, "left")):
        inner = w - 0.5 * thick
        marks[f"{side}_back_corner"] = mark(view.point(sign * inner, top - 0.4 * thick, -d + thick), "back")
        seat = view.point(sign * (w - 0.15 * thick), leg + t, d - 0.15 * thick)
        marks[f"{side}_seat_corner"] = mark(seat, "seat", f"{side}_arm")
    marks["seat_centre"] = mark(view.point(0, leg + t, 0.1 * d), "seat")
    return Figure("chair", tuple(parts), marks)


def _back(rng: Generator, view: View, w: float, d: float, low: float, top: float, thick: float) -> list[Part]:
    """Backrest: two posts and a top rail filled with slats, rails, or one panel."""
    z0, z1, beam = -d, -d + thick, rng.uniform(1.0, 2.2) * thick
    kind = int(rng.integers(3))
    if kind == 0:
        return view.box("back", (-w, low, z0), (w, top, z1), SECOND)
    parts = view.box("back", (-w, low, z0), (-w + thick, top, z1), SECOND)
    if kind == 1:
        n = int(rng.integers(2, 6))
        for x in np.linspace(-w + thick, w - 2 * thick, n + 2)[1:-1]:
            parts += view.box("back", (x, low, z0), (x + 0.8 * thick, top, z1 - 0.3 * thick), SECOND)
    else:
        n = int(rng.integers(1, 4))
        for y in np.linspace(low, top - beam, n + 2)[1:-1]:
            parts += view.box("back", (-w + thick, y, z0), (w - thick, y + beam, z1 - 0.3 * thick), SECOND)
    parts += view.box("back", (w - thick, low, z0), (w, top, z1), SECOND)
    return parts + view.box("back", (-w, top - beam, z0), (w, top, z1), SECOND)


def _arms(rng: Generator, view: View, w: float, d: float, low: float, thick: float) -> list[Part]:
    """Two armrests on posts, the farther side first."""
    y, parts = low + rng.uniform(0.25, 0.4), []
    for x0, side in ((w - thick, "left"), (-w, "right")):
        parts += view.box(f"{side}_arm", (x0, low, d - 2 * thick), (x0 + thick, y, d - thick), THIRD)
        parts += view.box(f"{side}_arm", (x0, y, -d), (x0 + thick, y + thick, d), THIRD)
    return parts
