"""Outlines every scene is built from: ellipses, tapered limbs, smooth blobs, rounded polygons.

A ring is a closed outline, (n, 2) float64 points (x, y), x right and y down, without the first point repeated.
A shape is a tuple of rings and means their union, so that limbs may bend without self-intersecting outlines.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

Ring = NDArray[np.float64]
Shape = tuple[Ring, ...]


def point(x: float, y: float) -> NDArray[np.float64]:
    """The point (x, y) as an array of shape (2,)."""
    return np.array((x, y), dtype=np.float64)


def polar(origin: ArrayLike, angle: float, radius: float) -> NDArray[np.float64]:
    """The point at `radius` from `origin`; `angle` in radians from +x towards +y (clockwise on screen)."""
    return np.asarray(origin, dtype=np.float64) + radius * point(np.cos(angle), np.sin(angle))


def ellipse(centre: ArrayLike, rx: float, ry: float, angle: float = 0.0, n: int = 36) -> Ring:
    """Ellipse of half axes `rx`, `ry`, turned by `angle` radians; (n, 2)."""
    t = np.linspace(0, 2 * np.pi, n, endpoint=False)
    x, y = rx * np.cos(t), ry * np.sin(t)
    c, s = np.cos(angle), np.sin(angle)
    return np.stack((c * x - s * y, s * x + c * y), axis=1) + np.asarray(centre, dtype=np.float64)


def capsule(p: ArrayLike, q: ArrayLike, rp: float, rq: float, n: int = 9) -> Ring:
    """Convex hull of two discs, radius `rp` at `p` and `rq` at `q`: one segment of a tapered limb."""
    a, b = np.asarray(p, dtype=np.float64), np.asarray(q, dtype=np.float64)
    d = float(np.hypot(*(b - a)))
    if d <= abs(rp - rq):
        return ellipse(a if rp > rq else b, max(rp, rq), max(rp, rq))
    heading = np.arctan2(b[1] - a[1], b[0] - a[0])
    tangent = np.arccos((rp - rq) / d)
    back = np.linspace(heading + tangent, heading + 2 * np.pi - tangent, n)
    front = np.linspace(heading - tangent, heading + tangent, n)
    arcs = [c + r * np.stack((np.cos(t), np.sin(t)), axis=1) for c, r, t in ((a, rp, back), (b, rq, front))]
    return np.concatenate(arcs)


def limb(points: Sequence[ArrayLike], radii: Sequence[float]) -> Shape:
    """Tapered tube through `points`, one capsule per segment."""
    ends = zip(points[:-1], points[1:], radii[:-1], radii[1:], strict=True)
    return tuple(capsule(p, q, rp, rq) for p, q, rp, rq in ends)


def curve(start: ArrayLike, angle: float, length: float, bend: float, n: int = 6) -> Ring:
    """Open arc of `n` points from `start`: heading `angle`, turned by `bend` radians in total over `length`."""
    headings = angle + bend * (np.arange(n - 1) + 0.5) / (n - 1)
    steps = length / (n - 1) * np.stack((np.cos(headings), np.sin(headings)), axis=1)
    origin = np.asarray(start, dtype=np.float64)[None]
    return np.concatenate((origin, origin + np.cumsum(steps, axis=0)))


def smooth(points: Sequence[ArrayLike], n: int = 7) -> Ring:
    """Closed Catmull-Rom spline through `points`, `n` samples per span."""
    p = np.asarray(points, dtype=np.float64)
    before, after, later = np.roll(p, 1, 0), np.roll(p, -1, 0), np.roll(p, -2, 0)
    t = np.linspace(0, 1, n, endpoint=False)[None, :, None]
    a, b, c, d = (array[:, None] for array in (before, p, after, later))
    spans = b + 0.5 * t * (c - a + t * (2 * a - 5 * b + 4 * c - d + t * (3 * (b - c) + d - a)))
    return spans.reshape(-1, 2)


def rounded(points: Sequence[ArrayLike], cut: float = 0.2, rounds: int = 3) -> Ring:
    """Polygon with its corners cut `rounds` times (Chaikin), first by the share `cut` of each side."""
    ring = np.asarray(points, dtype=np.float64)
    for step in range(rounds):
        share = cut if step == 0 else 0.25
        following = np.roll(ring, -1, 0)
        pair = (ring + share * (following - ring), following - share * (following - ring))
        ring = np.stack(pair, axis=1).reshape(-1, 2)
    return ring


def rectangle(x0: float, y0: float, x1: float, y1: float) -> list[tuple[float, float]]:
    """Corners of a box, beginning with (x0, y0)."""
    return [(x0, y0), (x1, y0), (x1, y1), (x0, y1)]


def mirrored(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Points exchanged left to right, in reverse order: the other half of a symmetric outline."""
    return [(-x, y) for x, y in reversed(points)]


def contains(shape: Shape, where: ArrayLike) -> bool:
    """Whether the point (x, y) lies inside any ring of `shape` (even-odd rule for each ring)."""
    x, y = np.asarray(where, dtype=np.float64)
    for ring in shape:
        x0, y0 = ring.T
        x1, y1 = np.roll(ring, -1, 0).T
        crosses = (y0 > y) != (y1 > y)
        at = x0 + (y - y0) * (x1 - x0) / np.where(y1 == y0, 1.0, y1 - y0)
        if np.count_nonzero(crosses & (x < at)) % 2:
            return True
    return False


def bounds(rings: Sequence[Ring]) -> tuple[float, float, float, float]:
    """Smallest box (x0, y0, x1, y1) around all `rings`."""
    points = np.concatenate(rings)
    (x0, y0), (x1, y1) = points.min(0), points.max(0)
    return float(x0), float(y0), float(x1), float(y1)
