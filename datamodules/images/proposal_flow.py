"""``images=pf_pascal`` and ``images=pf_willow``: the two Proposal Flow datasets.

PF-PASCAL:
    JPEGImages/<image>.jpg
    Annotations/<category>/<image>.mat       kps: (n, 2), NaN where the picture does not show it; bbox: x0, y0, x1, y1
    <val|test>_pairs_pf_pascal.csv           source_image, target_image, class (from 1), XA, YA, XB, YB: mutual keypoints
    trn_pairs_pf_pascal.csv                  source_image, target_image, class, flip; keypoints are in Annotations

PF-WILLOW, whose pairs are for testing only:
    <category>/<image>     such as car(S)/Cars_000a.png
    test_pairs*.csv        imageA, imageB, XA1 .. XA10, YA1 .. YA10, XB1 .. XB10, YB1 .. YB10; one pair a row

Reference: Ham, Cho, Schmid and Ponce, Proposal Flow: Semantic Correspondences from Object Proposals, arXiv:1703.07144.
"""

import csv
from collections.abc import Sequence
from functools import partial
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray
from scipy.io import loadmat

from datamodules.images.pairs import BadPair, Box, Entry, Layout, PairFiles, Point, Statement, inside, warn_if_unpublished
from sdprobe.utilities.errors import InputError

Points = NDArray[np.float64]  # (n, 2), x and y in pixels; a row that holds NaN is a keypoint the picture does not show
Row = dict[str, str]
PASCAL = Layout("PF-PASCAL", {"JPEGImages": "JPEGImages", "*_pairs_pf_pascal.csv": "test_pairs_pf_pascal.csv"})
TABLES = {"train": "trn", "val": "val", "test": "test"}
OPTIONAL = "train"  # its table is not part of what the authors of the other two published
PASCAL_CATEGORIES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog", "horse",
    "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
PASCAL_PAIRS = 299  # of the test split
WILLOW = Layout("PF-WILLOW", {"test_pairs*.csv": "test_pairs*.csv", "*(*)": "category folders such as car(S)"})
WILLOW_CATEGORIES = {
    "car(G)", "car(M)", "car(S)", "duck(S)", "motorbike(G)", "motorbike(M)", "motorbike(S)",
    "winebottle(M)", "winebottle(wC)", "winebottle(woC)",
}  # fmt: skip
SLOTS = range(1, 11)
WILLOW_PAIRS = 900


def table(file: Path, columns: Sequence[str]) -> list[Row]:
    """Rows by column name; raises InputError, naming the file, unless it is a CSV with these columns."""
    try:
        with file.open(newline="", encoding="utf-8-sig") as opened:
            reader = csv.DictReader(opened, skipinitialspace=True, restval="")
            rows, names = list(reader), reader.fieldnames or ()
    except (OSError, ValueError, csv.Error) as error:
        raise InputError(f"Expected {file} to be a CSV, but it cannot be read ({error}). Get the file again.") from error
    missing = [name for name in columns if name not in names]
    if missing:
        raise InputError(
            f"Expected {file} to have columns {', '.join(columns)}, but it lacks {', '.join(missing)}. Get the file again."
        )
    return rows


def picture(root: Path, path: str) -> str:
    """Name below ``root`` of a picture whose path in a table begins above, with the dataset's folder as it was published.

    Raises InputError where it leads out of the root.
    """
    inside(root, path)
    return "/".join(PurePosixPath(path).parts[-2:])


def mutual(source: Points, target: Points) -> NDArray[np.intp]:
    """Rows of the keypoints that both pictures show; raises ValueError unless the lists are equally long."""
    if source.shape != target.shape:
        raise ValueError(f"{len(source)} source keypoints for {len(target)} of the target")
    return np.flatnonzero(~np.isnan(source + target).any(axis=1))


def listed(points: Points) -> tuple[Point, ...]:
    """As pairs hold them."""
    return tuple((float(x), float(y)) for x, y in points)


def extent(points: Points) -> Box:
    """(x0, y0, x1, y1) around the keypoints that are there; all zeros where none is."""
    there = points[~np.isnan(points).any(axis=1)]
    if not len(there):
        return 0.0, 0.0, 0.0, 0.0
    (x0, y0), (x1, y1) = there.min(axis=0).tolist(), there.max(axis=0).tolist()
    return x0, y0, x1, y1


class PFPascalImages(PairFiles):
    """Pairs in the order of their tables; items are ``JPEGImages/<image>.jpg``. Rows with ``flip`` 1 are left out.

    Keypoint ids are row numbers of ``kps`` in Annotations, from "0". Where a pair has no annotations that agree with its
    table, an id is only the keypoint's position in the table, which lists those that both pictures show: the same id
    then means different parts in different pairs. The target's box is its ``bbox``, or else the extent of its keypoints.
    sd_dino and geoaware (arXiv 2305.15347, 2311.17034) take α as a share of the image's longer side here.

    Args:
        root: the folder that holds JPEGImages, Annotations and the tables; without a training table, ``train`` is empty.
        size: side of the square items in pixels, a multiple of 64.
        resize: how a picture fits into the square: ``pad``, ``replicate`` or ``squash``.
        categories: whose pairs are taken; None takes all.
        pairs_per_category: the first so many pairs of a category in each split; None takes all.
        on_error: ``raise`` on a pair that cannot be used, or ``skip`` and count it in ``dropped``: reason → pairs.

    Raises:
        InputError: an argument is out of range, root is another folder, a pair cannot be used or leads out of root.
    """

    image_reach = True

    def __init__(
        self,
        root: str,
        size: int = 512,
        resize: str = "pad",
        categories: Sequence[str] | None = None,
        pairs_per_category: int | None = None,
        on_error: str = "raise",
    ) -> None:
        super().__init__(PASCAL, root, "", size, resize, on_error)
        self._annotations: dict[Path, tuple[Points, Box] | None] = {}
        splits: dict[str, list[Entry]] = {}
        for split, prefix in TABLES.items():
            file = self.root / f"{prefix}_pairs_pf_pascal.csv"
            if file.is_file():
                rows = enumerate(table(file, ["source_image", "target_image", "class"]), start=1)
                splits[split] = [
                    (_category_of_class(row), partial(self._statement, f"row {number} of {file}", row))
                    for number, row in rows
                    if row.get("flip", "").strip() not in ("1", "1.0")
                ]
            elif split != OPTIONAL:
                self._absent[split] = file
        self._load(splits, categories, pairs_per_category)
        if {category for category, _ in splits.get("test", [])} == set(PASCAL_CATEGORIES):
            warn_if_unpublished(self.title, {"test": len(splits["test"])}, {"test": PASCAL_PAIRS})

    def _statement(self, label: str, row: Row) -> Statement:
        """A row of a table; raises BadPair where it or an annotation cannot be read."""
        first, second = (picture(self.root, row[column]) for column in ("source_image", "target_image"))
        category = _category_of_class(row)
        if not category:
            message = (
                f"Expected the class in {label} to be a number from 1 to {len(PASCAL_CATEGORIES)}, but got '{row['class']}'."
            )
            raise BadPair("unknown category", message)
        marks = [self._annotation(category, name) for name in (first, second)]
        try:
            ids, source, target = _tabled(row, marks) if "XA" in row else _annotated(marks)
        except ValueError as error:
            raise BadPair("unreadable annotation", f"Expected {label} to have keypoints, but got: {error}.") from error
        box = marks[1][1] if marks[1] else extent(target)
        return Statement(label, first, second, category, tuple(map(str, ids.tolist())), listed(source), listed(target), box)

    def _annotation(self, category: str, name: str) -> tuple[Points, Box] | None:
        """(kps, bbox or their extent) of a picture, None without a file; raises BadPair where it cannot be read."""
        file = inside(self.root, "Annotations", category, f"{PurePosixPath(name).stem}.mat")
        if file not in self._annotations:
            self._annotations[file] = _read(file) if file.is_file() else None
        return self._annotations[file]


def _category_of_class(row: Row) -> str:
    """Name of the class, "" unless it is one of the twenty."""
    number = row["class"].strip().removesuffix(".0")
    return PASCAL_CATEGORIES[int(number) - 1] if number in map(str, range(1, len(PASCAL_CATEGORIES) + 1)) else ""


def _read(file: Path) -> tuple[Points, Box]:
    try:
        content = loadmat(file)
        points = np.asarray(content["kps"], np.float64)
        if points.ndim != 2 or points.shape[1] != 2:
            raise ValueError(f"kps of shape {points.shape}")
        if "bbox" not in content:
            return points, extent(points)
        x0, y0, x1, y1 = np.asarray(content["bbox"], np.float64).ravel().tolist()
    except Exception as error:  # loadmat raises a dozen unrelated types on a damaged file
        message = f"Expected {file} to hold kps (n×2) and bbox (4 numbers), but it cannot be read ({error})."
        raise BadPair("unreadable annotation", message) from error
    return points, (x0, y0, x1, y1)


def _tabled(row: Row, marks: Sequence[tuple[Points, Box] | None]) -> tuple[NDArray[np.intp], Points, Points]:
    """(ids, source, target) of the keypoints that a row lists; raises ValueError where they are no numbers or not paired."""
    source, target = _coordinates(row, "A"), _coordinates(row, "B")
    there = mutual(source, target)
    source, target = source[there], target[there]
    if marks[0] and marks[1] and marks[0][0].shape == marks[1][0].shape:
        ids, *points = _annotated(marks)
        if all(a.shape == b.shape and np.allclose(a, b, atol=1.0) for a, b in zip(points, (source, target), strict=True)):
            return ids, source, target
    return there, source, target


def _annotated(marks: Sequence[tuple[Points, Box] | None]) -> tuple[NDArray[np.intp], Points, Points]:
    """(ids, source, target) of the keypoints that both annotations have; raises ValueError where one is missing."""
    source, target = (mark[0] for mark in marks if mark) if all(marks) else (None, None)
    if source is None or target is None:
        raise ValueError("no columns XA, YA, XB, YB and no file in Annotations")
    ids = mutual(source, target)
    return ids, source[ids], target[ids]


def _coordinates(row: Row, side: str) -> Points:
    xs, ys = ([float(value) for value in row[f"{axis}{side}"].split(";") if value.strip()] for axis in "XY")
    return np.array(list(zip(xs, ys, strict=True))).reshape(-1, 2)


class PFWillowImages(PairFiles):
    """Pairs in the order of the table; items are ``<category>/<image>``; keypoint ids are "0" to "9", columns 1 to 10.

    The target's box is the extent of its keypoints. (0, 0) in the table is padding, not a keypoint.

    Args:
        root: the folder that holds the categories' folders and the table.
        size: side of the square items in pixels, a multiple of 64.
        resize: how a picture fits into the square: ``pad``, ``replicate`` or ``squash``.
        categories: whose pairs are taken, such as ``car(S)``; None takes all.
        pairs_per_category: the first so many pairs of a category; None takes all.
        on_error: ``raise`` on a pair that cannot be used, or ``skip`` and count it in ``dropped``: reason → pairs.

    Raises:
        InputError: an argument is out of range, root is another folder, a pair cannot be used or leads out of root.
    """

    box = "keypoints"

    def __init__(
        self,
        root: str,
        size: int = 512,
        resize: str = "pad",
        categories: Sequence[str] | None = None,
        pairs_per_category: int | None = None,
        on_error: str = "raise",
    ) -> None:
        super().__init__(WILLOW, root, "", size, resize, on_error)
        files = sorted(self.root.glob("test_pairs*.csv"))
        if len(files) > 1:
            got = " and ".join(file.name for file in files)
            raise InputError(f"Expected {self.root} to hold one table test_pairs*.csv, but got {got}. Keep one of them.")
        columns = [f"{axis}{side}{slot}" for side in "AB" for axis in "XY" for slot in SLOTS]
        rows = enumerate(table(files[0], ["imageA", "imageB", *columns]), start=1)
        entries: list[Entry] = [
            (_category_of_folder(row), partial(self._statement, files[0], number, row)) for number, row in rows
        ]
        self._load({"test": entries}, categories, pairs_per_category)
        if {category for category, _ in entries} == WILLOW_CATEGORIES:
            warn_if_unpublished(self.title, {"test": len(entries)}, {"test": WILLOW_PAIRS})

    def _statement(self, file: Path, number: int, row: Row) -> Statement:
        """A row of the table; raises BadPair where it cannot be read."""
        label = f"row {number} of {file}"
        first, second = (picture(self.root, row[column]) for column in ("imageA", "imageB"))
        if not _category_of_folder(row):
            message = f"Expected imageA in {label} to be <category>/<image>, but got '{row['imageA']}'."
            raise BadPair("unknown category", message)
        try:
            source, target = _keypoints(row, "A"), _keypoints(row, "B")
        except ValueError as error:
            raise BadPair("unreadable annotation", f"Expected {label} to hold numbers, but got: {error}.") from error
        rows = mutual(source, target)
        ids, points = tuple(str(k) for k in rows.tolist()), (listed(source[rows]), listed(target[rows]))
        return Statement(label, first, second, _category_of_folder(row), ids, *points, extent(target))


def _category_of_folder(row: Row) -> str:
    """The folder of the source picture."""
    return "".join(row["imageA"].split("/")[-2:-1])


def _keypoints(row: Row, side: str) -> Points:
    points = np.array([[float(row[f"{axis}{side}{slot}"]) for axis in "XY"] for slot in SLOTS])
    points[(points == 0).all(axis=1)] = np.nan  # padding, which would stretch the extent to the corner
    return points
