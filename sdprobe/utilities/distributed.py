"""Processes: which of several equal processes this is, and what they say to each other. Nothing where there is one."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from torch import Tensor, distributed

Item = TypeVar("Item")
Value = TypeVar("Value")


@dataclass(frozen=True)
class Processes:
    """Process ``rank`` of ``count``, one per device. All of them must call :meth:`total` and :meth:`gathered` alike."""

    rank: int = 0
    count: int = 1

    @classmethod
    def current(cls) -> "Processes":
        """Those of torch's process group; one where there is none."""
        if not (distributed.is_available() and distributed.is_initialized()):
            return cls()
        return cls(distributed.get_rank(), distributed.get_world_size())

    def share(self, items: Sequence[Item]) -> list[Item]:
        """Every ``count``-th item, from number ``rank`` on: the shares of all processes are disjoint and complete.

        >>> [Processes(rank, 3).share("abcdefg") for rank in range(3)]
        [['a', 'd', 'g'], ['b', 'e'], ['c', 'f']]
        """
        return list(items[self.rank :: self.count])

    def largest(self, items: int) -> int:
        """Number of items in the largest share of ``items``; that of the first process is.

        >>> Processes(1, 3).largest(7)
        3
        """
        return -(-items // self.count)

    def total(self, tensor: Tensor) -> Tensor:
        """Sum of a tensor over processes, equal in all of them to the bit; in place."""
        if self.count > 1:
            distributed.all_reduce(tensor)
        return tensor

    def gathered(self, value: Value) -> list[Value]:
        """What every process gave, in order of their ranks."""
        if self.count == 1:
            return [value]
        values: list[Value | None] = [None] * self.count
        distributed.all_gather_object(values, value)
        return values  # type: ignore[return-value]
