"""PositionProbe: how well a linear map predicts a token's (row, col) from its activation. Data path steps 8 and 9.

Two controls are trained on the same tokens as every probe. For ``shuffled_labels`` positions are permuted within each batch; it
is tested on true positions. For ``random_partition`` positions are assigned to random classes, as many as there are rows and
columns, which shows how much a probe of this capacity memorises.

References:
    Loos & Linhardt (2025), arXiv 2504.07008. Hewitt & Liang (2019), Designing and Interpreting Probes with Control Tasks.
"""

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor

from probes.base import Data, Shapes
from probes.linear import LinearProbe
from sdprobe.estimators.closed_form import Moments
from sdprobe.estimators.position import VARIANTS, PositionScores, PositionTask, solution
from sdprobe.tokens.batch import TokenBatch
from sdprobe.tokens.keys import select
from sdprobe.utilities import settings


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
        regresses = head == "regression"
        tasks = {layer: PositionTask(layer, shape, regresses, seed) for layer, shape in shapes.items()}
        outputs = {layer: task.outputs for layer, task in tasks.items()}
        super().__init__(shapes, data, outputs, solver, learning_rate, min_steps, patience, seed)
        self.regresses, self.predicts = regresses, "coordinates" if regresses else "position"
        self.tasks, self.scores = tasks, PositionScores(tasks, photos)
        self._maps: dict[str, np.ndarray] = {}

    def training_step(self, batch: TokenBatch, batch_idx: int) -> Tensor | None:
        """Return the sum over layers and variants of the mean loss per token; None in closed form."""
        self._seen.update(batch.tokens.keys())
        epoch = self.trainer.current_epoch
        labels = {
            layer: self.tasks[layer].training_labels(positions, epoch, self._seen[layer])
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
            labels = self.tasks[layer].validation_labels(batch.positions[layer], batch_idx)
            right = (self._predict(layer, tokens) == labels).double().mean((0, 2))
            self._validate(layer, self._losses(layer, tokens, labels), right, 1)

    def test_step(self, batch: TokenBatch, batch_idx: int) -> None:
        """Update the metrics of every head with tokens of whole grids."""
        for layer, tokens in batch.tokens.items():
            outputs = self._head(layer)(tokens)
            self.scores.update(layer, outputs, batch.positions[layer], batch.masks[layer], batch.photo[layer])

    def collect(self) -> None:
        """Write the results of probes and controls, and the chance level of every grid."""
        results, units = self.scores.compute()
        self.results |= results
        self._units |= units
        self._maps |= self.scores.maps()
        self.log_dict(select(self.results, condition="test", statistic=""))

    def maps(self) -> dict[str, Float[np.ndarray, "_h _w"]]:
        """Arrays of the probes by name.

        Returns:
            ``<layer>/accuracy`` (h, w), ``<layer>/rows`` (h, h) and ``<layer>/cols`` (w, w), see
            :meth:`~sdprobe.metrics.grid_accuracy.GridAccuracy.maps`.
        """
        return dict(self._maps)

    def _losses(self, layer: str, tokens: Float[Tensor, "n c"], labels: Int[Tensor, "n v 2"]) -> Float[Tensor, " v"]:
        """Mean loss of every variant."""
        return self.tasks[layer].losses(self._head(layer)(tokens), labels)

    def _predict(self, layer: str, tokens: Float[Tensor, "n c"]) -> Int[Tensor, "n v 2"]:
        """Predicted (row, col) of every variant."""
        return self.tasks[layer].predict(self._head(layer)(tokens))

    def _moments_of(self, layer: str) -> Moments:
        if layer not in self._moments:
            self._moments[layer] = self.tasks[layer].moments(self.device)
        return self._moments[layer]

    def _solution(self, moments: Moments) -> tuple[Float[Tensor, "v k c"], Float[Tensor, "v k"]]:
        return solution(moments, self.regresses)
