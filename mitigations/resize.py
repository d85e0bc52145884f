"""Maps fitted on one grid and used on another of the same layer: what padding writes keeps its distance from the border."""

import torch
from jaxtyping import Float, Int
from torch import Tensor


def source_index(side: int, fitted: int) -> Int[Tensor, " {side}"]:
    """For every token of an axis of ``side`` the token of the ``fitted`` axis whose value it takes.

    The distance to the nearest border is kept; what lies deeper than the fitted axis reaches repeats its middle.

    >>> source_index(6, fitted=4).tolist()
    [0, 1, 1, 2, 2, 3]
    >>> source_index(3, fitted=5).tolist()
    [0, 1, 4]
    >>> source_index(5, fitted=5).tolist()
    [0, 1, 2, 3, 4]
    """
    index = torch.arange(side)
    distance = torch.minimum(index, side - 1 - index).clamp(max=(fitted - 1) // 2)
    return torch.where(2 * index < side, distance, fitted - 1 - distance)


def resized(map_: Float[Tensor, "*c h w"], height: int, width: int) -> Float[Tensor, "*c {height} {width}"]:
    """A map on a grid of another size, see :func:`source_index`."""
    if map_.shape[-2:] == (height, width):
        return map_
    rows, cols = (source_index(side, old).to(map_.device) for side, old in zip((height, width), map_.shape[-2:], strict=True))
    return map_.index_select(-2, rows).index_select(-1, cols)


def minus(grid: Float[Tensor, "b c h w"], map_: Float[Tensor, "c _h _w"], strength: float = 1.0) -> Float[Tensor, "b c h w"]:
    """x − strength · map, in the dtype of the grid, computed in float32."""
    return grid.float().sub(resized(map_, *grid.shape[-2:]), alpha=strength).to(grid.dtype)
