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

from abc import abstractmethod
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from itertools import zip_longest
from pathlib import Path, PurePosixPath
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from scipy.io import loadmat

from datamodules.images.csv_lines import csv_lines
from datamodules.images.pairs import SPLITS, BadPair, Box, Entry, Layout, PairFiles, Point, Statement, inside
from sdprobe.utilities.errors import InputError

Points = NDArray[np.float64]  # (n, 2), x and y in pixels; a row that holds NaN is a keypoint the picture does not show
Row = dict[str, str]
Mark = tuple[Points, Box]  # of a picture's annotation: its keypoints, and its box or their extent
Keypoints = tuple[NDArray[np.intp], Points, Points, Box]  # ids, source, target, the target's box
PASCAL_CATEGORIES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog", "horse",
    "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
WILLOW_CATEGORIES = (
    "car(G)", "car(M)", "car(S)", "duck(S)", "motorbike(G)", "motorbike(M)", "motorbike(S)",
    "winebottle(M)", "winebottle(wC)", "winebottle(woC)",
)  # fmt: skip
SLOTS = range(1, 11)
FIX = "Get the file again."


def table(file: Path, columns: Sequence[str]) -> list[Row]:
    """Rows by column name; raises InputError, naming the file, unless it is a CSV with these columns."""
    header, *rows = [cells for _, cells in csv_lines(file, FIX) if cells] or [[]]
    missing = [name for name in columns if name not in header]
    if missing:
        raise InputError(f"Expected {file} to have columns {', '.join(columns)}, but it lacks {', '.join(missing)}. {FIX}")
    return [dict(zip_longest(header, cells[: len(header)], fillvalue="")) for cells in rows]


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


class ProposalFlowImages(PairFiles):
    """Pairs in the order of their tables. What tells the two datasets apart stands in the attributes of their classes.

    tables: split → glob of the file that lists its pairs. optional: splits whose table may be missing.
    columns: that every table has; the first two hold paths of pictures.
    category_from: column, and the form of what it holds. categories, pairs: of the published test split.
    """

    tables: ClassVar[Mapping[str, str]]
    optional: ClassVar[Collection[str]] = ()
    columns: ClassVar[Sequence[str]]
    category_from: ClassVar[tuple[str, str]]
    categories: ClassVar[Collection[str]]
    test_pairs: ClassVar[int]

    def _entries(self) -> dict[str, list[Entry]]:
        entries: dict[str, list[Entry]] = {}
        for split, pattern in self.tables.items():
            files = sorted(self.root.glob(pattern))
            if len(files) > 1:
                got = " and ".join(file.name for file in files)
                raise InputError(f"Expected {self.root} to hold one table {pattern}, but got {got}. Keep one of them.")
            if files:
                rows = enumerate(table(files[0], self.columns), start=1)
                entries[split] = [
                    (self._category(row), partial(self._statement, f"row {number} of {files[0]}", row))
                    for number, row in rows
                    if row.get("flip") not in ("1", "1.0")
                ]
            elif split not in self.optional:
                self._absent[split] = self.root / pattern
        return entries

    def _statement(self, label: str, row: Row) -> Statement:
        """A row of a table; raises BadPair where it or an annotation cannot be read."""
        source, target = (picture(self.root, row[column]) for column in self.columns[:2])
        category = self._category(row)
        if not category:
            column, form = self.category_from
            raise BadPair("unknown category", f"Expected {column} in {label} to be {form}, but got '{row[column]}'.")
        try:
            ids, first, second, box = self._keypoints(row, category, (source, target))
        except BadPair:
            raise
        except ValueError as error:
            raise BadPair("unreadable annotation", f"Expected {label} to have keypoints, but got: {error}.") from error
        points = listed(first), listed(second)
        return Statement(label, (source, target), category, tuple(map(str, ids.tolist())), points, box)

    def _compare(self, entries: Mapping[str, Sequence[Entry]], complete: bool) -> None:
        """Trees without a pair of every category are something else."""
        test = entries.get("test", ())
        if {category for category, _ in test} >= set(self.categories):
            self._warn_if_unpublished({"test": len(test)}, {"test": self.test_pairs})

    @abstractmethod
    def _category(self, row: Row) -> str:
        """Category of a row, "" unless it has one that the dataset knows."""

    @abstractmethod
    def _keypoints(self, row: Row, category: str, names: tuple[str, str]) -> Keypoints:
        """Keypoints of a row; raises ValueError where they are no numbers or not paired."""


class PFPascalImages(ProposalFlowImages):
    """PF-PASCAL; items are ``JPEGImages/<image>.jpg``. Rows with ``flip`` 1 are left out.

    Keypoint ids are row numbers of ``kps`` in Annotations, from "0". Where a pair has no annotations that agree with its
    table, an id is only the keypoint's position in the table, which lists those that both pictures show: the same id
    then means different parts in different pairs. The target's box is its ``bbox``, or else the extent of its keypoints.
    sd_dino and geoaware (arXiv 2305.15347, 2311.17034) take α as a share of the image's longer side here.

    Args: those of :class:`~datamodules.images.pairs.PairFiles`; ``root`` holds JPEGImages, Annotations and the tables.
    """

    layout = Layout("PF-PASCAL", {"JPEGImages": "JPEGImages", "*_pairs_pf_pascal.csv": "test_pairs_pf_pascal.csv"})
    image_reach = True
    tables: ClassVar = {split: f"{prefix}_pairs_pf_pascal.csv" for split, prefix in SPLITS.items()}
    optional = ("train",)  # not part of what the authors of the other two published
    columns = ("source_image", "target_image", "class")
    category_from = "class", f"a number from 1 to {len(PASCAL_CATEGORIES)}"
    categories = PASCAL_CATEGORIES
    test_pairs = 299

    def _category(self, row: Row) -> str:
        number = row["class"].removesuffix(".0")
        return PASCAL_CATEGORIES[int(number) - 1] if number in map(str, range(1, len(PASCAL_CATEGORIES) + 1)) else ""

    def _keypoints(self, row: Row, category: str, names: tuple[str, str]) -> Keypoints:
        source, target = (self._mark(category, name) for name in names)
        ids, first, second = _tabled(row, source, target) if "XA" in row else _annotated(source, target)
        return ids, first, second, target[1] if target else extent(second)

    def _mark(self, category: str, name: str) -> Mark | None:
        return self._annotation(inside(self.root, "Annotations", category, f"{PurePosixPath(name).stem}.mat"), _read)


def _read(file: Path) -> Mark | None:
    """Annotation of a picture, None without a file; raises BadPair where it cannot be read."""
    if not file.is_file():
        return None
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


def _tabled(row: Row, *marks: Mark | None) -> tuple[NDArray[np.intp], Points, Points]:
    """(ids, source, target) of the keypoints that a row lists; raises ValueError where they are no numbers or not paired."""
    source, target = _coordinates(row, "A"), _coordinates(row, "B")
    there = mutual(source, target)
    source, target = source[there], target[there]
    if marks[0] and marks[1] and marks[0][0].shape == marks[1][0].shape:
        ids, *points = _annotated(*marks)
        if all(a.shape == b.shape and np.allclose(a, b, atol=1.0) for a, b in zip(points, (source, target), strict=True)):
            return ids, source, target
    return there, source, target


def _annotated(source: Mark | None, target: Mark | None) -> tuple[NDArray[np.intp], Points, Points]:
    """(ids, source, target) of the keypoints that both annotations have; raises ValueError where one is missing."""
    if source is None or target is None:
        raise ValueError("no columns XA, YA, XB, YB and no file in Annotations")
    ids = mutual(source[0], target[0])
    return ids, source[0][ids], target[0][ids]


def _coordinates(row: Row, side: str) -> Points:
    xs, ys = ([float(value) for value in row[f"{axis}{side}"].split(";") if value.strip()] for axis in "XY")
    return np.array(list(zip(xs, ys, strict=True))).reshape(-1, 2)


class PFWillowImages(ProposalFlowImages):
    """PF-WILLOW; items are ``<category>/<image>``; keypoint ids are "0" to "9", columns 1 to 10.

    The target's box is the extent of its keypoints. (0, 0) in the table is padding, not a keypoint.

    Args: those of :class:`~datamodules.images.pairs.PairFiles`; ``root`` holds the categories' folders and the table.
    """

    layout = Layout("PF-WILLOW", {"test_pairs*.csv": "test_pairs*.csv", "*(*)": "category folders such as car(S)"})
    box = "keypoints"
    tables: ClassVar = {"test": "test_pairs*.csv"}
    columns = ("imageA", "imageB", *(f"{axis}{side}{slot}" for side in "AB" for axis in "XY" for slot in SLOTS))
    category_from = "imageA", "<category>/<image>"
    categories = WILLOW_CATEGORIES
    test_pairs = 900

    def _category(self, row: Row) -> str:
        return PurePosixPath(row["imageA"]).parent.name  # the folder of the source picture

    def _keypoints(self, row: Row, category: str, names: tuple[str, str]) -> Keypoints:
        source, target = (np.array([[float(row[f"{axis}{side}{slot}"]) for axis in "XY"] for slot in SLOTS]) for side in "AB")
        for points in (source, target):
            points[(points == 0).all(axis=1)] = np.nan  # padding, which would stretch the extent to the corner
        ids = mutual(source, target)
        return ids, source[ids], target[ids], extent(target)
