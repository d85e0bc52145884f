"""What every image source offers.

Items of a :class:`LatentSource` are latents already.
"""

from typing import Protocol, TypedDict, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from sdprobe.utilities import expect


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


def check_limit(limit: int | None) -> None:
    """Raises InputError unless ``limit`` is None or positive."""
    if limit is not None:
        expect.at_least("images.limit", limit, 1, "Use null for all.")


def check_on_error(on_error: str) -> None:
    """Raises InputError unless ``on_error`` is ``raise`` or ``skip``."""
    expect.one_of("images.on_error", on_error, ("raise", "skip"))


@runtime_checkable
class LatentSource(ImageSource, Protocol):
    """A source of latents: no encoder runs."""

    def latent(self, index: int) -> Float[Tensor, "c h w"]:
        """The item's latent."""
