"""Hand labels of high-norm tokens: a file of positions → masks of the token group ``labelled``. Data path step 5."""

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor

from datamodules.images.csv_lines import csv_lines
from datamodules.images.source import ImageSource
from sdprobe.tokens.geometry import at_grid
from sdprobe.utilities.errors import InputError

COLUMNS = ("image", "row", "col")
LabelledToken = tuple[str, int, int, int]  # line or entry of the file, image, row, col


class Labels:
    """Labelled tokens of an image source, on a grid of ``side`` × ``side`` tokens.

    The file has one of two formats. CSV, with commas, semicolons or tabs, has the header ``image,row,col`` and one labelled
    token per line, with an item's id or its index as ``image``. ``.npy``, as published by Loos & Linhardt (2025), has rows
    (image index, col, row): the upper-left token of a labelled 2 × 2 patch, rounded down to even rows and columns. Images that
    a file does not name have no labelled token.

    Args:
        path: the file.
        side: tokens per side of the grid that was labelled.
        images: the labelled images.

    Raises:
        InputError: no such file, another format, no label, an unknown image, a position outside the grid.
    """

    def __init__(self, path: str, side: int, images: ImageSource) -> None:
        sides = [images.size // stride for stride in (8, 16, 32, 64) if images.size % stride == 0]
        if side not in sides:
            known = ", ".join(map(str, sides))
            raise InputError(
                f"Expected labels for a grid that {images.size}-pixel images have ({known} tokens a side), but "
                f"got labels_side={side}. Use the grid the labels were made on, with images of the same size."
            )
        file = Path(path).expanduser()
        if not file.is_file():
            raise InputError(f"Expected labels in {path}, but there is no such file. Check datamodule.labels.")
        self.side, self.digest = side, hashlib.sha256(file.read_bytes()).hexdigest()
        self.tokens: dict[int, set[tuple[int, int]]] = {}
        rows = _published(file) if file.suffix.lower() == ".npy" else _csv(file, images)
        if not rows:
            raise InputError(f"Expected {file} to label at least one token, but it labels none. Use datamodule.labels=null.")
        for line, image, row, col in rows:
            if not 0 <= image < len(images):
                raise InputError(
                    f"Expected {file} to name images 0 to {len(images) - 1}, but got {image} in {line}. Raise images.limit."
                )
            if not (0 <= row < side and 0 <= col < side):
                raise InputError(
                    f"Expected labels inside a {side}×{side} grid, but {file} has row {row}, column {col} in {line}. "
                    "Set datamodule.labels_side to the grid the labels were made on."
                )
            self.tokens.setdefault(image, set()).add((row, col))

    def masks(self, indices: Sequence[int], height: int, width: int) -> Bool[Tensor, "b {height} {width}"]:
        """Return the labelled tokens of these images on a grid of any size.

        A token of a finer grid inherits its label; a token of a coarser grid has one if any part of it has.
        """
        mask = torch.zeros(len(indices), self.side, self.side, dtype=torch.bool)
        for k, index in enumerate(indices):
            for row, col in self.tokens.get(index, ()):
                mask[k, row, col] = True
        return at_grid(mask, height, width)


def _csv(file: Path, images: ImageSource) -> list[LabelledToken]:
    index = {images.name(i): i for i in range(len(images))}
    lines = csv_lines(file, "Save it as CSV in UTF-8.")
    (_, first), *lines = [(number, cells) for number, cells in lines if any(cells)] or [(1, [])]
    header = [name.lower() for name in first]
    if any(header.count(name) != 1 for name in COLUMNS):
        got = f"'{','.join(first)[:80]}'" if first else "an empty file"
        raise InputError(
            f"Expected the first line of {file} to be the header image,row,col, but got {got}. "
            "Add it; separate columns by commas."
        )
    tokens = []
    for number, cells in lines:
        line = dict(zip(header, cells, strict=False))
        if len(cells) != len(header) or not all(line[column] for column in COLUMNS):
            raise InputError(
                f"Expected line {number} of {file} to fill the columns {','.join(header)}, but got '{','.join(cells)}'. "
                "Complete the line; separate columns by commas, and quote an id that has one."
            )
        name, row, col = (line[column] for column in COLUMNS)
        name = name if name in index else name.replace("\\", "/")  # as Windows writes paths
        if name not in index and not name.isdecimal():
            raise InputError(
                f"Expected line {number} of {file} to name an image, but got '{name}'. Use its id, such as '{images.name(0)}', "
                f"or its index, 0 to {len(images) - 1}; images.limit leaves out images beyond it."
            )
        if not all(re.fullmatch(r"-?\d+", text) for text in (row, col)):
            raise InputError(
                f"Expected row and col in line {number} of {file} to be whole numbers, but got '{row}' and '{col}'. "
                "Correct the line."
            )
        tokens.append((f"line {number}", index[name] if name in index else int(name), int(row), int(col)))
    return tokens


def _published(file: Path) -> list[LabelledToken]:
    """Every token of the published 2 × 2 patches."""
    try:
        with file.open("rb") as stream:
            table = np.load(stream, allow_pickle=False)
    except Exception as error:  # numpy raises a dozen unrelated types on a damaged file
        raise InputError(
            f"Expected {file} to be an array of numbers saved by numpy.save, but it cannot be read ({error}). Save it again."
        ) from error
    if not isinstance(table, np.ndarray):
        raise InputError(f"Expected {file} to be one array, but got an archive of several (npz). Save it with numpy.save.")
    if table.ndim != 2 or table.shape[1] != 3:
        raise InputError(f"Expected {file} to have rows (image, col, row), but got the shape {table.shape}. Correct the file.")
    if table.dtype.kind not in "iuf":
        raise InputError(f"Expected {file} to hold whole numbers, but got the dtype {table.dtype}. Save indices as integers.")
    for k, row in enumerate(table.tolist()):
        if not all(value >= 0 and float(value).is_integer() for value in row):
            raise InputError(f"Expected {file} to hold whole numbers from 0 on, but got {row} in entry {k}. Correct the file.")
    corners = [(k, int(image), int(row) // 2 * 2, int(col) // 2 * 2) for k, (image, col, row) in enumerate(table)]
    return [(f"entry {k}", i, row + down, col + right) for k, i, row, col in corners for down in (0, 1) for right in (0, 1)]
