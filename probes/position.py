"""PositionProbe: how well a linear map reads a token's (row, col) out of its activation. Data path steps 8 and 9.

Beside every probe two controls are trained on the same tokens: ``shuffled_labels`` (positions permuted within each
batch; tested on true positions) and ``random_partition`` (positions assigned to as many random classes: what a probe of
this capacity memorises).

References:
    Loos & Linhardt (2025), arXiv 2504.07008. Hewitt & Liang (2019), Designing and Interpreting Probes with Control Tasks.
"""

from typing import cast

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from probes.base import Data, Shapes
from probes.linear import LinearProbe
from sdprobe.estimators.closed_form import Moments, coordinates
from sdprobe.metrics.grid_accuracy import GridAccuracy, chance
from sdprobe.metrics.r2 import CoordinateR2
from sdprobe.tokens.batch import TokenBatch
from sdprobe.tokens.keys import GROUPS, base_of, qualified, select
from sdprobe.utilities import settings
from sdprobe.utilities.errors import InputError
from sdprobe.utilities.rng import keyed_generator

VARIANTS = ("test", "shuffled_labels", "random_partition")


class PositionProbe(LinearProbe):
    """Linear position probes of every layer.

    Args:
        shapes: layer → (C, h, w); h and w at least 2.
        photos: number of photographs; photo indices lie below it.
        data: the data module; not needed.
        head: ``classification`` (C → h + w, two softmaxes, cross-entropy) or ``regression`` (C → 2 coordinates, squared
            error, rounded to the grid).
        solver: ``adam`` or ``closed_form`` (linear discriminants, or ridge for regression; one pass).
        learning_rate: of Adam; the published protocol takes 1e-3.
        min_steps, patience: see :class:`~probes.linear.LinearProbe`.
        seed: of initial weights and controls.
    """

    kind, reads, optional = "position", "activations", True
    variants, metric = VARIANTS, "axis_accuracy"

    def __init__(
        self,
        shapes: Shapes,
        photos: int,
        data: Data | None = None,
        head: str = "classification",
        solver: str = "adam",
        learning_rate: float = 3e-3,
        min_steps: int = 600,
        patience: int = 3,
        seed: int = 0,
    ) -> None:
        settings.check("probe=position", head=head, solver=solver)
        outputs = {layer: 2 if head == "regression" else h + w for layer, (_, h, w) in shapes.items()}
        super().__init__(shapes, data, outputs, solver, learning_rate, min_steps, patience, seed)
        for layer, (_, height, width) in shapes.items():
            if min(height, width) < 2:
                raise InputError(
                    f"Expected grids of at least 2×2 tokens to read a position from, but layer {layer} has {height}×{width}. "
                    "Use larger images (images.size=128 gives 2×2 at the middle of Stable Diffusion)."
                )
        self.regresses = head == "regression"
        self.partitions = {layer: _random_partition(h, w, seed, layer) for layer, (_, h, w) in shapes.items()}
        self.accuracy = nn.ModuleDict(
            {
                f"{variant}/{layer}": GridAccuracy(h, w, GROUPS, photos)
                for variant in VARIANTS
                for layer, (_, h, w) in shapes.items()
            }
        )
        self.r2 = nn.ModuleDict({layer: CoordinateR2(photos) for layer in shapes} if self.regresses else {})
        self._maps: dict[str, np.ndarray] = {}

    def training_step(self, batch: TokenBatch, batch_idx: int) -> Tensor | None:
        """Sum over layers and variants of the mean loss per token; the closed form only adds up moments."""
        self._seen.update(batch.tokens.keys())
        epoch = self.trainer.current_epoch
        # keyed by the layer's own step: other layers may have more of them
        labels = {
            layer: self._labels(layer, where, "train", epoch, self._seen[layer]) for layer, where in batch.positions.items()
        }
        if self.closed_form:
            for layer, tokens in batch.tokens.items():
                self._moments_of(layer).update(tokens, labels[layer])
            return None
        # a finished head keeps its best state whatever happens, so nothing needs to happen
        active = [layer for layer in batch.tokens if layer not in self._done]
        losses = [self._losses(layer, batch.tokens[layer], labels[layer]).sum() for layer in active]
        for layer in active:
            self._head(layer).steps += 1
        return self._total(losses)

    def validation_step(self, batch: TokenBatch, batch_idx: int) -> None:
        """Add up loss and axis accuracy of every head."""
        for layer, tokens in batch.tokens.items():
            labels = self._labels(layer, batch.positions[layer], "val", batch_idx)
            right = (self._predict(layer, tokens) == labels).double().mean((0, 2))
            self._validate(layer, self._losses(layer, tokens, labels), right, 1)

    def test_step(self, batch: TokenBatch, batch_idx: int) -> None:
        """Update the metrics of every head with the tokens of whole grids."""
        for layer, tokens in batch.tokens.items():
            where, masks, photo = batch.positions[layer], batch.masks[layer], batch.photo[layer]
            predicted = self._predict(layer, tokens)
            for i, variant in enumerate(VARIANTS):
                target = self._partition(layer, where) if variant == "random_partition" else where
                self._accuracy(variant, layer).update(predicted[:, i], target, masks, photo)
            if self.regresses:
                self._r2(layer).update(self._head(layer)(tokens)[:, 0], self._coordinates(layer, where), photo)

    def collect(self) -> None:
        """Results of probes and controls, with the chance level of every grid."""
        self.collect_scores(self.accuracy, ("test", "shuffled_labels"))
        for layer, (_, height, width) in self.shapes.items():
            # classes of a random partition have no neighbourhood, so only axis accuracy means something
            partition = select(self._accuracy("random_partition", layer).compute(), metric="axis_accuracy")
            self.results |= qualified("random_partition", layer, partition)
            self.results |= {f"chance/{layer}/{kind}/all": value for kind, value in chance(height, width).items()}
            if self.regresses:
                self.results |= qualified("test", layer, self._r2(layer).compute())
            self._maps |= {f"{layer}/{name}": table for name, table in self._accuracy("test", layer).maps().items()}
        self.log_dict(select(self.results, condition="test", statistic=""))

    def maps(self) -> dict[str, Float[np.ndarray, "_h _w"]]:
        """``<layer>/accuracy``, ``<layer>/rows``, ``<layer>/cols`` of the probes, see :meth:`GridAccuracy.maps`."""
        return dict(self._maps)

    def _labels(self, layer: str, where: Int[Tensor, "n 2"], *key: object) -> Int[Tensor, "n v 2"]:
        """(row, col) labels of every variant, in the order of VARIANTS."""
        shuffle = torch.randperm(len(where), generator=keyed_generator("shuffle", self.seed, base_of(layer), *key))
        return torch.stack([where, where[shuffle.to(where.device)], self._partition(layer, where)], dim=1)

    def _partition(self, layer: str, where: Int[Tensor, "n 2"]) -> Int[Tensor, "n 2"]:
        classes = self.partitions[layer] = self.partitions[layer].to(where.device)
        return classes[where[:, 0] * self.shapes[layer][2] + where[:, 1]]

    def _losses(self, layer: str, tokens: Float[Tensor, "n c"], labels: Int[Tensor, "n v 2"]) -> Float[Tensor, " v"]:
        """Mean loss of every variant."""
        outputs, count = self._head(layer)(tokens), len(tokens)
        if self.regresses:
            return (outputs - self._coordinates(layer, labels)).square().sum(-1).sum(0) / count
        height = self.shapes[layer][1]
        parts = outputs[..., :height], outputs[..., height:]
        losses = [_cross_entropy(part, labels[..., axis]) / count for axis, part in enumerate(parts)]
        return torch.stack(losses).sum(0)

    def _predict(self, layer: str, tokens: Float[Tensor, "n c"]) -> Int[Tensor, "n v 2"]:
        """Predicted (row, col) of every variant."""
        outputs = self._head(layer)(tokens)
        _, height, width = self.shapes[layer]
        if not self.regresses:
            return torch.stack([outputs[..., :height].argmax(-1), outputs[..., height:].argmax(-1)], dim=-1)
        sides = torch.tensor([height, width], device=outputs.device)
        return ((outputs + 0.5) * sides).floor().long().clamp(min=torch.zeros_like(sides), max=sides - 1)

    def _coordinates(self, layer: str, index: Int[Tensor, "*n 2"]) -> Float[Tensor, "*n 2"]:
        _, height, width = self.shapes[layer]
        return torch.stack([coordinates(index[..., 0], height), coordinates(index[..., 1], width)], dim=-1)

    def _accuracy(self, variant: str, layer: str) -> GridAccuracy:
        return cast(GridAccuracy, self.accuracy[f"{variant}/{layer}"])

    def _r2(self, layer: str) -> CoordinateR2:
        return cast(CoordinateR2, self.r2[layer])

    def _moments_of(self, layer: str) -> Moments:
        if layer not in self._moments:
            channels, *sides = self.shapes[layer]
            self._moments[layer] = Moments(channels, sides, len(VARIANTS), self.device)
        return self._moments[layer]

    def _solution(self, moments: Moments) -> tuple[Float[Tensor, "v k c"], Float[Tensor, "v k"]]:
        solve = moments.ridge if self.regresses else moments.discriminants
        weights, biases = zip(*[solve(variant) for variant in range(len(VARIANTS))], strict=True)
        return torch.stack(weights), torch.stack(biases)


def _cross_entropy(logits: Float[Tensor, "n v k"], labels: Int[Tensor, "n v"]) -> Float[Tensor, " v"]:
    """Sum over tokens of −log softmax(logits)[label], for every variant."""
    chosen = logits.gather(-1, labels[..., None])[..., 0]
    return (logits.logsumexp(-1) - chosen).sum(0)


def _random_partition(height: int, width: int, seed: int, layer: str) -> Int[Tensor, "{height*width} 2"]:
    """Two random balanced labellings of the positions: one into as many classes as rows, one as columns."""
    generator = keyed_generator("partition", seed, base_of(layer))
    order = [torch.randperm(height * width, generator=generator) for _ in range(2)]
    return torch.stack([order[0] % height, order[1] % width], dim=1)
