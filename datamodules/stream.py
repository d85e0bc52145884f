"""ActivationStream: latents → noise → U-Net → masks → GridBatch, in constant memory. Data path steps 3 to 6.

Tokens or grids that are needed again stay on the device within a stated budget (:class:`DeviceCache`).
"""

import logging
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import fields
from typing import Generic, TypeVar

import torch
from torch import Tensor

from datamodules.labels import Labels
from datamodules.latents import LatentStore
from sdprobe.backbones import FrozenSD
from sdprobe.tokens.batch import GridBatch, TokenBatch
from sdprobe.tokens.groups import token_groups
from sdprobe.tokens.views import View
from sdprobe.utilities.errors import InputError

log = logging.getLogger(__name__)
Piece = TypeVar("Piece", TokenBatch, GridBatch)


class ActivationStream:
    """Item indices → activation grids with their token-group masks, one U-Net pass per image for all layers.

    Args:
        backbone: frozen.
        store: latents of the images.
        layers: canonical names.
        timestep: noise level.
        seed: keys the noise of each image, with its id.
        prompt: conditioning text of every image.
        batch_size: images per U-Net pass; halved once if device memory runs out. Never changes an activation.
        labels: hand labels, which become the token group ``labelled``.
        view: how the network is shown the images of ``store``; :meth:`viewed` makes streams of other views.
    """

    def __init__(
        self,
        backbone: FrozenSD,
        store: LatentStore,
        layers: Sequence[str],
        timestep: int,
        seed: int = 0,
        prompt: str = "",
        batch_size: int = 8,
        labels: Labels | None = None,
        view: View = View(),  # noqa: B008  # frozen
    ) -> None:
        self.labels = labels
        self.view = view
        self._views: dict[View, ActivationStream] = {}
        self.backbone = backbone
        self.store = store
        self.layers = layers
        self.timestep = timestep
        self.seed = seed
        self.prompt = prompt
        self.batch_size = batch_size
        self._halved = False
        names = [store.images.photo(index) for index in range(len(store.images))]
        self.photos = {name: i for i, name in enumerate(dict.fromkeys(names))}

    def __call__(self, indices: Sequence[int]) -> Iterator[GridBatch]:
        """Batches of at most ``batch_size`` images, in order."""
        start = 0
        while start < len(indices):
            chunk = indices[start : start + self.batch_size]
            try:
                batch = self._batch(chunk)
            except torch.OutOfMemoryError:
                batch = None  # leave the except block first: its traceback holds the tensors
            if batch is None:
                self._halve()
                continue
            start += len(chunk)
            yield batch

    def viewed(self, view: View) -> "ActivationStream":
        """The stream of the same images, shown as ``view`` says."""
        if view == self.view:
            return self
        if view not in self._views:
            self._views[view] = self._made(view)
        return self._views[view]

    def _made(self, view: View) -> "ActivationStream":
        return ActivationStream(
            self.backbone,
            self.store.viewed(view),
            self.layers,
            self.timestep,
            self.seed,
            self.prompt,
            self.batch_size,
            view=view,
        )

    def prepare(self, indices: Sequence[int]) -> list[int]:
        """Encode what the cache lacks; see :meth:`LatentStore.prepare`."""
        with self._padded():
            return self.store.prepare(indices)

    def _padded(self) -> AbstractContextManager[object]:
        return self.backbone.padded(self.view.padding) if self.view.padding else nullcontext()

    def _batch(self, indices: Sequence[int]) -> GridBatch:
        images = self.store.images
        ids = [images.name(index) for index in indices]
        with self._padded():
            latents = torch.stack([self.store[index] for index in indices])
            grids = self.backbone.grids(latents, ids, self.layers, self.timestep, self.seed, self.prompt, self.view.draw)
        masks = {layer: token_groups(grid) for layer, grid in grids.items()}
        if self.labels:
            for layer, grid in grids.items():
                masks[layer]["labelled"] = self.labels.masks(indices, *grid.shape[2:]).to(grid.device)
        return GridBatch(
            grids=grids,
            masks=masks,
            image=torch.tensor(indices, device=self.backbone.device),
            photo=torch.tensor([self.photos[images.photo(index)] for index in indices], device=self.backbone.device),
        )

    def _halve(self) -> None:
        if self._halved or self.batch_size == 1:
            raise InputError(
                f"Expected {self.batch_size} images per U-Net pass to fit in device memory, but they do not. "
                "Lower datamodule.batch_size, ask for fewer layers with block=, or use device=cpu."
            )
        self._halved = True
        self.batch_size //= 2
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        log.warning("Out of device memory: continuing with %d images per U-Net pass; numbers stay the same.", self.batch_size)


class DeviceCache(Generic[Piece]):
    """Item index → its tokens or grids, kept while they fit ``budget`` GiB."""

    def __init__(self, budget: float) -> None:
        self._left = budget * 2**30
        self._largest = 1
        self._pieces: dict[int, Piece] = {}
        self.full = budget == 0

    def add(self, index: int, piece: Piece) -> None:
        """Keep the tokens of an item if they still fit; from the first that does not, nothing more is kept."""
        size = _size(piece)
        if self.full or size > self._left:
            self.full = True
            return
        self._left -= size
        self._largest = max(self._largest, size)
        self._pieces[index] = piece

    def capacity(self) -> int:
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
