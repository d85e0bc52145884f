"""Probes of a target that every token has: how well a linear map predicts it from activations. Data path steps 8 and 9.

DepthProbe regresses the depth of a token's cell. ContentProbe regresses the clean latent of the cell, which shows how much
information a mitigation removes. ``shuffled_labels`` is the same probe trained on targets permuted within each batch.
"""

from dataclasses import replace
from typing import Any, Protocol, cast

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import huber_loss

from probes.base import Data, Shapes
from probes.linear import LinearProbe
from sdprobe.estimators.closed_form import SHRINKAGE, RidgeMoments
from sdprobe.estimators.heads import Head
from sdprobe.metrics.depth_error import DepthError
from sdprobe.metrics.r2 import KIND, ContentR2
from sdprobe.tokens.batch import TokenBatch
from sdprobe.tokens.keys import GROUPS, base_of, qualified, select
from sdprobe.utilities import settings
from sdprobe.utilities.rng import keyed_generator

VARIANTS = ("test", "shuffled_labels")
DELTA = 1.0  # of the Huber loss, in the unit of depth: metres, or scene units
# mitigations change the scale of directions, so a single ridge level would favour some of them
LEVELS = tuple(10.0**power for power in range(-6, 2))


class TargetData(Data, Protocol):
    """A data module whose batches have targets."""

    @property
    def target_channels(self) -> int:
        """Number V of targets of every token."""

    def training_targets(self, layer: str) -> Float[Tensor, "images h w v"]:
        """Return the targets of every token of the training images; NaN where there is none."""


class TargetProbe(LinearProbe):
    """Base class of probes with a linear map C → V per layer, and its control. A subclass defines the test.

    Args:
        shapes: layer → (C, h, w).
        data: a data module whose batches have targets.
        targets: V.
        solver: ``adam`` or ``closed_form``.
        learning_rate: step size of Adam, above 0.
        min_steps: least number of steps before a head may stop, at least 0.
        patience: validations in a row without improvement after which a head stops, at least 1.
        seed: seed of the initial weights and of shuffled labels.

    Raises:
        InputError: an option out of range, a data module of another kind.
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
        """Target of every token; NaN where it is missing."""
        return batch.targets[layer]

    def _labelled(self, batch: TokenBatch, layer: str, *key: object) -> tuple[Float[Tensor, "m c"], Float[Tensor, "m k v"]]:
        """Tokens with a target, and the targets of every variant, in the order of VARIANTS."""
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
    """Linear probes C → 1 that predict the depth of a token's cell.

    ``results`` have errors and accuracies of every layer and token group, see :class:`~sdprobe.metrics.depth_error.DepthError`,
    for the probe (``test``), its control ``shuffled_labels`` and two baselines: ``constant``, the mean training depth
    everywhere, and ``position_only``, the mean training depth at each position of the grid.

    Args:
        shapes: layer → (C, h, w).
        photos: number of photographs; the photo indices of batches are smaller.
        data: a data module with depth, NaN where it is missing, such as :class:`~datamodules.targets.DepthDataModule`.
        solver: ``adam`` with the Huber loss (for an error e, e² / 2 up to an absolute error of 1 and abs(e) − 1/2 beyond), or
            ``closed_form``, ridge regression with squared error in one pass.
        learning_rate: step size of Adam, above 0.
        min_steps: least number of steps before a head may stop, at least 0.
        patience: validations in a row without improvement after which a head stops, at least 1.
        seed: seed of the initial weights and of shuffled labels.

    Raises:
        InputError: an option out of range, a data module of another kind.

    Example:
        >>> import tempfile
        >>> import lightning
        >>> from datamodules.images.scenes import SceneDepth
        >>> from datamodules.targets import DepthDataModule
        >>> from sdprobe import FrozenSD
        >>> cache = tempfile.TemporaryDirectory()
        >>> sd = FrozenSD.from_pretrained("tiny", device="cpu")
        >>> data = DepthDataModule(SceneDepth(size=64, limit=10), sd, block="up_1", cache_dir=cache.name)
        >>> probe = DepthProbe(data.shapes, data.photos, data, solver="closed_form")
        >>> trainer = lightning.Trainer(
        ...     max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        ...     enable_model_summary=False,
        ... )
        >>> trainer.fit(probe, data)
        >>> _ = trainer.test(probe, data, verbose=False)
        >>> sorted(key for key in probe.results if key.endswith("rmse/all"))  # doctest: +NORMALIZE_WHITESPACE
        ['constant/up_1/rmse/all', 'position_only/up_1/rmse/all', 'shuffled_labels/up_1/rmse/all', 'test/up_1/rmse/all',
         'val/up_1/rmse/all']
    """

    kind, reads, predicts = "depth", "depth", "depth"
    metric, score = "rmse", "delta1/all"
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
        """Compute the baselines from training depth. New heads start at its mean, which Adam would reach slowly."""
        for layer, (_, height, width) in self.shapes.items():
            depth = self.data.training_targets(layer)[..., 0]
            constant, position_only = depth.nanmean(), depth.nanmean(0)
            position_only = torch.where(position_only.isnan(), constant, position_only)
            self.expected[layer] = {"constant": constant.expand(height, width), "position_only": position_only}
            if stage == "fit":  # a checkpoint is loaded later and overwrites this
                self._head(layer).bias.data.fill_(constant.item())

    def training_step(self, batch: TokenBatch, batch_idx: int) -> Tensor | None:
        """Return the sum over layers and variants of the mean loss per token; None in closed form."""
        self._seen.update(batch.tokens.keys())
        losses = {}
        # a finished head keeps its best state and needs no training
        for layer in (layer for layer in batch.tokens if layer not in self._done):
            # keyed by the layer's own step, since layers may differ in their number of steps
            tokens, labels = self._labelled(batch, layer, "train", self.trainer.current_epoch, self._seen[layer])
            if self.closed_form:
                self._add_moments(layer, tokens, labels)
            elif len(tokens):
                losses[layer] = self._losses(layer, tokens, labels).sum(0) / len(tokens)
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
        """Return the root of the mean squared error of every variant."""
        return mean.sqrt()

    def test_step(self, batch: TokenBatch, batch_idx: int) -> None:
        """Update the errors of every head and baseline with tokens of whole grids."""
        for layer, tokens in batch.tokens.items():
            positions, depth = batch.positions[layer], batch.targets[layer][:, 0]
            guesses = dict(zip(VARIANTS, self._predict(layer, tokens).unbind(1), strict=True))
            for baseline, table in self.expected[layer].items():
                guesses[baseline] = table.to(positions.device)[positions[:, 0], positions[:, 1]]
            for condition, predicted in guesses.items():
                error = cast(DepthError, self.scores[f"{condition}/{layer}"])
                error.update(predicted, depth, positions, batch.masks[layer], batch.photo[layer], batch.image[layer])

    def collect(self) -> None:
        """Write the errors of probes and baselines."""
        self.collect_scores(self.scores, self.conditions)
        for layer in self.shapes:
            self._maps[f"{layer}/error"] = cast(DepthError, self.scores[f"test/{layer}"]).maps()["error"]
        self.log_dict(select(self.results, condition="test", statistic=""))

    def maps(self) -> dict[str, Float[np.ndarray, "_h _w"]]:
        """Return ``<layer>/error`` (h, w) of the probes, see :meth:`~sdprobe.metrics.depth_error.DepthError.maps`."""
        return dict(self._maps)

    def _losses(self, layer: str, tokens: Float[Tensor, "m c"], labels: Float[Tensor, "m k 1"]) -> Float[Tensor, "m k"]:
        return huber_loss(self._predict(layer, tokens), labels[..., 0], reduction="none", delta=DELTA)

    def _predict(self, layer: str, tokens: Float[Tensor, "n c"]) -> Float[Tensor, "n k"]:
        """Predicted depth of every variant."""
        return self._head(layer)(tokens)[..., 0]


class ContentProbe(TargetProbe):
    """Ridge regression C → 4 that predicts the clean latent of a token's cell.

    ``results`` have R² (at most 1; 0 for the training mean) of every layer and token group, for the probe (``test``), its
    control ``shuffled_labels``, and the baselines ``chance`` and ``position_only``, which are 0 by definition.

    The target of channel v at position p is (z − m)[p, v] / s[v]. Here z is the content of the token, m its mean over the
    training images at p, and s the root mean square of z − m over all positions of the training images. A token's position
    alone therefore gives R² = 0. A channel that never varies is left out of all sums. Each layer and control keeps the ridge
    level of :data:`LEVELS` with the least squared error on the validation images, or 1e-3 without validation images.

    Args:
        shapes: layer → (C, h, w).
        photos: number of photographs; the photo indices of batches are smaller.
        data: a data module with content, such as :class:`~datamodules.targets.ContentDataModule`.
        seed: seed of shuffled labels.

    Raises:
        InputError: a data module of another kind.

    Example:
        >>> import lightning
        >>> from datamodules.images.texture import LatentTextures
        >>> from datamodules.targets import ContentDataModule
        >>> from sdprobe import FrozenSD
        >>> sd = FrozenSD.from_pretrained("tiny", device="cpu")
        >>> data = ContentDataModule(LatentTextures(size=128, limit=20), sd, block="up_1")
        >>> probe = ContentProbe(data.shapes, data.photos, data)
        >>> trainer = lightning.Trainer(
        ...     max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        ...     enable_model_summary=False,
        ... )
        >>> trainer.fit(probe, data)
        >>> _ = trainer.test(probe, data, verbose=False)
        >>> probe.results["position_only/up_1/content_r2/all"], probe.results["test/up_1/content_r2/all"] <= 1
        (0.0, True)
    """

    kind, reads, predicts = "content", "content", "content"
    metric, score = KIND, f"{KIND}/all"
    nulls = ("chance", "position_only")  # both predict the training mean at the token's position, so R² = 0

    def __init__(self, shapes: Shapes, photos: int, data: Data, seed: int = 0) -> None:
        channels = getattr(data, "target_channels", 0)  # data of another kind has none, and is refused
        super().__init__(shapes, data, channels, "closed_form", learning_rate=1.0, min_steps=0, patience=1, seed=seed)
        for layer in shapes:
            self.scores.update({f"{condition}/{layer}": ContentR2(GROUPS, photos) for condition in VARIANTS})
        self._means: dict[str, Tensor] = {}
        self._spread: dict[str, Tensor] = {}
        self._candidates: dict[str, tuple[Tensor, Tensor]] = {}
        self._errors: dict[str, Tensor] = {}

    def setup(self, stage: str) -> None:
        """Compute mean and spread of the content of training images."""
        for layer in self.shapes:
            content = self.data.training_targets(layer)
            self._means[layer] = content.mean(0)
            spread = (content - self._means[layer]).square().mean((0, 1, 2)).sqrt()
            self._spread[layer] = torch.where(spread > 0, spread, torch.inf)

    def training_step(self, batch: TokenBatch, batch_idx: int) -> None:
        """Add tokens and targets to the moments."""
        self._seen.update(batch.tokens.keys())
        for layer in batch.tokens:
            self._add_moments(layer, *self._labelled(batch, layer, "train", self._seen[layer]))

    def on_validation_epoch_start(self) -> None:
        """Solve at every ridge level; validation chooses one."""
        for layer, moments in self._moments.items():
            solutions = [self._solution(moments, level) for level in LEVELS]
            weight, bias = (torch.stack(part).float() for part in zip(*solutions, strict=True))
            self._candidates[layer] = weight, bias

    def validation_step(self, batch: TokenBatch, batch_idx: int) -> None:
        """Add up the squared error of every level and variant, and of predicting 0."""
        for layer in (layer for layer in batch.tokens if layer in self._candidates):
            tokens, labels = self._labelled(batch, layer, "val", batch_idx)
            weight, bias = self._candidates[layer]
            outputs = nn.functional.linear(tokens.float(), weight.flatten(0, 2), bias.flatten())
            off = outputs.unflatten(1, (len(LEVELS), *labels.shape[1:])) - labels[:, None]
            errors = torch.cat([off, labels[:, None]], dim=1).double().square().sum((0, 3))
            self._errors[layer] = self._errors.get(layer, 0) + errors

    def on_validation_epoch_end(self) -> None:
        """Keep the best ridge level of every layer and variant."""
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
        """Update the scores of every head with tokens of whole grids."""
        for layer, tokens in batch.tokens.items():
            target, outputs = self._target(layer, batch), self._head(layer)(tokens)
            for condition, predicted in zip(VARIANTS, outputs.unbind(1), strict=True):
                score = cast(ContentR2, self.scores[f"{condition}/{layer}"])
                score.update(predicted, target, batch.masks[layer], batch.photo[layer])

    def collect(self) -> None:
        """Write R² of probes, controls and baselines."""
        self.collect_scores(self.scores, VARIANTS)
        for layer in self.shapes:
            values: Any = self.scores[f"test/{layer}"].compute()  # type: ignore[operator]
            for null in self.nulls:
                self.results |= qualified(null, layer, dict.fromkeys(select(values, statistic=""), 0.0))
        self.log_dict(select(self.results, condition="test", statistic=""))

    def fitted(self, layer: str) -> Head:
        """Return the head, with the mean and the spread that content is standardised by."""
        head = super().fitted(layer)
        return replace(head, tensors={**head.tensors, "mean": self._means[layer], "scale": self._spread[layer]})

    def _target(self, layer: str, batch: TokenBatch) -> Float[Tensor, "n v"]:
        """Standardised content."""
        latent, positions = batch.targets[layer], batch.positions[layer]
        means = self._means[layer] = self._means[layer].to(latent.device)
        return (latent - means[positions[:, 0], positions[:, 1]]) / self._spread[layer].to(latent.device)
