"""PositionProbe: how well a linear map predicts a token's (row, col) from its activation. Data path steps 8 and 9.

Two controls are trained on the same tokens as every probe. For ``shuffled_labels`` positions are permuted within each batch; it
is tested on true positions. For ``random_partition`` positions are assigned to random classes, as many as there are rows and
columns, which shows how much a probe of this capacity memorises.

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
from sdprobe.estimators.heads import grid_positions
from sdprobe.metrics.grid_accuracy import GridAccuracy, chance
from sdprobe.metrics.r2 import CoordinateR2
from sdprobe.tokens.batch import TokenBatch
from sdprobe.tokens.keys import GROUPS, base_of, qualified, select
from sdprobe.utilities import settings
from sdprobe.utilities.errors import InputError
from sdprobe.utilities.rng import keyed_generator

VARIANTS = ("test", "shuffled_labels", "random_partition")


class PositionProbe(LinearProbe):
    """Linear probes that predict a token's row and column from its activation.

    ``results`` have ``axis_accuracy``, ``cell_accuracy`` and ``binned_accuracy`` (see
    :class:`~sdprobe.metrics.grid_accuracy.GridAccuracy`) of every layer and token group, as fractions from 0 to 1, for the
    probe (``test``) and its controls ``shuffled_labels``, ``random_partition`` and ``chance``. Regression adds R².

    Args:
        shapes: layer → (C, h, w); h and w at least 2.
        photos: number of photographs; the photo indices of batches are smaller.
        data: the data module; not needed.
        head: ``classification`` (C → h + w, two softmaxes, cross-entropy) or ``regression`` (C → 2 coordinates, squared
            error, rounded to the grid).
        solver: ``adam``, or ``closed_form``: linear discriminants for classification, ridge for regression, in one pass.
        learning_rate: step size of Adam, above 0; the published study takes 1e-3.
        min_steps: least number of steps before a head may stop, at least 0.
        patience: validations in a row without improvement after which a head stops, at least 1.
        seed: seed of the initial weights and of the controls.

    Raises:
        InputError: an option out of range, a grid of less than 2 × 2 tokens, a data module of another kind.

    References:
        Loos & Linhardt (2025), arXiv 2504.07008. Hewitt & Liang (2019), Designing and Interpreting Probes with Control Tasks.

    Example:
        >>> import lightning
        >>> from datamodules.activations import ActivationDataModule
        >>> from datamodules.images.texture import LatentTextures
        >>> from sdprobe import FrozenSD
        >>> sd = FrozenSD.from_pretrained("tiny", device="cpu")
        >>> data = ActivationDataModule(LatentTextures(size=128, limit=20), sd, block="up_1")
        >>> probe = PositionProbe(data.shapes, data.photos, solver="closed_form")
        >>> trainer = lightning.Trainer(
        ...     max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        ...     enable_model_summary=False,
        ... )
        >>> trainer.fit(probe, data)
        >>> _ = trainer.test(probe, data, verbose=False)
        >>> probe.results["chance/up_1/axis_accuracy/all"]  # 8 rows and 8 columns
        0.125
        >>> probe.results["test/up_1/axis_accuracy/all"] > 2 * probe.results["chance/up_1/axis_accuracy/all"]
        True
    """

    kind, reads, optional = "position", "activations", True
    variants, metric = VARIANTS, "axis_accuracy"
    score = "binned_accuracy/all"  # comparable between grids

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
                    f"Expected grids of at least 2×2 tokens to probe positions, but got {height}×{width} in layer {layer}. "
                    "Use larger images; images.size=128 gives 2×2 in the layer mid of Stable Diffusion."
                )
        self.regresses = head == "regression"
        self.predicts = "coordinates" if self.regresses else "position"
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
        """Return the sum over layers and variants of the mean loss per token; None in closed form."""
        self._seen.update(batch.tokens.keys())
        epoch = self.trainer.current_epoch
        # keyed by the layer's own step, since layers may differ in their number of steps
        labels = {
            layer: self._labels(layer, positions, "train", epoch, self._seen[layer])
            for layer, positions in batch.positions.items()
        }
        if self.closed_form:
            for layer, tokens in batch.tokens.items():
                self._moments_of(layer).update(tokens, labels[layer])
            return None
        # a finished head keeps its best state and needs no training
        active = [layer for layer in batch.tokens if layer not in self._done]
        losses = {layer: self._losses(layer, batch.tokens[layer], labels[layer]) for layer in active}
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
        """Update the metrics of every head with tokens of whole grids."""
        for layer, tokens in batch.tokens.items():
            positions, masks, photo = batch.positions[layer], batch.masks[layer], batch.photo[layer]
            predicted = self._predict(layer, tokens)
            for i, variant in enumerate(VARIANTS):
                target = self._partition(layer, positions) if variant == "random_partition" else positions
                self._accuracy(variant, layer).update(predicted[:, i], target, masks, photo)
            if self.regresses:
                self._r2(layer).update(self._head(layer)(tokens)[:, 0], self._coordinates(layer, positions), photo)

    def collect(self) -> None:
        """Write the results of probes and controls, and the chance level of every grid."""
        self.collect_scores(self.accuracy, ("test", "shuffled_labels"))
        for layer, (_, height, width) in self.shapes.items():
            # random classes have no neighbours, so only axis accuracy is meaningful
            partition = select(self._accuracy("random_partition", layer).compute(), metric="axis_accuracy")
            self.results |= qualified("random_partition", layer, partition)
            self.results |= {f"chance/{layer}/{kind}/all": value for kind, value in chance(height, width).items()}
            if self.regresses:
                self.results |= qualified("test", layer, self._r2(layer).compute())
            self._maps |= {f"{layer}/{name}": table for name, table in self._accuracy("test", layer).maps().items()}
        self.log_dict(select(self.results, condition="test", statistic=""))

    def maps(self) -> dict[str, Float[np.ndarray, "_h _w"]]:
        """Arrays of the probes by name.

        Returns:
            ``<layer>/accuracy`` (h, w), ``<layer>/rows`` (h, h) and ``<layer>/cols`` (w, w), see
            :meth:`~sdprobe.metrics.grid_accuracy.GridAccuracy.maps`.
        """
        return dict(self._maps)

    def _labels(self, layer: str, positions: Int[Tensor, "n 2"], *key: object) -> Int[Tensor, "n v 2"]:
        """(row, col) labels of every variant, in the order of VARIANTS."""
        shuffle = torch.randperm(len(positions), generator=keyed_generator("shuffle", self.seed, base_of(layer), *key))
        return torch.stack([positions, positions[shuffle.to(positions.device)], self._partition(layer, positions)], dim=1)

    def _partition(self, layer: str, positions: Int[Tensor, "n 2"]) -> Int[Tensor, "n 2"]:
        classes = self.partitions[layer] = self.partitions[layer].to(positions.device)
        return classes[positions[:, 0] * self.shapes[layer][2] + positions[:, 1]]

    def _losses(self, layer: str, tokens: Float[Tensor, "n c"], labels: Int[Tensor, "n v 2"]) -> Float[Tensor, " v"]:
        """Mean loss of every variant."""
        outputs, count = self._head(layer)(tokens), len(tokens)
        if self.regresses:
            return (outputs - self._coordinates(layer, labels)).square().sum(-1).sum(0) / count
        height = self.shapes[layer][1]
        logits = outputs[..., :height], outputs[..., height:]
        losses = [_cross_entropy(axis_logits, labels[..., axis]) / count for axis, axis_logits in enumerate(logits)]
        return torch.stack(losses).sum(0)

    def _predict(self, layer: str, tokens: Float[Tensor, "n c"]) -> Int[Tensor, "n v 2"]:
        """Predicted (row, col) of every variant."""
        _, height, width = self.shapes[layer]
        return grid_positions(self._head(layer)(tokens), height, width, self.regresses)

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
    """Two random balanced labellings of the positions, with as many classes as there are rows and columns."""
    generator = keyed_generator("partition", seed, base_of(layer))
    order = [torch.randperm(height * width, generator=generator) for _ in range(2)]
    return torch.stack([order[0] % height, order[1] % width], dim=1)
