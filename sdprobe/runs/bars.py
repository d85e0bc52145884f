"""StepBars: what a Lightning Trainer does as steps of the run's plan."""

from contextlib import ExitStack
from typing import Any

from lightning.pytorch.callbacks import ProgressBar

from sdprobe.utilities import progress


class StepBars(ProgressBar):
    """One step for all of training, one for testing. A single pass is counted in batches, training with Adam in its steps.

    Example:
        >>> from lightning import Trainer
        >>> from sdprobe.runs.bars import StepBars
        >>> bars = StepBars()
        >>> Trainer(callbacks=bars, accelerator="cpu", logger=False, enable_checkpointing=False).progress_bar_callback is bars
        True
    """

    def __init__(self) -> None:
        super().__init__()
        self._stack = ExitStack()
        self._step: progress.Step | None = None

    def disable(self) -> None:
        """Do nothing: other processes show nothing, see :mod:`sdprobe.utilities.progress`."""

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Open the step. How long heads need to their plateau is not known before."""
        trains = pl_module.automatic_optimization
        self._open(pl_module.fitting, "step" if trains else "batch")
        batches, validated = trainer.num_training_batches, sum(trainer.num_val_batches)
        total = batches + validated if not trains else None if validated else batches * trainer.max_epochs
        self._begin(total=total)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
        """Count a step, and now and then say how far the heads are."""
        self._advance(pl_module)

    def on_validation_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
        """In a single pass, validation images are part of it."""
        if not pl_module.automatic_optimization:
            self._advance(pl_module)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Close the step with what was reached."""
        if self._step is not None and (state := pl_module.training_state()):
            self._step.note = f"{self._step.done} steps, {state}"
        self._close()

    def on_test_start(self, trainer: Any, pl_module: Any) -> None:
        """Open the step; all dataloaders count as one pass."""
        self._open("choose" if trainer.datamodule and trainer.datamodule.tested == "val" else "test", "batch")
        self._begin(total=sum(trainer.num_test_batches))

    def on_test_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
        """Count a batch."""
        self._advance(pl_module)

    def on_test_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """The batches are done; intervals take their time."""
        self._begin("compute metrics")

    def on_test_end(self, trainer: Any, pl_module: Any) -> None:
        """Close the step."""
        self._close()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Remove the bar; the step leaves no line."""
        self._stack.__exit__(type(exception), exception, None)
        self._step = None

    def _open(self, name: str, unit: str) -> None:
        self._close()
        self._step = self._stack.enter_context(progress.step(name, unit))

    def _begin(self, part: str = "", total: int | None = None) -> None:
        if self._step is not None:
            self._step.begin(part, total)

    def _advance(self, probe: Any) -> None:
        if self._step is not None:
            self._step.advance()
            if self._step.due():
                self._step.detail(probe.training_state() if probe.trainer.training else "")

    def _close(self) -> None:
        self._stack.close()
        self._step = None
