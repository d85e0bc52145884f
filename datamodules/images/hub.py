"""``images=hub``: a Hugging Face dataset with an image column, at a revision."""

import io
from pathlib import Path

from huggingface_hub import constants
from jaxtyping import Float
from torch import Tensor

from datamodules.images.source import Images, check_limit, decoding, digest
from sdprobe.utilities.errors import InputError
from sdprobe.utilities.foreign import shown, within
from sdprobe.utilities.pictures import VERSION, opened, square, upright


class HubImages(Images):
    """Images of a dataset on the Hugging Face hub, or of a local dataset folder; their largest centred squares.

    Items are (3, size, size) in [0, 1].

    Args:
        path: ``owner/name`` on the hub, a folder with parquet files, or a folder written by ``save_to_disk``.
        split: split to read, for example ``train``.
        column: column that holds the images.
        revision: branch, tag or commit on the hub; None takes the default branch. What was read before is not asked for again.
        size: side of the square images in pixels, a positive multiple of 64; 512 is what SD-1.x and 2.x were trained on.
        limit: number of images, drawn at random from all rows, at least 1; None takes all. Of Parquet files on the hub, no more
            is read than the row groups that hold these rows.
        on_error: ``raise`` on a row that cannot be decoded, or ``skip`` it.
        name: configuration of the dataset; None takes the only one, or the default that its card names.
        seed: seed of the draw.

    Raises:
        InputError: the dataset cannot be reached or read, has no such configuration, split or column of images, or is empty;
            an option out of range; in ``images[index]``, a row that cannot be decoded.

    Example:
        >>> import tempfile
        >>> from datasets import Dataset, disable_progress_bars
        >>> from PIL import Image
        >>> disable_progress_bars()
        >>> folder = tempfile.TemporaryDirectory()
        >>> Dataset.from_dict({"image": [Image.new("RGB", (96, 64))]}).save_to_disk(folder.name)
        >>> images = HubImages(folder.name, size=64)
        >>> images[0]["id"], tuple(images[0]["image"].shape)
        ('train#0', (3, 64, 64))
    """

    def __init__(
        self,
        path: str,
        split: str = "train",
        column: str = "image",
        revision: str | None = None,
        size: int = 512,
        limit: int | None = None,
        on_error: str = "raise",
        name: str | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(size, on_error)
        check_limit(limit)
        from datasets import Image as ImageFeature  # a second of import that only this source needs

        from datamodules.images.hub_rows import check_column, find_rows

        rows, self.numbers = find_rows(path, name, split, column, revision, limit, seed)
        check_column(path, column, rows.features)
        self.rows = rows.cast_column(column, ImageFeature(decode=False))
        if len(self.rows) == 0:
            raise InputError(f"Expected split '{split}' of {path} to hold images, but it is empty. Choose another split.")
        self.path, self.split, self.column = path, split, column
        self.drawn = None if limit is None else {"seed": seed, "photographs": [self.name(index) for index in range(len(self))]}
        self._digests: dict[int, str] = {}
        self._first: dict[str, str] = {}

    def __len__(self) -> int:
        return len(self.rows)

    def picture(self, index: int) -> Float[Tensor, "3 size size"]:
        """Return the pixels (3, size, size) of the largest centred square, in [0, 1]."""
        row = f"{self.path}/{self.name(index)}"
        with decoding(row, "Use images.on_error=skip."), opened(io.BytesIO(self._bytes(index))) as picture:
            return square(upright(picture), self.size)

    def name(self, index: int) -> str:
        """Return the split and the number of the row in it."""
        return f"{self.split}#{self.numbers[index]}"

    def photo(self, index: int) -> str:
        """Return the name of the first row with the same bytes, so that copies stay in one split."""
        if not self._first:
            for other in reversed(range(len(self))):
                self._first[self._digest(other)] = self.name(other)
        return self._first[self._digest(index)]

    def content_key(self, index: int) -> str:
        """Return the digest of the encoded bytes, with the size and the version of the preparation."""
        return f"file:{self._digest(index)}:centre:{self.size}:{VERSION}"

    def _digest(self, index: int) -> str:
        if index not in self._digests:
            self._digests[index] = digest(self._bytes(index))
        return self._digests[index]

    def _bytes(self, index: int) -> bytes:
        cell = self.rows[index][self.column]
        if cell is None:
            return b""  # cannot be decoded
        if cell["bytes"] is not None:
            return bytes(cell["bytes"])
        root = Path(self.path) if Path(self.path).is_dir() else Path(constants.HF_HUB_CACHE)
        file = root / str(cell["path"])
        if not (within(file, root) and file.is_file()):  # rows may come from someone else
            raise InputError(
                f"Expected {self.path}/{self.name(index)} to hold a picture or to name a file of its folder, but got "
                f"'{shown(cell['path'])}'. Save the dataset with its pictures."
            )
        return file.read_bytes()
