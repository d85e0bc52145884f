"""``images=nyu``: NYU Depth v2 as pairs of files, a photograph and its depth, in folders by scene."""

import re
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from PIL import ExifTags, Image, ImageOps
from torch import Tensor

from datamodules.images.source import FileImages, check_limit, decoding, files_below, folder_of
from sdprobe.utilities import settings
from sdprobe.utilities.errors import InputError
from sdprobe.utilities.pictures import VERSION, centre_box, opened, square, upright
from sdprobe.utilities.rng import drawing_order

ENDINGS = {".jpg", ".jpeg", ".png"}
SIXTEEN_BITS = ("I", "I;16", "I;16B")
MARK = 65535  # in some copies, of missing depth, which is 0 in others
RANGE = (0.3, 10.5)  # metres that a Kinect measures, with a margin
FIX = "Remove the pair, or use images.on_error=skip."
WRITE = (
    "Read images, depths and scenes from the .mat file with h5py, and write each pair as SCENE/rgb_00000.png and "
    "SCENE/sync_depth_00000.png (16 bits, millimetres)."
)


class NYUDepth(FileImages):
    """NYU Depth v2: files ``rgb_<number>.jpg`` (or .png) with ``sync_depth_<number>.png`` beside them, below a folder.

    A depth file is a 16-bit PNG, of the size of its photograph, in millimetres unless ``depth_per_metre`` says otherwise; 0 and
    65535 mean that depth is missing. Both are cropped to their largest centred square. Photographs are resized with Lanczos,
    depth takes the nearest pixel.

    All frames of a scene count as one photograph, since they are almost copies. A scene is a folder; folders whose names differ
    only in the letter after the number (``basement_0001a``, ``basement_0001b``) are parts of one scene.

    Args:
        root: folder that is searched recursively.
        size: side of the square images in pixels, a positive multiple of 64; 512 is what SD-1.x and 2.x were trained on.
        limit: greatest number of pairs, at least 1; None takes all. They are drawn at random and spread over scenes as
            evenly as these allow, see :func:`~sdprobe.utilities.rng.drawing_order`.
        seed: seed of drawn pairs.
        depth_per_metre: value of a depth file at one metre: 1000 for millimetres, 100 for centimetres, 6553.5 if 65535 is 10 m.
        on_error: ``raise`` on a pair that cannot be decoded or lacks its depth, or ``skip`` it.

    Raises:
        InputError: no such folder, no pairs in it, a photograph without depth, an option out of range; in ``images[index]`` and
            :meth:`depth`, a file that cannot be decoded; in :meth:`depth`, depth that a Kinect cannot measure.

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

    def __init__(
        self,
        root: str,
        size: int = 512,
        limit: int | None = None,
        seed: int = 0,
        depth_per_metre: float = 1000,
        on_error: str = "raise",
    ) -> None:
        super().__init__(size, on_error)
        check_limit(limit)
        settings.check("images", depth_per_metre=depth_per_metre)
        self.depth_per_metre = depth_per_metre
        place = Path(root).expanduser()
        if place.suffix == ".mat" and place.is_file():
            raise InputError(f"Expected images.root to be a folder, but got '{root}', a file of MATLAB. {WRITE}")
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
            fix = WRITE if any(self.root.glob("*.mat")) else "Check the path."
            raise InputError(
                f"Expected images.root to hold pairs rgb_00000.jpg and sync_depth_00000.png in folders by scene, but '{root}' "
                f"has none. {fix}"
            )
        self.items = pairs
        if limit is not None:
            names, scenes = (list(map(of, range(len(pairs)))) for of in (self.name, self.photo))
            chosen = sorted(drawing_order(names, seed, scenes)[:limit])
            self.items = [pairs[index] for index in chosen]
            self.drawn = {"seed": seed, "of": len(pairs), "photographs": [names[index] for index in chosen]}

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
            InputError: the file cannot be decoded, has not 16 bits, has another size than its photograph, or depth
                that a Kinect cannot measure.
        """
        photograph, file = self.items[index]
        with decoding(file, FIX), opened(file) as stored, opened(photograph) as picture:
            mode, values, size = stored.mode, np.asarray(stored, dtype=np.float32), picture.size
            orientation = picture.getexif().get(ExifTags.Base.Orientation, 1)
        if mode not in SIXTEEN_BITS or values.shape[::-1] != size:
            raise InputError(
                f"Expected {file} to be a 16-bit PNG of {size[0]}×{size[1]} pixels, as its photograph is, but got mode {mode} "
                f"and {values.shape[1]}×{values.shape[0]}. {FIX}"
            )
        values = (np.where(values == MARK, 0, values) / self.depth_per_metre).astype(np.float32)
        self._check_range(file, values[values > 0])
        stored = Image.fromarray(values)
        stored.getexif()[ExifTags.Base.Orientation] = orientation  # depth is turned as its photograph is
        turned = ImageOps.exif_transpose(stored)
        left, top, side = centre_box(*turned.size)
        box = (left, top, left + side, top + side)
        resized = turned.resize((self.size, self.size), Image.Resampling.NEAREST, box=box)
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
        """Return the digest of the depth file, with the size and the unit."""
        return f"depth:{self.digest(self.items[index][1])}:centre:{self.size}:{self.depth_per_metre:g}"

    def _check_range(self, file: Path, known: np.ndarray) -> None:
        """Raises InputError unless the greatest depth, and all but 1 % of the smallest ones, are what a Kinect measures."""
        if not len(known):
            return
        low, high = np.quantile(known, 0.01), known.max()
        if low < RANGE[0] or high > RANGE[1]:
            raise InputError(
                f"Expected {file} to hold depth from {RANGE[0]} to {RANGE[1]} m, but with "
                f"images.depth_per_metre={self.depth_per_metre:g} it is from {low:.2f} to {high:.2f} m. Set that to the unit "
                "of the files: 1000 for millimetres, 100 for centimetres. If only this file is wrong, remove the pair."
            )


def _depth_of(photograph: Path) -> Path:
    return photograph.with_name(f"sync_depth_{photograph.stem.removeprefix('rgb_')}.png")
