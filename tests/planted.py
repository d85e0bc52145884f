"""Anomalies of known place and strength, planted into clean grids: the ground truth that statistics are tested on."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sdprobe.tokens.groups import border_groups
from sdprobe.utilities.errors import InputError


def direction(channels: int, generator: torch.Generator) -> Float[Tensor, " channels"]:
    """A random unit vector (C,), uniform on the sphere."""
    vector = torch.randn(channels, generator=generator, dtype=torch.float64)
    return vector / vector.norm()


def position_code(
    channels: int, height: int, width: int, strength: float, generator: torch.Generator
) -> Float[Tensor, "channels height width"]:
    """g_{row, col} = a_row + b_col with random a, b: mean 0 over the grid and Σ_p ‖g_p‖² / (P − 1) = strength².

    Added to tokens whose variance is σ² = E‖e‖², position explains strength² / (strength² + σ²) of the variance.

    Raises:
        InputError: if the grid is a single token, which has no position.
    """
    if height * width < 2:
        raise InputError("Expected the grid to be larger than 1×1 for a position code, but got 1×1. Plant it in a larger one.")
    rows = torch.randn(channels, height, 1, generator=generator, dtype=torch.float64)
    cols = torch.randn(channels, 1, width, generator=generator, dtype=torch.float64)
    code = rows + cols
    code = code - code.mean((1, 2), keepdim=True)
    return code * strength * (height * width - 1) ** 0.5 / code.norm()


def corner_code(
    channels: int, height: int, width: int, strength: float, generator: torch.Generator
) -> Float[Tensor, "channels height width"]:
    """strength · u at the four corner tokens, 0 elsewhere; one random unit vector u, so that corners become alike.

    Added to independent tokens of variance σ² = E‖e‖² and many channels, the mean cosine of corners becomes
    strength² / (strength² + σ²).
    """
    corner = border_groups(height, width)["corner"].double()
    return strength * direction(channels, generator).view(-1, 1, 1) * corner


def high_norm_patches(
    grid: Float[Tensor, "b c h w"], strength: float, patches: int, generator: torch.Generator
) -> tuple[Float[Tensor, "b c h w"], Bool[Tensor, "b h w"]]:
    """Add 2×2 patches on even rows and columns, at random places, in every image.

    Their tokens become x + strength · m · u with m the median token norm of the image and one random unit vector u for all
    patches: a norm of about √(1 + strength²) times the median.

    Returns:
        the new grids, in the dtype of the old, and the mask of the tokens changed.

    Raises:
        InputError: if the grid has fewer than ``patches`` places.
    """
    batch, channels, height, width = grid.shape
    places = (height // 2) * (width // 2)
    if patches > places:
        raise InputError(f"Expected patches to be at most {places} on a {height}×{width} grid, but got {patches}. Plant fewer.")
    chosen = torch.rand(batch, places, generator=generator).argsort(dim=1)[:, :patches]
    cells = torch.zeros(batch, places, dtype=torch.bool).scatter_(1, chosen, True).view(batch, height // 2, width // 2)
    mask = torch.zeros(batch, height, width, dtype=torch.bool)
    mask[:, : height // 2 * 2, : width // 2 * 2] = cells.repeat_interleave(2, 1).repeat_interleave(2, 2)
    mask = mask.to(grid.device)
    median = grid.double().norm(dim=1).flatten(1).median(dim=1).values.view(-1, 1, 1, 1)
    added = strength * median * direction(channels, generator).to(grid.device).view(1, -1, 1, 1) * mask.unsqueeze(1)
    return (grid + added).to(grid.dtype), mask
