"""ActivationDataModule: images → TokenBatches of every requested layer, streamed from the accelerator.

It owns the splits, the latent cache, the stream and the tokens that stay on the device between epochs. ControlsDataModule
adds the test images once more: rotated, and under another noise tensor.
"""

import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from lightning import LightningDataModule
from rich.progress import Progress

from datamodules.images.source import ImageSource
from datamodules.images.views import rotated
from datamodules.labels import Labels
from datamodules.latents import LatentCache, LatentStore
from datamodules.mitigated import MitigatedStream, Mitigations
from datamodules.mixing import (
    CELLS,
    Loader,
    all_tokens,
    batches_per_pass,
    concatenate,
    draw_tokens,
    flattened,
    mixing_buffer,
    padded,
    placeholder,
    shared,
)
from datamodules.splits import split_by_photo
from datamodules.stream import ActivationStream, DeviceCache
from sdprobe.backbones import FrozenSD
from sdprobe.mitigations.base import Configured
from sdprobe.tokens.batch import GridBatch, TokenBatch
from sdprobe.utilities import expect
from sdprobe.utilities.distributed import Processes
from sdprobe.utilities.errors import InputError
from sdprobe.utilities.rng import keyed_generator

# one Lightning epoch holds at least so many steps: validation, checkpoints and progress bars come once per epoch
STEPS_PER_EPOCH = 100
REPEATED = ("shared", "rolled")  # noise that images have in common


class ActivationDataModule(LightningDataModule):
    """Streams frozen activations to probes.

    Several processes, one per device, compute disjoint shares of the images. They train on the same batches, each on the
    tokens of its own images (``TokenBatch.here``), so no number depends on how many they are; see ``datamodules/mixing.py``.

    Args:
        images: an image source.
        backbone: a frozen checkpoint.
        block: layers, as a user types them; see :func:`sdprobe.backbones.layers.resolve`.
        timestep: noise level in [0, 1000).
        seed: keys splits, noise, token draws and mixing.
        prompt: conditioning text of every image.
        splits: ``default`` or ``loos2025``; see :func:`~datamodules.splits.split_by_photo`.
        sampling: ``stratified`` draws 64 tokens per image and layer; ``all`` takes every token, and one pass over the
            images is an epoch.
        batch_size: images per U-Net and encoder pass.
        token_batch: tokens per layer and training step.
        mixing_images: images per mixing block.
        activation_budget: GiB of tokens that may stay on the device between epochs; the rest is recomputed. Changes the
            speed, never the numbers.
        cache_dir: where latents are kept.
        num_workers: processes that decode images.
        labels: file of hand-labelled high-norm tokens, see :class:`~datamodules.labels.Labels`.
        labels_side: tokens a side of the grid they were made on.
        mitigation: label → mitigation, applied in this order; fitted on the fit split.
        compare: apply each alone, as a variant of every layer beside the layer itself, see :mod:`sdprobe.tokens.keys`.

    Raises:
        InputError: an unknown layer, a timestep out of range, too few photographs, an unusable option.
    """

    def __init__(
        self,
        images: ImageSource,
        backbone: FrozenSD,
        block: str | Sequence[str] = "mid",
        timestep: int = 50,
        seed: int = 0,
        prompt: str = "",
        splits: str = "default",
        sampling: str = "stratified",
        batch_size: int = 8,
        token_batch: int = 512,
        mixing_images: int = 32,
        activation_budget: float = 2.0,
        cache_dir: str = ".cache",
        num_workers: int = 0,
        labels: str | None = None,
        labels_side: int = 32,
        mitigation: Mapping[str, Configured] | None = None,
        compare: bool = False,
    ) -> None:
        super().__init__()
        expect.one_of("datamodule.sampling", sampling, ("stratified", "all"))
        for name, value in {"batch_size": batch_size, "token_batch": token_batch, "mixing_images": mixing_images}.items():
            expect.at_least(f"datamodule.{name}", value, 1)
        expect.at_least("datamodule.num_workers", num_workers, 0)
        expect.at_least("activation_budget", activation_budget, 0)
        backbone.noise.check(timestep)
        self.images = images
        self.backbone = backbone
        layers = backbone.unet.resolve(block)
        self.mitigations = Mitigations(mitigation, compare)
        self.shapes = self.mitigations.shapes(backbone.shapes(images.size, layers))
        self.layers = tuple(self.shapes)
        self.seed = seed
        self.sampling = sampling
        self.token_batch = token_batch
        self.mixing_images = mixing_images
        self.split = split_by_photo([images.photo(i) for i in range(len(images))], splits, seed)
        self.store = LatentStore(images, backbone.encoder, LatentCache(cache_dir), seed, batch_size, num_workers)
        marks = Labels(labels, labels_side, images) if labels else None
        self.raw = ActivationStream(backbone, self.store, layers, timestep, seed, prompt, batch_size, marks)
        self.stream = self.mitigations.wrap(self.raw)
        self.photos = len(self.stream.photos)
        self.resident: DeviceCache[TokenBatch] = DeviceCache(activation_budget)
        self.processes = Processes()
        self.seconds: dict[str, float] = {}
        self._prepared = False

    def prepare_data(self) -> None:
        """Encode what the latent cache lacks. The fit images (A) stay untouched unless something is fitted.

        Several processes call this together before they call a Trainer, which would ask one of them only.
        """
        if self._prepared:
            return
        self.processes = Processes.current()
        started = time.perf_counter()
        names = ("fit", "train", "val", "test") if self.mitigations.needs_fit else ("train", "val", "test")
        usable = set(self.store.prepare([i for name in names for i in self.split[name]], self.processes))
        for name in names:
            wanted = self.split[name]
            self.split[name] = [i for i in wanted if i in usable]
            if wanted and not self.split[name]:
                raise InputError(f"Expected images for the {name} split, but none can be decoded. Check the image source.")
        used = [i for name in ("train", "val", "test") for i in self.split[name]]
        self.mitigations.prepare(self.raw, used, self.split["fit"])
        self.seconds["encode"] = time.perf_counter() - started
        self._prepared = True

    def setup(self, stage: str) -> None:
        """Fit the mitigations; before training in epochs, extract the tokens that may stay on the device."""
        self._fit_mitigations()
        if stage != "fit" or not (self.trainer is None or self.trainer.lightning_module.automatic_optimization):
            return
        wanted = [i for i in (*self._own("train"), *self._own("val")) if i not in self.resident]
        if not wanted or self.resident.full:
            return
        started = time.perf_counter()
        with Progress(*Progress.get_default_columns(), disable=self.processes.rank > 0) as progress:
            task = progress.add_task("extracting activations", total=len(wanted))
            while wanted and (room := self.resident.capacity()):
                size = min(room, self.stream.batch_size)
                group, wanted = wanted[:size], wanted[size:]
                for index, piece in self._computed(group):
                    self.resident.add(index, piece)
                    progress.advance(task)
            progress.update(task, total=progress.tasks[task].completed)
        own = set(self._own("train"))
        for index in (index for index in self.split["train"] if index not in own):
            self.resident.add(index, self._placeholder(index))
        self.seconds["extract"] = time.perf_counter() - started

    def _fit_mitigations(self) -> None:
        started = time.perf_counter()
        self.mitigations.fit(self.raw, self.split["fit"], [i for name in ("train", "val", "test") for i in self.split[name]])
        self.seconds.setdefault("fit", time.perf_counter() - started)

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
        indices, length = self._own("val"), self.processes.largest(len(self.split["val"]))
        return Loader(lambda: padded(self._pieces(indices), length, len(indices)), length) if length else []

    def test_dataloader(self) -> "Loader[TokenBatch]":
        """Every token of the test images, unmixed."""
        indices, size = self._own("test"), self.stream.batch_size
        groups = [indices[start : start + size] for start in range(0, len(indices), size)]
        length = -(-self.processes.largest(len(self.split["test"])) // size)
        # one batch per group even if the stream halves its own: Lightning stops at the length it was told
        return Loader(lambda: padded(map(self._tested, groups), length, len(groups)), length)

    def release(self) -> None:
        """Let go of everything kept on the device."""
        self.backbone.to("cpu")
        self.resident.clear()

    def describe(self) -> dict[str, Any]:
        """What identifies the data in a run's record."""
        used = [i for name in ("train", "val", "test") for i in self.split[name]]
        return self.backbone.describe() | {
            "dataset_fingerprint": self.store.fingerprint([*used, *(self.split["fit"] if self.mitigations.needs_fit else [])]),
            "images": {name: len(indices) for name, indices in self.split.items()},
            "photographs": {name: len({self.images.photo(i) for i in part}) for name, part in self.split.items()},
            "skipped": self.store.skipped,
            "labels": self.stream.labels.digest if self.stream.labels else None,
            "latents": {"reused": len(self.processes.share(used)) - self.store.encoded, "encoded": self.store.encoded},
            "resident_images": sum(i in self.resident for name in ("train", "val") for i in self._own(name)),
            "passes": self.backbone.passes,
            "mitigations": self.mitigations.describe(self.images.size),
        }

    def _train_epoch(self, passes: int) -> Iterator[TokenBatch]:
        assert self.trainer is not None
        for number in range(passes):
            key = ("train", self.seed, self.trainer.current_epoch, number)
            shuffle = torch.randperm(len(self.split["train"]), generator=keyed_generator("images", *key))
            pieces = self._pieces([self.split["train"][i] for i in shuffle], set(self._own("train")))
            if self.processes.count > 1:
                pieces = map(shared, pieces)
            yield from mixing_buffer(pieces, self.mixing_images, self.token_batch, *key)

    def _own(self, name: str) -> list[int]:
        """The images of a split that this process computes."""
        return self.processes.share(self.split[name])

    def _placeholder(self, index: int) -> TokenBatch:
        draw = None if self.sampling == "all" else (self.seed, self.images.name(index))
        return placeholder(self.shapes, draw, self._label(index), self.backbone.device, self.backbone.dtype)

    def _label(self, index: int) -> int:
        """What ``photo`` holds for an image."""
        return self.stream.photos[self.images.photo(index)]

    def _pieces(self, indices: Sequence[int], own: Collection[int] | None = None) -> Iterator[TokenBatch]:
        """Drawn tokens per image, in order; resident ones are reused, the others computed in full batches, or left to
        another process where they are not among its ``own``."""
        queue: list[int] = []
        lacking = 0
        for index in indices:
            queue.append(index)
            lacking += self._lacks(index, own)
            if lacking in (0, self.stream.batch_size):
                yield from self._served(queue, own)
                queue, lacking = [], 0
        yield from self._served(queue, own)

    def _lacks(self, index: int, own: Collection[int] | None) -> bool:
        return index not in self.resident and (own is None or index in own)

    def _served(self, indices: Sequence[int], own: Collection[int] | None) -> Iterator[TokenBatch]:
        computed = dict(self._computed([i for i in indices if self._lacks(i, own)]))
        for index in indices:
            if index in computed:
                yield computed.pop(index)
            else:
                yield self.resident[index] if index in self.resident else self._placeholder(index)

    def _tested(self, indices: Sequence[int]) -> TokenBatch:
        """Every token of some images."""
        return concatenate([flattened(batch) for batch in self._whole(indices)])

    def _computed(self, indices: Sequence[int]) -> Iterator[tuple[int, TokenBatch]]:
        for batch in self.stream(indices):
            yield from zip(batch.image.tolist(), self._drawn(batch), strict=True)

    def _whole(self, indices: Sequence[int]) -> Iterator[GridBatch]:
        yield from self.stream(indices)

    def _drawn(self, batch: GridBatch) -> list[TokenBatch]:
        if self.sampling == "all":
            return all_tokens(batch)
        return draw_tokens(batch, [self.images.name(i) for i in batch.image.tolist()], self.seed)

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

    @cached_property
    def streams(self) -> dict[str, ActivationStream | MitigatedStream]:
        """View → its activations."""
        store = self.store
        turned = LatentStore(rotated(self.images), store.encoder, store.cache, self.seed, store.batch_size, store.num_workers)
        streams: dict[str, ActivationStream | MitigatedStream] = {
            "test": self.stream,
            "rotated": self._stream(turned, self.seed),
        }
        if self.backbone.noise.mode in REPEATED:
            streams["other_noise"] = self._stream(store, self.seed + 1)
        return streams

    @property
    def views(self) -> list[str]:
        """What the test dataloaders bring, in order."""
        return list(self.streams)

    @property
    def photographs(self) -> list[str]:
        """Names of the photographs that tokens number."""
        return list(self.stream.photos)

    def prepare_data(self) -> None:
        """Encode what the latent cache lacks, rotated test images included."""
        if self._prepared:
            return
        super().prepare_data()
        started = time.perf_counter()
        self.streams["rotated"].store.prepare(self.split["test"])
        self.seconds["encode"] += time.perf_counter() - started

    def test_dataloader(self) -> Any:
        """See the class."""
        return [self._tokens(stream) for stream in self.streams.values()]

    def _stream(self, store: LatentStore, seed: int) -> ActivationStream | MitigatedStream:
        whole = self.raw
        raw = ActivationStream(
            self.backbone, store, whole.layers, whole.timestep, seed, whole.prompt, whole.batch_size, whole.labels
        )
        return self.mitigations.wrap(raw)

    def _tokens(self, stream: ActivationStream | MitigatedStream) -> "Loader[TokenBatch]":
        indices, size = self.split["test"], stream.batch_size
        groups = [indices[start : start + size] for start in range(0, len(indices), size)]

        def batches() -> Iterator[TokenBatch]:
            for group in groups:
                yield concatenate([flattened(batch) for batch in stream(group)])

        return Loader(batches, len(groups))
