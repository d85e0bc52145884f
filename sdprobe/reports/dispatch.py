"""Chooses the report of a run by its probe; prints it and draws it."""

from pathlib import Path

from matplotlib.figure import Figure
from rich.console import Console

from sdprobe.reports import content, correspondence, depth, position, statistics, study
from sdprobe.reports.curves import write_figures
from sdprobe.reports.report import Report
from sdprobe.reports.run import Run

# no task: the experiment has its own comparison
CONTROLS = Report(position.REPORT.tables, position.REPORT.drawings)
REPORTS = {
    "position": position.REPORT,
    "controls": CONTROLS,
    "study": study.REPORT,
    "statistics": statistics.REPORT,
    "correspondence": correspondence.REPORT,
    "depth": depth.REPORT,
    "content": content.REPORT,
}
FILES = tuple(
    dict.fromkeys(name for report in REPORTS.values() for name in report.files)
)  # that any report may write into a run folder
WIDTH = 110  # characters of a table if output is not a terminal: wide enough for every cell


def report_of(run: Run) -> Report:
    """The report of a run's probe; an unknown probe gets the position report without a metric for comparisons."""
    return REPORTS.get(run.kind, CONTROLS)


def figures(run: Run) -> dict[str, Figure]:
    """Every figure that a run has data for, by file name."""
    return report_of(run).figures(run)


def draw(run: Run, folder: Path) -> list[Path]:
    """Write the figures that a run has data for as PNG, and its other files; returns the paths of the figures."""
    for name, write in report_of(run).written.items():
        write(run, folder / name)
    return write_figures(figures(run), folder)


def show(run: Run, console: Console) -> None:
    """Print the tables; if output is not a terminal, they are wide enough for every cell."""
    if not console.is_terminal:
        console.width = max(console.width, WIDTH)
    for table in report_of(run).tables:
        console.print(table(run))
