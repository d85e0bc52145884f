"""What Lightning needs of a dataloader whose batches come from a generator."""

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

Batch = TypeVar("Batch")


class Loader(Iterable[Batch]):
    """A sized iterable over a fresh generator."""

    def __init__(self, make: Callable[[], Iterator[Batch]], length: int) -> None:
        self.make, self.length = make, length

    def __iter__(self) -> Iterator[Batch]:
        return self.make()

    def __len__(self) -> int:
        return self.length
