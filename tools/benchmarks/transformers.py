"""Extraction from diffusion transformers beside plain matrix products: ``python -m tools.benchmarks.transformers``.

Networks have the blocks of FLUX.1 and of SD3 with random weights, in the proportion of their kinds, but fewer and narrower ones
(``--blocks``, ``--heads``). In one run, passes that give all blocks take turns with matrix products of the same shapes as those
of the network's linear layers, with full passes, and with passes that end at half depth. A block costs more in FLUX's first
third, so half of its blocks are more than half of its operations; a second row ends where half of the operations are done.
Peak memory is that of a process of its own that extracts all blocks of pictures.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import diffusers
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from datamodules.latents import LatentCache, LatentStore
from datamodules.stream import ActivationStream, Pass
from sdprobe.backbones import FrozenSD
from sdprobe.backbones.loading import Components
from sdprobe.backbones.precision import choose_device, choose_dtype, name_of
from sdprobe.backbones.published import transformers
from sdprobe.backbones.transformer import FrozenTransformer
from sdprobe.backbones.transformer_folders import NoText
from sdprobe.backbones.weights import random_network
from sdprobe.runs.measurement import peak_memory
from tools.benchmarks.shaped import Pictures
from tools.benchmarks.timing import hardware, in_turns, operations, times_faster

SHAPES = {"flux_dev": "FLUX.1", "sd3": "SD3"}
TIMESTEP = 260
VAE = {
    "latent_channels": 16, "block_out_channels": (8, 8, 8, 8), "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4, "norm_num_groups": 4,
}  # fmt: skip


def shaped(name: str, heads: int, blocks: int, dtype: torch.dtype) -> FrozenTransformer:
    """A random network with ``blocks`` blocks in the proportion of a published one, and ``heads`` heads of its width."""
    entry = transformers()[name]
    config = {**entry["config"], "num_attention_heads": heads}
    if name == "flux_dev":  # a third of its blocks is double
        config |= {"num_layers": blocks // 3, "num_single_layers": blocks - blocks // 3}
    else:
        config |= {"num_layers": blocks, "caption_projection_dim": heads * config.get("attention_head_dim", 64)}
    return FrozenTransformer(random_network(getattr(diffusers, entry["class"]), config, 0, dtype))


def products(network: nn.Module, work: Callable[[], object]) -> Callable[[], None]:
    """Matrix products of the shapes of all linear layers that a pass goes through."""
    shapes: list[tuple[int, int, int]] = []

    def seen(layer: Any, inputs: tuple[Tensor, ...], _: object) -> None:
        shapes.append((inputs[0].numel() // layer.in_features, layer.in_features, layer.out_features))

    handles = [part.register_forward_hook(seen) for part in network.modules() if isinstance(part, nn.Linear)]
    work()
    for handle in handles:
        handle.remove()
    parameter = next(network.parameters())
    like = partial(torch.randn, device=parameter.device, dtype=parameter.dtype)
    left = {(rows, inner): like(rows, inner) for rows, inner, _ in shapes}
    right = {(inner, columns): like(columns, inner).t() for _, inner, columns in shapes}
    out = {(rows, columns): like(rows, columns) for rows, _, columns in shapes}

    def multiply() -> None:
        for rows, inner, columns in shapes:
            torch.mm(left[rows, inner], right[inner, columns], out=out[rows, columns])

    return multiply


def times(name: str, options: argparse.Namespace, device: torch.device, dtype: torch.dtype) -> list[list[str]]:
    """Rows of the table: what was timed, its share and the target."""
    made = shaped(name, options.heads, options.blocks, dtype).to(device)
    side = options.size // 8
    noisy = torch.randn(options.batch, made.latent_channels, side, side, device=device, dtype=dtype)
    text = made.without_text()
    every = made.resolve("block_*")

    def read(layers: Sequence[str]) -> Callable[[], Any]:
        return partial(made, noisy, TIMESTEP, text, layers)

    arguments = made.family.arguments(made.network, noisy, TIMESTEP, text.of_batch(options.batch))

    @torch.no_grad()
    def full() -> None:
        made.network(**arguments)

    counted = {layer: operations(read([layer])) for layer in every}
    whole = operations(full)
    half = every[len(every) // 2 - 1]
    costly = [layer for layer in every if counted[layer] <= whole / 2][-1]
    works: dict[str, Callable[[], Any]] = {
        "full": full, "all": read(every), "products": products(made.network, full), "half": read([half]),
        "costly": read([costly]),
    }  # fmt: skip
    counts = {"full": whole, "all": operations(read(every)), "products": operations(works["products"])}
    timed = in_turns(works, options.rounds)

    def ratio(slow: str, fast: str, scale: float = 1) -> list[str]:
        return [f"{scale * share:.2f}" for share in times_faster(timed[slow], timed[fast])]

    rate = counts["products"] / statistics.median(timed["products"].wall) / 1e12
    shape = SHAPES[name]
    rows = [
        [f"{shape}: all blocks, share of the rate of its own matrix products ({rate:.2g} TFLOP/s)",
         *ratio("products", "all", counts["all"] / counts["products"]), ""],
        [f"{shape}: all blocks are read, of a full pass", *ratio("all", "full"), ""],
        [f"{shape}: half of the blocks ({half}, {counted[half] / whole:.2f} of the operations), of a full pass",
         *ratio("half", "full"), "≤ 0.55"],
    ]  # fmt: skip
    if costly != half:
        done = f"{counted[costly] / whole:.2f} of the operations"
        rows.append([f"{shape}: half of the operations ({costly}, {done}), of a full pass", *ratio("costly", "full"), ""])
    return rows


def extract(name: str, images: int, options: argparse.Namespace) -> None:
    """Extract all blocks of pictures, keep nothing, and print the peak memory of this process in GiB."""
    device = choose_device()
    dtype = choose_dtype("auto", device)
    network = shaped(name, options.heads, options.blocks, dtype).network
    vae = random_network(diffusers.AutoencoderKL, VAE, 0, torch.float32)
    prompts = NoText(FrozenTransformer(network))
    sd = FrozenSD(Components(network, vae, prompts, torch.ones(0), euler=False, flow=True), name, device=device)
    pictures = Pictures(images, options.size)
    with tempfile.TemporaryDirectory() as cache:
        store = LatentStore(pictures, sd.encoder, LatentCache(cache), 0, options.batch, num_workers=0)
        store.prepare(range(images))
        for _ in ActivationStream(sd, store, Pass(sd.unet.resolve("block_*"), (TIMESTEP,), 0), options.batch)(range(images)):
            pass
    Console().print(f"{peak_memory(device) / 2**30:.4f}")


def peak(name: str, images: int, arguments: Sequence[str]) -> float:
    """Peak memory in GiB of :func:`extract` in a process of its own."""
    command = [sys.executable, "-m", "tools.benchmarks.transformers", *arguments, "--extract", name, "--images", str(images)]
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}  # live tensors, not memory that the allocator caches
    return float(subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout.split()[-1])


def main(arguments: Sequence[str] | None = None) -> None:
    """Print shares of the matrix-product rate, of full passes, and peak memory with N and 4 N images."""
    parser = argparse.ArgumentParser(prog="python -m tools.benchmarks.transformers", description=main.__doc__)
    parser.add_argument("--networks", nargs="+", choices=list(SHAPES), default=list(SHAPES))
    parser.add_argument("--heads", type=int, default=8, help="of 128 channels for FLUX, and of 64 for SD3")
    parser.add_argument("--blocks", type=int, default=6)
    parser.add_argument("--size", type=int, default=512, help="image side in pixels")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=4, help="N of the rows on memory")
    parser.add_argument("--extract", choices=list(SHAPES), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.extract:
        extract(options.extract, options.images, options)
        return
    device = choose_device()
    dtype = choose_dtype("auto", device)
    size = f"{options.heads} heads, {options.blocks} blocks, {options.size} px, batch {options.batch}"
    table = Table(title=f"{size}, {device}, {name_of(dtype)}; {hardware()}", title_justify="left")
    for column in ("work", "measured", "of processor time", "target"):
        table.add_column(column, justify="left" if column == "work" else "right")
    given = [word for word in (sys.argv[1:] if arguments is None else arguments) if word]
    for name in options.networks:
        shape = SHAPES[name]
        for row in times(name, options, device, dtype):
            table.add_row(*row)
        few, many = (peak(name, count, given) for count in (options.images, 4 * options.images))
        work = f"{shape}: peak memory with {4 * options.images} images, of that with {options.images} ({few:.2f} GiB)"
        table.add_row(work, f"{many / few:.2f}", "", "≤ 1.05")
    Console(width=160).print(table)


if __name__ == "__main__":
    main()
