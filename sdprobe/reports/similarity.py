"""`python -m sdprobe.reports similarity --image FILE --token 12,17`: how similar one token is to every other, in every layer.

The one report that runs a network: it looks at a picture of the reader's choice. ``--run RUN_FOLDER`` takes the network, its
noise level and its prompt from a run, and leaves the sheet in its folder.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import matplotlib.pyplot as plt
import torch
from matplotlib.backend_bases import FigureCanvasBase
from omegaconf import DictConfig, OmegaConf
from PIL import Image, UnidentifiedImageError

from sdprobe.backbones import FrozenSD
from sdprobe.reports.statistics import similarity_sheet
from sdprobe.tokens.groups import token_similarity
from sdprobe.utilities import expect
from sdprobe.utilities.errors import InputError
from sdprobe.utilities.io import write_figure
from sdprobe.utilities.pictures import check_size, square, upright


def main(arguments: Sequence[str] | None = None) -> None:
    """Draw the sheet."""
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        if options.run:
            parser.set_defaults(**defaults_of(options.run))
            options = parser.parse_args(arguments)  # what is typed goes before what the run says
        token = place(options.token, options.side)
        check_out(options.out)
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
    where = f"{options.image.name}, token {options.token} of {options.side}"
    figure = similarity_sheet(
        image.permute(1, 2, 0).numpy(),
        maps,
        token,
        options.side,
        f"{where}; {backbone.path}{weights}, timestep {options.timestep}",
    )
    write_figure(options.out, figure, dpi=120)
    plt.close(figure)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m sdprobe.reports similarity", description=__doc__)
    parser.add_argument("--image", type=Path, required=True)
    parser.add_argument("--token", required=True, metavar="ROW,COL")
    parser.add_argument("--side", type=int, default=32, help="tokens a side of the grid that ROW,COL refers to")
    parser.add_argument("--run", type=Path, help="run folder: its network, size, timestep, prompt and seed, unless given here")
    parser.add_argument(
        "--backbone", type=lambda path: {"path": path}, default="demo", help="preset, local diffusers folder or hub repository"
    )
    parser.add_argument("--block", default="all", help="as for train.py: a layer, a,list, a glob, stages, all")
    parser.add_argument("--timestep", type=int, default=50)
    parser.add_argument("--prompt", default="")
    parser.add_argument("--seed", type=int, default=0, help="of the noise")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1")
    parser.add_argument("--size", type=int, default=512, help="pixels a side")
    parser.add_argument("--raw", action="store_true", help="do not subtract the picture's mean token")
    parser.add_argument("--out", type=Path, default=Path("similarity.png"), help="default: similarity.png, in RUN if given")
    return parser


def defaults_of(folder: Path) -> dict[str, Any]:
    """Options as a run was started with; ``backbone`` holds arguments of :meth:`FrozenSD.from_pretrained`.

    Raises:
        InputError: no run folder.
    """
    stored = folder / ".hydra" / "config.yaml"
    if not stored.is_file():
        raise InputError(
            f"Expected --run to be a run folder with .hydra/config.yaml, but '{folder}' has none. "
            "Give the folder of one run, such as outputs/2026-01-31/12-00-00-000000."
        )
    config = cast(DictConfig, OmegaConf.load(stored))
    network = cast(dict[str, Any], OmegaConf.to_container(config.backbone, resolve=True))
    return {
        "backbone": {key: value for key, value in network.items() if key not in ("_target_", "device")},
        "size": config.images.size,
        "timestep": config.timestep,
        "prompt": config.prompt,
        "seed": config.seed,
        "out": folder / "similarity.png",
    }


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
        raise InputError(f"Expected --out to lie in a folder that exists, but '{out.parent}' does not. Make it first.")


def place(text: str, side: int) -> tuple[int, int]:
    """(row, col) from "row,col".

    Raises:
        InputError: anything else, a place outside the grid, or a grid without tokens.
    """
    expect.at_least("--side", side, 1, "Use the tokens a side of the grid you look at.")
    parts = text.split(",")
    if len(parts) != 2 or not all(part.strip().isdecimal() for part in parts) or any(int(part) >= side for part in parts):
        raise InputError(f"Expected --token to be row,col, each from 0 to {side - 1}, but got '{text}'. Use --token 12,17.")
    return int(parts[0]), int(parts[1])


def picture(path: Path, size: int) -> torch.Tensor:
    """(3, size, size) in [0, 1]: the centre square of a picture file.

    Raises:
        InputError: no such file, or no picture.
    """
    check_size(size)
    try:
        with Image.open(path) as file:
            return square(upright(file), size)
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError, ValueError) as error:
        raise InputError(f"Expected --image to be a picture, but {path} cannot be read ({error}). Check the path.") from error
