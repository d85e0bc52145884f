"""LatentEncoder: image → latent, through the checkpoint's VAE. Data path step 2."""

import logging
from collections.abc import Sequence
from contextlib import nullcontext
from functools import cached_property
from typing import Any

import torch
from diffusers import AutoencoderDC, AutoencoderKL
from jaxtyping import Bool, Float
from torch import Tensor

from sdprobe.backbones.padding import convolutions
from sdprobe.backbones.precision import name_of
from sdprobe.backbones.weights import weight_hash
from sdprobe.utilities import settings
from sdprobe.utilities.errors import InputError
from sdprobe.utilities.rng import keyed_generator

log = logging.getLogger(__name__)
LOG_VARIANCE_FLOOR = -30.0
# version of LatentEncoder's results; increase it when a latent changes for the same weights and images
VERSION = 1


class LatentEncoder:
    """Mode (or a sample) of the VAE's posterior, times the scaling factor.

    The autoencoder of Sana (``AutoencoderDC``) has no posterior but one latent, which ``mode`` returns.

    If the VAE's configuration has ``latents_mean`` and ``latents_std``, they standardise its channels first, as in diffusers.

    Args:
        vae: frozen; the caller moves and casts it.
        vae_input: range that images are mapped to: ``symmetric`` ([-1, 1], as Stable Diffusion was trained) or ``unit`` ([0,
            1], as Loos & Linhardt (2025) used it).
        posterior: ``mode``, or ``sample`` with noise keyed by seed and image id.
        dtype: that the VAE computes in; None is the dtype of its weights.
        weights: hash of the weights in this dtype; None computes it.

    Raises:
        InputError: an option that does not exist, or a mean or deviation that does not fit the VAE.
    """

    def __init__(
        self,
        vae: AutoencoderKL | AutoencoderDC,
        vae_input: str = "symmetric",
        posterior: str = "mode",
        dtype: torch.dtype | None = None,
        weights: str | None = None,
    ) -> None:
        self.vae = vae.eval().requires_grad_(False)
        settings.check("backbone", vae_input=vae_input, posterior=posterior)
        self._has_posterior = not isinstance(vae, AutoencoderDC)
        if posterior == "sample" and not self._has_posterior:
            raise InputError("Expected posterior=mode for an autoencoder without a posterior, but got 'sample'. Use mode.")
        self.vae_input, self.posterior = vae_input, posterior
        self.padding = "zeros"  # padding of the VAE's convolutions; code that changes it must set this, too
        self.passes = 0
        self.dtype = dtype
        self.weights = weights or weight_hash(vae, dtype)
        self.moments = _moments(vae)

    def key(self, seed: int) -> str:
        """What a latent depends on besides the image: version, weights, scale, range, posterior (its seed), dtype, padding."""
        posterior = self.posterior if self.posterior == "mode" else f"sample{seed}"
        padding = "" if self.padding == "zeros" else f"-{self.padding}"
        scale, dtype = self._scale_and_dtype
        return f"{VERSION}-{self.weights[:16]}-{scale}-{self.vae_input}-{posterior}-{dtype}{padding}"

    @cached_property
    def _scale_and_dtype(self) -> tuple[str, str]:
        scale = f"{self.vae.config.scaling_factor}-{self.vae.config.get('shift_factor')}"
        scale += f"-{self.moments.tolist()}" if self.moments is not None else ""
        return scale, name_of(self.dtype or self.vae.dtype)  # diffusers walks through all modules for the dtype

    @property
    def stride(self) -> int:
        """Pixels per latent cell, 8 for Stable Diffusion."""
        return 2 ** (len(self._widths) - 1)

    @property
    def width(self) -> int:
        """Channels of the first layer, at full resolution."""
        return self._widths[0]

    @property
    def _widths(self) -> Sequence[int]:
        return self.vae.config.get("encoder_block_out_channels") or self.vae.config.block_out_channels

    def __call__(
        self, images: Float[Tensor, "b 3 height width"], ids: Sequence[str], seed: int = 0, with_grad: bool = False
    ) -> Float[Tensor, "b _c h w"]:
        """Latents, float32, on the VAE's device.

        Args:
            images: in [0, 1]; height and width multiples of ``stride``.
            ids: names of the images; with ``seed`` they key the posterior samples.
            seed: of posterior samples; the mode does not depend on it.
            with_grad: record gradients with respect to the images.

        Raises:
            InputError: images outside [0, 1] or of an unfit size.
        """
        with nullcontext() if with_grad else torch.no_grad():
            return self._latents(images, ids, seed)

    def _latents(self, images: Tensor, ids: Sequence[str], seed: int) -> Tensor:
        encoded = self._encoded(images, ids)
        posterior = encoded.latent_dist if self._has_posterior else None
        latents = encoded.latent.float() if posterior is None else posterior.mean.float()
        if posterior is not None and self.posterior == "sample":
            noise = [torch.randn(latents.shape[1:], generator=keyed_generator("posterior", seed, i)) for i in ids]
            latents = latents + posterior.std.float() * torch.stack(noise).to(latents.device)
        if self.moments is not None:
            mean, deviation = self.moments.to(latents.device).view(2, 1, -1, 1, 1)
            latents = (latents - mean) / deviation
        return (latents - (self.vae.config.get("shift_factor") or 0.0)) * self.vae.config.scaling_factor

    @torch.no_grad()
    def floor_cells(self, images: Float[Tensor, "b 3 height width"]) -> Bool[Tensor, "b h w"]:
        """Cells where the posterior log-variance of any channel is at −30, the lower limit that diffusers clamps it to.

        There the VAE is certain about its latent. Such cells are suspected to become high-norm tokens of the first layers.

        Raises:
            InputError: images outside [0, 1] or of an unfit size, or an autoencoder without a posterior.
        """
        if not self._has_posterior:
            raise InputError(
                "Expected an autoencoder with a posterior, whose variance is asked for, but AutoencoderDC has none. "
                "Leave it out."
            )
        posterior = self._encoded(images, [f"image {i}" for i in range(len(images))]).latent_dist
        return (posterior.logvar <= LOG_VARIANCE_FLOOR).any(1)

    def _encoded(self, images: Tensor, ids: Sequence[str]) -> Any:
        """The output of the autoencoder: a posterior (``latent_dist``) or a ``latent``."""
        self._check(images, ids)
        parameter = next(self.vae.parameters())
        pixels = images.to(parameter.device, self.dtype or parameter.dtype, memory_format=torch.channels_last)
        if self.vae_input == "symmetric":
            pixels = pixels * 2 - 1
        self.passes += len(images)
        return self.vae.encode(pixels)

    def _check(self, images: Tensor, ids: Sequence[str]) -> None:
        if not 0 < len(images) == len(ids):
            raise InputError(
                f"Expected one id per image and at least one image, but got {len(ids)} ids for {len(images)} images."
            )
        low, high = images.min().item(), images.max().item()
        if not (low >= 0 and high <= 1):  # also false for NaN
            raise InputError(
                f"Expected images in the range [0, 1], but got values from {low:.3g} to {high:.3g} "
                f"in {', '.join(ids[:3])}. Divide 8-bit images by 255; undo any other normalisation."
            )
        if any(side % self.stride for side in images.shape[-2:]):
            raise InputError(
                f"Expected image sides to be multiples of {self.stride} pixels, but got "
                f"{images.shape[-2]}×{images.shape[-1]}. Crop or resize the images."
            )
        if self.padding == "reflect":
            # the deepest grid, that of the latent, is reflected by half a kernel
            least = self.stride * (1 + max(each.kernel_size[0] // 2 for each in convolutions(self.vae)))
            if min(images.shape[-2:]) < least:
                raise InputError(
                    f"Expected image sides of at least {least} pixels for padding=reflect, but got "
                    f"{images.shape[-2]}×{images.shape[-1]}. Use larger images."
                )


def _moments(vae: AutoencoderKL | AutoencoderDC) -> Tensor | None:
    """Mean and standard deviation (2, channels) of the latents, if the VAE's configuration has both."""
    stated = vae.config.get("latents_mean"), vae.config.get("latents_std")
    if None in stated:
        return None
    channels = vae.config.latent_channels
    try:
        moments = torch.tensor(stated, dtype=torch.float32)
        fits = moments.shape == (2, channels) and bool(moments.isfinite().all() and (moments[1] > 0).all())
    except (TypeError, ValueError):
        fits = False
    if not fits:
        raise InputError(
            f"Expected latents_mean and latents_std of the VAE to be {channels} numbers each, the deviations above 0, "
            f"but got {stated[0]} and {stated[1]}. Correct vae/config.json."
        )
    return moments


def warn_if_unusual(latents: Float[Tensor, "n c h w"]) -> None:
    """Warn when latents do not have the unit scale a diffusion U-Net expects: standard deviation in [0.5, 2]."""
    deviation = latents.float().std().item()
    if not 0.5 <= deviation <= 2:
        log.warning(
            "The latents have standard deviation %.2f, expected 0.5 to 2: check the images' range (vae_input) "
            "and the VAE's scaling_factor.",
            deviation,
        )
