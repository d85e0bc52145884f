"""ActivationDataModule: images → TokenBatches of every requested layer, streamed from the accelerator.

It owns the splits and the tokens that stay on the device between epochs. ControlsDataModule adds the test images once more:
rotated, and under another noise tensor.
"""

import time
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any, Unpack

import torch
from rich.progress import Progress

from datamodules.base import StreamDataModule, StreamOptions
from datamodules.images.source import ImageSource
from datamodules.mitigated import MitigatedStream
from datamodules.mixing import CELLS, GridLoader, Loader, all_tokens, batches_per_pass, draw_tokens, flattened, mixing_buffer
from datamodules.splits import split_by_photo
from datamodules.stream import ActivationStream, DeviceCache
from sdprobe.backbones import FrozenSD
from sdprobe.tokens.batch import GridBatch, TokenBatch
from sdprobe.tokens.views import View
from sdprobe.utilities import settings
from sdprobe.utilities.distributed import Processes
from sdprobe.utilities.rng import keyed_generator

# one Lightning epoch holds at least so many steps: validation, checkpoints and progress bars come once per epoch
STEPS_PER_EPOCH = 100
REPEATED = ("shared", "rolled")  # noise that images have in common


class ActivationDataModule(StreamDataModule):
    """Streams tokens to probes.

    Args:
        images, backbone, block, labels, labels_side, and options: see :class:`~datamodules.base.StreamDataModule`.
        splits: ``default`` or ``loos2025``; see :func:`~datamodules.splits.split_by_photo`.
        sampling: ``stratified`` draws 64 tokens per image and layer; ``all`` takes every token, and one pass over the
            images is an epoch.
        token_batch: tokens per layer and training step.
        mixing_images: images per mixing block.
        activation_budget: GiB of tokens that may stay on the device between epochs; the rest is recomputed. Changes the
            speed, never the numbers.

    Raises:
        InputError: too few photographs, an unusable option.
    """

    kind = "activations"

    def __init__(
        self,
        images: ImageSource,
        backbone: FrozenSD,
        block: str | Sequence[str] = "mid",
        splits: str = "default",
        sampling: str = "stratified",
        token_batch: int = 512,
        mixing_images: int = 32,
        activation_budget: float = 2.0,
        labels: str | None = None,
        labels_side: int = 32,
        **options: Unpack[StreamOptions],
    ) -> None:
        settings.check("datamodule", sampling=sampling, token_batch=token_batch, mixing_images=mixing_images, splits=splits)
        settings.check("", activation_budget=activation_budget)
        super().__init__(images, backbone, block, labels, labels_side, **options)
        self.sampling, self.token_batch, self.mixing_images = sampling, token_batch, mixing_images
        self.split = split_by_photo([images.photo(i) for i in range(len(images))], splits, self.seed)
        self.resident: DeviceCache[TokenBatch] = DeviceCache(activation_budget)

    def setup(self, stage: str) -> None:
        """Fit the mitigations; before training in epochs, extract the tokens that may stay on the device."""
        super().setup(stage)
        if stage != "fit" or not (self.trainer is None or self.trainer.lightning_module.automatic_optimization):
            return
        wanted = [i for i in (*self.split["train"], *self.split["val"]) if i not in self.resident]
        if not wanted or self.resident.full:
            return
        started = time.perf_counter()
        with Progress(*Progress.get_default_columns(), disable=Processes.current().rank > 0) as progress:
            task = progress.add_task("extracting activations", total=len(wanted))
            while wanted and (room := self.resident.capacity()):
                size = min(room, self.stream.step)
                group, wanted = wanted[:size], wanted[size:]
                for index, piece in self._computed(group):
                    self.resident.add(index, piece)
                    progress.advance(task)
            progress.update(task, total=progress.tasks[task].completed)
        self.seconds["extract"] = time.perf_counter() - started

    def train_dataloader(self) -> "Loader[TokenBatch]":
        """Mixed training tokens; as many passes over the images as make :data:`STEPS_PER_EPOCH` steps.

        One pass where every token is taken, and for probes without an optimiser, whose sums a second pass only repeats.
        """
        assert self.trainer is not None
        steps = self._steps_per_pass()
        once = self.sampling == "all" or not self.trainer.lightning_module.automatic_optimization
        passes = 1 if once else -(-STEPS_PER_EPOCH // steps)
        return Loader(lambda: self._train_epoch(passes), passes * steps)

    def val_dataloader(self) -> "Loader[TokenBatch] | list[Any]":
        """The tokens of the validation images, one image per batch, unmixed."""
        indices = self.split["val"]
        return Loader(lambda: self._pieces(indices), len(indices)) if indices else []

    def test_dataloader(self) -> Any:
        """Every token of the test images, unmixed."""
        return self._whole_images(self.stream)

    def release(self) -> None:
        """Let go of everything kept on the device."""
        super().release()
        self.resident.clear()

    def describe(self) -> dict[str, Any]:
        """What identifies the data in a run's record."""
        resident = sum(i in self.resident for name in ("train", "val") for i in self.split[name])
        return super().describe() | {"resident_images": resident}

    def _train_epoch(self, passes: int) -> Iterator[TokenBatch]:
        assert self.trainer is not None
        for number in range(passes):
            key = ("train", self.seed, self.trainer.current_epoch, number)
            shuffle = torch.randperm(len(self.split["train"]), generator=keyed_generator("images", *key))
            pieces = self._pieces([self.split["train"][i] for i in shuffle])
            yield from mixing_buffer(pieces, self.mixing_images, self.token_batch, *key)

    def _whole_images(self, stream: ActivationStream | MitigatedStream) -> "Loader[TokenBatch]":
        """Every token of the test images of a stream."""
        grids = GridLoader(stream, self.split["test"])
        return Loader(lambda: map(self._flattened, grids), len(grids))

    def _pieces(self, indices: Sequence[int]) -> Iterator[TokenBatch]:
        """Drawn tokens per image, in order; resident ones are reused, the others computed in full batches."""
        queue: list[int] = []
        lacking = 0
        for index in indices:
            queue.append(index)
            lacking += index not in self.resident
            if lacking in (0, self.stream.step):
                yield from self._served(queue)
                queue, lacking = [], 0
        yield from self._served(queue)

    def _served(self, indices: Sequence[int]) -> Iterator[TokenBatch]:
        computed = dict(self._computed([i for i in indices if i not in self.resident]))
        for index in indices:
            yield computed.pop(index) if index in computed else self.resident[index]

    def _computed(self, indices: Sequence[int]) -> Iterator[tuple[int, TokenBatch]]:
        """Images and their drawn tokens."""
        for batch in self.stream(indices):
            yield from zip(batch.image.tolist(), self._drawn(batch), strict=True)

    def _drawn(self, batch: GridBatch) -> list[TokenBatch]:
        if self.sampling == "all":
            return all_tokens(batch)
        return draw_tokens(batch, [self.images.name(i) for i in batch.image.tolist()], self.seed)

    def _flattened(self, batch: GridBatch) -> TokenBatch:
        return flattened(batch)

    def _steps_per_pass(self) -> int:
        grids = [height * width for _, height, width in self.shapes.values()]
        counts = grids if self.sampling == "all" else [CELLS * CELLS]
        return batches_per_pass(len(self.split["train"]), counts, self.mixing_images, self.token_batch)


class ControlsDataModule(ActivationDataModule):
    """An :class:`ActivationDataModule` whose test dataloaders are its ``views``, every token of the test images in each.

    ``test``: as they are; ``rotated``: by 180° before they are encoded, with the noise they had; ``other_noise``: where
    images share a noise tensor, under another one (seed + 1).

    Args: those of :class:`ActivationDataModule`.
    """

    kind = "controls"

    @cached_property
    def streams(self) -> dict[str, ActivationStream | MitigatedStream]:
        """View → its activations."""
        views = {"test": View(), "rotated": View(rotated=True)}
        if self.backbone.noise.mode in REPEATED:
            views["other_noise"] = View(reseed=1)
        return {name: self.mitigations.wrap(self.base_stream.viewed(view)) for name, view in views.items()}

    @property
    def views(self) -> list[str]:
        """What the test dataloaders bring, in order."""
        return list(self.streams)

    @property
    def photographs(self) -> list[str]:
        """Names of the photographs that tokens number."""
        return list(self.stream.photos)

    def test_dataloader(self) -> Any:
        """See the class."""
        return [self._whole_images(stream) for stream in self.streams.values()]

    def _encode(self) -> None:
        """Rotated test images, too."""
        super()._encode()
        self.streams["rotated"].store.prepare(self.split["test"])
