"""Export of scenes and pairs of them as a folder in the layout of SPair-71k, for any tool that reads that dataset.

    JPEGImages/<category>/<image>.jpg         quality 95, no chroma subsampling; <image> is <seed>_<index> of the scene
    Segmentation/<category>/<image>.png       palette image, 1 + place of the category in alphabetical order, 0 elsewhere
    ImageAnnotation/<category>/<image>.json
    PairAnnotation/<split>/<pair>.json        <pair> is <number>-<source>-<target>:<category>, numbered from 000001
    Layout/large/<split>.txt                  one <pair> a line; Layout/small: every fifth of them

Everything follows from (seed, size, counts). Points and boxes are whole numbers, as in the original: a coordinate (the
centre of the first pixel at 0.5) is rounded to the nearest one, halves up, and held within the image, so the error of an
exported point is at most half a pixel per axis, and one pixel at the far edge. Boxes go around the outer edges of the visible
pixels, which are whole already.

What people annotated in the original is computed from ground truth here, with our own thresholds:
    azimuth_id           eighths of a turn of the front, from the viewer (0) to the viewer's right (2); 6 is left
    pose                 Right (2), Left (6), Frontal (0, 1, 7)
    truncated, occluded  outlines leave the canvas; other objects hide over 1 % of the object's pixels on the canvas
    mirror               0, as loaders of the original insist: pictures are not mirrored, even where an object faces left
    viewpoint_variation  0 same azimuth_id, 1 up to two eighths apart, 2 more
    scale_variation      larger over smaller box area: 0 below 1.5, 1 below 3, 2 above
    truncation           0 neither object truncated, 1 source, 2 target, 3 both; occlusion likewise

Reference: Min, Lee, Ponce and Cho, SPair-71k: A Large-scale Benchmark for Semantic Correspondence, arXiv:1908.10543.
"""

import json
from collections.abc import Mapping
from colorsys import hsv_to_rgb
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sdprobe.scenes.composition import CATEGORIES, Composition, compose
from sdprobe.scenes.pairs import ScenePair, SceneSet, of_category, pairs_among
from sdprobe.scenes.truth import Scene, cover, render
from sdprobe.utilities import expect, progress
from sdprobe.utilities.errors import InputError

SPLITS = ("trn", "val", "test")
VALIDATION, TEST = 0.18, 0.27  # shares of a category's images, about those of the original
FEWEST = 6  # images of a category: two for each split
SLOTS = 30  # keypoint numbers of every annotation
SMALL = 5  # the small layout lists every fifth pair
FRONTS: Mapping[str, int] = {"face": 0, "chair": 1, "house": -1}  # azimuth of what is not seen from the side, unmirrored
CLASSES = tuple(sorted(CATEGORIES))

Record = dict[str, Any]


def export(
    folder: Path, images_per_category: int = 100, pairs_per_category: int | None = None, size: int = 512, seed: int = 0
) -> dict[str, int]:
    """Write the tree to `folder`, which appears complete or not at all; returns the number of pairs of each split.

    Args:
        folder: new or empty.
        images_per_category: at least 6. Of each category 18 % go to val, 27 % to test (at least two each), the rest to
            trn: no image is in two splits.
        pairs_per_category: most pairs of one category in one split, drawn at random; None takes all. A pair shares at
            least three keypoints, and both directions count, as in the original.
        size: side of the images in pixels, a positive multiple of 64.
        seed: which scenes; image <index> shows ``images=scenes`` of this size and seed.

    Raises:
        InputError: the folder is not empty, or an argument is out of range.
    """
    folder = folder.resolve()
    check(folder, images_per_category, pairs_per_category, size, seed)
    scenes = SceneSet(size, images_per_category * len(CATEGORIES), seed)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as temporary:
        tree = Path(temporary) / "tree"
        annotations = write_images(tree, scenes)
        counts = write_pairs(tree, scenes, annotations, pairs_per_category)
        tree.rename(folder)
    return counts


def check(folder: Path, images_per_category: int, pairs_per_category: int | None, size: int, seed: int) -> None:
    """Raises InputError unless the folder is free and the numbers can be used."""
    if folder.exists() and not (folder.is_dir() and next(folder.iterdir(), None) is None):
        got = "one that holds files" if folder.is_dir() else "a file"
        raise InputError(f"Expected '{folder}' to be a new or empty folder, but got {got}. Name another folder.")
    expect.at_least("images-per-category", images_per_category, FEWEST)
    if pairs_per_category is not None:
        expect.at_least("pairs-per-category", pairs_per_category, 1, "Leave it out for all.")
    expect.multiple("size", size, 64)
    expect.at_least("seed", seed, 0)


# --- images ----------------------------------------------------------------------------------------------------------


def write_images(tree: Path, scenes: SceneSet) -> list[Record]:
    """Draw every scene, write its picture, mask and annotation; returns the annotations, in the scenes' order."""
    for kind in ("JPEGImages", "Segmentation", "ImageAnnotation"):
        for category in CATEGORIES:
            (tree / kind / category).mkdir(parents=True)
    annotations = []
    for index in progress.track(range(scenes.limit), "draw scenes", "scene"):
        composition = compose(scenes.seed, index)
        scene, name = render(composition, scenes.size), f"{scenes.seed:04d}_{index:06d}"
        record = annotation(composition, scene, f"{name}.jpg")
        Image.fromarray(scene.image).save(tree / "JPEGImages" / scene.category / f"{name}.jpg", quality=95, subsampling=0)
        segmentation(scene).save(tree / "Segmentation" / scene.category / f"{name}.png")
        (tree / "ImageAnnotation" / scene.category / f"{name}.json").write_text(json.dumps(record))
        annotations.append(record)
    return annotations


def annotation(composition: Composition, scene: Scene, filename: str) -> Record:
    """ImageAnnotation of a scene: its main object."""
    main, size = scene.objects[0], scene.image.shape[0]
    x0, y0, x1, y1 = main.extent
    turn = FRONTS.get(scene.category, 2)
    azimuth = (-turn if main.flipped else turn) % 8
    kps: dict[str, list[int] | None] = {str(slot): None for slot in range(SLOTS)}
    kps |= {
        str(slot): [whole(edge, size) for edge in main.keypoints[name]]
        for slot, name in enumerate(sorted(main.keypoints))
        if main.visible[name]
    }
    return {
        "filename": filename,
        "src_database": "sdprobe scenes",
        "src_annotation": "sdprobe ground truth",
        "src_image": "rendered",
        "image_width": size,
        "image_height": size,
        "image_depth": 3,
        "category": scene.category,
        "pose": {2: "Right", 6: "Left"}.get(azimuth, "Frontal"),
        "truncated": int(min(x0, y0) < 0 or max(x1, y1) > size),
        "occluded": int(hidden_share(composition, scene) > 0.01),
        "difficult": 0,
        "bndbox": [int(edge) for edge in main.bbox],
        "kps": kps,
        "azimuth_id": azimuth,
    }


def whole(coordinate: float, size: int) -> int:
    """The nearest whole number, halves up, that is a pixel of the image.

    >>> whole(2.5, 64), whole(63.8, 64)
    (3, 63)
    """
    return min(int(coordinate + 0.5), size - 1)


def hidden_share(composition: Composition, scene: Scene) -> float:
    """Share of the main object's pixels on the canvas that nearer objects cover."""
    alone = np.zeros(scene.object_mask.shape, bool)
    for _, pixels in cover(composition.objects[0], len(alone), np.zeros(alone.shape, np.float32)):
        alone[pixels] = True
    return 1 - float((alone & (scene.object_mask == 1)).sum()) / max(1, int(alone.sum()))


def segmentation(scene: Scene) -> Image.Image:
    """Palette image of the categories of all named objects; background and nameless occluders are 0."""
    table = [0, *(CLASSES.index(thing.category) + 1 if thing.category in CLASSES else 0 for thing in scene.objects)]
    values: NDArray[np.uint8] = np.array(table, np.uint8)[scene.object_mask]
    picture = Image.fromarray(values)
    colours = [hsv_to_rgb(k / len(CLASSES), 0.75, 0.9) for k in range(len(CLASSES))]
    picture.putpalette([0, 0, 0, *(round(255 * channel) for colour in colours for channel in colour)])
    return picture


# --- pairs -----------------------------------------------------------------------------------------------------------


def members(scenes: SceneSet, category: str) -> dict[str, list[int]]:
    """Indices of the category's scenes in each split: the first ones are trn, then come val and test."""
    indices = of_category(scenes, category)
    val, test = (max(2, round(share * len(indices))) for share in (VALIDATION, TEST))
    trn = len(indices) - val - test
    return {"trn": indices[:trn], "val": indices[trn : trn + val], "test": indices[trn + val :]}


def write_pairs(tree: Path, scenes: SceneSet, annotations: list[Record], limit: int | None) -> dict[str, int]:
    """Write PairAnnotation and both layouts; returns the number of pairs of each split."""
    parts = {category: members(scenes, category) for category in CLASSES}
    counts = {}
    for split in SPLITS:
        folder = tree / "PairAnnotation" / split
        folder.mkdir(parents=True)
        lines: list[str] = []
        for category in progress.track(CLASSES, f"pair {split}"):
            drawn = islice(pairs_among(scenes, parts[category][split], scenes.seed), limit)
            for pair in sorted(drawn, key=lambda pair: (pair.source, pair.target)):
                record = pair_annotation(len(lines) + 1, pair, annotations[pair.source], annotations[pair.target])
                lines.append(record["filename"])
                (folder / f"{record['filename']}.json").write_text(json.dumps(record))
        for layout, step in (("large", 1), ("small", SMALL)):
            path = tree / "Layout" / layout / f"{split}.txt"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("".join(f"{line}\n" for line in lines[::step]))
        counts[split] = len(lines)
    return counts


def pair_annotation(number: int, pair: ScenePair, source: Record, target: Record) -> Record:
    """PairAnnotation of two exported images, by their ImageAnnotations."""
    sides = {"src": source, "trg": target}
    names = [side["filename"].removesuffix(".jpg") for side in sides.values()]
    record: Record = {"pair_id": number, "filename": f"{number:06d}-{names[0]}-{names[1]}:{pair.category}"}
    record |= {f"{key}_imname": side["filename"] for key, side in sides.items()}
    record |= {f"{key}_imsize": [side[f"image_{axis}"] for axis in ("width", "height", "depth")] for key, side in sides.items()}
    record |= {f"{key}_bndbox": side["bndbox"] for key, side in sides.items()}
    record["category"] = pair.category
    record |= {f"{key}_pose": side["pose"] for key, side in sides.items()}
    record |= {f"{key}_kps": [side["kps"][slot] for slot in pair.kps_ids] for key, side in sides.items()}
    record["kps_ids"] = list(pair.kps_ids)
    record["mirror"] = 0
    return record | difficulty(source, target)


def difficulty(source: Record, target: Record) -> Record:
    """The four ratings of a pair; the module's docstring says what they mean."""
    eighths = abs(source["azimuth_id"] - target["azimuth_id"])
    apart = min(eighths, 8 - eighths)
    areas = [(side["bndbox"][2] - side["bndbox"][0]) * (side["bndbox"][3] - side["bndbox"][1]) for side in (source, target)]
    ratio = max(areas) / max(1, min(areas))
    return {
        "viewpoint_variation": (apart > 0) + (apart > 2),
        "scale_variation": (ratio >= 1.5) + (ratio >= 3),
        "truncation": source["truncated"] + 2 * target["truncated"],
        "occlusion": source["occluded"] + 2 * target["occluded"],
    }
