"""Image pairs with corresponding keypoints: the interface of their sources, how pictures become square, how files are read.

Data path step 1 of semantic correspondence. A dataset on disk states its pairs by the names of pictures (:class:`Statement`).
They are checked here and become :class:`Pair`. No path in the annotations may lead out of the root folder.
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

from datamodules.images.source import FileImages, ImageSource, check_limit, decoding, folder_of
from sdprobe.tokens.geometry import Placement
from sdprobe.utilities import expect, settings
from sdprobe.utilities.errors import InputError
from sdprobe.utilities.pictures import check_range, opened, rgb
from sdprobe.utilities.rng import drawing_order

SPLITS = {"train": "trn", "val": "val", "test": "test"}  # split → its name in the file names of datasets
PAIR_SPLITS = tuple(SPLITS)

Point = tuple[float, float]
Box = tuple[float, float, float, float]
# of `item_of` and of `fitted`, `placement_of` and `rgb`, which it calls; raise it when a pixel changes
VERSION = 2
SLACK = 1.0  # pixels by which a keypoint may exceed the edge: tools that count from 1 write the width for the last column
log = logging.getLogger(__name__)
T = TypeVar("T")


@dataclass(frozen=True)
class Pair:
    """Two items of one source and their corresponding keypoints; each is transferred from the source to the target.

    Args:
        source: index of the source item.
        target: index of the target item.
        category: of both objects.
        ids: names of the keypoints in the dataset; one id is the same part throughout a category.
        source_points: (x, y) of the keypoints in pixels of the source's original picture.
        target_points: (x, y) of the keypoints in pixels of the target's original picture.
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
    """An image source whose items form pairs.

    ``resize`` says how pictures are fitted into the square: ``pad``, ``replicate`` or ``squash``. ``box`` says what
    ``target_box`` surrounds: the ``object`` or its ``keypoints``. ``image_reach`` says whether sd_dino and geoaware take α as a
    share of the image in this dataset, not of the target's box.
    """

    resize: str
    box: str
    image_reach: bool

    def pairs(self, split: str) -> Sequence[Pair]:
        """Return the pairs of ``train``, ``val`` or ``test``; empty if the dataset has no such split."""

    def picture_size(self, index: int) -> tuple[int, int]:
        """Return (width, height) of the original picture, in pixels."""

    def placement(self, index: int) -> Placement:
        """Return the position and scale of the original picture in the square item."""


def placement_of(width: int, height: int, size: int, resize: str) -> Placement:
    """Position and scale of a picture of width × height pixels in a square of ``size`` pixels.

    ``squash`` fills the square. ``pad`` and ``replicate`` keep the aspect ratio, make the long side ``size`` and centre the
    picture; sides and margins are whole pixels.
    """
    if resize == "squash":
        return Placement((size / width, size / height), (0.0, 0.0))
    wide, high = (max(1, round(side * size / max(width, height))) for side in (width, height))
    return Placement((wide / width, high / height), (float((size - wide) // 2), float((size - high) // 2)))


def fitted(picture: Image.Image, size: int, resize: str) -> Float[Tensor, "3 size size"]:
    """An RGB picture in [0, 1], placed by :func:`placement_of` and resized with Lanczos; around it are zeros (``pad``) or its
    own border, repeated (``replicate``)."""
    placement = placement_of(*picture.size, size, resize)
    wide, high = (max(1, round(side * scale)) for side, scale in zip(picture.size, placement.scale, strict=True))
    small = np.asarray(picture.resize((wide, high), Image.Resampling.LANCZOS))
    left, top = (int(edge) for edge in placement.offset)
    around = ((top, size - high - top), (left, size - wide - left), (0, 0))
    full = np.pad(small, around, mode="edge" if resize == "replicate" else "constant")
    return torch.from_numpy(full).permute(2, 0, 1).float() / 255


def item_of(file: Path, size: int, resize: str) -> Float[Tensor, "3 size size"]:
    """The picture in [0, 1], fitted into a square. Raises InputError, which names the file, if it cannot be decoded."""
    with decoding(file), opened(file) as stored:
        # as stored, without its EXIF orientation: keypoints refer to the stored rows and columns
        picture = rgb(stored, stored.format)
    return fitted(picture, size, resize)


@dataclass(frozen=True)
class Layout:
    """How to recognise the root folder of a dataset.

    Args:
        title: the dataset's name.
        parts: glob pattern of something below the root → its name in messages.
        folder: folder of the pictures, below the root.
    """

    title: str
    parts: Mapping[str, str]
    folder: str = ""

    def missing(self, folder: Path) -> list[str]:
        """Return the names of the parts that a folder lacks."""
        return [name for pattern, name in self.parts.items() if next(folder.glob(pattern), None) is None]


def root_of(layout: Layout, root: str) -> Path:
    """The root with links resolved. Raises InputError if it is another folder; the message names the right one, or what is
    missing."""
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
    """The file that a dataset names, below its root. Raises InputError, which ``on_error`` does not skip, if the path leads out
    of the root."""
    path, top = posixpath.join(*stated), str(root).rstrip(os.sep) + os.sep  # strings: pathlib is slow for 70,000 files
    file = os.path.join(root, path)
    spoilt = "\0" in path  # no file system allows it
    if spoilt or path.startswith("/") or ".." in path.split("/") or not (os.path.realpath(file) + os.sep).startswith(top):
        raise InputError(
            f"Expected every path in the dataset to stay below {root}, but got {path!r}, which leads out of it. "
            "Replace the link or path by a copy of the file."
        )
    return Path(file)


class BadPair(InputError):
    """A pair that cannot be used; it is raised or, with ``on_error=skip``, counted under ``reason``."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(reason, message)  # worker processes rebuild exceptions from these arguments
        self.reason = reason

    def message(self) -> str:
        """Return the message with what to do."""
        return f"{self.args[1]} Correct or remove it, or use images.on_error=skip."


@dataclass(frozen=True)
class Statement:
    """A pair as its dataset states it.

    ``label`` is its name in messages; ``names`` and ``points`` are those of source and target. The others: see :class:`Pair`.
    """

    label: str
    names: tuple[str, str]
    category: str
    ids: tuple[str, ...]
    points: tuple[tuple[Point, ...], tuple[Point, ...]]
    target_box: Box


Entry = tuple[str, Callable[[], Statement]]  # category ("" if the dataset does not know it), function that reads the pair


class PairFiles(FileImages):
    """Base class of pair datasets on disk. Items are the pictures of all kept pairs, in the order in which pairs first show
    them, as (3, size, size) in [0, 1].

    A subclass sets ``layout``; for ``box`` and ``image_reach`` see :class:`PairSource`. ``dropped`` maps reasons to numbers of
    pairs that were left out.

    Args:
        root: the dataset's folder.
        size: side of the square items in pixels, a positive multiple of 64; 512 is what SD-1.x and 2.x were trained on.
        resize: how a picture is fitted into the square: ``pad`` (with zeros), ``replicate`` (repeat its border) or ``squash``
            (change its aspect ratio).
        categories: names of the categories to take; None takes all.
        pairs_per_category: greatest number of pairs per category and split, at least 1, drawn among those that can be used;
            None takes all.
        seed: seed of drawn pairs.
        on_error: ``raise`` on a pair that cannot be used, or ``skip`` it and count it in ``dropped``.

    Raises:
        InputError: an argument out of range, a root that is not the dataset's folder, no pair that can be used, a pair that
            cannot be used with ``on_error="raise"``, a path that leads out of the root.
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
        seed: int = 0,
        on_error: str = "raise",
    ) -> None:
        super().__init__(size, on_error)
        settings.check("images", resize=resize)
        self.seed = seed
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
        kept = {split: self._kept(part, chosen, pairs_per_category) for split, part in entries.items()}
        self._pairs = {split: tuple(map(self._pair, stated.values())) for split, stated in kept.items()}
        if pairs_per_category is not None:  # positions in the dataset's lists
            self.drawn = {"seed": seed, "pairs": {split: list(stated) for split, stated in kept.items()}}
        self._names = list(self._indices)
        self._report()
        self._compare(entries, complete=categories is None and pairs_per_category is None)

    @abstractmethod
    def _entries(self) -> dict[str, list[Entry]]:
        """The pairs of each split, in the dataset's order; a split without its list is put into ``_absent``."""

    @abstractmethod
    def _compare(self, entries: Mapping[str, Sequence[Entry]], complete: bool) -> None:
        """Warn if the files differ from the published dataset; ``complete`` says that no pair was left out by a setting."""

    def __len__(self) -> int:
        return len(self._names)

    def picture(self, index: int) -> Float[Tensor, "3 size size"]:
        """Return the pixels (3, size, size) of the stored picture fitted into the square, in [0, 1]."""
        return item_of(self._file(self.name(index)), self.size, self.resize)

    def pairs(self, split: str) -> Sequence[Pair]:
        """The pairs of ``train``, ``val`` or ``test``, in the dataset's order.

        Returns:
            Pairs whose indices refer to this source; none if the dataset has no such split.

        Raises:
            InputError: an unknown split, or a split whose list is missing.
        """
        expect.one_of("split", split, PAIR_SPLITS)
        if split in self._absent:
            file = self._absent[split]
            raise InputError(
                f"Expected {file} to list the {split} pairs of {self.layout.title}, but it is missing. Put it there."
            )
        return self._pairs.get(split, ())

    def name(self, index: int) -> str:
        """Return the path of the picture below the folder of the pictures."""
        return self._names[index]

    def photo(self, index: int) -> str:
        """Return the name of the file without its folder, since a photograph of two categories is in the folders of both."""
        return PurePosixPath(self.name(index)).name

    def picture_size(self, index: int) -> tuple[int, int]:
        """Return (width, height) of the stored picture, in pixels."""
        return self._sizes[self.name(index)]

    def placement(self, index: int) -> Placement:
        """Return the position and scale of the stored picture in the square item."""
        return placement_of(*self.picture_size(index), self.size, self.resize)

    def content_key(self, index: int) -> str:
        """Return the digest of the file's bytes, with ``resize``, the size and the version of the preparation."""
        return f"file:{self.digest(self._file(self.name(index)))}:{self.resize}:{self.size}:{VERSION}"

    def _file(self, name: str) -> Path:
        return self.root / self.layout.folder / name

    def _chosen(self, entries: Mapping[str, Sequence[Entry]], categories: Sequence[str] | None) -> set[str]:
        known = sorted({category for part in entries.values() for category, _ in part if category})
        if categories is None:
            return {*known, ""}  # pairs without a category are bad input, which no setting selects
        wanted = [categories] if isinstance(categories, str) else list(categories)
        unknown = [name for name in wanted if name not in known]
        if unknown or not wanted:
            got = ", ".join(f"'{name}'" for name in unknown) or "none"
            raise InputError(
                f"Expected images.categories to be null or some of {', '.join(known)}, but got {got}. Use names of that list."
            )
        return set(wanted)

    def _kept(self, entries: Sequence[Entry], chosen: set[str], limit: int | None) -> dict[int, Statement]:
        """Position → usable pair of every chosen category, or of ``limit`` drawn ones each, in the dataset's order."""
        order = list(range(len(entries)))
        if limit is not None:
            order = drawing_order(list(map(str, order)), self.seed)
        counts: Counter[str] = Counter()
        stated: dict[int, Statement] = {}
        for number in order:
            category, read = entries[number]
            if category not in chosen or counts[category] == limit:
                continue
            try:
                stated[number] = self._checked(read())
                counts[category] += 1
            except BadPair as error:
                if self.on_error == "raise":
                    raise
                self.dropped[error.reason] += 1
        return dict(sorted(stated.items()))

    def _pair(self, stated: Statement) -> Pair:
        source, target = (self._indices.setdefault(name, len(self._indices)) for name in stated.names)
        return Pair(source, target, stated.category, stated.ids, *stated.points, stated.target_box)

    def _checked(self, stated: Statement) -> Statement:
        """The same statement. Raises BadPair if a picture is missing or the geometry is impossible."""
        sizes = [self._measured(name, stated.label) for name in stated.names]
        if not stated.ids:
            message = f"Expected {stated.label} to have keypoints that both pictures show, but got none."
            raise BadPair("no mutual keypoints", message)
        for name, points, (width, height) in zip(stated.names, stated.points, sizes, strict=True):
            for x, y in points:
                if not (-SLACK <= x <= width + SLACK and -SLACK <= y <= height + SLACK):
                    expected = f"Expected the keypoints of {stated.label} to lie in {name}, {width}×{height} pixels"
                    raise BadPair("keypoint outside the picture", f"{expected}, but got ({x:g}, {y:g}).")
        x0, y0, x1, y1 = stated.target_box
        # thresholds are shares of the longer side, so one side may be 0
        if not (all(map(math.isfinite, stated.target_box)) and min(x1 - x0, y1 - y0) >= 0 and max(x1 - x0, y1 - y0) > 0):
            message = f"Expected the target's box of {stated.label} to have a size, but got {stated.target_box}."
            raise BadPair("empty box", message)
        return stated

    def _measured(self, name: str, label: str) -> tuple[int, int]:
        """(width, height) of a picture, from its header."""
        if name not in self._sizes:
            file = inside(self.root, self.layout.folder, name)
            try:
                with opened(file) as picture:
                    check_range(picture.mode, picture.format)
                    self._sizes[name] = picture.size
            except (FileNotFoundError, NotADirectoryError) as error:
                raise BadPair("missing image", f"Expected {file} to be an image of {label}, but it is missing.") from error
            except Exception as error:  # PIL raises a dozen unrelated types
                message = f"Expected {file} to be an intact image, but it cannot be decoded ({error})."
                raise BadPair("unreadable image", message) from error
        return self._sizes[name]

    def _annotation(self, file: Path, read: Callable[[Path], T]) -> T:
        """Content of a picture's annotation file, which is read once."""
        if file not in self._annotations:
            self._annotations[file] = read(file)
        return self._annotations[file]

    def _report(self) -> None:
        """Warn about the pairs that were left out. Raises InputError if none remains."""
        kept, dropped = sum(map(len, self._pairs.values())), self.dropped.total()
        reasons = ", ".join(f"{count} {reason}" for reason, count in self.dropped.most_common())
        if dropped:
            log.warning("Left out %d of %d pairs of %s: %s.", dropped, kept + dropped, self.root, reasons)
        if not kept:
            got = f"{dropped} that cannot be used ({reasons})" if dropped else "none"
            title = self.layout.title
            raise InputError(f"Expected {title} in {self.root} to hold usable pairs, but got {got}. Check its files.")

    def _warn_if_unpublished(self, counts: Mapping[str, int], published: Mapping[str, int]) -> None:
        """Warn with every count that differs from the published dataset's."""
        other = [
            f"{name} {count:,} (published {published[name]:,})" for name, count in counts.items() if count != published[name]
        ]
        if other:
            log.warning("This copy of %s is not the published one: %s.", self.layout.title, ", ".join(other))
