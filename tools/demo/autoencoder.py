"""The demo model's VAE: diffusers' AutoencoderKL at 8x, trained on crops of scenes."""

import math
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from diffusers.models.downsampling import Downsample2D
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.upsampling import Upsample2D
from jaxtyping import Float, UInt8
from lightning.fabric import Fabric
from omegaconf import DictConfig
from torch import Tensor, nn
from torch.utils.data import DataLoader

from datamodules.images.scenes import Scenes
from sdprobe.utilities.io import read_state, write_state
from tools.demo.states import Clock, log_line

CARRIER = 4.0  # constant in two channels; it fixes the scale of the group norms, so that they preserve colours


def build(widths: list[int]) -> AutoencoderKL:
    """An untrained 8x autoencoder with 4 latent channels, one group per norm, initialised by :func:`pass_through`."""
    vae = AutoencoderKL(
        block_out_channels=tuple(widths),
        layers_per_block=1,
        norm_num_groups=1,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        mid_block_add_attention=False,
        sample_size=512,
    )
    pass_through(vae)
    return vae


@torch.no_grad()
def pass_through(vae: AutoencoderKL) -> None:
    """Initialise as a thumbnail: three latent channels are the colour of each 8x8 cell, and decoding repeats it.

    Channels 0-2 carry the colours, 3-5 their negatives (silu(x) - silu(-x) = x undoes the last activation), 6 and 7 the
    carrier; residual branches start at zero. From random weights, colours took most of the training to appear.
    """
    for module in vae.modules():
        if isinstance(module, ResnetBlock2D):
            nn.init.zeros_(module.conv2.weight)
            nn.init.zeros_(module.conv2.bias)
            if module.conv_shortcut is not None:
                _forward_first_channels(module.conv_shortcut, slice(0, 1), 1.0)
        elif isinstance(module, Downsample2D):
            _forward_first_channels(module.conv, slice(0, 2), 0.25)
        elif isinstance(module, Upsample2D):
            _forward_first_channels(module.conv, slice(1, 2), 1.0)
    for half in (vae.encoder, vae.decoder):
        first, last = half.conv_in, half.conv_out
        scale = CARRIER * math.sqrt(2 / last.in_channels)
        for tensor in (first.weight[:8], first.bias, last.weight[:3], last.bias):
            tensor.zero_()
        last.weight[3:] *= 0.1
        for colour in range(3):
            first.weight[colour, colour, 1, 1], first.weight[colour + 3, colour, 1, 1] = 1, -1
            last.weight[colour, colour, 1, 1], last.weight[colour, colour + 3, 1, 1] = scale, -scale
        first.bias[6], first.bias[7] = CARRIER, -CARRIER
    for conv in (vae.quant_conv, vae.post_quant_conv):
        conv.weight *= 0.1
        conv.bias[:] = 0
        conv.weight[range(4), range(4)] = 1
    vae.quant_conv.bias[4:] = -6  # log-variance: nearly no noise


def _forward_first_channels(conv: nn.Conv2d, taps: slice, value: float) -> None:
    """Output channels 0-7 copy the input channels 0-7, with `value` at every tap of the kernel."""
    conv.weight *= 0.3
    for tensor in (conv.weight[:8], conv.bias):
        nn.init.zeros_(tensor)  # type: ignore[arg-type]
    for channel in range(8):
        conv.weight[channel, channel, taps, taps] = value


def pictures(seed: int, count: int, size: int) -> UInt8[Tensor, "count 3 size size"]:
    """`count` scenes as bytes."""
    loader = DataLoader(Scenes(size, count, seed), batch_size=None, num_workers=2)
    return torch.stack([(item["image"] * 255).round().to(torch.uint8) for item in loader])


def crops(pools: list[Tensor], side: int, batch: int, generator: torch.Generator) -> Float[Tensor, "batch 3 side side"]:
    """Random crops, in [-1, 1], from random pictures of one of the pools."""

    def draw(bound: int) -> int:
        return int(torch.randint(bound, (), generator=generator))

    pool = pools[draw(len(pools))]
    picked = []
    for _ in range(batch):
        image = pool[draw(len(pool))]
        top, left = draw(image.shape[1] - side + 1), draw(image.shape[2] - side + 1)
        picked.append(image[:, top : top + side, left : left + side])
    return torch.stack(picked).float() / 127.5 - 1


def loss(vae: Any, images: Float[Tensor, "b 3 h w"], kl: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """(absolute and squared error of pixels, absolute error of their differences, plus KL; the absolute error alone)."""
    posterior = vae.encode(images).latent_dist
    mean, log_variance = posterior.mean, posterior.logvar
    noise = torch.randn(mean.shape, generator=generator).to(mean.device)
    shown = vae.decode(mean + noise * (0.5 * log_variance).exp()).sample
    error = (shown - images).abs().mean()
    squares = (shown - images).square().mean()
    edges = sum((shown.diff(dim=d) - images.diff(dim=d)).abs().mean() for d in (-1, -2))
    divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()
    return error + squares + edges + kl * divergence, error.detach()


def train(config: DictConfig, seed: int, work: Path, fabric: Fabric, save_every: float) -> AutoencoderKL:
    """The trained autoencoder; resumes from a saved state in `work`."""
    torch.manual_seed(seed)
    vae = build(config.widths)
    optimiser = torch.optim.AdamW(vae.parameters(), config.rate, weight_decay=0.0)
    state = {"vae": vae.state_dict(), "optimiser": optimiser.state_dict(), "step": 0}
    path = work / "autoencoder.pt"
    stored = read_state(path) if path.exists() else None
    if stored:
        state = stored
        vae.load_state_dict(state["vae"])
        optimiser.load_state_dict(state["optimiser"])
    start = int(state["step"])
    if start < config.steps:
        scenes = config.scenes
        pools = [pictures(scenes.seed, scenes.count, size) for size in scenes.sizes]
        module, optimiser = fabric.setup(vae.to(memory_format=torch.channels_last), optimiser)
        module.mark_forward_method("encode")
        module.mark_forward_method("decode")
        clock, errors = Clock(save_every), []
        for step in range(start, config.steps):
            generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
            for group in optimiser.param_groups:
                group["lr"] = config.rate * min(1.0, step / 50) * 0.5 * (1 + math.cos(math.pi * step / config.steps))
            images = fabric.to_device(crops(pools, config.crop, config.batch, generator))
            value, error = loss(module, images.to(memory_format=torch.channels_last), config.kl, generator)
            optimiser.zero_grad()
            fabric.backward(value)
            fabric.clip_gradients(module, optimiser, max_norm=2.0)
            optimiser.step()
            errors.append(error.item())
            if step % 50 == 49 and fabric.is_global_zero:
                log_line(work / "autoencoder.csv", step=step + 1, error=sum(errors) / len(errors))
                errors = []
            if (clock.due() or step + 1 == config.steps) and fabric.is_global_zero:
                write_state(path, {"vae": vae.state_dict(), "optimiser": optimiser.state_dict(), "step": step + 1})
    return scaled(vae.eval(), config)


@torch.no_grad()
def scaled(vae: AutoencoderKL, config: DictConfig) -> AutoencoderKL:
    """Sets the scaling factor that gives latents of unit variance on the training scenes."""
    images = pictures(config.scenes.seed, 16, 512).float() / 127.5 - 1
    deviation = torch.cat([vae.encode(image[None]).latent_dist.mean for image in images]).std()
    vae.register_to_config(scaling_factor=round(float(1 / deviation), 4))
    return vae
