"""Tables and figures of a run, a comparison of several, and the registry of all: ``python -m sdprobe.reports --help``.

``python -m sdprobe.reports RUN`` prints the tables of a finished run and draws its figures again.
``python -m sdprobe.reports FOLDER`` compares all runs below FOLDER and writes tables and figures into it.
``ls``, ``best``, ``show``, ``diff`` and ``export`` answer questions about runs, see :mod:`sdprobe.reports.registry`.
``similarity`` draws a token's similarity in every layer, see :mod:`sdprobe.reports.similarity`. ``explore`` writes a page in
which one hovers over tokens, see :mod:`sdprobe.reports.explorer`.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from sdprobe.utilities.errors import InputError

FILTERED = "key=value keeps the runs with this setting, such as probe=position timestep=10,50 block=mid"
COMMANDS = {
    "ls": "list the runs below a folder: state, settings, main number",
    "best": "rank layers and runs by a metric, and name those that cannot be told from the best",
    "show": "settings, origin and main numbers of a run",
    "diff": "what was set differently in two runs, and how their numbers differ",
    "export": "write every number of many runs as Parquet and CSV",
    "similarity": "draw one token's similarity in every layer",
    "explore": "write a page in which one hovers over tokens",
}
EXAMPLES = f"""\
examples:
  python -m sdprobe.reports outputs/2026-01-31/12-00-00-000000   the table and figures of one run
  python -m sdprobe.reports RUN --format pdf --layers 'up_*'     the figures as PDF, with pictures of these layers
  python -m sdprobe.reports outputs                              compare all runs below a folder
  python -m sdprobe.reports similarity --image FILE --token 12,17   one token's similarity in every layer

questions about runs (FOLDER: outputs and multirun if it is left out; each has --help):
  ls [FOLDER] [key=value …]             {COMMANDS["ls"]}
  best METRIC [FOLDER] [key=value …]    {COMMANDS["best"]}
  show RUN                              {COMMANDS["show"]}
  diff RUN RUN                          {COMMANDS["diff"]}
  export [FOLDER] [key=value …] -o FILE {COMMANDS["export"]}
  explore RUN                           {COMMANDS["explore"]}
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Show a run, compare all runs below a folder, or answer a question about runs."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    if arguments[:1] == ["similarity"]:
        from sdprobe.reports.similarity import main as similarity  # loads the networks' libraries

        return similarity(arguments[1:])
    try:
        if arguments[:1] == ["explore"]:
            from sdprobe.reports.explorer import main as explore  # imports drawing libraries

            sys.stdout.write(f"{explore(arguments[1:])}\n")
            return None
        if arguments and arguments[0] in COMMANDS:
            return _answer(arguments[0], arguments[1:])
        return _report(arguments)
    except InputError as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(1)


def _report(arguments: Sequence[str]) -> None:
    """Tables and figures of a run, or of all runs below a folder."""
    parser = argparse.ArgumentParser(
        prog="python -m sdprobe.reports", description="Tables and figures of one run or of several.", epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument(
        "folder", type=Path, help="a run folder, such as outputs/2026-01-31/12-00-00-000000, or a folder that contains runs"
    )
    parser.add_argument(
        "--where", action="append", default=[], metavar="KEY=VALUE", help=f"of a folder: {FILTERED}; may be repeated"
    )
    parser.add_argument("--format", default="png", choices=("png", "pdf"), help="file format of figures")
    parser.add_argument(
        "--layers", default="", metavar="A,B", help="layers of which pictures are drawn: names, globs, all; default: at most 12"
    )
    options = parser.parse_args(arguments)
    folder = options.folder
    if not folder.is_dir():
        near = get_close_matches(str(folder), COMMANDS, n=1)
        fix = f"Did you mean {near[0]}?" if near else "Correct the path."
        parser.exit(1, f"Expected a run folder, a folder that contains runs, or a command, but '{folder}' is none. {fix}\n")

    from rich.console import Console  # imports that take seconds; help and mistakes do without them

    from sdprobe.reports.collection import damage, damaged_arrays, filtered, nothing, read_runs, summarise
    from sdprobe.reports.dispatch import draw, show
    from sdprobe.reports.recorded import fitting
    from sdprobe.reports.run import Run
    from sdprobe.utilities.errors import LONGEST, InputError
    from sdprobe.utilities.foreign import shown

    console = Console()

    def say(text: object, console: Console = console) -> None:
        """A line with names of files, which may be those of others."""
        console.print(shown(text, LONGEST), markup=False, soft_wrap=True)

    if not (folder / "metrics.json").is_file():
        runs, skipped = filtered(*read_runs(folder), options.where)
        if not runs:
            raise InputError(nothing(folder, skipped))
        unchecked = [run.folder for run in runs if "checksum" not in run.meta]
        if unchecked:
            names = f"{unchecked[0]}{f' and {len(unchecked) - 1} more' if unchecked[1:] else ''}"
            say(f"Not checked for damage, since older versions wrote no checksum: {names}", Console(stderr=True))
        with fitting(folder):
            paths = summarise(runs, folder, skipped, console, options.format)
        for path in paths:
            say(path)
        figures = [path for path in paths if path.suffix == f".{options.format}"]
        say(f"Open first: {[paths[0], *figures[:1]][-1]}")
        return
    if reason := damage(folder) or damaged_arrays(folder):
        parser.exit(1, f"Expected '{folder}' to contain a run, but its {reason}. Repeat the run, or delete the file.\n")
    run = Run.read(folder)
    with fitting(folder):
        show(run, console)
        paths = draw(run, folder, options.format, list(filter(None, options.layers.split(","))))
    for path in paths:
        say(path)
    if paths:
        say(f"Open first: {paths[0]}")


def _answer(command: str, arguments: Sequence[str]) -> None:
    """A question about runs; none of them imports torch or draws."""
    options = _parser(command).parse_intermixed_args(arguments)  # folders may follow options
    folders = [Path(text) for text in options.runs if "=" not in text or Path(text).is_dir()]
    filters = [text for text in options.runs if Path(text) not in folders] + getattr(options, "where", [])

    from rich.console import Console

    from sdprobe.reports.registry.entries import find, one

    console = Console()
    if command == "ls":
        from sdprobe.reports.registry import listing

        entries = find(folders, filters, listing.main_numbers)
        if options.json:
            return _print_json([listing.row(entry) for entry in entries])
        listing.show_list(entries, console)
    elif command == "best":
        from sdprobe.reports.registry import best

        metric = best.Metric.parse(options.metric)
        entries = find(folders, filters, lambda meta: [metric.quantity])
        highest = metric.highest if options.highest is None else options.highest
        cells = best.rank(entries, metric, filters, highest)
        if options.json:
            return _print_json([cell.record(number) for number, cell in enumerate(cells, 1)])
        left_out = len(entries) - len({str(cell.entry.folder) for cell in cells})
        best.show_best(cells, metric, highest, left_out, console)
    elif command == "show":
        from sdprobe.reports.registry import show as showing

        entry = one(options.runs[0])
        if options.json:
            return _print_json(showing.record(entry))
        showing.show_run(entry, console)
    elif command == "diff":
        from sdprobe.reports.registry import show as showing

        showing.show_difference(one(options.runs[0]), one(options.runs[1]), console)
    else:
        from sdprobe.reports.registry.export import export

        entries = find(folders, filters)
        paths, count = export(entries, options.output)
        left_out = sum(entry.state != "finished" for entry in entries)
        text = f"{count} numbers of {len(entries) - left_out} runs" + f"; {left_out} are not finished" * (left_out > 0)
        console.print(f"{text}: {', '.join(map(str, paths))}", markup=False, highlight=False, soft_wrap=True)


def _parser(command: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f"python -m sdprobe.reports {command}", description=f"{COMMANDS[command].capitalize()}."
    )
    if command in ("show", "diff"):
        count = 1 if command == "show" else 2
        parser.add_argument(
            "runs", nargs=count, metavar="RUN", help="a run folder, or the end of its path below outputs or multirun"
        )
    else:
        if command == "best":
            parser.add_argument("metric", metavar="METRIC", help="such as binned_accuracy, binned_accuracy/corner, rmse")
            parser.add_argument("--highest", action="store_true", default=None, help="the highest number is the best")
            parser.add_argument(
                "--lowest", action="store_false", dest="highest", help="the lowest is; else errors and risks know"
            )
        parser.add_argument("runs", nargs="*", metavar="FOLDER or key=value", help=f"folders of runs; {FILTERED}")
        parser.add_argument("--where", action="append", default=[], metavar="key=value", help="the same as key=value")
    if command == "export":
        parser.add_argument(
            "-o", "--output", type=Path, required=True, metavar="FILE", help="ends in .parquet, .csv, or neither: both"
        )
    if command in ("ls", "best", "show"):
        parser.add_argument("--json", action="store_true", help="print JSON; docs/usage.md explains its fields")
    return parser


def _print_json(content: Any) -> None:
    sys.stdout.write(json.dumps(content, indent=1, default=str) + "\n")


if __name__ == "__main__":
    main()
