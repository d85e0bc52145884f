"""Displaced pairs: one scene twice, the second time with its main object moved by a chosen distance.

First step of the data path, in the place of `Scenes`. What a feature owes to position shows where position is all that
differs.
"""

from collections.abc import Mapping
from dataclasses import replace
from functools import cache

import numpy as np
import torch
from torch.utils.data import Dataset

from datamodules.images.scenes import Scenes
from datamodules.images.source import Item
from sdprobe.scenes.composition import Composition, compose, stream
from sdprobe.scenes.figure import moved
from sdprobe.scenes.painting import paint
from sdprobe.scenes.pairs import Point, ScenePair, View, pair_of, view
from sdprobe.scenes.truth import Scene, render
from sdprobe.utilities import expect

MOVE = 6  # random stream of the displacement, after those of `composition`
GRID = 64  # displacements are multiples of 1/64 of the side: whole pixels at every size that images may have
HEADINGS = 48
KEPT = 0.75  # share of the source's visible keypoints that a displacement should keep in sight
STRATA: Mapping[str, tuple[float, float]] = {"near": (0.05, 0.15), "middle": (0.15, 0.35), "far": (0.35, 0.6)}


def displaced(composition: Composition, vector: Point) -> Composition:
    """The same scene with its main object moved by `vector`, shares of the side (x right, y down); nothing else moves."""
    main = composition.objects[0]
    return replace(composition, objects=(replace(main, figure=moved(main.figure, 1.0, vector)), *composition.objects[1:]))


@cache
def displacement(seed: int, index: int, stratum: str) -> Point:
    """The vector (x, y), shares of the side, by which `DisplacedScenes` moves the main object of a scene.

    Up to HEADINGS vectors of evenly spaced directions and random lengths within the stratum are tried in random order.
    The first that keeps KEPT of the keypoints seen in the source in sight wins; if none does, the one that keeps the
    most (the first of these).
    """
    low, high = STRATA[stratum]
    rng, composition = stream(seed, index, MOVE), compose(seed, index)
    turns = (rng.random() + rng.permutation(HEADINGS)) / HEADINGS
    lengths = rng.uniform(low, high, HEADINGS)
    offsets = lengths[:, None] * np.stack((np.cos(2 * np.pi * turns), np.sin(2 * np.pi * turns)), axis=1)
    seen = view(composition, 1).seen
    best, most = (0.0, 0.0), -1
    for x, y in (np.round(offsets * GRID) / GRID).tolist():
        if not low < np.hypot(x, y) < high:  # rounding left the stratum
            continue
        kept = len(seen.keys() & view(displaced(composition, (x, y)), 1).seen.keys())
        if kept > most:
            best, most = (x, y), kept
        if most >= KEPT * len(seen):
            break
    return best


class DisplacedScenes(Dataset[Item]):
    """The scenes of `Scenes`, each followed by itself with its main object moved: position varies, nothing else.

    Item 2k is scene k, item 2k + 1 the same composition (shapes, dress, background, light, companions) with the main
    object elsewhere; what lies behind it comes to light, its shadow moves along, and companions stay where they are.

    Guaranteed: the length of the displacement lies strictly inside the stratum, and both its components are multiples
    of 1/64 of the side, so that the object moves by whole pixels at every size and by whole cells of an 8-fold
    downsampled latent at 512 pixels. All keypoints move by that vector exactly. Direction and length are random within
    the stratum under one preference, that three quarters of the keypoints seen at first stay in sight; where no
    direction that was tried allows that, the one that keeps the most is taken. Objects near the border therefore move
    inwards more often than outwards.

    Args:
        size: side of the square images in pixels, a positive multiple of 64.
        limit: number of scenes, at least 1; there are twice as many items.
        seed: which scenes, at least 0.
        stratum: length of the displacement as a share of the side: near (0.05 to 0.15), middle (0.15 to 0.35), or far
            (0.35 to 0.6).

    Raises:
        InputError: if an argument is out of range.
    """

    def __init__(self, size: int = 512, limit: int = 160, seed: int = 0, stratum: str = "far") -> None:
        expect.one_of("stratum", stratum, STRATA)
        self.scenes = Scenes(size, limit, seed)
        self.size, self.limit, self.seed, self.stratum = size, limit, seed, stratum
        self.on_error = "raise"

    def __len__(self) -> int:
        return 2 * self.limit

    def __getitem__(self, index: int) -> Item:
        """{"image": (3, size, size) float32 in [0, 1], "id": see `name`}."""
        pixels = np.array(paint(self._composition(index), self.size))
        image = torch.from_numpy(pixels).permute(2, 0, 1).contiguous().float().div_(255)
        return {"image": image, "id": self.name(index)}

    def scene(self, index: int) -> Scene:
        """The same picture with its full ground truth."""
        return render(self._composition(index), self.size)

    def pairs(self) -> list[ScenePair]:
        """Each scene and its displaced self, as far as they share MIN_SHARED keypoints or more."""
        both = ((2 * k, 2 * k + 1) for k in range(self.limit))
        pairs = (pair_of(a, b, (self._view(a), self._view(b)), self.size) for a, b in both)
        return [pair for pair in pairs if pair is not None]

    def name(self, index: int) -> str:
        """ "scenes-<seed>-<index>" as in `Scenes`, followed by "-<stratum>" for the displaced one."""
        position, moves = self._locate(index)
        return self.scenes.name(position) + f"-{self.stratum}" * moves

    def photo(self, index: int) -> str:
        """Both views of a scene are one photograph."""
        return self.scenes.photo(self._locate(index)[0])

    def content_key(self, index: int) -> str:
        """Names the pixels without drawing them; those of an undisplaced scene as `Scenes` does."""
        position, moves = self._locate(index)
        return self.scenes.content_key(position) + f":{self.stratum}" * moves

    def _view(self, index: int) -> View:
        return view(self._composition(index), self.size)

    def _composition(self, index: int) -> Composition:
        position, moves = self._locate(index)
        composition = compose(self.seed, position)
        return displaced(composition, displacement(self.seed, position, self.stratum)) if moves else composition

    def _locate(self, index: int) -> tuple[int, bool]:
        """Which scene, and whether its object is moved; raises IndexError past either end, which also ends iteration."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"Expected index to be below {len(self)}, but got {index}. Raise images.limit.")
        position, moves = divmod(int(index) % len(self), 2)
        return position, bool(moves)
