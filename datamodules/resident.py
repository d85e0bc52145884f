"""Resident: tokens or grids that stay on the device until they are needed again, within a stated budget. Data path step 7."""

from dataclasses import fields
from typing import Generic, TypeVar

from torch import Tensor

from tokens.batch import GridBatch, TokenBatch

Piece = TypeVar("Piece", TokenBatch, GridBatch)


class Resident(Generic[Piece]):
    """Item index → its tokens or grids, kept while they fit ``budget`` GiB."""

    def __init__(self, budget: float) -> None:
        self._left = budget * 2**30
        self._largest = 1
        self._pieces: dict[int, Piece] = {}
        self.full = budget == 0

    def offer(self, index: int, piece: Piece) -> None:
        """Keep the tokens of an item if they still fit; from the first that does not, nothing more is kept."""
        size = _size(piece)
        if self.full or size > self._left:
            self.full = True
            return
        self._left -= size
        self._largest = max(self._largest, size)
        self._pieces[index] = piece

    def room(self) -> int:
        """How many more items of the size of those kept fit; 1 as long as none is kept and sizes are unknown."""
        if self.full or not self._pieces:
            return int(not self.full)
        return int(self._left // self._largest)

    def clear(self) -> None:
        """Forget everything; nothing more is kept."""
        self._pieces.clear()
        self.full = True

    def __contains__(self, index: int) -> bool:
        return index in self._pieces

    def __getitem__(self, index: int) -> Piece:
        return self._pieces[index]

    def __len__(self) -> int:
        return len(self._pieces)


def _size(piece: TokenBatch | GridBatch) -> int:
    """Bytes of all tensors of a batch."""
    return sum(_bytes(getattr(piece, field.name)) for field in fields(piece))


def _bytes(value: object) -> int:
    if isinstance(value, dict):
        return sum(map(_bytes, value.values()))
    assert isinstance(value, Tensor)
    return value.nbytes
