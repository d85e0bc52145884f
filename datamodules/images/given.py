"""What a source offers whose items are latents already."""

from typing import Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from datamodules.images.source import ImageSource


@runtime_checkable
class LatentSource(ImageSource, Protocol):
    """A source of latents: no encoder runs."""

    def latent(self, index: int) -> Float[Tensor, "c h w"]:
        """The item's latent."""
