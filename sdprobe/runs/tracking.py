"""wandb: online if you are logged in, else offline. It never prompts, and its errors never stop a run."""

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
# longest wait for a server before the run continues offline, in seconds
PATIENCE = 20
# longest wait for uploads at a run's end, in seconds; what is not uploaded stays on disk for `wandb sync`
UPLOAD = 120
MODES = ("online", "offline", "disabled", "shared")


class FaultTolerantWandbLogger(WandbLogger):
    """A wandb logger that logs a warning where wandb fails, for example because a server cannot be reached."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Send the metrics of a step, if wandb still answers."""
        with forgiving():
            super().log_metrics(metrics, step)


@contextmanager
def forgiving() -> Iterator[None]:
    """Turn any exception of wandb into a warning. Its exceptions have no common base class, and results do not need wandb."""
    try:
        yield
    except Exception as error:
        log.warning("wandb failed (%s: %s). The run continues without it.", type(error).__name__, error)


def wandb_logger(folder: str, project: str, name: str, group: str, tags: dict[str, Any]) -> WandbLogger:
    """A Lightning logger with a wandb run that has started. ``logger=wandb`` selects it.

    The run is online if ``WANDB_API_KEY`` is set or ``wandb login`` was done, else offline. The environment variable
    ``WANDB_MODE`` overrides this. If the server does not answer within 20 seconds, the run is logged offline.

    Args:
        folder: the run folder; wandb writes into ``<folder>/wandb``.
        project: name of the wandb project.
        name: name of the run, cut after 128 characters.
        group: group of a single run. The jobs of a sweep get the group of the sweep.
        tags: become tags ``key=value``, cut after 64 characters; a list of values becomes several tags.

    Returns:
        the logger.

    Raises:
        InputError: ``WANDB_MODE`` has an unknown value.

    Example:
        >>> import tempfile
        >>> from unittest.mock import patch
        >>> from sdprobe.runs.tracking import wandb_logger
        >>> with tempfile.TemporaryDirectory() as folder, patch.dict("os.environ", WANDB_MODE="disabled"):
        ...     logger = wandb_logger(folder, "sdprobe", "mid", "position", {"layer": ["mid", "up_1"]})
        ...     logger.experiment.finish()
        >>> type(logger).__name__
        'FaultTolerantWandbLogger'
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
        log.warning("wandb cannot be used online (%s). The run is logged offline.", str(error).splitlines()[0])
        run = wandb.init(mode="offline", **options)
    return FaultTolerantWandbLogger(experiment=run)


def _listed(values: Any) -> list[Any]:
    return list(values) if isinstance(values, list | ListConfig) else [values]


def log_results(logger: Logger | None, cfg: DictConfig, columns: list[str], rows: list[list[Any]], figures: list[Path]) -> None:
    """Log the configuration, a table of layer × metric, and the figures. Without wandb, do nothing."""
    if not isinstance(logger, WandbLogger):
        return
    config = OmegaConf.to_container(cfg, resolve=True)
    with forgiving():
        logger.experiment.config.update(config, allow_val_change=True)
        logger.log_table("results", columns=columns, data=rows)
        for figure in figures:
            logger.log_image(figure.stem, [str(figure)])


def finish(logger: Logger | None, exit_code: int = 0) -> None:
    """End a wandb run, so that the next job of a sweep can start its own."""
    if isinstance(logger, WandbLogger):
        with forgiving():
            logger.experiment.finish(exit_code=exit_code)
