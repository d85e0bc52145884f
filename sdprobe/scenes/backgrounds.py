"""Backgrounds: a painted field, and sometimes hills, a floor or clutter on it.

Only the landscape and the room depend on vertical position (sky above ground, wall above floor), with a horizon at random
height. Nothing else relates appearance to position.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator

from sdprobe.scenes.figure import BASE, SLOTS, Figure, Part, one
from sdprobe.scenes.layers import Layer
from sdprobe.scenes.materials import Field, Material, as_field, colour, material, noise, pattern, ramp
from sdprobe.scenes.shapes import Ring, Shape, capsule, ellipse, limb, polar, rectangle, rounded, smooth

FAR = 10.0  # depth of a plain background, in scene units
NEAR = 8.0  # depth of the floor at the lower edge of the canvas, and of the nearest hill or pebble
SIDE = 160  # side of a background's field


@dataclass(frozen=True)
class Backdrop:
    """What is behind the objects. `horizon` is the height y at which a floor ends, None without a floor."""

    kind: str
    base: Material
    layers: tuple[Layer, ...] = ()
    horizon: float | None = None


def full(rng: Generator, field: Field, turn: float, steepness: float = 1.0, stops: int = 3) -> Material:
    """Material over the whole canvas: `stops` colours around the lightness `turn`, indexed by `field`."""
    tints = [colour(rng, turn + rng.uniform(-0.13, 0.13)) for _ in range(stops)]
    return Material(as_field(field), ramp(tints, steepness, 0.5))


def gradient(rng: Generator, turn: float) -> Backdrop:
    """A linear or radial gradient through two to four colours."""
    field = pattern(rng, "ramp", 1, SIDE)
    if rng.random() < 0.5:
        axis = np.linspace(0, 1, SIDE, dtype=np.float32)
        x, y = rng.random(2, dtype=np.float32)
        field = np.hypot(axis[None] - x, axis[:, None] - y) / np.float32(1.1)
    field = 0.94 * field + 0.06 * noise(rng, 40, 2, side=SIDE)
    return Backdrop("gradient", full(rng, field, turn, stops=int(rng.integers(2, 5))))


def cloudy(rng: Generator, turn: float) -> Backdrop:
    """Noise from one scale or several, soft or in patches."""
    field = noise(rng, int(rng.choice((2, 4, 8, 20))), int(rng.integers(1, 5)), rng.uniform(0.4, 0.9), SIDE)
    return Backdrop("noise", full(rng, field, turn, rng.choice((1.0, 1.3, 4.0)), int(rng.integers(2, 5))))


def striped(rng: Generator, turn: float) -> Backdrop:
    """Stripes, waves, checks or dots from fine to coarse, slightly worn."""
    kind = ("stripes", "waves", "checks", "dots")[int(rng.integers(4))]
    field = pattern(rng, kind, rng.uniform(2, 12), SIDE) + rng.uniform(0.1, 0.5) * (noise(rng, 6, 3, side=SIDE) - 0.5)
    return Backdrop(kind, full(rng, field, turn, rng.uniform(1.0, 5.0), 2))


def tiled(rng: Generator, turn: float) -> Backdrop:
    """Bricks, tiles or planks of varying shade with joints between them."""
    side = 2 * SIDE
    rows = int(rng.integers(4, 12))
    aspect, offset = rng.choice((1.0, 2.0, 5.0)), rng.random()
    axis = (np.arange(side, dtype=np.float32) + 0.5) / side
    v = axis[:, None] * rows + np.float32(rng.random())
    row = np.floor(v).astype(int)
    u = axis[None] * np.float32(rows / aspect) + np.float32(offset) * (row % 3)
    column = np.floor(u).astype(int)
    shades = rng.random((rows + 1, int(column.max()) + 1), dtype=np.float32)
    joint = np.minimum(np.minimum(u % 1, 1 - u % 1) * np.float32(aspect), np.minimum(v % 1, 1 - v % 1))
    field = 0.35 + 0.45 * shades[row, column] + 0.2 * noise(rng, 10, 3, side=side)
    field = np.where(joint < 0.04, np.float32(0.05), field)
    return Backdrop("tiles", full(rng, field if rng.random() < 0.5 else field.T, turn))


def cluttered(rng: Generator, turn: float) -> Backdrop:
    """A worn ground strewn with random shapes of many sizes."""
    base = full(rng, noise(rng, 4, 4, 0.7, SIDE), turn)
    layers = []
    count = int(rng.integers(5, 14))
    for k in range(count):
        figure = Figure("clutter", (Part("clutter", scrap(rng, rng.random(2), rng.uniform(0.04, 0.16))),))
        depth = FAR - (FAR - NEAR) * (k + 1) / (count + 1)
        layers.append(Layer(figure, (material(rng, turn + rng.uniform(-0.3, 0.3)),) * SLOTS, depth, 0.05, casts=True))
    return Backdrop("clutter", base, tuple(layers))


def scrap(rng: Generator, centre: Ring, size: float) -> Shape:
    """A meaningless shape: ellipse, pebble, angular sheet, stick, or clump."""
    kind, angle = int(rng.integers(5)), rng.uniform(0, np.pi)
    if kind == 0:
        return one(ellipse(centre, size, size * rng.uniform(0.4, 1.0), angle))
    spokes = np.sort(rng.uniform(0, 2 * np.pi, int(rng.integers(4, 8))))
    corners = [polar(centre, a, size * rng.uniform(0.6, 1.1)) for a in spokes]
    if kind == 1:
        return one(smooth(corners, 5))
    if kind == 2:
        return one(rounded(corners, 0.05, 1))
    if kind == 3:
        far = polar(centre, angle, size * 2.2)
        return one(capsule(centre, far, 0.2 * size, 0.12 * size))
    return tuple(limb([centre, corner], (0.35 * size, 0.2 * size))[0] for corner in corners)


def landscape(rng: Generator, turn: float) -> Backdrop:
    """Sky, two to four ranges of hills, and ground."""
    horizon = rng.uniform(0.3, 0.75)
    sky = 0.75 * np.linspace(0, 1, SIDE, dtype=np.float32)[:, None] + 0.25 * noise(rng, 3, 4, side=SIDE)
    ranges = int(rng.integers(2, 5))
    layers = []
    for k in range(ranges):
        base = horizon + (k + rng.uniform(-0.3, 0.3)) * (1.1 - horizon) / (ranges + 0.5)
        x = np.linspace(-0.05, 1.05, 60)
        ridge = sum(
            rng.uniform(0.2, 1) / f * np.sin(2 * np.pi * (f * x * rng.uniform(0.6, 1.4) + rng.random())) for f in (1, 2, 4, 9)
        )
        crest = np.stack((x, base + rng.uniform(0.02, 0.09) * ridge), axis=1)
        hill = np.concatenate((crest, ((1.05, 1.1), (-0.05, 1.1))))
        figure = Figure("clutter", (Part("hill", one(hill), BASE, normal=(0.0, -0.4, 0.92)),))
        depth = FAR - (FAR - NEAR) * (k + 1) / (ranges + 1)
        layers.append(Layer(figure, (material(rng, turn + rng.uniform(-0.25, 0.25)),) * SLOTS, depth, 0.05, casts=False))
    return Backdrop("landscape", full(rng, sky, turn), tuple(layers))


def room(rng: Generator, turn: float) -> Backdrop:
    """A papered wall over a floor that comes nearer towards the lower edge; sometimes pictures on the wall."""
    horizon, slant = rng.uniform(0.35, 0.85), rng.uniform(-0.06, 0.06)
    paper = pattern(rng, ("mottle", "stripes", "dots", "checks")[int(rng.integers(4))], rng.uniform(4, 16), SIDE)
    wall = full(rng, paper, turn, rng.uniform(0.4, 2.0), 2)
    corners = [(-0.05, horizon - slant), (1.05, horizon + slant), (1.05, 1.05), (-0.05, 1.05)]
    floor = Figure("clutter", (Part("floor", one(np.array(corners)), BASE, normal=(0.0, -0.5, 0.85)),))
    layers = [Layer(floor, (material(rng, turn + rng.uniform(0.1, 0.9)),) * SLOTS, FAR, 0.0, casts=False)]
    for _ in range(int(rng.integers(0, 4))):
        (x, y), w, h = rng.random(2) * (1, horizon - 0.15), rng.uniform(0.05, 0.14), rng.uniform(0.05, 0.14)
        frame = np.array(rectangle(x - w, y - h, x + w, y + h))
        inner = (frame - (x, y)) * 0.78 + (x, y)
        parts = (Part("frame", one(frame), 0), Part("frame", one(inner), 1, normal=(0.0, 0.0, 1.0)))
        materials = (material(rng, rng.random()), material(rng, rng.random())) * SLOTS
        layers.append(Layer(Figure("clutter", parts), materials, FAR - 0.2, 0.05, casts=True))
    return Backdrop("room", wall, tuple(layers), horizon)


SETTINGS: tuple[Callable[[Generator, float], Backdrop], ...] = (
    gradient, cloudy, striped, tiled, cluttered, cluttered, landscape, landscape, room, room,
)  # fmt: skip


def backdrop(rng: Generator, turn: float) -> Backdrop:
    """A background of random kind with lightness about `turn` on the circle of `materials`."""
    return SETTINGS[int(rng.integers(len(SETTINGS)))](rng, turn)
