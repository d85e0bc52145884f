"""Time that statistics of all layers add to extraction: ``python -m tools.benchmarks.statistics_overhead``.

Full-width SD-1.5 U-Net with random weights. Each round extracts every layer of a batch, whole and cropped, then updates the
statistics of every layer with it. The statistics are those of a run over ``--images`` images: some look at 32 of them only.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from rich.console import Console

from sdprobe.backbones.architectures import preset_config
from sdprobe.backbones.precision import choose_device, choose_dtype, name_of
from sdprobe.backbones.unet import Conditioning, FrozenUNet
from sdprobe.backbones.weights import random_unet
from sdprobe.estimators.layer_statistics import LayerStatistics
from sdprobe.metrics.layer_tokens import TokenMeans
from sdprobe.metrics.linear_cka import LinearCKA
from sdprobe.tokens.groups import token_groups

STRIDE = 8  # pixels per latent cell


def main(arguments: Sequence[str] | None = None) -> None:
    """Print seconds per image of extraction and of statistics, and their ratio."""
    parser = argparse.ArgumentParser(prog="python -m tools.benchmarks.statistics_overhead", description=main.__doc__)
    parser.add_argument("--model", default="sd15", help="preset whose shape the network has")
    parser.add_argument("--size", type=int, default=512, help="image side in pixels")
    parser.add_argument("--margin", type=int, default=64, help="pixels that are cropped on every side")
    parser.add_argument("--batch", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--images", type=int, default=96, help="images of the run; batch times (rounds + 1), or more")
    options = parser.parse_args(arguments)
    device = choose_device()
    dtype = choose_dtype("auto", device)
    unet = FrozenUNet(random_unet(preset_config(options.model), 0, dtype)).to(device)
    unet.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # its stub lacks it
    layers = unet.resolve("all")
    conditioning = Conditioning(torch.randn(1, 77, unet.config.cross_attention_dim, device=device, dtype=dtype))

    def extract(side: int) -> dict[str, torch.Tensor]:
        noisy = torch.randn(options.batch, 4, side, side, device=device, dtype=dtype)
        return dict(unet(noisy, 50, conditioning, layers))

    def timed(work: Callable[[], Any]) -> tuple[float, Any]:
        started = time.perf_counter()
        result = work()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return (time.perf_counter() - started) / options.batch, result

    side, margin = options.size // STRIDE, options.margin // STRIDE
    images = options.images
    measures: dict[str, LayerStatistics] = {}
    grids = extract(side)
    shapes = {layer: (grid.shape[1], grid.shape[2], grid.shape[3]) for layer, grid in grids.items()}
    for layer, grid in grids.items():
        fitted = TokenMeans(grid.shape[1]).to(device)
        fitted.update(grid, token_groups(grid)["high_norm"])
        tokens = margin * grid.shape[2] // side
        measures[layer] = LayerStatistics(shapes[layer], tokens, fitted, images, {"noise": 0}, seed=0).to(device)
    cka = LinearCKA(shapes, images).to(device)

    def measure(whole: dict[str, torch.Tensor], cropped: dict[str, torch.Tensor], image: torch.Tensor) -> None:
        for layer, statistic in measures.items():
            statistic.whole(whole[layer], token_groups(whole[layer]), image, image)
            statistic.cropped(cropped[layer], token_groups(cropped[layer]))
        cka.update(whole)

    seconds: list[tuple[float, float]] = []
    for number in range(options.rounds + 1):
        image = torch.arange(number * options.batch, (number + 1) * options.batch, device=device)
        extraction, (whole, cropped) = timed(lambda: (extract(side), extract(side - 2 * margin)))
        work, _ = timed(partial(measure, whole, cropped, image))
        if number:  # the first round warms up
            seconds.append((extraction, work))
    extraction, work = (sum(column) / len(column) for column in zip(*seconds, strict=True))
    Console().print(
        f"{options.model}, {len(layers)} layers, {options.size} px whole and cropped, batch {options.batch}, {device}, "
        f"{name_of(dtype)}: extraction {extraction:.3f} s/image, statistics {work:.3f} s/image, share {work / extraction:.2f}"
    )


if __name__ == "__main__":
    main()
