"""Frozen diffusion models: image → latent → noisy latent → activation grids of any layer."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sdprobe.backbones.frozen_sd import FrozenSD

__all__ = ["FrozenSD"]


def __getattr__(name: str) -> Any:
    """Import FrozenSD on first use, so that presets and layer names can be read without it."""
    if name != "FrozenSD":
        raise AttributeError(f"module 'sdprobe.backbones' has no attribute '{name}'")
    from sdprobe.backbones.frozen_sd import FrozenSD

    return FrozenSD
