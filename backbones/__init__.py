"""Frozen diffusion models: image → latent → noisy latent → activation grids of any layer."""

import os
from typing import TYPE_CHECKING, Any

# read when the two are first imported: they warn about torchvision and dtype casts that are no news to anybody here
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")

if TYPE_CHECKING:
    from backbones.frozen_sd import FrozenSD

__all__ = ["FrozenSD"]


def __getattr__(name: str) -> Any:
    """Import FrozenSD on first use, so that ``python -m backbones.layers`` runs its module once."""
    if name != "FrozenSD":
        raise AttributeError(f"module 'backbones' has no attribute '{name}'")
    from backbones.frozen_sd import FrozenSD

    return FrozenSD
