"""Views of another source's pictures: mirrored, rotated, cropped at random, without a margin, or shifted and padded.

Data path step 1. Items of one photograph keep its name, so they stay in one split.
"""

import copy
import math
from abc import ABC, abstractmethod
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import interpolate

from datamodules.images.source import DrawnImages, ImageSource, Item, LatentSource, check_limit
from sdprobe.tokens.views import VERSION as SHOWN
from sdprobe.tokens.views import View
from sdprobe.utilities import expect, settings
from sdprobe.utilities.errors import InputError
from sdprobe.utilities.rng import drawing_order, keyed_generator

FLIPS: tuple[tuple[int, ...], ...] = ((), (-1,), (-2,), (-2, -1))  # unchanged, left to right, upside down, both
SHARES = (0.5, 0.9)  # side of a random crop as a share of the picture's
# of mirrored, rotated and cropped pictures, `Cropped` included; raise it when a pixel changes
VERSION = 1
SMALLEST = 64  # pixels per side, one token of Stable Diffusion's coarsest grid


class _Wrapped(ABC):
    """Base class of views of another source's pictures, with ``variants`` consecutive items per picture.

    Items keep the picture's id and photograph. Their content key is the picture's, with the change and its version.
    """

    variants = 1

    def __init__(self, images: ImageSource) -> None:
        self.images, self.size, self.on_error = images, images.size, images.on_error
        self.drawn = getattr(images, "drawn", None)

    def __len__(self) -> int:
        return len(self.images) * self.variants

    def __getitem__(self, index: int) -> Item:
        """The changed picture (3, size, size) and the item's id."""
        return {"image": self._show(self.images[self._source(index)]["image"], index), "id": self.name(index)}

    def name(self, index: int) -> str:
        """Return the id of the picture."""
        return self.images.name(self._source(index))

    def photo(self, index: int) -> str:
        """Return the name of the picture's photograph."""
        return self.images.photo(self._source(index))

    def content_key(self, index: int) -> str:
        """Return the content key of the picture, with the change and its version."""
        return f"{self.images.content_key(self._source(index))}:{self._mark(index)}"

    def _source(self, index: int) -> int:
        """Index of an item's picture."""
        return index // self.variants

    @abstractmethod
    def _show(self, image: Tensor, index: int) -> Tensor:
        """The changed picture, from the picture (3, size, size)."""

    @abstractmethod
    def _mark(self, index: int) -> str:
        """Name of the change, and its version."""


class _Variants(_Wrapped):
    """Several items per picture, each with its own id.

    ``limit`` counts items, so that there are as many tokens as without variants. Of rendered pictures it takes the first, which
    are a random sample. Others are drawn, spread over their folders.
    """

    kind: str

    def __init__(self, images: ImageSource, size: int, limit: int | None, variants: int) -> None:
        check_limit(limit)
        if images.size != size:
            raise InputError(f"Expected images of {size} pixels, but got {images.size}. Give both sources the same size.")
        super().__init__(images)
        self.variants = variants
        self.count = len(images) * variants if limit is None else min(limit, len(images) * variants)
        self.chosen = list(range(math.ceil(self.count / variants)))
        if len(self.chosen) < len(images) and not isinstance(images, DrawnImages):
            self.chosen = sorted(drawing_order([images.name(i) for i in range(len(images))], 0)[: len(self.chosen)])

    def __len__(self) -> int:
        return self.count

    def _source(self, index: int) -> int:
        return self.chosen[index // self.variants]

    def name(self, index: int) -> str:
        """Return the id of the picture, with the number of the change."""
        return f"{super().name(index)}#{self.kind}{index % self.variants}"

    def _mark(self, index: int) -> str:
        return f"{self.kind}{index % self.variants}:{VERSION}"


class FlipBalanced(_Variants):
    """Every picture in four orientations: unchanged, mirrored left to right, upside down, and both.

    The four items of a picture are consecutive, (3, size, size) in [0, 1]. What photographs show at the top is shown at the
    bottom equally often, so content and position are not correlated on average.

    Args:
        images: source of the pictures.
        size: side of the pictures in pixels; that of ``images``.
        limit: greatest number of items, at least 1; None takes all.

    Raises:
        InputError: a size other than that of the pictures, or a limit below 1.

    Example:
        >>> from datamodules.images.texture import Textures
        >>> images = FlipBalanced(Textures(size=64, limit=10), size=64)
        >>> len(images), images.name(1)
        (40, 'periodic-texture-0-0#flip1')
        >>> torch.equal(images[1]["image"], images[0]["image"].flip(-1))
        True
    """

    kind = "flip"

    def __init__(self, images: ImageSource, size: int = 512, limit: int | None = None) -> None:
        super().__init__(images, size, limit, len(FLIPS))

    def _show(self, image: Tensor, index: int) -> Tensor:
        return image.flip(FLIPS[index % self.variants])


class RandomCrops(_Variants):
    """Random squares of every picture, with sides of 50 to 90 % of the picture's, enlarged to its size.

    The items of a picture are consecutive, (3, size, size) in [0, 1]. A square depends on the seed, the picture's id and its
    number only.

    Args:
        images: source of the pictures.
        size: side of the pictures in pixels; that of ``images``.
        limit: greatest number of items, at least 1; None takes all.
        crops: items per picture, at least 1.
        seed: seed of the squares.

    Raises:
        InputError: a size other than that of the pictures, less than one crop, or a limit below 1.

    Example:
        >>> from datamodules.images.texture import Textures
        >>> images = RandomCrops(Textures(size=64, limit=10), size=64, crops=2)
        >>> len(images), tuple(images[0]["image"].shape), images.photo(0) == images.photo(1)
        (20, (3, 64, 64), True)
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
        return f"{super()._mark(index)}:{self.name(index)}"  # the square depends on the id


class Rotated(_Wrapped):
    """The same pictures rotated by 180°. Their ids are unchanged, so their noise is unchanged too.

    Args:
        images: source of the pictures.
    """

    def _show(self, image: Tensor, index: int) -> Tensor:
        return image.flip((-2, -1))

    def _mark(self, index: int) -> str:
        return f"rotated:{VERSION}"


class RotatedLatents(Rotated):
    """:class:`Rotated` for a source of latents.

    Args:
        images: source of the latents.
    """

    images: LatentSource

    def latent(self, index: int) -> Float[Tensor, "c h w"]:
        """Return the rotated latent."""
        return self.images.latent(index).flip((-2, -1))


def rotated(images: ImageSource) -> Rotated:
    """The pictures or latents of a source, rotated by 180°."""
    return RotatedLatents(images) if isinstance(images, LatentSource) else Rotated(images)


class Cropped(_Wrapped):
    """The same pictures with ``margin`` pixels cropped on every side. Their ids are unchanged; their noise is not, since it
    has another shape.

    Args:
        images: source of the pictures.
        margin: pixels to crop on every side, at least 0.

    Raises:
        InputError: a source of latents, a negative margin, or one that leaves fewer than 64 pixels per side.
    """

    def __init__(self, images: ImageSource, margin: int) -> None:
        if isinstance(images, LatentSource):
            raise InputError(f"Expected pictures to crop, but got the latents of {type(images).__name__}. Use images=texture.")
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
    """The same pictures in a :class:`~sdprobe.tokens.views.View`; their ids are unchanged."""

    def __init__(self, images: ImageSource, view: View) -> None:
        if isinstance(images, LatentSource) and view.shows != View():
            raise InputError(
                f"Expected pictures to change, but got the latents of {type(images).__name__}. "
                "Use images=texture, or a mitigation that needs no changed pictures."
            )
        super().__init__(resized(images, images.size + view.larger) if view.larger else images)
        self.view, self.size = view, images.size + 2 * view.margin

    def content_key(self, index: int) -> str:
        """Return the content key of the picture, with the view; empty pictures are all equal."""
        return f"empty:{self.size}:{SHOWN}" if self.view.empty else super().content_key(index)

    def _show(self, image: Tensor, index: int) -> Tensor:
        return self.view.show(image)

    def _mark(self, index: int) -> str:
        parts = {key: getattr(self.view, key) for key in ("shift", "flip", "margin", "window")}
        done = ",".join(f"{key}={value}" for key, value in parts.items() if value)
        return f"{done}:larger={self.view.larger}:{SHOWN}"


def shown(images: ImageSource, view: View) -> ImageSource:
    """The source of the same items in a view; the source itself if the view changes no picture."""
    if view.crop:
        images = Cropped(images, view.crop)
    if view.rotated:
        images = rotated(images)
    rest = replace(view.shows, crop=0, rotated=False)
    return images if rest == View() else Viewed(images, rest)


def resized(images: ImageSource, size: int) -> ImageSource:
    """The same source at another size; sources that it wraps get the new size too."""
    other: Any = copy.copy(images)
    if hasattr(images, "images"):
        other.images = resized(images.images, images.images.size + size - images.size)
    other.size = size
    return other
