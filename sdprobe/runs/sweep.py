"""Jobs of a sweep, and its end: failed jobs keep their error, finished ones are skipped, interrupted ones continue.

Hydra's launchers run jobs in processes of their own, so jobs and sweep exchange files only: ``sweep.json`` (number of jobs,
start), and in the folder of each job ``config_hash``, ``error.txt`` and ``metrics.json``. At the end of a sweep a callback
lists failed jobs, and writes the table and figures of the others.
"""

import atexit
import logging
import math
import re
import shlex
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import CompactHydraException
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from sdprobe.reports.collection import read_folders, read_runs, summarise
from sdprobe.reports.run import Run
from sdprobe.runs import arguments, cli, configuration, folders, interrupts, launchers
from sdprobe.runs.record import VERSION, complete, config_hash, source_digest, write_command
from sdprobe.utilities import locks
from sdprobe.utilities.foreign import shown
from sdprobe.utilities.io import DamagedFile, read_json, write_file, write_json
from sdprobe.utilities.progress import duration

log = logging.getLogger(__name__)
ENDS = ("metrics.json", "error.txt")  # a job that ended has one of them
NUMBER = "${hydra.job.num}"
# settings with which the numbers of a layer depend on which others are read
TOGETHER = {"datamodule.concatenate": "true", "datamodule.inside": "true", "probe": "study", "experiment": "loos2025"}
DECIMAL = r"\d+(\.\d+)?(e-?\d+)?"


def active() -> bool:
    """Whether this process runs a job of a sweep."""
    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


def name() -> str | None:
    """The tag of a job's sweep on wandb: the last two parts of its folder. None for a single run."""
    return "-".join(Path(HydraConfig.get().sweep.dir).parts[-2:]) if active() else None


def in_turns() -> bool:
    """Whether this process runs the jobs of a sweep one after the other; each then leaves a single line."""
    return active() and _takes_turns(str(HydraConfig.get().launcher._target_))


def _takes_turns(launcher: str) -> bool:
    return "BasicLauncher" in launcher


def finished(cfg: DictConfig) -> bool:
    """Whether the folder of this job already holds a complete result for the same settings."""
    run = complete(Path(cfg.run_dir)) if active() else None
    wanted = {"config_hash": config_hash(cfg), "version": VERSION, "twins": cfg.twins, "control": cfg.control}
    if run is None or any(run.meta.get(key) != value for key, value in wanted.items()):
        return False
    if run.meta.get("source") != source_digest():
        log.warning("%s was measured by another version of this code. Its numbers are kept.", cfg.run_dir)
    log.info("%s%s is finished already; skipped.", heading(), _differing())
    return True


def begin(cfg: DictConfig) -> None:
    """Set ``cfg.resume`` if an interrupted job of the same settings left a checkpoint."""
    if not active():
        return
    folder = Path(cfg.run_dir)
    folders.check_place(folder)
    folder.mkdir(parents=True, exist_ok=True)
    stamp, now = folder / "config_hash", f"{config_hash(cfg)} version {VERSION}"
    if stamp.is_file() and (folder / "checkpoints" / "last.ckpt").is_file():
        if stamp.read_bytes() == now.encode():
            log.info("This job was interrupted. It continues from its last epoch.")
            cfg.resume = str(folder)
        else:
            log.info("This job was interrupted, but with other settings or an older version. It starts again.")
    write_file(stamp, now)
    write_command(folder, cfg)  # so that the end of the sweep can list the overrides of a failed job


def end(cfg: DictConfig) -> None:
    """Say which job has ended."""
    if active():
        _say_ended(Path(HydraConfig.get().sweep.dir), Path(cfg.run_dir), f"{heading()}{_differing()}: done")


def heading() -> str:
    """Which job of how many this process runs; nothing for a single run."""
    if not active():
        return ""
    plan = _plan(Path(HydraConfig.get().sweep.dir))
    return f"Job {HydraConfig.get().job.num + 1}" + (f" of {plan['jobs']}" if plan else "")


def _differing() -> str:
    """What this job was asked for that other jobs were not."""
    swept = _plan(Path(HydraConfig.get().sweep.dir)).get("swept", [])
    return _among(swept, list(HydraConfig.get().overrides.task))


def _among(swept: list[str], overrides: list[str]) -> str:
    words = " ".join(text for text in overrides if text.lstrip("+~").partition("=")[0] in swept)
    return f" ({words})" if words else ""


def _say_ended(sweep: Path, folder: Path, text: str) -> None:
    """A line on a job that has a result, with its duration and the time that the others will take."""
    log.info("%s in %s%s.", text, _took(folder), time_left(sweep, time.time()))


def _took(folder: Path) -> str:
    """How long a job took, by its first and its last file."""
    return duration((folder / "metrics.json").stat().st_mtime - (folder / "config_hash").stat().st_mtime)


def time_left(sweep: Path, now: float) -> str:
    """Return in words how long the other jobs will take at the rate so far; nothing where that is unknown, or none is left."""
    plan = _plan(sweep)
    if not plan:
        return ""
    folders = list(sweep.glob("*")) if plan["folders"] is None else [sweep / name for name in plan["folders"]]
    ended = {name: [path.stat().st_mtime for folder in folders if (path := folder / name).is_file()] for name in ENDS}
    done = sum(end >= plan["started"] for ends in ended.values() for end in ends)
    before = sum(end < plan["started"] for end in ended["metrics.json"])  # failed jobs of earlier tries are repeated
    missing = plan["jobs"] - before - done
    return f", about {duration(round((now - plan['started']) / done * missing))} left" if done and missing > 0 else ""


@contextmanager
def job(cfg: DictConfig) -> Iterator[bool]:
    """Hold the lock of the run folder; the block gets whether it is free. In a sweep, record what the block raises.

    Raises:
        FolderInUse: another process runs in the folder of a single run. A job of a sweep is left out instead.
    """
    with ExitStack() as stack:
        if cli.is_rank_zero():
            try:
                stack.enter_context(locks.locked(cfg.run_dir))
            except locks.FolderInUse as error:
                if not active():
                    raise
                cli.say(f"{heading()}{_differing()} is left out. {error}")  # the log is in the folder
                yield False
                return
        stack.enter_context(recorded(cfg))
        yield True


@contextmanager
def recorded(cfg: DictConfig) -> Iterator[None]:
    """In a sweep, an exception ends only its own job. It is written to ``error.txt``, whose first line says what happened.

    Without this, Hydra would raise the first failure after all jobs, name no other, and skip the callbacks that write the
    table. Exceptions other than user errors keep their traceback. Ctrl-C ends the sweep.
    """
    if not active():
        yield
        return
    file = Path(HydraConfig.get().runtime.output_dir) / "error.txt"
    file.unlink(missing_ok=True)
    try:
        with cli.user_errors():
            yield
    except Exception as error:
        message = str(error) if isinstance(error, CompactHydraException) else f"{type(error).__name__}: {error}"
        text = message if isinstance(error, CompactHydraException) else f"{message}\n\n{traceback.format_exc()}"
        log.error("%s%s failed. %s", heading(), _differing(), text)
        try:
            if not (file.parent / folders.OVERRIDES).is_file():  # it failed before its folder was begun
                write_command(file.parent, cfg)
            write_file(file, text)
        except OSError:  # a full disk: Hydra reports this failure itself
            raise error from None


def _meta(folder: Path) -> dict[str, Any]:
    """What is recorded about a run; empty without a record, or with a damaged one."""
    try:
        meta = read_json(folder / "metrics.json")["meta"]
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return meta if isinstance(meta, dict) else {}


class Watch:
    """Says of jobs in other processes which have ended, from the files in their folders.

    Args:
        folder: of the sweep.
        interval: seconds between two looks.
    """

    def __init__(self, folder: Path, interval: float = 2.0) -> None:
        self.folder, self.interval = folder, interval
        self._over = threading.Event()
        self._said: set[Path] = set()
        self._thread: threading.Thread | None = None

    @classmethod
    def of(cls, config: DictConfig, folder: Path) -> "Watch":
        """Say what the command waits for, and start to look; in-process jobs speak for themselves."""
        watch, launcher = cls(folder), OmegaConf.select(config, "hydra.launcher._target_") or "BasicLauncher"
        if _takes_turns(launcher):
            return watch
        cli.say(f"{_plan(folder)['jobs']} jobs are handed to the launcher. This command waits, and says which have ended.")
        if "SlurmLauncher" in launcher:
            cli.say("Ctrl-C ends the waiting, not the jobs. `squeue --me` lists them, and `scancel` ends them.")
        watch._thread = threading.Thread(target=watch._look, daemon=True)
        watch._thread.start()
        return watch

    def stop(self) -> None:
        """Look a last time."""
        if self._thread is not None:
            self._over.set()
            self._thread.join()

    def look(self) -> None:
        """Say which jobs have ended since the last look."""
        plan = _plan(self.folder)
        if not plan:
            return
        names = plan["folders"] or [path.name for path in sorted(self.folder.glob("*")) if path.is_dir()]
        for name in names:
            folder = self.folder / name
            ended = [end for end in ENDS if (folder / end).is_file() and (folder / end).stat().st_mtime >= plan["started"]]
            if folder in self._said or not ended or (ended == ["metrics.json"] and not _meta(folder).get("complete")):
                continue
            self._said.add(folder)
            which = f"Job {int(name) + 1} of {plan['jobs']}" if plan["folders"] else f"Job {name}"
            failed = "error.txt" in ended
            took = f"failed, see {folder / 'error.txt'}" if failed else f"done in {_took(folder)}"
            cli.say(f"{which}{_among(plan['swept'], overrides(folder))}: {took}{time_left(self.folder, time.time())}.")

    def _look(self) -> None:
        while not self._over.wait(self.interval):
            with suppress(OSError):  # a job is writing
                self.look()
        self.look()


class SweepSummary(Callback):
    """Hydra callback: counts the jobs of a sweep at its start, and reports at its end.

    At the end it logs every job without a result, writes ``report.txt``, ``runs.csv`` and figures into the folder of the sweep,
    and exits with code 1 if a job failed. ``configs/train.yaml`` lists it under ``hydra.callbacks``.

    Example:
        >>> from hydra.utils import instantiate
        >>> callback = instantiate({"_target_": "sdprobe.runs.sweep.SweepSummary"})
        >>> type(callback).__name__
        'SweepSummary'
    """

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Hydra sends its callbacks with every job, and those of a job in another process do nothing."""
        return {}

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Write ``sweep.json``: the number of jobs, the folders they will have, and the time.

        Args:
            config: configuration of the sweep, with Hydra's own node.
            **kwargs: not used.
        """
        folder = Path(config.hydra.sweep.dir)
        if "submitit" in str(OmegaConf.select(config, "hydra.launcher._target_")):
            import submitit

            launchers.start_again(submitit.AutoExecutor)
        try:
            with cli.user_errors():
                locks.acquire(folder)
        except cli.UserError as error:
            sys.exit(str(error))  # Hydra turns a callback's exceptions into warnings, but not this one
        atexit.register(locks.release, folder)
        count = jobs(config)
        plan = {"jobs": count, "swept": swept(config), "folders": _folders(config, count), "started": time.time()}
        write_json(folder / "sweep.json", plan)
        self._plan = plan
        if sentence := one_pass(config):
            cli.say(sentence)
        interrupts.expect(f"Interrupted; the same command with hydra.sweep.dir={shlex.quote(str(folder))} continues the sweep.")
        # if a worker is killed, the launcher raises and Hydra does not call on_multirun_end
        self._unsaid = atexit.register(lambda: interrupts.happened() or named(folder))
        self._watch = Watch.of(config, folder)

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Write tables and figures into the folder of the sweep. Exit with code 1 if a job failed, or if writing failed.

        Args:
            config: configuration of the sweep, with Hydra's own node.
            **kwargs: not used.
        """
        folder = Path(config.hydra.sweep.dir)
        failed = True
        self._watch.stop()
        try:
            write_json(folder / "sweep.json", self._plan)  # it may have been damaged meanwhile
            _summarise(folder, OmegaConf.select(config, "report.format", default="png"))
            failed = False
        except Exception:
            log.exception(
                "The table and figures of %s were not written; python -m sdprobe.reports '%s' tries again.", folder, folder
            )
        finally:
            missing = named(folder)
            atexit.unregister(self._unsaid)
            locks.release(folder)
        if failed or missing:
            sys.exit(1)


def _summarise(folder: Path, form: str) -> None:
    runs, skipped = planned(folder)
    if runs:
        written = ", ".join(path.name for path in summarise(runs, folder, skipped, Console(), form))
        log.info("Written to %s: %s", folder, written)
    if any(folder.glob("*/wandb/offline-run-*")):
        log.info("Tracked offline; upload with: wandb sync '%s'/*/wandb", folder)


def planned(folder: Path) -> tuple[list[Run], dict[Path, str]]:
    """:func:`sdprobe.reports.collection.read_runs` of the jobs in ``sweep.json``, without those of an earlier, longer sweep."""
    names = _plan(folder).get("folders")
    return read_runs(folder) if names is None else read_folders(folder / name for name in names)


def named(folder: Path) -> list[str]:
    """Log every planned job without a complete result, and how to continue. Returns these lines."""
    runs, skipped = planned(folder)
    count = _plan(folder).get("jobs", len(runs) + len(skipped))
    lines = [f"  {path.name} ({' '.join(overrides(path)) or 'no overrides'}): {reason}" for path, reason in skipped.items()]
    absent = count - len(runs) - len(skipped)
    if absent > 0:
        lines.append(f"  {absent} of {count} jobs never started")
    if lines:
        again = f"The same command with hydra.sweep.dir='{folder}' repeats only these."
        log.error("%d of %d jobs have no result:\n%s\n%s", count - len(runs), count, "\n".join(lines), again)
    return lines


def _plan(folder: Path) -> dict[str, Any]:
    """What ``sweep.json`` says; nothing where there is none, or a damaged one."""
    try:
        return read_json(folder / "sweep.json")
    except (OSError, DamagedFile):
        return {}


def _folders(config: DictConfig, count: int) -> list[str] | None:
    """Names of the jobs' folders; None if the user chose names other than the number of the job."""
    sweep: Any = OmegaConf.to_container(config.hydra.sweep, resolve=False)
    return [str(number) for number in range(count)] if sweep.get("subdir", NUMBER) == NUMBER else None


def overrides(folder: Path) -> list[str]:
    """The overrides that a job was started with, fit to be shown; none if they are not there or damaged."""
    with suppress(DamagedFile, OSError):
        return [shown(text) for text in folders.stored_overrides(folder)]
    return []


def jobs(config: DictConfig) -> int:
    """Number of jobs: the product over the last override of every key."""
    return math.prod(_counts(config).values())


def swept(config: DictConfig) -> list[str]:
    """Keys that jobs differ in."""
    return [key for key, count in _counts(config).items() if count > 1]


def one_pass(config: DictConfig) -> str:
    """A sentence on jobs that one run would do in the same passes of the network, with its command; empty if there are none.

    Layers and noise levels are read together where they are a list: images, network and prompts are loaded once, and all layers
    take one pass.
    """
    values = _values(config)
    lists = {key: _listed(key, values[key]) for key in (*configuration.LEVELS, "block") if len(set(values.get(key, ()))) > 1}
    if not lists or not all(lists.values()):
        return ""
    if "block" in lists and any(set(values.get(key, ())) & {value, value.title()} for key, value in TOGETHER.items()):
        return ""
    words = [text for text in config.hydra.overrides.task if text.lstrip("+~").partition("=")[0] not in lists]
    others = [key for key, found in values.items() if len(found) > 1 and key not in lists]
    launched = any(word.startswith("hydra/launcher=") for word in words)  # which has no effect on a single run
    what = " and ".join("layer" if key == "block" else "noise level" for key in lists)
    which = f"Jobs that differ only in {what}" if others else f"These {jobs(config)} jobs differ only in {what}: they"
    start = ["-m"] if others or launched else []
    command = arguments.command([*start, *words, *(f"{key}=[{','.join(found)}]" for key, found in lists.items())])
    return f"{which} can be one run, with the same numbers in less time: python train.py {command}"


def _listed(key: str, values: list[str]) -> list[str]:
    """Values of separate jobs as those of one list; empty where one of them is more than a name or a number."""
    if not all(re.fullmatch(r"\w+" if key == "block" else DECIMAL, value) for value in values):
        return []
    distinct = list(dict.fromkeys(values))
    return distinct if key == "block" else sorted(distinct, key=float)


def _counts(config: DictConfig) -> dict[str, int]:
    """Key → number of its values, those of the preset first."""
    return {key: len(values) for key, values in _values(config).items()}


def _values(config: DictConfig) -> dict[str, list[str]]:
    """Key → its values as text, those of the preset first."""
    presets = [f"{key}={value}" for key, value in (OmegaConf.select(config, "hydra.sweeper.params") or {}).items()]
    values: dict[str, list[str]] = {}
    hydra = GlobalHydra.instance()
    loader = hydra.config_loader() if hydra.is_initialized() else None  # it lists the choices of a glob
    for override in OverridesParser.create(loader).parse_overrides([*presets, *config.hydra.overrides.task]):
        swept = override.is_sweep_override() and override.is_discrete_sweep()
        texts = list(override.sweep_string_iterator()) if swept else [override.get_value_element_as_str()]
        values[override.get_key_element()] = texts
    return values
