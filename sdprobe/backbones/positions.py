"""Position embeddings of diffusion transformers: as stored, without position, permuted or shifted. Data path step 4.

A transformer without convolutions treats its tokens as a set, except for explicit position embeddings. A table of sines and
cosines that is added to the tokens (PixArt, SD3, DiT) is itself read as position, also from a network with random weights. The
controls are ``zero`` and ``permuted``. Rotary embeddings (FLUX, Lumina2) turn queries and keys by the difference of two
positions, and add nothing to a token.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from sdprobe.backbones.capabilities import KINDS, check_position
from sdprobe.backbones.families import Family
from sdprobe.utilities import expect, settings
from sdprobe.utilities.rng import keyed_generator

MODES = settings.POSITIONS


def kind_of(network: nn.Module, family: Family) -> str:
    """``added``, ``rotary`` or ``none``. Sana has a table for images of 2048 and 4096 pixels only."""
    if family.position == "none" and getattr(network.get_submodule(family.patch), "pos_embed", None) is not None:
        return "added"
    return family.position


def check(mode: str, network: nn.Module, family: Family) -> None:
    """Raises InputError unless the mode exists, and the network has position embeddings to change."""
    expect.one_of("position", mode, MODES)
    check_position(replace(KINDS[family.network], position=kind_of(network, family)), mode)


def places(mode: str, grid: tuple[int, int], seed: int) -> Int[Tensor, "_n 2"]:
    """Row and column whose embedding each token gets, tokens in row-major order.

    ``zero`` gives all tokens the first place. ``permuted`` exchanges places at random, with the same permutation for all images
    and a key of seed and grid. ``shifted`` moves all places by half the grid, down and right, beyond its border.

    >>> places("shifted", (2, 2), 0).tolist()
    [[1, 1], [1, 2], [2, 1], [2, 2]]
    """
    height, width = grid
    found = torch.cartesian_prod(torch.arange(height), torch.arange(width)).view(-1, 2)
    if mode == "zero":
        return torch.zeros_like(found)
    if mode == "permuted":
        return found[torch.randperm(len(found), generator=keyed_generator("permuted positions", seed, height, width))]
    return found + torch.tensor([height // 2, width // 2]) if mode == "shifted" else found


@contextmanager
def changed(
    network: Any, family: Family, mode: str, grid: tuple[int, int], seed: int, arguments: dict[str, Any]
) -> Iterator[None]:
    """Other position embeddings within the block; ``arguments`` of the call change where they hold positions (FLUX).

    A table that is added is rolled by ``shifted`` like a torus, so that each embedding occurs once. Rotary positions go beyond
    the border instead, where text keeps its own.
    """
    if mode == "stored":
        yield
        return
    claimed = places(mode, grid, seed)
    if "img_ids" in arguments:
        ids = arguments["img_ids"]
        arguments["img_ids"] = torch.cat([ids[:, :1], claimed.to(ids.device, ids.dtype)], 1)
        yield
        return
    patch = network.get_submodule(family.patch)
    if kind_of(network, family) == "added":
        rows, columns = claimed[:, 0] % grid[0], claimed[:, 1] % grid[1]
        handles = _other_table(patch, None if mode == "zero" else rows * grid[1] + columns)
    else:
        handles = [network.rope_embedder.register_forward_hook(lambda rope, _, output: _other_angles(rope, output, claimed))]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _other_table(patch: Any, order: Tensor | None) -> list[Any]:
    """Hooks that add the embeddings in another order to the tokens of diffusers' ``PatchEmbed``, or none at all."""
    projected: list[Tensor] = []
    measuring = False

    def project(_module: nn.Module, _inputs: Any, output: Tensor) -> Tensor | None:
        if measuring:
            return torch.zeros_like(output, dtype=torch.float32)
        projected.append(output)
        return None

    def replace(module: Any, inputs: Any, output: Tensor) -> Tensor:
        nonlocal measuring
        tokens = projected.pop().flatten(2).transpose(1, 2)
        if order is None:
            return tokens
        measuring = True
        try:
            table: Float[Tensor, "1 n c"] = module.forward(inputs[0][:1])  # of tokens that are zero, for this size
        finally:
            measuring = False
        return (tokens + table[:, order.to(table.device)]).to(tokens.dtype)

    return [patch.proj.register_forward_hook(project), patch.register_forward_hook(replace)]


def _other_angles(rope: Any, output: tuple[Any, ...], claimed: Tensor) -> tuple[Any, ...]:
    """The output of Lumina2's ``rope_embedder`` with the angles of other places for the image's tokens."""
    tokens, text, image, joint, lengths, totals = output
    ids = torch.zeros(*image.shape[:2], 3, dtype=torch.int32, device=image.device)
    ids[..., 0] = torch.tensor(lengths, device=image.device)[:, None]
    ids[..., 1:] = claimed.to(ids)
    image, joint = rope._get_freqs_cis(ids).to(image.dtype), joint.clone()
    for number, length in enumerate(lengths):
        joint[number, length : length + len(claimed)] = image[number]
    return tokens, text, image, joint, lengths, totals
