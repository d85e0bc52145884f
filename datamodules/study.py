"""StudyDataModule: tokens for the position probe, and the whole grids that they are drawn from. Data path steps 1 to 7."""

import logging
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

from datamodules.activations import ActivationDataModule
from datamodules.loaders import GridLoader
from datamodules.stream import ActivationStream
from sdprobe.tokens.batch import GridBatch, TokenBatch
from sdprobe.tokens.keys import base_of
from sdprobe.tokens.views import View
from sdprobe.utilities.distributed import Processes
from sdprobe.utilities.errors import InputError

log = logging.getLogger(__name__)

LEAST = 40  # images for an interval, which is over 20 groups of at least two
SMALLEST = 6  # tokens per side of a grid, 4 after cropping
MARGINS = (8, 16, 32, 64)  # pixels per token of Stable Diffusion's grids; crops remove one token per side


class StudyDataModule(ActivationDataModule):
    """An :class:`~datamodules.activations.ActivationDataModule` that also gives every whole grid to its probe.

    It calls the probe's ``observe`` with the :class:`~sdprobe.tokens.batch.GridBatch` of every image once, while tokens are
    drawn from it. The test dataloaders are: the tokens of the test images; whole grids of images that no dataloader has shown
    yet (the training images of a resumed run); and, for each number of pixels per token that a layer has, all images cropped by
    that many pixels. Each takes one pass of the U-Net per image.

    Args:
        images: an image source with pictures; 40 or more for intervals of similarities and norms.
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
        InputError: as :class:`~datamodules.activations.ActivationDataModule`; in :meth:`prepare_data`, a mitigation, or a grid
            of less than 6 × 6 tokens.

    Example:
        >>> from datamodules.images.scenes import Scenes
        >>> from sdprobe import FrozenSD
        >>> data = StudyDataModule(Scenes(size=512, limit=40), FrozenSD.from_pretrained("tiny"), ["mid", "up_1"])
        >>> {margin: stream.reads.layers for margin, stream in data.crops.items()}  # pixels per token → layers
        {16: ('up_1',), 64: ('mid',)}

    References:
        Loos & Linhardt (2025), arXiv 2504.07008.
    """

    kind = "study"

    @cached_property
    def crops(self) -> dict[int, ActivationStream]:
        """Margin in pixels → stream of the images cropped by it, with the layers that have so many pixels per token."""
        layers = {
            margin: dict.fromkeys(
                base_of(name) for name, (_, side, _) in self.shapes.items() if self.images.size == side * margin
            )
            for margin in MARGINS
        }
        return {margin: self.base_stream.viewed(View(crop=margin), list(some)) for margin, some in layers.items() if some}

    @cached_property
    def _shown(self) -> set[int]:
        return set()

    @property
    def all_images(self) -> list[int]:
        """Indices of all images, in order."""
        return self.used

    def describe(self) -> dict[str, Any]:
        """Return the description of :class:`~datamodules.activations.ActivationDataModule`, with that of the crops."""
        described = super().describe()
        for stream in self.crops.values():
            store = stream.store
            described["skipped"] = [*described["skipped"], *store.skipped]
            described["latents"]["encoded"] += store.encoded
            described["latents"]["reused"] += len(Processes.current().shard(self.all_images)) - store.encoded
        return described

    def test_dataloader(self) -> Any:
        """Return tokens of the test images, whole grids of images not shown yet, and a loader per crop."""
        rest = set(self._shown) | set(self.split["test"])
        unseen = GridLoader(self.stream, [i for i in self.all_images if i not in rest])
        return [super().test_dataloader(), unseen, *(GridLoader(stream, self.all_images) for stream in self.crops.values())]

    def _encode(self) -> None:
        """Also encode the crops."""
        if not self.mitigations.is_identity:
            raise InputError(
                "Expected no mitigation for probe=study, which measures raw activations, but got one. Use probe=position."
            )
        for layer, (_, height, width) in self.shapes.items():
            if min(height, width) < SMALLEST:
                least = max(SMALLEST * self.images.size // side for _, side, _ in self.shapes.values())
                raise InputError(
                    f"Expected grids of at least {SMALLEST}×{SMALLEST} tokens, of which one ring is cropped, but layer {layer} "
                    f"has {height}×{width}. Use images.size={least} or more, or leave this layer out of block=."
                )
        if len(self.all_images) < LEAST:
            count = len(self.all_images)
            log.warning("Similarities and norms get no intervals: they need %d images, but got %d.", LEAST, count)
        crops = self.crops.values()  # refuses images that are too small to crop before any is encoded
        super()._encode()
        for stream in crops:
            stream.prepare(self.all_images)

    def _computed(self, indices: Sequence[int]) -> Iterator[tuple[int, TokenBatch]]:
        for batch in self.stream(indices):
            self._show(batch)
            yield from zip(batch.image.tolist(), self._drawn(batch), strict=True)

    def _flattened(self, batch: GridBatch) -> TokenBatch:
        self._show(batch)
        return super()._flattened(batch)

    def _show(self, batch: GridBatch) -> None:
        """Give images to the probe that it has not seen; images pass again in later epochs."""
        new = [k for k, index in enumerate(batch.image.tolist()) if index not in self._shown]
        if new and self.trainer is not None:
            self._shown.update(batch.image.tolist())
            self.trainer.lightning_module.observe(batch.select(new))  # type: ignore[operator]
