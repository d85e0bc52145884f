"""ControlsProbe: a position probe that is also tested where one source of position has been taken away."""

from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import nn

from probes.position import PositionProbe
from sdprobe.metrics.flip_attribution import BINNED, FlipAttribution
from sdprobe.metrics.grid_accuracy import GridAccuracy
from sdprobe.tokens.batch import TokenBatch
from sdprobe.tokens.keys import qualified

UPRIGHT, ROTATED = "test", "rotated"


class ControlsProbe(PositionProbe):
    """A :class:`PositionProbe` whose probes are tested on further views of the test images.

    The data module's ``views`` name its test dataloaders. ``<view>/<layer>/…`` are accuracies against the network's
    coordinate; ``test/<layer>/flip_attribution/all`` and ``flip_surviving/all`` compare upright and rotated images, see
    :class:`~sdprobe.metrics.flip_attribution.FlipAttribution`.

    Args: those of :class:`PositionProbe`.
    """

    @cached_property
    def measures(self) -> dict[str, "_Measure"]:
        """Layer → accuracies of the views and flip attribution, made where its first tokens lie."""
        return {}

    def test_step(self, batch: TokenBatch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Upright tokens test the probe and its controls, those of other views the probe alone."""
        view = self._views[dataloader_idx]
        if view == UPRIGHT:
            super().test_step(batch, batch_idx)
        for layer, tokens in batch.tokens.items():
            where, photo, predicted = batch.positions[layer], batch.photo[layer], self._predict(layer, tokens)[:, 0]
            measure = self._measure(layer, tokens.device)
            measure.views[view].update(predicted, where, {}, photo)
            if view in (UPRIGHT, ROTATED):
                measure.flips.update(predicted, where, photo, rotated=view == ROTATED)

    def on_test_epoch_end(self) -> None:
        """Collect what the position probe has, the other views and the attribution."""
        super().on_test_epoch_end()
        for layer, measure in self.measures.items():
            for view in self._views[1:]:
                self.results |= qualified(view, layer, measure.views[view].compute())
            self.results |= qualified("test", layer, measure.flips.compute())

    def maps(self) -> dict[str, Any]:
        """Those of the position probe; ``<layer>/photo_right`` and ``<layer>/photo_count`` (views, photographs): binned hits
        and tokens of every test photograph, for intervals of differences; ``views`` and ``photos``: their names."""
        if not self.measures:
            return super().maps()
        counts = {layer: measure.table("count")[:, :, 0] for layer, measure in self.measures.items()}
        seen = next(iter(counts.values()))[0] > 0
        names = np.array(self.trainer.datamodule.photographs)[seen]  # type: ignore[attr-defined]
        tables: dict[str, Any] = {"views": np.array(self._views), "photos": names}
        for layer, measure in self.measures.items():
            tables[f"{layer}/photo_right"] = measure.table("right")[:, seen, 0, BINNED]
            tables[f"{layer}/photo_count"] = counts[layer][:, seen]
        return super().maps() | tables

    @property
    def _views(self) -> list[str]:
        return self.trainer.datamodule.views  # type: ignore[attr-defined]

    def _measure(self, layer: str, device: torch.device) -> "_Measure":
        if layer not in self.measures:
            _, height, width = self.shapes[layer]
            photos = len(self.trainer.datamodule.photographs)  # type: ignore[attr-defined]
            self.measures[layer] = _Measure(height, width, photos, self._views).to(device)
        return self.measures[layer]


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
