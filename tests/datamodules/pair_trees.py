"""Miniature pair datasets in the layouts they have on disk, one pair at a time."""

import csv
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from datamodules.images.pairs import PairFiles
from datamodules.images.proposal_flow import PFPascalImages, PFWillowImages
from datamodules.images.spair import SPairImages
from sdprobe.utilities.errors import InputError

SIZE = (60, 40)  # width, height of pictures
SOURCE = [[10, 12], [30.5, 20.25]]
TARGET = [[14, 8], [41.75, 33.5]]
BOX = [5, 4, 50, 36]
ALPHABET = [
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog", "horse",
    "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
]  # fmt: skip

Listed = Sequence[Sequence[float]]


def blob(width: int, height: int, x: float, y: float) -> np.ndarray:
    """(height, width, 3) grey levels of a soft bright dot around the point (x, y) on black."""
    across, down = np.arange(width) + 0.5, np.arange(height) + 0.5
    light = np.exp(-((across[None] - x) ** 2 + (down[:, None] - y) ** 2) / 8)
    return np.repeat((255 * light).round().astype(np.uint8)[..., None], 3, axis=2)


def save_picture(file: Path, size: tuple[int, int] = SIZE, pixels: np.ndarray | None = None) -> None:
    """A picture with content of its own, unless it is there."""
    if file.exists():
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    if pixels is None:
        seed = sum(file.as_posix().encode())
        pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, **({"quality": 95, "subsampling": 0} if file.suffix == ".jpg" else {}))


def spair_record(category: str = "cat", source: str = "a", target: str = "b", **other: Any) -> dict[str, Any]:
    """PairAnnotation of two keypoints, with what the real ones hold besides."""
    return {
        "src_imname": f"{source}.jpg", "trg_imname": f"{target}.jpg", "src_imsize": [*SIZE, 3], "trg_imsize": [*SIZE, 3],
        "src_bndbox": [1, 2, 50, 38], "trg_bndbox": BOX, "category": category, "src_pose": "Left", "trg_pose": "Left",
        "src_kps": SOURCE, "trg_kps": TARGET, "kps_ids": ["3", "12"], "mirror": 0, "viewpoint_variation": 1,
        "scale_variation": 0, "truncation": 0, "occlusion": 0,
    } | other  # fmt: skip


def add_spair(
    root: Path,
    split: str = "test",
    category: str = "cat",
    source: str = "a",
    target: str = "b",
    points: tuple[Listed, Listed] | None = None,
    **other: Any,
) -> Path:
    """One more pair at the end of a split, with its pictures; returns its annotation."""
    if points is not None:
        ids = [str(k) for k in range(len(points[0]))]
        other = {"src_kps": points[0], "trg_kps": points[1], "kps_ids": ids} | other
    layout = root / "Layout" / "large" / f"{split}.txt"
    layout.parent.mkdir(parents=True, exist_ok=True)
    number = len(layout.read_text().splitlines()) + 1 if layout.exists() else 1
    line = f"{number:06d}-{source}-{target}:{category}"
    with layout.open("a") as opened:
        opened.write(f"{line}\n")
    for name in (source, target):
        save_picture(root / "JPEGImages" / category / f"{name}.jpg")
    file = root / "PairAnnotation" / split / f"{line}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    record = spair_record(category, source, target, **other) | {"pair_id": number, "filename": line}
    file.write_text(json.dumps(record))
    return file


def joined(values: Listed, axis: int) -> str:
    return ";".join(str(float(point[axis])) for point in values)


def annotate_pascal(root: Path, category: str, image: str, kps: Listed, box: Sequence[float] | None = tuple(BOX)) -> None:
    """Annotations of an image; absent keypoints are NaN."""
    file = root / "Annotations" / category / f"{image}.mat"
    file.parent.mkdir(parents=True, exist_ok=True)
    savemat(file, {"kps": np.array(kps, float)} | ({"bbox": np.array([box], float)} if box is not None else {}))


def add_pascal(
    root: Path,
    split: str = "test",
    category: str = "cat",
    source: str = "a",
    target: str = "b",
    points: tuple[Listed, Listed] | None = (SOURCE, TARGET),
    **other: Any,
) -> None:
    """One more row of a split's table, with its pictures; without `points` it is a row of the training table."""
    top = "PF-dataset-PASCAL/JPEGImages"
    row: dict[str, Any] = {"source_image": f"{top}/{source}.jpg", "target_image": f"{top}/{target}.jpg"}
    row["class"] = ALPHABET.index(category) + 1
    if points is None:
        row["flip"] = 0
    else:
        row |= {f"{axis}{side}": joined(kps, k) for side, kps in zip("AB", points, strict=True) for k, axis in enumerate("XY")}
    for name in (source, target):
        save_picture(root / "JPEGImages" / f"{name}.jpg")
    append(root / f"{split}_pairs_pf_pascal.csv", row | other)


def add_willow(
    root: Path,
    category: str = "car(S)",
    source: str = "a",
    target: str = "b",
    points: tuple[Listed, Listed] = (SOURCE, TARGET),
    **other: Any,
) -> None:
    """One more row of the table, with its pictures; the ten keypoints are filled up with zeros."""
    row: dict[str, Any] = {"imageA": f"PF-dataset/{category}/{source}.png", "imageB": f"PF-dataset/{category}/{target}.png"}
    for side, kps in zip("AB", points, strict=True):
        full = [*kps, *[(0, 0)] * (10 - len(kps))]
        row |= {f"{axis}{side}{n}": float(p[k]) for k, axis in enumerate("XY") for n, p in enumerate(full, start=1)}
    for name in (source, target):
        save_picture(root / category / f"{name}.png")
    append(root / "test_pairs_pf.csv", row | other)


def append(file: Path, row: dict[str, Any]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    fresh = not file.exists()
    with file.open("a", newline="") as opened:
        writer = csv.DictWriter(opened, list(row))
        if fresh:
            writer.writeheader()
        writer.writerow(row)


@dataclass(frozen=True)
class Format:
    """A layout on disk: how a pair is added and read, two of its categories, where pictures lie and what names them."""

    add: Callable[..., Any]
    source: type[PairFiles]
    categories: tuple[str, str]
    place: str  # of a picture, by category and name
    path: str  # the option of `add` that states the target's picture
    lists: str  # the file that lists test pairs

    def read(self, root: Path, **options: Any) -> PairFiles:
        return self.source(str(root), **{"size": 64} | options)

    def picture(self, root: Path, name: str) -> Path:
        return root / self.place.format(category=self.categories[0], name=name)

    def refused(self, root: Path, reason: str, message: str, left: str = "a") -> None:
        """The one bad pair of a tree is raised, or left out and counted; what is left shows ``left`` first."""
        with pytest.raises(InputError, match=message) as caught:
            self.read(root)
        sentence = r"Expected .*, but .*\. Correct or remove it, or use images\.on_error=skip\."
        assert re.fullmatch(sentence, str(caught.value), re.S)
        images = self.read(root, on_error="skip")
        assert images.dropped == {reason: 1}
        assert [Path(images.name(pair.source)).stem for pair in images.pairs("test")] == [left]
        assert len(images) == 2


SPAIR = Format(
    add_spair, SPairImages, ("cat", "dog"), "JPEGImages/{category}/{name}.jpg", "trg_imname", "Layout/large/test.txt"
)
PASCAL = Format(add_pascal, PFPascalImages, ("cat", "dog"), "JPEGImages/{name}.jpg", "target_image", "test_pairs_pf_pascal.csv")
WILLOW = Format(add_willow, PFWillowImages, ("car(S)", "duck(S)"), "{category}/{name}.png", "imageB", "test_pairs_pf.csv")
