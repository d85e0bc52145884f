"""Memory of ``FrozenSD.from_pipeline`` and the cost of mixed image sizes: ``python -m tools.benchmarks.inputs``.

The demo pipeline is loaded with diffusers. The memory of the process is compared before and after ``from_pipeline``, and with
the size of the weights. Then images of four sizes take turns with images of one size that have as many pixels together.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers import DiffusionPipeline
from rich.console import Console
from torch import Tensor

from sdprobe.backbones import FrozenSD
from sdprobe.backbones.embedded import DEMO
from tools.benchmarks.timing import hardware, in_turns, times_faster

LAYERS = ["mid", "up_1"]
ONE = (256, 256)  # pixels
FOUR = ((192, 256), (256, 256), (320, 256), (512, 128))  # on average as many pixels


def resident() -> float:
    """Memory of this process in MiB."""
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS:")]
    return int(line.split()[1]) / 1024


def weights(pipe: DiffusionPipeline) -> float:
    """Size of the weights of a pipeline in MiB."""
    networks = [part for part in pipe.components.values() if isinstance(part, torch.nn.Module)]
    return sum(tensor.nbytes for network in networks for tensor in network.state_dict().values()) / 2**20


def pictures(count: int, sizes: Sequence[tuple[int, int]]) -> list[Tensor]:
    """Images of noise, of these sizes in turn."""
    generator = torch.Generator().manual_seed(0)
    return [torch.rand(3, *sizes[number % len(sizes)], generator=generator) for number in range(count)]


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the memory that from_pipeline adds, and the ratio of both times."""
    parser = argparse.ArgumentParser(prog="python -m tools.benchmarks.inputs", description=main.__doc__)
    parser.add_argument("--images", type=int, default=256, help="a multiple of 4; default: 256")
    parser.add_argument("--rounds", type=int, default=3, help="timed turns; default: 3")
    options = parser.parse_args(arguments)
    console = Console()
    FrozenSD.from_pretrained("tiny")  # what is imported on first use does not count
    pipe = DiffusionPipeline.from_pretrained(DEMO)
    size, before = weights(pipe), resident()
    sd = FrozenSD.from_pipeline(pipe)
    console.print(f"from_pipeline adds {resident() - before:.1f} MiB to the process; the weights have {size:.1f} MiB")
    mixed, alike = pictures(options.images, FOUR), pictures(options.images, [ONE])
    assert sum(image.numel() for image in mixed) == sum(image.numel() for image in alike)
    timed = in_turns(
        {"four": lambda: sd.activations(mixed, LAYERS), "one": lambda: sd.activations(alike, LAYERS)}, options.rounds
    )
    wall, processor = times_faster(timed["four"], timed["one"])
    console.print(
        f"{options.images} images of four sizes take {processor:.3f} times the processor time of one size ({wall:.3f} on the "
        f"clock; target: at most 1.10); {hardware()}"
    )


if __name__ == "__main__":
    main()
