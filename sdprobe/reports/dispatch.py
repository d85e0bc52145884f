"""Chooses the report of a run by its probe; prints it and draws it."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from sdprobe.reports import content, correspondence, depth, equivariance, explorer, position, role, statistics, study
from sdprobe.reports.choice import choice_tables
from sdprobe.reports.comparison import COMPARISONS, comparison_figures, groups_of
from sdprobe.reports.printing import print_tables, printed
from sdprobe.reports.report import Report
from sdprobe.reports.run import Run
from sdprobe.reports.style import FORMATS, write_figures
from sdprobe.utilities.io import write_file

REPORTS = {
    "position": position.REPORT,
    "controls": position.REPORT,
    "study": study.REPORT,
    "statistics": statistics.REPORT,
    "correspondence": correspondence.REPORT,
    "depth": depth.REPORT,
    "content": content.REPORT,
    "role": role.REPORT,
    "equivariance": equivariance.REPORT,
    "explore": explorer.REPORT,
}
TEXT = "report.txt"  # the printed tables
# that any report may write into a run folder
FILES = (
    TEXT,
    *dict.fromkeys(name for report in REPORTS.values() for name in (*report.files, *report.files_of_levels)),
    *(f"{name}.{form}" for name in COMPARISONS for form in FORMATS),
)


def report_of(run: Run) -> Report:
    """The report of a run's probe; an unknown probe gets the position report."""
    return REPORTS.get(run.kind, position.REPORT)


def figures(run: Run, layers: Sequence[str] = ()) -> dict[str, Figure]:
    """Every figure that a run has data for, by file name; ``layers``: see :meth:`~sdprobe.reports.run.Run.showing`.

    Several layers at several noise levels also have the figures of a comparison of their levels.
    """
    own = report_of(run).figures(run.showing(layers))
    several = len(run.timesteps) > 1 and len(run.network_layers) > 1
    return comparison_figures(groups_of(run.levels)).figures | own if several else own


def draw(run: Run, folder: Path, form: str = FORMATS[0], layers: Sequence[str] = ()) -> list[Path]:
    """Write the figures that a run has data for, its tables as ``report.txt``, and its other files.

    Args:
        run: a run.
        folder: where to write.
        form: ``png`` or ``pdf``.
        layers: layers of which pictures are drawn; none: at most twelve.

    Returns:
        The paths of the figures; the first is the one to open first.
    """
    write_file(folder / TEXT, printed(tables(run)))
    for name, write in report_of(run).written.items():
        write(run, folder / name)
    return write_figures(figures(run, layers), folder, form)


def tables(run: Run) -> list[Table]:
    """The tables of a run, as :func:`show` prints them."""
    own = (table(run) for table in report_of(run).tables)
    return [*(table for table in own if table.columns), *choice_tables(run)]


def show(run: Run, console: Console) -> None:
    """Print the tables."""
    print_tables(tables(run), console)
