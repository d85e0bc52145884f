"""Speed and memory of sdprobe compared with ``sdhelper`` 1.0.0 and the published study.

``python -m tools.benchmarks.extraction`` times both in turns, on the same random weights in the shape of SD-1.5, the same
pictures and noise. It first checks that activations are equal. Needs the extra ``bench``. Prints Markdown; ``--smoke`` is a
small version of all of it.
"""

import argparse
import datetime
import logging
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stdout
from pathlib import Path

from rich.console import Console

from tools.benchmarks.rows import FULL, NARROW, Row, Scale, activations, heads, memory, study
from tools.benchmarks.timing import hardware

PARTS: dict[str, Callable[[Scale, Path], Iterator[Row]]] = {
    "activations": activations,
    "heads": heads,
    "study": study,
    "memory": memory,
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Print one table of ratios with their targets."""
    parser = argparse.ArgumentParser(prog="python -m tools.benchmarks.extraction", description=main.__doc__)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--narrow", action="store_true", help="use a network 5 times narrower also for activations and heads")
    parser.add_argument("--images", type=int, default=4, help="pictures of 512 pixels in one turn of the activations")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--smoke", action="store_true", help="two small pictures, one round, narrow")
    options = parser.parse_args(arguments)
    scale = Scale(FULL, size=512, images=options.images, rounds=options.rounds, study_size=384, study_images=16, growth=(8, 64))
    if options.narrow:
        scale = scale.with_(narrower=NARROW)
    if options.smoke:
        scale = Scale(NARROW, size=128, images=2, rounds=1, study_size=384, study_images=10, growth=(1, 2))
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    out = Console(file=sys.stdout, width=10_000, highlight=False)
    date = datetime.datetime.now(tz=datetime.UTC).date()
    out.print(f"{date}, {hardware()}\n", markup=False)
    out.print("| work | measured | target | how |\n|---|---|---|---|", markup=False)
    with tempfile.TemporaryDirectory() as folder, redirect_stdout(sys.stderr):  # progress bars do not belong into the table
        for part in options.parts:
            for row in PARTS[part](scale, Path(folder)):
                out.print(f"| {row.work} | {row.measured} | {row.target} | {row.how} |", markup=False)
    out.print("| GPU: U-Net pass at 512 px | not measured | ≥ 35 % of the bf16 matmul rate | no GPU available |", markup=False)


if __name__ == "__main__":
    main()
