"""Probes of a target that comes with every token: how well a linear map reads it out of activations. Data path steps 8 and 9.

DepthProbe regresses the depth of what a token covers, ContentProbe the clean latent under it: what a mitigation costs in
information shows there. ``shuffled_labels`` is the same probe trained on targets permuted within each batch.
"""

from typing import Any, Protocol, cast

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import huber_loss

from probes.base import Data, Shapes
from probes.linear import LinearProbe
from sdprobe.estimators.closed_form import SHRINKAGE, RidgeMoments
from sdprobe.metrics.depth_error import DepthError
from sdprobe.metrics.r2 import KIND, ContentR2
from sdprobe.tokens.batch import TokenBatch
from sdprobe.tokens.keys import GROUPS, base_of, qualified, select
from sdprobe.utilities import settings
from sdprobe.utilities.rng import keyed_generator

VARIANTS = ("test", "shuffled_labels")
DELTA = 1.0  # of the Huber loss, in the unit of depth: metres, or scene units
LATENT = 4  # channels of a latent
# mitigations change the scale of directions, so one level for all of them would favour some
LEVELS = tuple(10.0**power for power in range(-6, 2))


class TargetData(Data, Protocol):
    """A data module whose batches have targets."""

    def training_targets(self, layer: str) -> Float[Tensor, "images h w v"]:
        """Targets of every token of the training images; NaN where there is none."""


class TargetProbe(LinearProbe):
    """A linear map C → V of every layer, and its control. A subclass says what a test is.

    Args:
        shapes: layer → (C, h, w).
        data: gives batches with targets.
        targets: V.
        solver, learning_rate, min_steps, patience, seed: see :class:`~probes.linear.LinearProbe`.
    """

    data: TargetData
    variants = VARIANTS

    def __init__(
        self,
        shapes: Shapes,
        data: Data,
        targets: int,
        solver: str,
        learning_rate: float,
        min_steps: int,
        patience: int,
        seed: int,
    ) -> None:
        super().__init__(shapes, data, dict.fromkeys(shapes, targets), solver, learning_rate, min_steps, patience, seed)
        self.targets = targets
        self.scores = nn.ModuleDict()

    def _target(self, layer: str, batch: TokenBatch) -> Float[Tensor, "n v"]:
        """What is regressed; NaN where it is missing."""
        return batch.targets[layer]

    def _labelled(self, batch: TokenBatch, layer: str, *key: object) -> tuple[Float[Tensor, "m c"], Float[Tensor, "m k v"]]:
        """Tokens whose target is known, and the targets of every variant, in the order of VARIANTS."""
        target = self._target(layer, batch)
        known = target.isfinite().all(1)
        labels = target[known]
        shuffle = torch.randperm(len(labels), generator=keyed_generator("shuffle", self.seed, base_of(layer), *key))
        return batch.tokens[layer][known], torch.stack([labels, labels[shuffle.to(labels.device)]], dim=1)

    def _add_moments(self, layer: str, tokens: Float[Tensor, "m c"], labels: Float[Tensor, "m k v"]) -> None:
        if layer not in self._moments:
            self._moments[layer] = RidgeMoments(self.shapes[layer][0], len(VARIANTS) * self.targets, tokens.device)
        self._moments[layer].update(tokens, labels.flatten(1))

    def _solution(self, moments: RidgeMoments, level: float = SHRINKAGE) -> tuple[Float[Tensor, "k v c"], Float[Tensor, "k v"]]:
        weight, bias = moments.solve(level)
        return weight.unflatten(0, (len(VARIANTS), self.targets)), bias.unflatten(0, (len(VARIANTS), self.targets))


class DepthProbe(TargetProbe):
    """Linear depth probes of every layer, C → 1.

    What they have to beat is reported beside them: ``constant`` (the mean training depth everywhere) and ``position_only``
    (the mean training depth at each position of the grid: what a token's position alone tells).

    Args:
        shapes: layer → (C, h, w).
        photos: number of photographs; photo indices lie below it.
        data: gives batches with depth, NaN where it is missing.
        solver: ``adam`` (Huber loss: e² / 2 up to an error of 1, beyond |e| − 1/2) or ``closed_form`` (ridge: squared error,
            one pass).
        learning_rate: of Adam.
        min_steps, patience: see :class:`~probes.linear.LinearProbe`.
        seed: of initial weights and shuffled labels.

    Raises:
        InputError: an option out of range, a data module of another kind.
    """

    kind, reads = "depth", "depth"
    metric = "rmse"
    conditions = (*VARIANTS, "constant", "position_only")

    def __init__(
        self,
        shapes: Shapes,
        photos: int,
        data: Data,
        solver: str = "adam",
        learning_rate: float = 3e-3,
        min_steps: int = 600,
        patience: int = 3,
        seed: int = 0,
    ) -> None:
        settings.check("probe", solver=solver)
        super().__init__(shapes, data, 1, solver, learning_rate, min_steps, patience, seed)
        for layer, (_, h, w) in shapes.items():
            for condition in self.conditions:
                self.scores[f"{condition}/{layer}"] = DepthError(h, w, GROUPS, photos)
        self.expected: dict[str, dict[str, Tensor]] = {}
        self._maps: dict[str, np.ndarray] = {}

    def setup(self, stage: str) -> None:
        """Take the nulls from training depth. New heads begin at its mean, which Adam's steps would take long to reach."""
        for layer, (_, height, width) in self.shapes.items():
            depth = self.data.training_targets(layer)[..., 0]
            constant, position_only = depth.nanmean(), depth.nanmean(0)
            position_only = torch.where(position_only.isnan(), constant, position_only)
            self.expected[layer] = {"constant": constant.expand(height, width), "position_only": position_only}
            if stage == "fit":  # a checkpoint is read later, and wins
                self._head(layer).bias.data.fill_(constant.item())

    def training_step(self, batch: TokenBatch, batch_idx: int) -> Tensor | None:
        """Sum over layers and variants of the mean loss per token; the closed form only adds up moments."""
        self._seen.update(batch.tokens.keys())
        losses = []
        # a finished head keeps its best state whatever happens, so nothing needs to happen
        for layer in (layer for layer in batch.tokens if layer not in self._done):
            # keyed by the layer's own step: other layers may have more of them
            tokens, labels = self._labelled(batch, layer, "train", self.trainer.current_epoch, self._seen[layer])
            if self.closed_form:
                self._add_moments(layer, tokens, labels)
            elif len(tokens):
                losses.append((self._losses(layer, tokens, labels).sum(0) / len(tokens)).sum())
                self._head(layer).steps += 1
        return None if self.closed_form else self._total(losses)

    def validation_step(self, batch: TokenBatch, batch_idx: int) -> None:
        """Add up loss and squared error of every head."""
        for layer in batch.tokens:
            tokens, labels = self._labelled(batch, layer, "val", batch_idx)
            loss = self._losses(layer, tokens, labels).double().sum(0)
            squares = (self._predict(layer, tokens) - labels[..., 0]).double().square().sum(0)
            self._validate(layer, loss, squares, len(tokens))

    def scored(self, mean: Float[Tensor, " k"]) -> Float[Tensor, " k"]:
        """The root of the mean squared error."""
        return mean.sqrt()

    def test_step(self, batch: TokenBatch, batch_idx: int) -> None:
        """Update the errors of every head and null with the tokens of whole grids."""
        for layer, tokens in batch.tokens.items():
            where, depth = batch.positions[layer], batch.targets[layer][:, 0]
            guesses = dict(zip(VARIANTS, self._predict(layer, tokens).unbind(1), strict=True))
            for null, table in self.expected[layer].items():
                guesses[null] = table.to(where.device)[where[:, 0], where[:, 1]]
            for condition, predicted in guesses.items():
                error = cast(DepthError, self.scores[f"{condition}/{layer}"])
                error.update(predicted, depth, where, batch.masks[layer], batch.photo[layer], batch.image[layer])

    def collect(self) -> None:
        """Errors of probes and nulls."""
        self.collect_scores(self.scores, self.conditions)
        for layer in self.shapes:
            self._maps[f"{layer}/error"] = cast(DepthError, self.scores[f"test/{layer}"]).maps()["error"]
        self.log_dict(select(self.results, condition="test", statistic=""))

    def maps(self) -> dict[str, Float[np.ndarray, "_h _w"]]:
        """``<layer>/error`` of the probes, see :meth:`DepthError.maps`."""
        return dict(self._maps)

    def _losses(self, layer: str, tokens: Float[Tensor, "m c"], labels: Float[Tensor, "m k 1"]) -> Float[Tensor, "m k"]:
        return huber_loss(self._predict(layer, tokens), labels[..., 0], reduction="none", delta=DELTA)

    def _predict(self, layer: str, tokens: Float[Tensor, "n c"]) -> Float[Tensor, "n k"]:
        """Predicted depth of every variant."""
        return self._head(layer)(tokens)[..., 0]


class ContentProbe(TargetProbe):
    """Ridge regression C → 4 for every layer.

    The target of channel v at position p is (z − m)[p, v] / s[v]: z the content of the token, m its mean over the training
    images at p, s the root mean square of z − m over all positions of the training images. So a token's position alone
    gives R² = 0. A channel that never varies counts in no sum. Of the ridge levels :data:`LEVELS` the one with the least
    squared error on the validation images is kept for each layer and control, 1e-3 where there are none.

    Args:
        shapes: layer → (C, h, w).
        photos: number of photographs; photo indices lie below it.
        data: gives batches with content.
        seed: of shuffled labels.

    Raises:
        InputError: a data module of another kind.
    """

    kind, reads = "content", "content"
    metric = KIND
    nulls = ("chance", "position_only")  # both say the training mean at the token's position, which is R² = 0 by definition

    def __init__(self, shapes: Shapes, photos: int, data: Data, seed: int = 0) -> None:
        super().__init__(shapes, data, LATENT, "closed_form", learning_rate=1.0, min_steps=0, patience=1, seed=seed)
        for layer in shapes:
            self.scores.update({f"{condition}/{layer}": ContentR2(GROUPS, photos) for condition in VARIANTS})
        self._means: dict[str, Tensor] = {}
        self._spread: dict[str, Tensor] = {}
        self._candidates: dict[str, tuple[Tensor, Tensor]] = {}
        self._errors: dict[str, Tensor] = {}

    def setup(self, stage: str) -> None:
        """Learn what training images show at each position, and how far they differ from it."""
        for layer in self.shapes:
            content = self.data.training_targets(layer)
            self._means[layer] = content.mean(0)
            spread = (content - self._means[layer]).square().mean((0, 1, 2)).sqrt()
            self._spread[layer] = torch.where(spread > 0, spread, torch.inf)

    def training_step(self, batch: TokenBatch, batch_idx: int) -> None:
        """Add up moments."""
        self._seen.update(batch.tokens.keys())
        for layer in batch.tokens:
            self._add_moments(layer, *self._labelled(batch, layer, "train", self._seen[layer]))

    def on_validation_epoch_start(self) -> None:
        """Lightning validates before it ends the training epoch: solve at every level, for validation to choose."""
        for layer, moments in self._moments.items():
            solutions = [self._solution(moments, level) for level in LEVELS]
            weight, bias = (torch.stack(part).float() for part in zip(*solutions, strict=True))
            self._candidates[layer] = weight, bias

    def validation_step(self, batch: TokenBatch, batch_idx: int) -> None:
        """Squared error of every level and variant, and of saying nothing."""
        for layer in (layer for layer in batch.tokens if layer in self._candidates):
            tokens, labels = self._labelled(batch, layer, "val", batch_idx)
            weight, bias = self._candidates[layer]
            outputs = nn.functional.linear(tokens.float(), weight.flatten(0, 2), bias.flatten())
            off = outputs.unflatten(1, (len(LEVELS), *labels.shape[1:])) - labels[:, None]
            errors = torch.cat([off, labels[:, None]], dim=1).double().square().sum((0, 3))
            self._errors[layer] = self._errors.get(layer, 0) + errors

    def on_validation_epoch_end(self) -> None:
        """Keep the best level of every layer and variant."""
        for layer, errors in self._errors.items():
            best = errors[:-1].argmin(0)
            every = torch.arange(len(VARIANTS), device=best.device)
            weight, bias = self._candidates[layer]
            self._put(layer, weight[best, every], bias[best, every])
            del self._moments[layer]
            if errors[-1, 0] > 0:
                self.results[f"val/{layer}/{KIND}/all"] = 1 - (errors[best[0], 0] / errors[-1, 0]).item()
                self.results[f"val/{layer}/ridge_level/all"] = LEVELS[int(best[0])]
        self._errors.clear()
        self._candidates.clear()
        self.log_dict(self.results, batch_size=1)

    def test_step(self, batch: TokenBatch, batch_idx: int) -> None:
        """Update the scores of every head with the tokens of whole grids."""
        for layer, tokens in batch.tokens.items():
            target, outputs = self._target(layer, batch), self._head(layer)(tokens)
            for condition, predicted in zip(VARIANTS, outputs.unbind(1), strict=True):
                score = cast(ContentR2, self.scores[f"{condition}/{layer}"])
                score.update(predicted, target, batch.masks[layer], batch.photo[layer])

    def collect(self) -> None:
        """R² of probes and controls; that of the nulls is 0."""
        self.collect_scores(self.scores, VARIANTS)
        for layer in self.shapes:
            values: Any = self.scores[f"test/{layer}"].compute()  # type: ignore[operator]
            for null in self.nulls:
                self.results |= qualified(null, layer, dict.fromkeys(select(values, statistic=""), 0.0))
        self.log_dict(select(self.results, condition="test", statistic=""))

    def _target(self, layer: str, batch: TokenBatch) -> Float[Tensor, "n v"]:
        """Standardised content."""
        latent, where = batch.targets[layer], batch.positions[layer]
        means = self._means[layer] = self._means[layer].to(latent.device)
        return (latent - means[where[:, 0], where[:, 1]]) / self._spread[layer].to(latent.device)
