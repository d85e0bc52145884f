"""From whole grids to batches of tokens: how tokens are drawn and mixed. Data path step 7."""

from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from jaxtyping import Int
from torch import Tensor

from sdprobe.tokens.batch import GridBatch, TokenBatch, concatenated
from sdprobe.tokens.geometry import bin_starts, flatten, positions
from sdprobe.tokens.keys import base_of
from sdprobe.utilities.rng import keyed_generator

CELLS = 8
IMAGES, TOKENS = 32, 512  # images that are mixed with one another, and tokens per batch and layer
# least number of steps of an epoch: validation, checkpoints and progress bars come once per epoch
STEPS_PER_EPOCH = 100


def training_pass(
    indices: Sequence[int],
    pieces: Callable[[Sequence[int]], Iterable[TokenBatch]],
    images: int,
    size: int,
    seed: int,
    epoch: int = 0,
    number: int = 0,
) -> Iterator[TokenBatch]:
    """One pass over training images in random order, mixed, keyed by (seed, epoch, number).

    Args:
        indices: of the training images.
        pieces: image indices → one TokenBatch per image, in order.
        images: images that are mixed with one another.
        size: tokens per batch and layer.
        seed: seed of order and mixing.
        epoch: number of the epoch.
        number: number of the pass within the epoch.
    """
    key = ("train", seed, epoch, number)
    shuffle = torch.randperm(len(indices), generator=keyed_generator("images", *key))
    yield from mixing_buffer(pieces([indices[i] for i in shuffle]), images, size, *key)


def mixing_buffer(pieces: Iterable[TokenBatch], images: int, size: int, *key: object) -> Iterator[TokenBatch]:
    """Batches of ``size`` tokens per layer, mixed over blocks of ``images`` images.

    Each layer of a block is permuted by a generator keyed by (key, layer, block), so a layer's batches do not depend on
    the other layers. Tokens that do not fill a batch move to the next block; the last batch may be smaller. Layers with fewer
    tokens are absent from later steps of a block.

    Args:
        pieces: one TokenBatch per image.
        images: images per block, which bounds the memory.
        size: tokens per batch and layer.
        key: key of the permutations, such as seed and epoch.
    """
    rest: list[TokenBatch] = []
    for number, (block, last) in enumerate(_blocks(pieces, images)):
        pool = concatenated([*rest, *block])
        order = {
            layer: torch.randperm(len(image), generator=keyed_generator("mixing", *key, base_of(layer), number)).to(
                image.device
            )
            for layer, image in pool.image.items()
        }
        steps = {layer: len(index) / size if last else len(index) // size for layer, index in order.items()}
        step = 0
        while any(step < count for count in steps.values()):
            yield pool.select(
                {layer: index[step * size : (step + 1) * size] for layer, index in order.items() if step < steps[layer]}
            )
            step += 1
        rest = [pool.select({layer: index[len(index) // size * size :] for layer, index in order.items()})]


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


def _blocks(pieces: Iterable[TokenBatch], images: int) -> Iterator[tuple[list[TokenBatch], bool]]:
    """Lists of ``images`` pieces, each with whether it is the last."""
    block: list[TokenBatch] = []
    for piece in pieces:
        if len(block) == images:
            yield block, False
            block = []
        block.append(piece)
    if block:
        yield block, True


def stratified(height: int, width: int, generator: torch.Generator) -> Int[Tensor, " 64"]:
    """Row-major indices of 64 tokens, one drawn at random in each cell of an 8 × 8 partition of the grid
    (:func:`sdprobe.tokens.geometry.bins`, which binned accuracy uses too).

    On an axis with fewer than 8 tokens each cell is a single token and some are repeated, so that every layer gives 64 tokens.
    """
    row, col = (_drawn(side, generator) for side in (height, width))
    return (row * width + col.T).flatten()


def _drawn(side: int, generator: torch.Generator) -> Int[Tensor, "8 8"]:
    """For each of 8 × 8 cells a random index along one axis, inside the cell; dimension 0 runs along that axis."""
    if side < CELLS:
        return (torch.arange(CELLS) * side // CELLS)[:, None].expand(CELLS, CELLS)
    edges = bin_starts(side, CELLS)
    starts, spans = edges[:-1], edges.diff()[:, None]
    return starts[:, None] + (torch.rand(CELLS, CELLS, generator=generator) * spans).long()


def flattened(batch: GridBatch) -> TokenBatch:
    """Every token of every layer of all images, image after image in row-major order."""
    sides = {layer: grid.shape[-2:] for layer, grid in batch.grids.items()}
    images = len(batch.image)
    return TokenBatch(
        tokens={layer: flatten(grid).flatten(0, 1) for layer, grid in batch.grids.items()},
        positions={layer: positions(side[0], side[1], batch.image.device).repeat(images, 1) for layer, side in sides.items()},
        masks={layer: {name: mask.flatten() for name, mask in groups.items()} for layer, groups in batch.masks.items()},
        image={layer: batch.image.repeat_interleave(side[0] * side[1]) for layer, side in sides.items()},
        photo={layer: batch.photo.repeat_interleave(side[0] * side[1]) for layer, side in sides.items()},
    )


def draw_tokens(batch: GridBatch, names: Sequence[str], seed: int) -> list[TokenBatch]:
    """One TokenBatch per image with 64 stratified tokens of every layer; the draw is keyed by (seed, name, layer)."""

    def draw(name: str) -> dict[str, Int[Tensor, " 64"]]:
        return {
            layer: stratified(grid.shape[2], grid.shape[3], keyed_generator("tokens", seed, name, base_of(layer)))
            for layer, grid in batch.grids.items()
        }

    return [_picked(batch, i, draw(name)) for i, name in enumerate(names)]


def all_tokens(batch: GridBatch) -> list[TokenBatch]:
    """One TokenBatch per image with every token of every layer."""
    every = {layer: torch.arange(grid.shape[2] * grid.shape[3]) for layer, grid in batch.grids.items()}
    return [_picked(batch, i, every) for i in range(len(batch.image))]


def _picked(batch: GridBatch, i: int, index: dict[str, Int[Tensor, " k"]]) -> TokenBatch:
    """Tokens of one image, copied so that the memory of the batch can be freed."""
    one = GridBatch(
        {layer: grid[i : i + 1] for layer, grid in batch.grids.items()},
        {layer: {group: mask[i : i + 1] for group, mask in masks.items()} for layer, masks in batch.masks.items()},
        batch.image[i : i + 1],
        batch.photo[i : i + 1],
    )
    return flattened(one).select({layer: pick.to(batch.grids[layer].device) for layer, pick in index.items()})
