"""``python -m sdprobe.reports RUN``: print the table of a finished run and draw its figures again.

``python -m sdprobe.reports FOLDER``: compare all runs below FOLDER and write tables and figures into it.
``python -m sdprobe.reports similarity --image FILE --token ROW,COL``: draw a token's similarity in every layer,
see :mod:`sdprobe.reports.similarity`.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

EXAMPLES = """\
examples:
  python -m sdprobe.reports outputs/2026-01-31/12-00-00-000000   the table and figures of one run
  python -m sdprobe.reports RUN --format pdf --layers 'up_*'     the figures as PDF, with pictures of these layers
  python -m sdprobe.reports outputs                              compare all runs below a folder
  python -m sdprobe.reports similarity --image FILE --token 12,17   one token's similarity in every layer
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Show a run folder, compare all runs below a folder, or draw the similarity of one token."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    if arguments[:1] == ["similarity"]:
        from sdprobe.reports.similarity import main as similarity  # loads the networks' libraries

        return similarity(arguments[1:])
    parser = argparse.ArgumentParser(
        prog="python -m sdprobe.reports", description="Tables and figures of one run or of several.", epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument(
        "folder", type=Path, help="a run folder, such as outputs/2026-01-31/12-00-00-000000, or a folder that contains runs"
    )
    parser.add_argument("--format", default="png", choices=("png", "pdf"), help="file format of figures")
    parser.add_argument(
        "--layers", default="", metavar="A,B", help="layers of which pictures are drawn: names, globs, all; default: at most 12"
    )
    options = parser.parse_args(arguments)
    folder = options.folder

    from rich.console import Console  # imports that take seconds; help and mistakes do without them

    from sdprobe.reports.collection import damage, damaged_maps, read_runs, show_runs, summarise
    from sdprobe.reports.dispatch import draw, show
    from sdprobe.reports.run import Run
    from sdprobe.utilities.errors import InputError

    console = Console()
    if not (folder / "metrics.json").is_file():
        runs, skipped = read_runs(folder)
        for path, reason in skipped.items():
            Console(stderr=True).print(f"Skipped {path}: {reason}", markup=False, soft_wrap=True)
        if not runs:
            parser.exit(1, f"Expected a run folder or a folder that contains runs, but '{folder}' has no complete run.\n")
        show_runs(runs, console)
        for path in summarise(runs, folder):
            console.print(path)
        return
    if reason := damage(folder) or damaged_maps(folder):
        parser.exit(1, f"Expected '{folder}' to contain a run, but its {reason}. Repeat the run, or delete the file.\n")
    run = Run.read(folder)
    show(run, console)
    try:
        paths = draw(run, folder, options.format, list(filter(None, options.layers.split(","))))
    except InputError as error:
        parser.exit(1, f"{error}\n")
    for path in paths:
        console.print(path, soft_wrap=True)
    if paths:
        console.print(f"Open first: {paths[0]}", markup=False, soft_wrap=True)


if __name__ == "__main__":
    main()
