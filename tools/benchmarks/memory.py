"""Peak memory by number of images: ``python -m tools.benchmarks.memory``.

Runs the main job with ``activation_budget=0`` on 64 and on 512 images, each in its own process, and compares the recorded
peaks.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

ROOT = Path(__file__).parents[2]


def peak(images: int, cache: str, overrides: list[str]) -> float:
    """Peak memory of one run in GiB."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(
            [
                sys.executable, "train.py", f"images.limit={images}", "activation_budget=0", "twins=0", "logger=none",
                f"cache_dir={cache}", f"hydra.run.dir={folder}", *overrides,
            ],
            cwd=ROOT, check=True, stdout=subprocess.DEVNULL,
        )  # fmt: skip
        return json.loads((Path(folder) / "metrics.json").read_text())["meta"]["peak_memory_gib"]


def main(arguments: Sequence[str] | None = None) -> None:
    """Print both peaks and their ratio; overrides apply to both runs."""
    parser = argparse.ArgumentParser(prog="python -m tools.benchmarks.memory", description=main.__doc__)
    parser.add_argument("overrides", nargs="*", help="for example probe.solver=closed_form block=stages")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as cache:
        few, many = (peak(images, cache, options.overrides) for images in (64, 512))
    Console().print(f"peak with 64 images {few:.3f} GiB, with 512 images {many:.3f} GiB, ratio {many / few:.3f}")


if __name__ == "__main__":
    main()
