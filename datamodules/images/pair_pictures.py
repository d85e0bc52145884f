"""How a file of a pair dataset becomes an item."""

from pathlib import Path

from jaxtyping import Float
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from datamodules.images.pairs import fitted
from tokens.errors import InputError

UNDECODABLE = (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError, ValueError)
# of `item_of`, with `fitted` and `placement_of`, which it calls; raise it when a pixel changes
VERSION = 1


def item_of(file: Path, size: int, resize: str) -> Float[Tensor, "3 size size"]:
    """The picture in [0, 1], fitted into a square; raises InputError, naming the file, where it cannot be decoded."""
    try:
        with Image.open(file) as opened:
            # as stored, whatever its EXIF orientation says: keypoints are places in the stored rows and columns
            picture = opened.convert("RGB")
    except UNDECODABLE as error:
        raise InputError(
            f"Expected {file} to be an intact image, but it cannot be decoded ({error}). "
            "Remove it, or use images.on_error=skip."
        ) from error
    return fitted(picture, size, resize)
