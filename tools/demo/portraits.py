"""Portraits: one large object in plain colours, fully visible, in front of a gradient. They are easier to learn than scenes."""

import numpy as np
from numpy.random import Generator
from PIL import Image

from sdprobe.scenes.backgrounds import gradient
from sdprobe.scenes.composition import BUILDERS, DRESS, GROUND, PLACE, SHAPE, Composition, compose, main_category, pose, stream
from sdprobe.scenes.figure import SLOTS, Figure, moved
from sdprobe.scenes.layers import Layer
from sdprobe.scenes.materials import Material, colour

DEPTH = 3.5
LIGHT = (0.0, -0.6, 0.8)  # from above
# version of the training data: portraits, captions, latents, part maps; raise it when one of them changes
VERSION = 1


def portrait(seed: int, index: int) -> Composition:
    """The portrait `index` of the dataset `seed`: its longer side takes 0.55 to 0.95 of the canvas."""
    where, dress, ground = stream(seed, index, PLACE), stream(seed, index, DRESS), stream(seed, index, GROUND)
    turn = dress.random()
    figure = BUILDERS[main_category(seed, index)](stream(seed, index, SHAPE))
    figure, flipped = pose(figure, where.uniform(0.55, 0.95), where)
    main = Layer(_inside(figure, where), paints(dress, turn), DEPTH, 0.4, flipped=flipped)
    return Composition(gradient(ground, turn + ground.uniform(0.3, 0.7)), (main,), LIGHT)


def paints(rng: Generator, turn: float) -> tuple[Material, ...]:
    """One plain colour per slot, lightness spread as in :func:`~sdprobe.scenes.materials.wardrobe`."""
    turns = [turn, *(turn + rng.uniform(0.3, 0.7, SLOTS - 2))]
    turns.append(turns[-1] + rng.uniform(0.35, 0.65))
    blank = Image.new("L", (2, 2))
    return tuple(Material(blank, (255 * colour(rng, value) + 0.5).astype(np.uint8).tobytes() * 256) for value in turns)


def _inside(figure: Figure, rng: Generator) -> Figure:
    """The figure at a random position where no part of it is cut off."""
    x0, y0, x1, y1 = figure.extent
    half = (x1 - x0) / 2, (y1 - y0) / 2
    return moved(figure, 1.0, [rng.uniform(reach, 1 - reach) for reach in half])


KINDS = {"scenes": compose, "portraits": portrait}
