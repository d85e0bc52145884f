"""Hand labels of high-norm tokens: a file of places → masks of the token group `labelled`. Data path step 5."""

import csv
import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor

from datamodules.images.source import ImageSource
from tokens.errors import InputError
from tokens.geometry import at_grid


class Labels:
    """Labelled tokens of an image source, on a grid of `side` × `side` tokens.

    Two formats. CSV with a header `image,row,col`: one labelled token per line, `image` an item's id or its index. `.npy`
    as published by Loos & Linhardt (2025): rows (image index, col, row), the upper-left cell of a labelled 2×2 patch,
    snapped to even rows and columns. Images that a file does not name have no labelled token.

    Raises:
        InputError: no such file, another format, an unknown image, a place outside the grid.
    """

    def __init__(self, path: str, side: int, images: ImageSource) -> None:
        if images.size % side or images.size // side not in (8, 16, 32, 64):
            raise InputError(
                f"Expected labels for a grid that {images.size}-pixel images have ({_sides(images.size)} tokens a side), but "
                f"got labels_side={side}. Use the grid the labels were made on, with images of the same size."
            )
        file = Path(path)
        if not file.is_file():
            raise InputError(f"Expected labels in {path}, but there is no such file. Check datamodule.labels.")
        self.side, self.digest = side, hashlib.sha256(file.read_bytes()).hexdigest()
        self.places: dict[int, set[tuple[int, int]]] = {}
        rows = _published(file) if file.suffix == ".npy" else _csv(file, images)
        for image, row, col in rows:
            if not 0 <= image < len(images):
                raise InputError(f"Expected {path} to name images 0 to {len(images) - 1}, but got {image}. Raise images.limit.")
            if not (0 <= row < side and 0 <= col < side):
                raise InputError(
                    f"Expected labels inside a {side}×{side} grid, but {path} has row {row}, column {col} for image {image}. "
                    "Set datamodule.labels_side to the grid the labels were made on."
                )
            self.places.setdefault(image, set()).add((row, col))

    def masks(self, indices: Sequence[int], height: int, width: int) -> Bool[Tensor, "b {height} {width}"]:
        """Labelled tokens of these images on any grid."""
        mask = torch.zeros(len(indices), self.side, self.side, dtype=torch.bool)
        for k, index in enumerate(indices):
            for row, col in self.places.get(index, ()):
                mask[k, row, col] = True
        return at_grid(mask, height, width)


def _csv(file: Path, images: ImageSource) -> list[tuple[int, int, int]]:
    index = {images.name(i): i for i in range(len(images))}
    try:
        with file.open(newline="") as stream:
            lines = list(csv.DictReader(stream))
        return [(index.get(line["image"], _integer(line["image"])), int(line["row"]), int(line["col"])) for line in lines]
    except (KeyError, TypeError, ValueError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(
            f"Expected {file} to be a CSV file with the columns image,row,col (image: an item's id or index; row and col: "
            f"whole numbers), but got {type(error).__name__}: {error}. Correct the file."
        ) from error


def _integer(text: str) -> int:
    return int(text) if text.isdecimal() else -1


def _published(file: Path) -> list[tuple[int, int, int]]:
    """Every token of the 2×2 patches."""
    try:
        table = np.load(file, allow_pickle=False)
    except (ValueError, OSError) as error:
        raise InputError(f"Expected {file} to be an array of numbers saved by numpy, but {error}. Correct the file.") from error
    if table.ndim != 2 or table.shape[1] != 3:
        raise InputError(f"Expected {file} to have rows (image, col, row), but got the shape {table.shape}. Correct the file.")
    corners = [(int(image), int(row) // 2 * 2, int(col) // 2 * 2) for image, col, row in table]
    return [(image, row + down, col + right) for image, row, col in corners for down in (0, 1) for right in (0, 1)]


def _sides(size: int) -> str:
    return ", ".join(str(size // stride) for stride in (8, 16, 32, 64))
