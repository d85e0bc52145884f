"""Position in untrained networks, by layer, beside position controls: ``python -m sdprobe.untrained``.

Every network has the blocks, the position embedding and the initialisation of a published one, and few channels (``--heads`` of
16). SD-1.5 is ``backbone=tiny``. Inputs are white noise of 8 × 8 tokens in place of latents, so that neither an image nor an
autoencoder tells position. Text states are zeros. The closed-form probe reads rows and columns, and chance is 1/8.
"""

import argparse
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import diffusers
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

import sdprobe
from sdprobe.backbones.architectures import preset_config
from sdprobe.backbones.capabilities import KINDS, UNET
from sdprobe.backbones.padding import set_padding
from sdprobe.backbones.published import transformers
from sdprobe.backbones.transformer import FrozenTransformer
from sdprobe.backbones.unet import Conditioning, FrozenUNet
from sdprobe.backbones.weights import random_network, random_unet
from sdprobe.utilities import expect
from sdprobe.utilities.errors import InputError

NAMES = ("sd15", "pixart_sigma", "dit_xl", "sd3", "flux_schnell", "lumina2", "sana")
CONTROLS = {"zero": "position=zero", "permuted": "position=permuted", "circular": "padding=circular"}
TIMESTEP, SIDE, TOKENS, DIMENSION = 261, 8, 16, 16
Grids = Callable[[Tensor], dict[str, Tensor]]


def narrow(name: str, heads: int) -> dict[str, Any]:
    """The configuration of a published transformer with ``heads`` heads of 16 channels, and as many blocks as it has."""
    entry, width = transformers()[name], heads * DIMENSION
    config = {**entry["config"], "num_attention_heads": heads, "attention_head_dim": DIMENSION}
    family = entry["class"].removesuffix("Transformer2DModel")
    text = width // 2
    more: dict[str, dict[str, Any]] = {
        "PixArt": {"cross_attention_dim": width, "caption_channels": text, "sample_size": 2 * SIDE},
        "SD3": {"caption_projection_dim": width, "joint_attention_dim": text, "pooled_projection_dim": text},
        "Flux": {"axes_dims_rope": (4, 6, 6), "joint_attention_dim": text, "pooled_projection_dim": text},
        "DiT": {"sample_size": 2 * SIDE},
        "Sana": {
            "cross_attention_dim": width, "caption_channels": text, "num_cross_attention_heads": heads,
            "cross_attention_head_dim": DIMENSION, "sample_size": SIDE,
        },
        "Lumina2": {
            "hidden_size": width, "num_attention_heads": heads, "num_kv_heads": heads, "axes_dim_rope": (4, 6, 6),
            "cap_feat_dim": text, "multiple_of": DIMENSION,
        },
    }  # fmt: skip
    config |= more[family]
    if family == "Lumina2":
        del config["attention_head_dim"]
    return config


@contextmanager
def padded(network: Any, mode: str) -> Iterator[None]:
    """Another padding inside the block."""
    set_padding(network, mode)
    try:
        yield
    finally:
        set_padding(network, "zeros")


def network(name: str, heads: int, seed: int) -> tuple[Grids, int, int, list[str], dict[str, AbstractContextManager[Any]]]:
    """An untrained network: latents → grids of its layers, channels and side of its latents, layers, and its controls."""
    if name == "sd15":
        unet = FrozenUNet(random_unet(preset_config("tiny"), seed, torch.float32))
        layers = list(unet.resolve(["down_1", "down_2", "mid", "up_0", "up_1"]))
        states = Conditioning(torch.zeros(1, TOKENS, unet.config.cross_attention_dim))
        grids: Grids = lambda noisy: unet(noisy, TIMESTEP, states, layers)  # noqa: E731
        # its coarsest grid has 8 × 8 tokens
        return grids, 4, 8 * SIDE, layers, {"stored": nullcontext(), "circular": padded(unet.network, "circular")}
    entry = transformers()[name]
    made = FrozenTransformer(random_network(getattr(diffusers, entry["class"]), narrow(name, heads), seed, torch.float32))
    layers = ["patch", *made.resolve("stages")]
    read = partial(_read, made, layers)
    kind = KINDS[entry["class"]]
    controls: dict[str, AbstractContextManager[Any]] = {"stored": nullcontext()}
    if kind.position != "none":
        controls |= {"zero": made.positioned("zero"), "permuted": made.positioned("permuted", seed)}
    if kind.padding:
        controls["circular"] = padded(made.network, "circular")
    return read, made.latent_channels, SIDE * made.patch, layers, controls


def _read(made: FrozenTransformer, layers: list[str], noisy: Tensor) -> dict[str, Tensor]:
    grids = made(noisy, TIMESTEP, made.without_text(TOKENS), layers)
    return {layer: grid.contiguous() for layer, grid in grids.items()}


def measured(name: str, heads: int, seed: int, images: int) -> dict[str, dict[str, float]]:
    """Control → layer → accuracy of rows and columns in 8 bins."""
    grids, channels, side, layers, controls = network(name, heads, seed)
    noisy = torch.randn(images, channels, side, side, generator=torch.Generator().manual_seed(seed))
    found = {}
    for control, changed in controls.items():
        with changed:
            parts = [grids(noisy[start : start + 40]) for start in range(0, images, 40)]
        joined = {layer: torch.cat([part[layer] for part in parts]) for layer in layers}
        result = sdprobe.position(joined)
        found[control] = {layer: result[layer].value for layer in layers}
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Print position accuracy in 8 bins by network and layer, as stored and with position controls."""
    parser = argparse.ArgumentParser(prog="python -m sdprobe.untrained", description=main.__doc__)
    parser.add_argument("--networks", nargs="+", choices=NAMES, default=list(NAMES))
    parser.add_argument("--seeds", type=int, default=3, help="networks of each kind")
    parser.add_argument("--images", type=int, default=160)
    parser.add_argument("--heads", type=int, default=4, help="of 16 channels each")
    options = parser.parse_args(arguments)
    try:
        table = _table(options.networks, options.seeds, options.images, options.heads)
    except InputError as error:
        parser.exit(1, f"{error}\n")
    Console(width=120).print(table)


def _table(networks: Sequence[str], seeds: int, images: int, heads: int) -> Table:
    for name, value, most in (("seeds", seeds, 1000), ("heads", heads, 1000), ("images", images, 10**6)):
        expect.count(name, value, 1, most)
    columns = ("network", "position embedding", "layer", "stored", *CONTROLS.values())
    table = Table(title="Untrained networks: position accuracy in 8 bins, chance .125", title_justify="left")
    for column in columns:
        table.add_column(column, justify="left" if column in columns[:3] else "right", no_wrap=True)
    for name in networks:
        every = [measured(name, heads, seed, images) for seed in range(seeds)]
        kind = KINDS[UNET if name == "sd15" else transformers()[name]["class"]]
        embedding = kind.position if kind.position != "none" else "none, zero padding"
        for layer in every[0]["stored"]:
            cells = [_cell([each[control][layer] for each in every if control in each]) for control in ("stored", *CONTROLS)]
            table.add_row(name, embedding, layer, *cells)
        table.add_section()
    return table


def _cell(values: Sequence[float]) -> str:
    """Mean and, of several networks, the range."""
    if not values:
        return ""
    mean = sum(values) / len(values)
    shown = f"{mean:.2f}"
    return f"{shown} ({min(values):.2f}–{max(values):.2f})" if len(values) > 1 else shown


if __name__ == "__main__":
    main()
