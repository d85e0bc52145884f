"""Probe: the base of all probes, with their kind, the shapes of their layers, their data module and their results by key.

Whatever belongs to tokens comes with their batches. Whatever belongs to the whole test comes from the data module.
"""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol, runtime_checkable

import lightning
import numpy as np
from torch import nn
from torchmetrics import Metric

from sdprobe.estimators.scores import reported
from sdprobe.metrics.intervals import present_units
from sdprobe.tokens.batch import GridBatch
from sdprobe.tokens.kept import KeptTokens
from sdprobe.tokens.keys import finished
from sdprobe.utilities.errors import InputError

Shapes = dict[str, tuple[int, int, int]]


@runtime_checkable
class Data(Protocol):
    """A data module; ``kind`` is its name in ``datamodule=``."""

    @property
    def kind(self) -> str: ...


class Probe(lightning.LightningModule):
    """Base class of all probes. A probe measures every layer in one run.

    ``kind`` is its name in ``probe=``, ``reads`` the ``kind`` of its data module. ``results`` are numbers by
    ``<condition>/<layer>/<metric>/<where>``, see :mod:`sdprobe.tokens.keys`. On several devices every process sees the same
    batches, so metrics are not reduced.

    Args:
        shapes: layer → (C, h, w).
        data: the data module; None if the probe needs none.

    Raises:
        InputError: a data module of another kind.
    """

    kind: ClassVar[str]
    reads: ClassVar[str]
    fitting: str = "train heads"  # name of the step that sees training images, empty where there is none
    optional: ClassVar[bool] = False  # whether the data module may be None
    explored: ClassVar[int] = 0  # images whose tokens are kept for the explorer beside the numbers
    score: ClassVar[str] = ""  # <metric>/<where> of the test that choose= maximises; empty where there is none

    def __init__(self, shapes: Shapes, data: Data | None) -> None:
        super().__init__()
        kind = self.reads if data is None and self.optional else getattr(data, "kind", type(data).__name__)
        if kind != self.reads:
            raise InputError(
                f"Expected datamodule={self.reads} for probe={self.kind}, but got datamodule={kind}. Leave out datamodule=, or "
                f"build the probe with data of kind '{self.reads}'."
            )
        self.shapes, self.data = shapes, data
        self.measures = nn.ModuleDict()  # metrics of each layer that are built during a run
        self.results: dict[str, float] = {}
        self.kept: KeptTokens | None = None  # set by a run that keeps tokens for the explorer
        self.seconds_kept = 0.0  # that this took
        self._units: dict[str, np.ndarray] = {}

    def configure_optimizers(self) -> Any:
        """Return None, since nothing is trained in steps. There are no checkpoints, so a resumed run starts again."""
        return None

    def on_test_epoch_end(self) -> None:
        """Collect the results. torchmetrics must not sum over processes, since each has seen every batch."""
        for metric in (module for module in self.modules() if isinstance(module, Metric)):
            metric.sync_on_compute = metric._to_sync = False
        self.collect()
        self.results, self._units = finished(self.results), finished(self._units)

    def log_dict(self, dictionary: Any, *arguments: Any, **options: Any) -> None:
        """Log numbers by key, as Lightning does, with those of controls under their condition."""
        super().log_dict(finished(dictionary), *arguments, **options)

    def collect(self) -> None:
        """Write the measured numbers into ``results``, and log the main ones."""
        raise NotImplementedError

    def collect_scores(self, scores: nn.ModuleDict, conditions: Sequence[str]) -> None:
        """Write metrics, given by ``<condition>/<layer>``, into ``results``.

        Pseudo-values are kept of the first condition; variants also get their gain over their layer.
        """
        results, units = reported(scores, self.shapes, conditions)
        self.results |= results
        self._units |= units

    def keep(self, batch: GridBatch) -> None:
        """Keep tokens of the batch, if the run keeps any."""
        if self.kept is not None:
            started = time.perf_counter()
            self.kept.take(batch)
            self.seconds_kept += time.perf_counter() - started

    @property
    def tokens(self) -> dict[str, np.ndarray]:
        """Tokens that were kept, see :class:`~sdprobe.tokens.kept.KeptTokens`; none by default."""
        if self.kept is None:
            return {}
        self.kept.finish()
        return {name: tensor.numpy() for name, tensor in self.kept.arrays.items()}

    def training_state(self) -> str:
        """Return in words how far training is; empty where nothing is trained in steps."""
        return ""

    @property
    def not_converged(self) -> list[str]:
        """Layers whose heads stopped before their plateau; none if nothing is trained in steps."""
        return []

    def save(self, folder: Path, **fitted_on: Any) -> None:
        """Write what the probe has fitted, and what it was fitted on, below a run folder; nothing by default."""

    def pseudovalues(self) -> dict[str, np.ndarray]:
        """Contribution of every test unit to the results, see :mod:`sdprobe.metrics.intervals`.

        Returns:
            ``<condition>/<layer>/<metric>/<where>`` → (units,). Units are photographs, pictures or groups of images.
        """
        return present_units(self._units)

    def maps(self) -> dict[str, Any]:
        """Return arrays by name, for figures; none by default."""
        return {}
