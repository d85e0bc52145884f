"""Jobs of a sweep: what fails stays in its folder, what is finished is skipped, what was cut off goes on.

Hydra's launchers run this in whatever process they give a job, so everything that jobs and sweep know of each other is a
file: ``sweep.json`` (number of jobs, start), and in a job's folder ``config_hash``, ``error.txt`` and ``metrics.json``.
"""

import importlib.util
import logging
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.errors import CompactHydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from runs.record import VERSION, config_hash, source_digest
from tokens.errors import InputError
from tokens.io import read_json, write_file

log = logging.getLogger(__name__)
ENDS = ("metrics.json", "error.txt")  # one of which a job leaves
# extras of pyproject.toml, by the plugin that a launcher's _target_ names
EXTRAS = {"hydra_ray_launcher": "ray", "hydra_submitit_launcher": "slurm"}
# a job asks for a GPU only where there is one, or Ray would wait for it for ever
OmegaConf.register_new_resolver("either", lambda flag, yes, no: yes if flag else no, replace=True)
OmegaConf.register_new_resolver("gpus_per_job", lambda: min(1, torch.cuda.device_count()), replace=True)


def active() -> bool:
    """Whether this process runs a job of a sweep."""
    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


def check(cfg: DictConfig, multirun: bool) -> None:
    """Refuse a sweep that cannot run, before its first job.

    Args:
        cfg: of the first job, with Hydra's own node.
        multirun: whether the command line has ``-m``.

    Raises:
        InputError: a launcher that is not installed, or more than one device for a job.
    """
    if not (multirun or cfg.hydra.mode == RunMode.MULTIRUN):
        return
    plugin = next((name for name in EXTRAS if name in cfg.hydra.launcher._target_), None)
    if plugin and not _installed(f"hydra_plugins.{plugin}"):
        extra = EXTRAS[plugin]
        raise InputError(
            f"Expected hydra/launcher to be installed, but got one that needs the extra '{extra}'. "
            f"Install it: pip install --constraint constraints.txt --editable '.[{extra}]'."
        )
    devices = OmegaConf.select(cfg, "trainer.devices", default=1)
    if devices not in (1, "1"):
        raise InputError(
            f"Expected trainer.devices to be 1 in a sweep, but got {devices!r}. "
            "Every job has one device of its own; leave trainer.devices out."
        )


def _installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # not even hydra_plugins
        return False


def group(otherwise: str) -> str:
    """What wandb groups runs by: the sweep, or for a single run what it measures."""
    return f"sweep-{'-'.join(Path(HydraConfig.get().sweep.dir).parts[-2:])}" if active() else otherwise


def finished(cfg: DictConfig) -> bool:
    """Whether a sweep already has this job's complete result, for the same settings, in the job's folder."""
    meta = _meta(Path(cfg.run_dir)) if active() else {}
    wanted = {"config_hash": config_hash(cfg), "version": VERSION, "twins": cfg.twins, "control": cfg.control}
    if not meta.get("complete") or any(meta.get(key) != value for key, value in wanted.items()):
        return False
    if meta.get("source") != source_digest():
        log.warning("%s was measured by another version of this code; its numbers are kept.", cfg.run_dir)
    return True


def begin(cfg: DictConfig) -> None:
    """Set ``cfg.resume`` where a killed job of the same settings left a checkpoint; say which job begins."""
    if not active():
        return
    folder = Path(cfg.run_dir)
    folder.mkdir(parents=True, exist_ok=True)
    stamp, now = folder / "config_hash", f"{config_hash(cfg)} version {VERSION}"
    if stamp.is_file() and (folder / "checkpoints" / "last.ckpt").is_file():
        if stamp.read_text() == now:
            log.info("This job was cut off; it continues from its last epoch.")
            cfg.resume = str(folder)
        else:
            log.info("This job was cut off with other settings or by an older version; it starts anew.")
    write_file(stamp, now)
    log.info(progress(Path(HydraConfig.get().sweep.dir), int(HydraConfig.get().job.num), time.time()))


def progress(sweep: Path, number: int, now: float) -> str:
    """Which job of how many begins, and the time that the others will take at the rate so far."""
    if not (sweep / "sweep.json").is_file():
        return f"Job {number + 1}"
    plan = read_json(sweep / "sweep.json")
    total, started = plan["jobs"], plan["started"]
    folders = list(sweep.glob("*")) if plan["folders"] is None else [sweep / name for name in plan["folders"]]
    ended = {name: [path.stat().st_mtime for folder in folders if (path := folder / name).is_file()] for name in ENDS}
    done = sum(end >= started for ends in ended.values() for end in ends)
    before = sum(end < started for end in ended["metrics.json"])  # what failed before is repeated
    text = f"Job {number + 1} of {total}"
    if not done:
        return text
    left = (now - started) / done * max(total - before - done, 1)
    return f"{text}; {done} ended in {_minutes(now - started)}, about {_minutes(left)} left"


def _minutes(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02} min"


@contextmanager
def recorded(cfg: DictConfig) -> Iterator[None]:
    """In a sweep, an exception ends its job only: it is written to ``error.txt``, whose first line says what happened.

    Hydra would raise the first failure after all jobs, name no other, and skip the callbacks that write the sweep's table.
    A defect keeps its traceback. Ctrl-C ends the sweep.
    """
    if not active():
        yield
        return
    file = Path(HydraConfig.get().runtime.output_dir) / "error.txt"
    file.unlink(missing_ok=True)
    try:
        yield
    except Exception as error:
        said = str(error) if isinstance(error, CompactHydraException) else f"{type(error).__name__}: {error}"
        text = said if isinstance(error, CompactHydraException) else f"{said}\n\n{traceback.format_exc()}"
        log.error("%s", text)
        try:
            write_file(file, text)
        except OSError:  # a full disk: Hydra names this failure itself
            raise error from None


def _meta(folder: Path) -> dict[str, Any]:
    """What is written about a run; nothing where there is no record, or a damaged one."""
    try:
        meta = read_json(folder / "metrics.json")["meta"]
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return meta if isinstance(meta, dict) else {}
