"""random_energy: the control that removes as much energy as a mitigation does, along random directions."""

from collections.abc import Sequence
from functools import lru_cache

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from sdprobe.tokens.keys import base_of
from sdprobe.utilities.errors import InputError
from sdprobe.utilities.rng import keyed_generator


def random_energy(
    grid: Float[Tensor, "b c h w"], edited: Float[Tensor, "_b _c _h _w"], seed: int, layer: str, images: Sequence[int | str]
) -> Float[Tensor, "b c h w"]:
    """x − d with ‖d‖² = ‖x − E(x)‖² for every image, where E is a mitigation and d lies along random directions.

    The change x − E(x) of an image has a mean over tokens and a rest. d has the energy of each, so that a mitigation that
    subtracts one vector from every token is compared with the same::

        d_p = c + Σ_j w_j q_j q_jᵀ (x_p − x̄),  P ‖c‖² = P ‖mean of x − E(x)‖²,  Σ_j w_j² e_j = energy of the rest

    x̄ is the image's mean token, q_1 … q_C a random orthonormal basis, e_j = Σ_p (q_jᵀ(x_p − x̄))², and c a multiple of q_C.
    The weights are 1 for as many directions as the energy needs, a share of the next one, and 0 for all others. They are in
    [0, 1]: nothing is removed twice. (One factor for a few directions would exceed 1, and would reverse what it removes.) If
    the rest has more energy than x − x̄, which a mitigation that rescales tokens can reach, all of x − x̄ is removed, and c has
    the remaining energy, too.

    Args:
        grid: activations x (B, C, h, w) of one layer.
        edited: E(x), of the same shape.
        seed: draws other directions.
        layer: its name. Noise levels and variants of a layer share directions.
        images: an entry per image. Images with equal entries share directions. Give one entry to all of them where the control
            should be one map, as a mitigation is; give their ids where a mean over images should be a mean over draws.

    Returns:
        a grid of the same shape and dtype, with the energy of the change up to rounding in this dtype; ``grid`` itself where
        ``edited`` equals it. An image does not depend on the others of its batch.

    Raises:
        InputError: grids of different shapes, or another number of entries than images.

    References:
        Own definition. Controls of equal budget: 2605.09313 (arXiv), for attention sinks.

    Example:
        >>> import torch
        >>> from sdprobe.mitigations.energy import random_energy
        >>> x = torch.randn(2, 8, 4, 4, generator=torch.manual_seed(0))
        >>> change = x - random_energy(x, 0.9 * x, seed=0, layer="mid", images=["cat", "dog"])
        >>> torch.allclose(change.square().sum((1, 2, 3)), (0.1 * x).square().sum((1, 2, 3)))
        True
    """
    if grid.ndim != 4 or grid.shape != edited.shape or len(images) != len(grid):
        raise InputError(
            "Expected two grids (B, C, h, w) of one shape and an entry of images for each of the B images, but got "
            f"{tuple(grid.shape)}, {tuple(edited.shape)} and {len(images)} entries. Give the grids before and after an edit."
        )
    x = grid.float()
    change = (x - edited.float()).flatten(2)
    constant = change.mean(2, keepdim=True)
    keys = [(seed, base_of(layer), image, grid.shape[1]) for image in images]
    bases = {key: _basis(*key).to(x) for key in dict.fromkeys(keys)}
    basis = bases[keys[0]] if len(bases) == 1 else torch.stack([bases[key] for key in keys])  # (C, C) or (B, C, C)
    coefficients = basis.mT @ (x.flatten(2) - x.flatten(2).mean(2, keepdim=True))
    weights, left = _weights(_energy(coefficients, 2), _energy(change - constant, (1, 2)))
    length = ((_energy(constant, (1, 2)) + left / change.shape[2]).sqrt()).to(x)  # of c
    removed = basis @ (weights.to(x)[:, :, None] * coefficients) + basis[..., -1:] * length[:, None, None]
    return (x - removed.view_as(x)).to(grid.dtype)


def _weights(
    energies: Float64[Tensor, "b c"], wanted: Float64[Tensor, " b"]
) -> tuple[Float64[Tensor, "b c"], Float64[Tensor, " b"]]:
    """w in [0, 1] with Σ_j w_j² e_j = min(wanted, Σ_j e_j), the first directions first, and the energy that is left."""
    missing = wanted[:, None] - (energies.cumsum(1) - energies)  # before each direction
    share = (missing / energies.clamp_min(torch.finfo(energies.dtype).tiny)).clamp(0, 1)
    return share.sqrt(), (wanted - energies.sum(1)).clamp_min(0)


def _energy(values: Tensor, axes: int | tuple[int, ...]) -> Float64[Tensor, " *_"]:
    """Sum of squares, in float64."""
    return values.double().square().sum(axes)


@lru_cache(maxsize=64)
def _basis(seed: int, layer: str, image: int | str, channels: int) -> Float[Tensor, "{channels} {channels}"]:
    """A uniformly random orthonormal basis, in columns."""
    generator = keyed_generator(seed, "random_energy", layer, image, channels)
    return torch.linalg.qr(torch.randn(channels, channels, generator=generator, dtype=torch.float64)).Q.float()
