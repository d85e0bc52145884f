"""Which tokens of a grid a probe sees: all, or one at random in each cell of an 8×8 partition. Data path step 7."""

from collections.abc import Sequence

import torch
from jaxtyping import Int
from torch import Tensor

from tokens.batch import GridBatch, TokenBatch
from tokens.geometry import bin_starts, flatten, positions
from tokens.keyed import keyed_generator
from tokens.keys import base_of

CELLS = 8


def stratified(height: int, width: int, generator: torch.Generator) -> Int[Tensor, " 64"]:
    """Row-major indices of 64 tokens, one drawn at random in each cell of an 8×8 partition of the grid
    (:func:`tokens.geometry.bins`, the bins that binned accuracy counts in).

    Grids smaller than 8 per axis have cells of a single token, some of them repeated, so that every layer gives as many
    tokens as any other.
    """
    row, col = (_drawn(side, generator) for side in (height, width))
    return (row * width + col.T).flatten()


def _drawn(side: int, generator: torch.Generator) -> Int[Tensor, "8 8"]:
    """For each of 8 × 8 cells a random index inside the cell's span along one axis; spans differ along dimension 0."""
    if side < CELLS:
        return (torch.arange(CELLS) * side // CELLS)[:, None].expand(CELLS, CELLS)
    edges = bin_starts(side, CELLS)
    starts, spans = edges[:-1], edges.diff()[:, None]
    return starts[:, None] + (torch.rand(CELLS, CELLS, generator=generator) * spans).long()


def draw_tokens(batch: GridBatch, names: Sequence[str], seed: int) -> list[TokenBatch]:
    """One TokenBatch per image with 64 stratified tokens of every layer; the draw is keyed by (seed, name, layer)."""
    return [_picked(batch, i, _draw_of(batch, name, seed)) for i, name in enumerate(names)]


def all_tokens(batch: GridBatch) -> list[TokenBatch]:
    """One TokenBatch per image with every token of every layer."""
    return [_picked(batch, i, None) for i in range(len(batch.image))]


def flattened(batch: GridBatch) -> TokenBatch:
    """Every token of every layer of all images, image after image in row-major order."""
    sides = {layer: grid.shape[-2:] for layer, grid in batch.grids.items()}
    images = len(batch.image)
    return TokenBatch(
        tokens={layer: flatten(grid).flatten(0, 1) for layer, grid in batch.grids.items()},
        positions={layer: positions(side[0], side[1], batch.image.device).repeat(images, 1) for layer, side in sides.items()},
        masks={layer: {name: mask.flatten() for name, mask in groups.items()} for layer, groups in batch.masks.items()},
        photo={layer: batch.photo.repeat_interleave(side[0] * side[1]) for layer, side in sides.items()},
    )


def _draw_of(batch: GridBatch, name: str, seed: int) -> dict[str, Tensor]:
    return {
        layer: stratified(grid.shape[-2], grid.shape[-1], keyed_generator("tokens", seed, name, base_of(layer))).to(grid.device)
        for layer, grid in batch.grids.items()
    }


def _picked(batch: GridBatch, image: int, index: dict[str, Tensor] | None) -> TokenBatch:
    """Tokens of one image, copied out of the batch so that nothing else stays alive with them."""
    tokens, where, masks, photo = {}, {}, {}, {}
    for layer, grid in batch.grids.items():
        pick = index[layer] if index is not None else torch.arange(grid.shape[-2] * grid.shape[-1], device=grid.device)
        tokens[layer] = flatten(grid[image : image + 1])[0][pick]
        where[layer] = positions(grid.shape[-2], grid.shape[-1], grid.device)[pick]
        masks[layer] = {group: mask[image].flatten()[pick] for group, mask in batch.masks[layer].items()}
        photo[layer] = batch.photo[image].expand(len(pick))
    return TokenBatch(tokens, where, masks, photo)
