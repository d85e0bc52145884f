"""Portraits: one large object, wholly visible, before a plain gradient. Easier to learn from than cluttered scenes."""

from numpy.random import Generator

from datamodules.images.scenes.backgrounds import gradient
from datamodules.images.scenes.composition import (
    BUILDERS,
    DRESS,
    GROUND,
    PLACE,
    SHAPE,
    Composition,
    compose,
    main_category,
    pose,
    stream,
)
from datamodules.images.scenes.figure import Figure, moved
from datamodules.images.scenes.layers import Layer
from datamodules.images.scenes.materials import wardrobe

DEPTH = 3.5
LIGHT = (0.0, -0.6, 0.8)  # from above


def portrait(seed: int, index: int) -> Composition:
    """The portrait `index` of the dataset `seed`: its longer side takes 0.55 to 0.95 of the canvas."""
    where, dress, ground = stream(seed, index, PLACE), stream(seed, index, DRESS), stream(seed, index, GROUND)
    turn = dress.random()
    figure = BUILDERS[main_category(seed, index)](stream(seed, index, SHAPE))
    figure, flipped = pose(figure, where.uniform(0.55, 0.95), where)
    main = Layer(_inside(figure, where), wardrobe(dress, turn), DEPTH, 0.4, flipped=flipped)
    return Composition(gradient(ground, turn + ground.uniform(0.3, 0.7)), (main,), LIGHT)


def _inside(figure: Figure, rng: Generator) -> Figure:
    """The centred figure somewhere on the canvas, nothing of it cut off."""
    x0, y0, x1, y1 = figure.extent
    half = (x1 - x0) / 2, (y1 - y0) / 2
    return moved(figure, 1.0, [rng.uniform(reach, 1 - reach) for reach in half])


KINDS = {"scenes": compose, "portraits": portrait}
