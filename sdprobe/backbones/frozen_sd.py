"""FrozenSD: a checkpoint's encoder, noise schedule, prompt encoder and U-Net in one object. Data path steps 2 to 4."""

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
from sdprobe.backbones.parts import check_fit
from sdprobe.backbones.precision import check_finite, choose_device, choose_dtype, name_of
from sdprobe.backbones.unet import FrozenUNet
from sdprobe.backbones.weights import config_hash, weight_hash


class FrozenSD:
    """A frozen Stable Diffusion checkpoint that turns images into activation grids.

    Use :meth:`from_pretrained` to load one. Nothing trains, and no gradient is recorded.

    Args:
        components: the loaded networks, see :func:`sdprobe.backbones.loading.load`.
        path: name under which :meth:`describe` reports the checkpoint.
        weights: name of the weights for :meth:`describe`: ``stored``, ``random-SEED`` or ``shuffled-SEED``.
        noise: mode of the noise, see :class:`~sdprobe.backbones.noise.NoiseSchedule`.
        vae_input: range of the encoder's input, see :class:`~sdprobe.backbones.latents.LatentEncoder`.
        posterior: ``mode`` or ``sample``, see :class:`~sdprobe.backbones.latents.LatentEncoder`.
        scale_again: see :class:`~sdprobe.backbones.noise.NoiseSchedule`. Takes effect only with an Euler scheduler.
        device: where the networks run.
        padding: padding mode of the convolutions, see :meth:`padded`.

    Attributes:
        path: name of the checkpoint.
        weights: name of its weights.
        unet: the U-Net (:class:`~sdprobe.backbones.unet.FrozenUNet`).
        encoder: image → latent (:class:`~sdprobe.backbones.latents.LatentEncoder`).
        prompts: text → conditioning (:class:`~sdprobe.backbones.prompts.PromptEncoder`).
        noise: latent → noisy latent (:class:`~sdprobe.backbones.noise.NoiseSchedule`).
        unet_hash: SHA-256 of the U-Net's weights as loaded.
        device: where the networks are.

    Raises:
        InputError: an option that does not exist, a U-Net that is not text-to-image (inpainting, for example), or parts that do
            not fit each other.

    Example:
        >>> import torch
        >>> from sdprobe import FrozenSD
        >>> sd = FrozenSD.from_pretrained("tiny", device="cpu")
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
        check_fit(path, components.unet, components.vae, components.prompts)
        self.path = path
        self.weights = weights
        self.unet = FrozenUNet(components.unet)
        self.encoder = LatentEncoder(components.vae, vae_input, posterior)
        self.prompts = components.prompts
        self.noise = NoiseSchedule(components.alphas_cumprod, noise, scale_again and components.euler)
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
            path: a preset (``demo tiny sd14 sd15 sd21 sd_turbo sdxl sdxl_turbo``), a local diffusers folder, or a repository
                ``owner/name`` on the Hugging Face hub, which is downloaded once.
            revision: branch, tag or commit of a hub repository.
            variant: ``fp16`` takes half-precision weight files where the repository has them; None takes those without a
                variant. ``preset`` is the choice of the preset, and None without a preset.
            weights: ``stored`` loads the weights of the checkpoint. ``random`` initialises the same U-Net again, which is the
                random-weights baseline. ``shuffled`` permutes the stored entries inside each tensor. The VAE does not change.
            weights_seed: seed of random and shuffled weights.
            precision: ``auto`` (bf16 where it is fast), ``bf16``, ``fp16`` or ``fp32``.
            device: ``auto`` (the first GPU, else the CPU), ``cpu``, ``cuda`` or ``cuda:N``.
            noise: ``independent`` (per image), ``shared`` (one noise tensor for all images), ``rolled`` or ``none``; see
                :class:`~sdprobe.backbones.noise.NoiseSchedule`.
            vae_input: ``symmetric`` ([-1, 1], as Stable Diffusion was trained) or ``unit`` ([0, 1]); see
                :class:`~sdprobe.backbones.latents.LatentEncoder`.
            posterior: ``mode`` or ``sample`` of the VAE's posterior.
            scale_again: multiply the noisy latent by √ᾱ_t once more, as the library of Loos & Linhardt (2025) does. Takes
                effect only on checkpoints with an Euler scheduler.
            padding: what convolutions of U-Net and VAE read beyond the border: ``zeros`` (as trained), ``replicate``,
                ``reflect`` or ``circular``. :meth:`padded` changes it temporarily.

        Returns:
            the checkpoint, on ``device``.

        Raises:
            InputError: no such checkpoint, damaged or pickled weights, or an option that does not exist.

        Example:
            >>> from sdprobe import FrozenSD
            >>> sd = FrozenSD.from_pretrained("tiny", device="cpu", weights="random", weights_seed=1)
            >>> sd.weights, sd.padding
            ('random-1', 'zeros')
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
        """Number of images that went through the U-Net (``unet``) and the encoder (``encoder``) so far."""
        return {"unet": self.unet.passes, "encoder": self.encoder.passes}

    def to(self, device: torch.device | str) -> "FrozenSD":
        """Move all networks to a device. Convolutions use the channels-last memory format.

        Args:
            device: such as ``cuda``.

        Returns:
            this object.
        """
        self.device = torch.device(device)
        for network in (self.unet, self.encoder.vae):
            network.to(self.device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        for encoder in self.prompts.encoders:
            encoder.to(self.device)
        return self

    @property
    def native_size(self) -> int | None:
        """Side in pixels of the images that the checkpoint was made for; None if its configuration does not say."""
        side = self.unet.config.sample_size
        return side * self.encoder.stride if isinstance(side, int) else None

    @property
    def padding(self) -> str:
        """Padding mode of the convolutions of U-Net and VAE."""
        return self.encoder.padding

    @contextmanager
    def padded(self, mode: str) -> Iterator["FrozenSD"]:
        """Use another padding mode inside a ``with`` block. Afterwards the network computes bit for bit what it did before.

        Args:
            mode: ``zeros``, ``replicate``, ``reflect`` or ``circular``.

        Yields:
            this object.

        Raises:
            InputError: another mode.

        Example:
            >>> from sdprobe import FrozenSD
            >>> sd = FrozenSD.from_pretrained("tiny")
            >>> with sd.padded("circular"):
            ...     sd.padding
            'circular'
            >>> sd.padding
            'zeros'
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
        """Activation grids of a batch of images. The U-Net stops after the deepest layer asked for.

        Args:
            images: float (B, 3, H, W) in [0, 1]. Sides are multiples of 8 pixels; with multiples of 64 every grid divides
                evenly.
            layers: a name, a list of names, a glob such as ``up_*``, ``stages``, ``all`` or ``loos2025``.
                ``python -m sdprobe.backbones NAME`` lists the names.
            timestep: noise level, an integer in [0, 1000). Features are usually read between 1 and 300.
            seed: together with ``ids`` it determines the noise of each image.
            prompt: conditioning text.
            ids: one name per image. The default is a digest of the pixels, so that noise does not depend on the batch.
            draw: number of the noise draw; another number gives other noise on the same image.

        Returns:
            layer → (B, C, h, w), on the device and in the dtype of the U-Net, in execution order.

        Raises:
            InputError: images outside [0, 1] or of an unfit size, an unknown layer, a timestep out of range, or activations
                that are NaN or infinite.
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
        """Activation grids of latents.

        Args:
            latents: (B, 4, H/8, W/8), as ``encoder`` returns them.
            ids: one name per latent.
            layers: canonical names, see :meth:`sdprobe.backbones.unet.FrozenUNet.resolve`.
            timestep: noise level, an integer in [0, 1000).
            seed: together with ``ids`` it determines the noise.
            prompt: conditioning text.
            draw: number of the noise draw.

        Returns:
            layer → (B, C, h, w), on the device.

        Raises:
            InputError: a timestep out of range, latents too small for reflection padding, or activations that are NaN or
                infinite.
        """
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
        """Shapes of layers, without running the network.

        Args:
            size: side of square images in pixels.
            layers: canonical names.

        Returns:
            layer → (C, h, w).
        """
        side = size // self.encoder.stride
        inner = [name for name in layers if name not in INPUTS]
        shapes = self.unet.shapes((side, side), inner) if inner else {}
        channels = self.unet.config.in_channels
        return {name: (channels, side, side) if name in INPUTS else shapes[name] for name in layers}

    def published_names(self, layers: Sequence[str]) -> dict[str, str]:
        """The names that papers and diffusers use.

        Args:
            layers: canonical names.

        Returns:
            layer → name, such as ``up_blocks[1].upsamplers[0]``.
        """
        return {name: self.unet.layers[name].published if name in self.unet.layers else name for name in layers}

    def describe(self) -> dict[str, Any]:
        """What identifies this backbone in the record of a run.

        Returns:
            name → value, JSON-serialisable: model, digests of weights and configuration, precision, device and options.
        """
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
