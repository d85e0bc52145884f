"""mixing_buffer: shuffles tokens across images in bounded memory; every token exactly once. Data path step 7."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import accumulate

import torch
from jaxtyping import Int
from torch import Tensor

from tokens.batch import TokenBatch
from tokens.keyed import keyed_generator
from tokens.keys import base_of


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
