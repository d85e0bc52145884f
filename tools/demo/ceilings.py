"""How much a checkpoint's prediction uses each of its stages: `python -m tools.demo.ceilings DIR`.

The ceiling of a layer is the change of the prediction loss when the layer's grid is replaced by its spatial mean while the
network runs. It bounds what any edit of position in that layer can do: where it is zero, the loss does not see the layer.
"""

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from jaxtyping import Float
from torch.utils.data import DataLoader

from datamodules.images.scenes import Scenes
from sdprobe.backbones import FrozenSD
from sdprobe.metrics.intervals import mean_interval, ratio_pseudovalues
from sdprobe.tokens.geometry import spatial_mean
from sdprobe.utilities import progress
from sdprobe.utilities.errors import InputError

SEED = 40001  # scenes that no part of the demo model was trained on
TIMESTEPS = (50, 261, 600, 900)
STAGE = re.compile(r"mid|(down|up)_\d+")
BATCH = 16

Errors = Float[np.ndarray, "timesteps edits pictures"]  # squared error of the prediction, averaged over its values


@torch.no_grad()
def errors(
    pipe: StableDiffusionPipeline, size: int, count: int, layers: Sequence[str], timesteps: Sequence[int] = TIMESTEPS,
    prompt: str = "", seed: int = SEED,
) -> Errors:  # fmt: skip
    """Squared prediction errors of a checkpoint on scenes, each picture with its own fixed noise.

    Args:
        pipe: the checkpoint.
        size: side of the pictures, in pixels.
        count: number of pictures.
        layers: names of layers whose grids are replaced by their spatial means, one at a time.
        timesteps: noise levels.
        prompt: conditioning text of every picture.
        seed: seed of the scenes.

    Returns:
        (timesteps, 1 + layers, pictures): first the unedited network, then every layer in turn.
    """
    sd = FrozenSD.from_pipeline(pipe)
    scenes = Scenes(size, count, seed)
    found = np.zeros((len(timesteps), 1 + len(layers), count))
    loader = DataLoader(scenes, batch_size=BATCH)
    for number, items in enumerate(progress.track(list(loader), f"predict at {size} px")):
        latents, chosen = sd.encoder(items["image"].to(sd.device), items["id"]), slice(number * BATCH, (number + 1) * BATCH)
        for row, timestep in enumerate(timesteps):
            target = sd.target(latents, items["id"], timestep, 0)
            outputs: dict[str, Any] = {}
            for column, edits in enumerate(({}, *({layer: spatial_mean} for layer in layers))):
                grids = sd.grids(latents, items["id"], ["conv_out"], timestep, 0, prompt, edits=edits, outputs=outputs)
                found[row, column, chosen] = (grids["conv_out"].float() - target).square().mean((1, 2, 3)).cpu().numpy()
    return found


def stages(pipe: StableDiffusionPipeline) -> list[str]:
    """Names of the checkpoint's stages, in execution order."""
    return [name for name in FrozenSD.from_pipeline(pipe).unet.layers if STAGE.fullmatch(name)]


def change(edited: Float[np.ndarray, "*k pictures"], plain: Float[np.ndarray, "*k pictures"]) -> Float[np.ndarray, "3 *k"]:
    """(Mean change, the ends of its 95 % interval over pictures), in percent of the mean of `plain`."""
    values = ratio_pseudovalues(np.moveaxis(edited - plain, -1, 0), np.moveaxis(plain, -1, 0))
    return 100 * np.stack([values.mean(0), *mean_interval(values)])


def table(names: Sequence[str], changes: Float[np.ndarray, "3 timesteps names"], timesteps: Sequence[int]) -> str:
    """A Markdown table: one row per name, one column per noise level."""
    lines = ["| | " + " | ".join(f"t = {timestep}" for timestep in timesteps) + " |", "|---" * (len(timesteps) + 1) + "|"]
    for number, name in enumerate(names):
        cells = [f"{mean:+.2f} [{low:+.2f}, {high:+.2f}]" for mean, low, high in changes[:, :, number].T]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the loss of a checkpoint at four noise levels and the ceiling of every stage, in percent of that loss."""
    parser = argparse.ArgumentParser(prog="python -m tools.demo.ceilings", description=main.__doc__)
    parser.add_argument("folder", type=Path, help="a diffusers folder")
    parser.add_argument("--against", type=Path, help="another one with the same autoencoder; prints the change of the loss")
    parser.add_argument("--sizes", type=int, nargs="+", default=[256, 512], help="pixels; latents have an eighth")
    parser.add_argument("--count", type=int, nargs="+", default=[192, 48], help="pictures, of each size or of all sizes")
    parser.add_argument("--layers", nargs="*", help="names of layers instead of all stages")
    parser.add_argument("--prompt", default="")
    options = parser.parse_args(arguments)
    for folder in filter(None, (options.folder, options.against)):
        if not (folder / "unet").is_dir():
            parser.error(f"Expected a Stable Diffusion folder in diffusers' format, but {folder} has no unet.")
    pipe, other = (
        folder and StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)
        for folder in (options.folder, options.against)
    )
    layers = stages(pipe) if options.layers is None else options.layers
    counts = options.count * len(options.sizes) if len(options.count) == 1 else options.count
    if len(counts) != len(options.sizes):
        parser.error(f"Expected a --count, or one for each of the {len(options.sizes)} sizes, but got {len(counts)}.")
    for size, count in zip(options.sizes, counts, strict=True):
        found = errors(pipe, size, count, layers, prompt=options.prompt)
        plain = found[:, :1]
        losses = ", ".join(f"{loss:.4f}" for loss in plain.mean((1, 2)))
        text = [f"{size} px (latents of {size // pipe.vae_scale_factor}), loss {losses}; {count} scenes:"]
        if other:
            before = errors(other, size, count, (), prompt=options.prompt)
            text.append(table([f"loss against {options.against}"], change(plain, before), TIMESTEPS))
        if layers:
            text.append(table(layers, change(found[:, 1:], np.broadcast_to(plain, found[:, 1:].shape)), TIMESTEPS))
        sys.stdout.write("\n\n".join(text) + "\n\n")
        sys.stdout.flush()


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        sys.exit(str(error))
