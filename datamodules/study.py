"""StudyDataModule: tokens for the position probe, and every grid on its way to them. Data path steps 1 to 7."""

import logging
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

from datamodules.activations import ActivationDataModule
from datamodules.mixing import GridLoader
from datamodules.stream import ActivationStream
from sdprobe.tokens.batch import GridBatch, TokenBatch
from sdprobe.tokens.views import View
from sdprobe.utilities.distributed import Processes
from sdprobe.utilities.errors import InputError

log = logging.getLogger(__name__)

LEAST = 40  # images: intervals are over 20 groups of at least two
SMALLEST = 6  # tokens a side: 4 are left after cropping
MARGINS = (8, 16, 32, 64)  # pixels: one token of grids with so many pixels per token


class StudyDataModule(ActivationDataModule):
    """An :class:`ActivationDataModule` that shows whole grids to its probe's ``observe`` while they pass by.

    Every image is shown once, whether it trains or tests the position probe. The test dataloaders are: the tokens of the
    test images; whole grids of images that nobody has shown yet (a resumed run's training images); and, for each of
    MARGINS, all images cropped by it. One U-Net pass per image and dataloader.

    Args: those of :class:`ActivationDataModule`.
    """

    kind = "study"

    @cached_property
    def crops(self) -> dict[int, ActivationStream]:
        """Margin → cropped images, and of them the layers with so many pixels per token."""
        layers = {
            margin: [layer for layer, (_, side, _) in self.shapes.items() if self.images.size == side * margin]
            for margin in MARGINS
        }
        return {margin: self.base_stream.viewed(View(crop=margin), some) for margin, some in layers.items() if some}

    @cached_property
    def _shown(self) -> set[int]:
        return set()

    @property
    def everyone(self) -> list[int]:
        """All images, in order."""
        return self.used

    def describe(self) -> dict[str, Any]:
        """That of tokens, and the crops'."""
        described = super().describe()
        for stream in self.crops.values():
            store = stream.store
            described["skipped"] = [*described["skipped"], *store.skipped]
            described["latents"]["encoded"] += store.encoded
            described["latents"]["reused"] += len(Processes.current().shard(self.everyone)) - store.encoded
        return described

    def test_dataloader(self) -> Any:
        """See the class."""
        rest = set(self._shown) | set(self.split["test"])
        unseen = GridLoader(self.stream, [i for i in self.everyone if i not in rest])
        return [super().test_dataloader(), unseen, *(GridLoader(stream, self.everyone) for stream in self.crops.values())]

    def _encode(self) -> None:
        """Crops, too."""
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
        if len(self.everyone) < LEAST:
            log.warning("Similarities and norms get no intervals: %d images are fewer than %d.", len(self.everyone), LEAST)
        crops = self.crops.values()  # images too small to crop are refused before any is encoded
        super()._encode()
        for stream in crops:
            stream.prepare(self.everyone)

    def _computed(self, indices: Sequence[int]) -> Iterator[tuple[int, TokenBatch]]:
        for batch in self.stream(indices):
            self._show(batch)
            yield from zip(batch.image.tolist(), self._drawn(batch), strict=True)

    def _flattened(self, batch: GridBatch) -> TokenBatch:
        self._show(batch)
        return super()._flattened(batch)

    def _show(self, batch: GridBatch) -> None:
        """Images pass again in later epochs; a probe sees each of them once."""
        new = [k for k, index in enumerate(batch.image.tolist()) if index not in self._shown]
        if new and self.trainer is not None:
            self._shown.update(batch.image.tolist())
            self.trainer.lightning_module.observe(batch.select(new))  # type: ignore[operator]
