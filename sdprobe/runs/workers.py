"""Several devices: one process each, which Lightning begins by repeating the command; the first of them reports."""

import logging
import os
import signal
import subprocess
from typing import Any

import lightning
import torch
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.strategies.launchers.subprocess_script import _SubprocessScriptLauncher
from omegaconf import DictConfig

from sdprobe.runs.cli import is_rank_zero
from sdprobe.utilities.errors import InputError

# seconds that a process whose connection is closed may take to end
PATIENCE = 3
# what each process has a part of: numbers, or numbers by name, in a data module's description
SUMMED = ("latents", "passes")


class Replicated(DDPStrategy):
    """Every process trains the same heads on the same batches, so no gradient needs to be exchanged."""

    def configure_ddp(self) -> None:
        """The model stays as it is."""


def set_device(cfg: DictConfig) -> None:
    """Where a run has several GPUs, ``cuda`` means another one in each process."""
    if _count(cfg) > 1:
        if not is_rank_zero():
            logging.getLogger().setLevel(logging.ERROR)  # the first process says it already
        if torch.cuda.is_available() and str(cfg.device) != "cpu":
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))


def options(cfg: DictConfig, device: torch.device) -> dict[str, Any]:
    """What a Trainer is told about devices."""
    if _count(cfg) > 1:
        return {"devices": _count(cfg)}
    return {"devices": [device.index or 0] if device.type == "cuda" else 1, "strategy": "auto"}


def launch(trainer: lightning.Trainer) -> None:
    """Begin the other processes, or meet them: before training, since they share the encoding of images, too."""
    if isinstance(trainer.strategy, DDPStrategy):
        assert trainer.strategy.launcher is not None
        trainer.strategy.launcher.launch(trainer.strategy.setup_environment, trainer=trainer)


def terminate(trainer: lightning.Trainer, error: BaseException) -> None:
    """Where the first process fails, the others would wait for it: end them.

    Raises:
        InputError: it failed because another did, which has said why.
    """
    launcher = trainer.strategy.launcher
    if not isinstance(launcher, _SubprocessScriptLauncher):
        return
    failed = isinstance(error, RuntimeError) and any(map(_failed, launcher.procs))  # what a broken connection raises
    launcher.kill(signal.SIGKILL)
    if failed:
        raise InputError(
            "Expected the processes of all devices to go on, but one of them ended. Its error stands above; correct that."
        ) from error


def merged(described: list[dict[str, Any]]) -> dict[str, Any]:
    """The first process's description of the data, with counts of what all processes did."""
    total = dict(described[0])
    for name in SUMMED:
        counts = [description[name] for description in described if name in description]
        if counts and isinstance(counts[0], dict):
            total[name] = {key: sum(count[key] for count in counts) for key in counts[0]}
        elif counts:
            total[name] = sum(counts)
    return total


def _failed(process: subprocess.Popen[bytes]) -> bool:
    try:
        return process.wait(PATIENCE) != 0
    except subprocess.TimeoutExpired:
        return False


def _count(cfg: DictConfig) -> int:
    return int(cfg.trainer.get("devices", 1))
