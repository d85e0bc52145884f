"""Images as people hold them (files, PIL, arrays, tensors, lists of these) → tensors with three channels in [0, 1].

Files and 8-bit pixels are prepared as the pictures of ``images=folder`` are: turned upright by their EXIF tag, transparency on
white, grey in three channels.
"""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from sdprobe.utilities import expect, settings
from sdprobe.utilities.arrays import tensor_of
from sdprobe.utilities.errors import InputError
from sdprobe.utilities.pictures import opened, pixels, square, upright

OneOrMore = Image.Image | str | os.PathLike[str] | np.ndarray | Tensor
Images = OneOrMore | Sequence[OneOrMore]
KINDS = (Image.Image, str, os.PathLike, np.ndarray, Tensor)
CHANNELS = (1, 2, 3, 4)  # grey, grey with alpha, colour, colour with alpha
STORED = ("uint8", "uint16", "bool")  # what files hold


def tensors_of(images: Any, size: int | None, stride: int) -> Tensor | list[Tensor]:
    """A float tensor (B, 3, H, W) as it is, anything else as a list of float tensors (3, H, W) that may differ in size.

    Args:
        images: :data:`Images`; another kind is refused. Stacks have four axes. Channels come first or last.
        size: side in pixels of the largest centred square that is taken of each image; None leaves images as they are.
        stride: sides must be multiples of it.

    Raises:
        InputError: something else than an image, which is named, or no image at all.
    """
    if size is not None:
        expect.multiple("size", size, settings.COARSEST)
    named = list(_named(images))
    if not named:
        raise InputError("Expected images to hold at least one image, but got none. Pass an image or a list of images.")
    if isinstance(images, Tensor) and images.ndim == 4 and images.shape[1] == 3 and images.is_floating_point() and size is None:
        _check_sides("images", images.shape[2], images.shape[3], stride)
        wrong = ~((images >= 0) & (images <= 1)).flatten(1).all(1)
        if wrong.any():
            _check_range(*named[int(wrong.nonzero()[0])])
        return images
    return [_tensor(name, image, size, stride) for name, image in named]


def _named(images: Any) -> Iterator[tuple[str, Any]]:
    """Every image with its name in messages."""
    if not isinstance(images, (*KINDS, list, tuple)):
        raise InputError(
            f"Expected images to be a PIL image, path, array, tensor or a list of these, but got {_kind(images)}. "
            "Make a list of it."
        )
    if isinstance(images, np.ndarray | Tensor) and images.ndim != 4:
        yield "images", images
    elif isinstance(images, list | tuple | np.ndarray | Tensor):
        for number, image in enumerate(images):
            stack = isinstance(image, np.ndarray | Tensor) and image.ndim == 4
            yield from ((f"images[{number}]", each) for each in (image if stack else [image]))
    else:
        yield "images", images


def _tensor(name: str, image: Any, size: int | None, stride: int) -> Tensor:
    """One image as a float tensor (3, H, W)."""
    if isinstance(image, np.ndarray | Tensor):
        image = _channels_last(name, image)
        if image.dtype.is_floating_point if isinstance(image, Tensor) else image.dtype.kind == "f":
            return _floats(name, image, size, stride)
    if isinstance(image, str | os.PathLike):
        name = f"{name} ('{os.fspath(image)}')"
    try:
        picture = _picture(image)
    except InputError:
        raise
    except Exception as error:  # PIL raises a dozen unrelated types
        raise InputError(
            f"Expected {name} to be an intact image, but it cannot be read ({error}). Remove it from the list, or correct it."
        ) from error
    if size is not None:
        return square(picture, size)
    _check_sides(name, picture.height, picture.width, stride)
    return pixels(picture)


def _picture(image: Any) -> Image.Image:
    """The upright RGB picture of a file, a PIL image or an array (H, W, C) of what files hold."""
    if isinstance(image, Image.Image):
        return upright(image)
    if isinstance(image, np.ndarray | Tensor):
        array = np.asarray(image.cpu() if isinstance(image, Tensor) else image)
        if array.dtype.name not in STORED:
            raise ValueError(f"its type is {array.dtype}, not uint8 from 0 to 255 or floating point from 0 to 1")
        array = array.astype(np.uint8) * 255 if array.dtype == bool else array
        return upright(Image.fromarray(np.ascontiguousarray(array[..., 0] if array.shape[-1] == 1 else array)))
    if isinstance(image, str | os.PathLike):
        with opened(Path(image).expanduser()) as stored:
            return upright(stored)
    raise ValueError(f"it is {_kind(image)}, not a PIL image, path, array or tensor")


def _floats(name: str, given: np.ndarray | Tensor, size: int | None, stride: int) -> Tensor:
    """A floating-point image (H, W, C): checked, transparency on white, three channels."""
    if size is not None:
        raise InputError(
            f"Expected files, PIL images or 8-bit arrays for size={size}, but {name} is {given.dtype}. "
            "Resize it first, or pass 8-bit pixels."
        )
    image: Tensor = tensor_of(given).permute(2, 0, 1).float()
    _check_sides(name, image.shape[1], image.shape[2], stride)
    _check_range(name, image)
    if len(image) in (2, 4):
        image = image[:-1] * image[-1:] + (1 - image[-1:])
    return image.expand(3, -1, -1)


def _check_range(name: str, image: Tensor) -> None:
    low, high = image.min().item(), image.max().item()
    if not (low >= 0 and high <= 1):  # also false for NaN
        found, fix = f"values from {low:.3g} to {high:.3g}", "Divide 8-bit images by 255; undo any other normalisation."
        if image.isnan().any():
            found, fix = "NaN", "Correct it, or leave it out."
        raise InputError(f"Expected images in the range [0, 1], but {name} has {found}. {fix}")


def _channels_last(name: str, image: np.ndarray | Tensor) -> np.ndarray | Tensor:
    """(H, W, C) of (H, W), (C, H, W) or (H, W, C). A side is never so short that it could be a number of channels."""
    if image.ndim == 2:
        return image[..., None]
    if image.ndim == 3 and image.shape[0] in CHANNELS:
        return image.permute(1, 2, 0) if isinstance(image, Tensor) else image.transpose(1, 2, 0)
    if image.ndim == 3 and image.shape[2] in CHANNELS:
        return image
    raise InputError(
        f"Expected {name} to have the axes (3, H, W), (H, W, 3) or (H, W), but got the shape {tuple(image.shape)}. "
        "A stack of images has four axes."
    )


def _check_sides(name: str, height: int, width: int, stride: int) -> None:
    if not height or not width or height % stride or width % stride:
        raise InputError(
            f"Expected {name} to have sides that are multiples of {stride} pixels, but got {height}×{width}. "
            "Crop or resize it; size=512 takes the largest centred square of pictures."
        )


def _kind(value: object) -> str:
    return f"an object of type {type(value).__name__}"
