"""``images=nyu``: NYU Depth v2 as pairs of files, a photograph and its depth, in folders by scene."""

import re
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from datamodules.images.source import FileImages, check_limit, decoding, files_below, folder_of
from sdprobe.utilities.errors import InputError
from sdprobe.utilities.pictures import VERSION, centre_box, square, upright

ENDINGS = {".jpg", ".jpeg", ".png"}
SIXTEEN_BITS = ("I", "I;16", "I;16B")
MILLIMETRES = 1000  # per metre
FIX = "Remove the pair, or use images.on_error=skip."


class NYUDepth(FileImages):
    """Pairs ``rgb_<number>.jpg`` (or .png) and ``sync_depth_<number>.png`` in any folder below ``root``.

    A depth file is a 16-bit PNG in millimetres, of the photograph's size; 0 is missing. Both are cropped to their largest
    centred square; photographs are resized with Lanczos, depth takes the nearest pixel.

    All frames of a scene are one photograph, since they are near-copies: a scene is a folder, and folders whose names
    differ in the letter after the number only (``basement_0001a``, ``basement_0001b``) are parts of one.

    Args:
        root: searched recursively.
        size: side of the square images in pixels, a multiple of 64.
        limit: number of pairs at most, spread evenly over all in the order of their paths; None takes all.
        on_error: ``raise`` on a pair that cannot be decoded or lacks its depth, or ``skip`` it.

    Raises:
        InputError: an argument out of range, a folder without pairs, a photograph without depth.
    """

    def __init__(self, root: str, size: int = 512, limit: int | None = None, on_error: str = "raise") -> None:
        super().__init__(size, on_error)
        check_limit(limit)
        self.root = folder_of(root)
        pairs = [(file, _depth_of(file)) for file in files_below(self.root, "rgb_*", ENDINGS)]
        lonely = [file for file, depth in pairs if not depth.is_file()]
        if lonely and on_error == "raise":
            raise InputError(
                f"Expected every rgb_* of {root} to have its sync_depth_*.png beside it, but {len(lonely)} lack it, such as "
                f"{lonely[0]}. Remove them, or use images.on_error=skip."
            )
        pairs = [pair for pair in pairs if pair[1].is_file()]
        if not pairs:
            raise InputError(
                f"Expected images.root to hold pairs rgb_00000.jpg and sync_depth_00000.png in folders by scene, but '{root}' "
                "has none. Check the path."
            )
        count = len(pairs) if limit is None else min(limit, len(pairs))
        self.items = [pairs[k * len(pairs) // count] for k in range(count)]

    def __len__(self) -> int:
        return len(self.items)

    def picture(self, index: int) -> Float[Tensor, "3 size size"]:
        """The centre crop of a photograph."""
        file, _ = self.items[index]
        with decoding(file, FIX), Image.open(file) as opened:
            return square(upright(opened), self.size)

    def depth(self, index: int) -> Float[Tensor, "size size"]:
        """Metres; 0 where depth is missing. Raises InputError, naming the file, where it is no depth of its photograph."""
        photograph, file = self.items[index]
        with decoding(file, FIX), Image.open(file) as opened, Image.open(photograph) as picture:
            mode, values, size = opened.mode, np.asarray(opened, dtype=np.float32), picture.size
        if mode not in SIXTEEN_BITS or values.shape[::-1] != size:
            raise InputError(
                f"Expected {file} to be a 16-bit PNG of {size[0]}×{size[1]} pixels, as its photograph is, but got mode {mode} "
                f"and {values.shape[1]}×{values.shape[0]}. {FIX}"
            )
        left, top, side = centre_box(*size)
        box = (left, top, left + side, top + side)
        resized = Image.fromarray(values / MILLIMETRES).resize((self.size, self.size), Image.Resampling.NEAREST, box=box)
        return torch.from_numpy(np.array(resized))

    def name(self, index: int) -> str:
        """Path of the photograph below ``root``."""
        return self.items[index][0].relative_to(self.root).as_posix()

    def photo(self, index: int) -> str:
        """The scene: the folder below ``root``, without the letter of a part."""
        folder = self.items[index][0].parent.relative_to(self.root).as_posix()
        return re.sub(r"(_\d+)[a-z]$", r"\1", folder)

    def content_key(self, index: int) -> str:
        """As for the same file in ``images=folder``."""
        return f"file:{self.digest(self.items[index][0])}:centre:{self.size}:{VERSION}"

    def depth_key(self, index: int) -> str:
        """Digest of the depth file."""
        return f"depth:{self.digest(self.items[index][1])}:centre:{self.size}"


def _depth_of(photograph: Path) -> Path:
    return photograph.with_name(f"sync_depth_{photograph.stem.removeprefix('rgb_')}.png")
