"""RoleProbe: what the prediction loses when a layer is edited inside the network, and whether later layers rebuild position.

Data path steps 8 and 9. Nothing is trained in steps. Position heads of later layers are fitted in closed form.
"""

from dataclasses import replace
from typing import Protocol, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from probes.base import Data, Probe, Shapes
from sdprobe.estimators.closed_form import Moments
from sdprobe.estimators.heads import grid_positions
from sdprobe.estimators.position import PositionTask
from sdprobe.estimators.scores import entry
from sdprobe.metrics.grid_accuracy import GridAccuracy, chance
from sdprobe.metrics.loss_change import ACCURACY, REEMERGENCE, LossChange, reemergence, reported
from sdprobe.tokens.batch import EditedBatch
from sdprobe.tokens.geometry import flatten, positions
from sdprobe.tokens.keys import Key, qualified, select, timestep_of, unmitigated, variant
from sdprobe.utilities.errors import InputError

TESTED = "test"


class RoleData(Data, Protocol):
    """A data module that streams :class:`~sdprobe.tokens.batch.EditedBatch`."""

    @property
    def later(self) -> Shapes:
        """The layers in which position is looked for after an edit, with their shapes (C, h, w)."""


class RoleProbe(Probe):
    """The change of the prediction loss by edits of layers, and the position code that later layers rebuild.

    ``results`` are, for each edited layer: ``<condition>/<layer>/loss_change/<where>``, ``displacement/all`` and
    ``ceiling_share/<where>``, see :class:`~sdprobe.metrics.loss_change.LossChange`. The condition is ``test`` for an edit, and
    ``random_energy``, ``shuffled_position`` or ``ceiling`` for a control. If later layers are read,
    ``<condition>/<layer>/reemergence/<later layer>`` is ρ of a position head that is fitted and tested with the edit, and
    ``binned_accuracy/<later layer>`` its accuracy. ``test/<later layer>/binned_accuracy/all`` is the accuracy without an edit.

    Args:
        shapes: layer or edit → (C, h, w).
        photos: number of photographs.
        data: a data module such as :class:`~datamodules.role.RoleDataModule`.

    Raises:
        InputError: a data module of another kind, a later layer of less than 2 × 2 tokens.

    References:
        Own choice. methods.md, section 22.

    Example:
        >>> from types import SimpleNamespace
        >>> probe = RoleProbe({"mid": (4, 8, 8)}, photos=6, data=SimpleNamespace(kind="role", later={}))
        >>> plain, target, photo = torch.zeros(6, 4, 8, 8), torch.ones(6, 4, 8, 8), torch.arange(6)
        >>> predictions = {"edited": plain - 1, "plain": plain, "target": target}
        >>> probe.test_step(EditedBatch("ceiling", "mid", {}, predictions, photo), 0)
        >>> probe.collect()
        >>> probe.results["ceiling/mid/loss_change/all"]  # the squared error goes from 1 to 4
        3.0
    """

    kind, reads = "role", "role"
    data: RoleData

    def __init__(self, shapes: Shapes, photos: int, data: Data) -> None:
        super().__init__(shapes, data)
        self.automatic_optimization = False
        self.photos, self.later = photos, dict(self.data.later)
        self.fitting = "fit position heads" if self.later else ""
        for layer, shape in self.later.items():
            PositionTask(layer, shape)  # refuses grids without positions
        self.losses, self.accuracies = nn.ModuleDict(), nn.ModuleDict()
        self.moments: dict[str, Moments] = {}

    def training_step(self, batch: EditedBatch, batch_idx: int) -> None:
        """Add the tokens of later layers to the sums that determine their position heads."""
        for layer, grid in batch.grids.items():
            key, (channels, *sides) = _cell(batch, layer), self.later[layer]
            if key not in self.moments:
                self.moments[key] = Moments(channels, sides, 1, grid.device)
            self.moments[key].update(flatten(grid).flatten(0, 1), _positions(grid)[:, None])

    def on_train_epoch_end(self) -> None:
        """Stop after one pass."""
        self.trainer.should_stop = True

    def on_test_start(self) -> None:
        """Solve for the position heads.

        Raises:
            InputError: a resumed run, which has not seen the training images.
        """
        if self.later and not self.moments:
            raise InputError(
                "Expected a run of probe=role to begin with its training images, but got a resumed run. Leave out resume=."
            )
        self.heads = {key: moments.discriminants(0) for key, moments in self.moments.items()}
        self.moments.clear()

    def test_step(self, batch: EditedBatch, batch_idx: int) -> None:
        """Add test images: losses, and the accuracy of the position heads of later layers."""
        if shown := batch.predictions:
            self._loss(batch.condition, batch.layer, batch.photo.device).update(
                shown["edited"], shown["plain"], shown["target"], batch.photo
            )
        for layer, grid in batch.grids.items():
            self._test(_cell(batch, layer), layer, grid, batch.photo)

    def collect(self) -> None:
        """Write losses and re-emergence of every edit and control."""
        for text in self.losses:
            condition, layer = text.split("/")
            loss = self._loss(condition, layer)
            numbers, values = loss.compute(), loss.pseudovalues()
            if condition != "ceiling":
                shares = loss.shares(self._loss("ceiling", unmitigated(layer)))
                numbers, values = numbers | reported(shares), values | shares
            else:
                output = variant("conv_out", timestep=timestep_of(layer))
                self.results |= qualified(TESTED, output, loss.loss())
            self.results |= qualified(condition, layer, numbers)
            self._units |= qualified(condition, layer, values)
        for text in self.accuracies:
            condition, layer, later = text.split("/")
            if condition:
                self._collect_later(condition, layer, later)
        self.log_dict(select(self.results, condition=TESTED, metric="loss_change", where="all", statistic=""))

    def _collect_later(self, condition: str, layer: str, later: str) -> None:
        """Write accuracy and re-emergence of a later layer."""
        suffix = variant("", timestep=timestep_of(layer))
        plain, edited = self._accuracy("", suffix, later), self._accuracy(condition, layer, later)
        null = chance(*self.later[later][1:])[ACCURACY]
        self.results |= qualified(TESTED, f"{later}{suffix}", select(plain.compute(), metric=ACCURACY, where="all"))
        self.results[f"chance/{later}{suffix}/{ACCURACY}/all"] = null
        for text, value in select(edited.compute(), metric=ACCURACY).items():
            self.results[str(replace(Key.parse(text), condition=condition, layer=layer, where=later))] = value
        share = reemergence(edited, plain, null)
        if share is not None:
            units = {f"{REEMERGENCE}/{later}": share}
            self.results |= qualified(condition, layer, reported(units))
            self._units |= qualified(condition, layer, units)

    def _test(self, key: str, layer: str, grid: Float[Tensor, "b c h w"], photo: Int[Tensor, " b"]) -> None:
        weight, bias = self.heads[key]
        _, height, width = self.later[layer]
        outputs = flatten(grid).flatten(0, 1).double() @ weight.T + bias
        predicted = grid_positions(outputs, height, width, regression=False)
        condition, edit, _ = key.split("/")
        self._accuracy(condition, edit, layer, grid.device).update(
            predicted, _positions(grid), {}, photo.repeat_interleave(height * width)
        )

    def _loss(self, condition: str, layer: str, device: torch.device | None = None) -> LossChange:
        """Sums of an edit, built with its first batch."""
        if (key := entry(condition, layer)) not in self.losses:
            self.losses[key] = LossChange(self.photos).to(device)
        return cast(LossChange, self.losses[key])

    def _accuracy(self, condition: str, layer: str, later: str, device: torch.device | None = None) -> GridAccuracy:
        """Accuracy in a later layer during an edit, built with its first batch."""
        if (key := entry(condition, layer, later)) not in self.accuracies:
            _, height, width = self.later[later]
            self.accuracies[key] = GridAccuracy(height, width, (), self.photos).to(device)
        return cast(GridAccuracy, self.accuracies[key])


def _cell(batch: EditedBatch, layer: str) -> str:
    """Name of a later layer during an edit."""
    return entry(batch.condition, batch.layer, layer)


def _positions(grid: Float[Tensor, "b c h w"]) -> Int[Tensor, "n 2"]:
    """(row, col) of every token of a batch of grids."""
    images, _, height, width = grid.shape
    return positions(height, width, grid.device).repeat(images, 1)
