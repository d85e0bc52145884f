"""ActivationDataModule: images → TokenBatches of every requested layer, streamed from the accelerator.

It holds the splits and the tokens that stay on the device between epochs. ControlsDataModule also streams the test images
rotated and with another noise tensor.
"""

import time
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any, Unpack

from datamodules.base import StreamDataModule, StreamOptions
from datamodules.images.source import ImageSource
from datamodules.loaders import GridLoader, Loader
from datamodules.mitigated import MitigatedStream
from datamodules.stream import ActivationStream, DeviceCache
from sdprobe.backbones import FrozenSD
from sdprobe.tokens.batch import GridBatch, TokenBatch
from sdprobe.tokens.mixing import (
    CELLS,
    STEPS_PER_EPOCH,
    all_tokens,
    batches_per_pass,
    draw_tokens,
    flattened,
    training_pass,
)
from sdprobe.tokens.splits import split_by_photo
from sdprobe.tokens.views import View
from sdprobe.utilities import progress, settings

REPEATED = ("shared", "rolled")  # noise modes in which all images get the same tensor


class ActivationDataModule(StreamDataModule):
    """Streams tokens to probes: drawn and mixed for training, one image per batch for validation, all of them for testing.

    The batches are :class:`~sdprobe.tokens.batch.TokenBatch` with tokens (N, C) of every layer.

    Args:
        images: an image source, see :class:`~datamodules.images.source.ImageSource`.
        backbone: a frozen checkpoint.
        block: layers to read, see :class:`~datamodules.base.StreamDataModule`.
        splits: ``default`` (40 % fit, 32 % train, 8 % val, 20 % test) or ``loos2025`` (80 % train, 20 % test); see
            :func:`~sdprobe.tokens.splits.split_by_photo`.
        sampling: ``stratified`` draws 64 tokens per image and layer, so that layers of every size weigh the same; ``all``
            takes every token, as the published study does, and one pass over the images is an epoch.
        token_batch: tokens per layer and training step, at least 1; 512 is the published study's.
        mixing_images: images whose tokens are mixed with one another, at least 1; more need more memory.
        activation_budget: GiB of tokens that stay on the device between epochs, at least 0; the others are computed again. It
            changes the speed, never the numbers.
        labels: file of hand-labelled high-norm tokens, see :class:`~datamodules.labels.Labels`; None for none.
        labels_side: tokens per side of the labelled grid; 32 is that of the published labels.
        **options: settings of every data module, see :class:`~datamodules.base.StreamOptions`.

    Raises:
        InputError: fewer than 10 photographs, an unknown layer, an option out of range.

    Example:
        >>> from datamodules.images.texture import LatentTextures
        >>> from sdprobe import FrozenSD
        >>> data = ActivationDataModule(LatentTextures(size=128, limit=20), FrozenSD.from_pretrained("tiny"), ["mid", "up_1"])
        >>> data.shapes
        {'mid': (64, 2, 2), 'up_1': (64, 8, 8)}
        >>> {split: len(indices) for split, indices in data.split.items()}
        {'fit': 8, 'train': 6, 'val': 2, 'test': 4}
        >>> data.prepare_data()
        >>> data.setup("test")
        >>> batch = next(iter(data.test_dataloader()))
        >>> {layer: tuple(tokens.shape) for layer, tokens in batch.tokens.items()}
        {'mid': (16, 64), 'up_1': (256, 64)}
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

    def steps(self, trains: bool) -> list[str]:
        """Return the names of the steps: those of every data module, and the extraction of tokens that stay on the device."""
        return [*super().steps(trains), *(["extract activations"] if trains and not self.resident.full else [])]

    def setup(self, stage: str) -> None:
        """Fit the mitigations; before training with an optimiser, extract the tokens that stay on the device."""
        super().setup(stage)
        if stage != "fit" or not (self.trainer is None or self.trainer.lightning_module.automatic_optimization):
            return
        wanted = [i for i in (*self.split["train"], *self.split["val"]) if i not in self.resident]
        if not wanted or self.resident.full:
            return
        started = time.perf_counter()
        with progress.step("extract activations", "image") as step:
            step.begin(total=len(wanted))
            while wanted and (room := self.resident.capacity()):
                size = min(room, self.stream.step)
                group, wanted = wanted[:size], wanted[size:]
                for index, piece in self._computed(group):
                    self.resident.add(index, piece)
                    step.advance()
        self.seconds["extract"] = time.perf_counter() - started

    def train_dataloader(self) -> "Loader[TokenBatch]":
        """Training tokens, mixed.

        Returns:
            Batches of ``token_batch`` tokens per layer. An epoch passes over the images until it has :data:`STEPS_PER_EPOCH`
            steps. It passes once where every token is taken, and for probes without an optimiser, which only add up sums.
        """
        assert self.trainer is not None
        steps = self._steps_per_pass()
        once = self.sampling == "all" or not self.trainer.lightning_module.automatic_optimization
        passes = 1 if once else -(-STEPS_PER_EPOCH // steps)
        return Loader(lambda: self._train_epoch(passes), passes * steps)

    def val_dataloader(self) -> "Loader[TokenBatch] | list[Any]":
        """Return the drawn tokens of the validation images, one image per batch; empty without a val split."""
        indices = self.split["val"]
        return Loader(lambda: self._pieces(indices), len(indices)) if indices else []

    def test_dataloader(self) -> Any:
        """Return every token of the test images, ``batch_size`` images per batch, in their order."""
        return self._whole_images(self.stream)

    def release(self) -> None:
        """Free the memory of the device: the network and the kept tokens."""
        super().release()
        self.resident.clear()

    def describe(self) -> dict[str, Any]:
        """Return the description of :class:`~datamodules.base.StreamDataModule`, and how many images stay on the device."""
        resident = sum(i in self.resident for name in ("train", "val") for i in self.split[name])
        return super().describe() | {"resident_images": resident}

    def _train_epoch(self, passes: int) -> Iterator[TokenBatch]:
        assert self.trainer is not None
        for number in range(passes):
            sizes = (self.mixing_images, self.token_batch)
            yield from training_pass(self.split["train"], self._pieces, *sizes, self.seed, self.trainer.current_epoch, number)

    def _whole_images(self, stream: ActivationStream | MitigatedStream) -> "Loader[TokenBatch]":
        """Every token of the tested images of a stream."""
        grids = GridLoader(stream, self.split[self.tested])
        return Loader(lambda: map(self._flattened, grids), len(grids))

    def _pieces(self, indices: Sequence[int]) -> Iterator[TokenBatch]:
        """Drawn tokens per image, in order; those on the device are reused, the others are computed in full batches."""
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
    """An :class:`ActivationDataModule` that streams the test images in several views, one test dataloader each.

    The views are ``test`` (the images as they are), ``rotated`` (rotated by 180° before they are encoded, with unchanged
    noise) and, where images share a noise tensor, ``other_noise`` (with the noise of seed + 1). Each brings every token.

    Args:
        images: an image source.
        backbone: a frozen checkpoint.
        block: layers to read.
        splits: ``default`` or ``loos2025``.
        sampling: ``stratified`` or ``all``.
        token_batch: tokens per layer and training step.
        mixing_images: images that are mixed with one another.
        activation_budget: GiB of tokens that stay on the device between epochs.
        labels: file of hand-labelled high-norm tokens, or None.
        labels_side: tokens per side of the labelled grid.
        **options: settings of every data module, see :class:`~datamodules.base.StreamOptions`.

    Raises:
        InputError: as :class:`ActivationDataModule`.

    Example:
        >>> from datamodules.images.texture import LatentTextures
        >>> from sdprobe import FrozenSD
        >>> sd = FrozenSD.from_pretrained("tiny", noise="shared")
        >>> data = ControlsDataModule(LatentTextures(size=128, limit=20), sd)
        >>> data.views
        ['test', 'rotated', 'other_noise']
    """

    kind = "controls"

    @cached_property
    def streams(self) -> dict[str, ActivationStream | MitigatedStream]:
        """View → stream of its activations."""
        views = {"test": View(), "rotated": View(rotated=True)}
        if self.backbone.noise.mode in REPEATED:
            views["other_noise"] = View(reseed=1)
        return {name: self.mitigations.wrap(self.base_stream.viewed(view)) for name, view in views.items()}

    @property
    def views(self) -> list[str]:
        """Names of the views, in the order of the test dataloaders."""
        return list(self.streams)

    @property
    def photographs(self) -> list[str]:
        """Names of the photographs, by the photo indices of batches."""
        return list(self.stream.photos)

    def test_dataloader(self) -> Any:
        """Return every token of the test images, one dataloader per view."""
        return [self._whole_images(stream) for stream in self.streams.values()]

    def _encode(self) -> None:
        """Also encode the rotated test images."""
        super()._encode()
        self.streams["rotated"].store.prepare(self.split["test"])
