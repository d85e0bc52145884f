"""GridDataModule: images → GridBatches of whole grids, for statistics that train nothing. Data path steps 1 to 6."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from jaxtyping import Bool
from lightning import LightningDataModule
from torch import Tensor

from datamodules.images.source import ImageSource
from datamodules.images.views import Cropped
from datamodules.labels import Labels
from datamodules.latents import LatentCache, LatentStore
from datamodules.mitigated import MitigatedStream, Mitigations
from datamodules.mixing import Loader
from datamodules.splits import split_by_photo
from datamodules.stream import ActivationStream
from sdprobe.backbones import FrozenSD
from sdprobe.mitigations.base import Configured
from sdprobe.tokens.batch import GridBatch, joined
from sdprobe.utilities import expect
from sdprobe.utilities.errors import InputError

VIEWS = ("whole", "cropped", "other_noise", "other_timestep")


class GridDataModule(LightningDataModule):
    """Whole activation grids: the fit split first (for the mean token), then every other image, once per view.

    Views, in the order of the test dataloaders: ``whole``; ``cropped`` by ``margin`` pixels on every side;
    ``other_noise`` and ``other_timestep``, both of the first ``repeats`` images only.

    Args:
        images, backbone, block, timestep, seed, prompt, splits, batch_size, cache_dir, num_workers, labels, labels_side: see
            :class:`~datamodules.activations.ActivationDataModule`. Without a fit split (``loos2025``) the training images
            give the mean token, and are measured too.
        margin: pixels to crop, a multiple of 64 where every grid must stay even.
        other_timestep: noise level of the view of that name; None takes 261, or 50 where ``timestep`` is 261.
        repeats: images of the last two views; 0 skips them. Without noise there is no other noise either.
        least: images to measure, at least: intervals are over 20 groups of two or more.
        mitigation, compare: as there; with one, the last two views are left out.

    Raises:
        InputError: an unknown layer, a timestep out of range, too few photographs, too large a margin.
    """

    def __init__(
        self,
        images: ImageSource,
        backbone: FrozenSD,
        block: str | Sequence[str] = "all",
        timestep: int = 50,
        seed: int = 0,
        prompt: str = "",
        splits: str = "default",
        margin: int = 64,
        other_timestep: int | None = None,
        repeats: int = 16,
        batch_size: int = 8,
        cache_dir: str = ".cache",
        num_workers: int = 0,
        labels: str | None = None,
        labels_side: int = 32,
        least: int = 40,
        mitigation: Mapping[str, Configured] | None = None,
        compare: bool = False,
    ) -> None:
        super().__init__()
        for name, value, low in (("batch_size", batch_size, 1), ("num_workers", num_workers, 0), ("repeats", repeats, 0)):
            expect.at_least(f"datamodule.{name}", value, low)
        if other_timestep is None:
            other_timestep = 50 if timestep == 261 else 261
        for step in (timestep, other_timestep):
            backbone.noise.check(step)
        if repeats and other_timestep == timestep:
            raise InputError(
                f"Expected datamodule.other_timestep to differ from timestep, but both are {timestep}. Choose another, or "
                "datamodule.repeats=0."
            )
        self.images, self.backbone = images, backbone
        layers = backbone.unet.resolve(block)
        self.mitigations = Mitigations(mitigation, compare)
        self.shapes = self.mitigations.shapes(backbone.shapes(images.size, layers))
        self.layers = tuple(self.shapes)
        self.margin, self.repeats = margin, repeats
        split = split_by_photo([images.photo(i) for i in range(len(images))], splits, seed)
        self.split = {"fit": split["fit"] or split["train"], "test": [*split["train"], *split["val"], *split["test"]]}
        measured = len(self.split["test"])
        if measured < least:
            raise InputError(
                f"Expected at least {least} images to measure, but only {measured} of {len(images)} are: the others give the "
                f"mean token. Use about {-(-least * len(images) // max(measured, 1))} images or more."
            )
        cache = LatentCache(cache_dir)
        self.stores = {
            "whole": LatentStore(images, backbone.encoder, cache, seed, batch_size, num_workers),
            "cropped": LatentStore(Cropped(images, margin), backbone.encoder, cache, seed, batch_size, num_workers),
        }

        def stream(store: str, step: int, noise: int, marks: Labels | None = None) -> ActivationStream:
            return ActivationStream(backbone, self.stores[store], layers, step, noise, prompt, batch_size, marks)

        self.raw = {
            "whole": stream("whole", timestep, seed, Labels(labels, labels_side, images) if labels else None),
            "cropped": stream("cropped", timestep, seed),
            "other_noise": stream("whole", timestep, seed + 1),
            "other_timestep": stream("whole", other_timestep, seed),
        }
        self.streams = {name: self.mitigations.wrap(each) for name, each in self.raw.items()}
        self.photos = len(self.raw["whole"].photos)
        self.seconds: dict[str, float] = {}
        self._prepared = False

    def prepare_data(self) -> None:
        """Encode what the latent cache lacks: all images whole, the measured ones cropped too."""
        if self._prepared:
            return
        started = time.perf_counter()
        usable = set(self.stores["whole"].prepare(list(dict.fromkeys([*self.split["fit"], *self.split["test"]]))))
        self.split = {name: [i for i in part if i in usable] for name, part in self.split.items()}
        for name, part in self.split.items():
            if not part:
                raise InputError(f"Expected images for the {name} split, but none can be decoded. Check the image source.")
        self.stores["cropped"].prepare(self.split["test"])
        self.mitigations.prepare(self.raw["whole"], self.split["test"], self.split["fit"])
        self.mitigations.prepare(self.raw["cropped"], self.split["test"], [])
        self.seconds["encode"] = time.perf_counter() - started
        self._prepared = True

    def setup(self, stage: str) -> None:
        """Fit the mitigations."""
        started = time.perf_counter()
        self.mitigations.fit(self.raw["whole"], self.split["fit"], self.split["test"])
        self.seconds.setdefault("fit", time.perf_counter() - started)

    def train_dataloader(self) -> "GridLoader":
        """The fit images, whole."""
        return self._loader("whole", self.split["fit"])

    def test_dataloader(self) -> "list[GridLoader]":
        """Every view of the measured images, in the order of VIEWS."""
        measured = self.split["test"]
        some = measured[: self.repeats] if self.mitigations.is_identity else []
        noisy = some if self.backbone.noise.mode != "none" else []
        parts = {"whole": measured, "cropped": measured, "other_noise": noisy, "other_timestep": some}
        return [self._loader(view, parts[view]) for view in VIEWS]

    def floor_cells(self, indices: Sequence[int]) -> dict[int, Bool[Tensor, "h w"]]:
        """Cells where the VAE's posterior variance lies on its floor in any channel, per image."""
        pictures = {index: self.images[index]["image"] for index in indices}
        return {index: self.backbone.encoder.floor_cells(picture[None])[0] for index, picture in pictures.items()}

    def release(self) -> None:
        """Let go of everything kept on the device."""
        self.backbone.to("cpu")

    def describe(self) -> dict[str, Any]:
        """What identifies the data in a run's record."""
        used = list(dict.fromkeys([*self.split["fit"], *self.split["test"]]))  # without a fit split some are in both
        stores = self.stores.values()
        encoded = sum(store.encoded for store in stores)
        return self.backbone.describe() | {
            "dataset_fingerprint": self.stores["whole"].fingerprint(used),
            "images": {name: len(indices) for name, indices in self.split.items()},
            "photographs": {name: len({self.images.photo(i) for i in part}) for name, part in self.split.items()},
            "skipped": [name for store in stores for name in store.skipped],
            "latents": {"reused": len(used) + len(self.split["test"]) - encoded, "encoded": encoded},
            "labels": labels.digest if (labels := self.raw["whole"].labels) else None,
            "margin": self.margin,
            "passes": self.backbone.passes,
            "mitigations": self.mitigations.describe(self.images.size),
        }

    def _loader(self, view: str, indices: Sequence[int]) -> "GridLoader":
        return grid_loader(self.streams[view], indices)


class GridLoader(Loader[GridBatch]):
    """``images`` says how many images it brings."""

    def __init__(self, make: Callable[[], Iterator[GridBatch]], groups: Sequence[Sequence[int]]) -> None:
        super().__init__(make, len(groups))
        self.images = sum(map(len, groups))


def grid_loader(stream: ActivationStream | MitigatedStream, indices: Sequence[int]) -> GridLoader:
    """A loader of these images, one batch per group even if the stream halves its own: Lightning stops at its length."""
    groups = [indices[start : start + stream.batch_size] for start in range(0, len(indices), stream.batch_size)]
    return GridLoader(lambda: (joined(list(stream(group))) for group in groups), groups)
