"""Several runs together: find them in a folder, and write their tables and figures. Reads files only."""

from collections.abc import Iterable
from pathlib import Path

from rich.console import Console

from sdprobe.reports.comparison import comparison_figures, run_comparison, write_tables
from sdprobe.reports.controls import controls_figures, controls_tables, write_controls
from sdprobe.reports.credibility import credibility_tables
from sdprobe.reports.credibility import write as write_validation
from sdprobe.reports.grouping import control_groups
from sdprobe.reports.mitigations import mitigation_tables
from sdprobe.reports.mitigations import write as write_mitigations
from sdprobe.reports.printing import print_tables
from sdprobe.reports.run import Run
from sdprobe.reports.style import write_figures
from sdprobe.tokens.keys import select
from sdprobe.utilities.errors import InputError
from sdprobe.utilities.io import DamagedFile

NEEDED = ("layers", "model", "weights", "timestep", "images")
TRACES = ("metrics.json", "error.txt", "config_hash")  # any of these files marks the folder of a run


def read_runs(folder: Path) -> tuple[list[Run], dict[Path, str]]:
    """(complete runs in a folder and its subfolders, by path; folder → reason, for the runs that are left out)."""
    return read_folders({file.parent for name in TRACES for file in folder.rglob(name)})


def read_folders(folders: Iterable[Path]) -> tuple[list[Run], dict[Path, str]]:
    """(complete runs in exactly these folders, by path; folder → reason, for the runs that are left out)."""
    runs, skipped = [], {}
    for path in sorted((path for path in folders if any((path / name).is_file() for name in TRACES)), key=_by_number):
        if reason := unusable(path):
            skipped[path] = reason
            continue
        run = Run.read(path, maps=False)
        paired = bool(run.meta.get("control"))  # contrasts are paired by photograph; these values are in maps.npz
        if paired and (reason := damaged_maps(path)):
            skipped[path] = reason
        else:
            runs.append(Run.read(path) if paired else run)
    return runs, skipped


def unusable(folder: Path) -> str:
    """Why the run of a folder cannot be compared; empty if it can."""
    if (folder / "error.txt").is_file():
        lines = (folder / "error.txt").read_text(errors="replace").splitlines()
        return lines[0] if lines else "failed"
    if not (folder / "metrics.json").is_file():
        return "has no result: it is still running or was killed"
    return damage(folder) or ("" if Run.read(folder, maps=False).meta["complete"] else "is incomplete")


def damage(folder: Path) -> str:
    """What is wrong with the ``metrics.json`` of a folder; empty if it can be read."""
    try:
        run = Run.read(folder, maps=False)
        absent = [name for name in (*NEEDED, "complete") if name not in run.meta]
        select(run.metrics)  # parses every key
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, InputError) and not isinstance(error, DamagedFile):
            return "metrics.json has keys that this version does not know"
        return f"metrics.json is unreadable ({type(error.__cause__ or error).__name__})"
    return f"metrics.json lacks meta.{absent[0]}" if absent else ""


def damaged_maps(folder: Path) -> str:
    """What is wrong with the ``maps.npz`` of a folder; empty if it can be read or does not exist."""
    try:
        Run.read(folder)
    except (OSError, DamagedFile) as error:
        return f"maps.npz is unreadable ({type(error.__cause__ or error).__name__})"
    return ""


def summarise(runs: list[Run], folder: Path) -> list[Path]:
    """Write the tables and figures of a set of runs into a folder; returns their paths.

    This function alone decides which tables and figures a set of runs gets. It reads the ``meta`` of the runs.
    """
    paths = write_tables(runs, folder)
    figures = comparison_figures(runs)
    if groups := control_groups(runs):
        paths.append(folder / "controls.csv")
        write_controls(groups, paths[-1])
        figures |= controls_figures(groups)
    for write in (write_mitigations, write_validation):
        paths += write(runs, folder)
    return paths + write_figures(figures, folder)


def show_runs(runs: list[Run], console: Console) -> None:
    """Print the tables of an experiment, or one row per run; see :mod:`~sdprobe.reports.printing`."""
    tables = [*controls_tables(runs), *mitigation_tables(runs), *credibility_tables(runs)]
    print_tables(tables or [run_comparison(runs)], console)


def _by_number(path: Path) -> list[tuple[int, int, str]]:
    """Sort key: job 10 after job 2."""
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in path.parts]
