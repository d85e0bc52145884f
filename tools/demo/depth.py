"""A U-Net whose depth carries what it predicts: skip connections that are cut for good, and a deep path that starts open.

With all skip connections, a U-Net that is only trained to denoise can predict from its outer stages alone, and the inner stages
lose their effect within a few hundred steps. A cut skip connection is one whose weights are zero: the graph, its layer names
and the files remain those of Stable Diffusion.
"""

from collections.abc import Iterator, Mapping, Sequence

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.resnet import ResnetBlock2D
from torch import nn

Skips = Mapping[str, Sequence[int]]


def cut_columns(unet: UNet2DConditionModel, skips: Skips) -> Iterator[tuple[ResnetBlock2D, int]]:
    """(Each residual block with a cut skip connection, the number of its input channels that are not the skip connection's).

    Args:
        unet: a network in Stable Diffusion's shape.
        skips: of an up stage (``up_0``, the deepest, …), the numbers of its residual blocks whose skip connection is cut.
    """
    widths = [unet.conv_in.out_channels]
    for block in unet.down_blocks:
        widths += [resnet.out_channels for resnet in block.resnets]
        widths += [down.out_channels for down in block.downsamplers or ()]
    for number, block in enumerate(unet.up_blocks):
        for place, resnet in enumerate(block.resnets):
            skip = widths.pop()
            if place in skips.get(f"up_{number}", ()):
                yield resnet, resnet.in_channels - skip


def columns(resnet: ResnetBlock2D, first: int) -> list[tuple[nn.Parameter, tuple[slice, ...]]]:
    """The weights that read the input channels from `first` on: the first norm, the first convolution, the shortcut."""
    rest, everything = slice(first, None), slice(None)
    return [
        (resnet.norm1.weight, (rest,)), (resnet.norm1.bias, (rest,)), (resnet.conv1.weight, (everything, rest)),
        (resnet.conv_shortcut.weight, (everything, rest)),
    ]  # fmt: skip


@torch.no_grad()
def is_cut(unet: UNet2DConditionModel, skips: Skips) -> bool:
    """Whether all weights of these skip connections are zero."""
    found = (weight[where] for block, first in cut_columns(unet, skips) for weight, where in columns(block, first))
    return not any(bool(weight.any()) for weight in found)


@torch.no_grad()
def cut(unet: UNet2DConditionModel, skips: Skips) -> None:
    """Set the weights of these skip connections to zero; after every step of an optimiser, which changes them."""
    for resnet, first in cut_columns(unet, skips):
        for weight, where in columns(resnet, first):
            weight[where] = 0


@torch.no_grad()
def open_path(unet: UNet2DConditionModel, skips: Skips) -> None:
    """Let every up stage whose skip connections are all cut pass on its input unchanged, beside what it computes from it.

    Its shortcuts and the convolution after its upsampling become the identity on the channels that do not come from a skip
    connection: a network that was trained with its skip connections may have switched them off.
    """
    for number, block in enumerate(unet.up_blocks):
        if len(skips.get(f"up_{number}", ())) < len(block.resnets):
            continue
        for resnet in block.resnets:
            hidden = resnet.out_channels
            resnet.conv_shortcut.weight[:, :hidden] = torch.eye(hidden)[:, :, None, None]
            resnet.conv_shortcut.bias.zero_()
        for up in block.upsamplers or ():
            nn.init.dirac_(up.conv.weight)
            up.conv.bias.zero_()
