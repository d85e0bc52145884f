"""GridDataModule: images → GridBatches of whole grids, for statistics without training. Data path steps 1 to 6."""

from collections.abc import Mapping, Sequence
from typing import Any, Unpack

from jaxtyping import Bool
from torch import Tensor

from datamodules.base import StreamDataModule, StreamOptions
from datamodules.images.source import ImageSource
from datamodules.latents import LatentStore
from datamodules.loaders import GridLoader
from sdprobe.backbones import FrozenSD
from sdprobe.tokens.splits import split_by_photo
from sdprobe.tokens.views import View
from sdprobe.utilities import settings
from sdprobe.utilities.distributed import Processes
from sdprobe.utilities.errors import InputError


def measured_split(images: ImageSource, splits: str, seed: int, least: int) -> dict[str, list[int]]:
    """``fit`` → images that give the mean token, ``test`` → all others, by photograph.

    ``loos2025`` has no fit split: its training images are in both.

    Raises:
        InputError: there are fewer than ``least`` images to measure.
    """
    split = split_by_photo([images.photo(i) for i in range(len(images))], splits, seed)
    found = {"fit": split["fit"] or split["train"], "test": [*split["train"], *split["val"], *split["test"]]}
    measured = len(found["test"])
    if measured < least:
        raise InputError(
            f"Expected at least {least} images to measure, but got {measured} of {len(images)}, since others give the mean "
            f"token. Use about {-(-least * len(images) // max(measured, 1))} images or more."
        )
    return found


def twice_encoded(store: LatentStore, stores: Sequence[LatentStore], split: Mapping[str, Sequence[int]]) -> dict[str, Any]:
    """Entries of ``describe()`` where the measured images are encoded in a second view; ``stores`` are those of all views."""
    used = list(dict.fromkeys([*split["fit"], *split["test"]]))  # without a fit split some are in both
    encoded, shard = sum(each.encoded for each in stores), Processes.current().shard
    return {
        "dataset_fingerprint": store.fingerprint(used),
        "skipped": [name for each in stores for name in each.skipped],
        "latents": {"reused": len(shard(used)) + len(shard(split["test"])) - encoded, "encoded": encoded},
    }


class GridDataModule(StreamDataModule):
    """Streams whole activation grids: of the fit images to train on, of all others in several views to test on.

    The batches are :class:`~sdprobe.tokens.batch.GridBatch` with grids (B, C, h, w) of every layer. The test dataloaders are
    four views, in this order: ``whole``; ``cropped`` by ``margin`` pixels on every side; ``other_noise`` and
    ``other_timestep``, both of the first ``repeats`` images only. With a mitigation the last two are empty.

    Args:
        images: an image source with pictures.
        backbone: a frozen checkpoint.
        block: layers to read, see :class:`~datamodules.base.StreamDataModule`.
        splits: ``default`` or ``loos2025``, see :func:`~sdprobe.tokens.splits.split_by_photo`. ``loos2025`` has no fit split:
            the training images give the mean token and are measured too.
        margin: pixels to crop on every side, at least 1. It has to be a whole number of tokens in every layer; 64 is one token
            of Stable Diffusion's coarsest grid.
        other_timestep: noise level of the view of that name, in [0, 1000); None takes 261, or 50 where ``timestep`` is 261.
        repeats: images of the last two views, at least 0; 0 leaves both out. Without noise, ``other_noise`` is empty.
        least: least number of images to measure. Intervals are over 20 groups of at least two images, hence 40.
        labels: file of hand-labelled high-norm tokens, see :class:`~datamodules.labels.Labels`; None for none.
        labels_side: tokens per side of the labelled grid; 32 is that of the published labels.
        **options: settings of every data module, see :class:`~datamodules.base.StreamOptions`.

    Raises:
        InputError: too few images to measure, a margin that leaves less than 64 pixels, equal timesteps, an option out of
            range, images without pictures to crop.

    Example:
        >>> from datamodules.images.texture import Constants
        >>> from sdprobe import FrozenSD
        >>> data = GridDataModule(Constants(size=192, limit=70), FrozenSD.from_pretrained("tiny"), block="up_1")
        >>> {split: len(indices) for split, indices in data.split.items()}
        {'fit': 28, 'test': 42}
        >>> [loader.images for loader in data.test_dataloader()]  # of each view
        [42, 42, 16, 16]
    """

    kind = "grids"

    def __init__(
        self,
        images: ImageSource,
        backbone: FrozenSD,
        block: str | Sequence[str] = "all",
        splits: str = "default",
        margin: int = 64,
        other_timestep: int | None = None,
        repeats: int = 16,
        least: int = 40,
        labels: str | None = None,
        labels_side: int = 32,
        **options: Unpack[StreamOptions],
    ) -> None:
        settings.check("datamodule", repeats=repeats, splits=splits)
        super().__init__(images, backbone, block, labels, labels_side, **options)
        timesteps = self.base_stream.reads.timesteps
        if other_timestep is None:
            others = tuple(50 if timestep == 261 else 261 for timestep in timesteps)
        else:
            others = backbone.noise.steps(other_timestep) * len(timesteps)
            if repeats and other_timestep in timesteps:
                raise InputError(
                    f"Expected datamodule.other_timestep to differ from timestep, but both are {other_timestep}. Choose "
                    "another, or datamodule.repeats=0."
                )
        self.margin, self.repeats = margin, repeats
        self.split = measured_split(images, splits, self.seed, least)
        views = (View(), View(crop=margin), View(reseed=1), View(timesteps=others))
        self.views = [self.base_stream.viewed(view) for view in views]

    @property
    def fit_images(self) -> list[int]:
        """Indices of the images that give the mean token and that mitigations are fitted on."""
        return self.split["fit"]

    def train_dataloader(self) -> GridLoader:
        """Return whole grids of the fit images."""
        return GridLoader(self.stream, self.split["fit"])

    def test_dataloader(self) -> list[GridLoader]:
        """Return whole grids of the measured images, one loader per view."""
        measured = self.split["test"]
        some = measured[: self.repeats] if self.mitigations.is_identity else []
        noisy = some if self.backbone.noise.mode != "none" else []
        parts = zip(self.views, (measured, measured, noisy, some), strict=True)
        return [GridLoader(self.mitigations.wrap(stream), indices) for stream, indices in parts]

    def floor_cells(self, indices: Sequence[int]) -> dict[int, Bool[Tensor, "h w"]]:
        """Return image index → cells (h, w) of its latent where the VAE's posterior variance has its minimum in any channel."""
        pictures = {index: self.images[index]["image"] for index in indices}
        return {index: self.backbone.encoder.floor_cells(picture[None])[0] for index, picture in pictures.items()}

    def describe(self) -> dict[str, Any]:
        """Return the description of :class:`~datamodules.base.StreamDataModule`, with cropped images and the margin."""
        stores = [self.store, self.views[1].store]
        return super().describe() | twice_encoded(self.store, stores, self.split) | {"margin": self.margin}

    def _encode(self) -> None:
        """Encode all images, and the measured ones cropped."""
        super()._encode()
        cropped = self.views[1]
        cropped.prepare(self.split["test"])
        self.mitigations.prepare(cropped, self.split["test"], [])
