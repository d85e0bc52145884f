"""StudyProbe: the published study in one run: position, similarity of corners, and norms of every layer.

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
from sdprobe.tokens.keys import GROUPS, PARTITION, Key, qualified, timestep_of, variant

ANOMALIES = "up_1"  # the layer whose high-norm tokens the study labelled by hand
TOKENS, WHOLE = 0, 1  # the first two test dataloaders; the others stream crops


class StudyData(Data, Protocol):
    """A data module that calls :meth:`StudyProbe.observe` with every whole grid."""

    @property
    def all_images(self) -> list[int]:
        """Indices of all images, in order."""


class StudyProbe(PositionProbe):
    """A :class:`~probes.position.PositionProbe` that also measures norms and similarities of whole grids.

    ``results`` also have, per layer: ``relative_norm/<group>``; ``similarity_reprcropped/<group>``, without the outer ring of
    tokens; and ``similarity_cropped/<group>``, of images that are cropped by one token before extraction. There is also
    ``similarity_reprcropped_published`` and ``similarity_cropped_published``, divided by the token counts of the uncropped grid
    as in the study. The group ``anomaly`` holds hand-labelled tokens or, without labels, the positions of the
    high-norm tokens of ``up_1``, in every layer.

    Args:
        shapes: layer → (C, h, w); h and w at least 6.
        photos: number of photographs.
        data: a data module that gives whole grids to :meth:`observe`, such as
            :class:`~datamodules.study.StudyDataModule`.
        head: ``classification`` or ``regression``.
        solver: ``adam`` or ``closed_form``.
        learning_rate: step size of Adam, above 0.
        min_steps: least number of steps before a head may stop, at least 0.
        patience: validations in a row without improvement after which a head stops, at least 1.
        seed: seed of the initial weights and of the controls.

    Raises:
        InputError: as :class:`~probes.position.PositionProbe`.

    References:
        Loos & Linhardt (2025), arXiv 2504.07008.

    Example:
        >>> from types import SimpleNamespace
        >>> from sdprobe.tokens.groups import token_groups
        >>> probe = StudyProbe({"mid": (4, 8, 8)}, photos=2, data=SimpleNamespace(kind="study", all_images=[0, 1]))
        >>> grid, images = torch.ones(2, 4, 8, 8), torch.arange(2)
        >>> probe.observe(GridBatch({"mid": grid}, {"mid": token_groups(grid)}, images, images))
        >>> probe.measures["mid"].compute()["similarity_reprcropped/corner"]  # all tokens are equal
        1.0
    """

    kind, reads, optional = "study", "study", False
    data: StudyData

    @cached_property
    def _rank(self) -> dict[int, int]:
        """Image → its number among all images: groups for intervals must not depend on the order of training."""
        return {index: k for k, index in enumerate(self.data.all_images)}

    def observe(self, batch: GridBatch) -> None:
        """Measure the whole grids of images, each of which is given once."""
        order = torch.tensor([self._rank[index] for index in batch.image.tolist()], dtype=torch.long)
        for layer, grid in batch.grids.items():
            masks = dict(batch.masks[layer])
            anomalous = variant(ANOMALIES, timestep=timestep_of(layer))
            if "labelled" in masks:
                masks["anomaly"] = masks["labelled"]
            elif anomalous in batch.masks:
                masks["anomaly"] = at_grid(batch.masks[anomalous]["high_norm"], grid.shape[2], grid.shape[3])
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
        """Test the position probe on tokens, and measure the grids of whole images and crops."""
        if dataloader_idx == TOKENS:
            super().test_step(batch, batch_idx)
        elif dataloader_idx == WHOLE:
            self.observe(batch)
        else:
            for layer, grid in batch.grids.items():
                measure = self._measure(layer, grid.device)
                measure.cropped.update(LayerTokens.of(grid, batch.masks[layer]))

    def collect(self) -> None:
        """Write the results of position, similarities and norms."""
        super().collect()
        for layer in self.measures:
            self.results |= qualified("test", layer, self._measure(layer, self.device).compute())

    def maps(self) -> dict[str, Any]:
        """Return arrays of :class:`~probes.position.PositionProbe`, and ``<layer>/norm`` (h, w)."""
        norms = {f"{layer}/norm": self._measure(layer, self.device).norms.maps()["norm"] for layer in self.measures}
        return super().maps() | norms

    def _measure(self, layer: str, device: torch.device, anomalies: bool = False) -> "_Measure":
        """Metrics of a layer, built on the device of its first grid."""
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
