"""Image pairs with corresponding keypoints: what a source offers, how its pictures become square, how files are read.

Data path step 1 of semantic correspondence, in the place of an :class:`ImageSource`, which every pair source is. A dataset on
disk states its pairs by the names of pictures (:class:`Statement`); here they are checked and become :class:`Pair`. No path
in its annotations may leave its root folder.
"""

import hashlib
import logging
import math
import os
import posixpath
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import Dataset

from datamodules.images.source import ImageSource, Item, check_on_error
from sdprobe.tokens.geometry import Placement
from sdprobe.utilities import expect
from sdprobe.utilities.errors import InputError
from sdprobe.utilities.pictures import check_size

PAIR_SPLITS = ("train", "val", "test")
RESIZES = ("pad", "replicate", "squash")

Point = tuple[float, float]
Box = tuple[float, float, float, float]
UNDECODABLE = (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError, ValueError)
# of `item_of`, with `fitted` and `placement_of`, which it calls; raise it when a pixel changes
VERSION = 1
SLACK = 1.0  # pixels a keypoint may lie past the edge: annotation tools that count from 1 write the width for the last column
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Pair:
    """Two items of one source and the keypoints that correspond; a keypoint is carried from source to target.

    source, target: indices into the source.
    category: of both objects.
    ids: of the keypoints, as the dataset spells them; the same id means the same part throughout a category.
    source_points, target_points: (x, y) in pixels of the original pictures, as the dataset has them.
    target_box: (x0, y0, x1, y1) of the target's object, in pixels of its original picture.
    """

    source: int
    target: int
    category: str
    ids: tuple[str, ...]
    source_points: tuple[Point, ...]
    target_points: tuple[Point, ...]
    target_box: Box


@runtime_checkable
class PairSource(ImageSource, Protocol):
    """An image source whose items come in pairs.

    resize: how pictures fit into items, one of RESIZES.
    box: what ``target_box`` surrounds: the ``object`` or its ``keypoints``.
    image_reach: whether sd_dino and geoaware take α as a share of the image in this data set, not of the target's box.
    """

    resize: str
    box: str
    image_reach: bool

    def pairs(self, split: str) -> Sequence[Pair]:
        """The pairs of ``train``, ``val`` or ``test``; empty where the dataset has no such split."""

    def picture_size(self, index: int) -> tuple[int, int]:
        """(width, height) of the original picture, in pixels."""

    def placement(self, index: int) -> Placement:
        """Where the original picture lies in the square item."""


def check_resize(resize: str) -> None:
    """Raises InputError unless ``resize`` is one of RESIZES."""
    expect.one_of("images.resize", resize, RESIZES)


def placement_of(width: int, height: int, size: int, resize: str) -> Placement:
    """Where a picture of width × height pixels lies in a square of ``size``.

    ``squash`` fills the square; ``pad`` and ``replicate`` keep the aspect ratio, make the long side ``size`` and centre the
    picture, whole pixels each.
    """
    if resize == "squash":
        return Placement((size / width, size / height), (0.0, 0.0))
    wide, high = (max(1, round(side * size / max(width, height))) for side in (width, height))
    return Placement((wide / width, high / height), (float((size - wide) // 2), float((size - high) // 2)))


def fitted(picture: Image.Image, size: int, resize: str) -> Float[Tensor, "3 size size"]:
    """An RGB picture in [0, 1], placed by :func:`placement_of`, Lanczos-resized; around it zeros (``pad``) or its own border
    repeated (``replicate``)."""
    place = placement_of(*picture.size, size, resize)
    wide, high = (max(1, round(side * scale)) for side, scale in zip(picture.size, place.scale, strict=True))
    small = np.asarray(picture.resize((wide, high), Image.Resampling.LANCZOS))
    left, top = (int(edge) for edge in place.offset)
    around = ((top, size - high - top), (left, size - wide - left), (0, 0))
    full = np.pad(small, around, mode="edge" if resize == "replicate" else "constant")
    return torch.from_numpy(full).permute(2, 0, 1).float() / 255


def item_of(file: Path, size: int, resize: str) -> Float[Tensor, "3 size size"]:
    """The picture in [0, 1], fitted into a square; raises InputError, naming the file, where it cannot be decoded."""
    try:
        with Image.open(file) as opened:
            # as stored, whatever its EXIF orientation says: keypoints are places in the stored rows and columns
            picture = opened.convert("RGB")
    except UNDECODABLE as error:
        raise InputError(
            f"Expected {file} to be an intact image, but it cannot be decoded ({error}). "
            "Remove it, or use images.on_error=skip."
        ) from error
    return fitted(picture, size, resize)


@dataclass(frozen=True)
class Layout:
    """What makes a folder the root of a dataset.

    title: the dataset's name. parts: glob pattern of something below the root → what messages call it.
    """

    title: str
    parts: Mapping[str, str]

    def missing(self, folder: Path) -> list[str]:
        """Names of the parts that a folder does not have."""
        return [name for pattern, name in self.parts.items() if next(folder.glob(pattern), None) is None]


def root_of(layout: Layout, root: str) -> Path:
    """The root without links; raises InputError where it is another folder, saying which to give or what to put there."""
    folder = Path(root).expanduser()
    if not folder.is_dir():
        got = "a file" if folder.exists() else "which does not exist"
        raise InputError(f"Expected images.root to be the folder of {layout.title}, but got '{root}', {got}. Check the path.")
    folder = folder.resolve()
    missing = layout.missing(folder)
    if not missing:
        return folder
    near = [*sorted(child for child in folder.iterdir() if child.is_dir()), *folder.parents[:2]]
    right = next((other for other in near if not layout.missing(other)), None)
    parts = ", ".join(layout.parts.values())
    raise InputError(
        f"Expected images.root to be the folder of {layout.title} ({parts}), but got '{root}', "
        f"which has no {' and no '.join(missing)}. "
        + (f"Use images.root={right}." if right else f"Put {' and '.join(missing)} into {folder}.")
    )


def inside(root: Path, *stated: str) -> Path:
    """The file that a dataset states, below its root; raises InputError, never to be skipped, where that leads out of it."""
    path, top = posixpath.join(*stated), str(root).rstrip(os.sep) + os.sep  # strings: there are 70,000 annotations
    file = os.path.join(root, path)
    spoilt = "\0" in path  # which no file system takes
    if spoilt or path.startswith("/") or ".." in path.split("/") or not (os.path.realpath(file) + os.sep).startswith(top):
        raise InputError(
            f"Expected every path in the dataset to stay below {root}, but got {path!r}, which leads out of it. "
            "Put the file itself there, in place of a link or of a path to elsewhere."
        )
    return Path(file)


class BadPair(InputError):
    """A pair that cannot be used: raised or, with ``on_error=skip``, counted under ``reason``."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(reason, message)  # both, since exceptions are rebuilt from their arguments in other processes
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.args[1]} Correct or remove it, or use images.on_error=skip."


@dataclass(frozen=True)
class Statement:
    """A pair as its dataset states it. label: names it in messages. source, target: names of pictures; else see Pair."""

    label: str
    source: str
    target: str
    category: str
    ids: tuple[str, ...]
    source_points: tuple[Point, ...]
    target_points: tuple[Point, ...]
    target_box: Box


Entry = tuple[str, Callable[[], Statement]]  # category ("" if it has none that the dataset knows), reads the rest or raises


class PairFiles(Dataset[Item]):
    """The pictures of all kept pairs, in the order in which pairs first show them.

    ``box`` and ``image_reach``: see :class:`~datamodules.images.pairs.PairSource`.

    Args:
        layout: of the dataset.
        root: its folder.
        folder: of the pictures, below ``root``.
        size: side of the square items in pixels, a multiple of 64.
        resize: how a picture fits into the square: ``pad``, ``replicate`` or ``squash``.
        on_error: ``raise`` on a pair that cannot be used, or ``skip`` and count it in ``dropped``: reason → pairs.
    """

    box = "object"
    image_reach = False

    def __init__(self, layout: Layout, root: str, folder: str, size: int, resize: str, on_error: str) -> None:
        check_size(size)
        check_resize(resize)
        check_on_error(on_error)
        self.title, self.root, self.folder = layout.title, root_of(layout, root), folder
        self.size, self.resize, self.on_error = size, resize, on_error
        self.dropped: Counter[str] = Counter()
        self._indices: dict[str, int] = {}
        self._names: list[str] = []
        self._sizes: dict[str, tuple[int, int]] = {}
        self._pairs: dict[str, tuple[Pair, ...]] = {}
        self._absent: dict[str, Path] = {}
        self._digests: dict[str, str] = {}

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, index: int) -> Item:
        """Raises InputError, naming the file, where it is truncated."""
        return {"image": item_of(self._file(index), self.size, self.resize), "id": self.name(index)}

    def pairs(self, split: str) -> Sequence[Pair]:
        """The pairs of a split in the dataset's order, empty where it has none; raises InputError where its file is missing."""
        expect.one_of("split", split, PAIR_SPLITS)
        if split in self._absent:
            file = self._absent[split]
            raise InputError(f"Expected {file} to list the {split} pairs of {self.title}, but it is missing. Put it there.")
        return self._pairs.get(split, ())

    def name(self, index: int) -> str:
        """Path below the folder of the pictures."""
        return self._names[index]

    def photo(self, index: int) -> str:
        """The file's name alone: a photograph of two categories lies in both of their folders."""
        return PurePosixPath(self.name(index)).name

    def picture_size(self, index: int) -> tuple[int, int]:
        """(width, height) of the stored picture, in pixels."""
        return self._sizes[self.name(index)]

    def placement(self, index: int) -> Placement:
        """Where the stored picture lies in the square item."""
        return placement_of(*self.picture_size(index), self.size, self.resize)

    def content_key(self, index: int) -> str:
        """Digest of the file's bytes, how they are fitted into which size, and the version of that."""
        name = self.name(index)
        if name not in self._digests:
            try:
                self._digests[name] = hashlib.blake2b(self._file(index).read_bytes(), digest_size=16).hexdigest()
            except OSError:
                self._digests[name] = f"unreadable {name}"  # decoding it will say so
        return f"file:{self._digests[name]}:{self.resize}:{self.size}:{VERSION}"

    def _file(self, index: int) -> Path:
        return self.root / self.folder / self.name(index)

    def _load(
        self, splits: Mapping[str, Sequence[Entry]], categories: Sequence[str] | None, pairs_per_category: int | None
    ) -> None:
        """Keep the first ``pairs_per_category`` usable pairs of every chosen category of every split."""
        known = sorted({category for entries in splits.values() for category, _ in entries if category})
        chosen = self._chosen(known, categories)
        if pairs_per_category is not None:
            expect.at_least("images.pairs_per_category", pairs_per_category, 1, "Use null for all.")
        for split, entries in splits.items():
            kept: Counter[str] = Counter()
            found: list[Pair] = []
            for category, read in entries:
                if category in chosen and kept[category] != pairs_per_category and (pair := self._usable(read)):
                    found.append(pair)
                    kept[category] += 1
            self._pairs[split] = tuple(found)
        self._report()

    def _chosen(self, known: Sequence[str], categories: Sequence[str] | None) -> set[str]:
        if categories is None:
            return {*known, ""}  # what has no category is bad input, not a choice
        wanted = [categories] if isinstance(categories, str) else list(categories)
        unknown = [name for name in wanted if name not in known]
        if unknown or not wanted:
            got = ", ".join(f"'{name}'" for name in unknown) or "none"
            raise InputError(
                f"Expected images.categories to be null or some of {', '.join(known)}, but got {got}. Use names of that list."
            )
        return set(wanted)

    def _usable(self, read: Callable[[], Statement]) -> Pair | None:
        try:
            return self._checked(read())
        except BadPair as error:
            if self.on_error == "raise":
                raise
            self.dropped[error.reason] += 1
            return None

    def _checked(self, stated: Statement) -> Pair:
        """The pair; raises BadPair where a picture is missing or the geometry cannot be."""
        sides = ((stated.source, stated.source_points), (stated.target, stated.target_points))
        sizes = [self._measured(name, stated.label) for name, _ in sides]
        if not stated.ids:
            raise BadPair("no mutual keypoints", f"Expected {stated.label} to have keypoints that both show, but got none.")
        for (name, points), (width, height) in zip(sides, sizes, strict=True):
            for x, y in points:
                if not (-SLACK <= x <= width + SLACK and -SLACK <= y <= height + SLACK):
                    place = f"Expected the keypoints of {stated.label} to lie in {name}, {width}×{height} pixels"
                    raise BadPair("keypoint outside the picture", f"{place}, but got ({x:g}, {y:g}).")
        x0, y0, x1, y1 = stated.target_box
        # thresholds are shares of the longer side, so a box around keypoints in one line will do
        if not (all(map(math.isfinite, stated.target_box)) and min(x1 - x0, y1 - y0) >= 0 and max(x1 - x0, y1 - y0) > 0):
            message = f"Expected the target's box of {stated.label} to have a size, but got {stated.target_box}."
            raise BadPair("empty box", message)
        source, target = self._item(stated.source), self._item(stated.target)
        return Pair(source, target, stated.category, stated.ids, stated.source_points, stated.target_points, stated.target_box)

    def _measured(self, name: str, label: str) -> tuple[int, int]:
        """(width, height) of a picture, from its header."""
        if name not in self._sizes:
            file = inside(self.root, self.folder, name)
            try:
                with Image.open(file) as picture:
                    self._sizes[name] = picture.size
            except (FileNotFoundError, NotADirectoryError) as error:
                raise BadPair("missing image", f"Expected {file} to be an image of {label}, but it is missing.") from error
            except UNDECODABLE as error:
                message = f"Expected {file} to be an intact image, but it cannot be decoded ({error})."
                raise BadPair("unreadable image", message) from error
        return self._sizes[name]

    def _item(self, name: str) -> int:
        if name not in self._indices:
            self._indices[name] = len(self._names)
            self._names.append(name)
        return self._indices[name]

    def _report(self) -> None:
        """One warning about all that was left out; raises InputError where nothing remains."""
        kept, dropped = sum(map(len, self._pairs.values())), self.dropped.total()
        reasons = ", ".join(f"{count} {reason}" for reason, count in self.dropped.most_common())
        if dropped:
            log.warning("Left out %d of %d pairs of %s: %s.", dropped, kept + dropped, self.root, reasons)
        if not kept:
            got = f"{dropped} that cannot be used ({reasons})" if dropped else "none"
            raise InputError(f"Expected {self.title} in {self.root} to hold usable pairs, but got {got}. Check its files.")


def warn_if_unpublished(title: str, counts: Mapping[str, int], published: Mapping[str, int]) -> None:
    """One warning that names every count that differs from the published dataset's."""
    other = [f"{what} {count:,} (published {published[what]:,})" for what, count in counts.items() if count != published[what]]
    if other:
        log.warning("This copy of %s is not the published one: %s.", title, ", ".join(other))
