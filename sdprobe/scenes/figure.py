"""Figures: an object as painted parts plus named landmarks, first in its own units, then placed on the canvas.

Figures face right (or turn right) when built. Parts are listed back to front. Slots say which of the object's
materials a part wears; which material that is gets drawn independently (see `materials`). Animals in side view share an eye.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sdprobe.scenes.shapes import Ring, Shape, bounds, ellipse, point

BASE, SECOND, THIRD, DETAIL, PUPIL = range(5)
SLOTS = 5
FAR = 0.72  # brightness of limbs on the side turned away


@dataclass(frozen=True)
class Part:
    """One painted piece. `normal` (x, y, z towards the viewer) marks a flat face; None a rounded, inflated one.

    `shade` in (0, 1] darkens limbs on the far side.
    """

    name: str
    shape: Shape
    slot: int = BASE
    normal: tuple[float, float, float] | None = None
    shade: float = 1.0


@dataclass(frozen=True)
class Landmark:
    """A named point (x, y) on the surface; it counts as seen where one of the parts named in `on` is frontmost."""

    point: NDArray[np.float64]
    on: tuple[str, ...]


@dataclass(frozen=True)
class Figure:
    """An object of one category: parts back to front, landmarks by name."""

    category: str
    parts: tuple[Part, ...]
    landmarks: Mapping[str, Landmark] = field(default_factory=dict)

    @property
    def extent(self) -> tuple[float, float, float, float]:
        """Box (x0, y0, x1, y1) around all parts, whether seen or not."""
        return bounds([ring for part in self.parts for ring in part.shape])


def one(*rings: Ring) -> Shape:
    """A shape of the given rings."""
    return tuple(np.asarray(ring, dtype=np.float64) for ring in rings)


def mark(where: ArrayLike, *on: str) -> Landmark:
    """Landmark at `where` on the parts named."""
    return Landmark(np.asarray(where, dtype=np.float64), on)


def mirror_name(name: str) -> str:
    """Left and right exchanged: the mirror image of a right eye is a left eye."""
    if name.startswith("left_"):
        return "right_" + name.removeprefix("left_")
    if name.startswith("right_"):
        return "left_" + name.removeprefix("right_")
    return name


def tilted(figure: Figure, tilt: float, flipped: bool) -> Figure:
    """The figure mirrored left to right (if `flipped`), then turned by `tilt` radians about its origin."""
    sign = -1.0 if flipped else 1.0
    c, s = np.cos(tilt), np.sin(tilt)
    matrix = np.array(((sign * c, sign * s), (-s, c)))  # row vectors: point @ matrix
    rename = mirror_name if flipped else str

    def turn(part: Part) -> Part:
        normal = part.normal
        if normal is not None:
            x, y = np.asarray(normal[:2]) @ matrix
            normal = (float(x), float(y), normal[2])
        shape = tuple(ring @ matrix for ring in part.shape)
        return replace(part, name=rename(part.name), shape=shape, normal=normal)

    landmarks = {
        rename(name): Landmark(mark.point @ matrix, tuple(rename(part) for part in mark.on))
        for name, mark in figure.landmarks.items()
    }
    return replace(figure, parts=tuple(turn(part) for part in figure.parts), landmarks=landmarks)


def moved(figure: Figure, scale: float, offset: ArrayLike) -> Figure:
    """The figure scaled, then shifted by `offset` (x, y)."""
    shift = np.asarray(offset, dtype=np.float64)
    parts = tuple(replace(p, shape=tuple(r * scale + shift for r in p.shape)) for p in figure.parts)
    landmarks = {n: replace(m, point=m.point * scale + shift) for n, m in figure.landmarks.items()}
    return replace(figure, parts=parts, landmarks=landmarks)


def fitted(figure: Figure, size: float) -> Figure:
    """The figure scaled so that the longer side of its extent is `size`, its extent centred on (0, 0)."""
    x0, y0, x1, y1 = figure.extent
    scale = size / max(x1 - x0, y1 - y0)
    return moved(figure, scale, (-scale * (x0 + x1) / 2, -scale * (y0 + y1) / 2))


def eye(centre: NDArray[np.float64], radius: float) -> list[Part]:
    """An eyeball and its pupil, looking ahead."""
    pupil = centre + point(0.18 * radius, 0)
    return [
        Part("eye", one(ellipse(centre, radius, radius, n=20)), DETAIL),
        Part("eye", one(ellipse(pupil, 0.55 * radius, 0.55 * radius, n=16)), PUPIL),
    ]
