"""Functions of position: the columns Z that a mean map is fitted with. One row per position, in row-major order."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from sdprobe.utilities import expect, settings


def cosines(side: int, count: int) -> Float[Tensor, "{side} k"]:
    """cos(π k (i + ½) / side) for k = 0 … count − 1 and i = 0 … side − 1; at most ``side`` of them, since further ones repeat.

    >>> cosines(4, 3).T.mul(10).round().int().tolist()
    [[10, 10, 10, 10], [9, 4, -4, -9], [7, -7, -7, 7]]
    """
    index = torch.arange(side, dtype=torch.float64) + 0.5
    return torch.cos(math.pi / side * index[:, None] * torch.arange(min(count, side)))


def per_axis(rows: Float[Tensor, "h k"], cols: Float[Tensor, "w l"]) -> Float[Tensor, "h*w k+l"]:
    """Functions of the row, then of the column."""
    return torch.cat([rows[:, None].expand(-1, len(cols), -1), cols[None].expand(len(rows), -1, -1)], dim=-1).flatten(0, 1)


def products(rows: Float[Tensor, "h k"], cols: Float[Tensor, "w l"]) -> Float[Tensor, "h*w k*l"]:
    """Every function of the row times every function of the column."""
    return torch.einsum("ia,jb->ijab", rows, cols).flatten(2).flatten(0, 1)


def additive(height: int, width: int) -> Float[Tensor, "{height*width} {height+width}"]:
    """One-hots of the row, then of the column.

    >>> additive(1, 2).tolist()
    [[1.0, 1.0, 0.0], [1.0, 0.0, 1.0]]
    """
    return per_axis(torch.eye(height, dtype=torch.float64), torch.eye(width, dtype=torch.float64))


def axis_cosines(height: int, width: int, count: int) -> Float[Tensor, "{height*width} k"]:
    """The ``count`` lowest cosines of the row, then of the column, without the constant: at most height + width − 2."""
    return per_axis(cosines(height, count + 1)[:, 1:], cosines(width, count + 1)[:, 1:])


def smooth(height: int, width: int, count: int) -> Float[Tensor, "{height*width} k"]:
    """Products of ``count`` cosines of the row and as many of the column, and terms for the border, where padding acts.

    The border terms are indicators of the first and last row, the first and last column, and the four corners.
    """
    top, left = (torch.eye(side, dtype=torch.float64)[:, [0, -1]] for side in (height, width))
    waves = products(cosines(height, count), cosines(width, count))
    return torch.cat([waves, per_axis(top, left), products(top, left)], dim=-1)


def columns(basis: str, height: int, width: int, count: int) -> Float[Tensor, "{height*width} k"]:
    """Z of a named basis, with ``count`` cosines per axis where it has any.

    Raises:
        InputError: no such basis.
    """
    match expect.one_of("basis", basis, settings.BASES):
        case "additive":
            return additive(height, width)
        case "onehot":
            return torch.eye(height * width, dtype=torch.float64)
        case _:
            return smooth(height, width, count)


def span(z: Float[Tensor, "p k"]) -> tuple[Float[Tensor, "p r"], Float[Tensor, " r"]]:
    """Left singular vectors and singular values of Z_c (Z minus its column means), up to its numerical rank."""
    left, values, _ = torch.linalg.svd(z - z.mean(0), full_matrices=False)
    keep = values > values.max() * max(z.shape) * torch.finfo(z.dtype).eps
    return left[:, keep], values[keep]


def smoothed(
    means: Float[Tensor, "p c"], basis: str, height: int, width: int, count: int, ridge: float
) -> tuple[Float[Tensor, "p c"], int]:
    """G = Z_c (Z_cᵀ Z_c + λI)⁺ Z_cᵀ M of the mean map M minus its own mean, and the rank of Z_c.

    With Z_c = U S Vᵀ this is U S² (S² + λ)⁻¹ Uᵀ M. One-hots have S = 1 and span everything but the constant.
    """
    centred = means - means.mean(0)
    if basis == "onehot":
        return centred / (1 + ridge), len(means) - 1
    left, values = span(columns(basis, height, width, count).to(means.device))
    gain = values.square() / (values.square() + ridge)
    return left @ (gain[:, None] * (left.T @ centred)), len(values)
