"""Train and test a probe on frozen diffusion activations: ``python train.py probe=position block=mid``."""

import errno
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import hydra
import numpy as np
from hydra.errors import CompactHydraException, InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console

from reports.figures import draw
from reports.run import Run
from reports.tables import rows, show
from runs import command, tracking
from runs.measure import Measurement
from runs.nulls import random_weights
from runs.quiet import quiet
from runs.record import write_metrics
from tokens.errors import InputError

log = logging.getLogger(__name__)


class UserError(CompactHydraException):
    """A sentence for the user; Hydra prints it without a traceback and exits with 1."""


@hydra.main(version_base="1.3", config_path="configs", config_name="train")
def main(cfg: DictConfig) -> None:
    """Hydra's entry point."""
    quiet()
    with sentences():
        run(cfg)


def run(cfg: DictConfig) -> Run:
    """Measure, compare with the nulls, write ``metrics.json`` and figures into ``cfg.run_dir``, show and track them."""
    folder = Path(cfg.run_dir)
    folder.mkdir(parents=True, exist_ok=True)
    if cfg.resume and (folder / "metrics.json").is_file() and Run.read(folder).meta["complete"]:
        log.info("%s is complete; nothing is left to do.", folder)
        return Run.read(folder)
    measurement = Measurement(cfg, logger=None)
    measurement.data.prepare_data()  # unusable images end the run before anything is tracked
    logger = instantiate(cfg.logger) if cfg.logger else None
    measurement.trainer.loggers = [logger] if logger else []
    try:
        measurement.run()
        meta = measurement.meta
        write_metrics(folder, measurement.results, meta | {"complete": False})  # safe, whatever happens to the twins
        measurement.release()
        nulls = random_weights(cfg, meta)
    except (KeyboardInterrupt, SystemExit):
        write_metrics(folder, measurement.results, measurement.meta | {"complete": False})
        log.warning("Interrupted; continue with: python train.py resume=%s", folder)
        tracking.finish(logger, exit_code=1)
        sys.exit(130)
    write_metrics(folder, measurement.results | nulls, meta)
    np.savez_compressed(folder / "maps.npz", **measurement.probe.maps())
    finished = Run.read(folder)
    figures = draw(finished, folder)
    tracking.log_results(logger, cfg, *rows(finished), figures)
    tracking.finish(logger)
    show(finished, Console())
    log.info("Run folder: %s", folder)
    return finished


@contextmanager
def sentences() -> Iterator[None]:
    """Turn what the user can mend into one sentence; everything else is a defect and keeps its traceback."""
    try:
        yield
    except InputError as error:
        raise UserError(str(error)) from error
    except InstantiationException as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, InputError):
            cause = cause.__cause__
        if cause is None:
            raise
        raise UserError(str(cause)) from error
    except OmegaConfBaseException as error:
        raise UserError(command.explained(error)) from None  # Hydra would print the cause too
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise UserError("Expected space on the disk, but it is full. Free some, or set hydra.run.dir and cache_dir.") from error


if __name__ == "__main__":
    try:
        sys.argv[1:] = command.expanded(sys.argv[1:])
        command.check(sys.argv[1:])
    except InputError as error:
        sys.exit(str(error))
    main()
