"""Image pairs with corresponding keypoints: what a source offers, how its pictures become square, how files are read.

Data path step 1 of semantic correspondence, in the place of an :class:`ImageSource`, which every pair source is. A dataset on
disk states its pairs by the names of pictures (:class:`Statement`); here they are checked and become :class:`Pair`. No path
in its annotations may leave its root folder.
"""

import logging
import math
import os
import posixpath
from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar, Protocol, TypeVar, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from datamodules.images.source import UNDECODABLE, FileImages, ImageSource, check_limit, decoding, folder_of
from sdprobe.tokens.geometry import Placement
from sdprobe.utilities import expect, settings
from sdprobe.utilities.errors import InputError

SPLITS = {"train": "trn", "val": "val", "test": "test"}  # and what data sets call them in names of files
PAIR_SPLITS = tuple(SPLITS)

Point = tuple[float, float]
Box = tuple[float, float, float, float]
# of `item_of`, with `fitted` and `placement_of`, which it calls; raise it when a pixel changes
VERSION = 1
SLACK = 1.0  # pixels a keypoint may lie past the edge: annotation tools that count from 1 write the width for the last column
log = logging.getLogger(__name__)
T = TypeVar("T")


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

    resize: how pictures fit into items, ``pad``, ``replicate`` or ``squash``.
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
    with decoding(file), Image.open(file) as opened:
        # as stored, whatever its EXIF orientation says: keypoints are places in the stored rows and columns
        picture = opened.convert("RGB")
    return fitted(picture, size, resize)


@dataclass(frozen=True)
class Layout:
    """What makes a folder the root of a dataset.

    title: the dataset's name. parts: glob pattern of something below the root → what messages call it. folder: of the
    pictures, below the root.
    """

    title: str
    parts: Mapping[str, str]
    folder: str = ""

    def missing(self, folder: Path) -> list[str]:
        """Names of the parts that a folder does not have."""
        return [name for pattern, name in self.parts.items() if next(folder.glob(pattern), None) is None]


def root_of(layout: Layout, root: str) -> Path:
    """The root without links; raises InputError where it is another folder, saying which to give or what to put there."""
    folder = folder_of(root, f"the folder of {layout.title}").resolve()
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
    """A pair as its dataset states it. label: names it in messages. names, points: of source and target; else see Pair."""

    label: str
    names: tuple[str, str]
    category: str
    ids: tuple[str, ...]
    points: tuple[tuple[Point, ...], tuple[Point, ...]]
    target_box: Box


Entry = tuple[str, Callable[[], Statement]]  # category ("" if it has none that the dataset knows), reads the rest or raises


class PairFiles(FileImages):
    """The pictures of all kept pairs of a dataset, in the order in which pairs first show them.

    ``layout`` is the dataset's; ``box`` and ``image_reach``: see :class:`~datamodules.images.pairs.PairSource`.

    Args:
        root: the dataset's folder.
        size: side of the square items in pixels, a multiple of 64.
        resize: how a picture fits into the square: ``pad``, ``replicate`` or ``squash``.
        categories: whose pairs are taken; None takes all.
        pairs_per_category: the first so many usable pairs of a category in each split; None takes all.
        on_error: ``raise`` on a pair that cannot be used, or ``skip`` and count it in ``dropped``: reason → pairs.

    Raises:
        InputError: an argument is out of range, root is another folder, a pair cannot be used or leads out of root.
    """

    layout: ClassVar[Layout]
    box = "object"
    image_reach = False

    def __init__(
        self,
        root: str,
        size: int = 512,
        resize: str = "pad",
        categories: Sequence[str] | None = None,
        pairs_per_category: int | None = None,
        on_error: str = "raise",
    ) -> None:
        super().__init__(size, on_error)
        settings.check("images", resize=resize)
        self.resize = resize
        check_limit(pairs_per_category, "images.pairs_per_category")
        self.root = root_of(self.layout, root)
        self.dropped: Counter[str] = Counter()
        self._indices: dict[str, int] = {}
        self._sizes: dict[str, tuple[int, int]] = {}
        self._absent: dict[str, Path] = {}
        self._annotations: dict[Path, Any] = {}
        entries = self._entries()
        chosen = self._chosen(entries, categories)
        self._pairs = {split: self._kept(part, chosen, pairs_per_category) for split, part in entries.items()}
        self._names = list(self._indices)
        self._report()
        self._compare(entries, complete=categories is None and pairs_per_category is None)

    @abstractmethod
    def _entries(self) -> dict[str, list[Entry]]:
        """The pairs of each split, in the dataset's order; a split whose list is missing goes to ``_absent``."""

    @abstractmethod
    def _compare(self, entries: Mapping[str, Sequence[Entry]], complete: bool) -> None:
        """Warn where a copy differs from the published dataset; ``complete``: nothing was left out by choice."""

    def __len__(self) -> int:
        return len(self._names)

    def picture(self, index: int) -> Float[Tensor, "3 size size"]:
        """The stored picture, fitted into the square."""
        return item_of(self._file(self.name(index)), self.size, self.resize)

    def pairs(self, split: str) -> Sequence[Pair]:
        """The pairs of a split in the dataset's order, empty where it has none; raises InputError where its file is missing."""
        expect.one_of("split", split, PAIR_SPLITS)
        if split in self._absent:
            file = self._absent[split]
            raise InputError(
                f"Expected {file} to list the {split} pairs of {self.layout.title}, but it is missing. Put it there."
            )
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
        return f"file:{self.digest(self._file(self.name(index)))}:{self.resize}:{self.size}:{VERSION}"

    def _file(self, name: str) -> Path:
        return self.root / self.layout.folder / name

    def _chosen(self, entries: Mapping[str, Sequence[Entry]], categories: Sequence[str] | None) -> set[str]:
        known = sorted({category for part in entries.values() for category, _ in part if category})
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

    def _kept(self, entries: Sequence[Entry], chosen: set[str], limit: int | None) -> tuple[Pair, ...]:
        """The first ``limit`` usable pairs of every chosen category."""
        counts: Counter[str] = Counter()
        kept: list[Pair] = []
        for category, read in entries:
            if category not in chosen or counts[category] == limit:
                continue
            try:
                kept.append(self._checked(read()))
                counts[category] += 1
            except BadPair as error:
                if self.on_error == "raise":
                    raise
                self.dropped[error.reason] += 1
        return tuple(kept)

    def _checked(self, stated: Statement) -> Pair:
        """The pair; raises BadPair where a picture is missing or the geometry cannot be."""
        sizes = [self._measured(name, stated.label) for name in stated.names]
        if not stated.ids:
            raise BadPair("no mutual keypoints", f"Expected {stated.label} to have keypoints that both show, but got none.")
        for name, points, (width, height) in zip(stated.names, stated.points, sizes, strict=True):
            for x, y in points:
                if not (-SLACK <= x <= width + SLACK and -SLACK <= y <= height + SLACK):
                    place = f"Expected the keypoints of {stated.label} to lie in {name}, {width}×{height} pixels"
                    raise BadPair("keypoint outside the picture", f"{place}, but got ({x:g}, {y:g}).")
        x0, y0, x1, y1 = stated.target_box
        # thresholds are shares of the longer side, so a box around keypoints in one line will do
        if not (all(map(math.isfinite, stated.target_box)) and min(x1 - x0, y1 - y0) >= 0 and max(x1 - x0, y1 - y0) > 0):
            message = f"Expected the target's box of {stated.label} to have a size, but got {stated.target_box}."
            raise BadPair("empty box", message)
        source, target = (self._indices.setdefault(name, len(self._indices)) for name in stated.names)
        return Pair(source, target, stated.category, stated.ids, *stated.points, stated.target_box)

    def _measured(self, name: str, label: str) -> tuple[int, int]:
        """(width, height) of a picture, from its header."""
        if name not in self._sizes:
            file = inside(self.root, self.layout.folder, name)
            try:
                with Image.open(file) as picture:
                    self._sizes[name] = picture.size
            except (FileNotFoundError, NotADirectoryError) as error:
                raise BadPair("missing image", f"Expected {file} to be an image of {label}, but it is missing.") from error
            except UNDECODABLE as error:
                message = f"Expected {file} to be an intact image, but it cannot be decoded ({error})."
                raise BadPair("unreadable image", message) from error
        return self._sizes[name]

    def _annotation(self, file: Path, read: Callable[[Path], T]) -> T:
        """What an annotation of a picture says, read once."""
        if file not in self._annotations:
            self._annotations[file] = read(file)
        return self._annotations[file]

    def _report(self) -> None:
        """One warning about all that was left out; raises InputError where nothing remains."""
        kept, dropped = sum(map(len, self._pairs.values())), self.dropped.total()
        reasons = ", ".join(f"{count} {reason}" for reason, count in self.dropped.most_common())
        if dropped:
            log.warning("Left out %d of %d pairs of %s: %s.", dropped, kept + dropped, self.root, reasons)
        if not kept:
            got = f"{dropped} that cannot be used ({reasons})" if dropped else "none"
            title = self.layout.title
            raise InputError(f"Expected {title} in {self.root} to hold usable pairs, but got {got}. Check its files.")

    def _warn_if_unpublished(self, counts: Mapping[str, int], published: Mapping[str, int]) -> None:
        """One warning that names every count that differs from the published dataset's."""
        other = [
            f"{name} {count:,} (published {published[name]:,})" for name, count in counts.items() if count != published[name]
        ]
        if other:
            log.warning("This copy of %s is not the published one: %s.", self.layout.title, ", ".join(other))
