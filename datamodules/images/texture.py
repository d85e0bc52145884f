"""``images=texture``, ``texture_latents``, ``constant``: pictures with the same statistics everywhere. Data path step 1.

Nothing in them depends on position. 1/f noise has the spectrum of photographs and no layout. Periodic noise continues across
its own border: with circular padding a network cannot infer position from it, which makes it the baseline of all other
conditions. Noise that is not periodic is a window of a larger texture, as a photograph is a window of the world.

References:
    Field (1987), Relations between the statistics of natural images and the response properties of cortical cells.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from datamodules.images.source import DrawnImages
from sdprobe.utilities.rng import keyed_generator

MEAN, CONTRAST, COLOUR = 0.5, 0.18, 0.4  # MEAN, CONTRAST: of full scale; COLOUR: share of contrast that channels do not share
CHANNELS, STRIDE = 4, 8  # of Stable Diffusion's latents
# of everything drawn in this file; raise it when a pixel or a latent changes
VERSION = 1


def pink(channels: int, side: int, periodic: bool, generator: torch.Generator) -> Float[Tensor, "{channels} {side} {side}"]:
    """Gaussian noise with an amplitude of 1 / frequency, mean 0 and, in expectation, variance 1.

    Noise that is not periodic is a window of a texture of twice the side.
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
    """Pictures of 1/f noise: they have the spectrum of photographs but no layout.

    Items are (3, size, size) in [0, 1]. Texture ``index`` depends on (seed, index, size, periodic) only.

    Args:
        size: side of the square images in pixels, a positive multiple of 64; 512 is what SD-1.x and 2.x were trained on.
        limit: number of textures, at least 1.
        seed: seed of the textures.
        periodic: the texture continues from the right border to the left one and from the bottom to the top. Otherwise it is a
            window of a larger texture.

    Raises:
        InputError: ``size`` or ``limit`` out of range.

    References:
        Field (1987), Relations between the statistics of natural images and the response properties of cortical cells.

    Example:
        >>> textures = Textures(size=64, limit=10)
        >>> textures[0]["id"], tuple(textures[0]["image"].shape)
        ('periodic-texture-0-0', (3, 64, 64))
    """

    def __init__(self, size: int = 512, limit: int = 160, seed: int = 0, periodic: bool = True) -> None:
        super().__init__(size, limit, seed)
        self.periodic = periodic

    def picture(self, index: int) -> Float[Tensor, "3 size size"]:
        """Return the pixels (3, size, size) in [0, 1]: one luminance for all channels, with a little colour."""
        noise = pink(4, self.size, self.periodic, self._generator(index))
        mixed = (1 - COLOUR**2) ** 0.5 * noise[3:] + COLOUR * noise[:3]
        return (MEAN + CONTRAST * mixed).clamp(0, 1)

    def name(self, index: int) -> str:
        """Return the kind, seed and number of the picture."""
        return f"{'periodic' if self.periodic else 'window'}-texture-{self.seed}-{self.position(index)}"

    def content_key(self, index: int) -> str:
        """Return the name and size of the picture, and the version of the drawing."""
        return f"{self.name(index)}:{self.size}:{VERSION}"

    def _generator(self, index: int) -> torch.Generator:
        return keyed_generator("texture", self.seed, self.position(index), self.size, self.periodic)


class LatentTextures(Textures):
    """1/f noise drawn as latents, (4, size / 8, size / 8) of variance 1, so that no VAE is involved.

    Its pictures show three of the four channels; the network does not see them.

    Args:
        size: side of the images that the latents stand for, in pixels, a positive multiple of 64.
        limit: number of latents, at least 1.
        seed: seed of the latents.
        periodic: the noise continues across the border. Otherwise it is a window of a larger texture.

    Raises:
        InputError: ``size`` or ``limit`` out of range.

    Example:
        >>> tuple(LatentTextures(size=64, limit=10).latent(0).shape)
        (4, 8, 8)
    """

    def latent(self, index: int) -> Float[Tensor, "c h w"]:
        """Return the latent (4, size / 8, size / 8) of an item."""
        return pink(CHANNELS, self.size // STRIDE, self.periodic, self._generator(index))

    def picture(self, index: int) -> Float[Tensor, "3 size size"]:
        """Return the pixels (3, size, size) in [0, 1]: three channels of the latent, enlarged."""
        shown = (MEAN + CONTRAST * self.latent(index)[:3]).clamp(0, 1)
        return shown.repeat_interleave(STRIDE, 1).repeat_interleave(STRIDE, 2)

    def name(self, index: int) -> str:
        """Return the kind, seed and number of the picture."""
        return f"latent-{super().name(index)}"


class Constants(Textures):
    """Pictures of one random colour each, without any content.

    Items are (3, size, size) in [0, 1].

    Args:
        size: side of the square images in pixels, a positive multiple of 64; 512 is what SD-1.x and 2.x were trained on.
        limit: number of pictures, at least 1.
        seed: seed of the colours.
        grey: draw shades of grey instead of colours.

    Raises:
        InputError: ``size`` or ``limit`` out of range.

    Example:
        >>> image = Constants(size=64, limit=10, grey=True)[0]["image"]
        >>> tuple(image.shape), len(image.unique())
        ((3, 64, 64), 1)
    """

    def __init__(self, size: int = 512, limit: int = 160, seed: int = 0, grey: bool = False) -> None:
        super().__init__(size, limit, seed)
        self.grey = grey

    def picture(self, index: int) -> Float[Tensor, "3 size size"]:
        """Return the pixels (3, size, size) of one random colour, in [0, 1]."""
        colour = torch.rand(1 if self.grey else 3, 1, 1, generator=self._generator(index))
        return colour.expand(3, self.size, self.size).contiguous()

    def name(self, index: int) -> str:
        """Return the kind, seed and number of the picture."""
        return f"{'grey' if self.grey else 'constant'}-{self.seed}-{self.position(index)}"
