"""What several noise levels in one run cost: ``python -m tools.benchmarks.levels``.

First as whole commands on the demo model, imports and loading included: a run at three levels in turns with three runs, with
latents in the cache and one network with random weights each; target: at most 0.55 times. Then on a network in the shape of
SD-1.5 with random weights, where passes cost most: a run at three levels in turns with its passes of the U-Net alone; target:
at most 1.05 times. Prints Markdown.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import lightning
import torch
from rich.console import Console

from datamodules.activations import ActivationDataModule
from datamodules.stream import ActivationStream
from probes import PositionProbe
from sdprobe.backbones import FrozenSD
from tools.benchmarks.shaped import Pictures, write_pipeline
from tools.benchmarks.timing import Timed, hardware, in_turns, times_faster

ROOT = Path(__file__).parents[2]
LEVELS = (10, 50, 261)
COMMAND = (
    "probe=position",
    "block=mid",
    "backbone=demo",
    "probe.solver=closed_form",
    "images.limit=160",
    "twins=1",
    "logger=none",
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print both ratios."""
    parser = argparse.ArgumentParser(prog="python -m tools.benchmarks.levels", description=main.__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--narrower", type=int, default=1, help="how many times narrower than SD-1.5 the U-Net is")
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--size", type=int, default=256)
    options = parser.parse_args(arguments)
    out = Console(width=10_000, highlight=False)
    out.print(f"{hardware()}\n\n| work | measured | target |\n|---|---|---|", markup=False)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        one, three = commands(folder, options.rounds)
        wall, cpu = times_faster(one, three)
        out.print(f"| three levels in one run, of three runs | {_ratio(wall, cpu)} | ≤ 0.55 × |", markup=False)
        sd = FrozenSD.from_pretrained(str(write_pipeline(folder / "sd", (options.narrower, 4))))
        timed = in_turns(works(sd, Pictures(options.images, options.size), folder), options.rounds)
        wall, cpu = times_faster(timed["run"], timed["passes"])
        out.print(f"| a run at three levels, of its passes | {_ratio(wall, cpu)} | ≤ 1.05 × |", markup=False)


def commands(folder: Path, rounds: int) -> tuple[Timed, Timed]:
    """(a run at all levels, a run per level), in turns after one untimed turn, which encodes the images."""
    one, several = Timed(), Timed()
    every = [f"timestep=[{','.join(map(str, LEVELS))}]"]
    each = [f"timestep={level}" for level in LEVELS]
    for turn in range(rounds + 1):
        for timed, texts in ((one, every), (several, each)):
            spent = [_spent(folder, text) for text in texts]
            if turn:
                timed.wall.append(sum(wall for wall, _ in spent))
                timed.cpu.append(sum(cpu for _, cpu in spent))
    return one, several


def _spent(folder: Path, text: str) -> tuple[float, float]:
    """Seconds on the clock and of processor time of a command; random networks are measured anew."""
    shutil.rmtree(folder / "cache" / "twins", ignore_errors=True)
    words = [*COMMAND, text, f"cache_dir={folder / 'cache'}", f"hydra.run.dir={folder / 'run'}"]
    started = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "train.py", *words], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    _, status, used = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"python train.py {' '.join(words)} ended with an error.")
    return time.perf_counter() - started, used.ru_utime + used.ru_stime


def works(sd: FrozenSD, images: Pictures, folder: Path) -> dict[str, Callable[[], object]]:
    """A run of the position probe in closed form, and the passes that it takes."""

    def data() -> ActivationDataModule:
        return ActivationDataModule(images, sd, "up_1", timestep=LEVELS, cache_dir=str(folder / "cache"))

    def run() -> dict[str, float]:
        module = data()
        probe = PositionProbe(module.shapes, module.photos, module, solver="closed_form")
        trainer = lightning.Trainer(
            max_epochs=1, accelerator=sd.device.type, logger=False, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False, num_sanity_val_steps=0,
        )  # fmt: skip
        trainer.fit(probe, datamodule=module)
        trainer.test(probe, datamodule=module, verbose=False)
        return probe.results

    module = data()
    module.prepare_data()
    stream = module.base_stream
    batches = [batch for name in ("train", "val", "test") for batch in _batches(stream, module.split[name])]
    conditioning = sd.prompts("", sd.device, sd.dtype)

    def passes() -> None:
        for noisy, level in batches:
            sd.unet(noisy, level, conditioning, stream.reads.layers)

    return {"run": run, "passes": passes}


def _batches(stream: ActivationStream, indices: Sequence[int]) -> Iterator[tuple[torch.Tensor, int]]:
    """(noisy latents, level) of every pass that these images take."""
    sd = stream.backbone
    for start in range(0, len(indices), stream.batch_size):
        some = indices[start : start + stream.batch_size]
        latents = torch.stack([stream.store[index] for index in some]).to(sd.device)
        for level in LEVELS:
            noisy = sd.noise(latents, level, [stream.store.images.name(index) for index in some])
            yield noisy.to(sd.dtype, memory_format=torch.channels_last), level


def _ratio(wall: float, cpu: float) -> str:
    return f"{wall:.2f} × ({cpu:.2f} × of processor time)"


if __name__ == "__main__":
    main()
