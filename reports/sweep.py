"""The end of a sweep: which jobs failed, and the table and figures of those that did not."""

import atexit
import json
import logging
import sys
import time
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from reports.collection import read_runs, show_runs, summarise

log = logging.getLogger(__name__)


class SweepSummary(Callback):
    """Counts a sweep's jobs when it starts; when it ends, names what failed and makes the exit code tell."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Write ``sweep.json``: the number of jobs, and when they began."""
        folder = Path(config.hydra.sweep.dir)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "sweep.json").write_text(json.dumps({"jobs": jobs(config), "started": time.time()}))
        # a launcher whose worker was killed raises, and Hydra then forgets on_multirun_end
        self._unsaid = atexit.register(named, folder)

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Write tables and figures into the sweep's folder and exit with 1 if a job failed."""
        atexit.unregister(self._unsaid)
        folder = Path(config.hydra.sweep.dir)
        runs, _ = read_runs(folder)
        if runs:
            show_runs(runs, Console())
            written = ", ".join(path.name for path in summarise(runs, folder))
            log.info("Written to %s: %s", folder, written)
        if named(folder):
            sys.exit(1)  # Hydra turns a callback's exceptions into warnings, but not this one


def named(folder: Path) -> list[str]:
    """Log every job of a sweep's folder without a complete result, and how to go on; returns them."""
    runs, skipped = read_runs(folder)
    planned = json.loads((folder / "sweep.json").read_text())["jobs"]
    lines = [f"  {path.name} ({overrides(path)}): {reason}" for path, reason in skipped.items()]
    absent = planned - len(runs) - len(skipped)
    if absent > 0:
        lines.append(f"  {absent} of {planned} jobs never began")
    if lines:
        again = f"The same command with hydra.sweep.dir='{folder}' repeats only these."
        log.error("%d of %d jobs have no result:\n%s\n%s", planned - len(runs), planned, "\n".join(lines), again)
    return lines


def overrides(folder: Path) -> str:
    """What a job was asked for."""
    stored = folder / ".hydra" / "overrides.yaml"
    return " ".join(str(override) for override in OmegaConf.load(stored)) if stored.is_file() else "no overrides"


def jobs(config: DictConfig) -> int:
    """Number of jobs: the product over the last override of every key, the sweep's presets first."""
    presets = [f"{key}={value}" for key, value in (OmegaConf.select(config, "hydra.sweeper.params") or {}).items()]
    counts = {}
    for override in OverridesParser.create().parse_overrides([*presets, *config.hydra.overrides.task]):
        swept = override.is_sweep_override() and override.is_discrete_sweep()
        counts[override.get_key_element()] = len(list(override.sweep_string_iterator())) if swept else 1
    total = 1
    for count in counts.values():
        total *= count
    return total
