"""Pairs of scenes with corresponding points, for semantic correspondence.

Pairs are made from ground truth, without rendering. A correspondence task takes the pictures from the dataset that the
indices of a pair refer to.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, zip_longest

import numpy as np

from sdprobe.scenes.composition import CATEGORIES, Composition, compose, main_category, stream
from sdprobe.scenes.truth import is_seen
from sdprobe.utilities import expect
from sdprobe.utilities.errors import InputError

MIN_SHARED = 3  # fewest keypoints of a pair: with fewer, a shift cannot be told from a rotation or a change of size
MATCH = 7  # random stream of the pairing; those below belong to `composition` and `displaced`

Point = tuple[float, float]


@dataclass(frozen=True)
class SceneSet:
    """The first ``limit`` scenes of a seed, ``size`` pixels per side: the source of pairs. Nothing is rendered."""

    size: int
    limit: int
    seed: int


@dataclass(frozen=True)
class ScenePair:
    """Two items of one dataset and the keypoints of their main objects that both show.

    Attributes:
        source, target: indices into the dataset the pair was made of.
        category: of both main objects.
        names: of the keypoints, at least MIN_SHARED, in alphabetical order.
        kps_ids: of the same keypoints: place of the name among all of the category in alphabetical order, as a string.
        source_points, target_points: (x, y) of the same keypoints, exact, in pixels of `size` × `size` images, x right,
            y down, the centre of the first pixel at (0.5, 0.5).
        size: side of the images in pixels.
    """

    source: int
    target: int
    category: str
    names: tuple[str, ...]
    kps_ids: tuple[str, ...]
    source_points: tuple[Point, ...]
    target_points: tuple[Point, ...]
    size: int

    @property
    def displacements(self) -> tuple[float, ...]:
        """How far each keypoint lies from its partner, as a share of the image side."""
        offsets = np.subtract(self.target_points, self.source_points)
        return tuple((np.hypot(*offsets.T) / self.size).tolist())


@dataclass(frozen=True)
class View:
    """Main object of a scene: its category, the names of all its keypoints, and the points of those that are seen."""

    category: str
    names: tuple[str, ...]
    seen: Mapping[str, Point]


def view(composition: Composition, size: int) -> View:
    """What the scene shows of its main object at `size` pixels, without drawing it."""
    figure = composition.objects[0].figure
    names = tuple(sorted(figure.landmarks))
    points = {name: figure.landmarks[name].point * size for name in names if is_seen(composition, 0, name)}
    return View(figure.category, names, {name: (float(x), float(y)) for name, (x, y) in points.items()})


def pair_of(source: int, target: int, views: tuple[View, View], size: int) -> ScenePair | None:
    """The pair of two items, or None if they share fewer than MIN_SHARED keypoints."""
    a, b = views
    shared = [name for name in a.names if name in a.seen and name in b.seen]
    if len(shared) < MIN_SHARED:
        return None
    return ScenePair(
        source,
        target,
        category=a.category,
        names=tuple(shared),
        kps_ids=tuple(str(a.names.index(name)) for name in shared),
        source_points=tuple(a.seen[name] for name in shared),
        target_points=tuple(b.seen[name] for name in shared),
        size=size,
    )


def pairs_among(scenes: SceneSet, indices: Sequence[int], seed: int = 0) -> Iterator[ScenePair]:
    """Every pair of two different scenes of `indices`, all of one category, in an order drawn from `seed`.

    (a, b) and (b, a) are two pairs, since keypoint transfer has a direction. Pairs that share fewer than MIN_SHARED
    keypoints are left out. Scenes are composed when a pair first needs them and never drawn.
    """
    views: dict[int, View] = {}

    def look(index: int) -> View:
        if index not in views:
            views[index] = view(compose(scenes.seed, index), scenes.size)
        return views[index]

    if not indices:
        return
    others = len(indices) - 1
    order = stream(seed, indices[0], MATCH).permutation(len(indices) * others)
    for code in order.tolist():
        first, second = divmod(code, others)
        source, target = indices[first], indices[second + (second >= first)]
        pair = pair_of(source, target, (look(source), look(target)), scenes.size)
        if pair is not None:
            yield pair


def of_category(scenes: SceneSet, category: str) -> list[int]:
    """Indices of the scenes whose main object is of this category."""
    return [index for index in range(scenes.limit) if main_category(scenes.seed, index) == category]


def in_turns(streams: Iterable[Iterable[ScenePair]]) -> Iterator[ScenePair]:
    """The first of every stream, the second of every stream, and so on."""
    return (pair for turn in zip_longest(*streams) for pair in turn if pair is not None)


def scene_pairs(scenes: SceneSet, count: int, seed: int = 0) -> list[ScenePair]:
    """`count` pairs of two different scenes whose main objects (objects[0]) are of one category.

    Categories take turns, so that each has its share as long as it has pairs left. Every pair shows at least MIN_SHARED
    keypoints in both scenes; none occurs twice, though (a, b) and (b, a) may both occur. The same scenes and seed give
    the same pairs, and a longer list begins with the shorter one.

    Raises:
        InputError: if count is below 1 or the scenes have fewer pairs.
    """
    expect.at_least("count", count, 1)
    expect.at_least("seed", seed, 0)
    pairs = list(islice(in_turns(pairs_among(scenes, of_category(scenes, name), seed) for name in CATEGORIES), count))
    if len(pairs) < count:
        raise InputError(
            f"Expected count to be at most {len(pairs)}, all pairs of {scenes.limit} scenes, but got {count}. "
            "Raise images.limit or ask for fewer pairs."
        )
    return pairs
