"""What the processes of a run share of the images: each computes some, and all train on the same batches. Data path step 7."""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import chain, repeat

import torch
from torch import Tensor

from datamodules.sampling import stratified
from tokens.batch import TokenBatch
from tokens.geometry import positions
from tokens.keyed import keyed_generator
from tokens.keys import base_of


def placeholder(
    shapes: dict[str, tuple[int, int, int]], draw: tuple[int, str] | None, photo: int, device: torch.device, dtype: torch.dtype
) -> TokenBatch:
    """The tokens of an image that another process computes: where they are, without activations.

    Args:
        shapes: layer → (C, h, w).
        draw: seed and name of the image, whose draw is :func:`~datamodules.sampling.draw_tokens`'s; None for all tokens.
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
