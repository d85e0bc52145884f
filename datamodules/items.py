"""ItemDataModule: tokens that know their item, for what belongs to an item and not to a photograph. Data path steps 1 to 7."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property

import torch
from jaxtyping import Int
from torch import Tensor

from datamodules.activations import ActivationDataModule
from tokens.batch import GridBatch, TokenBatch

USED = ("train", "val", "test")


class ItemDataModule(ActivationDataModule):
    """An :class:`ActivationDataModule` for targets of items (frames, crops), of which a photograph may have several.

    In its batches ``photo`` holds the index of the *item*. :meth:`photograph` gives that of the photograph, by which images
    are split and intervals are drawn.

    Args: those of :class:`ActivationDataModule`.
    """

    @cached_property
    def _tables(self) -> dict[int, Tensor]:
        """Side of a grid → targets of every token of its items."""
        return {}

    @cached_property
    def _photographs(self) -> Int[Tensor, " items"]:
        return torch.tensor([self.stream.photos[self.images.photo(index)] for index in range(len(self.images))])

    def photograph(self, item: Int[Tensor, " n"]) -> Int[Tensor, " n"]:
        """The photographs that items show."""
        self._photographs = self._photographs.to(item.device)
        return self._photographs[item]

    def release(self) -> None:
        """Let go of everything kept on the device."""
        super().release()
        self._tables.clear()

    def _label(self, index: int) -> int:
        return index

    def _drawn(self, batch: GridBatch) -> list[TokenBatch]:
        return super()._drawn(_by_item(batch))

    def _whole(self, indices: Sequence[int]) -> Iterator[GridBatch]:
        return map(_by_item, super()._whole(indices))


def _by_item(batch: GridBatch) -> GridBatch:
    return replace(batch, photo=batch.image)
