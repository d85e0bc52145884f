"""How long a command takes to answer: ``python -m tools.benchmarks.startup [--baseline FOLDER] [--rounds 5]``.

Measured are ``--help``, a typing error, and the first line and the first progress bar of the default command. Rounds take turns
with those of another checkout, so that a machine that slows down slows both. Then the packages whose imports cost most.
"""

import argparse
import os
import pty
import re
import select
import signal
import statistics
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.table import Table

from tools.benchmarks.timing import hardware

ROOT = Path(__file__).parents[2]
RUN = ["probe=position", "block=mid", "logger=none"]
# event → arguments, and what ends the wait for it; the end of the process without a pattern
EVENTS = {
    "--help": (["--help"], None),
    "a typing error": (["probe=positon"], None),
    "first line": (RUN, re.compile(rb"\w")),
    "first bar": (RUN, re.compile(rb"encoding images|1 of \d+: \w")),
}
LIMIT = 120.0  # seconds
IMPORTED = re.compile(r"import time:\s+(\d+) \|\s+\d+ \|\s+(\w+)")


class Wait(NamedTuple):
    """Seconds on the clock, seconds of processor time, which other work on the machine hardly changes, and what was printed."""

    wall: float
    cpu: float
    printed: str


def wait_for(checkout: Path, arguments: list[str], pattern: re.Pattern[bytes] | None, *options: str) -> Wait:
    """Wait until a command prints ``pattern`` on a terminal, or ends.

    Args:
        checkout: of sdprobe.
        arguments: of ``train.py``.
        pattern: None waits for the end.
        options: of Python.
    """
    with tempfile.TemporaryDirectory() as folder:
        places = [f"hydra.run.dir={folder}/run", f"cache_dir={folder}/cache"] if pattern else []
        started = time.perf_counter()
        process, terminal = pty.fork()
        if process == 0:
            os.chdir(checkout)
            os.environ["PYTHONPATH"] = str(checkout)
            os.execv(sys.executable, [sys.executable, *options, "train.py", *arguments, *places])
        printed = b""
        while time.perf_counter() - started < LIMIT:
            ready, _, _ = select.select([terminal], [], [], 0.05)
            try:
                printed += os.read(terminal, 65536) if ready else b""
            except OSError:  # the process has ended
                break
            if pattern and pattern.search(re.sub(rb"import time:.*", b"", printed)):
                break
        seconds = time.perf_counter() - started
        os.kill(process, signal.SIGKILL)
        used = os.wait4(process, 0)[2]
        os.close(terminal)
    return Wait(seconds, used.ru_utime + used.ru_stime, printed.decode(errors="replace"))


def costly(printed: str, count: int = 12) -> list[tuple[str, float]]:
    """Packages and the seconds that their own modules take to import, from the output of ``-X importtime``.

    >>> costly("import time:  2000 |  5000 |  torch.nn\\nimport time:  1000 |  1000 | wandb")
    [('torch', 0.002), ('wandb', 0.001)]
    """
    packages: Counter[str] = Counter()
    for microseconds, package in IMPORTED.findall(printed):
        packages[package] += int(microseconds)
    return [(package, total / 1e6) for package, total in packages.most_common(count)]


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description="How long a command takes to answer.")
    parser.add_argument("--baseline", type=Path, help="another checkout, measured in turns")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    checkouts = {"here": ROOT} | ({"baseline": options.baseline.resolve()} if options.baseline else {})
    waits: dict[tuple[str, str], list[Wait]] = {(event, name): [] for event in EVENTS for name in checkouts}
    for turn in range(options.rounds + 1):
        for event, (arguments, pattern) in EVENTS.items():
            for name, checkout in checkouts.items():
                wait = wait_for(checkout, arguments, pattern)
                if turn:  # the first warms the disk's cache
                    waits[event, name].append(wait)
    table = Table("seconds (of processor time)", *checkouts, title=hardware())
    for event in EVENTS:
        medians = (tuple(map(statistics.median, list(zip(*waits[event, name], strict=True))[:2])) for name in checkouts)
        table.add_row(event, *(f"{wall:.2f} ({cpu:.2f})" for wall, cpu in medians))
    console = Console()
    console.print(table)
    arguments, pattern = EVENTS["first bar"]
    printed = wait_for(ROOT, arguments, pattern, "-X", "importtime").printed
    imports = Table("imports before the first bar", "seconds, of the package's own modules")
    for package, took in costly(printed):
        imports.add_row(package, f"{took:.2f}")
    console.print(imports)


if __name__ == "__main__":
    main()
