"""The end of a sweep: which jobs failed, and the table and figures of those that did not."""

import atexit
import json
import logging
import sys
import time
from pathlib import Path
from typing import Any

from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from reports.collection import read_folders, read_runs, show_runs, summarise
from reports.run import Run
from tokens.io import read_json, write_file

log = logging.getLogger(__name__)
NUMBER = "${hydra.job.num}"


class SweepSummary(Callback):
    """Counts a sweep's jobs when it starts; when it ends, names what failed and makes the exit code tell."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Write ``sweep.json``: the number of jobs, the folders they will have, and when they began."""
        folder = Path(config.hydra.sweep.dir)
        folder.mkdir(parents=True, exist_ok=True)
        count = jobs(config)
        plan = {"jobs": count, "folders": _folders(config, count), "started": time.time()}
        write_file(folder / "sweep.json", json.dumps(plan))
        # a launcher whose worker was killed raises, and Hydra then forgets on_multirun_end
        self._unsaid = atexit.register(named, folder)

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Write tables and figures into the sweep's folder and exit with 1 if a job failed, or the tables did."""
        folder = Path(config.hydra.sweep.dir)
        failed = True
        try:
            _summarise(folder)
            failed = False
        except Exception:
            log.exception("The table and figures of %s were not written; python -m reports '%s' tries again.", folder, folder)
        finally:
            missing = named(folder)
            atexit.unregister(self._unsaid)
        if failed or missing:
            sys.exit(1)  # Hydra turns a callback's exceptions into warnings, but not this one


def _summarise(folder: Path) -> None:
    runs, _ = planned(folder)
    if runs:
        show_runs(runs, Console())
        written = ", ".join(path.name for path in summarise(runs, folder))
        log.info("Written to %s: %s", folder, written)


def planned(folder: Path) -> tuple[list[Run], dict[Path, str]]:
    """:func:`reports.collection.read_runs` of the jobs that ``sweep.json`` plans, not of an earlier, longer sweep."""
    names = _plan(folder).get("folders")
    return read_runs(folder) if names is None else read_folders(folder / name for name in names)


def named(folder: Path) -> list[str]:
    """Log every planned job of a sweep's folder without a complete result, and how to go on; returns them."""
    runs, skipped = planned(folder)
    count = _plan(folder)["jobs"]
    lines = [f"  {path.name} ({overrides(path)}): {reason}" for path, reason in skipped.items()]
    absent = count - len(runs) - len(skipped)
    if absent > 0:
        lines.append(f"  {absent} of {count} jobs never began")
    if lines:
        again = f"The same command with hydra.sweep.dir='{folder}' repeats only these."
        log.error("%d of %d jobs have no result:\n%s\n%s", count - len(runs), count, "\n".join(lines), again)
    return lines


def _plan(folder: Path) -> dict[str, Any]:
    return read_json(folder / "sweep.json")


def _folders(config: DictConfig, count: int) -> list[str] | None:
    """Names of the jobs' folders; None where the user has chosen others than the job's number."""
    sweep: Any = OmegaConf.to_container(config.hydra.sweep, resolve=False)
    return [str(number) for number in range(count)] if sweep.get("subdir", NUMBER) == NUMBER else None


def overrides(folder: Path) -> str:
    """What a job was asked for."""
    stored = folder / ".hydra" / "overrides.yaml"
    return " ".join(str(override) for override in OmegaConf.load(stored)) if stored.is_file() else "no overrides"


def jobs(config: DictConfig) -> int:
    """Number of jobs: the product over the last override of every key, the sweep's presets first."""
    presets = [f"{key}={value}" for key, value in (OmegaConf.select(config, "hydra.sweeper.params") or {}).items()]
    counts = {}
    hydra = GlobalHydra.instance()
    loader = hydra.config_loader() if hydra.is_initialized() else None  # it lists what a glob may choose
    for override in OverridesParser.create(loader).parse_overrides([*presets, *config.hydra.overrides.task]):
        swept = override.is_sweep_override() and override.is_discrete_sweep()
        counts[override.get_key_element()] = len(list(override.sweep_string_iterator())) if swept else 1
    total = 1
    for count in counts.values():
        total *= count
    return total
