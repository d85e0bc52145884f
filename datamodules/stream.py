"""ActivationStream: latents → noise → U-Net → masks → GridBatch, in constant memory. Data path steps 3 to 6.

Tokens or grids that are needed again stay on the device within a memory budget (:class:`DeviceCache`).
"""

import copy
import logging
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, fields
from typing import Generic, TypeVar

import torch
from torch import Tensor

from datamodules.labels import Labels
from datamodules.latents import LatentStore
from sdprobe.backbones import FrozenSD
from sdprobe.backbones.noise import Cut
from sdprobe.backbones.unet import Edit
from sdprobe.tokens.batch import GridBatch, TokenBatch
from sdprobe.tokens.groups import token_groups
from sdprobe.tokens.keys import cells
from sdprobe.tokens.views import View
from sdprobe.utilities.distributed import Processes
from sdprobe.utilities.errors import InputError

log = logging.getLogger(__name__)
Piece = TypeVar("Piece", TokenBatch, GridBatch)


@dataclass(frozen=True)
class Pass:
    """The layers that are read, and the conditions. Each noise level takes a pass of the network.

    Args:
        layers: canonical names.
        timesteps: noise levels in [0, 1000).
        seed: seed of the noise, which also depends on the image's id.
        prompt: text that conditions the network.
    """

    layers: tuple[str, ...]
    timesteps: tuple[int, ...]
    seed: int = 0
    prompt: str = ""

    @property
    def timestep(self) -> int | list[int]:
        """The noise level, or a list of several, as records have it."""
        return list(self.timesteps) if len(self.timesteps) > 1 else self.timesteps[0]

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the grids: the layers; with several timesteps, every layer at every timestep."""
        return tuple(cells(self.layers, self.timesteps))


class ActivationStream:
    """Item indices → activation grids with token-group masks. A pass per image and noise level reads all layers.

    Args:
        backbone: a frozen checkpoint.
        store: latents of the images.
        reads: layers, noise levels, seed and prompt.
        batch_size: images per pass; halved once if device memory runs out.
        labels: hand labels, which become the token group ``labelled``.
    """

    def __init__(
        self, backbone: FrozenSD, store: LatentStore, reads: Pass, batch_size: int = 8, labels: Labels | None = None
    ) -> None:
        self.backbone, self.store, self.reads, self.labels = backbone, store, reads, labels
        self.levels = reads.timesteps  # those of a view may be others than their grids are named after
        self.draw = 0
        self.edits: Sequence[Mapping[str, Edit]] = [{}] * len(self.levels)
        self.padding: str | None = None
        self.cut: Cut | None = None
        self._size = _BatchSize(batch_size)
        self._others: dict[tuple[View, Pass], ActivationStream] = {}
        names = [store.images.photo(index) for index in range(len(store.images))]
        self.photos = {name: i for i, name in enumerate(dict.fromkeys(names))}

    @property
    def batch_size(self) -> int:
        """Images per pass of the network."""
        return self._size.images

    @property
    def step(self) -> int:
        """Images that all processes together compute at once."""
        return self.batch_size * Processes.current().count

    def __call__(self, indices: Sequence[int]) -> Iterator[GridBatch]:
        """Batches of at most ``batch_size`` images, in order.

        Several processes call this together. Each computes one batch at a time, and every process gets the batches of all.

        Raises:
            InputError: half a batch does not fit in device memory.
        """
        processes = Processes.current()
        start = 0
        while start < len(indices):
            size = self.batch_size
            firsts = range(start, min(start + self.step, len(indices)), size)
            chunks = [indices[first : first + size] for first in firsts]
            own = self._computed(chunks[processes.rank]) if processes.rank < len(chunks) else _IDLE
            formats = [form for form in processes.all_gather(None if own is None else _formats(own.grids)) if form is not None]
            if own is None or len(formats) < processes.count:
                own = None  # frees memory for the next try
                self._size.halve()
                continue
            for source, chunk in enumerate(chunks):
                grids = own.grids if source == processes.rank else _empty(formats[source], self.backbone.device)
                received = {layer: _broadcast(grid, source, processes) for layer, grid in grids.items()}
                yield own if source == processes.rank else self._batch(chunk, received)
            start += sum(map(len, chunks))

    def viewed(self, view: View, layers: Sequence[str] | None = None, prompt: str | None = None) -> "ActivationStream":
        """Return the stream of the same images in another view, with other layers or another prompt if they are given.

        Only the images as they are have hand labels.
        """
        reads = Pass(
            self.reads.layers if layers is None else tuple(layers),
            self.reads.timesteps,
            self.reads.seed + view.reseed,
            self.reads.prompt if prompt is None else prompt,
        )
        if (view, reads) == (View(), self.reads):
            return self
        if (view, reads) not in self._others:
            other = copy.copy(self)
            other.store, other.reads, other._others = self.store.viewed(view), reads, {}
            other.levels = view.timesteps or self.levels
            other.draw, other.padding = view.draw or self.draw, view.padding or self.padding
            other.cut = self._cut(view) or self.cut
            other.labels = self.labels if view == View() else None
            self._others[view, reads] = other
        return self._others[view, reads]

    def edited(self, edits: Sequence[Mapping[str, Edit]]) -> "ActivationStream":
        """The stream of the same images, with edits inside the network.

        Args:
            edits: for each noise level, layer → function of its grid, see :meth:`sdprobe.backbones.unet.FrozenUNet.forward`.

        Returns:
            a stream that reads what later layers compute from the edited grids.
        """
        other = copy.copy(self)
        other.edits, other._others = edits, {}
        return other

    def prepare(self, indices: Sequence[int]) -> list[int]:
        """Encode the images that the cache lacks, see :meth:`~datamodules.latents.LatentStore.prepare`."""
        with self._padded():
            return self.store.prepare(indices)

    def _cut(self, view: View) -> Cut | None:
        """Where a window lies, in latent cells; None where the noise does not move with the picture."""
        if view.window is None or not view.moves:
            return None
        return Cut(*(pixels // self.backbone.encoder.stride for pixels in (*view.window, view.larger)))

    def _padded(self) -> AbstractContextManager[object]:
        return self.backbone.padded(self.padding) if self.padding else nullcontext()

    def _computed(self, indices: Sequence[int]) -> GridBatch | None:
        """The grids of these images; None if device memory runs out."""
        ids = [self.store.images.name(index) for index in indices]
        reads = self.reads
        with self._padded(), suppress(torch.OutOfMemoryError):
            latents = torch.stack([self.store[index] for index in indices])
            passes: list[dict[str, Tensor]] = []
            for level, edits in zip(self.levels, self.edits, strict=True):
                if level in self.levels[: len(passes)] and not edits:
                    passes.append(passes[self.levels.index(level)])
                    continue
                options = (reads.layers, level, reads.seed, reads.prompt, self.draw)
                passes.append(self.backbone.grids(latents, ids, *options, edits=edits, cut=self.cut))
            grids = [each[layer] for layer in reads.layers for each in passes]
            return self._batch(indices, dict(zip(reads.names, grids, strict=True)))
        return None

    def _batch(self, indices: Sequence[int], grids: dict[str, Tensor]) -> GridBatch:
        images, device = self.store.images, self.backbone.device
        masks = {layer: token_groups(grid) for layer, grid in grids.items()}
        if self.labels:
            for layer, grid in grids.items():
                masks[layer]["labelled"] = self.labels.masks(indices, *grid.shape[2:]).to(grid.device)
        photo = [self.photos[images.photo(index)] for index in indices]
        return GridBatch(grids, masks, torch.tensor(indices, device=device), torch.tensor(photo, device=device))


class _BatchSize:
    """Images per pass of the network, shared by the streams of all views; it can be halved once."""

    def __init__(self, images: int) -> None:
        self.images, self._halved = images, False

    def halve(self) -> None:
        """Halve the number. Raises InputError if it was halved before, or is 1."""
        if self._halved or self.images == 1:
            raise InputError(
                f"Expected {self.images} images per U-Net pass to fit in device memory, but they do not. "
                "Lower datamodule.batch_size, ask for fewer layers with block=, or use device=cpu."
            )
        self._halved = True
        self.images //= 2
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        log.warning("Out of device memory: continuing with %d images per U-Net pass; numbers stay the same.", self.images)


_IDLE = GridBatch({}, {}, torch.empty(0, dtype=torch.long), torch.empty(0, dtype=torch.long))  # for a process without images
Name = TypeVar("Name", bound=Hashable)
_Format = tuple[torch.Size, torch.dtype, bool]


def _formats(grids: dict[Name, Tensor]) -> dict[Name, _Format]:
    """Layer → shape, dtype, and whether channels are last in memory."""
    return {layer: (grid.shape, grid.dtype, not grid.is_contiguous()) for layer, grid in grids.items()}


def _empty(formats: dict[Name, _Format], device: torch.device) -> dict[Name, Tensor]:
    """Empty grids that receive those of another process."""
    return {
        layer: torch.empty(shape, dtype=dtype, device=device, memory_format=_layout(channels_last))
        for layer, (shape, dtype, channels_last) in formats.items()
    }


def _broadcast(grid: Tensor, source: int, processes: Processes) -> Tensor:
    """The grid of process ``source``, with the same memory layout."""
    if processes.count == 1:
        return grid
    channels_last = not grid.is_contiguous()
    grid = grid.contiguous(memory_format=_layout(channels_last))
    processes.broadcast(grid.permute(0, 2, 3, 1) if channels_last else grid, source)
    return grid


def exchanged(own: dict[Name, Tensor] | None, device: torch.device) -> Iterator[dict[Name, Tensor]]:
    """Tensors (B, C, h, w) of every process that has some, in the order of processes. All of them call this together."""
    processes = Processes.current()
    for source, formats in enumerate(processes.all_gather(None if own is None else _formats(own))):
        if formats is not None:
            grids = own if own is not None and source == processes.rank else _empty(formats, device)
            yield {name: _broadcast(grid, source, processes) for name, grid in grids.items()}


def _layout(channels_last: bool) -> torch.memory_format:
    return torch.channels_last if channels_last else torch.contiguous_format


class DeviceCache(Generic[Piece]):
    """Item index → its tokens or grids, up to ``budget`` GiB."""

    def __init__(self, budget: float) -> None:
        self._left = budget * 2**30
        self._largest = 1
        self._pieces: dict[int, Piece] = {}
        self.full = budget == 0

    def add(self, index: int, piece: Piece) -> None:
        """Keep the tokens of an item if they fit; after the first that does not, nothing more is kept."""
        size = _size(piece)
        if self.full or size > self._left:
            self.full = True
            return
        self._left -= size
        self._largest = max(self._largest, size)
        self._pieces[index] = piece

    def capacity(self) -> int:
        """Return how many more items fit, at the largest size so far; 1 while no size is known."""
        if self.full or not self._pieces:
            return int(not self.full)
        return int(self._left // self._largest)

    def clear(self) -> None:
        """Remove everything; nothing more is kept."""
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
