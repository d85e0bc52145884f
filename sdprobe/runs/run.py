"""One run from its configuration to its folder: measure, compare with the baselines, write, draw, track."""

import logging
import sys
from pathlib import Path

from hydra.utils import instantiate
from omegaconf import DictConfig
from rich.console import Console

from sdprobe.reports.dispatch import draw, rows, show
from sdprobe.reports.run import Run
from sdprobe.runs import checks, sweep, tracking, workers
from sdprobe.runs.baselines import random_weights
from sdprobe.runs.cli import is_rank_zero
from sdprobe.runs.measurement import Measurement
from sdprobe.runs.record import Predicts, clear, write_command, write_metrics, write_predictions
from sdprobe.utilities.errors import InputError
from sdprobe.utilities.io import write_arrays

log = logging.getLogger(__name__)


def run(cfg: DictConfig) -> Run | None:
    """Measure, compare with the nulls, write ``metrics.json`` and figures into ``cfg.run_dir``, show and track them.

    Of several processes only the first does more than measure, and returns something.
    """
    folder = Path(cfg.run_dir)
    if cfg.resume and (folder / "metrics.json").is_file() and Run.read(folder, maps=False).meta["complete"]:
        log.info("%s is complete; nothing is left to do.", folder)
        return Run.read(folder)
    checks.check_types(cfg)
    checks.check_devices(cfg, sweep.active())
    measurement = Measurement(cfg)  # settings that cannot be used are refused before anything of an earlier run is removed
    if not is_rank_zero():
        run_worker(cfg, measurement)
        return None
    clear(folder, resumed=bool(cfg.resume))
    write_command(folder, cfg)
    logger, meta = None, None
    try:
        measurement.prepare()  # unusable images end the run before anything is tracked
        logger = instantiate(cfg.logger) if cfg.logger else None
        measurement.trainer.loggers = [logger] if logger else []
        measurement.run()
        meta = measurement.meta
        write_metrics(folder, measurement.results, meta | {"complete": False})  # safe, whatever happens to the twins
        measurement.release()
        if isinstance(measurement.probe, Predicts):
            write_predictions(folder / "predictions.parquet", measurement.probe.predictions())
        measurement.data.mitigations.save(folder)
        nulls = random_weights(cfg, meta, measurement.probe)
    except BaseException as error:
        workers.terminate(measurement.trainer, error)
        tracking.finish(logger, exit_code=1)
        if isinstance(error, KeyboardInterrupt | SystemExit):
            write_metrics(folder, measurement.results, (meta or measurement.meta) | {"complete": False})
            log.warning("Interrupted; continue with: python train.py resume=%s", folder)
            sys.exit(130)
        raise
    write_arrays(folder / "maps.npz", measurement.maps())
    write_arrays(folder / "pseudovalues.npz", measurement.probe.pseudovalues())
    write_metrics(folder, measurement.results | nulls, meta)  # last: it says that the run is complete
    finished = Run.read(folder)
    tracking.log_results(logger, cfg, *rows(finished), draw(finished, folder))
    tracking.finish(logger)
    show(finished, Console())
    log.info("Run folder: %s", folder)
    return finished


def run_worker(cfg: DictConfig, measurement: Measurement) -> None:
    """Worker process of a run on several devices: encodes, trains and tests. Only the first process writes files and logs."""
    try:
        measurement.prepare()
    except InputError:
        sys.exit(0)  # all processes end with the same sentence, and the first prints it
    measurement.run()  # an error here may be this process's alone, so it is printed
    measurement.release()
    random_weights(cfg, measurement.meta)
