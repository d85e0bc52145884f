"""Probe: what every probe has: a kind, the layers it reads, the data it fits, and its results by key.

What belongs to tokens comes with their batches; what belongs to the whole test is asked of the data module.
"""

from collections.abc import Sequence
from typing import Any, ClassVar, Protocol, runtime_checkable

import lightning
import numpy as np
from torch import nn
from torchmetrics import Metric

from sdprobe.metrics.intervals import present_units
from sdprobe.tokens.keys import OVER_NONE, base_of, label_of, qualified
from sdprobe.utilities.errors import InputError

Shapes = dict[str, tuple[int, int, int]]


@runtime_checkable
class Data(Protocol):
    """A data module; ``kind`` is the choice of ``datamodule=`` that makes it."""

    @property
    def kind(self) -> str: ...


class Probe(lightning.LightningModule):
    """A measurement of every layer.

    ``kind`` is the choice of ``probe=`` that makes it, ``reads`` the ``kind`` of its data module. ``results`` are numbers by
    ``<condition>/<layer>/<metric>/<where>``. Several processes see the same batches, so their metrics are not reduced.

    Args:
        shapes: layer → (C, h, w).
        data: the data module; None where a probe asks nothing of it.

    Raises:
        InputError: a data module of another kind.
    """

    kind: ClassVar[str]
    reads: ClassVar[str]
    optional: ClassVar[bool] = False  # whether it can do without a data module

    def __init__(self, shapes: Shapes, data: Data | None) -> None:
        super().__init__()
        kind = self.reads if data is None and self.optional else getattr(data, "kind", type(data).__name__)
        if kind != self.reads:
            raise InputError(
                f"Expected datamodule={self.reads} for probe={self.kind}, but got datamodule={kind}. Leave out datamodule=, or "
                f"build the probe with data of kind '{self.reads}'."
            )
        self.shapes, self.data = shapes, data
        self.measures = nn.ModuleDict()  # what is measured of each layer, where that is made during a run
        self.results: dict[str, float] = {}
        self._units: dict[str, np.ndarray] = {}

    def configure_optimizers(self) -> Any:
        """None: nothing is trained in steps, so there are no checkpoints, and a resumed run starts over."""
        return None

    def on_test_epoch_end(self) -> None:
        """Collect results, without torchmetrics adding up what every process has seen already."""
        for metric in (module for module in self.modules() if isinstance(module, Metric)):
            metric.sync_on_compute = metric._to_sync = False
        self.collect()

    def collect(self) -> None:
        """Put what was measured into ``results``, and log the main numbers."""
        raise NotImplementedError

    def collect_scores(self, scores: nn.ModuleDict, conditions: Sequence[str]) -> None:
        """Of metrics by ``<condition>/<layer>``: values, units of the first condition, gains of variants over their layer."""
        tested = conditions[0]
        for layer in self.shapes:
            for condition in conditions:
                self.results |= qualified(condition, layer, scores[f"{condition}/{layer}"].compute())  # type: ignore[operator]
            score: Any = scores[f"{tested}/{layer}"]
            self._units |= qualified(tested, layer, score.pseudovalues())
            if label_of(layer):
                self.results |= qualified(OVER_NONE, layer, score.gain(scores[f"{tested}/{base_of(layer)}"]))

    @property
    def not_converged(self) -> list[str]:
        """Layers whose heads were stopped before their plateau; none, where nothing is trained in steps."""
        return []

    def pseudovalues(self) -> dict[str, np.ndarray]:
        """``<condition>/<layer>/<metric>/<where>`` → what every unit of the test contributes (photograph, picture or fold of
        images), see :mod:`sdprobe.metrics.intervals`."""
        return present_units(self._units)

    def maps(self) -> dict[str, Any]:
        """Tables by name, for figures."""
        return {}
