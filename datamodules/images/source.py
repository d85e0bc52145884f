"""What every image source offers, and what the sources of this project share: decoding, digests, limits, folders.

Items of a :class:`LatentSource` are latents already.
"""

import hashlib
from abc import abstractmethod
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol, TypedDict, runtime_checkable

from jaxtyping import Float
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import Dataset

from sdprobe.utilities import expect, settings
from sdprobe.utilities.errors import InputError
from sdprobe.utilities.pictures import check_size

# what PIL raises on a file that is no intact image
UNDECODABLE = (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError, ValueError)


class Item(TypedDict):
    """One image: (3, size, size) in [0, 1], and a name that is unique in its source and stable between runs."""

    image: Float[Tensor, "3 size size"]
    id: str


@runtime_checkable
class ImageSource(Protocol):
    """A list of square images of ``size`` pixels; ``on_error`` (``raise`` or ``skip``) governs items that cannot be decoded."""

    size: int
    on_error: str

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Item: ...

    def name(self, index: int) -> str:
        """The item's id, without rendering or decoding it."""

    def photo(self, index: int) -> str:
        """The photograph an item shows; crops of one photograph share it and stay in one split."""

    def content_key(self, index: int) -> str:
        """Identifies the pixels of an item, without rendering or decoding it where possible."""


@runtime_checkable
class LatentSource(ImageSource, Protocol):
    """A source of latents: no encoder runs."""

    def latent(self, index: int) -> Float[Tensor, "c h w"]:
        """The item's latent."""


class Images(Dataset[Item], ImageSource):
    """A source of pictures. Unless a subclass says otherwise, every item is a photograph of its own.

    Raises:
        InputError: ``size`` is no multiple of 64; ``on_error`` is neither ``raise`` nor ``skip``.
    """

    def __init__(self, size: int, on_error: str = "raise") -> None:
        check_size(size)
        self.size = size
        settings.check("images", on_error=on_error)
        self.on_error = on_error

    def __getitem__(self, index: int) -> Item:
        """Raises InputError, naming the picture, where it cannot be decoded."""
        return {"image": self.picture(index), "id": self.name(index)}

    @abstractmethod
    def picture(self, index: int) -> Float[Tensor, "3 size size"]:
        """The pixels of an item, in [0, 1]."""

    def photo(self, index: int) -> str:
        """The item itself."""
        return self.name(index)


class DrawnImages(Images):
    """``limit`` pictures that are drawn, not read: each depends on ``seed`` and its position."""

    def __init__(self, size: int, limit: int, seed: int) -> None:
        super().__init__(size)
        expect.at_least("images.limit", limit, 1)
        self.limit, self.seed = limit, seed

    def __len__(self) -> int:
        return self.limit

    def position(self, index: int) -> int:
        """The index counted from the front; raises IndexError past either end, which also ends iteration."""
        if not -self.limit <= index < self.limit:
            raise IndexError(f"Expected index to be below {self.limit}, but got {index}. Raise images.limit.")
        return int(index) % self.limit


class FileImages(Images):
    """Pictures in files, identified by the files' bytes."""

    def __init__(self, size: int, on_error: str) -> None:
        super().__init__(size, on_error)
        self._digests: dict[Path, str] = {}

    def digest(self, file: Path) -> str:
        """Digest of a file's bytes."""
        if file not in self._digests:
            try:
                self._digests[file] = digest(file.read_bytes())
            except OSError:
                self._digests[file] = f"unreadable {file}"  # decoding it will say so
        return self._digests[file]


def check_limit(limit: int | None, name: str = "images.limit") -> None:
    """Raises InputError unless ``limit`` is None or positive."""
    if limit is not None:
        expect.at_least(name, limit, 1, "Use null for all.")


def digest(encoded: bytes) -> str:
    """What content keys of encoded pictures are made of."""
    return hashlib.blake2b(encoded, digest_size=16).hexdigest()


@contextmanager
def decoding(picture: object, fix: str = "Remove it, or use images.on_error=skip.") -> Iterator[None]:
    """Raises InputError, naming the picture, where it cannot be decoded inside the ``with`` block."""
    try:
        yield
    except UNDECODABLE as error:
        raise InputError(f"Expected {picture} to be an intact image, but it cannot be decoded ({error}). {fix}") from error


def folder_of(root: str, kind: str = "a folder") -> Path:
    """The folder that ``images.root`` names; raises InputError where there is none. ``kind``: what it ought to be."""
    folder = Path(root).expanduser()
    if not folder.is_dir():
        got = "a file" if folder.exists() else "which does not exist"
        raise InputError(f"Expected images.root to be {kind}, but got '{root}', {got}. Check the path.")
    return folder


def files_below(folder: Path, pattern: str, endings: Collection[str]) -> list[Path]:
    """Files with one of the endings, in the order of their paths."""
    return sorted(file for file in folder.rglob(pattern) if file.suffix.lower() in endings and file.is_file())
