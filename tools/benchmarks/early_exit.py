"""Time for one layer as a share of a full U-Net pass: ``python -m tools.benchmarks.early_exit``.

Full-width SD-1.5 U-Net with random weights at 512 px. The passes are timed in turns, so that a change of the machine's speed
affects all; the ratio is the median over rounds.
"""

import argparse
import statistics
import time
from collections.abc import Sequence

import torch
from rich.console import Console
from rich.table import Table

from sdprobe.backbones.architectures import preset_config
from sdprobe.backbones.precision import choose_device, choose_dtype, name_of
from sdprobe.backbones.unet import Conditioning, FrozenUNet
from sdprobe.backbones.weights import random_unet

LAYERS = ("down_1", "mid", "up_1", "conv_out")


def main(arguments: Sequence[str] | None = None) -> None:
    """Print seconds per image and the share of a full pass, by deepest layer."""
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
    seconds: dict[str, list[float]] = {layer: [] for layer in LAYERS}
    for number in range(options.rounds + 1):
        for layer in LAYERS:
            started = time.perf_counter()
            unet(noisy, 50, conditioning, [layer])
            if device.type == "cuda":
                torch.cuda.synchronize()
            if number:  # the first round warms up
                seconds[layer].append((time.perf_counter() - started) / options.batch)
    table = Table(
        title=f"{options.model}, {options.size} px, batch {options.batch}, {device}, {name_of(dtype)}", title_justify="left"
    )
    for column in ("deepest layer", "s/image (median)", "share of a full pass"):
        table.add_column(column, justify="left" if column == "deepest layer" else "right")
    for layer in LAYERS:
        share = statistics.median(a / b for a, b in zip(seconds[layer], seconds["conv_out"], strict=True))
        table.add_row(layer, f"{statistics.median(seconds[layer]):.4f}", f"{share:.2f}")
    Console().print(table)


if __name__ == "__main__":
    main()
