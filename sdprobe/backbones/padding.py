"""Padding mode of a network's convolutions: zeros as trained, or a continuation of the picture. Data path steps 2 and 4.

Zero padding is the only part of a U-Net or VAE whose output depends on the position of a token; all other operations treat
every position alike. With ``circular`` padding a network has no source of position, so any position that it still shows comes
from its input.

References:
    Islam et al. (2020), How Much Position Information Do Convolutional Neural Networks Encode?
    Alsallakh et al. (2021), Mind the Pad: CNNs can Develop Blind Spots.
"""

from collections.abc import Iterator
from typing import Literal, cast

from diffusers.models.downsampling import Downsample2D
from torch import Tensor, nn

from sdprobe.utilities import settings
from sdprobe.utilities.errors import InputError

_BEHIND = [0, 1, 0, 1]  # one column on the right, one row below: what the VAE's downsampler pads itself
_NOT_AT_ALL = [0, 0, 0, 0]


def check_padding(mode: str) -> None:
    """Raises InputError unless ``mode`` is one of PADDINGS."""
    settings.check("backbone", padding=mode)


def check_sides(mode: str, latents: Tensor, levels: int) -> None:
    """Raises InputError where the deepest of ``levels`` grids has one token per side, which reflection cannot pad."""
    height, width = latents.shape[-2:]
    least = 2**levels
    if mode == "reflect" and min(height, width) < least:
        raise InputError(
            f"Expected at least {least} latent cells per side for padding=reflect, but got {height}×{width}. "
            "Use larger images (images.size=128 is enough for Stable Diffusion)."
        )


def set_padding(network: nn.Module, mode: str) -> None:
    """Set the padding ``mode`` of every convolution with a kernel above 1×1. Weights, modules and hooks do not change.

    The downsampler of diffusers' VAE pads with zeros outside its convolution, where ``padding_mode`` has no effect. For it,
    the convolution pads instead, on the same two sides. ``zeros`` undoes this, so that the network computes bit for bit what
    it did before.

    Raises:
        InputError: an unknown mode, or a network without convolutions that pad.
    """
    check_padding(mode)
    if mode != "zeros" and not any(set(_pads(convolution)) != {0} for convolution in convolutions(network)):
        raise InputError(
            f"Expected padding=zeros for {type(network).__name__}, which has no convolutions that pad, but got '{mode}'. "
            "Change its position embeddings instead: with sd.unet.positioned('zero')."
        )
    name = cast(Literal["zeros", "reflect", "replicate", "circular"], mode)
    for convolution in convolutions(network):
        convolution.padding_mode = name
    for sampler in _self_padding(network):
        assert isinstance(sampler.conv, nn.Conv2d)
        ours = mode != "zeros"
        sampler.padding = 1 if ours else 0  # with 0 the downsampler pads itself
        sampler.conv._reversed_padding_repeated_twice = list(_BEHIND if ours else _NOT_AT_ALL)
        sampler.conv.padding_mode = name


def _pads(convolution: nn.Conv2d) -> tuple[int | str, ...]:
    return (convolution.padding,) if isinstance(convolution.padding, str) else tuple(convolution.padding)


def convolutions(network: nn.Module) -> Iterator[nn.Conv2d]:
    """The convolutions with a kernel above 1×1, which pad."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d) and max(module.kernel_size) > 1:
            yield module


def _self_padding(network: nn.Module) -> Iterator[Downsample2D]:
    for module in network.modules():
        if isinstance(module, Downsample2D) and module.use_conv and tuple(module.conv.padding) == (0, 0):
            yield module
