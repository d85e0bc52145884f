"""``images=hub``: a Hugging Face dataset with an image column, at a revision."""

import io
from pathlib import Path

from jaxtyping import Float
from torch import Tensor

from datamodules.images.source import Images, check_limit, decoding, digest
from sdprobe.utilities import expect
from sdprobe.utilities.errors import InputError
from sdprobe.utilities.pictures import VERSION, opened, square, upright


class HubImages(Images):
    """Images of a dataset on the Hugging Face hub, or of a local dataset folder; their largest centred squares.

    Items are (3, size, size) in [0, 1].

    Args:
        path: ``owner/name`` on the hub, a folder with parquet files, or a folder written by ``save_to_disk``.
        split: split to read, for example ``train``.
        column: column that holds the images.
        revision: branch, tag or commit on the hub; None takes the newest.
        size: side of the square images in pixels, a positive multiple of 64; 512 is what SD-1.x and 2.x were trained on.
        limit: greatest number of images, at least 1; None takes all.
        on_error: ``raise`` on a row that cannot be decoded, or ``skip`` it.

    Raises:
        InputError: the dataset cannot be reached or read, has no such split or column of images, or is empty; an option out of
            range; in ``images[index]``, a row that cannot be decoded.

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
    ) -> None:
        super().__init__(size, on_error)
        check_limit(limit)
        from datasets import Image as ImageFeature  # a second of import that only this source needs

        rows = _load(path, split, revision)
        expect.one_of("images.column", column, rows.column_names)
        if not isinstance(rows.features[column], ImageFeature):
            raise InputError(
                f"Expected images.column to be a column of images, but '{column}' of {path} holds {rows.features[column]}. "
                "Choose another column."
            )
        self.rows = rows.cast_column(column, ImageFeature(decode=False))
        if limit is not None:
            self.rows = self.rows.select(range(min(limit, len(self.rows))))
        if len(self.rows) == 0:
            raise InputError(f"Expected split '{split}' of {path} to hold images, but it is empty. Choose another split.")
        self.path, self.split, self.column = path, split, column

    def __len__(self) -> int:
        return len(self.rows)

    def picture(self, index: int) -> Float[Tensor, "3 size size"]:
        """Return the pixels (3, size, size) of the largest centred square, in [0, 1]."""
        row = f"{self.path}/{self.name(index)}"
        with decoding(row, "Use images.on_error=skip."), opened(io.BytesIO(self._bytes(index))) as picture:
            return square(upright(picture), self.size)

    def name(self, index: int) -> str:
        """Return split and row number."""
        return f"{self.split}#{index}"

    def content_key(self, index: int) -> str:
        """Return the digest of the encoded bytes, with the size and the version of the preparation."""
        return f"file:{digest(self._bytes(index))}:centre:{self.size}:{VERSION}"

    def _bytes(self, index: int) -> bytes:
        cell = self.rows[index][self.column]
        if cell is None:
            return b""  # cannot be decoded
        return cell["bytes"] if cell["bytes"] is not None else Path(cell["path"]).read_bytes()


def _load(path: str, split: str, revision: str | None):  # type: ignore[no-untyped-def]  # datasets.Dataset
    from datasets import DatasetDict, load_dataset, load_from_disk

    if any((Path(path) / mark).is_file() for mark in ("state.json", "dataset_dict.json")):
        stored = load_from_disk(path)
        if not isinstance(stored, DatasetDict):
            return stored
        expect.one_of("images.split", split, stored)
        return stored[split]
    local = Path(path).is_dir()
    if local and not any(Path(path).rglob("*.parquet")):
        raise InputError(
            f"Expected {path} to be a dataset folder (parquet files, or written by save_to_disk), but it is not. "
            "Use images=folder for a folder of pictures."
        )
    try:
        return load_dataset(path, split=split, revision=revision)
    except Exception as error:  # the hub client raises a dozen unrelated types for "no network" and "no such dataset"
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        if local:
            raise InputError(
                f"Expected {path} to hold a readable split '{split}', but got: {reason}. Check the folder."
            ) from error
        raise InputError(
            f"Expected to load dataset {path} from the Hugging Face hub, but it cannot be reached or does not have it "
            f"({reason}). On a machine with network access run "
            f"`hf download {path} --repo-type dataset --local-dir DIR`, copy DIR here and use images.path=DIR."
        ) from error
