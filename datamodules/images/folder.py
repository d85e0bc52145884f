"""``images=folder``: any photographs in a folder, centre-cropped (or cropped at random) and resized."""

import hashlib

import numpy as np
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from datamodules.images.source import FileImages, check_limit, decoding, files_below, folder_of
from sdprobe.utilities import settings
from sdprobe.utilities.errors import InputError
from sdprobe.utilities.pictures import VERSION, centre_box, square, upright

ENDINGS = {".jpg", ".jpeg", ".png", ".webp", ".avif", ".tif", ".tiff", ".bmp", ".gif", ".ppm", ".pgm", ".jp2"}


class FolderImages(FileImages):
    """Pictures below ``root``, in the order of their paths.

    Args:
        root: searched recursively for files with an image's ending.
        size: side of the square images in pixels, a multiple of 64.
        limit: number of items at most; None takes all.
        crops: items per photograph: 1 is the centre crop; more are random squares of 50 to 100 % of the short side,
            which stay together in one split.
        seed: of random crops.
        photograph: what stays together in one split: ``file`` (a file, its exact copies and all crops of them) or
            ``folder`` (all files of a folder, for collections that hold one photograph in many sizes).
        on_error: ``raise`` on a file that cannot be decoded, or ``skip`` it.
    """

    def __init__(
        self,
        root: str,
        size: int = 512,
        limit: int | None = None,
        crops: int = 1,
        seed: int = 0,
        photograph: str = "file",
        on_error: str = "raise",
    ) -> None:
        super().__init__(size, on_error)
        check_limit(limit)
        settings.check("images", crops=crops, photograph=photograph)
        self.photograph = photograph
        self.root = folder_of(root)
        files = files_below(self.root, "*", ENDINGS)
        if not files:
            raise InputError(f"Expected images.root to hold images (.jpg, .png, ...), but '{root}' has none. Check the path.")
        self.items = [(file, crop) for file in files for crop in range(crops)][:limit]
        self.crops, self.seed = crops, seed
        self._first: dict[str, str] = {}

    def __len__(self) -> int:
        return len(self.items)

    def picture(self, index: int) -> Float[Tensor, "3 size size"]:
        """The centre crop of a photograph, or one of its random crops."""
        file, _ = self.items[index]
        with decoding(file), Image.open(file) as opened:
            whole = upright(opened)
        return square(whole, self.size, self._box(whole, index))

    def name(self, index: int) -> str:
        """Path below ``root``, and the crop's number where there are several."""
        file, crop = self.items[index]
        return file.relative_to(self.root).as_posix() + (f"#{crop}" if self.crops > 1 else "")

    def photo(self, index: int) -> str:
        """The first file with the same bytes, so that copies under other names stay together; or the folder it lies in."""
        file, _ = self.items[index]
        if self.photograph == "folder":
            return file.parent.relative_to(self.root).as_posix()
        if not self._first:
            for other, _ in reversed(self.items):
                self._first[self.digest(other)] = other.relative_to(self.root).as_posix()
        return self._first[self.digest(file)]

    def content_key(self, index: int) -> str:
        """Digest of the file's bytes, the crop, the size and the version of the preparation."""
        # random crops are drawn by name and seed
        box = "centre" if self.crops == 1 else f"{self.name(index)}-{self.seed}"
        return f"file:{self.digest(self.items[index][0])}:{box}:{self.size}:{VERSION}"

    def _box(self, picture: Image.Image, index: int) -> tuple[int, int, int]:
        if self.crops == 1:
            return centre_box(*picture.size)
        key = hashlib.blake2b(f"{self.seed}/{self.name(index)}".encode(), digest_size=8).digest()
        generator = np.random.default_rng(int.from_bytes(key, "big"))
        side = max(1, int(min(picture.size) * generator.uniform(0.5, 1)))
        left, top = (int(generator.integers(0, extent - side + 1)) for extent in picture.size)
        return left, top, side
