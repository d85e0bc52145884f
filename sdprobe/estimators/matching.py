"""The most similar target token of each source token: one matrix product per target picture and layer.

``upsampled_argmax`` matches like DIFT, which enlarges grids to the size of the original picture. Here the similarity is
enlarged instead of the features, and divided by the norm of the enlarged token, which follows from products of neighbouring
tokens.
"""

from collections.abc import Mapping

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import normalize

from sdprobe.tokens.geometry import Placement
from sdprobe.utilities.rng import keyed_generator

WINDOW = 7  # tokens on every side of the best one that refine it
SHARPNESS = 0.02  # temperature of the softmax over them, for cosines
CHUNK = 32  # keypoints whose enlarged similarities are in memory at a time


def cosines(source: Float[Tensor, "n c"], target: Float[Tensor, "c h w"]) -> Float[Tensor, "n h*w"]:
    """Cosine of every source token with every target token, float32."""
    return normalize(source.float(), dim=1) @ normalize(target.float().flatten(1), dim=0)


def best(similarity: Float[Tensor, "n p"], masked: Bool[Tensor, " p"] | None = None) -> Int[Tensor, " n"]:
    """Index of the most similar target token that is not masked; the first one of ties."""
    return (similarity if masked is None else similarity.masked_fill(masked, -torch.inf)).argmax(1)


def refined(similarity: Float[Tensor, "n p"], width: int) -> Float[Tensor, "n 2"]:
    """Point (x, y), in tokens, of the window soft-argmax: Σ softmax(s / 0.02) · centre over the grid.

    The similarity s counts as 0 outside the 15 × 15 tokens around the best one. The centre of a token is its index + ½.

    References:
        Zhang et al. (2024), arXiv 2311.17034. Lee et al. (2019), arXiv 1904.01810 (the softmax).
    """
    first = best(similarity)[:, None]
    token = torch.arange(similarity.shape[1], device=similarity.device)
    row, col = token // width, token % width
    near = ((row - first // width).abs() <= WINDOW) & ((col - first % width).abs() <= WINDOW)
    weight = (similarity.float() * near / SHARPNESS).softmax(1)
    return weight @ (torch.stack([col, row], 1) + 0.5)


def random_mask(masks: Mapping[str, Bool[Tensor, "h w"]], group: str, *key: object) -> Bool[Tensor, " p"]:
    """As many random interior tokens outside ``group`` as the group has tokens, or all of them if there are fewer.

    This control measures what masking any tokens costs.
    """
    allowed = (masks["interior"] & ~masks[group]).flatten()
    score = torch.rand(len(allowed), generator=keyed_generator("mask", *key)).to(allowed.device)
    rank = score.masked_fill(~allowed, torch.inf).argsort().argsort()
    return (rank < masks[group].sum()) & allowed


def upsampled_argmax(
    source: Float[Tensor, "n c"], target: Float[Tensor, "c h w"], placement: Placement, width: int, height: int, size: int
) -> Int[Tensor, "n 2"]:
    """Pixel (x, y) of the original picture whose target token, enlarged bilinearly and then normalised, is most similar.

    Args:
        source: tokens, already read at the source pixels.
        target: grid of the target picture.
        placement: where the picture of ``width`` × ``height`` pixels lies in the input of ``size`` pixels per side.
        width: of the original picture, in pixels.
        height: of the original picture, in pixels.
        size: side of the network's input, in pixels.
    """
    _, high, wide = target.shape
    across = _taps(width, placement.scale[0], placement.offset[0], size / wide, wide, target.device)
    down = _taps(height, placement.scale[1], placement.offset[1], size / high, high, target.device)
    target = target.float()
    rows, cols = _matrix(*down, high), _matrix(*across, wide)
    norm = _enlarged_norm(target, down, across)
    unit = normalize(source.float(), dim=1)
    indices = []
    for chunk in unit.split(CHUNK):
        similarity = torch.einsum("nc,chw->nhw", chunk, target)
        indices.append(((rows @ similarity @ cols.T) / norm).flatten(1).argmax(1))
    index = torch.cat(indices)
    return torch.stack([index % width, index // width], dim=1)


Taps = tuple[Int[Tensor, " _k"], Int[Tensor, " _k"], Float[Tensor, " _k"]]


def _taps(count: int, scale: float, offset: float, stride: float, side: int, device: torch.device) -> Taps:
    """For pixel centres along an axis: the two tokens around them and the weight of the second (align_corners=False)."""
    pixel = (torch.arange(count, dtype=torch.float64) + 0.5) * scale + offset
    position = (pixel / stride - 0.5).clamp(0, side - 1)
    low = position.floor().long()
    return low.to(device), (low + 1).clamp(max=side - 1).to(device), (position - low).float().to(device)


def _matrix(low: Tensor, high: Tensor, weight: Tensor, side: int) -> Float[Tensor, "k {side}"]:
    matrix = torch.zeros(len(low), side, device=low.device)
    matrix.scatter_add_(1, low[:, None], (1 - weight)[:, None])
    return matrix.scatter_add_(1, high[:, None], weight[:, None])


def _enlarged_norm(target: Float[Tensor, "c h w"], down: Taps, across: Taps) -> Float[Tensor, "H W"]:
    """‖Σ wᵢ tᵢ‖ at every pixel, from the products ⟨tᵢ, tⱼ⟩ of the four tokens around it."""
    (y0, y1, v), (x0, x1, u) = down, across
    corners = [(y0, x0, (1 - v), (1 - u)), (y0, x1, (1 - v), u), (y1, x0, v, (1 - u)), (y1, x1, v, u)]
    products = {
        (dy, dx): (target * torch.roll(target, (-dy, -dx), (1, 2))).sum(0) for dy in (0, 1) for dx in (0, 1)
    }  # ⟨t[y, x], t[y + dy, x + dx]⟩
    crossed = (torch.roll(target, -1, 2) * torch.roll(target, -1, 1)).sum(0)  # ⟨t[y, x + 1], t[y + 1, x]⟩
    squared = torch.zeros(len(y0), len(x0), device=target.device)
    for i, (ya, xa, va, ua) in enumerate(corners):
        for j, (yb, xb, vb, ub) in enumerate(corners):
            weight = (va * vb)[:, None] * (ua * ub)[None, :]
            if j < i:
                continue
            table = crossed if (i, j) == (1, 2) else None
            value = _product(products, table, ya, xa, yb, xb)
            squared += weight * value * (1 if i == j else 2)
    return squared.clamp_min(1e-12).sqrt()


def _product(
    products: Mapping[tuple[int, int], Tensor], crossed: Tensor | None, ya: Tensor, xa: Tensor, yb: Tensor, xb: Tensor
) -> Float[Tensor, "H W"]:
    """⟨t[ya, xa], t[yb, xb]⟩ where b is at most one token below and one to the right of a (``crossed``: to the left)."""
    same_row, same_col = (ya == yb)[:, None], (xa == xb)[None, :]

    def read(table: Tensor, x: Tensor) -> Tensor:
        return table[ya[:, None], x[None, :]]

    diagonal = read(products[1, 1], xa) if crossed is None else read(crossed, xb)
    below, right = read(products[1, 0], xa), read(products[0, 1], torch.minimum(xa, xb))
    straight = torch.where(same_row, right, diagonal)
    return torch.where(same_col, torch.where(same_row, read(products[0, 0], xa), below), straight)
