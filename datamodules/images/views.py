"""Other views of the same pictures: mirrored, rotated or cropped at random, without their margin, or shifted and padded.

Data path step 1. Each wraps another source. Items that show one photograph keep its name, and so stay in one split.
"""

import copy
from abc import ABC, abstractmethod
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import interpolate

from datamodules.images.source import ImageSource, Item, LatentSource, check_limit
from sdprobe.tokens.views import VERSION as SHOWN
from sdprobe.tokens.views import View
from sdprobe.utilities import expect, settings
from sdprobe.utilities.errors import InputError
from sdprobe.utilities.rng import keyed_generator

FLIPS: tuple[tuple[int, ...], ...] = ((), (-1,), (-2,), (-2, -1))  # as it is, left to right, upside down, both
SHARES = (0.5, 0.9)  # side of a random crop as a share of the picture's
# of mirrored, rotated and cropped pictures, `Cropped` included; raise it when a pixel changes
VERSION = 1
SMALLEST = 64  # pixels a side; what a U-Net's deepest grid needs to be more than one token


class _Wrapped(ABC):
    """Another source's pictures, shown in other ways: `variants` items per picture, next to each other.

    Items keep the picture's id and photograph; their key is the picture's, what is done to it, and the version of that.
    """

    variants = 1

    def __init__(self, images: ImageSource) -> None:
        self.images, self.size, self.on_error = images, images.size, images.on_error

    def __len__(self) -> int:
        return len(self.images) * self.variants

    def __getitem__(self, index: int) -> Item:
        """The picture as it is shown."""
        return {"image": self._show(self.images[index // self.variants]["image"], index), "id": self.name(index)}

    def name(self, index: int) -> str:
        """The picture's id."""
        return self.images.name(index // self.variants)

    def photo(self, index: int) -> str:
        """The picture's photograph."""
        return self.images.photo(index // self.variants)

    def content_key(self, index: int) -> str:
        """The picture's key, what is done to it, and the version of that."""
        return f"{self.images.content_key(index // self.variants)}:{self._mark(index)}"

    @abstractmethod
    def _show(self, image: Tensor, index: int) -> Tensor:
        """What an item shows of its picture (3, size, size)."""

    @abstractmethod
    def _mark(self, index: int) -> str:
        """What is done to the picture, and the version of that."""


class _Variants(_Wrapped):
    """Several items per picture, under names of their own; ``limit`` counts items."""

    kind: str

    def __init__(self, images: ImageSource, size: int, limit: int | None, variants: int) -> None:
        check_limit(limit)
        if images.size != size:
            raise InputError(f"Expected images of {size} pixels, but got {images.size}. Give both sources the same size.")
        super().__init__(images)
        self.variants = variants
        self.count = len(images) * variants if limit is None else min(limit, len(images) * variants)

    def __len__(self) -> int:
        return self.count

    def name(self, index: int) -> str:
        """The picture's id and what was done to it."""
        return f"{super().name(index)}#{self.kind}{index % self.variants}"

    def _mark(self, index: int) -> str:
        return f"{self.kind}{index % self.variants}:{VERSION}"


class FlipBalanced(_Variants):
    """Every picture four times: as it is, mirrored left to right, upside down, and both.

    What a photographer puts at the top is at the bottom just as often, so content says nothing of position in the mean.

    Args:
        images: the pictures.
        size: of the pictures in pixels.
        limit: number of items at most; None takes all.

    Raises:
        InputError: another size than that of the pictures; a limit below 1.
    """

    kind = "flip"

    def __init__(self, images: ImageSource, size: int = 512, limit: int | None = None) -> None:
        super().__init__(images, size, limit, len(FLIPS))

    def _show(self, image: Tensor, index: int) -> Tensor:
        return image.flip(FLIPS[index % self.variants])


class RandomCrops(_Variants):
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
        settings.check("images", crops=crops)
        super().__init__(images, size, limit, crops)
        self.seed, self.kind = seed, f"crop{seed}."

    def _show(self, image: Tensor, index: int) -> Tensor:
        generator = keyed_generator("crop", self.seed, self.name(index))
        low, high = SHARES
        side = round(self.size * (low + (high - low) * torch.rand((), generator=generator).item()))
        top, left = (int(torch.randint(self.size - side + 1, (), generator=generator)) for _ in range(2))
        square = image[None, :, top : top + side, left : left + side]
        return interpolate(square, size=(self.size, self.size), mode="bicubic", align_corners=False)[0].clamp(0, 1)

    def _mark(self, index: int) -> str:
        return f"{super()._mark(index)}:{self.name(index)}"  # the id chooses the square


class Rotated(_Wrapped):
    """The same pictures rotated by 180°, with the same ids: whatever is keyed by an id stays where it was.

    Args:
        images: the pictures.
    """

    def _show(self, image: Tensor, index: int) -> Tensor:
        return image.flip((-2, -1))

    def _mark(self, index: int) -> str:
        return f"rotated:{VERSION}"


class RotatedLatents(Rotated):
    """The same for a source that gives latents itself.

    Args:
        images: gives latents.
    """

    images: LatentSource

    def latent(self, index: int) -> Float[Tensor, "c h w"]:
        """The rotated latent."""
        return self.images.latent(index).flip((-2, -1))


def rotated(images: ImageSource) -> Rotated:
    """The pictures, or latents, of a source rotated by 180°."""
    return RotatedLatents(images) if isinstance(images, LatentSource) else Rotated(images)


class Cropped(_Wrapped):
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
        super().__init__(images)
        self.margin, self.size = margin, images.size - 2 * margin

    def _show(self, image: Tensor, index: int) -> Tensor:
        last = self.margin + self.size
        return image[:, self.margin : last, self.margin : last].contiguous()

    def _mark(self, index: int) -> str:
        return f"margin{self.margin}:{VERSION}"


class Viewed(_Wrapped):
    """An image source whose pictures are shown as a :class:`~sdprobe.tokens.views.View` says; items keep their ids."""

    def __init__(self, images: ImageSource, view: View) -> None:
        if isinstance(images, LatentSource) and view.shows != View():
            raise InputError(
                f"Expected pictures to show in another way, but {type(images).__name__} has latents only. "
                "Use images=texture, or a mitigation that takes no passes of its own."
            )
        super().__init__(resized(images, images.size + view.larger) if view.larger else images)
        self.view, self.size = view, images.size + 2 * view.margin

    def content_key(self, index: int) -> str:
        """As always, but that an empty picture has no content."""
        return f"empty:{self.size}:{SHOWN}" if self.view.empty else super().content_key(index)

    def _show(self, image: Tensor, index: int) -> Tensor:
        return self.view.show(image)

    def _mark(self, index: int) -> str:
        parts = {key: getattr(self.view, key) for key in ("shift", "flip", "margin", "window")}
        done = ",".join(f"{key}={value}" for key, value in parts.items() if value)
        return f"{done}:larger={self.view.larger}:{SHOWN}"


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
