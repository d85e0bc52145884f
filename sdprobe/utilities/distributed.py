"""Processes: rank and number of processes, and how they exchange values. With one process nothing is exchanged."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from torch import Tensor, distributed

Item = TypeVar("Item")
Value = TypeVar("Value")


@dataclass(frozen=True)
class Processes:
    """Process ``rank`` of ``count``, one per device. All must call the methods that exchange values, in the same order."""

    rank: int = 0
    count: int = 1

    @classmethod
    def current(cls) -> "Processes":
        """Those of torch's process group; a single process without one."""
        if not (distributed.is_available() and distributed.is_initialized()):
            return cls()
        return cls(distributed.get_rank(), distributed.get_world_size())

    def shard(self, items: Sequence[Item]) -> list[Item]:
        """Every ``count``-th item, starting at number ``rank``. The shards of all processes are disjoint and complete.

        >>> [Processes(rank, 3).shard("abcdefg") for rank in range(3)]
        [['a', 'd', 'g'], ['b', 'e'], ['c', 'f']]
        """
        return list(items[self.rank :: self.count])

    def broadcast(self, tensor: Tensor, source: int) -> Tensor:
        """The tensor of process ``source``, written into ``tensor`` in the others."""
        if self.count > 1:
            distributed.broadcast(tensor, source)
        return tensor

    def all_gather(self, value: Value) -> list[Value]:
        """The value of every process, in order of their ranks."""
        if self.count == 1:
            return [value]
        values: list[Value | None] = [None] * self.count
        distributed.all_gather_object(values, value)
        return values  # type: ignore[return-value]
