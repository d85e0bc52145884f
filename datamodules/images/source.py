"""The interface of image sources, and what the sources of this project share: decoding, digests, limits, folders.

A :class:`LatentSource` also gives latents, which need no encoder.
"""

import hashlib
from abc import abstractmethod
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol, TypedDict, runtime_checkable

from jaxtyping import Float
from torch import Tensor
from torch.utils.data import Dataset

from sdprobe.utilities import expect, settings
from sdprobe.utilities.errors import InputError
from sdprobe.utilities.pictures import check_size


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

    Raises:
        InputError: an argument out of range.
    """

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
                self._digests[file] = digest(file.read_bytes())
            except OSError:
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
    if not folder.is_dir():
        got = "a file" if folder.exists() else "which does not exist"
        raise InputError(f"Expected images.root to be {kind}, but got '{root}', {got}. Check the path.")
    return folder


def files_below(folder: Path, pattern: str, endings: Collection[str]) -> list[Path]:
    """Files with one of the endings, in the order of their paths."""
    return sorted(file for file in folder.rglob(pattern) if file.suffix.lower() in endings and file.is_file())
