"""What a sweep costs: ``python -m tools.benchmarks.sweeps [--rounds 3] [--memory]``.

Whole commands on the demo model, imports and loading included, with latents in the cache, heads in closed form and one network
with random weights for each noise level. In turns: a process per level, a sweep with a job per level in one process (target: at
most 0.6 of it), and ``sweep=timesteps`` over the levels, which is one run (target: at most 3 times one job).

``--memory`` compares the peak memory of a sweep over three checkpoints in SD-1.5's shape, 32 to 160 channels wide, with that of
the largest alone; target: at most 10 % more.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from tools.benchmarks.shaped import write_pipeline
from tools.benchmarks.timing import Timed, hardware, times_faster

ROOT = Path(__file__).parents[2]
LEVELS = (1, 5, 10, 50, 100, 261, 500, 800)
JOB = ("probe=position", "block=mid", "probe.solver=closed_form", "images.limit=160", "twins=1", "logger=none")
WIDTHS = (5, 2, 10)  # how many times narrower than SD-1.5; the second is the largest
INTERVAL = 0.02  # seconds between two looks at the memory of a process


def main(arguments: Sequence[str] | None = None) -> None:
    """Print ratios as Markdown."""
    parser = argparse.ArgumentParser(prog="python -m tools.benchmarks.sweeps", description=main.__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--memory", action="store_true", help="measure memory, not time")
    options = parser.parse_args(arguments)
    out = Console(width=10_000, highlight=False)
    out.print(f"{hardware()}\n\n| work | measured | target |\n|---|---|---|", markup=False)
    with tempfile.TemporaryDirectory() as place:
        if options.memory:
            alone, sweep = peaks(Path(place))
            out.print(f"| peak memory of a sweep over three checkpoints, of the largest alone | {sweep / alone:.2f} × "
                      f"({alone / 2**30:.2f} → {sweep / 2**30:.2f} GiB) | ≤ 1.1 × |", markup=False)  # fmt: skip
            return
        for row in times(Path(place), options.rounds):
            out.print(row, markup=False)


def times(folder: Path, rounds: int) -> list[str]:
    """Rows of the table, from commands in turns; one untimed command encodes the images."""
    levels = ",".join(map(str, LEVELS))
    works = {
        "one job": [["timestep=50"]],
        "processes": [[f"timestep={level}"] for level in LEVELS],
        "sweep": [["-m", f"timestep={levels}"]],
        "one run": [["sweep=timesteps", f"timestep=[{levels}]"]],
    }
    timed = {name: Timed() for name in works}
    seconds(folder, works["one job"][0])
    for _ in range(rounds):
        for name, commands in works.items():
            shutil.rmtree(folder / "cache" / "twins", ignore_errors=True)
            spent = [seconds(folder, words) for words in commands]
            timed[name].wall.append(sum(wall for wall, _ in spent))
            timed[name].cpu.append(sum(cpu for _, cpu in spent))
    rows = []
    for one, of, what, target in (
        ("sweep", "processes", "8 levels as jobs of one process, of 8 processes", "≤ 0.6 ×"),
        ("one run", "one job", "`sweep=timesteps` over 8 levels, of one job", "≤ 3 ×"),
    ):
        wall, cpu = times_faster(timed[one], timed[of])
        rows.append(f"| {what} | {wall:.2f} × ({cpu:.2f} × of processor time) | {target} |")
    return rows


def begin(folder: Path, words: Sequence[str]) -> "subprocess.Popen[bytes]":
    """Start a command that writes below a folder, of which only the cache is kept."""
    shutil.rmtree(folder / "run", ignore_errors=True)
    places = [f"cache_dir={folder / 'cache'}", f"hydra.run.dir={folder / 'run'}", f"hydra.sweep.dir={folder / 'run'}"]
    return subprocess.Popen(
        [sys.executable, "train.py", *words, *places], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )


def seconds(folder: Path, words: Sequence[str]) -> tuple[float, float]:
    """Seconds on the clock and of processor time of a command."""
    started = time.perf_counter()
    _, status, used = os.wait4(begin(folder, [*JOB, *words]).pid, 0)
    if status:
        raise SystemExit(f"python train.py {' '.join(words)} ended with an error.")
    return time.perf_counter() - started, used.ru_utime + used.ru_stime


def peaks(folder: Path) -> tuple[float, float]:
    """Peak bytes of (the largest checkpoint alone, a sweep over all)."""
    paths = [str(write_pipeline(folder / str(width), (width, 4))) for width in WIDTHS]
    shape = ["images.size=128", "images.limit=16", "backbone=local", "block=mid", "probe.solver=closed_form", "logger=none"]
    sweep = [*shape, "-m", f"backbone.path={','.join(paths)}"]
    peak(folder, sweep)  # encodes the images
    return peak(folder, [*shape, f"backbone.path={paths[1]}"]), peak(folder, sweep)


def peak(folder: Path, words: Sequence[str]) -> float:
    """Peak bytes of a command. A run forgets the peak of the run before it, so the process is looked at all the time."""
    shutil.rmtree(folder / "cache" / "twins", ignore_errors=True)
    process, highest = begin(folder, words), 0
    while process.poll() is None:
        lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
        highest = max([highest, *(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))])
        time.sleep(INTERVAL)
    if process.returncode:
        raise SystemExit(f"python train.py {' '.join(words)} ended with an error.")
    return highest * 1024


if __name__ == "__main__":
    main()
