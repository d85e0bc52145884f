"""How alike one token is to every other token of its image."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from tokens.geometry import centres, tokens_at


def token_similarity(
    grid: Float[Tensor, "c h w"], token: tuple[int, int], side: int, centred: bool = True
) -> Float[Tensor, "h w"]:
    """Cosine, in [−1, 1], of every token with the one that covers the centre of token (row, col) of a grid of `side` tokens.

    `centred` subtracts the image's mean token first, without which every cosine is high in many layers.
    """
    grid = grid.float()
    if centred:
        grid = grid - grid.mean((1, 2), keepdim=True)
    unit = normalize(grid, dim=0)
    place = centres(torch.tensor([token]), 1 / side) * torch.tensor(grid.shape[:0:-1])  # (x, y) in tokens
    [[row, col]] = tokens_at(place, 1, *grid.shape[1:]).tolist()
    return torch.einsum("chw,c->hw", unit, unit[:, row, col])
