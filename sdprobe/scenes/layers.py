"""A layer: a figure placed on the canvas, dressed and given a depth. Coordinates are shares of the canvas side."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from math import ceil, floor

import numpy as np
from PIL import Image, ImageDraw

from sdprobe.scenes.figure import Figure, Part
from sdprobe.scenes.materials import Material
from sdprobe.scenes.shapes import Ring, Shape, bounds

Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class Layer:
    """`depth` of its back and `thickness` in scene units (smaller = nearer); `casts` a shadow on what is behind."""

    figure: Figure
    materials: tuple[Material, ...]
    depth: float
    thickness: float
    casts: bool = True
    flipped: bool = False

    def part_depth(self, order: int) -> float:
        """Depth of the back of the part painted `order`-th: later parts are nearer, within the thickness."""
        return self.depth - self.thickness * order / len(self.figure.parts)


def supersampling(size: int) -> int:
    """Samples per pixel and axis: small images get more, since outlines snap to the sample grid."""
    return min(8, max(2, 1024 // size))


def pixel_box(shape: Shape, size: int) -> Box | None:
    """Smallest box of whole pixels (x0, y0, x1, y1) around the shape inside the canvas; None if it lies outside."""
    x0, y0, x1, y1 = bounds(shape)
    box = max(0, floor(x0 * size)), max(0, floor(y0 * size)), min(size, ceil(x1 * size)), min(size, ceil(y1 * size))
    return box if box[0] < box[2] and box[1] < box[3] else None


def coverage(shape: Shape, box: Box, size: int) -> Image.Image:
    """Share of each pixel of `box` that the shape covers, 0..255."""
    n = supersampling(size)
    x0, y0, x1, y1 = box
    rings = ((ring * size - (x0, y0)) * n for ring in shape)
    return silhouette(rings, (n * (x1 - x0), n * (y1 - y0))).reduce(n)


def silhouette(rings: Iterable[Ring], size: tuple[int, int], fill: int = 255) -> Image.Image:
    """Rings drawn on black, in units of the picture's pixels; pixel i has its centre at i + 1/2."""
    mask = Image.new("L", size)
    draw = ImageDraw.Draw(mask)
    for ring in rings:
        draw.polygon(np.floor(ring).astype(int).ravel().tolist(), fill=fill)
    return mask


def footprints(layer: Layer, size: int) -> Iterator[tuple[int, Part, Box, Image.Image]]:
    """Painting order, part, pixel box and coverage of every part that touches the canvas, back to front."""
    for order, part in enumerate(layer.figure.parts):
        box = pixel_box(part.shape, size)
        if box is not None:
            yield order, part, box, coverage(part.shape, box, size)
