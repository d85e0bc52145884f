"""Several devices: one process each, which Lightning begins by repeating the command; the first of them reports."""

import logging
import os
import signal
from typing import Any

import lightning
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from lightning.pytorch.strategies import DDPStrategy
from omegaconf import DictConfig

# what each process has a part of: numbers, or numbers by name, in a data module's description
SUMMED = ("latents", "passes", "resident_images")


def first() -> bool:
    """Whether this process reports: the one the user began. Those Lightning begins have their number in LOCAL_RANK."""
    return os.environ.get("LOCAL_RANK", "0") == "0"


def sweeping() -> bool:
    """Whether this is a job of a multirun."""
    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


def choose(cfg: DictConfig) -> None:
    """Where a run has several GPUs, ``cuda`` means another one in each process."""
    if _count(cfg) > 1:
        if not first():
            logging.getLogger().setLevel(logging.ERROR)  # the first process says it already
        if torch.cuda.is_available() and str(cfg.device) != "cpu":
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))


def options(cfg: DictConfig, device: torch.device) -> dict[str, Any]:
    """What a Trainer is told about devices."""
    if _count(cfg) > 1:
        return {"devices": _count(cfg)}
    return {"devices": [device.index or 0] if device.type == "cuda" else 1, "strategy": "auto"}


def begin(trainer: lightning.Trainer) -> None:
    """Begin the other processes, or meet them: before training, since they share the encoding of images, too."""
    if isinstance(trainer.strategy, DDPStrategy):
        assert trainer.strategy.launcher is not None
        trainer.strategy.launcher.launch(trainer.strategy.setup_environment, trainer=trainer)


def end(trainer: lightning.Trainer) -> None:
    """Where the first process fails, the others would wait for it."""
    if trainer.strategy.launcher is not None and first():
        trainer.strategy.launcher.kill(signal.SIGKILL)


def merged(described: list[dict[str, Any]]) -> dict[str, Any]:
    """The first process's description of the data, with counts of what all processes did."""
    whole = dict(described[0])
    for name in SUMMED:
        parts = [part[name] for part in described if name in part]
        if parts and isinstance(parts[0], dict):
            whole[name] = {key: sum(part[key] for part in parts) for key in parts[0]}
        elif parts:
            whole[name] = sum(parts)
    return whole


def _count(cfg: DictConfig) -> int:
    return int(cfg.trainer.get("devices", 1))
