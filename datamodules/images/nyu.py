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
from sdprobe.utilities.pictures import VERSION, centre_box, opened, square, upright

ENDINGS = {".jpg", ".jpeg", ".png"}
SIXTEEN_BITS = ("I", "I;16", "I;16B")
MILLIMETRES = 1000  # per metre
FIX = "Remove the pair, or use images.on_error=skip."


class NYUDepth(FileImages):
    """NYU Depth v2: files ``rgb_<number>.jpg`` (or .png) with ``sync_depth_<number>.png`` beside them, below a folder.

    A depth file is a 16-bit PNG in millimetres, of the size of its photograph; 0 means that depth is missing. Both are cropped
    to their largest centred square. Photographs are resized with Lanczos, depth takes the nearest pixel.

    All frames of a scene count as one photograph, since they are almost copies. A scene is a folder; folders whose names differ
    only in the letter after the number (``basement_0001a``, ``basement_0001b``) are parts of one scene.

    Args:
        root: folder that is searched recursively.
        size: side of the square images in pixels, a positive multiple of 64; 512 is what SD-1.x and 2.x were trained on.
        limit: greatest number of pairs, at least 1, evenly spread over all in the order of their paths; None takes all.
        on_error: ``raise`` on a pair that cannot be decoded or lacks its depth, or ``skip`` it.

    Raises:
        InputError: no such folder, no pairs in it, a photograph without depth, an option out of range; in ``images[index]`` and
            :meth:`depth`, a file that cannot be decoded.

    References:
        Silberman, Hoiem, Kohli and Fergus (2012), Indoor Segmentation and Support Inference from RGBD Images.

    Example:
        >>> import tempfile
        >>> scene = Path(tempfile.mkdtemp(), "kitchen_0001a")
        >>> scene.mkdir()
        >>> Image.new("RGB", (96, 64)).save(scene / "rgb_00000.png")
        >>> Image.fromarray(np.full((64, 96), 2500, np.uint16)).save(scene / "sync_depth_00000.png")
        >>> images = NYUDepth(str(scene.parent), size=64)
        >>> images.name(0), images.photo(0)
        ('kitchen_0001a/rgb_00000.png', 'kitchen_0001')
        >>> images.depth(0).mean().item()  # metres
        2.5
    """

    def __init__(self, root: str, size: int = 512, limit: int | None = None, on_error: str = "raise") -> None:
        super().__init__(size, on_error)
        check_limit(limit)
        self.root = folder_of(root)
        pairs = [(file, _depth_of(file)) for file in files_below(self.root, "rgb_*", ENDINGS)]
        lonely = [file for file, depth in pairs if not depth.is_file()]
        if lonely and on_error == "raise":
            raise InputError(
                f"Expected every rgb_* of {root} to have its sync_depth_*.png beside it, but got {len(lonely)} without, such "
                f"as {lonely[0]}. Remove them, or use images.on_error=skip."
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
        """Return the pixels (3, size, size) of the largest centred square, in [0, 1]."""
        file, _ = self.items[index]
        with decoding(file, FIX), opened(file) as picture:
            return square(upright(picture), self.size)

    def depth(self, index: int) -> Float[Tensor, "size size"]:
        """Depth (size, size) of the largest centred square, in metres.

        Returns:
            float32; 0 where depth is missing.

        Raises:
            InputError: the file cannot be decoded, has not 16 bits, or has another size than its photograph.
        """
        photograph, file = self.items[index]
        with decoding(file, FIX), opened(file) as stored, opened(photograph) as picture:
            mode, values, size = stored.mode, np.asarray(stored, dtype=np.float32), picture.size
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
        """Return the path of the photograph below ``root``."""
        return self.items[index][0].relative_to(self.root).as_posix()

    def photo(self, index: int) -> str:
        """Return the scene: path of the folder below ``root``, without the letter of a part."""
        folder = self.items[index][0].parent.relative_to(self.root).as_posix()
        return re.sub(r"(_\d+)[a-z]$", r"\1", folder)

    def content_key(self, index: int) -> str:
        """Return the digest of the photograph, with the size and the version of the preparation, as in ``images=folder``."""
        return f"file:{self.digest(self.items[index][0])}:centre:{self.size}:{VERSION}"

    def depth_key(self, index: int) -> str:
        """Return the digest of the depth file, with the size."""
        return f"depth:{self.digest(self.items[index][1])}:centre:{self.size}"


def _depth_of(photograph: Path) -> Path:
    return photograph.with_name(f"sync_depth_{photograph.stem.removeprefix('rgb_')}.png")
