"""StreamDataModule: what all data modules share: images behind a frozen network, encoded once, mitigated, described.

Data path steps 1 to 6.
"""

import time
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, TypedDict

from lightning import LightningDataModule

from datamodules.images.source import ImageSource
from datamodules.labels import Labels
from datamodules.latents import LatentCache, LatentStore
from datamodules.mitigated import Mitigations
from datamodules.stream import ActivationStream, Pass
from sdprobe.backbones import FrozenSD
from sdprobe.mitigations.base import Configured
from sdprobe.utilities import settings
from sdprobe.utilities.distributed import Processes
from sdprobe.utilities.errors import InputError


class StreamOptions(TypedDict, total=False):
    """Settings of every data module.

    timestep: noise level in [0, 1000). seed: keys splits, noise, token draws and mixing. prompt: conditioning text of every
    image. batch_size: images per U-Net and encoder pass. cache_dir: where latents are kept. num_workers: processes that
    decode images. mitigation: label → mitigation, applied in this order; fitted on the fit split. compare: apply each
    alone, as a variant of every layer beside the layer itself, see :mod:`sdprobe.tokens.keys`.
    """

    timestep: int
    seed: int
    prompt: str
    batch_size: int
    cache_dir: str
    num_workers: int
    mitigation: Mapping[str, Configured] | None
    compare: bool


class StreamDataModule(LightningDataModule):
    """Streams frozen activations. Several processes, one per device, share encoding and passes of the network; every one
    of them gets every batch, so no number depends on how many they are.

    A subclass says which images it uses (:attr:`used`, :attr:`fit_images`) and what its dataloaders bring.

    Args:
        images: an image source.
        backbone: a frozen checkpoint.
        block: layers, as a user types them; see :func:`sdprobe.backbones.layers.resolve`.
        labels: file of hand-labelled high-norm tokens, see :class:`~datamodules.labels.Labels`.
        labels_side: tokens a side of the grid they were made on.
        timestep, seed, prompt, batch_size, cache_dir, num_workers, mitigation, compare: see :class:`StreamOptions`.

    ``kind`` is the choice of ``datamodule=`` that makes it.

    Raises:
        InputError: an unknown layer, a timestep out of range, an unusable option.
    """

    kind: ClassVar[str]

    def __init__(
        self,
        images: ImageSource,
        backbone: FrozenSD,
        block: str | Sequence[str],
        labels: str | None = None,
        labels_side: int = 32,
        *,
        timestep: int = 50,
        seed: int = 0,
        prompt: str = "",
        batch_size: int = 8,
        cache_dir: str = ".cache",
        num_workers: int = 0,
        mitigation: Mapping[str, Configured] | None = None,
        compare: bool = False,
    ) -> None:
        super().__init__()
        settings.check("datamodule", batch_size=batch_size, num_workers=num_workers)
        backbone.noise.check(timestep)
        self.images, self.backbone, self.seed = images, backbone, seed
        layers = backbone.unet.resolve(block)
        self.mitigations = Mitigations(mitigation, compare)
        self.shapes = self.mitigations.shapes(backbone.shapes(images.size, layers))
        self.store = LatentStore(images, backbone.encoder, LatentCache(cache_dir), seed, batch_size, num_workers)
        marks = Labels(labels, labels_side, images) if labels else None
        self.base_stream = ActivationStream(backbone, self.store, Pass(layers, timestep, seed, prompt), batch_size, marks)
        self.stream = self.mitigations.wrap(self.base_stream)
        self.split: dict[str, list[int]] = {}
        self.seconds: dict[str, float] = {}
        self._prepared = False

    @property
    def layers(self) -> tuple[str, ...]:
        """Layers, and variants of them, that batches have."""
        return tuple(self.shapes)

    @property
    def photos(self) -> int:
        """Number of photographs; photo indices of batches lie below it."""
        return len(self.base_stream.photos)

    @property
    def used(self) -> list[int]:
        """Images that probes see."""
        return [i for name, indices in self.split.items() if name != "fit" for i in indices]

    @property
    def fit_images(self) -> list[int]:
        """Images that mitigations are fitted on; none where nothing is fitted."""
        return self.split["fit"] if self.mitigations.needs_fit else []

    def prepare_data(self) -> None:
        """Encode what the latent cache lacks. Several processes call this together before they call a Trainer, which would
        ask one of them only."""
        if self._prepared:
            return
        started = time.perf_counter()
        self._encode()
        self.seconds["encode"] = time.perf_counter() - started
        self._prepared = True

    def setup(self, stage: str) -> None:
        """Fit the mitigations."""
        started = time.perf_counter()
        self.mitigations.fit(self.base_stream, self.fit_images, self.used)
        self.seconds.setdefault("fit", time.perf_counter() - started)

    def release(self) -> None:
        """Let go of everything kept on the device."""
        self.backbone.to("cpu")

    def describe(self) -> dict[str, Any]:
        """What identifies the data in a run's record."""
        used = list(dict.fromkeys([*self.used, *self.fit_images]))
        encoded = self.store.encoded
        return self.backbone.describe() | {
            "dataset_fingerprint": self.store.fingerprint(used),
            "images": {name: len(indices) for name, indices in self.split.items()},
            "photographs": {name: len({self.images.photo(i) for i in part}) for name, part in self.split.items()},
            "skipped": self.store.skipped,
            "labels": labels.digest if (labels := self.base_stream.labels) else None,
            "latents": {"reused": len(Processes.current().shard(used)) - encoded, "encoded": encoded},
            "passes": self.backbone.passes,
            "mitigations": self.mitigations.describe(self.images.size),
        }

    def _encode(self) -> None:
        """Encode the images of every split in use, and leave out what cannot be decoded.

        Raises:
            InputError: nothing of a split can be decoded.
        """
        names = [name for name in self.split if name != "fit" or self.fit_images]
        usable = set(self.store.prepare(list(dict.fromkeys(i for name in names for i in self.split[name]))))
        for name in names:
            wanted = self.split[name]
            self.split[name] = [i for i in wanted if i in usable]
            if wanted and not self.split[name]:
                raise InputError(f"Expected images for the {name} split, but none can be decoded. Check the image source.")
        self.mitigations.prepare(self.base_stream, self.used, self.fit_images)
