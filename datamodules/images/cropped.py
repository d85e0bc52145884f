"""The same pictures without their margin: what a network makes of content that used to lie further inside."""

from datamodules.images.balanced import VERSION
from datamodules.images.given import LatentSource
from datamodules.images.source import ImageSource, Item
from tokens import expect
from tokens.errors import InputError

SMALLEST = 64  # pixels a side; what a U-Net's deepest grid needs to be more than one token


class Cropped:
    """An image source whose pictures lack `margin` pixels on every side.

    Items keep their ids, so that crops of a sweep can be told to show one photograph; noise keyed by an id differs in
    shape and is new all the same.

    Raises:
        InputError: if fewer than 64 pixels a side are left.
    """

    def __init__(self, images: ImageSource, margin: int) -> None:
        if isinstance(images, LatentSource):
            raise InputError(f"Expected pictures to crop, but {type(images).__name__} has latents only. Use images=texture.")
        expect.at_least("the margin", margin, 0)
        if images.size - 2 * margin < SMALLEST:
            raise InputError(
                f"Expected the margin to leave at least {SMALLEST} pixels of {images.size}, but got {margin} on every side. "
                f"Use larger images, images.size={SMALLEST + 2 * margin} or more."
            )
        self.images, self.margin = images, margin
        self.size, self.on_error = images.size - 2 * margin, images.on_error

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Item:
        """The item with its picture cropped."""
        item, last = self.images[index], self.margin + self.size
        return {"image": item["image"][:, self.margin : last, self.margin : last].contiguous(), "id": item["id"]}

    def name(self, index: int) -> str:
        """The id of the whole picture."""
        return self.images.name(index)

    def photo(self, index: int) -> str:
        """The photograph of the whole picture."""
        return self.images.photo(index)

    def content_key(self, index: int) -> str:
        """The whole picture's key, the margin, and the version of cropping."""
        return f"{self.images.content_key(index)}:margin{self.margin}:{VERSION}"
