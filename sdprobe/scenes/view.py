"""Parallel projection of flat faces of three-dimensional boxes."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sdprobe.scenes.figure import Part


class View:
    """Parallel projection. World axes: x right, y up, z towards the viewer; then `yaw` and `pitch` in radians."""

    def __init__(self, yaw: float, pitch: float) -> None:
        a, b, c, d = np.cos(yaw), np.sin(yaw), np.cos(pitch), np.sin(pitch)
        # Rows: screen x (right), screen y (down), nearness.
        self.matrix = np.array(((a, 0, b), (-b * d, -c, a * d), (-b * c, d, a * c)))

    def point(self, *xyz: float) -> NDArray[np.float64]:
        """Screen position (x, y) of a world point."""
        screen: NDArray[np.float64] = (self.matrix @ np.array(xyz))[:2]
        return screen

    def face(self, name: str, corners: ArrayLike, outward: ArrayLike, slot: int) -> list[Part]:
        """The flat polygon through the world `corners`, or nothing if its `outward` normal points away."""
        x, y, z = self.matrix @ np.asarray(outward, dtype=np.float64)
        if z <= 0:
            return []
        ring = np.asarray(corners, dtype=np.float64) @ self.matrix[:2].T
        return [Part(name, (ring,), slot, normal=(float(x), float(y), float(z)))]

    def box(self, name: str, low: Sequence[float], high: Sequence[float], slot: int) -> list[Part]:
        """Visible faces of the axis-aligned box from corner `low` to corner `high`."""
        parts: list[Part] = []
        for axis in (0, 1, 2):
            u, v = [k for k in (0, 1, 2) if k != axis]
            for end, sign in ((low, -1.0), (high, 1.0)):
                corners = np.empty((4, 3))
                corners[:, axis] = end[axis]
                corners[:, u] = (low[u], high[u], high[u], low[u])
                corners[:, v] = (low[v], low[v], high[v], high[v])
                parts += self.face(name, corners, sign * np.eye(3)[axis], slot)
        return parts
