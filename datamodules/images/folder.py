"""``images=folder``: any photographs in a folder, centre-cropped (or cropped at random) and resized."""

import hashlib
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError
from torch.utils.data import Dataset

from datamodules.images.source import Item, check_limit, check_on_error
from sdprobe.utilities import expect
from sdprobe.utilities.errors import InputError
from sdprobe.utilities.pictures import VERSION, centre_box, check_size, square, upright

ENDINGS = {".jpg", ".jpeg", ".png", ".webp", ".avif", ".tif", ".tiff", ".bmp", ".gif", ".ppm", ".pgm", ".jp2"}


class FolderImages(Dataset[Item]):
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
        check_size(size)
        check_limit(limit)
        check_on_error(on_error)
        expect.at_least("images.crops", crops, 1)
        self.root = Path(root).expanduser()
        if not self.root.is_dir():
            raise InputError(f"Expected images.root to be a folder, but got '{root}', which does not exist. Check the path.")
        files = sorted(file for file in self.root.rglob("*") if file.suffix.lower() in ENDINGS and file.is_file())
        if not files:
            raise InputError(f"Expected images.root to hold images (.jpg, .png, ...), but '{root}' has none. Check the path.")
        self.items = [(file, crop) for file in files for crop in range(crops)][:limit]
        self.size = size
        self.on_error = on_error
        self.crops = crops
        self.photograph = expect.one_of("images.photograph", photograph, ("file", "folder"))
        self.seed = seed
        self._digests: dict[Path, str] = {}
        self._first: dict[str, str] = {}

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Item:
        """Raises InputError, naming the file, where it is truncated or no image."""
        file, crop = self.items[index]
        try:
            with Image.open(file) as opened:
                picture = upright(opened)
        except (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError, ValueError) as error:
            raise InputError(
                f"Expected {file} to be an intact image, but it cannot be decoded ({error}). "
                "Remove it, or use images.on_error=skip."
            ) from error
        return {"image": square(picture, self.size, self._box(picture, index, crop)), "id": self.name(index)}

    def name(self, index: int) -> str:
        """Path below ``root``, and the crop's number where there are several."""
        file, crop = self.items[index]
        return file.relative_to(self.root).as_posix() + (f"#{crop}" if self.crops > 1 else "")

    def photo(self, index: int) -> str:
        """The first file with the same bytes, so that copies under other names stay together; or the folder it lies in."""
        file = self.items[index][0]
        if self.photograph == "folder":
            return file.parent.relative_to(self.root).as_posix()
        if not self._first:
            for other, _ in reversed(self.items):
                self._first[self._digest(other)] = other.relative_to(self.root).as_posix()
        return self._first[self._digest(file)]

    def content_key(self, index: int) -> str:
        """Digest of the file's bytes, the crop, the size and the version of the preparation."""
        # random crops are drawn by name and seed
        box = "centre" if self.crops == 1 else f"{self.name(index)}-{self.seed}"
        return f"file:{self._digest(self.items[index][0])}:{box}:{self.size}:{VERSION}"

    def _digest(self, file: Path) -> str:
        if file not in self._digests:
            try:
                self._digests[file] = hashlib.blake2b(file.read_bytes(), digest_size=16).hexdigest()
            except OSError:
                self._digests[file] = f"unreadable {file}"  # decoding it will say so
        return self._digests[file]

    def _box(self, picture: Image.Image, index: int, crop: int) -> tuple[int, int, int]:
        if self.crops == 1:
            return centre_box(*picture.size)
        key = hashlib.blake2b(f"{self.seed}/{self.name(index)}".encode(), digest_size=8).digest()
        generator = np.random.default_rng(int.from_bytes(key, "big"))
        side = max(1, int(min(picture.size) * generator.uniform(0.5, 1)))
        left, top = (int(generator.integers(0, extent - side + 1)) for extent in picture.size)
        return left, top, side
