"""Token groups as boolean masks, computed on raw activations, and the similarity of tokens. Data path step 5.

corner (4 tokens), border (the edge without corners) and interior partition the grid; high_norm overlaps all three.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import normalize

from sdprobe.tokens.geometry import border_groups, centres, tokens_at

HIGH_NORM_Z = 5.0


def high_norm(grid: Float[Tensor, "b c h w"], threshold: float = HIGH_NORM_Z) -> Bool[Tensor, "b h w"]:
    """Tokens whose log-norm has a robust z-score above ``threshold`` within their image.

    z = (log‖x‖ − median) / (1.4826 · MAD), per image. If more than half of the norms are equal (MAD = 0), no token is
    detected.
    """
    log_norm = grid.float().norm(dim=1).clamp_min(torch.finfo(torch.float32).tiny).log()
    flat = log_norm.flatten(1)
    median = flat.median(dim=1, keepdim=True).values
    deviation = 1.4826 * (flat - median).abs().median(dim=1, keepdim=True).values
    z = (flat - median) / deviation.clamp_min(torch.finfo(torch.float32).eps)
    return ((z > threshold) & (deviation > 0)).view_as(log_norm)


def token_groups(grid: Float[Tensor, "b c h w"]) -> dict[str, Bool[Tensor, "b h w"]]:
    """All group masks of a batch of grids."""
    batch, _, height, width = grid.shape
    fixed = border_groups(height, width, grid.device)
    return {name: mask.expand(batch, -1, -1) for name, mask in fixed.items()} | {"high_norm": high_norm(grid)}


def token_similarity(
    grid: Float[Tensor, "c h w"], token: tuple[int, int], side: int, centred: bool = True
) -> Float[Tensor, "h w"]:
    """Cosine, in [−1, 1], of every token with the one at the centre of token (row, col) of a ``side`` × ``side`` grid.

    ``centred`` first subtracts the mean token of the image. Without it, all cosines are high in many layers.
    """
    grid = grid.float()
    if centred:
        grid = grid - grid.mean((1, 2), keepdim=True)
    unit = normalize(grid, dim=0)
    point = centres(torch.tensor([token]), 1 / side) * torch.tensor(grid.shape[:0:-1])  # (x, y) in tokens
    [[row, col]] = tokens_at(point, 1, *grid.shape[1:]).tolist()
    return torch.einsum("chw,c->hw", unit, unit[:, row, col])
