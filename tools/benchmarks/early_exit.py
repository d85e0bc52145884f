"""Time for one layer, and for queries, keys and values, as a share of a full pass: ``python -m tools.benchmarks.early_exit``.

Full-width SD-1.5 U-Net with random weights at 512 px. The passes are timed in turns, so that a change of the machine's speed
affects all; the ratio is the median over rounds. The second full pass shows by how much equal passes differ.
"""

import argparse
import statistics
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from sdprobe.backbones.architectures import preset_config
from sdprobe.backbones.precision import choose_device, choose_dtype, name_of
from sdprobe.backbones.unet import Conditioning, FrozenUNet
from sdprobe.backbones.weights import random_unet
from tools.benchmarks.timing import hardware, in_turns, times_faster

FULL = "conv_out"
ONE = ["up_1_attn_1_query", "up_1_attn_1_key", "up_1_attn_1_value"]
EVERY = [f"*_attn_?_{part}" for part in ("query", "key", "value")]
LAYERS = {
    "down_1": "down_1", "mid": "mid", "up_1_attn_1_query": "up_1_attn_1_query", "up_1": "up_1", FULL: FULL,
    "conv_out once more": FULL, "conv_out; query, key, value of up_1_attn_1": [FULL, *ONE],
    "conv_out; query, key, value of all attention": [FULL, *EVERY],
}  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    """Print seconds per image and the share of a full pass, by the layers that are read."""
    parser = argparse.ArgumentParser(prog="python -m tools.benchmarks.early_exit", description=main.__doc__)
    parser.add_argument("--model", default="sd15", help="preset whose shape the network has")
    parser.add_argument("--size", type=int, default=512, help="image side in pixels")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args(arguments)
    device = choose_device()
    dtype = choose_dtype("auto", device)
    unet = FrozenUNet(random_unet(preset_config(options.model), 0, dtype)).to(device)
    unet.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # its stub lacks it
    side = options.size // 8
    noisy = torch.randn(options.batch, 4, side, side, device=device, dtype=dtype)
    conditioning = Conditioning(torch.randn(1, 77, unet.config.cross_attention_dim, device=device, dtype=dtype))
    works: dict[str, Callable[[], Any]] = {
        name: partial(unet, noisy, 50, conditioning, unet.resolve(layers)) for name, layers in LAYERS.items()
    }
    timed = in_turns(works, options.rounds)
    table = Table(
        title=f"{options.model}, {options.size} px, batch {options.batch}, {device}, {name_of(dtype)}; {hardware()}",
        title_justify="left",
    )
    for column in ("layers", "s/image (median)", "share of a full pass", "of its processor time"):
        table.add_column(column, justify="left" if column == "layers" else "right")
    for name, times in timed.items():
        shares = times_faster(times, timed[FULL])
        table.add_row(name, f"{statistics.median(times.wall) / options.batch:.4f}", *(f"{share:.3f}" for share in shares))
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
