"""LinearProbe: the base of probes with a linear head per layer: one optimiser, each head's best state, when to stop.

Data path step 8.
"""

from collections import Counter
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
from jaxtyping import Float
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor

from probes.base import Data, Probe, Shapes
from sdprobe.estimators.heads import Head, LayerHead, layer_heads, save
from sdprobe.tokens.keys import is_energy_control, select
from sdprobe.utilities import settings
from sdprobe.utilities.distributed import Processes


class LinearProbe(Probe):
    """Base class of probes with linear heads: one per layer, with several ``variants`` (the probe and its controls).

    The heads of all layers share one Adam optimiser, but do not influence each other. Each is tested in the state of its best
    validation. In closed form they are solved from sums over one pass of the training images.

    A subclass defines loss, validation and test. ``metric`` is the name of what it validates besides the loss.

    Args:
        shapes: layer → (C, h, w).
        data: the data module; None if the probe needs none.
        outputs: layer → K, the number of outputs.
        solver: ``adam``, ``closed_form``, or ``none``, which makes no heads.
        learning_rate: step size of Adam, above 0.
        min_steps: least number of steps before a head may stop, at least 0.
        patience: validations in a row without improvement (0.1 % of the loss) after which a head stops, at least 1. Without
            validation images all heads train until ``trainer.max_epochs``.
        seed: seed of the initial weights.

    Raises:
        InputError: an option out of range, a data module of another kind.
    """

    variants: ClassVar[tuple[str, ...]]
    metric: ClassVar[str]
    predicts: str  # what its heads predict, see :class:`~sdprobe.estimators.heads.Head`

    def __init__(
        self,
        shapes: Shapes,
        data: Data | None,
        outputs: dict[str, int],
        solver: str,
        learning_rate: float,
        min_steps: int,
        patience: int,
        seed: int,
    ) -> None:
        super().__init__(shapes, data)
        settings.check("probe", patience=patience, min_steps=min_steps, learning_rate=learning_rate)
        self.seed = seed
        self.learning_rate, self.min_steps, self.patience = learning_rate, min_steps, patience
        self.closed_form = solver == "closed_form"
        self.automatic_optimization = solver == "adam"
        sizes = {layer: (shapes[layer][0], count) for layer, count in outputs.items()}
        self.heads = layer_heads(sizes if solver != "none" else {}, self.variants, seed)
        self._seen: Counter[str] = Counter()
        self._done: set[str] = set()
        self._validation: dict[str, Tensor] = {}
        self._moments: dict[str, Any] = {}
        self._losses_now: dict[str, Tensor] = {}
        if self.closed_form:
            self.fitting = "solve heads"
        elif solver == "none":
            self.fitting = ""

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Return one Adam over all heads, None in closed form. Heads without tokens in a step do not change."""
        return torch.optim.Adam(self.heads.parameters(), lr=self.learning_rate) if self.automatic_optimization else None

    def on_train_start(self) -> None:
        """Stop if the heads of a resumed run are finished already."""
        self._stop_if_finished()

    def on_train_epoch_start(self) -> None:
        """Count the steps of each layer from 0 in every epoch, so that a resumed run counts equally."""
        self._seen.clear()

    def on_train_epoch_end(self) -> None:
        """In closed form, solve the heads and stop after one pass."""
        self._solve()
        if self.closed_form:
            self.trainer.should_stop = True

    def on_validation_epoch_start(self) -> None:
        """Solve the closed form, since Lightning validates before it ends the training epoch."""
        self._solve()

    def on_validation_epoch_end(self) -> None:
        """Keep the best state of every head, and stop when no head can improve."""
        for layer, sums in self._validation.items():
            # the first process decides for all, since devices may round differently
            loss, score, count = Processes.current().broadcast(sums, 0)
            self._head(layer).update_best(loss / count, self.scored(score / count), self.patience, self.min_steps)
        self._validation.clear()
        self.log_dict(self._validated(), batch_size=1)
        self._stop_if_finished()

    def scored(self, mean: Float[Tensor, " v"]) -> Float[Tensor, " v"]:
        """Return ``metric`` of every variant, from the mean of the scores given to ``_validate``."""
        return mean

    def on_test_start(self) -> None:
        """Set every head to its best state."""
        for layer in self.heads:
            self._head(layer).restore_best()
        self._validated()

    def save(self, folder: Path, **fitted_on: Any) -> None:
        """Write the fitted heads, without their controls and those of mitigations."""
        if self.heads:
            save(
                folder / "heads",
                {layer: self.fitted(layer) for layer in self.heads if not is_energy_control(layer)},
                **fitted_on,
            )

    def fitted(self, layer: str) -> Head:
        """Return the probe's head at a layer, in its current state: after the test, its best one."""
        head = self._head(layer)
        tensors = {"weight": head.weight[0].detach().clone(), "bias": head.bias[0].detach().clone()}
        return Head(layer, self.predicts, self.shapes[layer], tensors)

    @property
    def not_converged(self) -> list[str]:
        """Layers whose heads stopped before their plateau; none without validation images."""
        validated = [layer for layer in self.heads if self._head(layer).best_loss.isfinite().all()]
        wanted = [layer for layer in validated if not is_energy_control(layer)]
        return [layer for layer in wanted if layer not in self._done and not self.closed_form]

    def training_state(self) -> str:
        """Return the losses of the probes, without their controls, and how many heads have reached their plateau."""
        losses = {layer: loss.item() for layer, loss in self._losses_now.items()}
        mean = f"loss {sum(losses.values()) / max(len(losses), 1):.3f}"
        shown = mean if len(losses) == 1 else ", ".join(f"loss {layer} {loss:.3f}" for layer, loss in losses.items())
        if len(losses) > 3:
            shown = f"mean {mean} of {len(losses)} layers"
        count = sum(self._head(layer).at_plateau(self.patience, self.min_steps) for layer in self.heads)
        return f"{shown}, {count} of {len(self.heads) * len(self.variants)} heads at their plateau" if losses else ""

    def _total(self, losses: dict[str, Float[Tensor, " v"]]) -> Tensor | None:
        """Loss of a training step, from layer → loss of every variant. What is logged is the mean without the controls."""
        if not losses:  # with several processes no step may be skipped
            return torch.zeros((), requires_grad=True) if Processes.current().count > 1 else None
        self._losses_now = {layer: loss[0].detach() for layer, loss in losses.items()}
        self.log("train/loss", torch.stack(list(self._losses_now.values())).mean(), batch_size=1)
        return torch.stack([loss.sum() for loss in losses.values()]).sum()

    def _validate(self, layer: str, loss: Float[Tensor, " v"], score: Float[Tensor, " v"], count: int) -> None:
        """Add up loss and score, each summed over ``count`` images, tokens or keypoints."""
        seen = torch.stack([loss.double(), score.double(), torch.full_like(loss, count, dtype=torch.float64)])
        self._validation[layer] = self._validation.get(layer, torch.zeros_like(seen)) + seen

    def _solve(self) -> None:
        """Solve the heads in closed form, from the moments so far."""
        for layer, moments in self._moments.items():
            self._put(layer, *self._solution(moments))
        self._moments.clear()

    def _put(self, layer: str, weight: Float[Tensor, "v k c"], bias: Float[Tensor, "v k"]) -> None:
        self._head(layer).weight.data.copy_(weight)
        self._head(layer).bias.data.copy_(bias)

    def _solution(self, moments: Any) -> tuple[Float[Tensor, "v k c"], Float[Tensor, "v k"]]:
        """Weight and bias of every variant; only for subclasses with a closed form."""
        raise NotImplementedError

    def _validated(self) -> dict[str, float]:
        """Write validation loss and score of the probes' best states into ``results``, and return them."""
        for layer in self.heads:
            head = self._head(layer)
            if head.best_loss[0].isfinite():
                self.results[f"val/{layer}/loss/all"] = head.best_loss[0].item()
                self.results[f"val/{layer}/{self.metric}/all"] = head.best_score[0].item()
        return select(self.results, condition="val")

    def _stop_if_finished(self) -> None:
        if self.automatic_optimization:
            self._done = {layer for layer in self.heads if self._head(layer).finished(self.patience, self.min_steps)}
            self.trainer.should_stop = len(self._done) == len(self.heads)

    def _head(self, layer: str) -> LayerHead:
        return cast(LayerHead, self.heads[layer])
