"""DepthProbe: how well a linear map reads the depth of what a token covers out of its activation. Data path steps 8 and 9.

What it has to beat is reported beside it: ``constant`` (the mean training depth everywhere), ``position_only`` (the mean
training depth at each position of the grid: what a token's place alone tells) and ``shuffled_labels`` (the same probe
trained on depths permuted within each batch).
"""

from typing import Any, cast

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import huber_loss

from probes.linear import LinearProbe
from sdprobe.estimators.closed_form import RidgeMoments
from sdprobe.metrics.depth_error import DepthError
from sdprobe.metrics.intervals import present_units
from sdprobe.tokens.batch import TokenBatch
from sdprobe.tokens.keys import GROUPS, OVER_NONE, base_of, label_of, qualified, select
from sdprobe.utilities.distributed import Processes
from sdprobe.utilities.errors import InputError
from sdprobe.utilities.rng import keyed_generator

VARIANTS = ("test", "shuffled_labels")
NULLS = ("constant", "position_only")
DELTA = 1.0  # of the Huber loss, in the unit of depth: metres, or scene units


class DepthProbe(LinearProbe):
    """Linear depth probes of every layer, C → 1. Its data module answers ``depth_at``, ``training_depth``, ``photograph``.

    Args:
        shapes: layer → (C, h, w).
        photos: number of photographs; photo indices lie below it.
        solver: ``adam`` (Huber loss: e² / 2 up to an error of 1, beyond |e| − 1/2) or ``closed_form`` (ridge: squared error,
            one pass).
        learning_rate: of Adam.
        min_steps, patience: see :class:`~probes.linear.LinearProbe`.
        seed: of initial weights and shuffled labels.

    ``several_devices``: whether processes that see disjoint shares of the images end with the results of one.
    """

    several_devices = True
    variants, metric = VARIANTS, "rmse"

    def __init__(
        self,
        shapes: dict[str, tuple[int, int, int]],
        photos: int,
        solver: str = "adam",
        learning_rate: float = 3e-3,
        min_steps: int = 600,
        patience: int = 3,
        seed: int = 0,
    ) -> None:
        super().__init__(shapes, dict.fromkeys(shapes, 1), solver, learning_rate, min_steps, patience, seed)
        self.errors = nn.ModuleDict(
            {
                f"{what}/{layer}": DepthError(h, w, GROUPS, photos)
                for what in (*VARIANTS, *NULLS)
                for layer, (_, h, w) in shapes.items()
            }
        )
        self.expected: dict[str, dict[str, Tensor]] = {}
        self._maps: dict[str, np.ndarray] = {}
        self._units: dict[str, np.ndarray] = {}

    def setup(self, stage: str) -> None:
        """Take the nulls from training depth. New heads begin at its mean, which Adam's steps would take long to reach."""
        if not hasattr(self._data, "depth_at"):
            raise InputError(
                f"Expected datamodule=depth for probe=depth, but got {type(self._data).__name__}. Leave out datamodule=."
            )
        for layer, (_, height, width) in self.shapes.items():
            depth = self._data.training_depth(layer)
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
            tokens, labels, count = self._labelled(batch, layer, "train", self.trainer.current_epoch, self._seen[layer])
            if self.closed_form:
                self._moments_of(layer).update(tokens, labels)
            elif count:
                losses.append((self._losses(layer, tokens, labels).sum(0) / count).sum())
                self._head(layer).steps += 1
        return None if self.closed_form else self._total(losses)

    def validation_step(self, batch: TokenBatch, batch_idx: int) -> None:
        """Add up loss and squared error of every head."""
        processes = Processes.current()
        image = batch_idx * processes.count + processes.rank
        for layer in batch.tokens:
            tokens, labels, count = self._labelled(batch, layer, "val", image)
            loss = self._losses(layer, tokens, labels).double().sum(0)
            squares = (self._predict(layer, tokens) - labels).double().square().sum(0)
            self._validate(layer, loss, squares, count)

    def scored(self, mean: Float[Tensor, " v"]) -> Float[Tensor, " v"]:
        """The root of the mean squared error."""
        return mean.sqrt()

    def test_step(self, batch: TokenBatch, batch_idx: int) -> None:
        """Update the errors of every head and null with the tokens of whole grids."""
        for layer, tokens in batch.tokens.items():
            where, masks, depth = batch.positions[layer], batch.masks[layer], self._depth(batch, layer)
            photo = self._data.photograph(batch.photo[layer])
            guesses = dict(zip(VARIANTS, self._predict(layer, tokens).unbind(1), strict=True))
            for null, table in self.expected[layer].items():
                guesses[null] = table.to(where.device)[where[:, 0], where[:, 1]]
            for what, predicted in guesses.items():
                self._error(what, layer).update(predicted, depth, where, masks, photo, batch.photo[layer])

    def on_test_epoch_end(self) -> None:
        """Collect ``<what>/<layer>/<metric>/<group>`` of probes and nulls in ``results``, and log the probes'."""
        for layer in self.shapes:
            for what in (*VARIANTS, *NULLS):
                self.results |= qualified(what, layer, self._error(what, layer).compute())
            self._units |= qualified("test", layer, self._error("test", layer).pseudovalues())
            if label_of(layer):
                gained = self._error("test", layer).gain(self._error("test", base_of(layer)))
                self.results |= qualified(OVER_NONE, layer, gained)
            self._maps[f"{layer}/error"] = self._error("test", layer).maps()["error"]
        self.log_dict(select(self.results, condition="test", statistic=""))

    def pseudovalues(self) -> dict[str, np.ndarray]:
        """``test/<layer>/<metric>/<group>`` → what every test photograph contributes, see :mod:`sdprobe.metrics.intervals`."""
        return present_units(self._units)

    def maps(self) -> dict[str, Float[np.ndarray, "_h _w"]]:
        """``<layer>/error`` of the probes, see :meth:`DepthError.maps`."""
        return dict(self._maps)

    def _depth(self, batch: TokenBatch, layer: str) -> Float[Tensor, " n"]:
        """Depth of tokens, NaN where it is missing."""
        # the data module of depth numbers items where others number photographs
        depth: Tensor = self._data.depth_at(layer, batch.photo[layer], batch.positions[layer])
        return depth

    def _labelled(self, batch: TokenBatch, layer: str, *key: object) -> tuple[Float[Tensor, "n c"], Float[Tensor, "n v"], int]:
        """Tokens whose depth is known, the depths of every variant, in the order of VARIANTS, and how many such tokens the
        batch has, in all processes."""
        depth = self._depth(batch, layer)
        known = depth.isfinite()
        labels = depth[known]
        shuffle = torch.randperm(len(labels), generator=keyed_generator("shuffle", self.seed, base_of(layer), *key))
        variants = depth[:, None].repeat(1, len(VARIANTS))
        variants[known] = torch.stack([labels, labels[shuffle.to(depth.device)]], dim=1)
        here = batch.present(layer, known)
        return batch.tokens[layer][here], batch.present(layer, variants)[here], len(labels)

    def _losses(self, layer: str, tokens: Float[Tensor, "n c"], labels: Float[Tensor, "n v"]) -> Float[Tensor, "n v"]:
        return huber_loss(self._predict(layer, tokens), labels, reduction="none", delta=DELTA)

    def _predict(self, layer: str, tokens: Float[Tensor, "n c"]) -> Float[Tensor, "n v"]:
        """Predicted depth of every variant."""
        return self._head(layer)(tokens)[..., 0]

    @property
    def _data(self) -> Any:
        return self.trainer.datamodule  # type: ignore[attr-defined]

    def _error(self, what: str, layer: str) -> DepthError:
        return cast(DepthError, self.errors[f"{what}/{layer}"])

    def _moments_of(self, layer: str) -> RidgeMoments:
        if layer not in self._moments:
            self._moments[layer] = RidgeMoments(self.shapes[layer][0], len(VARIANTS), self.device)
        return self._moments[layer]

    def _solution(self, moments: RidgeMoments) -> tuple[Float[Tensor, "v 1 c"], Float[Tensor, "v 1"]]:
        weight, bias = moments.solve()
        return weight[:, None], bias[:, None]
