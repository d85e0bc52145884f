"""Cars, vans and pick-ups in side view, facing right."""

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from sdprobe.scenes.figure import DETAIL, PUPIL, SECOND, THIRD, Figure, Part, mark, one
from sdprobe.scenes.shapes import ellipse, limb, point, polar, rectangle, rounded


def vehicle(rng: Generator) -> Figure:
    """A car, van, bus or pick-up: body, cabin with windows, two wheels, lamps, bumpers, door handle."""
    half, sill, waist = rng.uniform(0.9, 1.25), 0.0, rng.uniform(0.28, 0.42)
    nose, boot = rng.uniform(0.1, 0.75), rng.choice((rng.uniform(0.04, 0.12), rng.uniform(0.3, 0.75)))
    roof = waist + rng.uniform(0.3, 0.62)
    rake_front, rake_rear = rng.uniform(0.08, 0.32), rng.uniform(0.03, 0.25)
    radius = rng.uniform(0.19, 0.28)
    front, rear = half - rng.uniform(0.33, 0.45), -half + rng.uniform(0.33, 0.45)
    base_front, base_rear = half - nose, -half + boot
    top_front, top_rear = base_front - rake_front, base_rear + rake_rear
    cabin = [(base_rear, -waist + 0.08), (top_rear, -roof), (top_front, -roof), (base_front, -waist + 0.08)]
    slant = rng.uniform(0.0, 0.1)
    hull = [
        (-half, -sill), (-half, -waist), (base_rear, -waist - 0.02), (base_front, -waist - 0.02),
        (half - 0.08, -waist + slant), (half, -waist + slant + 0.12), (half, -sill),
    ]  # fmt: skip
    parts = [Part("cabin", one(rounded(cabin, 0.1, 2)), SECOND)]
    parts += _windows(rng, cabin, waist, roof)
    lamp_y = -waist * 0.62 + 0.5 * slant
    parts += [
        Part("body", one(rounded(hull, 0.1, 2))),
        Part("bumper", limb(((half - 0.05, -0.06), (half + 0.05, -0.06)), (0.055, 0.055)), THIRD),
        Part("bumper", limb(((-half - 0.05, -0.06), (-half + 0.05, -0.06)), (0.055, 0.055)), THIRD),
        Part("headlight", one(ellipse((half - 0.07, lamp_y), 0.07, 0.085)), DETAIL),
        Part("taillight", one(rounded(rectangle(-half, lamp_y - 0.1, -half + 0.08, lamp_y + 0.1), 0.15, 2)), DETAIL),
    ]
    handle = point(0.5 * (top_front + top_rear) - 0.1, -waist + 0.1)
    parts.append(Part("door_handle", limb((handle - point(0.06, 0), handle + point(0.06, 0)), (0.024, 0.024)), DETAIL))
    for name, x in (("rear_wheel", rear), ("front_wheel", front)):
        parts += _wheel(rng, name, point(x, 0.02), radius)
    marks = {
        "front_wheel": mark((front, 0.02), "front_wheel"),
        "rear_wheel": mark((rear, 0.02), "rear_wheel"),
        "headlight": mark((half - 0.07, lamp_y), "headlight"),
        "taillight": mark((-half + 0.04, lamp_y), "taillight"),
        "roof_front": mark((top_front - 0.05, -roof + 0.035), "cabin"),
        "roof_rear": mark((top_rear + 0.05, -roof + 0.035), "cabin"),
        "windscreen_base": mark((base_front - 0.04, -waist + 0.02), "body", "cabin"),
        "door_handle": mark(handle, "door_handle"),
        "front_bumper": mark((half + 0.06, -0.06), "bumper"),
        "rear_bumper": mark((-half - 0.06, -0.06), "bumper"),
    }
    return Figure("vehicle", tuple(parts), marks)


def _windows(rng: Generator, cabin: list[tuple[float, float]], waist: float, roof: float) -> list[Part]:
    """One to three panes inset into the cabin."""
    (rear_low, _), (rear_top, _), (front_top, _), (front_low, _) = cabin
    low, high, rim = -waist - 0.03, -roof + 0.085, 0.075
    n = int(rng.integers(1, 4))
    parts = []
    for k in range(n):
        a, b = k / n, (k + 1) / n
        xs_low = [rear_low + rim + s * (front_low - rear_low - 2 * rim) for s in (a, b)]
        xs_top = [rear_top + rim + s * (front_top - rear_top - 2 * rim) for s in (a, b)]
        pillar = 0.025
        pane = [(xs_low[0] + pillar, low), (xs_top[0] + pillar, high), (xs_top[1] - pillar, high), (xs_low[1] - pillar, low)]
        parts.append(Part("window", one(rounded(pane, 0.12, 2)), DETAIL))
    return parts


def _wheel(rng: Generator, name: str, centre: NDArray[np.float64], radius: float) -> list[Part]:
    """Tyre, rim, and spokes or a hub."""
    parts = [
        Part(name, one(ellipse(centre, radius, radius)), THIRD),
        Part(name, one(ellipse(centre, 0.6 * radius, 0.6 * radius)), DETAIL),
    ]
    n, start = int(rng.integers(3, 7)), rng.uniform(0, np.pi)
    spokes = tuple(
        ring
        for k in range(n)
        for ring in limb((centre, polar(centre, start + 2 * np.pi * k / n, 0.52 * radius)), (0.022, 0.022))
    )
    return [*parts, Part(name, (*spokes, ellipse(centre, 0.16 * radius, 0.16 * radius)), PUPIL)]
