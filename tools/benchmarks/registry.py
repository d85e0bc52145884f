"""How long commands over many run folders take: ``python -m tools.benchmarks.registry [--runs 1000] [--rounds 5]``.

Run folders are fabricated in the size of real ones: a probe on eleven layers with groups and baselines, a composed
configuration, and sums per photograph. Measured are whole commands with their imports, each in a process of its own.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from sdprobe.tokens.keys import GROUPS
from tools.benchmarks.timing import hardware

ROOT = Path(__file__).parents[2]
LAYERS = ("conv_in", "down_0", "down_1", "down_2", "down_3", "mid", "up_0", "up_1", "up_2", "up_3", "conv_out")
METRICS = ("axis_accuracy", "cell_accuracy", "binned_accuracy")
WHERE = ("all", *GROUPS)
CONDITIONS = ("test", "random_partition", "random_weights", "shuffled_labels", "chance")
PHOTOGRAPHS = 32
COMMANDS = {
    "ls": ("ls",), "ls, filtered": ("ls", "timestep=50", "probe.solver=closed_form"), "best": ("best", "binned_accuracy"),
}  # fmt: skip
CONFIG = """\
block: stages
timestep: {timestep}
seed: 0
prompt: ''
run_dir: {folder}
backbone:
  _target_: sdprobe.backbones.FrozenSD.from_pretrained
  path: demo
  noise: independent
  device: ${{device}}
images:
  _target_: datamodules.images.scenes.Scenes
  size: 512
  limit: 160
mitigation: {{}}
datamodule:
  _target_: datamodules.activations.ActivationDataModule
  timestep: ${{timestep}}
  seed: ${{seed}}
  splits: ${{protocol.splits}}
  sampling: ${{protocol.sampling}}
  batch_size: 8
  token_batch: 512
probe:
  _target_: probes.PositionProbe
  head: classification
  solver: closed_form
  learning_rate: ${{protocol.learning_rate}}
  min_steps: 600
protocol:
  splits: default
  sampling: stratified
  learning_rate: 0.003
"""
CHOICES = (
    "hydra:\n  runtime:\n    choices:\n      probe: position\n      images: scenes\n      backbone: demo\n  verbose: false\n"
)


def write_run(folder: Path, number: int) -> None:
    """A run folder of a position probe, about 130 kB of numbers; run number ``k`` differs in timestep and values."""
    generator = np.random.default_rng(number)
    meta = {
        "schema": 2, "probe": "position", "model": "assets/demo", "weights": "stored", "timestep": number % 1000, "seed": 0,
        "layers": list(LAYERS), "images": {"train": 51, "val": 13, "test": PHOTOGRAPHS}, "complete": True, "twins": 1,
        "photographs": {"test": PHOTOGRAPHS}, "dataset_fingerprint": "0" * 64, "test_fingerprint": "1" * 64,
        "settings_hash": "2" * 16, "mitigations": {},
        "packages": {f"package_{i}": "1.2.3" for i in range(9)}, "published_names": {layer: layer for layer in LAYERS},
    }  # fmt: skip
    numbers: dict[str, float] = {}
    units: dict[str, np.ndarray] = {}
    for layer in LAYERS:
        for metric in METRICS:
            for group in WHERE:
                values = generator.random() / 2 + generator.normal(0, 0.05, PHOTOGRAPHS)
                units[f"test/{layer}/{metric}/{group}"] = values
                for condition in CONDITIONS:
                    value, half = (0.125, 0.0) if condition == "chance" else (float(values.mean()), 0.018)
                    key = f"{condition}/{layer}/{metric}/{group}"
                    ends = {f"{key}/ci_low": value - half, f"{key}/ci_high": value + half, f"{key}/n": 2048}
                    numbers |= {key: value} | (ends if condition in ("test", "shuffled_labels") else {})
        numbers |= {f"val/{layer}/{name}/all": float(generator.random()) for name in ("accuracy", "loss", "ridge_level")}
    (folder / ".hydra").mkdir(parents=True)
    (folder / ".hydra" / "config.yaml").write_text(CONFIG.format(timestep=number % 1000, folder=folder))
    (folder / ".hydra" / "hydra.yaml").write_text(CHOICES)
    np.savez_compressed(folder / "pseudovalues.npz", **units)  # type: ignore[arg-type]  # its stub takes a table for its option
    (folder / "metrics.json").write_text(json.dumps({**dict(sorted(numbers.items())), "meta": meta}, indent=1))


def timed(arguments: tuple[str, ...], folder: Path) -> tuple[float, float, float]:
    """(seconds, seconds of processor time, MB at most) of a command in the folder above the runs."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    code = "import runpy, sys; runpy.run_module('sdprobe.reports', run_name='__main__')"
    peak = f"{code}; print(open('/proc/self/status').read().partition('VmHWM:')[2].split()[0], file=sys.stderr)"
    done = subprocess.run(
        [sys.executable, "-c", peak, *arguments], cwd=folder, env=environment, capture_output=True, text=True, check=True
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return time.perf_counter() - started, used, int(done.stderr.split()[-1]) * 1024 / 1e6


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description="How long commands over many run folders take.")
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        for number in range(options.runs):
            write_run(Path(place, "outputs", f"{number // 50:02}", f"{number % 50:02}"), number)
        size = (Path(place) / "outputs/00/00/metrics.json").stat().st_size / 1e3
        sys.stdout.write(f"{hardware()}; {options.runs} runs, metrics.json {size:.0f} kB\n")
        for name, arguments in COMMANDS.items():
            found = [timed(arguments, Path(place)) for _ in range(options.rounds)]
            wall, used, memory = (statistics.median(values) for values in zip(*found, strict=True))
            sys.stdout.write(f"{name}: {wall:.2f} s ({used:.2f} of processor time), {memory:.0f} MB\n")


if __name__ == "__main__":
    main()
