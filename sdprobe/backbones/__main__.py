"""``python -m sdprobe.backbones sd15``: list the layers of a checkpoint, without its weights."""

import argparse
from collections.abc import Sequence
from typing import Any

EXAMPLES = """\
examples:
  python -m sdprobe.backbones sd15                layers of Stable Diffusion 1.5; no weights are needed
  python -m sdprobe.backbones FOLDER --size 768   of a diffusers folder, with grids for images of 768 pixels
  python -m sdprobe.backbones sdxl --inside       with queries, keys and values inside attention
  python -m sdprobe.backbones flux_dev            blocks of a diffusion transformer, its memory and its licence
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Print order, names, published name, grid and channels of every layer of a checkpoint."""
    parser = argparse.ArgumentParser(
        prog="python -m sdprobe.backbones", description=main.__doc__, epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("model", help="preset (sd15, sdxl, tiny, flux_dev, sd3, pixart_alpha, ...) or local diffusers folder")
    parser.add_argument("--size", type=int, help="image side in pixels; default: the size the checkpoint was made for")
    parser.add_argument("--inside", action="store_true", help="also list the layers inside attention, which have no number")
    options = parser.parse_args(arguments)

    from rich.console import Console  # imports that take seconds; help does without them
    from rich.table import Table

    from sdprobe.backbones.architectures import is_transformer, meta_unet, preset_config
    from sdprobe.backbones.unet import FrozenUNet
    from sdprobe.utilities.errors import InputError

    try:
        if is_transformer(options.model):
            _print_transformer(options.model, options.size, options.inside)
            return
        unet = FrozenUNet(meta_unet(preset_config(options.model)))
        side = (options.size or unet.config.sample_size * 8) // 8
        shapes = unet.shapes((side, side), tuple(unet.table if options.inside else unet.layers))
    except InputError as error:
        parser.exit(1, f"{error}\n")
    numbers = {name: str(number) for number, name in enumerate(unet.layers)}
    count = f"{len(numbers)} layers" + f", {len(shapes) - len(numbers)} inside attention" * options.inside
    table = Table(title=f"{options.model} at {side * 8} px: {count}", title_justify="left")
    for column, justify in (("#", "right"), ("block=", "left"), ("also", "left"), ("diffusers", "left")):
        table.add_column(column, justify=justify, no_wrap=True)  # type: ignore[arg-type]
    table.add_column("grid", justify="right", no_wrap=True)
    table.add_column("channels", justify="right", no_wrap=True)
    for name, (channels, height, width) in shapes.items():
        layer = unet.table[name]
        table.add_row(numbers.get(name, ""), name, layer.alias or "", layer.published, f"{height}×{width}", str(channels))
    Console(width=155 if options.inside else 110).print(table)


def _print_transformer(model: str, size: int | None, inside: bool) -> None:
    """Print layers, grids and channels of a diffusion transformer, and what a user decides by: memory, licence, text."""
    from rich.console import Console
    from rich.table import Table

    from sdprobe.backbones import positions
    from sdprobe.backbones.architectures import meta_transformer
    from sdprobe.backbones.published import transformers
    from sdprobe.backbones.transformer import FrozenTransformer, other_name, stages
    from sdprobe.utilities import expect

    network = FrozenTransformer(meta_transformer(model))
    cell = network.pixels_per_cell
    side = network.sample_size * cell if size is None else size
    expect.multiple("size", side, cell * network.patch)
    shapes = network.shapes((side // cell, side // cell), tuple(network.table if inside else network.layers))
    numbers = {name: str(number) for number, name in enumerate(network.layers)}
    count = f"{len(numbers)} layers" + f", {len(shapes) - len(numbers)} inputs of attention" * inside
    table = Table(title=f"{model} at {side} px: {count}", title_justify="left")
    columns = [("#", "right"), ("block=", "left"), ("diffusers, sdhelper", "left"), ("grid", "right"), ("channels", "right")]
    others = {name: other_name(network, name) for name in shapes}
    for column, justify in columns + [("DiTF", "left")] * any(others.values()):
        table.add_column(column, justify=justify, no_wrap=True)  # type: ignore[arg-type]
    for name, (channels, height, width) in shapes.items():
        row = [numbers.get(name, ""), name, network.table[name].published, f"{height}×{width}", str(channels)]
        table.add_row(*row, *([others[name]] if any(others.values()) else []))
    known: dict[str, Any] = transformers().get(model, {})
    scale, count_name, bytes_name = (1e9, "billion", "GB") if network.stored >= 1e8 else (1e6, "million", "MB")
    many = network.stored / scale
    kind = positions.kind_of(network.network, network.family)
    lines = {
        "stages": ", ".join(stages(network.table)),
        "weights": f"{many:.2f} {count_name} numbers: {2 * many:.1f} {bytes_name} in bf16, {4 * many:.1f} {bytes_name} in fp32",
        "noise": "rectified flow, timestep = 1000 σ" if network.family.flow else "DDPM, integer timesteps",
        "position": {"added": "a table added to the tokens", "rotary": "rotary", "none": "none but the border"}[kind],
        "text": "; ".join(known.get("text", ())),
        "licence": known.get("licence", ""),
        "repository": known.get("repository", ""),
        "source": known.get("source", ""),
    }
    console = Console(width=110)
    console.print(table)
    for name, line in lines.items():
        if line:
            console.print(f"{name}: {line}", markup=False, highlight=False)


if __name__ == "__main__":
    main()
