"""LinearProbe: what probes with a linear head per layer share: one optimiser, each head's best state, when to stop.

Data path step 8.
"""

from collections import Counter
from typing import Any, ClassVar, cast

import torch
from jaxtyping import Float
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor

from probes.base import Data, Probe, Shapes
from sdprobe.estimators.heads import LayerHead, heads
from sdprobe.tokens.keys import select
from sdprobe.utilities import settings
from sdprobe.utilities.distributed import Processes


class LinearProbe(Probe):
    """A head per layer, of several ``variants``: the probe and its controls. Heads of all layers share one Adam; each is
    tested in the state of its best validation. In closed form they are solved from sums over one pass.

    A subclass says what a loss, a validation and a test are. ``metric`` names what it validates beside the loss.

    Args:
        shapes, data: see :class:`~probes.base.Probe`.
        outputs: K of every layer.
        solver: ``adam``, ``closed_form``, or ``none``, which makes no heads.
        learning_rate: of Adam.
        min_steps: steps of a head before it may stop.
        patience: validations without improvement after which a head stops; without validation images all heads train
            until ``trainer.max_epochs``.
        seed: of initial weights.

    Raises:
        InputError: an option out of range.
    """

    variants: ClassVar[tuple[str, ...]]
    metric: ClassVar[str]

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
        self.heads = heads(sizes if solver != "none" else {}, self.variants, seed)
        self._seen: Counter[str] = Counter()
        self._done: set[str] = set()
        self._validation: dict[str, Tensor] = {}
        self._moments: dict[str, Any] = {}

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """One Adam over all heads; heads without tokens in a step have no gradient and stay untouched."""
        return torch.optim.Adam(self.heads.parameters(), lr=self.learning_rate) if self.automatic_optimization else None

    def on_train_start(self) -> None:
        """A resumed run may have nothing left to train."""
        self._stop_if_finished()

    def on_train_epoch_start(self) -> None:
        """Steps of each layer are counted within an epoch, so that a resumed run counts alike."""
        self._seen.clear()

    def on_train_epoch_end(self) -> None:
        """The closed form takes one pass."""
        self._solve()
        if self.closed_form:
            self.trainer.should_stop = True

    def on_validation_epoch_start(self) -> None:
        """Validation comes before the end of the training epoch, and wants the closed form solved."""
        self._solve()

    def on_validation_epoch_end(self) -> None:
        """Keep the best state of every head; stop when none can improve."""
        for layer, sums in self._validation.items():
            # all processes judge alike, whatever their devices round
            loss, score, count = Processes.current().broadcast(sums, 0)
            self._head(layer).judge(loss / count, self.scored(score / count), self.patience, self.min_steps)
        self._validation.clear()
        self.log_dict(self._validated(), batch_size=1)
        self._stop_if_finished()

    def scored(self, mean: Float[Tensor, " v"]) -> Float[Tensor, " v"]:
        """``metric``, from the mean of what :meth:`_validate` was given as ``score``."""
        return mean

    def on_test_start(self) -> None:
        """Every head is tested in its best state."""
        for layer in self.heads:
            self._head(layer).select()
        self._validated()

    @property
    def not_converged(self) -> list[str]:
        """Layers whose heads were stopped before their plateau; none where no validation judges them."""
        validated = [layer for layer in self.heads if self._head(layer).best_loss.isfinite().all()]
        return [layer for layer in validated if layer not in self._done and not self.closed_form]

    def _total(self, losses: list[Float[Tensor, ""]]) -> Tensor | None:
        """What a training step returns for the losses of the heads that learn in it, each summed over variants."""
        if not losses:  # several processes may not leave out a step
            return torch.zeros((), requires_grad=True) if Processes.current().count > 1 else None
        loss = torch.stack(losses).sum()
        self.log("train/loss", loss / (len(losses) * len(self.variants)), prog_bar=True, batch_size=1)
        return loss

    def _validate(self, layer: str, loss: Float[Tensor, " v"], score: Float[Tensor, " v"], count: int) -> None:
        """Add up loss and score, each summed over ``count`` images, tokens or keypoints."""
        seen = torch.stack([loss.double(), score.double(), torch.full_like(loss, count, dtype=torch.float64)])
        self._validation[layer] = self._validation.get(layer, torch.zeros_like(seen)) + seen

    def _solve(self) -> None:
        """Closed-form heads from the moments seen so far."""
        for layer, moments in self._moments.items():
            self._put(layer, *self._solution(moments))
        self._moments.clear()

    def _put(self, layer: str, weight: Float[Tensor, "v k c"], bias: Float[Tensor, "v k"]) -> None:
        self._head(layer).weight.data.copy_(weight)
        self._head(layer).bias.data.copy_(bias)

    def _solution(self, moments: Any) -> tuple[Float[Tensor, "v k c"], Float[Tensor, "v k"]]:
        """Weight and bias of every variant; for subclasses that may be solved in closed form."""
        raise NotImplementedError

    def _validated(self) -> dict[str, float]:
        """Validation loss and score of the probes' best states, put into ``results``."""
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
