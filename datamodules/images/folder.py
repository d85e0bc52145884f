"""``images=folder``: any photographs in a folder, centre-cropped (or cropped at random) and resized."""

import hashlib
from pathlib import Path

import numpy as np
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from datamodules.images.source import FileImages, check_limit, decoding, files_below, folder_of
from sdprobe.utilities import settings
from sdprobe.utilities.errors import InputError
from sdprobe.utilities.pictures import VERSION, centre_box, opened, square, upright
from sdprobe.utilities.rng import drawing_order

ENDINGS = {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".avif", ".tif", ".tiff", ".bmp", ".gif", ".ppm", ".pgm", ".jp2"}


class FolderImages(FileImages):
    """Pictures below a folder, in the order of their paths: centre-cropped, or cropped at random, and resized.

    Items are (3, size, size) in [0, 1]. Pictures are turned upright by their EXIF tag, transparency becomes white.

    Args:
        root: folder that is searched recursively, also through links, for image files (.jpg, .png, .webp, .tif and others).
        size: side of the square images in pixels, a positive multiple of 64; 512 is what SD-1.x and 2.x were trained on.
        limit: greatest number of photographs, at least 1; None takes all. They are drawn at random and spread over folders as
            evenly as these allow, see :func:`~sdprobe.utilities.rng.drawing_order`. Of exact copies one is taken.
        crops: items per picture, at least 1. With 1 it is the largest centred square; with more they are random squares of 50
            to 100 % of the short side, which stay in one split.
        seed: seed of drawn photographs and of random crops.
        photograph: what stays in one split: ``file``, a file with its exact copies and all their crops, or ``folder``, all
            files of a folder, for collections with one photograph in many sizes.
        on_error: ``raise`` on a file that cannot be decoded, or ``skip`` it.

    Raises:
        InputError: no such folder, no image in it, an option out of range; in ``images[index]``, a file that cannot be decoded.

    Example:
        >>> import tempfile
        >>> from PIL import Image
        >>> folder = tempfile.TemporaryDirectory()
        >>> Image.new("RGB", (96, 64), "red").save(f"{folder.name}/red.png")
        >>> images = FolderImages(folder.name, size=64)
        >>> images[0]["id"], tuple(images[0]["image"].shape)
        ('red.png', (3, 64, 64))
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
        self.crops, self.seed = crops, seed
        self._first: dict[str, str] = {}
        files = files if limit is None else self._drawn(files, limit)
        self.items = [(file, crop) for file in files for crop in range(crops)]

    def __len__(self) -> int:
        return len(self.items)

    def picture(self, index: int) -> Float[Tensor, "3 size size"]:
        """Return the pixels (3, size, size) of the centre crop, or of a random crop, in [0, 1]."""
        file, _ = self.items[index]
        with decoding(file), opened(file) as stored:
            whole = upright(stored)
        return square(whole, self.size, self._box(whole, index))

    def name(self, index: int) -> str:
        """Return the path below ``root``, with the crop's number where there are several."""
        file, crop = self.items[index]
        return file.relative_to(self.root).as_posix() + (f"#{crop}" if self.crops > 1 else "")

    def photo(self, index: int) -> str:
        """Return the path of the first file with the same bytes, so that copies stay in one split; or of the folder."""
        file, _ = self.items[index]
        if self.photograph == "folder":
            return file.parent.relative_to(self.root).as_posix()
        if not self._first:
            for other, _ in reversed(self.items):
                self._first[self.digest(other)] = other.relative_to(self.root).as_posix()
        return self._first[self.digest(file)]

    def content_key(self, index: int) -> str:
        """Return the digest of the file's bytes, with the crop, the size and the version of the preparation."""
        # random crops are drawn by name and seed
        box = "centre" if self.crops == 1 else f"{self.name(index)}-{self.seed}"
        return f"file:{self.digest(self.items[index][0])}:{box}:{self.size}:{VERSION}"

    def _drawn(self, files: list[Path], limit: int) -> list[Path]:
        """The files of so many photographs, in the order of their paths."""
        parts = sorted({file.parent for file in files}) if self.photograph == "folder" else files
        names = [part.relative_to(self.root).as_posix() for part in parts]
        chosen: dict[object, int] = {}
        for index in drawing_order(names, self.seed):
            if len(chosen) < limit:
                chosen.setdefault(parts[index] if self.photograph == "folder" else self.digest(parts[index]), index)
        self.drawn = {"seed": self.seed, "of": len(parts), "photographs": [names[index] for index in sorted(chosen.values())]}
        if self.photograph == "folder":
            return [file for file in files if file.parent in chosen]
        return [files[index] for index in sorted(chosen.values())]

    def _box(self, picture: Image.Image, index: int) -> tuple[int, int, int]:
        if self.crops == 1:
            return centre_box(*picture.size)
        key = hashlib.blake2b(f"{self.seed}/{self.name(index)}".encode(), digest_size=8).digest()
        generator = np.random.default_rng(int.from_bytes(key, "big"))
        side = max(1, int(min(picture.size) * generator.uniform(0.5, 1)))
        left, top = (int(generator.integers(0, extent - side + 1)) for extent in picture.size)
        return left, top, side
