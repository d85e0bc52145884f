"""``images=pf_willow``: PF-WILLOW, whose pairs are for testing only.

    <category>/<image>     such as car(S)/Cars_000a.png
    test_pairs*.csv        imageA, imageB, XA1 .. XA10, YA1 .. YA10, XB1 .. XB10, YB1 .. YB10; one pair a row

Reference: Ham, Cho, Schmid and Ponce, Proposal Flow: Semantic Correspondences from Object Proposals, arXiv:1703.07144.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from datamodules.images.pair_files import BadPair, Entry, PairFiles, Statement, warn_if_unpublished
from datamodules.images.pair_roots import Layout
from datamodules.images.pf_tables import Points, Row, extent, listed, mutual, picture, table
from tokens.errors import InputError

LAYOUT = Layout("PF-WILLOW", {"test_pairs*.csv": "test_pairs*.csv", "*(*)": "category folders such as car(S)"})
CATEGORIES = {
    "car(G)", "car(M)", "car(S)", "duck(S)", "motorbike(G)", "motorbike(M)", "motorbike(S)",
    "winebottle(M)", "winebottle(wC)", "winebottle(woC)",
}  # fmt: skip
SLOTS = range(1, 11)
PAIRS = 900


class PFWillowImages(PairFiles):
    """Pairs in the order of the table; items are ``<category>/<image>``; keypoint ids are "0" to "9", columns 1 to 10.

    The target's box is the extent of its keypoints. (0, 0) in the table is padding, not a keypoint.

    Args:
        root: the folder that holds the categories' folders and the table.
        size: side of the square items in pixels, a multiple of 64.
        resize: how a picture fits into the square: ``pad``, ``replicate`` or ``squash``.
        categories: whose pairs are taken, such as ``car(S)``; None takes all.
        pairs_per_category: the first so many pairs of a category; None takes all.
        on_error: ``raise`` on a pair that cannot be used, or ``skip`` and count it in ``dropped``: reason → pairs.

    Raises:
        InputError: an argument is out of range, root is another folder, a pair cannot be used or leads out of root.
    """

    box = "keypoints"

    def __init__(
        self,
        root: str,
        size: int = 512,
        resize: str = "pad",
        categories: Sequence[str] | None = None,
        pairs_per_category: int | None = None,
        on_error: str = "raise",
    ) -> None:
        super().__init__(LAYOUT, root, "", size, resize, on_error)
        files = sorted(self.root.glob("test_pairs*.csv"))
        if len(files) > 1:
            got = " and ".join(file.name for file in files)
            raise InputError(f"Expected {self.root} to hold one table test_pairs*.csv, but got {got}. Keep one of them.")
        columns = [f"{axis}{side}{slot}" for side in "AB" for axis in "XY" for slot in SLOTS]
        rows = enumerate(table(files[0], ["imageA", "imageB", *columns]), start=1)
        entries: list[Entry] = [(_category(row), partial(self._statement, files[0], number, row)) for number, row in rows]
        self._load({"test": entries}, categories, pairs_per_category)
        if {category for category, _ in entries} == CATEGORIES:
            warn_if_unpublished(self.title, {"test": len(entries)}, {"test": PAIRS})

    def _statement(self, file: Path, number: int, row: Row) -> Statement:
        """A row of the table; raises BadPair where it cannot be read."""
        label = f"row {number} of {file}"
        first, second = (picture(self.root, row[column]) for column in ("imageA", "imageB"))
        if not _category(row):
            message = f"Expected imageA in {label} to be <category>/<image>, but got '{row['imageA']}'."
            raise BadPair("unknown category", message)
        try:
            source, target = _keypoints(row, "A"), _keypoints(row, "B")
        except ValueError as error:
            raise BadPair("unreadable annotation", f"Expected {label} to hold numbers, but got: {error}.") from error
        rows = mutual(source, target)
        ids, points = tuple(str(k) for k in rows.tolist()), (listed(source[rows]), listed(target[rows]))
        return Statement(label, first, second, _category(row), ids, *points, extent(target))


def _category(row: Row) -> str:
    """The folder of the source picture."""
    return "".join(row["imageA"].split("/")[-2:-1])


def _keypoints(row: Row, side: str) -> Points:
    points = np.array([[float(row[f"{axis}{side}{slot}"]) for axis in "XY"] for slot in SLOTS])
    points[(points == 0).all(axis=1)] = np.nan  # padding, which would stretch the extent to the corner
    return points
