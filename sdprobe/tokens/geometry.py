"""Token ↔ pixel coordinates, grids ↔ token lists, maps of one grid on another. All conventions of coordinates are here.

A *position* is a token index (row, col), long, row first. A *point* is a pixel coordinate (x, y), float, x right, y
down; pixel (0, 0) covers [0, 1) × [0, 1). The two are never mixed.
"""

from dataclasses import dataclass

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


def tokens_at(points: Float[Tensor, "n 2"], stride: float, height: int, width: int) -> Int[Tensor, "n 2"]:
    """(row, col) of the tokens that cover points (x, y). For points outside the grid, the nearest token.

    >>> tokens_at(torch.tensor([[20.0, 4.0], [99.0, -1.0]]), stride=8, height=4, width=4).tolist()
    [[0, 2], [0, 3]]
    """
    last = torch.tensor([height - 1, width - 1], device=points.device)
    return (points.flip(-1) / stride).floor().long().clamp(min=torch.zeros_like(last), max=last)


def sampled_at(grid: Float[Tensor, "c h w"], points: Float[Tensor, "n 2"], stride: float) -> Float[Tensor, "n c"]:
    """The grid sampled bilinearly at points (x, y), with the convention of ``align_corners=False``.

    >>> sampled_at(torch.tensor([[[0.0, 8.0]]]), torch.tensor([[8.0, 4.0], [10.0, 4.0], [-3.0, 4.0]]), stride=8).tolist()
    [[4.0], [6.0], [0.0]]
    """
    _, height, width = grid.shape
    last = points.new_tensor([width - 1, height - 1])
    cell = (points / stride - 0.5).clamp(min=torch.zeros_like(last), max=last)
    low = cell.floor().long()
    (x0, y0), (x1, y1) = low.unbind(1), (low + 1).clamp(max=last.long()).unbind(1)
    x, y = (cell - low).unbind(1)
    upper = grid[:, y0, x0] * (1 - x) + grid[:, y0, x1] * x
    lower = grid[:, y1, x0] * (1 - x) + grid[:, y1, x1] * x
    return (upper * (1 - y) + lower * y).T


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
    """A mask on another grid of the same image. One side must divide the other.

    A finer token takes the value of the coarse one; a coarse token is in the mask if any part of it is.

    >>> at_grid(torch.tensor([[[True, False], [False, False]]]), 4, 4)[0].int().tolist()
    [[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    """
    values = mask[:, None].float()
    if mask.shape[1] > height:
        return max_pool2d(values, (mask.shape[1] // height, mask.shape[2] // width))[:, 0].bool()
    return interpolate(values, (height, width), mode="nearest")[:, 0].bool()


def border_groups(height: int, width: int, device: torch.device | str = "cpu") -> dict[str, Bool[Tensor, "height width"]]:
    """corner, border and interior masks of a grid. Every token is in exactly one.

    >>> {group: int(mask.sum()) for group, mask in border_groups(8, 8).items()}
    {'corner': 4, 'border': 24, 'interior': 36}
    """
    row_edge = torch.zeros(height, 1, dtype=torch.bool, device=device)
    col_edge = torch.zeros(1, width, dtype=torch.bool, device=device)
    row_edge[[0, -1]] = True
    col_edge[:, [0, -1]] = True
    return {"corner": row_edge & col_edge, "border": row_edge ^ col_edge, "interior": ~(row_edge | col_edge)}


@dataclass(frozen=True)
class Placement:
    """Position of a picture in a square network input: input point = original point · scale + offset, for x and y each."""

    scale: tuple[float, float]
    offset: tuple[float, float]

    def to_input(self, points: Float[Tensor, "n 2"]) -> Float[Tensor, "n 2"]:
        """Original points (x, y) in pixels of the network's input.

        >>> Placement(scale=(2.0, 2.0), offset=(0.0, 8.0)).to_input(torch.tensor([[1.0, 3.0]])).tolist()
        [[2.0, 14.0]]
        """
        return points * points.new_tensor(self.scale) + points.new_tensor(self.offset)

    def to_original(self, points: Float[Tensor, "n 2"]) -> Float[Tensor, "n 2"]:
        """Inverse of :meth:`to_input`."""
        return (points - points.new_tensor(self.offset)) / points.new_tensor(self.scale)


def source_index(side: int, fitted: int) -> Int[Tensor, " {side}"]:
    """For every token of an axis of ``side`` tokens, the token of the ``fitted`` axis whose value it takes.

    The distance to the nearest border is kept. Tokens farther from the border than any fitted token take the middle one.

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


def spatial_mean(grid: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
    """Grids with every token replaced by the mean token of its image, in the same memory format.

    >>> spatial_mean(torch.tensor([[[[1.0, 3.0]]]])).tolist()
    [[[[2.0, 2.0]]]]
    """
    return grid.mean((-2, -1), keepdim=True).expand_as(grid).clone(memory_format=torch.preserve_format)
