"""ControlsProbe: a position probe that is also tested where one source of position has been taken away."""

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
    """A data module that shows the test images in several views."""

    @property
    def views(self) -> list[str]:
        """Names of the views, in the order of the test dataloaders."""

    @property
    def photographs(self) -> list[str]:
        """Names of the photographs, by their indices in batches."""


class ControlsProbe(PositionProbe):
    """A :class:`PositionProbe` whose probes are tested on further views of the test images.

    ``<view>/<layer>/…`` are accuracies against the network's coordinate; ``test/<layer>/flip_attribution/all`` and
    ``flip_surviving/all`` compare upright and rotated images, see :class:`~sdprobe.metrics.flip_attribution.FlipAttribution`.

    Args: those of :class:`PositionProbe`; ``data`` shows the views.
    """

    kind, reads, optional = "controls", "controls", False
    data: ControlsData

    def test_step(self, batch: TokenBatch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Upright tokens test the probe and its controls, those of other views the probe alone."""
        view = self.data.views[dataloader_idx]
        if view == UPRIGHT:
            super().test_step(batch, batch_idx)
        for layer, tokens in batch.tokens.items():
            where, photo, predicted = batch.positions[layer], batch.photo[layer], self._predict(layer, tokens)[:, 0]
            measure = self._measure(layer, tokens.device)
            measure.views[view].update(predicted, where, {}, photo)
            if view in (UPRIGHT, ROTATED):
                measure.flips.update(predicted, where, photo, rotated=view == ROTATED)

    def collect(self) -> None:
        """Results of the position probe, of the other views, and the attribution."""
        super().collect()
        for layer in self.measures:
            measure = self._measure(layer, self.device)
            for view in self.data.views[1:]:
                self.results |= qualified(view, layer, measure.views[view].compute())
            self.results |= qualified("test", layer, measure.flips.compute())

    def maps(self) -> dict[str, Any]:
        """Those of the position probe; ``<layer>/photo_right`` and ``<layer>/photo_count`` (views, photographs): binned hits
        and tokens of every test photograph, for intervals of differences; ``views`` and ``photos``: their names."""
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
        """Accuracies of a layer, made where its first tokens lie."""
        if layer not in self.measures:
            _, height, width = self.shapes[layer]
            self.measures[layer] = _Measure(height, width, len(self.data.photographs), self.data.views).to(device)
        return cast(_Measure, self.measures[layer])


class _Measure(nn.Module):
    """Accuracies of every view of one layer, and what the rotated one says."""

    def __init__(self, height: int, width: int, photos: int, views: list[str]) -> None:
        super().__init__()
        self.accuracy = nn.ModuleDict({view: GridAccuracy(height, width, (), photos) for view in views})
        self.flips = FlipAttribution(height, width, photos)

    @property
    def views(self) -> dict[str, GridAccuracy]:
        """View → its accuracies."""
        return dict(self.accuracy.items())  # type: ignore[arg-type]

    def table(self, name: str) -> np.ndarray:
        """A state of all views, stacked."""
        return np.stack([getattr(metric, name).cpu().numpy() for metric in self.views.values()])
