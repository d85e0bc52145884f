"""Loaders: sized iterables over batches, which Lightning reads."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Protocol, TypeVar, runtime_checkable

from sdprobe.tokens.batch import GridBatch, joined

Batch = TypeVar("Batch")


class Loader(Iterable[Batch]):
    """A sized iterable over a fresh generator."""

    def __init__(self, make: Callable[[], Iterator[Batch]], length: int) -> None:
        self.make, self.length = make, length

    def __iter__(self) -> Iterator[Batch]:
        return self.make()

    def __len__(self) -> int:
        return self.length


@runtime_checkable
class Stream(Protocol):
    """Item indices → grids in batches of at most ``batch_size``."""

    @property
    def batch_size(self) -> int: ...

    def __call__(self, indices: Sequence[int]) -> Iterator[GridBatch]: ...


class GridLoader(Loader[GridBatch]):
    """Whole grids of these images, in batches of the size that the stream has now.

    The size stays even if the stream halves its own, since Lightning stops after the number of batches it was told.
    ``images`` is the number of images.
    """

    def __init__(self, stream: Stream, indices: Sequence[int]) -> None:
        size = stream.batch_size
        super().__init__(lambda: grouped(stream(indices), size), -(-len(indices) // size))
        self.images = len(indices)


class PairLoader(Loader[tuple[GridBatch, GridBatch]]):
    """Whole grids of the same images in two views. ``images`` is the number of images."""

    def __init__(self, first: Stream, second: Stream, indices: Sequence[int]) -> None:
        size = first.batch_size
        views = (first, second)
        super().__init__(
            lambda: zip(*(grouped(stream(indices), size) for stream in views), strict=True), -(-len(indices) // size)
        )
        self.images = len(indices)


def grouped(batches: Iterable[GridBatch], size: int) -> Iterator[GridBatch]:
    """The same images in batches of ``size``; the last one may be smaller."""
    waiting: list[GridBatch] = []
    for batch in batches:
        waiting.append(batch)
        while (count := sum(len(batch.image) for batch in waiting)) >= size:
            together = joined(waiting)
            yield together.select(range(size))
            waiting = [together.select(range(size, count))] if count > size else []
    if waiting:
        yield joined(waiting)
