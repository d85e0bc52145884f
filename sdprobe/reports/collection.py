"""Several runs together: find them in a folder, and write their tables and figures. Reads files only."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from rich.console import Console

from sdprobe.reports.comparison import comparison_figures, groups_of
from sdprobe.reports.controls import controls_figures, controls_tables, write_controls
from sdprobe.reports.credibility import credibility_tables
from sdprobe.reports.credibility import write as write_validation
from sdprobe.reports.filters import settings_of, where
from sdprobe.reports.grouping import control_groups
from sdprobe.reports.mitigations import mitigation_tables
from sdprobe.reports.mitigations import write as write_mitigations
from sdprobe.reports.overview import overview, paragraph, write_csv
from sdprobe.reports.printing import print_tables, printed
from sdprobe.reports.recorded import lacking
from sdprobe.reports.registry.entries import folders, traces
from sdprobe.reports.run import Run
from sdprobe.reports.style import write_figures
from sdprobe.tokens.keys import select
from sdprobe.utilities import locks
from sdprobe.utilities.errors import InputError
from sdprobe.utilities.foreign import first_line
from sdprobe.utilities.io import DamagedFile, write_file

LARGEST = 2**28  # bytes of a metrics.json; that of 45 layers with 30 mitigations has a tenth of it


def read_runs(folder: Path) -> tuple[list[Run], dict[Path, str]]:
    """(complete runs in a folder and its subfolders, by path; folder → reason, for the runs that are left out)."""
    return _read_all(path for path, _ in folders(folder))


def read_folders(given: Iterable[Path]) -> tuple[list[Run], dict[Path, str]]:
    """(complete runs in exactly these folders, by path; folder → reason, for the runs that are left out)."""
    return _read_all(folder for folder in given if traces(folder))


def _read_all(given: Iterable[Path]) -> tuple[list[Run], dict[Path, str]]:
    runs, skipped = [], {}
    for path in sorted(given, key=_by_number):
        run, reason = _usable(path)
        if run is None or reason:
            skipped[path] = reason
        else:
            runs.append(run)
    return runs, skipped


def _usable(folder: Path) -> tuple[Run | None, str]:
    """The run of a folder, or why it cannot be compared. Only controls, whose photographs are paired, are read with maps."""
    if (folder / "error.txt").is_file():
        return None, first_line(folder / "error.txt") or "failed"
    if not (folder / "metrics.json").is_file():
        return None, _unfinished(folder, "has no result")
    run, reason = _read(folder)
    if run is None:
        return None, reason
    if not run.meta["complete"]:
        return None, _unfinished(folder, "is incomplete")
    paired = bool(run.meta.get("control"))  # contrasts are paired by photograph; these values are in maps.npz
    if reason := damaged_arrays(folder, maps=paired):
        return None, reason
    return Run.read(folder) if paired else run, ""


def _unfinished(folder: Path, what: str) -> str:
    """Whether a run without a complete result still runs, as far as its lock says."""
    runs, why = locks.state(folder)
    return f"is running, {why}" if runs else f"{what}; {why}"


def filtered(
    runs: Sequence[Run], skipped: Mapping[Path, str], filters: Sequence[str]
) -> tuple[list[Run], dict[Path, str]]:  # fmt: skip
    """The runs, and the folders without a result, whose settings meet filters.

    Raises:
        InputError: see :func:`sdprobe.reports.filters.where`.
    """
    every: list[Run | Path] = [*runs, *skipped]
    every = [level for each in every for level in (each.levels if isinstance(each, Run) else [each])]
    kept = where(
        every, filters, lambda each: settings_of(each, {}) if isinstance(each, Path) else settings_of(each.folder, each.meta)
    )
    return [each for each in kept if isinstance(each, Run)], {each: skipped[each] for each in kept if isinstance(each, Path)}


def nothing(folder: Path, skipped: Mapping[Path, str]) -> str:
    """The sentence for a folder without a complete run."""
    if not skipped:
        return f"Expected a run folder or a folder that contains runs, but '{folder}' has no run. Correct the path."
    path, reason = next(iter(skipped.items()))
    count = (
        f"none of the {len(skipped)} runs in '{folder}' has one" if len(skipped) > 1 else f"the one run in '{folder}' has none"
    )
    return f"Expected runs with a result, but {count}. {path.name}: {reason}"


def damage(folder: Path) -> str:
    """What is wrong with the ``metrics.json`` of a folder; empty if it can be read."""
    return _read(folder)[1]


def _read(folder: Path) -> tuple[Run | None, str]:
    """The run of a folder, or what is wrong with its ``metrics.json``."""
    try:
        size = (folder / "metrics.json").stat().st_size
        if size > LARGEST:
            return None, f"metrics.json is too large: {size / 2**20:.0f} MiB"
        run = Run.read(folder, maps=False)
        wrong = lacking(run.meta)
        reason = f"metrics.json is not that of a run: {wrong}" if wrong else ""
        if not reason:
            select(run.metrics)  # parses every key
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, InputError) and not isinstance(error, DamagedFile):
            return None, "metrics.json has keys that this version does not know"
        return None, _reason(error)
    return (None, reason) if reason else (run, "")


def damaged_arrays(folder: Path, maps: bool = True) -> str:
    """What is wrong with ``pseudovalues.npz``, or with ``maps.npz``; empty if they can be read or do not exist."""
    try:
        Run.read(folder, maps=maps).pseudovalues()
    except (OSError, DamagedFile) as error:
        return _reason(error)
    return ""


def _reason(error: Exception) -> str:
    """``metrics.json is unreadable (checksum mismatch)``."""
    path, reason = error.args if isinstance(error, DamagedFile) else ("metrics.json", type(error).__name__)
    return f"{Path(path).name} is unreadable ({reason})"


def summarise(
    runs: list[Run],
    folder: Path,
    skipped: Mapping[Path, str] | None = None,
    console: Console | None = None,
    form: str = "png",
) -> list[Path]:
    """Write the tables and figures of a set of runs into a folder, and print the tables; returns the paths.

    This function alone decides which tables and figures a set of runs gets. It reads the ``meta`` of the runs.

    Args:
        runs: complete runs.
        folder: where the files go.
        skipped: folders of runs that are left out, with the reason; the table names them.
        console: where tables are printed; None prints nothing.
        form: format of the figures, ``png`` or ``pdf``.
    """
    runs = [level for run in runs for level in run.levels]
    groups = groups_of(runs)
    drawn = comparison_figures(groups)
    tables = [*overview(groups, runs, skipped or {}, folder), *map(paragraph, drawn.notes)]
    tables += [*controls_tables(runs), *mitigation_tables(runs), *credibility_tables(runs)]
    if console is not None:
        print_tables(tables, console)
    paths = [folder / "report.txt", folder / "runs.csv"]
    write_file(paths[0], printed(tables))
    write_csv(runs, paths[1])
    paths += write_figures(drawn.figures, folder, form)
    if controls := control_groups(runs):
        paths.append(folder / "controls.csv")
        write_controls(controls, paths[-1])
        paths += write_figures(controls_figures(controls), folder, form)
    for write in (write_mitigations, write_validation):
        paths += write(runs, folder, form)
    return paths


def _by_number(path: Path) -> list[tuple[int, int, str]]:
    """Sort key: job 10 after job 2."""
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in path.parts]
