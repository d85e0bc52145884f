"""WindowDataModule: images → pairs of GridBatches, of two windows of one larger picture. Data path steps 1 to 6."""

from collections.abc import Sequence
from typing import Any, Unpack

from datamodules.base import StreamDataModule, StreamOptions
from datamodules.grids import measured_split, twice_encoded
from datamodules.images.source import ImageSource
from datamodules.loaders import GridLoader, PairLoader
from sdprobe.backbones import FrozenSD
from sdprobe.tokens.views import View
from sdprobe.utilities import settings
from sdprobe.utilities.errors import InputError


class WindowDataModule(StreamDataModule):
    """Streams whole activation grids of two windows of every picture; the second lies ``shift`` pixels further down and right.

    Pictures are rendered ``shift`` pixels larger than ``images.size``, and both windows have the usual size. Periodic pictures
    are continued periodically instead. The latents of each window are encoded on their own. The noise belongs to the larger
    picture: it is drawn for it and cut like it, so it moves with the picture.

    Batches of the fit images are :class:`~sdprobe.tokens.batch.GridBatch` of the first window; those of the measured images are
    pairs of them, with equal images.

    Args:
        images: an image source with pictures.
        backbone: a frozen checkpoint.
        block: layers to read, see :class:`~datamodules.base.StreamDataModule`.
        splits: ``default`` or ``loos2025``, see :func:`~sdprobe.tokens.splits.split_by_photo`. ``loos2025`` has no fit split:
            the training images give the mean token and are measured too.
        shift: pixels between the windows, at least 1 and less than ``images.size``. It has to be a whole number of tokens in
            every layer; 64 is one token of Stable Diffusion's coarsest grid.
        least: least number of images to measure. The intervals of position variance are over 20 groups of at least two images,
            hence 40.
        **options: settings of every data module, see :class:`~datamodules.base.StreamOptions`.

    Raises:
        InputError: too few images to measure, a shift that no two windows of this size can share tokens at, a mitigation that
            shows the network other pictures, an option out of range, images without pictures to cut.

    Example:
        >>> from datamodules.images.texture import Textures
        >>> from sdprobe import FrozenSD
        >>> data = WindowDataModule(Textures(size=128, limit=70), FrozenSD.from_pretrained("tiny"), block="up_1")
        >>> data.larger, data.test_dataloader().images
        (0, 42)
    """

    kind = "windows"

    def __init__(
        self,
        images: ImageSource,
        backbone: FrozenSD,
        block: str | Sequence[str] = "all",
        splits: str = "default",
        shift: int = 64,
        least: int = 40,
        **options: Unpack[StreamOptions],
    ) -> None:
        settings.check("datamodule", shift=shift, splits=splits)
        if shift >= images.size:
            raise InputError(
                f"Expected datamodule.shift to be less than images.size, so that two windows share tokens, but got {shift} for "
                f"{images.size} pixels. Use a smaller shift, or larger images."
            )
        super().__init__(images, backbone, block, **options)
        for variant in self.mitigations.variants:
            if variant.extraction and any(view.shows != View() for view in variant.extraction.passes(images.size)):
                raise InputError(
                    f"Expected mitigations that keep the picture for datamodule={self.kind}, which shows windows of it, but "
                    f"got {type(variant.extraction).__name__}. Leave it out."
                )
        self.shift = shift
        self.larger = 0 if getattr(images, "periodic", False) else shift
        self.split = measured_split(images, splits, self.seed, least)
        views = (View(window=(top, top), larger=self.larger, moves=True) for top in (0, shift))
        self.first, self.second = map(self.base_stream.viewed, views)

    @property
    def fit_images(self) -> list[int]:
        """Indices of the images that give the mean token and that mitigations are fitted on."""
        return self.split["fit"]

    def train_dataloader(self) -> GridLoader:
        """Return whole grids of the first window of the fit images."""
        return GridLoader(self.mitigations.wrap(self.first), self.split["fit"])

    def test_dataloader(self) -> PairLoader:
        """Return whole grids of both windows of the measured images."""
        return PairLoader(self.mitigations.wrap(self.first), self.mitigations.wrap(self.second), self.split["test"])

    def describe(self) -> dict[str, Any]:
        """Return the description of :class:`~datamodules.base.StreamDataModule`, with the windows and the shift."""
        stores = [self.store, self.first.store, self.second.store]
        return (
            super().describe()
            | twice_encoded(self.store, stores, self.split)
            | {
                "shift": self.shift,
            }
        )

    def _encode(self) -> None:
        """Encode the windows, and the whole images that mitigations are fitted on."""
        self._keep_usable(self.first.store)
        self.second.prepare(self.split["test"])
        if self.mitigations.needs_fit:
            self.base_stream.prepare(self.split["fit"])
        self.mitigations.prepare(self.base_stream, [], self.split["fit"])
        for window in (self.first, self.second):
            self.mitigations.prepare(window, self.split["test"], [])
