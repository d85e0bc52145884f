"""What the two Proposal Flow datasets share: tables of pairs as CSV, and keypoints as arrays in which NaN is absence."""

import csv
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from datamodules.images.pair_roots import inside
from datamodules.images.pairs import Box, Point
from tokens.errors import InputError

Points = NDArray[np.float64]  # (n, 2), x and y in pixels; a row that holds NaN is a keypoint the picture does not show
Row = dict[str, str]


def table(file: Path, columns: Sequence[str]) -> list[Row]:
    """Rows by column name; raises InputError, naming the file, unless it is a CSV with these columns."""
    try:
        with file.open(newline="", encoding="utf-8-sig") as opened:
            reader = csv.DictReader(opened, skipinitialspace=True, restval="")
            rows, names = list(reader), reader.fieldnames or ()
    except (OSError, ValueError, csv.Error) as error:
        raise InputError(f"Expected {file} to be a CSV, but it cannot be read ({error}). Get the file again.") from error
    missing = [name for name in columns if name not in names]
    if missing:
        raise InputError(
            f"Expected {file} to have columns {', '.join(columns)}, but it lacks {', '.join(missing)}. Get the file again."
        )
    return rows


def picture(root: Path, path: str) -> str:
    """Name below ``root`` of a picture whose path in a table begins above, with the dataset's folder as it was published.

    Raises InputError where it leads out of the root.
    """
    inside(root, path)
    return "/".join(PurePosixPath(path).parts[-2:])


def mutual(source: Points, target: Points) -> NDArray[np.intp]:
    """Rows of the keypoints that both pictures show; raises ValueError unless the lists are equally long."""
    if source.shape != target.shape:
        raise ValueError(f"{len(source)} source keypoints for {len(target)} of the target")
    return np.flatnonzero(~np.isnan(source + target).any(axis=1))


def listed(points: Points) -> tuple[Point, ...]:
    """As pairs hold them."""
    return tuple((float(x), float(y)) for x, y in points)


def extent(points: Points) -> Box:
    """(x0, y0, x1, y1) around the keypoints that are there; all zeros where none is."""
    there = points[~np.isnan(points).any(axis=1)]
    if not len(there):
        return 0.0, 0.0, 0.0, 0.0
    (x0, y0), (x1, y1) = there.min(axis=0).tolist(), there.max(axis=0).tolist()
    return x0, y0, x1, y1
