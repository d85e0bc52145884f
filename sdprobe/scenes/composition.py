"""Composition of a scene: objects with pose, location, materials and depth, before anything is rendered.

Each aspect has its own random stream keyed by (seed, index), so appearance cannot depend on category, pose or location.
Categories come in shuffled blocks of len(CATEGORIES) indices, one of each, so they are equally frequent.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.random import PCG64, Generator, SeedSequence

from sdprobe.scenes.backgrounds import Backdrop, backdrop, scrap
from sdprobe.scenes.bird import bird
from sdprobe.scenes.chair import chair
from sdprobe.scenes.face import face
from sdprobe.scenes.figure import Figure, Part, fitted, moved, tilted
from sdprobe.scenes.fish import fish
from sdprobe.scenes.house import house
from sdprobe.scenes.layers import Layer
from sdprobe.scenes.materials import wardrobe
from sdprobe.scenes.quadruped import quadruped
from sdprobe.scenes.shading import Light
from sdprobe.scenes.shapes import limb, polar
from sdprobe.scenes.teapot import teapot
from sdprobe.scenes.vehicle import vehicle

BUILDERS: Mapping[str, Callable[[Generator], Figure]] = {
    "quadruped": quadruped, "bird": bird, "fish": fish, "vehicle": vehicle,
    "chair": chair, "face": face, "teapot": teapot, "house": house,
}  # fmt: skip
CATEGORIES = tuple(BUILDERS)
OCCLUDER = "occluder"

SHAPE, PLACE, DRESS, GROUND, COMPANY, ORDER = range(6)


@dataclass(frozen=True)
class Composition:
    """Everything about a scene but its resolution. `objects[0]` is the main one; `light` points towards the light."""

    backdrop: Backdrop
    objects: tuple[Layer, ...]
    light: Light

    def back_to_front(self) -> list[int]:
        """Indices into `objects`, farthest first."""
        return sorted(range(len(self.objects)), key=lambda k: -self.objects[k].depth)


def stream(seed: int, index: int, concern: int) -> Generator:
    """The random numbers of one aspect of one scene."""
    return Generator(PCG64(SeedSequence((seed, index), spawn_key=(concern,))))


def main_category(seed: int, index: int) -> str:
    """Category of the main object: position index mod 8 in the block's own permutation."""
    block, position = divmod(index, len(CATEGORIES))
    return CATEGORIES[int(stream(seed, block, ORDER).permutation(len(CATEGORIES))[position])]


def pose(figure: Figure, size: float, rng: Generator) -> tuple[Figure, bool]:
    """The figure mirrored or not, tilted by up to 0.35 rad, its longer side `size`, centred on (0, 0)."""
    flipped = bool(rng.random() < 0.5)
    tilt = float(np.clip(rng.normal(0, 0.13), -0.35, 0.35))
    return fitted(tilted(figure, tilt, flipped), size), flipped


def place(figure: Figure, rng: Generator) -> Figure:
    """Shift a centred figure so that its centre is uniform over the canvas, with at most 32 % of each side cut off."""
    x0, y0, x1, y1 = figure.extent
    margin = 0.18 * np.array((x1 - x0, y1 - y0))
    return moved(figure, 1.0, rng.uniform(margin, 1 - margin))


def occluder(rng: Generator) -> Figure:
    """An occluder without a category: a post, a branch or a scrap."""
    if rng.random() < 0.5:
        shape = scrap(rng, np.zeros(2), 1.0)
    else:
        angle = rng.uniform(0, np.pi)
        bend = polar((0, 0), angle + np.pi / 2, rng.uniform(-0.3, 0.3))
        shape = limb((polar((0, 0), angle, -1.6), bend, polar((0, 0), angle, 1.6)), list(rng.uniform(0.05, 0.14, 3)))
    return Figure(OCCLUDER, (Part(OCCLUDER, shape),))


def companions(rng: Generator, main: Layer, dress: Generator) -> list[Layer]:
    """Up to three further layers: occluders and small objects before the main one, objects behind it."""
    x0, y0, x1, y1 = main.figure.extent
    centre, reach = np.array((x0 + x1, y0 + y1)) / 2, np.array((x1 - x0, y1 - y0)) / 2
    layers: list[Layer] = []
    before = int(rng.random() < 0.3) + int(rng.random() < 0.2)
    behind = int(rng.random() < 0.3)
    for k in range(before):
        hides = rng.random() < 0.5
        figure = occluder(rng) if hides else BUILDERS[CATEGORIES[int(rng.integers(len(CATEGORIES)))]](rng)
        figure, flipped = pose(figure, 2 * reach.max() * rng.uniform(0.25, 0.5), rng)
        where = centre + reach * polar((0, 0), rng.uniform(0, 2 * np.pi), rng.uniform(0.65, 1.1))
        figure = moved(figure, 1.0, where.clip(0.05, 0.95))
        depth = main.depth - 0.75 * (k + 1) + rng.uniform(-0.1, 0.1)
        layers.append(Layer(figure, wardrobe(dress, dress.random()), depth, 0.3, flipped=flipped))
    for _ in range(behind):
        figure = BUILDERS[CATEGORIES[int(rng.integers(len(CATEGORIES)))]](rng)
        figure, flipped = pose(figure, rng.uniform(0.18, 0.34), rng)
        depth = main.depth + rng.uniform(0.8, 1.5)
        layers.append(Layer(place(figure, rng), wardrobe(dress, dress.random()), depth, 0.3, flipped=flipped))
    return layers


def compose(seed: int, index: int) -> Composition:
    """The scene `index` of the dataset `seed`."""
    where, dress, ground = stream(seed, index, PLACE), stream(seed, index, DRESS), stream(seed, index, GROUND)
    turn = dress.random()
    figure = BUILDERS[main_category(seed, index)](stream(seed, index, SHAPE))
    figure, flipped = pose(figure, where.uniform(0.42, 0.82), where)
    main = Layer(place(figure, where), wardrobe(dress, turn), where.uniform(2.6, 4.5), 0.4, flipped=flipped)
    azimuth, height = where.uniform(-0.9 * np.pi, -0.1 * np.pi), where.uniform(0.55, 0.85)
    level = float(np.sqrt(1 - height**2))
    light = (level * float(np.cos(azimuth)), level * float(np.sin(azimuth)), height)
    others = companions(stream(seed, index, COMPANY), main, dress)
    return Composition(backdrop(ground, turn + ground.uniform(0.2, 0.8)), (main, *others), light)
