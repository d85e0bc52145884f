"""Pictures → square tensors."""

from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image, ImageOps
from torch import Tensor

from sdprobe.utilities import settings

# version of `square` and `upright` (folders, hub, NYUv2) and of random crops; increase it when a pixel changes
VERSION = 1
# whose decoders start no other program: PIL would pass PostScript on to Ghostscript, whatever the file is called
FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF", "PPM", "AVIF", "JPEG2000")
LARGEST = 178_000_000  # pixels; a small file can hold far more than memory does
Image.init()  # lists the formats of this installation


@contextmanager
def opened(file: Path | BytesIO) -> Iterator[Image.Image]:
    """A picture file in one of the :data:`FORMATS`, whose pixels are not decoded yet.

    Raises:
        ValueError: more than :data:`LARGEST` pixels. PIL raises a dozen unrelated types for files that it cannot read.
    """
    with Image.open(file, formats=[name for name in FORMATS if name in Image.OPEN]) as picture:
        if picture.width * picture.height > LARGEST:
            raise ValueError(f"{picture.width:,} × {picture.height:,} pixels are more than {LARGEST:,}")
        yield picture


def check_size(size: int) -> None:
    """Raises InputError unless ``size`` is a positive multiple of 64 pixels, for which every grid of a U-Net divides evenly."""
    settings.check("images", size=size)


def square(picture: Image.Image, size: int, box: tuple[int, int, int] | None = None) -> Float[Tensor, "3 size size"]:
    """An upright RGB picture's centre crop, or its crop at ``box`` = (left, top, side) in pixels, Lanczos-resized to [0, 1]."""
    left, top, side = box if box is not None else centre_box(*picture.size)
    picture = picture.resize((size, size), Image.Resampling.LANCZOS, box=(left, top, left + side, top + side))
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() / 255


def upright(picture: Image.Image) -> Image.Image:
    """The picture as a viewer shows it: rotated by its EXIF tag, transparent pixels on white, three channels."""
    picture = ImageOps.exif_transpose(picture)
    if picture.mode == "F":
        raise ValueError("floating-point pixels have no standard range; save it with 8 or 16 bits")
    if picture.mode in ("I", "I;16", "I;16B"):
        # PIL clips 16-bit grey to 255 when it converts; scale it instead
        picture = Image.fromarray((np.asarray(picture).astype(np.float64) / 257).clip(0, 255).astype(np.uint8))
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    return picture.convert("RGB")


def centre_box(width: int, height: int) -> tuple[int, int, int]:
    """(left, top, side) of the largest centred square."""
    side = min(width, height)
    return (width - side) // 2, (height - side) // 2, side
