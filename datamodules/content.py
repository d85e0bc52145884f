"""ContentDataModule: tokens as ever, and beside them the clean latent of what each token covers. Data path steps 1 to 7."""

import time
from functools import cached_property

import torch
from jaxtyping import Float, Int
from rich.progress import track
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from datamodules.items import USED, ItemDataModule
from tokens.errors import InputError


class ContentDataModule(ItemDataModule):
    """An :class:`~datamodules.items.ItemDataModule` that a probe asks for the content of its tokens.

    A token's content is the clean latent of its image, whatever noise or mitigation the token went through, averaged over
    the token's cell.

    Args: those of :class:`ActivationDataModule`.

    Raises:
        InputError: in :meth:`prepare_data`, for training images that all look alike.
    """

    @cached_property
    def _rows(self) -> Int[Tensor, " items"]:
        """Where an item's content stands in the tables; items that are not in use stand nowhere."""
        return torch.full((len(self.images),), -1)

    def prepare_data(self) -> None:
        """Encode what the latent cache lacks, and average the latent of every image that is used."""
        if self._prepared:
            return
        super().prepare_data()
        started = time.perf_counter()
        self._read()
        self.seconds["content"] = time.perf_counter() - started

    def latent_at(self, layer: str, item: Int[Tensor, " n"], where: Int[Tensor, "n 2"]) -> Float[Tensor, "n v"]:
        """Content of tokens, float32 on their device.

        Args:
            layer: which grid.
            item: what ``TokenBatch.photo`` holds.
            where: (row, col) of each token.
        """
        side = self.shapes[layer][1]
        table = self._tables[side] = self._tables[side].to(item.device)
        self._rows = self._rows.to(item.device)
        return table[self._rows[item], where[:, 0], where[:, 1]]

    def position_means(self, layer: str) -> Float[Tensor, "h w v"]:
        """Mean content at every position of the grid, over the training images."""
        return self._training(layer).mean(0)

    def spread(self, layer: str) -> Float[Tensor, " v"]:
        """Root mean square of content minus :meth:`position_means`, over all tokens of the training images."""
        return (self._training(layer) - self.position_means(layer)).square().mean((0, 1, 2)).sqrt()

    def _training(self, layer: str) -> Float[Tensor, "images h w v"]:
        table = self._tables[self.shapes[layer][1]]
        rows = self._rows.to(table.device)[self.split["train"]]
        return table[rows]

    def _read(self) -> None:
        """Fill the tables."""
        used = [index for name in USED for index in self.split[name]]
        self._rows[used] = torch.arange(len(used))
        sides = {height for _, height, _ in self.shapes.values()}
        found: dict[int, list[Tensor]] = {side: [] for side in sides}
        for index in track(used, "reading latents", transient=True):
            latent = self.store[index]
            for side in sides:
                found[side].append(cell_means(latent, side))
        self._tables.update({side: torch.stack(found.pop(side)) for side in sides})
        if not any(self.spread(layer).any() for layer in self.shapes):
            raise InputError(
                f"Expected training images that differ, but got {len(self.split['train'])} without any difference. Use more "
                "images."
            )


def cell_means(latent: Float[Tensor, "v h w"], side: int) -> Float[Tensor, "{side} {side} v"]:
    """Mean of a latent in each of side × side cells, float32.

    >>> cell_means(torch.tensor([[[2.0, 4.0], [0.0, 6.0]]]), 1).tolist()
    [[[3.0]]]
    """
    return adaptive_avg_pool2d(latent.float(), side).permute(1, 2, 0).contiguous()
