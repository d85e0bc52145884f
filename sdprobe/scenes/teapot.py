"""Teapots in side view, the spout to the right."""

import numpy as np
from numpy.random import Generator

from sdprobe.scenes.figure import DETAIL, SECOND, THIRD, Figure, Part, mark, one
from sdprobe.scenes.shapes import curve, ellipse, limb, mirrored, point, rounded, smooth


def teapot(rng: Generator) -> Figure:
    """A teapot or watering-can shape: belly, lid with knob, spout, looped handle, foot."""
    rx, ry, square = rng.uniform(0.42, 0.62), rng.uniform(0.35, 0.6), rng.uniform(0.72, 0.95)
    upper = [(rx, 0.05), (rx * square * 0.85, -ry * 0.75), (0.3, -ry)]
    lower = [(0.25, ry), (rx * square, ry * 0.7)]
    outline = [*upper, *mirrored(upper), *mirrored(lower), *lower]
    root = point(rx * 0.85, ry * rng.uniform(0.05, 0.4))
    first = -rng.uniform(0.1, 0.7)
    spine = curve(root, first, rng.uniform(0.5, 0.85), rng.uniform(-0.9, 0.1), n=6)
    flare = rng.uniform(0.045, 0.075)
    spout = limb(list(spine), list(np.linspace(0.15, flare, 6)))
    loop = rng.uniform(0.3, 0.55)
    top, bottom = point(-rx * 0.8, -ry * rng.uniform(0.4, 0.7)), point(-rx * 0.85, ry * rng.uniform(0.3, 0.6))
    outer = point(-rx - loop, rng.uniform(-0.25, 0.15))
    bows = point(-rx - 0.75 * loop, outer[1] - 0.22), point(-rx - 0.7 * loop, outer[1] + 0.25)
    ring = smooth([top, bows[0], outer, bows[1], bottom], 5)[:21]
    handle = limb(list(ring), [rng.uniform(0.045, 0.07)] * 21)
    knob_y = -ry - rng.uniform(0.1, 0.3)
    knob_size = rng.uniform(0.06, 0.1)
    slope = [(-0.34, -ry + 0.03), (-0.2, 0.6 * knob_y - 0.4 * ry)]
    lid = smooth([*slope, *mirrored(slope), (0, -ry + 0.09)])
    foot = rounded([(-0.3, ry - 0.06), (0.3, ry - 0.06), (0.36, ry + 0.08), (-0.36, ry + 0.08)], 0.12, 2)
    band = [Part("belly", limb(((-rx * 0.93, 0), (rx * 0.93, 0)), (0.05, 0.05)), SECOND)] if rng.random() < 0.4 else []
    parts = (
        Part("handle", handle, SECOND),
        Part("foot", one(foot), THIRD),
        Part("spout", spout, SECOND),
        Part("belly", one(smooth(outline))),
        *band,
        Part("lid", one(lid), THIRD),
        Part("knob", one(ellipse((0, knob_y - 0.03), knob_size, knob_size)), DETAIL),
    )
    marks = {
        "spout_tip": mark(spine[-1], "spout"),
        "spout_root": mark(root + point(0.05, 0), "spout", "belly"),
        "handle_top": mark(top, "handle", "belly"),
        "handle_bottom": mark(bottom, "handle", "belly"),
        "handle_outer": mark(outer, "handle"),
        "knob": mark((0, knob_y - 0.03), "knob"),
        "lid_front_rim": mark((0.28, -ry + 0.03), "lid"),
        "lid_rear_rim": mark((-0.28, -ry + 0.03), "lid"),
        "foot_front": mark((0.3, ry + 0.05), "foot"),
        "foot_rear": mark((-0.3, ry + 0.05), "foot"),
    }
    return Figure("teapot", parts, marks)
