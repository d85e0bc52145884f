"""How much a checkpoint's prediction uses each of its stages: `python -m tools.demo.ceilings DIR`.

The ceiling of a layer is the change of the prediction loss when the layer's grid is replaced by its spatial mean while the
network runs. It bounds what any edit of position in that layer can do: where it is zero, the loss does not see the layer.
"""

import argparse
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.data import DataLoader

from datamodules.images.scenes import Scenes
from sdprobe.backbones import FrozenSD
from sdprobe.metrics.intervals import mean_interval, ratio_pseudovalues
from sdprobe.utilities import progress

SEED = 40001  # scenes that no part of the demo model was trained on
TIMESTEPS = (50, 261, 600, 900)
STAGE = re.compile(r"mid|(down|up)_\d+")
BATCH = 16

Errors = Float[np.ndarray, "timesteps edits pictures"]  # squared error of the prediction, averaged over its values


@contextmanager
def flattened(module: nn.Module) -> Iterator[None]:
    """Inside the block, every channel of the module's output is replaced by its mean over the grid.

    Args:
        module: one whose output is a tensor (B, C, h, w), or a tuple or an object of diffusers that begins with one.

    Yields:
        nothing.
    """

    def hook(module: nn.Module, inputs: Any, output: Any) -> Any:
        grid = output[0] if not isinstance(output, Tensor) else output
        mean = grid.mean((-2, -1), keepdim=True).expand_as(grid).clone(memory_format=torch.preserve_format)
        if isinstance(output, Tensor):
            return mean
        if isinstance(output, tuple):
            return mean, *output[1:]
        return type(output)(sample=mean)

    handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def target(
    kind: str, alpha: float, latents: Float[Tensor, "b c h w"], noisy: Float[Tensor, "b c h w"]
) -> Float[Tensor, "b c h w"]:
    """What a checkpoint is trained to predict, for noisy = √alpha · latents + √(1 − alpha) · noise.

    Args:
        kind: `prediction_type` of its scheduler: `epsilon`, `v_prediction` or `sample`.
        alpha: of the noise level.
        latents: clean latents.
        noisy: noisy latents.

    Returns:
        noise, velocity √alpha · noise − √(1 − alpha) · latents, or clean latents.
    """
    if kind == "sample":
        return latents
    noise = (noisy - alpha**0.5 * latents) / (1 - alpha) ** 0.5
    return noise if kind == "epsilon" else alpha**0.5 * noise - (1 - alpha) ** 0.5 * latents


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
    kind, network = pipe.scheduler.config.prediction_type, sd.unet.network
    scenes = Scenes(size, count, seed)
    conditioning = sd.prompts(prompt, sd.device, sd.dtype)
    found = np.zeros((len(timesteps), 1 + len(layers), count))
    loader = DataLoader(scenes, batch_size=BATCH)
    for number, items in enumerate(progress.track(list(loader), f"predict at {size} px")):
        latents, chosen = sd.encoder(items["image"].to(sd.device), items["id"]), slice(number * BATCH, (number + 1) * BATCH)
        for row, timestep in enumerate(timesteps):
            noisy = sd.noise(latents, timestep, items["id"])
            aim = target(kind, sd.noise.alphas_cumprod[timestep].item(), latents, noisy)
            for column, layer in enumerate((None, *layers)):
                edit = flattened(network.get_submodule(sd.unet.layers[layer].path)) if layer else nullcontext()
                with edit:
                    states = conditioning.states.expand(len(noisy), -1, -1)
                    predicted = network(noisy.to(sd.dtype), timestep, states).sample.float()
                found[row, column, chosen] = (predicted - aim).square().mean((1, 2, 3)).cpu().numpy()
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
    parser.add_argument("--count", type=int, default=48, help="pictures per size")
    parser.add_argument("--layers", nargs="*", help="names of layers instead of all stages")
    parser.add_argument("--prompt", default="")
    options = parser.parse_args(arguments)
    pipe, other = (
        folder and StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)
        for folder in (options.folder, options.against)
    )
    layers = stages(pipe) if options.layers is None else options.layers
    for size in options.sizes:
        found = errors(pipe, size, options.count, layers, prompt=options.prompt)
        plain = found[:, :1]
        losses = ", ".join(f"{loss:.4f}" for loss in plain.mean((1, 2)))
        text = [f"{size} px (latents of {size // pipe.vae_scale_factor}), loss {losses}; {options.count} scenes:"]
        if other:
            before = errors(other, size, options.count, (), prompt=options.prompt)
            text.append(table([f"loss against {options.against}"], change(plain, before), TIMESTEPS))
        if layers:
            text.append(table(layers, change(found[:, 1:], np.broadcast_to(plain, found[:, 1:].shape)), TIMESTEPS))
        sys.stdout.write("\n\n".join(text) + "\n\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
