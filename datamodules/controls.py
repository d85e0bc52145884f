"""ControlsDataModule: position tokens as ever, and the test images once more: rotated, and under another noise tensor."""

import time
from collections.abc import Iterator
from functools import cached_property
from typing import Any

from datamodules.activations import ActivationDataModule
from datamodules.images.balanced import rotated
from datamodules.latents import LatentStore
from datamodules.loader import Loader
from datamodules.mitigated import MitigatedStream
from datamodules.mixing import concatenate
from datamodules.sampling import flattened
from datamodules.stream import ActivationStream
from tokens.batch import TokenBatch

REPEATED = ("shared", "rolled")  # noise that images have in common


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
        return self.mitigations.through(raw)

    def _tokens(self, stream: ActivationStream | MitigatedStream) -> "Loader[TokenBatch]":
        indices, size = self.split["test"], stream.batch_size
        groups = [indices[start : start + size] for start in range(0, len(indices), size)]

        def batches() -> Iterator[TokenBatch]:
            for group in groups:
                yield concatenate([flattened(batch) for batch in stream(group)])

        return Loader(batches, len(groups))
