"""Train and test a probe on frozen diffusion activations: ``python train.py probe=position block=mid``."""

import logging
import sys
from pathlib import Path

import hydra
from hydra.utils import instantiate
from omegaconf import DictConfig
from rich.console import Console

from reports.figures import draw
from reports.run import Run
from reports.tables import rows, show
from runs import command, devices, sweep, tracking
from runs.assist import assist
from runs.measure import Measurement
from runs.nulls import random_weights
from runs.predictions import Predicts, write_predictions
from runs.quiet import quiet
from runs.record import clear, write_metrics
from runs.sentences import sentences
from tokens.errors import InputError
from tokens.io import write_arrays

log = logging.getLogger(__name__)


@hydra.main(version_base="1.3", config_path="configs", config_name="train")
def main(cfg: DictConfig) -> None:
    """Hydra's entry point."""
    quiet()
    with sweep.recorded(cfg), sentences():
        if sweep.finished(cfg):
            log.info("%s is finished already; skipped.", cfg.run_dir)
            return
        sweep.begin(cfg)
        run(cfg)


def run(cfg: DictConfig) -> Run | None:
    """Measure, compare with the nulls, write ``metrics.json`` and figures into ``cfg.run_dir``, show and track them.

    Of several processes only the first does more than measure, and returns something.
    """
    folder = Path(cfg.run_dir)
    folder.mkdir(parents=True, exist_ok=True)
    if cfg.resume and (folder / "metrics.json").is_file() and Run.read(folder, maps=False).meta["complete"]:
        log.info("%s is complete; nothing is left to do.", folder)
        return Run.read(folder)
    if devices.first():
        clear(folder, resumed=bool(cfg.resume))
    command.check_types(cfg)
    command.check_devices(cfg, sweep.active())
    measurement = Measurement(cfg)
    if not devices.first():
        return assist(cfg, measurement)
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
        devices.end(measurement.trainer, error)
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


if __name__ == "__main__":
    quiet()
    try:
        if devices.first():  # the others are given what the first began with
            sys.argv[1:] = command.expanded(sys.argv[1:])
            command.check(sys.argv[1:])
        main()
    except InputError as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        sys.exit(130)
