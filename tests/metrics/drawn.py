"""Seeded random tensors."""

import torch
from torch import Tensor


def randn(*shape: int, seed: int = 0) -> Tensor:
    """Standard normal numbers."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def randmask(*shape: int, share: float, seed: int = 0) -> Tensor:
    """A mask that holds about a ``share``."""
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) < share
