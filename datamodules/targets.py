"""Data modules whose tokens come with a target to regress: the depth, or the clean latent, of what a token covers.

Data path steps 1 to 7.
"""

import hashlib
import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from rich.progress import track
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from datamodules.activations import ActivationDataModule
from datamodules.images.source import ImageSource
from sdprobe.tokens.batch import GridBatch, TokenBatch
from sdprobe.utilities.errors import InputError

USED = ("train", "val", "test")
log = logging.getLogger(__name__)


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


@runtime_checkable
class DepthSource(ImageSource, Protocol):
    """An image source that knows the depth of its pixels."""

    def depth(self, index: int) -> Float[Tensor, "size size"]:
        """Depth of every pixel, positive, in one unit for all items; 0, NaN and infinity are missing."""

    def depth_key(self, index: int) -> str:
        """Identifies an item's depth, as ``content_key`` does its pixels."""


class DepthDataModule(ItemDataModule):
    """An :class:`~datamodules.targets.ItemDataModule` that a probe asks for the depth of its tokens.

    A token's depth is the mean over the pixels of its cell that have one; NaN where none has.

    Args: those of :class:`ActivationDataModule`.

    Raises:
        InputError: in :meth:`prepare_data`, for images without depth.
    """

    @cached_property
    def source(self) -> DepthSource:
        """The images. Raises InputError where they have no depth."""
        if not isinstance(self.images, DepthSource):
            raise InputError(
                f"Expected images with depth, images=scene_depth or images=nyu, but got {type(self.images).__name__}. "
                "Choose one of these."
            )
        return self.images

    def prepare_data(self) -> None:
        """Encode what the latent cache lacks, and read the depth of every image that is used."""
        if self._prepared:
            return
        source = self.source  # images without depth are refused before any is encoded
        super().prepare_data()
        started = time.perf_counter()
        self._read(source)
        self.seconds["depth"] = time.perf_counter() - started

    def depth_at(self, layer: str, item: Int[Tensor, " n"], where: Int[Tensor, "n 2"]) -> Float[Tensor, " n"]:
        """Depth of tokens, float32 on their device; NaN where it is missing.

        Args:
            layer: which grid.
            item: what ``TokenBatch.photo`` holds.
            where: (row, col) of each token.
        """
        side = self.shapes[layer][1]
        table = self._tables[side] = self._tables[side].to(item.device)
        return table[item, where[:, 0], where[:, 1]]

    def training_depth(self, layer: str) -> Float[Tensor, "images h w"]:
        """Depth of every token of the training images; NaN where it is missing."""
        table = self._tables[self.shapes[layer][1]]
        return table[torch.tensor(self.split["train"], device=table.device)]

    def describe(self) -> dict[str, Any]:
        """That of tokens; the fingerprint covers depth too."""
        described = super().describe()
        digest = hashlib.sha256(described["dataset_fingerprint"].encode())
        for index in (index for name in USED for index in self.split[name]):
            digest.update(f"\x1e{self.source.depth_key(index)}".encode())
        described["dataset_fingerprint"] = digest.hexdigest()
        return described

    def _read(self, source: DepthSource) -> None:
        """Fill the tables; items whose depth cannot be decoded leave their split, unless ``on_error`` is ``raise``."""
        for side in {height for _, height, _ in self.shapes.values()}:
            self._tables[side] = torch.full((len(source), side, side), torch.nan)
        failed: list[int] = []
        wanted = [index for name in USED for index in self.split[name]]
        for index in track(wanted, "reading depth", disable=self.processes.rank > 0):
            try:
                depth = source.depth(index)
            except InputError:
                if source.on_error == "raise":
                    raise
                failed.append(index)
                continue
            for side, table in self._tables.items():
                table[index] = depth_means(depth, side)
        if failed:
            names = [source.name(index) for index in failed]
            self.store.skipped = [*self.store.skipped, *names]
            log.warning("Skipped %d images whose depth cannot be decoded: %s", len(failed), ", ".join(names))
        finest = self._tables[max(self._tables)]
        for name in USED:
            if self.split[name] and not finest[self.split[name]].isfinite().any():
                raise InputError(
                    f"Expected depth for the {name} split, but none of its images has any. Check the image source."
                )
            self.split[name] = [index for index in self.split[name] if index not in failed]


def depth_means(depth: Float[Tensor, "size size"], side: int) -> Float[Tensor, "{side} {side}"]:
    """Mean over the pixels that have a depth in each of side × side equal cells, float32; NaN in cells without any.

    >>> depth_means(torch.tensor([[2.0, 4.0], [0.0, 6.0]]), 1).tolist()
    [[4.0]]
    """
    known = depth.isfinite() & (depth > 0)
    pixels = len(depth) // side
    values, counts = (
        part.double().unflatten(1, (side, pixels)).unflatten(0, (side, pixels)).sum((1, 3))
        for part in (torch.where(known, depth, 0), known)
    )
    return (values / counts).float()


class ContentDataModule(ItemDataModule):
    """An :class:`~datamodules.targets.ItemDataModule` that a probe asks for the content of its tokens.

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
                found[side].append(latent_means(latent, side))
        self._tables.update({side: torch.stack(found.pop(side)) for side in sides})
        if not any(self.spread(layer).any() for layer in self.shapes):
            raise InputError(
                f"Expected training images that differ, but got {len(self.split['train'])} without any difference. Use more "
                "images."
            )


def latent_means(latent: Float[Tensor, "v h w"], side: int) -> Float[Tensor, "{side} {side} v"]:
    """Mean of a latent in each of side × side cells, float32.

    >>> latent_means(torch.tensor([[[2.0, 4.0], [0.0, 6.0]]]), 1).tolist()
    [[[3.0]]]
    """
    return adaptive_avg_pool2d(latent.float(), side).permute(1, 2, 0).contiguous()
