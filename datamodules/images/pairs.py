"""What a source of image pairs with corresponding keypoints offers, and how its pictures fit into square inputs.

First step of the data path of semantic correspondence, in the place of an :class:`ImageSource`, which every pair source is.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from datamodules.images.source import ImageSource
from tokens import expect
from tokens.geometry import Placement

PAIR_SPLITS = ("train", "val", "test")
RESIZES = ("pad", "replicate", "squash")

Point = tuple[float, float]
Box = tuple[float, float, float, float]


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

    resize: how pictures fit into items, one of RESIZES.
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


def check_resize(resize: str) -> None:
    """Raises InputError unless ``resize`` is one of RESIZES."""
    expect.one_of("images.resize", resize, RESIZES)


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
