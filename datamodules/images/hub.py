"""``images=hub``: a Hugging Face dataset with an image column, at a revision."""

import hashlib
import io
from pathlib import Path

from PIL import Image, UnidentifiedImageError
from torch.utils.data import Dataset

from datamodules.images.source import Item, check_limit, check_on_error
from sdprobe.utilities import expect
from sdprobe.utilities.errors import InputError
from sdprobe.utilities.pictures import VERSION, check_size, square, upright


class HubImages(Dataset[Item]):
    """Images of a dataset repository, or of a dataset folder written by ``save_to_disk``.

    Args:
        path: ``owner/name`` on the hub, or a folder.
        split: which split, for example ``train``.
        column: the column that holds the images.
        revision: branch, tag or commit on the hub.
        size: side of the square images in pixels, a multiple of 64.
        limit: number of images at most; None takes all.
        on_error: ``raise`` on a row that cannot be decoded, or ``skip`` it.
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
        check_size(size)
        check_limit(limit)
        check_on_error(on_error)
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
        self.column = column
        self.size = size
        self.on_error = on_error
        self.path = path
        self.split = split

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Item:
        """Raises InputError, naming the row, where it is no intact image."""
        try:
            with Image.open(io.BytesIO(self._bytes(index))) as picture:
                return {"image": square(upright(picture), self.size), "id": self.name(index)}
        except (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError, ValueError) as error:
            raise InputError(
                f"Expected {self.path}/{self.name(index)} to be an intact image, but it cannot be decoded ({error}). "
                "Use images.on_error=skip."
            ) from error

    def name(self, index: int) -> str:
        """Split and row number: the same wherever the dataset lies."""
        return f"{self.split}#{index}"

    def photo(self, index: int) -> str:
        """Every row is a photograph of its own."""
        return self.name(index)

    def content_key(self, index: int) -> str:
        """Digest of the encoded bytes, the size and the version of the preparation."""
        return f"file:{hashlib.blake2b(self._bytes(index), digest_size=16).hexdigest()}:centre:{self.size}:{VERSION}"

    def _bytes(self, index: int) -> bytes:
        cell = self.rows[index][self.column]
        if cell is None:
            return b""  # decodes as no image
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
            f"({reason}). Where there is network, run "
            f"`hf download {path} --repo-type dataset --local-dir DIR`, bring DIR here and use images.path=DIR."
        ) from error
