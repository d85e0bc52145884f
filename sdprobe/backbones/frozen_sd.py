"""FrozenSD: a checkpoint's encoder, noise, prompts and U-Net together. Data path steps 2 to 4."""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sdprobe.backbones.architectures import presets
from sdprobe.backbones.latents import LatentEncoder
from sdprobe.backbones.layers import INPUTS
from sdprobe.backbones.loading import Components, load
from sdprobe.backbones.noise import NoiseSchedule
from sdprobe.backbones.padding import check_padding, check_sides, set_padding
from sdprobe.backbones.precision import check_finite, choose_device, choose_dtype, name_of
from sdprobe.backbones.unet import FrozenUNet
from sdprobe.backbones.weights import config_hash, weight_hash
from sdprobe.utilities.errors import InputError


class FrozenSD:
    """A frozen Stable Diffusion checkpoint that turns images into activation grids.

    >>> sd = FrozenSD.from_pretrained("tiny")
    >>> grids = sd.activations(torch.rand(2, 3, 128, 128), layers=["mid", "up_1"], timestep=50, seed=0)
    >>> {layer: tuple(grid.shape) for layer, grid in grids.items()}
    {'mid': (2, 64, 2, 2), 'up_1': (2, 64, 8, 8)}
    """

    def __init__(
        self,
        components: Components,
        path: str,
        weights: str = "stored",
        noise: str = "independent",
        vae_input: str = "symmetric",
        posterior: str = "mode",
        scale_again: bool = False,
        device: torch.device | str = "cpu",
        padding: str = "zeros",
    ) -> None:
        self.path = path
        self.weights = weights
        self.unet = FrozenUNet(components.unet)
        self.encoder = LatentEncoder(components.vae, vae_input, posterior)
        self.prompts = components.prompts
        self.noise = NoiseSchedule(components.alphas_cumprod, noise, scale_again and components.euler)
        latent_channels = components.vae.config.latent_channels
        if self.unet.config.in_channels != latent_channels:
            raise InputError(
                f"Expected a text-to-image U-Net with {latent_channels} input channels, but {path} has "
                f"{self.unet.config.in_channels}. Inpainting and other conditioned U-Nets are not supported."
            )
        self.unet_hash = weight_hash(components.unet)
        self._pad(padding)
        self.to(device)

    @classmethod
    def from_pretrained(
        cls,
        path: str,
        *,
        revision: str | None = None,
        variant: str | None = "preset",
        weights: str = "stored",
        weights_seed: int = 0,
        precision: str = "auto",
        device: str = "auto",
        noise: str = "independent",
        vae_input: str = "symmetric",
        posterior: str = "mode",
        scale_again: bool = False,
        padding: str = "zeros",
    ) -> "FrozenSD":
        """Load a checkpoint.

        Args:
            path: a preset (``demo tiny sd14 sd15 sd21 sd_turbo sdxl sdxl_turbo``), a local diffusers folder, or a hub
                repository ``owner/name``.
            revision: branch, tag or commit of a hub repository.
            variant: ``fp16`` takes half-precision weight files where the repository has them, None those without a variant;
                ``preset`` what the preset says, None elsewhere.
            weights: ``stored`` in the checkpoint, ``random``: the same U-Net freshly initialised, or ``shuffled``: its stored
                entries permuted inside each tensor (the VAE stays as it is).
            weights_seed: seed of random and shuffled weights.
            precision: ``auto`` (bf16 where it is fast), ``bf16``, ``fp16`` or ``fp32``.
            device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
            noise: see :class:`~sdprobe.backbones.noise.NoiseSchedule`.
            vae_input: see :class:`~sdprobe.backbones.latents.LatentEncoder`; so for ``posterior``.
            scale_again: see :class:`~.NoiseSchedule`; takes effect on checkpoints with an Euler scheduler.
            padding: what convolutions of U-Net and VAE see beyond the border: ``zeros`` (as trained), ``replicate``,
                ``reflect`` or ``circular``; see :meth:`padded` for a while only.

        Raises:
            InputError: no such checkpoint, damaged or pickled weights, or an option that does not exist.
        """
        check_padding(padding)  # before anything is loaded
        card = presets().get(path, {"path": path, "revision": None, "variant": None})
        chosen_device = choose_device(device)
        components = load(
            card["path"],
            revision or card["revision"],
            card["variant"] if variant == "preset" else variant,
            weights,
            weights_seed,
            choose_dtype(precision, chosen_device),
        )
        label = weights if weights == "stored" else f"{weights}-{weights_seed}"
        return cls(components, card["path"], label, noise, vae_input, posterior, scale_again, chosen_device, padding)

    @property
    def dtype(self) -> torch.dtype:
        """dtype of the U-Net."""
        return self.unet.unet.dtype

    @property
    def passes(self) -> dict[str, int]:
        """Images sent so far through the U-Net and the encoder."""
        return {"unet": self.unet.passes, "encoder": self.encoder.passes}

    def to(self, device: torch.device | str) -> "FrozenSD":
        """Move all networks; convolutions run channels-last."""
        self.device = torch.device(device)
        for network in (self.unet, self.encoder.vae):
            network.to(self.device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        for encoder in self.prompts.encoders:
            encoder.to(self.device)
        return self

    @property
    def padding(self) -> str:
        """What convolutions of U-Net and VAE see beyond the border now."""
        return self.encoder.padding

    @contextmanager
    def padded(self, mode: str) -> Iterator["FrozenSD"]:
        """This backbone with another padding, inside a ``with`` block; afterwards it computes bit for bit what it did before.

        >>> sd = FrozenSD.from_pretrained("tiny")
        >>> with sd.padded("circular"):
        ...     sd.padding
        'circular'
        >>> sd.padding
        'zeros'

        Raises:
            InputError: an unknown padding.
        """
        before = self.padding
        self._pad(mode)
        try:
            yield self
        finally:
            self._pad(before)

    def _pad(self, mode: str) -> None:
        for network in (self.unet.unet, self.encoder.vae):
            set_padding(network, mode)
        self.encoder.padding = mode

    def activations(
        self,
        images: Float[Tensor, "b 3 height width"],
        layers: str | Sequence[str],
        timestep: int = 50,
        seed: int = 0,
        prompt: str = "",
        ids: Sequence[str] | None = None,
        draw: int = 0,
    ) -> dict[str, Float[Tensor, "b _c _h _w"]]:
        """Activation grids of a batch of images, on the device.

        Args:
            images: in [0, 1]; sides multiples of 8 pixels (64 keep every grid exact).
            layers: anything ``block=`` takes: names, a list, a glob, ``stages``, ``all``, ``loos2025``.
            timestep: noise level in [0, 1000).
            seed: with ``ids`` it keys the noise of each image.
            prompt: conditioning text.
            ids: names of the images; by default digests of their pixels, so that noise never depends on the batch.
            draw: counts repeated noise on the same images.

        Raises:
            InputError: images outside [0, 1], an unknown layer, a timestep out of range, NaN or Inf activations.
        """
        self.noise.check(timestep)
        names = self.unet.resolve(layers)
        ids = [_digest(image) for image in images] if ids is None else ids
        return self.grids(self.encoder(images, ids, seed), ids, names, timestep, seed, prompt, draw)

    def grids(
        self,
        latents: Float[Tensor, "b c h w"],
        ids: Sequence[str],
        layers: Sequence[str],
        timestep: int,
        seed: int,
        prompt: str,
        draw: int = 0,
    ) -> dict[str, Float[Tensor, "b _c _h _w"]]:
        """Activation grids for latents; ``layers`` are canonical names, see :meth:`FrozenUNet.resolve`."""
        check_sides(self.padding, latents, len(self.unet.config.block_out_channels))
        latents = latents.to(self.device)
        noisy = self.noise(latents, timestep, ids, seed, draw)
        inputs = {"latent": latents, "noisy_latent": noisy}
        grids = {name: inputs[name] for name in layers if name in INPUTS}
        inner = [name for name in layers if name not in INPUTS]
        if inner:
            conditioning = self.prompts(prompt, self.device, self.dtype)
            grids |= self.unet(noisy.to(self.dtype, memory_format=torch.channels_last), timestep, conditioning, inner)
        check_finite(grids, ids, self.dtype)
        return grids

    def shapes(self, size: int, layers: Sequence[str]) -> dict[str, tuple[int, int, int]]:
        """(C, h, w) of layers for square images of ``size`` pixels, without compute."""
        side = size // self.encoder.stride
        inner = [name for name in layers if name not in INPUTS]
        shapes = self.unet.shapes((side, side), inner) if inner else {}
        channels = self.unet.config.in_channels
        return {name: (channels, side, side) if name in INPUTS else shapes[name] for name in layers}

    def published_names(self, layers: Sequence[str]) -> dict[str, str]:
        """Layer → the name that papers and diffusers use, such as ``up_blocks[1].upsamplers[0]``."""
        return {name: self.unet.layers[name].published if name in self.unet.layers else name for name in layers}

    def describe(self) -> dict[str, Any]:
        """What identifies this backbone in a run's record."""
        return {
            "model": self.path,
            "weights": self.weights,
            "unet_hash": self.unet_hash,
            "unet_config_hash": config_hash(self.unet.config),
            "vae_hash": self.encoder.weights,
            "text_hash": self.prompts.weights,
            "schedule_hash": hashlib.sha256(self.noise.alphas_cumprod.numpy().tobytes()).hexdigest(),
            "precision": name_of(self.dtype),
            "device": str(self.device),
            "noise": self.noise.mode,
            "vae_input": self.encoder.vae_input,
            "posterior": self.encoder.posterior,
            "scaled_again": self.noise.scale_again,
            "padding": self.padding,
        }


def _digest(image: Tensor) -> str:
    return hashlib.blake2b(image.detach().float().cpu().contiguous().numpy().tobytes(), digest_size=8).hexdigest()
