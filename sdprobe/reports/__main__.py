"""``python -m sdprobe.reports RUN``: the table of a finished run again, and its figures drawn anew.

``python -m sdprobe.reports FOLDER``: one table and the standard figures of every run below FOLDER, written into it.
``python -m sdprobe.reports similarity --image FILE --token ROW,COL``: see :mod:`sdprobe.reports.similarity`.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from sdprobe.reports.collection import damage, damaged_maps, read_runs, show_runs, summarise
from sdprobe.reports.dispatch import draw, show
from sdprobe.reports.run import Run


def main(arguments: Sequence[str] | None = None) -> None:
    """Show a run folder or all runs below a folder, or draw a similarity sheet."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    if arguments[:1] == ["similarity"]:
        from sdprobe.reports.similarity import main as similarity  # loads the networks' libraries

        return similarity(arguments[1:])
    parser = argparse.ArgumentParser(prog="python -m sdprobe.reports", description="Table and figures of a run, or of many.")
    parser.add_argument("folder", type=Path, help="a run folder, such as outputs/2026-01-31/12-00-00-000000, or one above many")
    folder = parser.parse_args(arguments).folder
    console = Console()
    if not (folder / "metrics.json").is_file():
        runs, skipped = read_runs(folder)
        for path, reason in skipped.items():
            Console(stderr=True).print(f"Skipped {path}: {reason}", markup=False, soft_wrap=True)
        if not runs:
            parser.exit(1, f"Expected a run folder with metrics.json, or one above some, but '{folder}' has no complete run.\n")
        show_runs(runs, console)
        for path in summarise(runs, folder):
            console.print(path)
        return
    if reason := damage(folder) or damaged_maps(folder):
        parser.exit(1, f"Expected '{folder}' to hold a run, but its {reason}. Repeat the run, or delete the file.\n")
    run = Run.read(folder)
    show(run, console)
    for path in draw(run, folder):
        console.print(path)


if __name__ == "__main__":
    main()
