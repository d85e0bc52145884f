"""Other views of the same pictures: mirrored, rotated or cropped at random, without their margin, or shifted and padded.

Data path step 1. Each wraps another source. Items that show one photograph keep its name, and so stay in one split.
"""

import copy
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import interpolate

from datamodules.images.source import ImageSource, Item, LatentSource, check_limit
from sdprobe.tokens.views import VERSION as SHOWN
from sdprobe.tokens.views import View
from sdprobe.utilities import expect
from sdprobe.utilities.errors import InputError
from sdprobe.utilities.rng import keyed_generator

FLIPS: tuple[tuple[int, ...], ...] = ((), (-1,), (-2,), (-2, -1))  # as it is, left to right, upside down, both
SHARES = (0.5, 0.9)  # side of a random crop as a share of the picture's
# of mirrored, rotated and cropped pictures, `Cropped` included; raise it when a pixel changes
VERSION = 1
SMALLEST = 64  # pixels a side; what a U-Net's deepest grid needs to be more than one token


class _Wrapped:
    """An image source made of `variants` pictures per item of another."""

    kind: str

    def __init__(self, images: ImageSource, size: int, limit: int | None, variants: int) -> None:
        check_limit(limit)
        if images.size != size:
            raise InputError(f"Expected images of {size} pixels, but got {images.size}. Give both sources the same size.")
        self.images, self.variants = images, variants
        self.size, self.on_error = size, images.on_error
        self.count = len(images) * variants if limit is None else min(limit, len(images) * variants)

    def __len__(self) -> int:
        return self.count

    def name(self, index: int) -> str:
        """The picture's id and what was done to it."""
        return f"{self.images.name(index // self.variants)}#{self.kind}{index % self.variants}"

    def photo(self, index: int) -> str:
        """That of the picture."""
        return self.images.photo(index // self.variants)

    def content_key(self, index: int) -> str:
        """The picture's key, what was done to it, and the version of that."""
        return f"{self.images.content_key(index // self.variants)}:{self.kind}{index % self.variants}:{VERSION}"


class FlipBalanced(_Wrapped):
    """Every picture four times: as it is, mirrored left to right, upside down, and both.

    What a photographer puts at the top is at the bottom just as often, so content says nothing of position in the mean.

    Args:
        images: the pictures.
        size: of the pictures in pixels.
        limit: number of items at most, four per picture; None takes all.

    Raises:
        InputError: another size than that of the pictures; a limit below 1.
    """

    kind = "flip"

    def __init__(self, images: ImageSource, size: int = 512, limit: int | None = None) -> None:
        super().__init__(images, size, limit, len(FLIPS))

    def __getitem__(self, index: int) -> Item:
        """The mirrored picture."""
        item = self.images[index // self.variants]
        return {"image": item["image"].flip(FLIPS[index % self.variants]), "id": self.name(index)}


class RandomCrops(_Wrapped):
    """Random squares of every picture, 50 to 90 % of its side, enlarged to its size.

    Args:
        images: the pictures.
        size: of the pictures in pixels.
        limit: number of items at most; None takes all.
        crops: items per picture.
        seed: of the squares.

    Raises:
        InputError: another size than that of the pictures; fewer than one crop; a limit below 1.
    """

    def __init__(self, images: ImageSource, size: int = 512, limit: int | None = None, crops: int = 1, seed: int = 0) -> None:
        expect.at_least("images.crops", crops, 1)
        super().__init__(images, size, limit, crops)
        self.seed, self.kind = seed, f"crop{seed}."

    def content_key(self, index: int) -> str:
        """The picture's key, and its id, which chooses the square."""
        return f"{super().content_key(index)}:{self.name(index)}"

    def __getitem__(self, index: int) -> Item:
        """The enlarged square."""
        item = self.images[index // self.variants]
        generator = keyed_generator("crop", self.seed, self.name(index))
        low, high = SHARES
        side = round(self.size * (low + (high - low) * torch.rand((), generator=generator).item()))
        top, left = (int(torch.randint(self.size - side + 1, (), generator=generator)) for _ in range(2))
        square = item["image"][None, :, top : top + side, left : left + side]
        enlarged = interpolate(square, size=(self.size, self.size), mode="bicubic", align_corners=False)
        return {"image": enlarged[0].clamp(0, 1), "id": self.name(index)}


class Rotated:
    """The same pictures rotated by 180°, with the same ids: whatever is keyed by an id stays where it was.

    Args:
        images: the pictures.
    """

    def __init__(self, images: ImageSource) -> None:
        self.images, self.size, self.on_error = images, images.size, images.on_error

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Item:
        """The rotated picture."""
        item = self.images[index]
        return {"image": item["image"].flip((-2, -1)), "id": item["id"]}

    def name(self, index: int) -> str:
        """The upright picture's id."""
        return self.images.name(index)

    def photo(self, index: int) -> str:
        """The upright picture's photograph."""
        return self.images.photo(index)

    def content_key(self, index: int) -> str:
        """The upright picture's key, marked."""
        return f"{self.images.content_key(index)}:rotated:{VERSION}"


class RotatedLatents(Rotated):
    """The same for a source that gives latents itself.

    Args:
        images: gives latents.
    """

    def __init__(self, images: LatentSource) -> None:
        super().__init__(images)
        self.latents = images

    def latent(self, index: int) -> Float[Tensor, "c h w"]:
        """The rotated latent."""
        return self.latents.latent(index).flip((-2, -1))


def rotated(images: ImageSource) -> Rotated:
    """The pictures, or latents, of a source rotated by 180°."""
    return RotatedLatents(images) if isinstance(images, LatentSource) else Rotated(images)


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


class Viewed:
    """An image source whose pictures are shown as a :class:`~sdprobe.tokens.views.View` says; items keep their ids."""

    def __init__(self, images: ImageSource, view: View) -> None:
        if isinstance(images, LatentSource) and view.shows != View():
            raise InputError(
                f"Expected pictures to show in another way, but {type(images).__name__} has latents only. "
                "Use images=texture, or a mitigation that takes no passes of its own."
            )
        self.images = resized(images, images.size + view.larger) if view.larger else images
        self.view = view
        self.size, self.on_error = images.size + 2 * view.margin, images.on_error

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Item:
        """The item as it is shown."""
        item = self.images[index]
        return {"image": self.view.show(item["image"]), "id": item["id"]}

    def name(self, index: int) -> str:
        """The id of the picture itself."""
        return self.images.name(index)

    def photo(self, index: int) -> str:
        """The photograph of the picture itself."""
        return self.images.photo(index)

    def content_key(self, index: int) -> str:
        """The picture's own key, what the view does to it, and the version of that."""
        shown = self.view
        parts = {"shift": shown.shift, "flip": shown.flip, "margin": shown.margin, "window": shown.window}
        if shown.empty:
            return f"empty:{self.size}:{SHOWN}"
        done = ",".join(f"{key}={value}" for key, value in parts.items() if value)
        return f"{self.images.content_key(index)}:{done}:larger={shown.larger}:{SHOWN}"


def shown(images: ImageSource, view: View) -> ImageSource:
    """The same items, cropped, rotated and shown as ``view`` says; the source itself where that changes no picture."""
    if view.crop:
        images = Cropped(images, view.crop)
    if view.rotated:
        images = rotated(images)
    rest = replace(view.shows, crop=0, rotated=False)
    return images if rest == View() else Viewed(images, rest)


def resized(images: ImageSource, size: int) -> ImageSource:
    """The same source at another size, through whatever wraps it."""
    other: Any = copy.copy(images)
    if hasattr(images, "images"):
        other.images = resized(images.images, images.images.size + size - images.size)
    other.size = size
    return other
