"""Ground truth of a composition, from the same footprints that are painted: masks, depth, boxes, keypoints.

A pixel belongs to the part that covers at least half of it and is painted last. Whether a keypoint is seen is decided
on the outlines themselves, so it does not depend on the image's size.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sdprobe.scenes.backgrounds import FAR, NEAR, Backdrop
from sdprobe.scenes.composition import Composition
from sdprobe.scenes.layers import Layer, footprints
from sdprobe.scenes.painting import paint
from sdprobe.scenes.shapes import contains

BACKGROUND = "background"


@dataclass(frozen=True)
class SceneObject:
    """One object; coordinates are pixels, x right, y down, the centre of the first pixel at (0.5, 0.5).

    Attributes:
        category: its name, or "occluder" for nameless things in front (these have no keypoints).
        bbox: (x0, y0, x1, y1) around its pixels in `object_mask`, all zero if none is seen.
        extent: (x0, y0, x1, y1) around its outlines, hidden and outside parts included.
        keypoints: name → (x, y), wherever they are. Names mean the same under reflection: near and far sides of animals,
            the person's own left and right of faces and chairs.
        visible: name → whether the point is on the canvas and nothing else is in front of it.
        flipped: whether it faces (or turns) left.
        depth: depth of its back; nearer parts are up to `thickness` nearer. Scene units.
    """

    category: str
    bbox: tuple[float, float, float, float]
    extent: tuple[float, float, float, float]
    keypoints: Mapping[str, tuple[float, float]]
    visible: Mapping[str, bool]
    flipped: bool
    depth: float
    thickness: float


@dataclass(frozen=True)
class Scene:
    """A rendered scene with everything that is known about it.

    Attributes:
        image: (H, W, 3) uint8.
        category: of the main object, which is objects[0].
        objects: the main object, then the others in no particular order.
        part_mask: (H, W) int32 indices into `part_names`, 0 is background; names read "<category>/<part>".
        object_mask: (H, W) int32, 0 is background, k + 1 is objects[k].
        depth: (H, W) float32 in scene units, smaller is nearer: objects within (0, 7), background within [8, 10].
        background: kind of background.
        light: unit vector (x, y, z) towards the light, y down, z towards the viewer.
    """

    image: NDArray[np.uint8]
    category: str
    objects: tuple[SceneObject, ...]
    part_mask: NDArray[np.int32]
    part_names: tuple[str, ...]
    object_mask: NDArray[np.int32]
    depth: NDArray[np.float32]
    background: str
    light: tuple[float, float, float]


def render(composition: Composition, size: int) -> Scene:
    """The scene at `size` × `size` pixels."""
    depth = floor_depth(composition.backdrop, size)
    object_mask, part_mask = np.zeros((size, size), np.int32), np.zeros((size, size), np.int32)
    names = part_table(composition)
    for layer in composition.backdrop.layers:
        if layer.thickness:  # a floor of no thickness has its depth from floor_depth
            cover(layer, size, depth)
    for k in composition.back_to_front():
        layer = composition.objects[k]
        for part, pixels in cover(layer, size, depth):
            object_mask[pixels] = k + 1
            part_mask[pixels] = names.index(f"{layer.figure.category}/{part}")
    objects = tuple(describe(composition, k, object_mask) for k in range(len(composition.objects)))
    image = np.array(paint(composition, size))
    category = composition.objects[0].figure.category
    background = composition.backdrop.kind
    return Scene(image, category, objects, part_mask, names, object_mask, depth, background, composition.light)


def floor_depth(backdrop: Backdrop, size: int) -> NDArray[np.float32]:
    """(size, size) depth of the bare background: FAR, or a floor that comes nearer below the horizon."""
    rows = np.full(size, FAR, dtype=np.float32)
    if backdrop.horizon is not None:
        y = (np.arange(size, dtype=np.float32) + 0.5) / size
        below = np.clip((y - backdrop.horizon) / (1 - backdrop.horizon), 0, 1)
        rows -= np.float32(FAR - NEAR) * below.astype(np.float32)
    return np.repeat(rows[:, None], size, axis=1)


def cover(layer: Layer, size: int, depth: NDArray[np.float32]) -> list[tuple[str, tuple[NDArray[np.intp], NDArray[np.intp]]]]:
    """Write the layer's depth; return the name and the pixels (rows, columns) of each part, back to front."""
    covered = []
    for order, part, box, mask in footprints(layer, size):
        rows, columns = np.nonzero(np.asarray(mask) >= 128)
        pixels = (rows + box[1], columns + box[0])
        depth[pixels] = layer.part_depth(order)
        covered.append((part.name, pixels))
    return covered


def part_table(composition: Composition) -> tuple[str, ...]:
    """Names of the parts in the scene, the background first."""
    named = {f"{layer.figure.category}/{part.name}" for layer in composition.objects for part in layer.figure.parts}
    return BACKGROUND, *sorted(named)


def describe(composition: Composition, k: int, object_mask: NDArray[np.int32]) -> SceneObject:
    """The record of objects[k]."""
    layer, size = composition.objects[k], object_mask.shape[0]
    marks = layer.figure.landmarks
    x0, y0, x1, y1 = (edge * size for edge in layer.figure.extent)
    return SceneObject(
        category=layer.figure.category,
        bbox=tight_box(object_mask == k + 1),
        extent=(x0, y0, x1, y1),
        keypoints={name: (float(m.point[0] * size), float(m.point[1] * size)) for name, m in marks.items()},
        visible={name: is_seen(composition, k, name) for name in marks},
        flipped=layer.flipped,
        depth=layer.depth,
        thickness=layer.thickness,
    )


def tight_box(mask: NDArray[np.bool_]) -> tuple[float, float, float, float]:
    """Box (x0, y0, x1, y1) around the outer edges of the true pixels, all zero if there are none."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not rows.size:
        return 0.0, 0.0, 0.0, 0.0
    return float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)


def is_seen(composition: Composition, k: int, name: str) -> bool:
    """Whether a landmark of objects[k] is on the canvas and lies on the frontmost part there."""
    landmark, own = composition.objects[k].figure.landmarks[name], composition.objects[k]
    if not np.all((landmark.point >= 0) & (landmark.point < 1)):
        return False
    nearer = [layer for layer in composition.objects if layer.depth < own.depth]
    if any(contains(part.shape, landmark.point) for layer in nearer for part in layer.figure.parts):
        return False
    here = [part.name for part in own.figure.parts if contains(part.shape, landmark.point)]
    return bool(here) and here[-1] in landmark.on
