"""Token ↔ pixel coordinates, grids ↔ token lists: the sole owner of every coordinate convention.

A *position* is a token index (row, col), long, row first. A *point* is a pixel coordinate (x, y), float, x right, y
down, where pixel (0, 0) covers [0, 1) × [0, 1). The two are never mixed.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import interpolate, max_pool2d


def positions(height: int, width: int, device: torch.device | str = "cpu") -> Int[Tensor, "{height*width} 2"]:
    """(row, col) of every token of a grid in row-major order, the order of :func:`flatten`.

    >>> positions(2, 2).tolist()
    [[0, 0], [0, 1], [1, 0], [1, 1]]
    """
    rows = torch.arange(height, device=device).repeat_interleave(width)
    cols = torch.arange(width, device=device).repeat(height)
    return torch.stack([rows, cols], dim=1)


def flatten(grid: Float[Tensor, "b c h w"]) -> Float[Tensor, "b h*w c"]:
    """Tokens of a batch of grids, row-major; a view where the grid is channels-last."""
    return grid.permute(0, 2, 3, 1).flatten(1, 2)


def unflatten(tokens: Float[Tensor, "b n c"], height: int, width: int) -> Float[Tensor, "b c {height} {width}"]:
    """Inverse of :func:`flatten`."""
    return tokens.unflatten(1, (height, width)).permute(0, 3, 1, 2)


def centres(position: Int[Tensor, "n 2"], stride: float) -> Float[Tensor, "n 2"]:
    """Points (x, y) of token centres: ((col + ½)·stride, (row + ½)·stride).

    >>> centres(torch.tensor([[0, 2]]), stride=8).tolist()
    [[20.0, 4.0]]
    """
    return (position.flip(-1) + 0.5) * stride


def bins(index: Int[Tensor, "*n"], size: int, count: int) -> Int[Tensor, "*n"]:
    """Bin floor(index · count / size) of token indices along an axis of ``size`` tokens; bins differ by at most one token.

    >>> bins(torch.arange(6), size=6, count=3).tolist()
    [0, 0, 1, 1, 2, 2]
    """
    return index * count // size


def bin_starts(size: int, count: int) -> Int[Tensor, "{count+1}"]:
    """First token index of every bin of :func:`bins`, and ``size`` at the end.

    >>> bin_starts(size=6, count=4).tolist()
    [0, 2, 3, 5, 6]
    """
    return -(-torch.arange(count + 1) * size // count)


def at_grid(mask: Bool[Tensor, "b h w"], height: int, width: int) -> Bool[Tensor, "b {height} {width}"]:
    """The same places on another grid of the image; one side must divide the other.

    A finer token inherits its coarse one; a coarse token is in if any part of it is.

    >>> at_grid(torch.tensor([[[True, False], [False, False]]]), 4, 4)[0].int().tolist()
    [[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    """
    values = mask[:, None].float()
    if mask.shape[1] > height:
        return max_pool2d(values, (mask.shape[1] // height, mask.shape[2] // width))[:, 0].bool()
    return interpolate(values, (height, width), mode="nearest")[:, 0].bool()
