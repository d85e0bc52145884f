"""One run, from configuration to folder: measure, compare with baselines, write, draw, track."""

import logging
import sys
from functools import cache
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from sdprobe.reports.dispatch import draw, show
from sdprobe.reports.run import Run
from sdprobe.runs import baselines, checks, folders, interrupts, sweep, workers
from sdprobe.runs.arguments import command
from sdprobe.runs.cli import is_rank_zero
from sdprobe.runs.measurement import Measurement
from sdprobe.runs.record import FITS, Predicts, clear, complete, write_command, write_metrics, write_predictions
from sdprobe.utilities import progress
from sdprobe.utilities.errors import InputError
from sdprobe.utilities.io import checksum, write_arrays

log = logging.getLogger(__name__)


def run(cfg: DictConfig) -> Run | None:
    """Measure, compare with the baselines, write ``metrics.json`` and figures into ``cfg.run_dir``, print and track them.

    With several processes, only rank 0 does more than measure. The others return None.
    """
    folder = Path(cfg.run_dir)
    if cfg.resume and complete(folder):
        log.info("%s is already complete.", folder)
        return Run.read(folder)
    checks.check_types(cfg)
    checks.check_devices(cfg, sweep.active())
    measurement = Measurement(cfg)  # refuses unusable settings before files of an earlier run are removed
    if not is_rank_zero():
        run_worker(cfg, measurement)
        return None
    folders.check_place(folder)
    clear(folder, resumed=bool(cfg.resume))
    write_command(folder, cfg)
    if not sweep.active():
        cache = [text for text in HydraConfig.get().overrides.task if text.startswith("cache_dir=")]
        interrupts.expect(f"Interrupted; continue with: python train.py {command([f'resume={folder}', *cache])}")
    name_size(measurement.data.images.size, measurement.data.backbone.native_size)
    detailed = not sweep.in_turns()
    if detailed:
        log.info(measurement.summary())
    steps = measurement.steps + baselines.steps(cfg)
    with interrupts.deferred(), progress.plan(steps, heading=sweep.heading(), lines=detailed):
        return _measured(cfg, folder, measurement)


@cache
def name_size(size: int, native: int | None) -> None:
    """Say, once per process, that images have another size than those that the checkpoint was made for."""
    if native not in (None, size):
        log.info("Images have %d pixels per side; the checkpoint was made for %d (images.size=null).", size, native)


def _measured(cfg: DictConfig, folder: Path, measurement: Measurement) -> Run:
    """The run itself, in the first process."""
    logger, meta = None, None
    try:
        measurement.prepare()  # unusable images end the run before tracking starts
        from sdprobe.runs import tracking  # late, since wandb takes a while to import

        logger = tracking.start(cfg)
        measurement.trainer.loggers = [logger] if logger else []
        measurement.run()
        meta = measurement.meta
        write_metrics(folder, measurement.results, meta | {"complete": False})  # kept even if the baseline fails
        measurement.release()
        files = {}
        if isinstance(measurement.probe, Predicts):
            files["predictions.parquet"] = write_predictions(folder / "predictions.parquet", measurement.probe.predictions())
        measurement.data.mitigations.save(folder)
        measurement.probe.save(folder, **measurement.data.fitted_on)
        for path in sorted(path for name in FITS for path in folder.glob(name)):
            files[path.relative_to(folder).as_posix()] = checksum(path.read_bytes())
        tokens = measurement.tokens()
        random = baselines.random_weights(cfg, meta, measurement.probe, tokens)
    except BaseException as error:
        workers.terminate(measurement.trainer, error)
        if logger is not None:
            tracking.finish(logger, exit_code=1)
        if isinstance(error, KeyboardInterrupt | SystemExit):
            write_metrics(folder, measurement.results, (meta or measurement.meta) | {"complete": False})
            interrupts.say()
            sys.exit(interrupts.EXIT_CODE)
        raise
    if tokens:
        files["tokens.npz"] = write_arrays(folder / "tokens.npz", tokens)
    files["maps.npz"] = write_arrays(folder / "maps.npz", measurement.maps())
    files["pseudovalues.npz"] = write_arrays(folder / "pseudovalues.npz", measurement.probe.pseudovalues())
    write_metrics(folder, measurement.results | random, meta | {"files": files})  # last: it marks the run as complete
    finished = Run.read(folder)
    figures = draw(finished, folder, OmegaConf.select(cfg, "report.format", default="png"))
    pictures = [path for path in figures if path.suffix == ".png"]  # trackers show no PDF
    tracking.log_results(logger, finished, list(measurement.data.backbone.unet.table), pictures)
    tracking.finish(logger)
    if not sweep.in_turns():
        show(finished, Console())
        log.info("Run folder: %s", folder)
        if figures:
            log.info("Open first: %s", figures[0])
    return finished


def run_worker(cfg: DictConfig, measurement: Measurement) -> None:
    """Worker process of a run on several devices: encodes, trains and tests. Only rank 0 writes files and logs."""
    with progress.plan([], shown=False):
        try:
            measurement.prepare()
        except InputError:
            sys.exit(0)  # all processes end with the same error, and rank 0 prints it
        measurement.run()  # an error here may occur in this process only, so it is printed
        measurement.release()
        baselines.random_weights(cfg, measurement.meta)
