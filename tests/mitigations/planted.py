"""Grids with a position code of known strength, and the closed-form probe that reads it on the images it was fitted on."""

import torch
from torch import Tensor

from sdprobe.estimators.closed_form import Moments
from sdprobe.tokens.geometry import flatten, positions
from tests.planted import position_code


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def grids(images: int, channels: int, height: int, width: int, strength: float = 0.0, seed: int = 0) -> Tensor:
    """Correlated tokens around a mean of 1, with an additive code of energy strength² on top."""
    noise = torch.randn(images, channels, height, width, generator=generator(seed), dtype=torch.float64)
    mix = torch.randn(channels, channels, generator=generator(seed + 1), dtype=torch.float64) / channels**0.5
    tokens = 1 + 0.5 * noise + torch.einsum("dc,bchw->bdhw", mix, noise)
    if strength:
        tokens = tokens + position_code(channels, height, width, strength, generator(seed + 2))
    return tokens.float()


def batches(grid: Tensor, parts: int = 1) -> list[Tensor]:
    return [grid[index] for index in torch.arange(len(grid)).tensor_split(parts)]


def axis_accuracies(train: Tensor, test: Tensor) -> Tensor:
    """Axis accuracy of closed-form discriminants on every test image.

    Logits that differ by less than 1e-3 are equal, so that a constant probe is at chance.
    """
    height, width = train.shape[2:]
    moments = Moments(train.shape[1], (height, width), 1, train.device)
    place = positions(height, width).repeat(len(train), 1)
    moments.update(flatten(train).flatten(0, 1), place[:, None])
    weight, bias = moments.discriminants(0)
    logits = (flatten(test).flatten(0, 1).double() @ weight.T + bias).mul(1e3).round()
    found = torch.stack([part.argmax(1) for part in logits.split([height, width], dim=1)], dim=1)
    return (found == positions(height, width).repeat(len(test), 1)).double().view(len(test), -1).mean(1)


def axis_accuracy(train: Tensor, test: Tensor | None = None) -> float:
    """Mean of :func:`axis_accuracies`, on the images the probe was fitted on where no others are given."""
    return axis_accuracies(train, train if test is None else test).mean().item()
