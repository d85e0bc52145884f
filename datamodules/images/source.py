"""The interface of image sources, and what the sources of this project share: decoding, digests, limits, folders.

A :class:`LatentSource` also gives latents, which need no encoder.
"""

import hashlib
import logging
import mimetypes
import os
from abc import abstractmethod
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Protocol, TypedDict, runtime_checkable

from jaxtyping import Float
from torch import Tensor
from torch.utils.data import Dataset

from sdprobe.utilities import expect, settings
from sdprobe.utilities.errors import InputError
from sdprobe.utilities.io import DamagedFile, read_file
from sdprobe.utilities.pictures import check_size

# folders of network storage, archivers and wastebaskets
OF_SYSTEMS = {"@eaDir", "#recycle", "__MACOSX", "$RECYCLE.BIN", "System Volume Information", "lost+found"}
log = logging.getLogger(__name__)


class Item(TypedDict):
    """An image (3, size, size) in [0, 1], and its id, which is unique in its source and the same in every run."""

    image: Float[Tensor, "3 size size"]
    id: str


@runtime_checkable
class ImageSource(Protocol):
    """A sequence of square images of ``size`` pixels per side.

    ``on_error`` is ``raise`` or ``skip``: what happens to items that cannot be decoded.
    """

    size: int
    on_error: str

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Item: ...

    def name(self, index: int) -> str:
        """Return the item's id; the item is not rendered or decoded."""

    def photo(self, index: int) -> str:
        """Return the name of the item's photograph; crops of one photograph share it and stay in one split."""

    def content_key(self, index: int) -> str:
        """Return a text that identifies the item's pixels; the item is not rendered or decoded where that can be avoided."""


@runtime_checkable
class LatentSource(ImageSource, Protocol):
    """An image source that gives latents itself, so that no encoder runs."""

    def latent(self, index: int) -> Float[Tensor, "c h w"]:
        """Return the item's latent (c, h, w)."""


class Images(Dataset[Item], ImageSource):
    """Base class of sources of pictures. Every item is a photograph of its own, unless a subclass says otherwise.

    Args:
        size: side of the square images in pixels, a positive multiple of 64.
        on_error: ``raise`` on an item that cannot be decoded, or ``skip`` it.

    Attributes:
        drawn: what a limit has drawn, for the record of a run; None where all pictures are taken.

    Raises:
        InputError: an argument out of range.
    """

    drawn: dict[str, Any] | None = None

    def __init__(self, size: int, on_error: str = "raise") -> None:
        check_size(size)
        self.size = size
        settings.check("images", on_error=on_error)
        self.on_error = on_error

    def __getitem__(self, index: int) -> Item:
        """The item's pixels and id. Raises InputError, which names the picture, if it cannot be decoded."""
        return {"image": self.picture(index), "id": self.name(index)}

    @abstractmethod
    def picture(self, index: int) -> Float[Tensor, "3 size size"]:
        """Return the pixels (3, size, size) of an item, in [0, 1]."""

    def photo(self, index: int) -> str:
        """Return the item's id: every item is a photograph of its own."""
        return self.name(index)


class DrawnImages(Images):
    """Base class of sources that draw their pictures; a picture depends on ``seed`` and its position only.

    Args:
        size: side of the square images in pixels, a positive multiple of 64.
        limit: number of pictures, at least 1.
        seed: seed of the pictures.

    Raises:
        InputError: an argument out of range.
    """

    def __init__(self, size: int, limit: int, seed: int) -> None:
        super().__init__(size)
        expect.at_least("images.limit", limit, 1)
        self.limit, self.seed = limit, seed

    def __len__(self) -> int:
        return self.limit

    def position(self, index: int) -> int:
        """Return the index counted from the first picture. Raises IndexError beyond either end, which also ends iteration."""
        if not -self.limit <= index < self.limit:
            raise IndexError(f"Expected index to be below {self.limit}, but got {index}. Raise images.limit.")
        return int(index) % self.limit


class FileImages(Images):
    """Base class of sources of picture files, which are identified by their bytes."""

    def __init__(self, size: int, on_error: str) -> None:
        super().__init__(size, on_error)
        self._digests: dict[Path, str] = {}

    def digest(self, file: Path) -> str:
        """Return the hex digest of a file's bytes."""
        if file not in self._digests:
            try:
                self._digests[file] = digest(read_file(file))
            except (OSError, DamagedFile):
                self._digests[file] = f"unreadable {file}"  # decoding raises the error
        return self._digests[file]


def check_limit(limit: int | None, name: str = "images.limit") -> None:
    """Raises InputError unless ``limit`` is None or positive."""
    if limit is not None:
        expect.at_least(name, limit, 1, "Use null for all.")


def digest(encoded: bytes) -> str:
    """Hex digest of an encoded picture, for its content key."""
    return hashlib.blake2b(encoded, digest_size=16).hexdigest()


@contextmanager
def decoding(picture: object, fix: str = "Remove it, or use images.on_error=skip.") -> Iterator[None]:
    """Raises InputError, which names the picture, if it cannot be decoded inside the ``with`` block."""
    try:
        yield
    except Exception as error:  # PIL raises a dozen unrelated types
        raise InputError(f"Expected {picture} to be an intact image, but it cannot be decoded ({error}). {fix}") from error


def folder_of(root: str, kind: str = "a folder") -> Path:
    """The folder ``images.root``. Raises InputError if it does not exist; ``kind`` names the expected folder in the message."""
    folder = Path(root).expanduser()
    if folder.is_file():
        raise InputError(
            f"Expected images.root to be {kind}, but got '{root}', a file. Unpack it, or give the folder it is in."
        )
    if not folder.is_dir():
        raise InputError(f"Expected images.root to be {kind}, but got '{root}', which does not exist. Check the path.")
    return folder


def files_below(folder: Path, pattern: str, endings: Collection[str]) -> list[Path]:
    """Files with one of the endings, in the order of their paths, also in folders that are linked to.

    A folder counts once, however many links lead to it. A warning counts pictures that are left out: hidden files, files in
    hidden folders or in those of systems, links that lead nowhere, and pictures with another ending.

    Raises:
        InputError: a folder that cannot be read, or a name that is not UTF-8.
    """
    found: list[Path] = []
    left: list[Path] = []
    seen: set[str] = set()

    def refuse(error: OSError) -> None:
        if not _hidden(Path(error.filename).relative_to(folder)):
            raise InputError(
                f"Expected every folder below images.root to be readable, but {error.filename} is not ({error.strerror}). "
                "Change its permissions, or move it elsewhere."
            ) from error

    starts = [str(folder)]  # links are followed last, so that a file has the name without a link if it has one
    for start in starts:
        for where, folders, names in os.walk(start, onerror=refuse):
            real = os.path.realpath(where)
            if real in seen:
                folders.clear()
                continue
            seen.add(real)
            starts += (path for name in sorted(folders) if os.path.islink(path := os.path.join(where, name)))
            for file in (Path(where, name) for name in names if fnmatch(name, pattern)):
                ours = file.suffix.lower() in endings
                usable = ours and not _hidden(file.relative_to(folder)) and file.is_file()
                if usable:
                    found.append(file)
                elif ours or str(mimetypes.guess_type(file.name)[0]).startswith("image/"):
                    left.append(file)
    if left:
        log.warning(
            "Pictures left out below %s (hidden, of a system, broken links, other formats): %d, such as %s.",
            folder, len(left), min(left),
        )  # fmt: skip
    if strange := next((file for file in found if any(0xD800 <= ord(letter) <= 0xDFFF for letter in str(file))), None):
        raise InputError(f"Expected names of files in UTF-8, but got {str(strange)!a}. Rename it.")
    return sorted(found)


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") or part in OF_SYSTEMS for part in path.parts)
