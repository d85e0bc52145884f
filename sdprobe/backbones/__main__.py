"""``python -m sdprobe.backbones sd15``: list the layers of a checkpoint, without its weights."""

import argparse
from collections.abc import Sequence

EXAMPLES = """\
examples:
  python -m sdprobe.backbones sd15                layers of Stable Diffusion 1.5; no weights are needed
  python -m sdprobe.backbones FOLDER --size 768   of a diffusers folder, with grids for images of 768 pixels
  python -m sdprobe.backbones sdxl --inside       with queries, keys and values inside attention
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Print order, names, published name, grid and channels of every layer of a checkpoint."""
    parser = argparse.ArgumentParser(
        prog="python -m sdprobe.backbones", description=main.__doc__, epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("model", help="preset (sd15, sdxl, tiny, ...) or local diffusers folder")
    parser.add_argument("--size", type=int, help="image side in pixels; default: the size the checkpoint was made for")
    parser.add_argument("--inside", action="store_true", help="also list the layers inside attention, which have no number")
    options = parser.parse_args(arguments)

    from rich.console import Console  # imports that take seconds; help does without them
    from rich.table import Table

    from sdprobe.backbones.architectures import meta_unet, preset_config
    from sdprobe.backbones.unet import FrozenUNet
    from sdprobe.utilities.errors import InputError

    try:
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


if __name__ == "__main__":
    main()
