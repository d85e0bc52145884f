"""StreamDataModule: the base of all data modules. It encodes images once and streams their mitigated activations.

Data path steps 1 to 6.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, TypedDict

from lightning import LightningDataModule

from datamodules.images.source import ImageSource
from datamodules.labels import Labels
from datamodules.latents import LatentCache, LatentStore
from datamodules.mitigated import Mitigations, provenance
from datamodules.stream import ActivationStream, Pass
from sdprobe.backbones import FrozenSD
from sdprobe.mitigations.base import Configured
from sdprobe.tokens.keys import cells, is_energy_control
from sdprobe.utilities import progress, settings
from sdprobe.utilities.distributed import Processes
from sdprobe.utilities.errors import InputError


class StreamOptions(TypedDict, total=False):
    """Keyword arguments that every data module takes.

    Args:
        timestep: noise level of the network's input, an integer in [0, 1000), or several in ascending order, at each of which
            every layer is read under a name such as ``mid__t261``. The default is 50, as in the published study.
        seed: seed of splits, noise, token draws and mixing, an integer; 0 by default.
        prompt: text that conditions the network, the same for every image; empty by default.
        batch_size: images per pass of the U-Net and of the encoder, at least 1; 8 by default. It changes speed and memory only.
        cache_dir: folder in which latents and fitted mitigations are kept; ``.cache`` by default.
        num_workers: worker processes that decode images; 0, the default, decodes in the main process.
        mitigation: label → mitigation. They are fitted on the fit split and applied in this order. None, the default, for none.
        compare: apply each mitigation alone, as a variant of every layer beside the layer itself, see
            :mod:`sdprobe.tokens.keys`, and beside its control of equal energy; False by default. Networks with random weights
            have no such controls.
        inside: apply the mitigations to the first layer of ``block`` while the network runs, and read all layers from that
            pass; False by default. Otherwise they are applied to every layer after it is read.
    """

    timestep: int | Sequence[int]
    seed: int
    prompt: str
    batch_size: int
    cache_dir: str
    num_workers: int
    mitigation: Mapping[str, Configured] | None
    compare: bool
    inside: bool


class StreamDataModule(LightningDataModule):
    """Base class of all data modules: it streams frozen activations.

    Several worker processes, one per device, share the encoding of images and the passes of the network. Each of them gets
    every batch, so no number depends on how many there are.

    A subclass fills ``split``, says which images it uses (:attr:`used`, :attr:`fit_images`) and defines the dataloaders.
    ``kind`` is its name in ``datamodule=``.

    Args:
        images: an image source, see :class:`~datamodules.images.source.ImageSource`.
        backbone: a frozen checkpoint.
        block: layers to read: a name, a list of names, a glob such as ``up_*``, ``stages``, ``all`` or ``loos2025``; see
            :func:`sdprobe.backbones.layers.resolve`.
        labels: file of hand-labelled high-norm tokens, see :class:`~datamodules.labels.Labels`; None for none.
        labels_side: tokens per side of the grid that was labelled; 32 is that of the published labels.
        timestep: noise level in [0, 1000), or several in ascending order.
        seed: seed of splits, noise, token draws and mixing.
        prompt: text that conditions the network.
        batch_size: images per pass of the U-Net and of the encoder, at least 1.
        cache_dir: folder of latents and fitted mitigations.
        num_workers: worker processes that decode images, at least 0.
        mitigation: label → mitigation, or None.
        compare: apply each mitigation alone, as a variant of every layer.
        inside: apply the mitigations to the first layer while the network runs.

    The arguments from ``timestep`` on are explained at :class:`StreamOptions`.

    Raises:
        InputError: an unknown layer, timesteps out of range or order, an option out of range, labels that cannot be read.
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
        timestep: int | Sequence[int] = 50,
        seed: int = 0,
        prompt: str = "",
        batch_size: int = 8,
        cache_dir: str = ".cache",
        num_workers: int = 0,
        mitigation: Mapping[str, Configured] | None = None,
        compare: bool = False,
        inside: bool = False,
    ) -> None:
        super().__init__()
        settings.check("datamodule", batch_size=batch_size, num_workers=num_workers)
        timesteps = backbone.noise.steps(timestep)
        settings.check("", timestep=timesteps)
        self.images, self.backbone, self.seed = images, backbone, seed
        layers = backbone.unet.resolve(block)
        trained = not backbone.weights.startswith("random")  # random networks are a baseline
        edited = backbone.u_net().edited(layers) if inside else ""
        self.mitigations = Mitigations(mitigation, compare, edited, trained, seed)
        shapes = backbone.shapes(images.size, layers)
        self.shapes = self.mitigations.shapes({name: shapes[layer] for name, (layer, _) in cells(layers, timesteps).items()})
        self.store = LatentStore(images, backbone.encoder, LatentCache(cache_dir), seed, batch_size, num_workers)
        marks = Labels(labels, labels_side, images) if labels else None
        self.base_stream = ActivationStream(backbone, self.store, Pass(layers, timesteps, seed, prompt), batch_size, marks)
        self.stream = self.mitigations.wrap(self.base_stream)
        self.split: dict[str, list[int]] = {}
        self.tested = "test"
        self.seconds: dict[str, float] = {}
        self._prepared = False

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the layers and of their variants. Batches also have the controls of variants."""
        return tuple(name for name in self.shapes if not is_energy_control(name))

    @property
    def timestep(self) -> int | list[int]:
        """The noise level, or all of them."""
        return self.base_stream.reads.timestep

    @property
    def noise_level(self) -> float | list[float]:
        """σ of the noise level, or of all of them; see :attr:`sdprobe.backbones.noise.NoiseSchedule.noise_levels`."""
        levels = self.backbone.noise.noise_levels[list(self.base_stream.reads.timesteps)].tolist()
        return levels if len(levels) > 1 else levels[0]

    @property
    def photos(self) -> int:
        """Number of photographs; the photo indices of batches are smaller."""
        return len(self.base_stream.photos)

    @property
    def used(self) -> list[int]:
        """Indices of the images that probes see."""
        return [i for name, indices in self.split.items() if name != "fit" for i in indices]

    @property
    def fit_images(self) -> list[int]:
        """Indices of the images that mitigations are fitted on; none where nothing is fitted."""
        return self.split["fit"] if self.mitigations.needs_fit else []

    def prepare_data(self) -> None:
        """Encode the images that the latent cache lacks.

        On several devices all processes call this together, before they call a Trainer: it would call it in one process only.

        Raises:
            InputError: a picture cannot be decoded, or no picture of a split can.
        """
        if self._prepared:
            return
        started = time.perf_counter()
        with progress.step("encode images", "image") as step:
            self._encode()
            step.note = "" if step.done else "all in the cache"
        self.seconds["encode"] = time.perf_counter() - started
        self._prepared = True

    def validate_choice(self) -> int:
        """Keep the validation split for a choice among layers.

        Returns:
            its number of photographs.
        """
        return len({self.images.photo(i) for i in self.split.get("val", ())})

    @contextmanager
    def testing(self, split: str) -> Iterator[None]:
        """Test on another split.

        Args:
            split: ``val`` or ``test``.

        Returns:
            a context manager: within its block the test dataloader has the images of this split.
        """
        self.tested = split
        try:
            yield
        finally:
            self.tested = "test"

    def counts(self) -> str:
        """Return in words how many images each split has, and how many photographs they show."""
        parts = {name: part for name, part in self.split.items() if part and (name != "fit" or self.fit_images)}
        used = {index for part in parts.values() for index in part}
        photos = len({self.images.photo(index) for index in used})
        of = f" of {photos} photographs" if photos < len(used) else ""
        return f"{len(used)} images{of}: {', '.join(f'{name} {len(part)}' for name, part in parts.items())}"

    def steps(self, trains: bool) -> list[str]:
        """What :meth:`prepare_data` and :meth:`setup` do, in the order in which the plan of a run numbers them.

        Args:
            trains: whether the probe has an optimiser.

        Returns:
            names of the steps, in their order.
        """
        return ["encode images", *(["fit mitigations"] if self.mitigations.needs_fit else [])]

    def setup(self, stage: str) -> None:
        """Fit the mitigations, or load their fits from the cache.

        Raises:
            InputError: there are no images to fit on, or fit images are tested.
        """
        started = time.perf_counter()
        self.mitigations.fit(self.base_stream, self.fit_images, self.used)
        self.seconds.setdefault("fit", time.perf_counter() - started)

    def release(self) -> None:
        """Free the memory of the device: the network moves to the CPU."""
        self.backbone.to("cpu")

    def describe(self) -> dict[str, Any]:
        """The data of a run, for its record.

        Returns:
            JSON values by name: checkpoint, dataset fingerprint, numbers of images and photographs per split, skipped images,
            reused and encoded latents, passes of the network, mitigations.
        """
        used = list(dict.fromkeys([*self.used, *self.fit_images]))
        encoded = self.store.encoded
        return self.backbone.describe() | {
            "dataset_fingerprint": self.store.fingerprint(used),
            "test_fingerprint": self.store.fingerprint(self.split.get("test", [])),
            "images": {name: len(indices) for name, indices in self.split.items()},
            "photographs": {name: len({self.images.photo(i) for i in part}) for name, part in self.split.items()},
            "drawn": getattr(self.images, "drawn", None),
            "skipped": self.store.skipped,
            "labels": labels.digest if (labels := self.base_stream.labels) else None,
            "latents": {"reused": len(Processes.current().shard(used)) - encoded, "encoded": encoded},
            "passes": self.backbone.passes,
            "mitigations": self.mitigations.describe(self.images.size),
            **self._inside,
        }

    @property
    def fitted_on(self) -> dict[str, Any]:
        """What the record of fitted heads says of their activations; JSON-serialisable."""
        backbone = {name: self.backbone.describe()[name] for name in ("model", "precision")}
        layers = list(self.base_stream.reads.layers)
        described = {"layers": layers, "mitigations": self.mitigations.named()} | self._inside
        return backbone | provenance(self.base_stream) | described

    @property
    def _inside(self) -> dict[str, str]:
        """The layer that is edited inside the network, if there is one, as the record of a run has it."""
        return {"inside": self.mitigations.inside} if self.mitigations.inside else {}

    def _encode(self) -> None:
        """Encode the images of every split in use, and leave out those that cannot be decoded.

        Raises:
            InputError: no image of a split can be decoded.
        """
        self._keep_usable(self.store)
        self.mitigations.prepare(self.base_stream, self.used, self.fit_images)

    def _keep_usable(self, store: LatentStore) -> None:
        """Encode the images of every split in use in the view of a store, and leave out those that cannot be decoded."""
        names = [name for name in self.split if name != "fit" or self.fit_images]
        usable = set(store.prepare(list(dict.fromkeys(i for name in names for i in self.split[name]))))
        for name in names:
            wanted = self.split[name]
            self.split[name] = [i for i in wanted if i in usable]
            if wanted and not self.split[name]:
                raise InputError(f"Expected images for the {name} split, but none can be decoded. Check the image source.")
