"""wandb: online where a key is configured, offline otherwise; it never asks, waits or stops a run."""

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import wandb
from lightning.pytorch.loggers import Logger, WandbLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from omegaconf import DictConfig, ListConfig, OmegaConf

from sdprobe.runs import sweep
from sdprobe.utilities import expect

log = logging.getLogger(__name__)
# longest wait for a server before the run goes on offline, in seconds
PATIENCE = 20
# longest wait for uploads at a run's end, in seconds; what is not uploaded stays on disk for `wandb sync`
UPLOAD = 120
MODES = ("online", "offline", "disabled", "shared")


class FaultTolerantWandbLogger(WandbLogger):
    """A wandb logger whose losses cost a line in the log and never the run: a server or service may go away at any time."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Send what a step measured, if wandb still listens."""
        with forgiving():
            super().log_metrics(metrics, step)


@contextmanager
def forgiving() -> Iterator[None]:
    """Turn whatever wandb raises into a warning: its errors have no common base, and results are written without it."""
    try:
        yield
    except Exception as error:
        log.warning("wandb no longer answers (%s: %s); the run goes on without it.", type(error).__name__, error)


def wandb_logger(folder: str, project: str, name: str, group: str, tags: dict[str, Any]) -> WandbLogger:
    """A Lightning logger around a wandb run that has begun.

    Args:
        folder: the run folder; wandb's files go to ``<folder>/wandb``.
        project, name: as wandb shows them.
        group: of a single run; the jobs of a sweep share the sweep's.
        tags: become ``key=value`` tags of the run, several where a value is a list.

    Environment: ``WANDB_MODE`` wins over everything; ``WANDB_API_KEY`` or ``wandb login`` switch online runs on.
    """
    options: dict[str, Any] = {
        "project": project,
        "name": name[:128],
        "group": sweep.group(group)[:128],
        "tags": [f"{key}={value}"[:64] for key, values in tags.items() for value in _listed(values)],
        "dir": folder,
        "settings": wandb.Settings(init_timeout=PATIENCE, finish_timeout=UPLOAD, silent=True),
    }
    mode = os.environ.get("WANDB_MODE")
    if mode:
        expect.one_of("WANDB_MODE", mode, MODES, "Unset it, or use offline.")
    try:
        mode = mode or ("online" if wandb.login(prompt=False) else "offline")
        run = wandb.init(mode=mode, **options)  # type: ignore[arg-type]
    except wandb.Error as error:  # no network, a refused key, a server that does not answer
        log.warning("wandb cannot be used online (%s); the run is logged offline.", str(error).splitlines()[0])
        run = wandb.init(mode="offline", **options)
    return FaultTolerantWandbLogger(experiment=run)


def _listed(values: Any) -> list[Any]:
    return list(values) if isinstance(values, list | ListConfig) else [values]


def log_results(logger: Logger | None, cfg: DictConfig, columns: list[str], rows: list[list[Any]], figures: list[Path]) -> None:
    """The full configuration, a table of layer × metric, and the figures; nothing where the logger is not wandb's."""
    if not isinstance(logger, WandbLogger):
        return
    config = OmegaConf.to_container(cfg, resolve=True)
    with forgiving():
        logger.experiment.config.update(config, allow_val_change=True)
        logger.log_table("results", columns=columns, data=rows)
        for figure in figures:
            logger.log_image(figure.stem, [str(figure)])


def finish(logger: Logger | None, exit_code: int = 0) -> None:
    """End a wandb run, so that the next job of a sweep begins its own."""
    if isinstance(logger, WandbLogger):
        with forgiving():
            logger.experiment.finish(exit_code=exit_code)
