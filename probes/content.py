"""ContentProbe: how much of what an image shows a linear map reads out of the activation of a token. Data path steps 8 and 9.

What a mitigation costs in information shows here. The target is the clean latent averaged over a token's cell, minus its
mean over the training images at that position: what a token's place alone tells is no content, so knowing the place and
nothing else gives R² = 0. ``shuffled_labels`` is the same probe fitted on targets permuted within each batch.
"""

from collections import Counter
from typing import Any, cast

import lightning
import numpy as np
import torch
from jaxtyping import Float
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn

from sdprobe.estimators.closed_form import SHRINKAGE, RidgeMoments
from sdprobe.metrics.intervals import present_units
from sdprobe.metrics.r2 import KIND, ContentR2
from sdprobe.tokens.batch import TokenBatch
from sdprobe.tokens.keys import GROUPS, OVER_NONE, base_of, label_of, qualified, select
from sdprobe.utilities.errors import InputError
from sdprobe.utilities.rng import keyed_generator

VARIANTS = ("test", "shuffled_labels")
NULLS = ("chance", "position_only")  # both say the training mean at the token's position, which is R² = 0 by definition
LATENT = 4  # channels of a latent
# mitigations change the scale of directions, so one level for all of them would favour some
LEVELS = tuple(10.0**power for power in range(-6, 2))


class ContentProbe(lightning.LightningModule):
    """Ridge regression C → 4 for every layer. Its data module answers ``latent_at``, ``position_means``, ``spread`` and
    ``photograph``.

    The target of channel v at position p is (z − m)[p, v] / s[v]: z the content of the token, m its mean over the training
    images at p, s the root mean square of z − m over all positions of the training images. A channel that never varies
    counts in no sum. Of the ridge levels :data:`LEVELS` the one with the least squared error on the validation images is
    kept for each layer and control, 1e-3 where there are none.

    Args:
        shapes: layer → (C, h, w).
        photos: number of photographs; photo indices lie below it.
        seed: of shuffled labels.
    """

    def __init__(self, shapes: dict[str, tuple[int, int, int]], photos: int, seed: int = 0) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.shapes, self.seed = shapes, seed
        self.heads = nn.ModuleDict({layer: nn.Linear(c, len(VARIANTS) * LATENT) for layer, (c, _, _) in shapes.items()})
        self.heads.requires_grad_(False)
        self.scores = nn.ModuleDict({f"{what}/{layer}": ContentR2(GROUPS, photos) for what in VARIANTS for layer in shapes})
        self.results: dict[str, float] = {}
        self._means: dict[str, Tensor] = {}
        self._units: dict[str, np.ndarray] = {}
        self._spread: dict[str, Tensor] = {}
        self._seen: Counter[str] = Counter()
        self._moments: dict[str, RidgeMoments] = {}
        self._candidates: dict[str, tuple[Tensor, Tensor]] = {}
        self._errors: dict[str, Tensor] = {}

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """None: one pass, then a linear system. Without steps there are no checkpoints; a resumed run starts over."""
        return None

    def setup(self, stage: str) -> None:
        """Ask what training images show at each position, and how far they differ from it."""
        if not hasattr(self._data, "latent_at"):
            raise InputError(
                f"Expected datamodule=content for probe=content, but got {type(self._data).__name__}. Leave out datamodule=."
            )
        for layer in self.shapes:
            spread = self._data.spread(layer)
            self._means[layer] = self._data.position_means(layer)
            self._spread[layer] = torch.where(spread > 0, spread, torch.inf)

    def on_train_epoch_start(self) -> None:
        """Steps of each layer are counted for themselves: other layers may have more of them."""
        self._seen.clear()

    def training_step(self, batch: TokenBatch, batch_idx: int) -> None:
        """Add up moments."""
        for layer, tokens in batch.tokens.items():
            self._seen[layer] += 1
            targets = self._targets(batch, layer, "train", self._seen[layer])
            if layer not in self._moments:
                self._moments[layer] = RidgeMoments(tokens.shape[1], targets.shape[1], tokens.device)
            self._moments[layer].update(tokens, targets)

    def on_validation_epoch_start(self) -> None:
        """Lightning validates before it ends the training epoch: solve at every level, for validation to choose."""
        for layer, moments in self._moments.items():
            solutions = [moments.solve(level) for level in LEVELS]
            weight, bias = (torch.cat(part).float() for part in zip(*solutions, strict=True))
            self._candidates[layer] = weight, bias

    def validation_step(self, batch: TokenBatch, batch_idx: int) -> None:
        """Squared error of every level and variant, and of saying nothing."""
        for layer in (layer for layer in batch.tokens if layer in self._candidates):
            targets = self._targets(batch, layer, "val", batch_idx).unflatten(1, (len(VARIANTS), LATENT))
            weight, bias = self._candidates[layer]
            outputs = nn.functional.linear(batch.tokens[layer].float(), weight, bias)
            off = outputs.unflatten(1, (len(LEVELS), *targets.shape[1:])) - targets[:, None]
            errors = torch.cat([off, targets[:, None]], dim=1).double().square().sum((0, 3))
            self._errors[layer] = self._errors.get(layer, 0) + errors

    def on_validation_epoch_end(self) -> None:
        """Keep the best level of every layer and variant."""
        for layer, errors in self._errors.items():
            best = errors[:-1].argmin(0)
            weight, bias = (part.unflatten(0, (len(LEVELS), len(VARIANTS), LATENT)) for part in self._candidates[layer])
            every = torch.arange(len(VARIANTS), device=best.device)
            self._put(layer, weight[best, every].flatten(0, 1), bias[best, every].flatten())
            del self._moments[layer]
            if errors[-1, 0] > 0:
                self.results[f"val/{layer}/{KIND}/all"] = 1 - (errors[best[0], 0] / errors[-1, 0]).item()
                self.results[f"val/{layer}/ridge_level/all"] = LEVELS[int(best[0])]
        self._errors.clear()
        self._candidates.clear()
        self.log_dict(self.results, batch_size=1)

    def on_train_epoch_end(self) -> None:
        """What no validation image judged is solved at one level."""
        for layer, moments in self._moments.items():
            weight, bias = moments.solve(SHRINKAGE)
            self._put(layer, weight, bias)
        self._moments.clear()
        self.trainer.should_stop = True

    def test_step(self, batch: TokenBatch, batch_idx: int) -> None:
        """Update the scores of every head with the tokens of whole grids."""
        for layer, tokens in batch.tokens.items():
            photo, target = self._data.photograph(batch.photo[layer]), self._target(batch, layer)
            outputs = self._head(layer)(tokens.float()).unflatten(1, (len(VARIANTS), LATENT))
            for what, predicted in zip(VARIANTS, outputs.unbind(1), strict=True):
                self._score(what, layer).update(predicted, target, batch.masks[layer], photo)

    def on_test_epoch_end(self) -> None:
        """Collect ``<what>/<layer>/content_r2/<group>`` in ``results``, and log the probes'."""
        for layer in self.shapes:
            for what in VARIANTS:
                values = self._score(what, layer).compute()
                self.results |= qualified(what, layer, values)
            for null in NULLS:
                self.results |= qualified(null, layer, dict.fromkeys(select(values, statistic=""), 0.0))
            self._units |= qualified("test", layer, self._score("test", layer).pseudovalues())
            if label_of(layer):
                gained = self._score("test", layer).gain(self._score("test", base_of(layer)))
                self.results |= qualified(OVER_NONE, layer, gained)
        self.log_dict(select(self.results, condition="test", statistic=""))

    @property
    def not_converged(self) -> list[str]:
        """No layer: nothing is trained in steps."""
        return []

    def pseudovalues(self) -> dict[str, np.ndarray]:
        """``test/<layer>/<metric>/<group>`` → what every test photograph contributes, see :mod:`sdprobe.metrics.intervals`."""
        return present_units(self._units)

    def maps(self) -> dict[str, Any]:
        """None are kept."""
        return {}

    def _target(self, batch: TokenBatch, layer: str) -> Float[Tensor, "n v"]:
        """Standardised content of tokens."""
        # the data module of content numbers items where others number photographs
        where = batch.positions[layer]
        latent: Tensor = self._data.latent_at(layer, batch.photo[layer], where)
        means = self._means[layer] = self._means[layer].to(latent.device)
        return (latent - means[where[:, 0], where[:, 1]]) / self._spread[layer].to(latent.device)

    def _targets(self, batch: TokenBatch, layer: str, *key: object) -> Float[Tensor, "n v"]:
        """Those of every variant side by side, in the order of VARIANTS."""
        target = self._target(batch, layer)
        shuffle = torch.randperm(len(target), generator=keyed_generator("shuffle", self.seed, base_of(layer), *key))
        return torch.cat([target, target[shuffle.to(target.device)]], dim=1)

    def _put(self, layer: str, weight: Float[Tensor, "v c"], bias: Float[Tensor, " v"]) -> None:
        self._head(layer).weight.copy_(weight)
        self._head(layer).bias.copy_(bias)

    @property
    def _data(self) -> Any:
        return self.trainer.datamodule  # type: ignore[attr-defined]

    def _head(self, layer: str) -> nn.Linear:
        return cast(nn.Linear, self.heads[layer])

    def _score(self, what: str, layer: str) -> ContentR2:
        return cast(ContentR2, self.scores[f"{what}/{layer}"])
