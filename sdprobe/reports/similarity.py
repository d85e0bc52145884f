"""`python -m sdprobe.reports similarity --image FILE --token 12,17`: cosine of one token with all others, in every layer.

This report alone runs a network, on a picture that you choose. ``--run RUN_FOLDER`` takes network, image size, timestep, prompt
and seed from a run, and writes the figure into its folder.
"""

import argparse
import inspect
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.backend_bases import FigureCanvasBase

from sdprobe.backbones import FrozenSD
from sdprobe.reports.statistics import similarity_sheet
from sdprobe.reports.style import write
from sdprobe.tokens.groups import token_similarity
from sdprobe.utilities import expect
from sdprobe.utilities.errors import InputError
from sdprobe.utilities.foreign import shown
from sdprobe.utilities.io import parsing, read_yaml
from sdprobe.utilities.pictures import check_size, opened, square, upright

TIMESTEP = 50
# this machine may lack the device and the cache of the run
BACKBONE = inspect.signature(FrozenSD.from_pretrained).parameters.keys() - {"device", "cache_dir", "prompt_cache"}


def main(arguments: Sequence[str] | None = None) -> None:
    """Draw the figure."""
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        if options.run:
            parser.set_defaults(**defaults_of(options.run, typed=options.timestep))
            options = parser.parse_args(arguments)  # typed options override those of the run
        options.timestep = TIMESTEP if options.timestep is None else options.timestep
        token = position(options.token, options.side)
        out = options.out or (options.run or Path()) / file_name(options.image, token)
        check_out(out)
        image = picture(options.image, options.size)
        backbone = FrozenSD.from_pretrained(**options.backbone, device=options.device)
        block = layers_of(options.block)
        grids = backbone.activations(image[None], block, options.timestep, options.seed, options.prompt)
    except InputError as error:
        parser.exit(1, f"{error}\n")
    weights = "" if backbone.weights == "stored" else f" ({backbone.weights} weights)"
    maps = {
        layer: token_similarity(grid[0], token, options.side, not options.raw).cpu().numpy() for layer, grid in grids.items()
    }
    name = f"{options.image.name}, token {options.token} of a {options.side} × {options.side} grid"
    setting = f"{Path(backbone.path).name}{weights}, timestep {options.timestep}"
    write(out, similarity_sheet(image.permute(1, 2, 0).numpy(), maps, token, options.side, name, setting))
    sys.stdout.write(f"{out}\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m sdprobe.reports similarity", description=__doc__)
    parser.add_argument("--image", type=Path, required=True)
    parser.add_argument("--token", required=True, metavar="ROW,COL")
    parser.add_argument("--side", type=int, default=32, help="side, in tokens, of the grid that ROW,COL refers to")
    parser.add_argument(
        "--run", type=Path, help="run folder whose network, size, timestep, prompt and seed are used unless given here"
    )
    parser.add_argument(
        "--backbone", type=lambda path: {"path": path}, default="demo", help="preset, local diffusers folder or hub repository"
    )
    parser.add_argument("--block", default="all", help="as for train.py: a layer, a,list, a glob, stages, all")
    parser.add_argument("--timestep", type=int, help="default: 50")
    parser.add_argument("--prompt", default="")
    parser.add_argument("--seed", type=int, default=0, help="seed of the noise")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1")
    parser.add_argument("--size", type=int, default=512, help="image side in pixels")
    parser.add_argument("--raw", action="store_true", help="do not subtract the mean token of the picture")
    parser.add_argument(
        "--out", type=Path, help="default: similarity_IMAGE_ROW_COL.png, in the run folder if --run is given, else here"
    )
    return parser


def defaults_of(folder: Path, typed: int | None = None) -> dict[str, Any]:
    """Options from the configuration of a run; ``backbone`` has the arguments of :meth:`FrozenSD.from_pretrained`.

    Args:
        folder: of the run.
        typed: the timestep that was typed, None without one. It chooses one of several noise levels.

    Raises:
        InputError: the folder is not a run folder, its configuration refers to something else, or no noise level is chosen.
    """
    stored = folder / ".hydra" / "config.yaml"
    if not stored.is_file():
        raise InputError(
            f"Expected --run to be a run folder with .hydra/config.yaml, but '{folder}' has none. "
            "Give the folder of one run, such as outputs/2026-01-31/12-00-00-000000."
        )
    config = read_yaml(stored)
    with parsing(stored, AttributeError):
        network = {name: value for name, value in config["backbone"].items() if name in BACKBONE}
        drawn = {"size": config["images"]["size"], **{name: config[name] for name in ("timestep", "prompt", "seed")}}
    if isinstance(levels := drawn["timestep"], list):
        if typed is None:
            raise InputError(
                f"Expected --timestep for a run at several noise levels, but got none. Choose one of {shown(str(levels))}."
            )
        drawn["timestep"] = typed
    for name, value in (network | drawn).items():
        kind = (int,) if name in ("size", "timestep", "seed", "weights_seed") else (str, bool, type(None))
        if type(value) not in kind or "${" in str(value):  # it may come from someone else: nothing in it is resolved
            raise InputError(
                f"Expected {stored} to state {name}, but got '{shown(value)}'. Leave out --run, and type the options."
            )
    return {"backbone": network, **drawn}


def file_name(image: Path, token: tuple[int, int]) -> str:
    """Name of the figure: other pictures and other tokens have other names.

    >>> file_name(Path("photos/a bird.jpg"), (12, 17))
    'similarity_a_bird_12_17.png'
    """
    return f"similarity_{re.sub(r'[^A-Za-z0-9.-]+', '_', image.stem)}_{token[0]}_{token[1]}.png"


def layers_of(block: str) -> list[str]:
    """The items of `a,list` or `[a,list]`, the latter as train.py takes it.

    >>> layers_of("[conv_in, up_*]")
    ['conv_in', 'up_*']
    """
    inner = block[1:-1] if block.startswith("[") and block.endswith("]") else block
    return [name.strip() for name in inner.split(",")]


def check_out(out: Path) -> None:
    """Raises InputError unless matplotlib can write this file."""
    endings = sorted(FigureCanvasBase.get_supported_filetypes())
    if out.suffix[1:].lower() not in endings or out.is_dir():
        raise InputError(
            f"Expected --out to be a file that ends in .{', .'.join(endings)}, but got '{out}'. Use --out similarity.png."
        )
    if not out.parent.is_dir():
        raise InputError(f"Expected --out to be in an existing folder, but '{out.parent}' does not exist. Create it first.")


def position(text: str, side: int) -> tuple[int, int]:
    """(row, col) from "row,col".

    Raises:
        InputError: other text, a position outside the grid, or a grid without tokens.
    """
    expect.at_least("--side", side, 1, "Use the side of the layer's token grid.")
    parts = text.split(",")
    if len(parts) != 2 or not all(part.strip().isdecimal() for part in parts) or any(int(part) >= side for part in parts):
        raise InputError(f"Expected --token to be row,col, each from 0 to {side - 1}, but got '{text}'. Use --token 12,17.")
    return int(parts[0]), int(parts[1])


def picture(path: Path, size: int) -> torch.Tensor:
    """(3, size, size) in [0, 1]: the centre square of a picture file.

    Raises:
        InputError: the file does not exist or is not a picture.
    """
    check_size(size)
    try:
        with opened(path) as file:
            return square(upright(file), size)
    except Exception as error:  # PIL raises a dozen unrelated types
        raise InputError(f"Expected --image to be a picture, but {path} cannot be read ({error}). Check the path.") from error
