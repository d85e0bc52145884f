"""GridDataModule: images → GridBatches of whole grids, for statistics that train nothing. Data path steps 1 to 6."""

from collections.abc import Sequence
from typing import Any, Unpack

from jaxtyping import Bool
from torch import Tensor

from datamodules.base import StreamDataModule, StreamOptions
from datamodules.images.source import ImageSource
from datamodules.mixing import GridLoader
from datamodules.splits import split_by_photo
from sdprobe.backbones import FrozenSD
from sdprobe.tokens.views import View
from sdprobe.utilities import settings
from sdprobe.utilities.distributed import Processes
from sdprobe.utilities.errors import InputError


class GridDataModule(StreamDataModule):
    """Whole activation grids: the fit split first (for the mean token), then every other image, once per view.

    Views, in the order of the test dataloaders: ``whole``; ``cropped`` by ``margin`` pixels on every side;
    ``other_noise`` and ``other_timestep``, both of the first ``repeats`` images only.

    Args:
        images, backbone, block, labels, labels_side, and options: see :class:`~datamodules.base.StreamDataModule`. With
            a mitigation the last two views are left out.
        splits: see :func:`~datamodules.splits.split_by_photo`. Without a fit split (``loos2025``) the training images give
            the mean token, and are measured too.
        margin: pixels to crop, a multiple of 64 where every grid must stay even.
        other_timestep: noise level of the view of that name; None takes 261, or 50 where ``timestep`` is 261.
        repeats: images of the last two views; 0 skips them. Without noise there is no other noise either.
        least: images to measure, at least: intervals are over 20 groups of two or more.

    Raises:
        InputError: too few photographs, too large a margin, an unusable option.
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
        timestep = self.base_stream.reads.timestep
        if other_timestep is None:
            other_timestep = 50 if timestep == 261 else 261
        backbone.noise.check(other_timestep)
        if repeats and other_timestep == timestep:
            raise InputError(
                f"Expected datamodule.other_timestep to differ from timestep, but both are {timestep}. Choose another, or "
                "datamodule.repeats=0."
            )
        self.margin, self.repeats = margin, repeats
        split = split_by_photo([images.photo(i) for i in range(len(images))], splits, self.seed)
        self.split = {"fit": split["fit"] or split["train"], "test": [*split["train"], *split["val"], *split["test"]]}
        measured = len(self.split["test"])
        if measured < least:
            raise InputError(
                f"Expected at least {least} images to measure, but only {measured} of {len(images)} are: the others give the "
                f"mean token. Use about {-(-least * len(images) // max(measured, 1))} images or more."
            )
        views = (View(), View(crop=margin), View(reseed=1), View(timestep=other_timestep))
        self.views = [self.base_stream.viewed(view) for view in views]

    @property
    def fit_images(self) -> list[int]:
        """Images that give the mean token, and that mitigations are fitted on."""
        return self.split["fit"]

    def train_dataloader(self) -> GridLoader:
        """The fit images, whole."""
        return GridLoader(self.stream, self.split["fit"])

    def test_dataloader(self) -> list[GridLoader]:
        """Every view of the measured images."""
        measured = self.split["test"]
        some = measured[: self.repeats] if self.mitigations.is_identity else []
        noisy = some if self.backbone.noise.mode != "none" else []
        parts = zip(self.views, (measured, measured, noisy, some), strict=True)
        return [GridLoader(self.mitigations.wrap(stream), indices) for stream, indices in parts]

    def floor_cells(self, indices: Sequence[int]) -> dict[int, Bool[Tensor, "h w"]]:
        """Cells where the VAE's posterior variance lies on its floor in any channel, per image."""
        pictures = {index: self.images[index]["image"] for index in indices}
        return {index: self.backbone.encoder.floor_cells(picture[None])[0] for index, picture in pictures.items()}

    def describe(self) -> dict[str, Any]:
        """What identifies the data in a run's record."""
        used = list(dict.fromkeys([*self.split["fit"], *self.split["test"]]))  # without a fit split some are in both
        stores = [self.store, self.views[1].store]
        encoded = sum(store.encoded for store in stores)
        shard = Processes.current().shard
        return super().describe() | {
            "dataset_fingerprint": self.store.fingerprint(used),
            "skipped": [name for store in stores for name in store.skipped],
            "latents": {"reused": len(shard(used)) + len(shard(self.split["test"])) - encoded, "encoded": encoded},
            "margin": self.margin,
        }

    def _encode(self) -> None:
        """All images whole, the measured ones cropped too."""
        super()._encode()
        cropped = self.views[1]
        cropped.prepare(self.split["test"])
        self.mitigations.prepare(cropped, self.split["test"], [])
