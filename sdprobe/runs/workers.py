"""Runs on several devices: one process each. Lightning starts the others by repeating the command. Only rank 0 reports."""

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

# seconds that a process may take to end after its connection is closed
PATIENCE = 3
# counts in the description of a data module that are added over processes
SUMMED = ("latents", "passes")


class Replicated(DDPStrategy):
    """Lightning strategy without gradient exchange: every process trains the same heads on the same batches.

    It takes the arguments of :class:`lightning.pytorch.strategies.DDPStrategy`. ``trainer=ddp`` selects it.

    Example:
        >>> from sdprobe.runs.workers import Replicated
        >>> Replicated(process_group_backend="gloo").process_group_backend
        'gloo'
    """

    def configure_ddp(self) -> None:
        """Leave the model unwrapped, so that no gradient is exchanged."""


def set_device(cfg: DictConfig) -> None:
    """On several GPUs, let ``cuda`` mean another GPU in each process."""
    if _count(cfg) > 1:
        if not is_rank_zero():
            logging.getLogger().setLevel(logging.ERROR)  # rank 0 logs it
        if torch.cuda.is_available() and str(cfg.device) != "cpu":
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))


def options(cfg: DictConfig, device: torch.device) -> dict[str, Any]:
    """Arguments for Lightning's Trainer that say which devices to use."""
    if _count(cfg) > 1:
        return {"devices": _count(cfg)}
    return {"devices": [device.index or 0] if device.type == "cuda" else 1, "strategy": "auto"}


def launch(trainer: lightning.Trainer) -> None:
    """Start the other processes, or join them. This comes before training, since processes share the encoding of images."""
    if isinstance(trainer.strategy, DDPStrategy):
        assert trainer.strategy.launcher is not None
        trainer.strategy.launcher.launch(trainer.strategy.setup_environment, trainer=trainer)


def terminate(trainer: lightning.Trainer, error: BaseException) -> None:
    """End the other processes after rank 0 has failed, because they would wait for it.

    Raises:
        InputError: rank 0 failed because another process did, which has printed its error.
    """
    launcher = trainer.strategy.launcher
    if not isinstance(launcher, _SubprocessScriptLauncher):
        return
    failed = isinstance(error, RuntimeError) and any(map(_failed, launcher.procs))  # a broken connection raises RuntimeError
    launcher.kill(signal.SIGKILL)
    if failed:
        raise InputError(
            "Expected the processes of all devices to continue, but one of them ended. Its error is printed above; correct it."
        ) from error


def merged(described: list[dict[str, Any]]) -> dict[str, Any]:
    """Rank 0's description of the data, with the counts of all processes added up."""
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
