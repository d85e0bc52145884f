"""From whole grids to batches of tokens: which tokens are drawn, how they are mixed, what each process contributes.

Data path step 7.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import accumulate, chain, repeat
from typing import TypeVar

import torch
from jaxtyping import Int
from torch import Tensor

from sdprobe.tokens.batch import GridBatch, TokenBatch
from sdprobe.tokens.geometry import bin_starts, flatten, positions
from sdprobe.tokens.keys import base_of
from sdprobe.utilities.rng import keyed_generator

CELLS = 8
Batch = TypeVar("Batch")


def mixing_buffer(pieces: Iterable[TokenBatch], images: int, size: int, *key: object) -> Iterator[TokenBatch]:
    """Batches of ``size`` tokens per layer, mixed over blocks of ``images`` images.

    Each layer of a block is permuted by a generator keyed by (key, layer, block), so a layer's batches do not depend on
    which other layers are asked for. Tokens that do not fill a batch move to the next block; the last batch may be
    smaller. Layers with fewer tokens drop out of later steps of a block.

    Args:
        pieces: one TokenBatch per image; those of other processes without activations. Batches are then shared, too.
        images: images per block; bounds the memory.
        size: tokens per batch and layer.
        key: seed and epoch, for example.
    """
    rest: list[TokenBatch] = []
    for number, (block, last) in enumerate(_blocks(pieces, images)):
        pool = concatenate([*rest, *block])
        order = {
            layer: torch.randperm(len(where), generator=keyed_generator("mixing", *key, base_of(layer), number)).to(
                pool.here[layer].device if pool.here else where.device
            )
            for layer, where in pool.positions.items()
        }
        steps = {layer: len(index) / size if last else len(index) // size for layer, index in order.items()}
        step = 0
        while any(step < count for count in steps.values()):
            now = {layer: index[step * size : (step + 1) * size] for layer, index in order.items() if step < steps[layer]}
            yield select(pool, now)
            step += 1
        rest = [select(pool, {layer: index[len(index) // size * size :] for layer, index in order.items()})]


def batches_per_pass(pieces: int, counts: Iterable[int], images: int, size: int) -> int:
    """Batches that one pass of :func:`mixing_buffer` makes of ``pieces`` images with ``counts`` tokens in each layer.

    >>> batches_per_pass(pieces=3, counts=[64, 4096], images=2, size=512)
    24
    """
    rest, total = dict.fromkeys(counts, 0), 0
    for start in range(0, pieces, images):
        block = min(images, pieces - start)
        last = start + block == pieces
        pool = {count: left + count * block for count, left in rest.items()}
        total += max(-(-tokens // size) if last else tokens // size for tokens in pool.values())
        rest = {count: tokens % size for count, tokens in pool.items()}
    return total


def select(batch: TokenBatch, index: dict[str, Tensor]) -> TokenBatch:
    """The tokens of some layers at some indices."""
    here, own = {}, index
    if batch.here:
        found = {layer: _found(batch.here[layer], len(batch.positions[layer]), pick) for layer, pick in index.items()}
        here = {layer: place for layer, (place, _) in found.items()}
        own = {layer: pick for layer, (_, pick) in found.items()}
    return TokenBatch(
        tokens={layer: batch.tokens[layer][pick] for layer, pick in own.items()},
        positions={layer: batch.positions[layer][pick] for layer, pick in index.items()},
        masks={layer: {group: mask[pick] for group, mask in batch.masks[layer].items()} for layer, pick in own.items()},
        photo={layer: batch.photo[layer][pick] for layer, pick in index.items()},
        here=here,
    )


def _found(here: Int[Tensor, " m"], count: int, pick: Int[Tensor, " k"]) -> tuple[Int[Tensor, " f"], Int[Tensor, " f"]]:
    """Which of the picked tokens are here, and where."""
    where = torch.full((count,), -1, dtype=torch.long, device=here.device)
    where[here] = torch.arange(len(here), device=here.device)
    place = (where[pick] >= 0).nonzero()[:, 0]
    return place, where[pick][place]


def concatenate(pieces: Sequence[TokenBatch]) -> TokenBatch:
    """All tokens of several batches with the same layers, in order."""

    def joined(of: Callable[[TokenBatch], dict[str, Tensor]]) -> dict[str, Tensor]:
        return {layer: torch.cat([of(piece)[layer] for piece in pieces]) for layer in of(pieces[0])}

    masks: dict[str, dict[str, Tensor]] = {}
    for layer, groups in pieces[0].masks.items():
        masks[layer] = {group: torch.cat([piece.masks[layer][group] for piece in pieces]) for group in groups}
    return TokenBatch(
        joined(lambda p: p.tokens), joined(lambda p: p.positions), masks, joined(lambda p: p.photo), _joined_here(pieces)
    )


def _joined_here(pieces: Sequence[TokenBatch]) -> dict[str, Tensor]:
    """Which tokens of several batches are here, counted through."""
    here: dict[str, Tensor] = {}
    for layer in pieces[0].here:
        ends = list(accumulate((len(piece.positions[layer]) for piece in pieces), initial=0))
        here[layer] = torch.cat([piece.here[layer] + start for piece, start in zip(pieces, ends, strict=False)])
    return here


def _blocks(pieces: Iterable[TokenBatch], images: int) -> Iterator[tuple[list[TokenBatch], bool]]:
    """Lists of ``images`` pieces, each with whether it is the last; looks one piece ahead."""
    block: list[TokenBatch] = []
    for piece in pieces:
        if len(block) == images:
            yield block, False
            block = []
        block.append(piece)
    if block:
        yield block, True


def stratified(height: int, width: int, generator: torch.Generator) -> Int[Tensor, " 64"]:
    """Row-major indices of 64 tokens, one drawn at random in each cell of an 8×8 partition of the grid
    (:func:`sdprobe.tokens.geometry.bins`, the bins that binned accuracy counts in).

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


def placeholder(
    shapes: dict[str, tuple[int, int, int]], draw: tuple[int, str] | None, photo: int, device: torch.device, dtype: torch.dtype
) -> TokenBatch:
    """The tokens of an image that another process computes: where they are, without activations.

    Args:
        shapes: layer → (C, h, w).
        draw: seed and name of the image, whose draw is :func:`~datamodules.mixing.draw_tokens`'s; None for all tokens.
        photo: what the image's tokens are labelled with.
        device, dtype: of activations.
    """
    where: dict[str, Tensor] = {}
    for layer, (_, height, width) in shapes.items():
        where[layer] = positions(height, width, device)
        if draw:
            seed, name = draw
            where[layer] = where[layer][
                stratified(height, width, keyed_generator("tokens", seed, name, base_of(layer))).to(device)
            ]
    return TokenBatch(
        tokens={layer: torch.empty(0, channels, device=device, dtype=dtype) for layer, (channels, _, _) in shapes.items()},
        positions=where,
        masks={layer: {} for layer in shapes},
        photo={layer: torch.tensor(photo, device=device).expand(len(place)) for layer, place in where.items()},
    )


def shared(piece: TokenBatch) -> TokenBatch:
    """An image's tokens as a part of batches that several processes share: all of them are here, or none."""
    here = {layer: torch.arange(len(tokens)) for layer, tokens in piece.tokens.items()}
    return replace(piece, masks={layer: {} for layer in piece.masks}, here=here)


def padded(batches: Iterable[TokenBatch], length: int, have: int) -> Iterator[TokenBatch]:
    """Batches, ``have`` of them, and empty ones up to ``length``: Lightning wants equally many of every process."""
    return chain(batches, repeat(TokenBatch({}, {}, {}, {}), length - have))


class Loader(Iterable[Batch]):
    """A sized iterable over a fresh generator."""

    def __init__(self, make: Callable[[], Iterator[Batch]], length: int) -> None:
        self.make, self.length = make, length

    def __iter__(self) -> Iterator[Batch]:
        return self.make()

    def __len__(self) -> int:
        return self.length
