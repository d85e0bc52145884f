"""``images=texture``: pictures that look alike everywhere, so that nothing in them says where a place is. Step 1.

1/f noise has the spectrum of photographs and no layout. Periodic, it continues across its own border: the null that a
network with circular padding needs. Not periodic, it is a window out of a larger texture, as a photograph is of the world.

References:
    Field (1987), Relations between the statistics of natural images and the response properties of cortical cells.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from datamodules.images.source import DrawnImages
from sdprobe.utilities.rng import keyed_generator

MEAN, CONTRAST, COLOUR = 0.5, 0.18, 0.4  # of full scale; COLOUR: share of the contrast that each channel has of its own
CHANNELS, STRIDE = 4, 8  # of Stable Diffusion's latents
# of everything drawn in this file; raise it when a pixel or a latent changes
VERSION = 1


def pink(channels: int, side: int, periodic: bool, generator: torch.Generator) -> Float[Tensor, "{channels} {side} {side}"]:
    """Gaussian noise whose amplitude falls as 1 / frequency, without a mean, of unit variance in expectation.

    Not periodic: a window out of a texture of twice the side.
    """
    extent = side if periodic else 2 * side
    white = torch.fft.rfft2(torch.randn(channels, extent, extent, generator=generator))
    rows, cols = torch.fft.fftfreq(extent)[:, None], torch.fft.rfftfreq(extent)[None]
    frequency = (rows.square() + cols.square()).sqrt()
    amplitude = torch.where(frequency > 0, 1 / frequency.clamp(min=1 / (2 * extent)), 0)
    texture = torch.fft.irfft2(white * amplitude, s=(extent, extent))
    every = torch.fft.fftfreq(extent).square()
    power = every[:, None] + every[None]
    expected = torch.where(power > 0, 1 / power.clamp(min=1e-12), 0).mean().sqrt()  # standard deviation over all draws
    return (texture / expected)[:, :side, :side].contiguous()


class Textures(DrawnImages):
    """1/f noise pictures. Texture `index` depends on (seed, index, size, periodic) alone.

    Args:
        size: side in pixels, a multiple of 64.
        limit: number of textures.
        seed: which textures.
        periodic: continue across the border, left to right and top to bottom.
    """

    def __init__(self, size: int = 512, limit: int = 160, seed: int = 0, periodic: bool = True) -> None:
        super().__init__(size, limit, seed)
        self.periodic = periodic

    def picture(self, index: int) -> Float[Tensor, "3 size size"]:
        """One luminance for all channels, and a little colour."""
        noise = pink(4, self.size, self.periodic, self._generator(index))
        mixed = (1 - COLOUR**2) ** 0.5 * noise[3:] + COLOUR * noise[:3]
        return (MEAN + CONTRAST * mixed).clamp(0, 1)

    def name(self, index: int) -> str:
        """Kind, seed and number."""
        return f"{'periodic' if self.periodic else 'window'}-texture-{self.seed}-{self.position(index)}"

    def content_key(self, index: int) -> str:
        """Name, size and the version of the drawing."""
        return f"{self.name(index)}:{self.size}:{VERSION}"

    def _generator(self, index: int) -> torch.Generator:
        return keyed_generator("texture", self.seed, self.position(index), self.size, self.periodic)


class LatentTextures(Textures):
    """1/f noise drawn as latents, (4, size / 8, size / 8) of unit variance: no VAE has seen it, none is run.

    Its pictures show three of the four channels, for human eyes only.

    Args: those of :class:`Textures`.
    """

    def latent(self, index: int) -> Float[Tensor, "c h w"]:
        """The latent itself."""
        return pink(CHANNELS, self.size // STRIDE, self.periodic, self._generator(index))

    def picture(self, index: int) -> Float[Tensor, "3 size size"]:
        """Three channels, enlarged."""
        shown = (MEAN + CONTRAST * self.latent(index)[:3]).clamp(0, 1)
        return shown.repeat_interleave(STRIDE, 1).repeat_interleave(STRIDE, 2)

    def name(self, index: int) -> str:
        """Kind, seed and number."""
        return f"latent-{super().name(index)}"


class Constants(Textures):
    """Pictures of one colour each: what is left where an image shows nothing at all.

    Args:
        size, limit, seed: see :class:`Textures`.
        grey: shades of grey instead of colours.
    """

    def __init__(self, size: int = 512, limit: int = 160, seed: int = 0, grey: bool = False) -> None:
        super().__init__(size, limit, seed)
        self.grey = grey

    def picture(self, index: int) -> Float[Tensor, "3 size size"]:
        """A colour drawn at random."""
        colour = torch.rand(1 if self.grey else 3, 1, 1, generator=self._generator(index))
        return colour.expand(3, self.size, self.size).contiguous()

    def name(self, index: int) -> str:
        """Kind, seed and number."""
        return f"{'grey' if self.grey else 'constant'}-{self.seed}-{self.position(index)}"
