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
from sdprobe.utilities.foreign import special

# version of `square` and `upright` (folders, hub, NYUv2) and of random crops; increase it when a pixel changes
VERSION = 2
BELOW_16_BITS = 4096  # a 16-bit picture that is darker everywhere is rather one of fewer bits
# whose decoders start no other program: PIL would pass PostScript on to Ghostscript, whatever the file is called
FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF", "PPM", "AVIF", "JPEG2000")
LARGEST = 178_000_000  # pixels; a small file can hold far more than memory does
Image.init()  # lists the formats of this installation


@contextmanager
def opened(file: Path | BytesIO) -> Iterator[Image.Image]:
    """A picture file in one of the :data:`FORMATS`, whose pixels are not decoded yet.

    Raises:
        ValueError: more than :data:`LARGEST` pixels, or no file. PIL raises a dozen unrelated types for files that it cannot
            read.
    """
    if isinstance(file, Path) and (strange := special(file)):
        raise ValueError(f"it is {strange}")
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
    return pixels(picture.resize((size, size), Image.Resampling.LANCZOS, box=(left, top, left + side, top + side)))


def pixels(picture: Image.Image) -> Float[Tensor, "3 height width"]:
    """An RGB picture's pixels in [0, 1]."""
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() / 255


def upright(picture: Image.Image) -> Image.Image:
    """The picture as a viewer shows it: rotated by its EXIF tag, transparent pixels on white, three channels.

    Raises:
        ValueError: as :func:`rgb`.
    """
    return rgb(ImageOps.exif_transpose(picture), picture.format)


def rgb(picture: Image.Image, file_format: str | None) -> Image.Image:
    """The picture as it is stored in a file of this format, transparent pixels on white, three channels.

    Raises:
        ValueError: pixels whose range is not known.
    """
    check_range(picture.mode, file_format)
    if picture.mode.startswith("I"):
        grey = np.asarray(picture)
        peak = int(grey.max())
        if 0 < peak < BELOW_16_BITS:
            raise ValueError(
                f"its 16-bit pixels reach {peak} of 65535, as those of 12 bits do; scale them so that white is 65535"
            )
        # PIL clips 16-bit grey to 255 when it converts; scale it instead
        picture = Image.fromarray((grey.astype(np.float64) / 257).clip(0, 255).astype(np.uint8))
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    return picture.convert("RGB")


def check_range(mode: str, file_format: str | None) -> None:
    """Raises ValueError if pixels of this PIL mode have no range that programs agree on."""
    # PIL reads grey pixels of these formats as 16 bits, whatever its mode says
    kind = {"F": "floating-point", "I": "" if file_format in ("PNG", "PPM") else "32-bit"}.get(mode)
    if kind:
        raise ValueError(f"{kind} pixels have no standard range; save it with 8 or 16 bits")


def centre_box(width: int, height: int) -> tuple[int, int, int]:
    """(left, top, side) of the largest centred square."""
    side = min(width, height)
    return (width - side) // 2, (height - side) // 2, side
