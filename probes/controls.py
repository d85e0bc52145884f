"""ControlsProbe: a position probe that is also tested on images without one source of position."""

from typing import Any, Protocol, cast

import numpy as np
import torch
from torch import nn

from probes.base import Data
from probes.position import PositionProbe
from sdprobe.metrics.flip_attribution import BINNED, FlipAttribution
from sdprobe.metrics.grid_accuracy import GridAccuracy
from sdprobe.tokens.batch import TokenBatch
from sdprobe.tokens.keys import qualified

UPRIGHT, ROTATED = "test", "rotated"


class ControlsData(Data, Protocol):
    """A data module with several views of the test images."""

    @property
    def views(self) -> list[str]:
        """Names of the views, in the order of the test dataloaders."""

    @property
    def photographs(self) -> list[str]:
        """Names of the photographs, by their indices in batches."""


class ControlsProbe(PositionProbe):
    """A :class:`~probes.position.PositionProbe` that is also tested on other views of the test images.

    ``results`` also have ``<view>/<layer>/…``, accuracies with respect to the network's coordinates, and, with enough
    photographs, ``test/<layer>/flip_attribution/all`` and ``flip_surviving/all``. These two compare images with rotated images,
    see :class:`~sdprobe.metrics.flip_attribution.FlipAttribution`.

    Args:
        shapes: layer → (C, h, w); h and w at least 2.
        photos: number of photographs.
        data: a data module with views, such as :class:`~datamodules.activations.ControlsDataModule`.
        head: ``classification`` or ``regression``.
        solver: ``adam`` or ``closed_form``.
        learning_rate: step size of Adam, above 0.
        min_steps: least number of steps before a head may stop, at least 0.
        patience: validations in a row without improvement after which a head stops, at least 1.
        seed: seed of the initial weights and of the controls.

    Raises:
        InputError: as :class:`~probes.position.PositionProbe`.

    Example:
        >>> import lightning
        >>> from datamodules.activations import ControlsDataModule
        >>> from datamodules.images.texture import LatentTextures
        >>> from sdprobe import FrozenSD
        >>> sd = FrozenSD.from_pretrained("tiny", device="cpu")
        >>> data = ControlsDataModule(LatentTextures(size=128, limit=20), sd, block="up_1")
        >>> probe = ControlsProbe(data.shapes, data.photos, data, solver="closed_form")
        >>> trainer = lightning.Trainer(
        ...     max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        ...     enable_model_summary=False,
        ... )
        >>> trainer.fit(probe, data)
        >>> _ = trainer.test(probe, data, verbose=False)
        >>> [key for key in probe.results if key.startswith("rotated/") and key.endswith("/all")]
        ['rotated/up_1/axis_accuracy/all', 'rotated/up_1/cell_accuracy/all', 'rotated/up_1/binned_accuracy/all']
    """

    kind, reads, optional = "controls", "controls", False
    data: ControlsData

    def test_step(self, batch: TokenBatch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Test the probe and its controls on the images as they are, and the probe alone on other views."""
        view = self.data.views[dataloader_idx]
        if view == UPRIGHT:
            super().test_step(batch, batch_idx)
        for layer, tokens in batch.tokens.items():
            positions, photo, predicted = batch.positions[layer], batch.photo[layer], self._predict(layer, tokens)[:, 0]
            measure = self._measure(layer, tokens.device)
            measure.views[view].update(predicted, positions, {}, photo)
            if view in (UPRIGHT, ROTATED):
                measure.flips.update(predicted, positions, photo, rotated=view == ROTATED)

    def collect(self) -> None:
        """Write the results of the position probe, of the other views, and of the attribution."""
        super().collect()
        for layer in self.measures:
            measure = self._measure(layer, self.device)
            for view in self.data.views[1:]:
                self.results |= qualified(view, layer, measure.views[view].compute())
            self.results |= qualified("test", layer, measure.flips.compute())

    def maps(self) -> dict[str, Any]:
        """Arrays of the position probe, and counts of every view for intervals of differences.

        Returns:
            Besides those of :class:`~probes.position.PositionProbe`: ``<layer>/photo_right`` and ``<layer>/photo_count``
            (views, photographs), sums of binned accuracy and numbers of tokens; ``views`` and ``photos``, their names.
        """
        if not self.measures:
            return super().maps()
        measures = {layer: self._measure(layer, self.device) for layer in self.measures}
        counts = {layer: measure.table("count")[:, :, 0] for layer, measure in measures.items()}
        seen = next(iter(counts.values()))[0] > 0
        tables: dict[str, Any] = {"views": np.array(self.data.views), "photos": np.array(self.data.photographs)[seen]}
        for layer, measure in measures.items():
            tables[f"{layer}/photo_right"] = measure.table("right")[:, seen, 0, BINNED]
            tables[f"{layer}/photo_count"] = counts[layer][:, seen]
        return super().maps() | tables

    def _measure(self, layer: str, device: torch.device) -> "_Measure":
        """Metrics of a layer, built on the device of its first tokens."""
        if layer not in self.measures:
            _, height, width = self.shapes[layer]
            self.measures[layer] = _Measure(height, width, len(self.data.photographs), self.data.views).to(device)
        return cast(_Measure, self.measures[layer])


class _Measure(nn.Module):
    """Accuracies of one layer in every view, and the attribution from the rotated view."""

    def __init__(self, height: int, width: int, photos: int, views: list[str]) -> None:
        super().__init__()
        self.accuracy = nn.ModuleDict({view: GridAccuracy(height, width, (), photos) for view in views})
        self.flips = FlipAttribution(height, width, photos)

    @property
    def views(self) -> dict[str, GridAccuracy]:
        """View → its accuracies."""
        return dict(self.accuracy.items())  # type: ignore[arg-type]

    def table(self, name: str) -> np.ndarray:
        """A state of the metrics of all views, stacked."""
        return np.stack([getattr(metric, name).cpu().numpy() for metric in self.views.values()])
