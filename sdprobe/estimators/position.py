"""Position of tokens: what a linear head and its two controls learn, and how they are scored on whole grids.

For ``shuffled_labels`` positions are permuted within each batch; it is tested on true positions. For ``random_partition``
positions are assigned to random classes, as many as there are rows and columns.
"""

from collections.abc import Mapping
from typing import cast

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from sdprobe.estimators.closed_form import Moments, coordinates
from sdprobe.estimators.heads import grid_positions
from sdprobe.estimators.scores import entry, reported
from sdprobe.metrics.grid_accuracy import GridAccuracy, chance
from sdprobe.metrics.r2 import CoordinateR2
from sdprobe.tokens.keys import GROUPS, base_of, qualified, select
from sdprobe.utilities.errors import InputError
from sdprobe.utilities.rng import keyed_generator

VARIANTS = ("test", "shuffled_labels", "random_partition")


class PositionTask:
    """What the heads of one layer learn: labels, loss and predictions.

    Outputs are logits of rows, then of columns; with ``regresses`` two coordinates.

    Args:
        layer: its name, which keys the controls.
        shape: (C, h, w); h and w at least 2.
        regresses: whether heads are regressions of coordinates instead of classifiers.
        seed: seed of the controls.

    Raises:
        InputError: a grid of less than 2 × 2 tokens.
    """

    def __init__(self, layer: str, shape: tuple[int, int, int], regresses: bool = False, seed: int = 0) -> None:
        self.layer, self.regresses, self.seed = layer, regresses, seed
        self.channels, self.height, self.width = shape
        if min(self.height, self.width) < 2:
            raise InputError(
                f"Expected grids of at least 2×2 tokens to probe positions, but got {self.height}×{self.width} in layer "
                f"{layer}. Use larger images; images.size=128 gives 2×2 in the layer mid of Stable Diffusion."
            )
        self.outputs = 2 if regresses else self.height + self.width
        self.partition = _random_partition(self.height, self.width, seed, layer)

    def training_labels(self, positions: Int[Tensor, "n 2"], epoch: int, step: int) -> Int[Tensor, "n v 2"]:
        """(row, col) labels of every variant, in the order of VARIANTS, for a batch of an epoch.

        ``step`` counts the layer's own batches from 1, since layers may differ in their number of batches.
        """
        return self._labels(positions, "train", epoch, step)

    def validation_labels(self, positions: Int[Tensor, "n 2"], batch: int) -> Int[Tensor, "n v 2"]:
        """The same for batch number ``batch`` of the validation images."""
        return self._labels(positions, "val", batch)

    def _labels(self, positions: Int[Tensor, "n 2"], *key: object) -> Int[Tensor, "n v 2"]:
        shuffle = torch.randperm(len(positions), generator=keyed_generator("shuffle", self.seed, base_of(self.layer), *key))
        return torch.stack([positions, positions[shuffle.to(positions.device)], self.classes(positions)], dim=1)

    def classes(self, positions: Int[Tensor, "n 2"]) -> Int[Tensor, "n 2"]:
        """Labels of ``random_partition``."""
        self.partition = self.partition.to(positions.device)
        return self.partition[positions[:, 0] * self.width + positions[:, 1]]

    def losses(self, outputs: Float[Tensor, "n v k"], labels: Int[Tensor, "n v 2"]) -> Float[Tensor, " v"]:
        """Mean loss of every variant: cross-entropy of rows and columns, or the squared error."""
        count = len(outputs)
        if self.regresses:
            return (outputs - self.coordinates(labels)).square().sum(-1).sum(0) / count
        logits = outputs[..., : self.height], outputs[..., self.height :]
        losses = [_cross_entropy(axis_logits, labels[..., axis]) / count for axis, axis_logits in enumerate(logits)]
        return torch.stack(losses).sum(0)

    def predict(self, outputs: Float[Tensor, "n v k"]) -> Int[Tensor, "n v 2"]:
        """Predicted (row, col) of every variant."""
        return grid_positions(outputs, self.height, self.width, self.regresses)

    def coordinates(self, index: Int[Tensor, "*n 2"]) -> Float[Tensor, "*n 2"]:
        """Normalised coordinates of positions."""
        return torch.stack([coordinates(index[..., 0], self.height), coordinates(index[..., 1], self.width)], dim=-1)

    def moments(self, device: torch.device) -> Moments:
        """Empty sums for :func:`solution`."""
        return Moments(self.channels, (self.height, self.width), len(VARIANTS), device)


class PositionScores(nn.Module):
    """Accuracies of the heads of all layers on tokens of whole grids; with regression also R².

    Args:
        tasks: layer → what its heads have learned.
        photos: number of photographs; photo indices are below it.
    """

    def __init__(self, tasks: Mapping[str, PositionTask], photos: int) -> None:
        super().__init__()
        self.tasks = dict(tasks)
        self.accuracy = nn.ModuleDict(
            {
                entry(variant, layer): GridAccuracy(task.height, task.width, GROUPS, photos)
                for variant in VARIANTS
                for layer, task in self.tasks.items()
            }
        )
        self.r2 = nn.ModuleDict(
            {entry("r2", layer): CoordinateR2(photos) for layer, task in self.tasks.items() if task.regresses}
        )

    def update(
        self,
        layer: str,
        outputs: Float[Tensor, "n v k"],
        positions: Int[Tensor, "n 2"],
        masks: dict[str, Bool[Tensor, " n"]],
        photo: Int[Tensor, " n"],
    ) -> None:
        """Add tokens: outputs of every variant, true (row, col), group masks, and the photograph each comes from."""
        task = self.tasks[layer]
        predicted = task.predict(outputs)
        for i, variant in enumerate(VARIANTS):
            target = task.classes(positions) if variant == "random_partition" else positions
            self._accuracy(variant, layer).update(predicted[:, i], target, masks, photo)
        if task.regresses:
            self._r2(layer).update(outputs[:, 0], task.coordinates(positions), photo)

    def compute(self) -> tuple[dict[str, float], dict[str, np.ndarray]]:
        """Numbers of the probe and its controls, with the chance level of every grid; pseudo-values of the probe."""
        results, units = reported(self.accuracy, self.tasks, ("test", "shuffled_labels"))
        for layer, task in self.tasks.items():
            # random classes have no neighbours, so only axis accuracy is meaningful
            partition = select(self._accuracy("random_partition", layer).compute(), metric="axis_accuracy")
            results |= qualified("random_partition", layer, partition)
            results |= {f"chance/{layer}/{kind}/all": value for kind, value in chance(task.height, task.width).items()}
            if task.regresses:
                results |= qualified("test", layer, self._r2(layer).compute())
        return results, units

    def maps(self) -> dict[str, Float[np.ndarray, "_h _w"]]:
        """``<layer>/accuracy``, ``<layer>/rows`` and ``<layer>/cols`` of the probe, see
        :meth:`~sdprobe.metrics.grid_accuracy.GridAccuracy.maps`."""
        return {
            f"{layer}/{name}": table for layer in self.tasks for name, table in self._accuracy("test", layer).maps().items()
        }

    def _accuracy(self, variant: str, layer: str) -> GridAccuracy:
        return cast(GridAccuracy, self.accuracy[entry(variant, layer)])

    def _r2(self, layer: str) -> CoordinateR2:
        return cast(CoordinateR2, self.r2[entry("r2", layer)])


def solution(moments: Moments, regresses: bool) -> tuple[Float[Tensor, "v k c"], Float[Tensor, "v k"]]:
    """Weight and bias of every variant, in closed form: linear discriminants, or ridge regression."""
    solve = moments.ridge if regresses else moments.discriminants
    weights, biases = zip(*[solve(variant) for variant in range(len(VARIANTS))], strict=True)
    return torch.stack(weights), torch.stack(biases)


def _cross_entropy(logits: Float[Tensor, "n v k"], labels: Int[Tensor, "n v"]) -> Float[Tensor, " v"]:
    """Sum over tokens of −log softmax(logits)[label], for every variant."""
    chosen = logits.gather(-1, labels[..., None])[..., 0]
    return (logits.logsumexp(-1) - chosen).sum(0)


def _random_partition(height: int, width: int, seed: int, layer: str) -> Int[Tensor, "{height*width} 2"]:
    """Two random balanced labellings of the positions, with as many classes as there are rows and columns."""
    generator = keyed_generator("partition", seed, base_of(layer))
    order = [torch.randperm(height * width, generator=generator) for _ in range(2)]
    return torch.stack([order[0] % height, order[1] % width], dim=1)
