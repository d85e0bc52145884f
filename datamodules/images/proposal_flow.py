"""``images=pf_pascal`` and ``images=pf_willow``: the two Proposal Flow datasets.

PF-PASCAL has this layout::

    JPEGImages/<image>.jpg
    Annotations/<category>/<image>.mat       kps: (n, 2), NaN where the picture does not show it; bbox: x0, y0, x1, y1
    <val|test>_pairs*.csv                    source_image, target_image, class (from 1), XA, YA, XB, YB: mutual keypoints
    trn_pairs*.csv                           source_image, target_image, class, flip; keypoints are in Annotations

PF-WILLOW, whose pairs are for testing only, has this one::

    <category>/<image>     such as car(S)/Cars_000a.png
    test_pairs*.csv        imageA, imageB, XA1 .. XA10, YA1 .. YA10, XB1 .. XB10, YB1 .. YB10; one pair per row

References:
    Ham, Cho, Schmid and Ponce, Proposal Flow: Semantic Correspondences from Object Proposals, arXiv 1703.07144.
"""

import re
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

Points = NDArray[np.float64]  # (n, 2), x and y in pixels; a row with NaN is a keypoint that the picture does not show
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
FIX = "Separate its columns by commas and save it in UTF-8, or get the file again."


def table(file: Path, columns: Sequence[str], more: Sequence[str] = ()) -> list[Row]:
    """Rows by column name, in whatever case it is written; ``more`` names columns that need not be there.

    Raises:
        InputError: the file, which is named, is no CSV with these columns, has one of them twice, or a row with more cells.
    """
    header, *rows = [cells for _, cells in csv_lines(file, FIX) if cells] or [[]]
    known = {name.casefold(): name for name in (*columns, *more)}
    header = [known.get(name.casefold(), name) for name in header]
    missing = [name for name in columns if name not in header]
    if missing:
        raise InputError(f"Expected {file} to have columns {', '.join(columns)}, but it lacks {', '.join(missing)}. {FIX}")
    twice = [name for name in known.values() if header.count(name) > 1]
    if twice:
        raise InputError(f"Expected {file} to have one column {twice[0]}, but got {header.count(twice[0])}. Remove the others.")
    for cells in rows:
        if any(cells[len(header) :]):
            raise InputError(
                f"Expected the rows of {file} to have {len(header)} cells, as its header has, but got {len(cells)} in one. "
                "Quote cells that contain the separator."
            )
    return [dict(zip_longest(header, cells[: len(header)], fillvalue="")) for cells in rows]


def picture(root: Path, path: str) -> str:
    """Name of a picture below ``root``. Paths in the tables begin with the published name of the dataset's folder; those that
    Windows has written have backslashes.

    Raises:
        InputError: the path leads out of the root.
    """
    path = path.replace("\\", "/")
    inside(root, path)
    return "/".join(PurePosixPath(path).parts[-2:])


def mutual(source: Points, target: Points) -> NDArray[np.intp]:
    """Rows of the keypoints that both pictures show. Raises ValueError unless the lists are equally long."""
    if source.shape != target.shape:
        raise ValueError(f"{len(source)} source keypoints for {len(target)} of the target")
    return np.flatnonzero(~np.isnan(source + target).any(axis=1))


def listed(points: Points) -> tuple[Point, ...]:
    """Points as :class:`~datamodules.images.pairs.Pair` holds them."""
    return tuple((float(x), float(y)) for x, y in points)


def extent(points: Points) -> Box:
    """(x0, y0, x1, y1) around the keypoints without NaN; zeros if there are none."""
    there = points[~np.isnan(points).any(axis=1)]
    if not len(there):
        return 0.0, 0.0, 0.0, 0.0
    (x0, y0), (x1, y1) = there.min(axis=0).tolist(), there.max(axis=0).tolist()
    return x0, y0, x1, y1


class ProposalFlowImages(PairFiles):
    """Base class of the two Proposal Flow datasets. Pairs are in the order of their tables.

    Subclasses set ``tables`` (split → glob of the file that lists its pairs), ``optional`` (splits whose table may be missing),
    ``columns`` (of every table; the first two hold paths of pictures), ``more`` (columns that a table may have),
    ``category_from`` (a column and the form of its values), and ``categories`` and ``test_pairs`` of the published test split.
    """

    tables: ClassVar[Mapping[str, str]]
    optional: ClassVar[Collection[str]] = ()
    columns: ClassVar[Sequence[str]]
    more: ClassVar[Sequence[str]] = ()
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
                rows = enumerate(table(files[0], self.columns, self.more), start=1)
                entries[split] = [
                    (self._category(row), partial(self._statement, f"row {number} of {files[0]}", row))
                    for number, row in rows
                    if row.get("flip") not in ("1", "1.0")
                ]
            elif split not in self.optional:
                self._absent[split] = self.root / pattern
        return entries

    def _statement(self, label: str, row: Row) -> Statement:
        """The pair of a row. Raises BadPair if the row or an annotation cannot be read."""
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
        """Warn if a folder with pairs of all published categories differs from the published dataset."""
        test = entries.get("test", ())
        if {category for category, _ in test} >= set(self.categories):
            self._warn_if_unpublished({"test": len(test)}, {"test": self.test_pairs})

    @abstractmethod
    def _category(self, row: Row) -> str:
        """Category of a row; "" if the dataset does not know it."""

    @abstractmethod
    def _keypoints(self, row: Row, category: str, names: tuple[str, str]) -> Keypoints:
        """Keypoints of a row. Raises ValueError if they are not numbers or not in pairs."""


class PFPascalImages(ProposalFlowImages):
    """PF-PASCAL: pairs of photographs of 20 categories. Rows with ``flip`` 1 are left out.

    Items are (3, size, size) in [0, 1], their ids ``JPEGImages/<image>.jpg``. The folder's layout is at the top of this module.

    Keypoint ids are row numbers of ``kps`` in Annotations, from "0". If a pair has no annotations that agree with its table, an
    id is only the keypoint's number in the table, which lists those that both pictures show. The same id then means different
    parts in different pairs. The target's box is its ``bbox``, or else the extent of its keypoints. sd_dino and geoaware (arXiv
    2305.15347, 2311.17034) take α as a share of the image's longer side for this dataset.

    Args:
        root: folder that contains JPEGImages, Annotations and the tables.
        size: side of the square items in pixels, a positive multiple of 64.
        resize: ``pad``, ``replicate`` or ``squash``.
        categories: names of the categories to take; None takes all.
        pairs_per_category: greatest number of pairs per category and split, at least 1, drawn at random; None takes all.
        seed: seed of drawn pairs.
        on_error: ``raise`` on a pair that cannot be used, or ``skip`` it.

    Raises:
        InputError: an argument out of range, another folder, no pair that can be used, a pair that cannot be used with
            ``on_error="raise"``, a path that leads out of the root.

    References:
        Ham, Cho, Schmid and Ponce (2018), arXiv 1703.07144.

    Example:
        >>> import tempfile
        >>> from PIL import Image
        >>> root = Path(tempfile.mkdtemp())
        >>> (root / "JPEGImages").mkdir()
        >>> for name in ("a", "b"):
        ...     Image.new("RGB", (60, 40)).save(root / "JPEGImages" / f"{name}.jpg")
        >>> header = "source_image,target_image,class,XA,YA,XB,YB"
        >>> row = "JPEGImages/a.jpg,JPEGImages/b.jpg,8,10;30,12;20,14;41,8;33"
        >>> _ = (root / "test_pairs_pf_pascal.csv").write_text(header + "\\n" + row)
        >>> [pair] = PFPascalImages(str(root), size=64).pairs("test")
        >>> pair.category, pair.source_points, pair.target_box
        ('cat', ((10.0, 12.0), (30.0, 20.0)), (14.0, 8.0, 41.0, 33.0))
    """

    layout = Layout("PF-PASCAL", {"JPEGImages": "JPEGImages", "*_pairs*.csv": "test_pairs_pf_pascal.csv"})
    image_reach = True
    tables: ClassVar = {split: f"{prefix}_pairs*.csv" for split, prefix in SPLITS.items()}
    optional = ("train",)  # the authors of the other two tables did not publish one
    columns = ("source_image", "target_image", "class")
    more = ("XA", "YA", "XB", "YB", "flip")
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
    """Annotation of a picture, None without a file. Raises BadPair if it cannot be read."""
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
    """(ids, source, target) of the keypoints in a row. Raises ValueError if they are not numbers or not in pairs."""
    source, target = _coordinates(row, "A"), _coordinates(row, "B")
    there = mutual(source, target)
    source, target = source[there], target[there]
    if marks[0] and marks[1] and marks[0][0].shape == marks[1][0].shape:
        ids, *points = _annotated(*marks)
        if all(a.shape == b.shape and np.allclose(a, b, atol=1.0) for a, b in zip(points, (source, target), strict=True)):
            return ids, source, target
    return there, source, target


def _annotated(source: Mark | None, target: Mark | None) -> tuple[NDArray[np.intp], Points, Points]:
    """(ids, source, target) of the keypoints that both annotations have. Raises ValueError if an annotation is missing."""
    if source is None or target is None:
        raise ValueError("no columns XA, YA, XB, YB and no file in Annotations")
    ids = mutual(source[0], target[0])
    return ids, source[0][ids], target[0][ids]


def _coordinates(row: Row, side: str) -> Points:
    xs, ys = ([float(value) for value in re.split("[;|]", row[f"{axis}{side}"]) if value.strip()] for axis in "XY")
    return np.array(list(zip(xs, ys, strict=True))).reshape(-1, 2)


class PFWillowImages(ProposalFlowImages):
    """PF-WILLOW: pairs of photographs of 10 categories, for testing only.

    Items are (3, size, size) in [0, 1], their ids ``<category>/<image>``. Keypoint ids are "0" to "9" for columns 1 to 10;
    (0, 0) in the table is padding, not a keypoint. The target's box is the extent of its keypoints. The folder's layout is at
    the top of this module.

    Args:
        root: folder that contains the categories' folders and the table.
        size: side of the square items in pixels, a positive multiple of 64.
        resize: ``pad``, ``replicate`` or ``squash``.
        categories: names of the categories to take; None takes all.
        pairs_per_category: greatest number of pairs per category and split, at least 1, drawn at random; None takes all.
        seed: seed of drawn pairs.
        on_error: ``raise`` on a pair that cannot be used, or ``skip`` it.

    Raises:
        InputError: an argument out of range, another folder, no pair that can be used, a pair that cannot be used with
            ``on_error="raise"``, a path that leads out of the root.

    References:
        Ham, Cho, Schmid and Ponce (2018), arXiv 1703.07144.

    Example:
        >>> import tempfile
        >>> from PIL import Image
        >>> root = Path(tempfile.mkdtemp())
        >>> (root / "car(S)").mkdir()
        >>> for name in ("a", "b"):
        ...     Image.new("RGB", (60, 40)).save(root / "car(S)" / f"{name}.png")
        >>> row = dict.fromkeys(PFWillowImages.columns, "0") | {"imageA": "car(S)/a.png", "imageB": "car(S)/b.png"}
        >>> row |= {"XA1": "10", "YA1": "12", "XB1": "14", "YB1": "8", "XA2": "30", "YA2": "20", "XB2": "41", "YB2": "33"}
        >>> _ = (root / "test_pairs_pf.csv").write_text(",".join(row) + "\\n" + ",".join(row.values()))
        >>> [pair] = PFWillowImages(str(root), size=64).pairs("test")
        >>> pair.category, pair.ids, pair.target_box
        ('car(S)', ('0', '1'), (14.0, 8.0, 41.0, 33.0))
    """

    layout = Layout("PF-WILLOW", {"test_pairs*.csv": "test_pairs*.csv", "*(*)": "category folders such as car(S)"})
    box = "keypoints"
    tables: ClassVar = {"test": "test_pairs*.csv"}
    columns = ("imageA", "imageB", *(f"{axis}{side}{slot}" for side in "AB" for axis in "XY" for slot in SLOTS))
    category_from = "imageA", "<category>/<image>"
    categories = WILLOW_CATEGORIES
    test_pairs = 900

    def _category(self, row: Row) -> str:
        return PurePosixPath(row["imageA"].replace("\\", "/")).parent.name  # the folder of the source picture

    def _keypoints(self, row: Row, category: str, names: tuple[str, str]) -> Keypoints:
        source, target = (np.array([[float(row[f"{axis}{side}{slot}"]) for axis in "XY"] for slot in SLOTS]) for side in "AB")
        for points in (source, target):
            points[(points == 0).all(axis=1)] = np.nan  # padding, which would extend the box to the corner
        ids = mutual(source, target)
        return ids, source[ids], target[ids], extent(target)
