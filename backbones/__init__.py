"""Frozen diffusion models: image → latent → noisy latent → activation grids of any layer."""

import os
from typing import TYPE_CHECKING, Any

# read when the two are first imported: they warn about torchvision and dtype casts that are no news to anybody here
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
# read when torch makes its first tensor: activations in huge pages, since one batch of them costs 100 000 page faults else
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

if TYPE_CHECKING:
    from backbones.frozen_sd import FrozenSD

__all__ = ["FrozenSD"]


def __getattr__(name: str) -> Any:
    """Import FrozenSD on first use, so that ``python -m backbones.layers`` runs its module once."""
    if name != "FrozenSD":
        raise AttributeError(f"module 'backbones' has no attribute '{name}'")
    from backbones.frozen_sd import FrozenSD

    return FrozenSD
