"""StudyProbe: the published study in one run: position, corners and norms of every layer.

References:
    Loos & Linhardt (2025), arXiv 2504.07008.
"""

from dataclasses import replace
from functools import cached_property
from typing import Any, Protocol, cast

import torch
from torch import nn

from probes.base import Data
from probes.position import PositionProbe
from sdprobe.metrics.group_similarity import GroupSimilarity
from sdprobe.metrics.high_norm import DetectionScore, HighNormTokens
from sdprobe.metrics.layer_tokens import LayerTokens
from sdprobe.metrics.token_norms import TokenNorms
from sdprobe.tokens.batch import GridBatch
from sdprobe.tokens.geometry import at_grid, border_groups
from sdprobe.tokens.keys import GROUPS, PARTITION, Key, qualified

ANOMALIES = "up_1"  # the layer whose high-norm tokens the study labelled by hand
TOKENS, WHOLE = 0, 1  # the first test dataloaders; the others bring crops


class StudyData(Data, Protocol):
    """A data module that shows whole grids to :meth:`StudyProbe.observe` while they pass by."""

    @property
    def everyone(self) -> list[int]:
        """All images, in order."""


class StudyProbe(PositionProbe):
    """A :class:`PositionProbe` that also measures group similarity and norms of the grids that pass by.

    Per layer: ``relative_norm/<group>``, with ``anomaly`` for hand-labelled places or, without labels, for the places of
    ``up_1``'s high-norm tokens in every layer;
    ``similarity_reprcropped/<group>`` after the outer ring of tokens is dropped; ``similarity_cropped/<group>`` of images
    cropped by one token before extraction; both also as ``…_published``, divided by the uncropped grid's token counts.

    Args: those of :class:`PositionProbe`; ``data`` shows the grids.
    """

    kind, reads, optional = "study", "study", False
    data: StudyData

    @cached_property
    def _rank(self) -> dict[int, int]:
        """Image → its number among all images: folds must not depend on when training lets an image pass."""
        return {index: k for k, index in enumerate(self.data.everyone)}

    def observe(self, batch: GridBatch) -> None:
        """Measure whole images, once each."""
        order = torch.tensor([self._rank[index] for index in batch.image.tolist()], dtype=torch.long)
        for layer, grid in batch.grids.items():
            masks = dict(batch.masks[layer])
            if "labelled" in masks:
                masks["anomaly"] = masks["labelled"]
            elif ANOMALIES in batch.masks:
                masks["anomaly"] = at_grid(batch.masks[ANOMALIES]["high_norm"], grid.shape[2], grid.shape[3])
            measure = self._measure(layer, grid.device, "anomaly" in masks)
            tokens = LayerTokens.of(grid, masks, rank=order)
            measure.norms.update(tokens)
            measure.high_norm.update(tokens)
            if "labelled" in masks:
                measure.labelled.update(masks["high_norm"], masks["labelled"], order)
            inner = grid[:, :, 1:-1, 1:-1]
            parts = border_groups(inner.shape[2], inner.shape[3], inner.device)
            shared = {name: mask.expand(len(inner), -1, -1) for name, mask in parts.items()}
            measure.reprcropped.update(LayerTokens.of(inner, shared, rank=order))

    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Tokens test the position probe; grids are whole images or crops."""
        if dataloader_idx == TOKENS:
            super().test_step(batch, batch_idx)
        elif dataloader_idx == WHOLE:
            self.observe(batch)
        else:
            for layer, grid in batch.grids.items():
                measure = self._measure(layer, grid.device)
                measure.cropped.update(LayerTokens.of(grid, batch.masks[layer]))

    def collect(self) -> None:
        """Position, similarities and norms."""
        super().collect()
        for layer in self.measures:
            self.results |= qualified("test", layer, self._measure(layer, self.device).compute())

    def maps(self) -> dict[str, Any]:
        """Those of the position probe and ``<layer>/norm``."""
        norms = {f"{layer}/norm": self._measure(layer, self.device).norms.maps()["norm"] for layer in self.measures}
        return super().maps() | norms

    def _measure(self, layer: str, device: torch.device, anomalies: bool = False) -> "_Measure":
        """Metrics of a layer, made where its first grid lies."""
        if layer not in self.measures:
            _, height, width = self.shapes[layer]
            self.measures[layer] = _Measure(height, width, len(self._rank), anomalies).to(device)
        return cast(_Measure, self.measures[layer])


class _Measure(nn.Module):
    """Similarities and norms of one layer."""

    def __init__(self, height: int, width: int, images: int, anomalies: bool) -> None:
        super().__init__()
        counts = {name: int(mask.sum()) for name, mask in border_groups(height, width).items()}
        self.reprcropped = GroupSimilarity(PARTITION, images, counts=counts)
        self.cropped = GroupSimilarity(PARTITION, images, counts=counts)
        groups = (*GROUPS, "anomaly") if anomalies else GROUPS
        self.norms = TokenNorms(height, width, groups, images)
        self.high_norm = HighNormTokens(images)
        self.labelled = DetectionScore(images)

    def compute(self) -> dict[str, float]:
        """``<metric>/<group>`` with intervals."""
        values = self.norms.compute() | self.high_norm.compute()
        if self.labelled.seen:
            values |= {f"labels_{key}": value for key, value in self.labelled.compute().items()}
        for name, metric in (("reprcropped", self.reprcropped), ("cropped", self.cropped)):
            for text, value in metric.compute().items():
                key = Key.parse(text)
                values[str(replace(key, metric=key.metric.replace("similarity", f"similarity_{name}")))] = value
        return values
