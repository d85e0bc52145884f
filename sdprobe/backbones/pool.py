"""Networks that the jobs of one process share, so that a sweep loads each of them once."""

import gc
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

import torch
from torch import nn

from sdprobe.backbones.precision import memory_of

Part = TypeVar("Part")
# bytes that networks which wait for the next job may take, if a quarter of the machine's memory is not less
WAITING = 8 * 2**30


class Pool:
    """Parts of one checkpoint, by what determines them.

    Parts of another checkpoint are dropped before anything of the next is loaded, so that a sweep over checkpoints needs no
    more memory than the largest of them. A job may move networks to another device and set their padding, as every
    :class:`~sdprobe.FrozenSD` does when it is built, but may not change their weights.

    Args:
        limit: bytes above which nothing more is kept, except for the first network of each kind.

    Example:
        >>> pool = Pool(limit=0)
        >>> pool.turn_to("one checkpoint")
        >>> pool.part("schedule", lambda: [1, 2]) is pool.part("schedule", lambda: [1, 2])
        True
        >>> pool.turn_to("another checkpoint")
        >>> pool.part("schedule", lambda: [3])
        [3]
    """

    def __init__(self, limit: float) -> None:
        self.limit = limit
        self._checkpoint: Hashable = None
        self._parts: dict[Hashable, Any] = {}

    def turn_to(self, checkpoint: Hashable) -> None:
        """Drop all parts if they are of another checkpoint.

        Args:
            checkpoint: everything that all parts depend on, such as files, precision and device.
        """
        if checkpoint != self._checkpoint:
            self.clear()
            self._checkpoint = checkpoint

    def part(self, key: Hashable, build: Callable[[], Part], spare: bool = False) -> Part:
        """Return a part, which is built if it is not there.

        Args:
            key: everything that this part depends on besides the checkpoint.
            build: makes the part.
            spare: keep the part only while everything that is kept takes at most ``limit`` bytes.

        Returns:
            the part.
        """
        if key in self._parts:
            return self._parts[key]
        part = build()
        if not spare or _bytes(part) + sum(map(_bytes, self._parts.values())) <= self.limit:
            self._parts[key] = part
        return part

    def clear(self) -> None:
        """Drop all parts, and free their memory if no job holds them."""
        if self._parts:
            self._parts.clear()
            gc.collect()  # trainer, probe and data of earlier jobs refer to each other
            if torch.cuda.is_available():
                torch.cuda.empty_cache()


def _bytes(part: object) -> int:
    parts = part if isinstance(part, tuple) else (part,)
    tensors = (tensor for each in parts if isinstance(each, nn.Module) for tensor in each.state_dict().values())
    return sum(tensor.nbytes for tensor in tensors)


_PROCESS = Pool(min(WAITING, memory_of(torch.device("cpu")) / 4))
_current: ContextVar[Pool | None] = ContextVar("pool", default=None)


@contextmanager
def shared() -> Iterator[Pool]:
    """Inside the ``with`` block, checkpoints are loaded from the pool of this process. Elsewhere nothing is shared.

    Yields:
        the pool of this process.
    """
    token = _current.set(_PROCESS)
    try:
        yield _PROCESS
    finally:
        _current.reset(token)


def current() -> Pool:
    """The pool of this process inside :func:`shared`, and an empty one elsewhere."""
    return _current.get() or Pool(0)
