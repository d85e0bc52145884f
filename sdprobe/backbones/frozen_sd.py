"""FrozenSD: a checkpoint's encoder, noise schedule, prompt encoder and U-Net in one object. Data path steps 2 to 4."""

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any, Protocol, overload, runtime_checkable

import numpy as np
import torch
from diffusers import UNet2DConditionModel
from jaxtyping import Float
from torch import Tensor

from sdprobe.backbones.architectures import source_of
from sdprobe.backbones.capabilities import KINDS, UNET, capabilities_of, check_options, check_position, check_prompt_cache
from sdprobe.backbones.inputs import Images, OneOrMore, tensors_of
from sdprobe.backbones.latents import LatentEncoder
from sdprobe.backbones.layers import INPUTS
from sdprobe.backbones.loading import Components, load, vae_dtype
from sdprobe.backbones.noise import Cut, FlowSchedule, NoiseSchedule
from sdprobe.backbones.padding import check_padding, check_sides, convolutions, set_padding
from sdprobe.backbones.parts import check_fit
from sdprobe.backbones.pipelines import components_of
from sdprobe.backbones.precision import check_finite, choose_device, choose_dtype, memory_of, name_of
from sdprobe.backbones.transformer import FrozenTransformer
from sdprobe.backbones.transformer_pipelines import is_transformer_pipeline, transformer_components_of
from sdprobe.backbones.unet import OUTPUT, Edit, FrozenUNet
from sdprobe.backbones.weights import config_hash, weight_hash
from sdprobe.utilities import expect, progress, settings
from sdprobe.utilities.errors import InputError

Grids = dict[str, Float[Tensor, "..."]]  # layer → ([T], [D], B, C, h, w)


@runtime_checkable
class Transform(Protocol):
    """A fitted map, such as :class:`sdprobe.mitigations.Map`."""

    def transform(self, grid: Any) -> Tensor:
        """Return the mitigated grid (B, C, h, w)."""


class FrozenSD:
    """A frozen Stable Diffusion checkpoint that turns images into activation grids.

    Use :meth:`from_pretrained` to load one, or :meth:`from_pipeline` for one that is in memory. Nothing trains.

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
        position: mode of the position embeddings of a diffusion transformer, see
            :meth:`sdprobe.backbones.transformer.FrozenTransformer.positioned`.

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
        position: str = "stored",
    ) -> None:
        self.path = path
        self.weights = weights
        self.unet: FrozenUNet | FrozenTransformer
        if isinstance(components.unet, UNet2DConditionModel):
            check_fit(path, components.unet, components.vae, components.prompts.tokenizers, components.prompts.configs)
            check_position(KINDS[UNET], position)
            self.unet = FrozenUNet(components.unet)
        else:
            self.unet = FrozenTransformer(components.unet, position)
        computed_in = vae_dtype(components.vae.dtype) if components.borrowed else None
        self.encoder = LatentEncoder(components.vae, vae_input, posterior, computed_in, components.vae_hash)
        self.prompts = components.prompts
        if components.flow:
            self.noise: NoiseSchedule = FlowSchedule(noise)
        else:
            scaled = scale_again and components.euler
            self.noise = NoiseSchedule(components.alphas_cumprod, noise, scaled, components.prediction)
        self.unet_hash = components.unet_hash or weight_hash(components.unet)
        self._pad(padding)
        self.device = torch.device(device)
        if not components.borrowed:
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
        position: str = "stored",
        text: str = "encoded",
        prompt_cache: bool = False,
        cache_dir: str = ".cache",
    ) -> "FrozenSD":
        """Load a checkpoint.

        Args:
            path: a preset (``demo tiny sd14 sd15 sd21 sd_turbo sdxl sdxl_turbo``, or one of docs/transformers.md such as
                ``flux_dev``), a local diffusers folder, or a repository ``owner/name`` on the Hugging Face hub, which is
                downloaded once.
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
            position: position embeddings of a diffusion transformer: ``stored``, ``zero``, ``permuted`` or ``shifted``, see
                :mod:`sdprobe.backbones.positions`. ``sd.unet.positioned`` changes them temporarily.
            text: ``encoded`` reads the prompt with the checkpoint's text encoders. ``none`` loads no text encoder of a
                diffusion transformer and passes zeros in place of text states.
            prompt_cache: keep text states in ``cache_dir``. Text encoders are loaded only for prompts that it lacks, and leave
                memory afterwards.
            cache_dir: the cache folder.

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
        settings.check("backbone", position=position, text=text)
        chosen_device = choose_device(device)
        dtype = choose_dtype(precision, chosen_device)
        if kind := capabilities_of(path):
            options = {"padding": padding, "position": position, "text": text, "posterior": posterior}
            check_options(kind, **options, precision=name_of(dtype))
            if prompt_cache:
                check_prompt_cache(path, text, kind.prompt)
        card = source_of(path)
        components = load(
            card["path"],
            revision or card["revision"],
            card["variant"] if variant == "preset" else variant,
            weights,
            weights_seed,
            dtype,
            chosen_device,
            text == "encoded",
            cache_dir if prompt_cache else None,
        )
        if isinstance(components.unet, UNet2DConditionModel):  # of a repository, whose kind was not known before
            check_options(KINDS[UNET], position=position, text=text)
        label = weights if weights == "stored" else f"{weights}-{weights_seed}"
        return cls(components, card["path"], label, noise, vae_input, posterior, scale_again, chosen_device, padding, position)

    @classmethod
    def from_pipeline(
        cls,
        pipe: Any,
        *,
        noise: str = "independent",
        vae_input: str = "symmetric",
        posterior: str = "mode",
        scale_again: bool = False,
        padding: str = "zeros",
        position: str = "stored",
    ) -> "FrozenSD":
        """Read the networks of a diffusers pipeline that is in memory, with its LoRA, textual inversion and scheduler.

        The pipeline does not change, and its weights are shared, not copied. Of Stable Diffusion 1, 2 and XL its text-to-image,
        image-to-image and inpainting classes do, with a U-Net of four channels. The result computes, at the dtype and on the
        device of the pipeline, what :meth:`from_pretrained` computes with the saved pipeline, bit for bit if its weights were
        loaded from a file. (How some CPU kernels round depends on where tensors begin in memory.) Hooks on its modules work
        here, too; compiled modules run uncompiled. Call this again after you have changed the pipeline.

        Of diffusion transformers, the pipelines of :mod:`sdprobe.backbones.families` do (PixArt, SD3, FLUX.1, DiT, Sana,
        Lumina2). Their own ``encode_prompt`` computes the text states. Layers are blocks (``block_3``), and with rectified flow
        the timestep is 1000 σ.

        Args:
            pipe: such as ``StableDiffusionPipeline``, ``StableDiffusionXLPipeline`` or ``FluxPipeline``.
            noise: as in :meth:`from_pretrained`.
            vae_input: as in :meth:`from_pretrained`.
            posterior: as in :meth:`from_pretrained`.
            scale_again: as in :meth:`from_pretrained`.
            padding: as in :meth:`from_pretrained`.
            position: as in :meth:`from_pretrained`.

        Returns:
            the checkpoint, on the device of the pipeline.

        Raises:
            InputError: no pipeline; one with ControlNet, T2I or IP-Adapter, PAG, a tiled VAE or a U-Net of other inputs; one
                that is offloaded or quantised; or an option that does not exist.

        Example:
            >>> from sdprobe import FrozenSD
            >>> from sdprobe.backbones.random_pipeline import random_pipeline
            >>> pipe = random_pipeline("tiny")  # in place of StableDiffusionPipeline.from_pretrained(...)
            >>> sd = FrozenSD.from_pipeline(pipe)
            >>> sd.unet.unet.conv_in.weight.data_ptr() == pipe.unet.conv_in.weight.data_ptr()
            True
        """
        check_padding(padding)
        components = transformer_components_of(pipe) if is_transformer_pipeline(pipe) else components_of(pipe)
        path = str(pipe.config.get("_name_or_path") or type(pipe).__name__)
        device = components.unet.device
        return cls(components, path, "stored", noise, vae_input, posterior, scale_again, device, padding, position)

    def __repr__(self) -> str:
        """The checkpoint, its number of layers, precision, device and weights."""
        size = f", made for {self.native_size} px" if self.native_size else ""
        return (
            f"FrozenSD({self.path!r}: {len(self.unet.layers)} layers{size}, {name_of(self.dtype)} on {self.device}, "
            f"{self.weights} weights)"
        )

    @cached_property
    def layers(self) -> dict[str, tuple[int, int, int]]:
        """Layer → (C, h, w) in execution order, for images of the native size (512 pixels if there is none).

        :meth:`shapes` also gives those inside attention.
        """
        return self.shapes(self.native_size or 512, tuple(self.unet.layers))

    @cached_property
    def dtype(self) -> torch.dtype:
        """dtype of the U-Net."""
        return self.unet.network.dtype  # diffusers walks through all modules

    @property
    def passes(self) -> dict[str, int]:
        """Number of images that went through the U-Net (``unet``) and the encoder (``encoder``) so far."""
        return {"unet": self.unet.passes, "encoder": self.encoder.passes}

    def to(self, device: torch.device | str) -> "FrozenSD":
        """Move all networks to a device. Convolutions use the channels-last memory format.

        After :meth:`from_pipeline` this copies weights, and the pipeline stays where it is.

        Args:
            device: such as ``cuda``.

        Returns:
            this object.
        """
        self.device = torch.device(device)
        self.unet.to(self.device)
        self.encoder.vae.to(self.device).to(memory_format=torch.channels_last)
        if isinstance(self.unet, FrozenUNet):  # transformers have tokens
            self.unet.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        for encoder in self.prompts.encoders:
            encoder.to(self.device)
        return self

    @property
    def native_size(self) -> int | None:
        """Side in pixels of the images that the checkpoint was made for; None if its configuration does not say."""
        side = self.unet.config.get("sample_size", 128)  # FLUX's configuration has none, its pipeline makes 128
        return side * self.encoder.stride if isinstance(side, int) else None

    @property
    def padding(self) -> str:
        """Padding mode of the convolutions of U-Net and VAE."""
        return self.encoder.padding

    @contextmanager
    def padded(self, mode: str, where: str | None = None) -> Iterator["FrozenSD"]:
        """Use another padding mode inside a ``with`` block. Afterwards the network computes bit for bit what it did before.

        Args:
            mode: ``zeros``, ``replicate``, ``reflect`` or ``circular``.
            where: a stage or another layer of the U-Net whose convolutions change alone; None changes those of U-Net and VAE.

        Yields:
            this object.

        Raises:
            InputError: another mode, or an unknown layer.

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
        modules = [] if where is None else self.u_net().modules_of(where)
        inside = [module for module in modules if any(convolutions(module))]
        if where is None:
            self._pad(mode)
        for module in inside:
            set_padding(module, mode)
        try:
            yield self
        finally:
            if where is None:
                self._pad(before)
            for module in inside:
                set_padding(module, before)

    def _pad(self, mode: str) -> None:
        for network in (self.unet.network, self.encoder.vae):
            set_padding(network, mode)
        self.encoder.padding = mode

    @overload
    def activations(
        self,
        images: OneOrMore,
        layers: str | Sequence[str],
        timestep: int | Iterable[int] = 50,
        seed: int = 0,
        prompt: str | Sequence[str] = "",
        ids: Sequence[str] | None = None,
        draw: int = 0,
        *,
        draws: int = 1,
        keep_draws: bool = False,
        size: int | None = None,
        dtype: torch.dtype | None = None,
        with_grad: bool = False,
        edits: Mapping[str, Edit | Transform] | None = None,
    ) -> Grids: ...

    @overload
    def activations(
        self,
        images: Images,
        layers: str | Sequence[str],
        timestep: int | Iterable[int] = 50,
        seed: int = 0,
        prompt: str | Sequence[str] = "",
        ids: Sequence[str] | None = None,
        draw: int = 0,
        *,
        draws: int = 1,
        keep_draws: bool = False,
        size: int | None = None,
        dtype: torch.dtype | None = None,
        with_grad: bool = False,
        edits: Mapping[str, Edit | Transform] | None = None,
    ) -> Any: ...

    def activations(
        self,
        images: Any,  # as above; a sentence refuses other kinds
        layers: Any,
        timestep: Any = 50,
        seed: Any = 0,
        prompt: Any = "",
        ids: Any = None,
        draw: Any = 0,
        *,
        draws: Any = 1,
        keep_draws: bool = False,
        size: Any = None,
        dtype: Any = None,
        with_grad: bool = False,
        edits: Any = None,
    ) -> Any:
        """Activation grids of images. The U-Net stops after the deepest layer asked for.

        Latents and prompts are encoded once per call. Images of one size go through the networks together, as many at once as
        a quarter of the device's memory holds; a bar shows the progress if there are several batches.

        Args:
            images: a PIL image, path, array or tensor, a stack (B, 3, H, W), or a list of these. Pixels are floats in [0, 1] or
                8-bit integers; channels come first or last. Grey becomes three channels, transparency white. Sides are
                multiples of 8 pixels; with multiples of 64 every grid divides evenly.
            layers: a name, a list of names, a glob such as ``up_*``, ``stages``, ``all``, ``inside`` or ``loos2025``.
                ``python -m sdprobe.backbones NAME`` lists the names, with ``--inside`` those inside attention, such as
                ``up_1_attn_1_key``. Published names (``up_blocks[1].resnets[2]``) work, too.
            timestep: noise level, an integer in [0, 1000), or several. Features are usually read between 1 and 300.
            seed: together with ``ids`` it determines the noise of each image.
            prompt: conditioning text, or one per image.
            ids: one name per image. The default is a digest of the pixels, so that noise does not depend on the batch. Pass
                ids when you optimise pixels, or the noise changes with them.
            draw: number of the noise draw; another number gives other noise on the same image.
            draws: how many draws are taken, from number ``draw`` on.
            keep_draws: keep each draw on an axis of its own instead of averaging them (in float32).
            size: take the largest centred square of each picture and resize it to this side, a multiple of 64, as
                ``images=folder`` does. Only for files, PIL images and 8-bit arrays.
            dtype: of the grids. The default is float32 on a CPU and the dtype of the U-Net on a GPU.
            with_grad: record gradients with respect to the images.
            edits: layer → fitted map, such as ``PositionMean().fit(grids["mid"])``, or a function of the grid (B, C, h, w).
                Layers are named as in ``layers``; a glob edits each of its layers.
                It replaces the layer's grid while the network runs, at every timestep. All later layers follow from it.

        Returns:
            layer → (B, C, h, w), on the device of the U-Net, in execution order, contiguous. Several timesteps add a first
            axis, kept draws the next one: (T, D, B, C, h, w). A list of images of several sizes gives a list with a dictionary
            per image, where B is 1.

        Raises:
            InputError: something that is no image (the message says which), images outside [0, 1] or of an unfit size, an
                unknown layer, a timestep out of range, another number of prompts or ids than of images, activations that are
                NaN or infinite, or an edit of a layer after the deepest that is read.

        Example:
            >>> from PIL import Image
            >>> from sdprobe import FrozenSD
            >>> sd = FrozenSD.from_pretrained("tiny", device="cpu")
            >>> photographs = [Image.new("RGB", (300, 200), colour) for colour in ("red", "blue")]
            >>> grids = sd.activations(photographs, "mid", timestep=[50, 261], draws=2, size=128)
            >>> grids["mid"].numpy().shape
            (2, 2, 64, 2, 2)
        """
        several = np.iterable(timestep) and not isinstance(timestep, str)
        steps = self.noise.steps(timestep)
        draws, draw = expect.as_count("draws", draws, 1, 1000), expect.as_count("draw", draw, 0, 10**9)
        seed = expect.as_count("seed", seed, *settings.SEEDS)
        if not (dtype is None or (isinstance(dtype, torch.dtype) and dtype.is_floating_point)):
            raise InputError(f"Expected dtype to be a floating-point type of torch, but got {dtype!r}. Use torch.float32.")
        names = self._resolve(layers)
        dtype = dtype or (torch.float32 if self.device.type == "cpu" else None)
        made = self._edits(edits)

        def passes(latents: Tensor, ids: list[str], prompts: list[str]) -> Grids:
            """Grids ([T], [D], B, C, h, w) of images of one size."""
            found = []
            for step in steps:
                numbers = range(draw, draw + draws)
                drawn = (self.grids(latents, ids, names, step, seed, prompts, n, with_grad, made) for n in numbers)
                found.append(_stacked(drawn, dtype) if keep_draws else _mean(drawn, dtype))
            return _stacked(found, None) if several else found[0]

        axis = bool(several) + keep_draws
        return self._of_images(images, size, ids, prompt, seed, with_grad, passes, axis, "extract activations")

    def predict(
        self,
        images: Any,
        timestep: int = 50,
        seed: int = 0,
        prompt: str | Sequence[str] = "",
        ids: Sequence[str] | None = None,
        draw: int = 0,
        *,
        size: int | None = None,
        edits: Any = None,
    ) -> Any:
        """What the network predicts from noisy images, and what it was trained to predict.

        The arguments are those of :meth:`activations`, with one timestep.

        Args:
            images: an image or several.
            timestep: noise level, an integer in [0, 1000).
            seed: together with ``ids`` it determines the noise of each image.
            prompt: conditioning text, or one per image.
            ids: one name per image.
            draw: number of the noise draw.
            size: take the largest centred square of each picture and resize it to this side.
            edits: layer → fitted map or function of its grid, which replaces the grid while the network runs.

        Returns:
            ``prediction`` and ``target`` → (B, 4, H/8, W/8), float32, on the device of the U-Net. The target is noise, velocity
            or clean latent, as the checkpoint's scheduler says. For images of several sizes, a list of such dictionaries.

        Raises:
            InputError: as :meth:`activations`.

        Example:
            >>> import torch
            >>> from sdprobe import FrozenSD
            >>> sd = FrozenSD.from_pretrained("tiny", device="cpu")
            >>> images = torch.rand(4, 3, 128, 128)
            >>> plain, edited = (sd.predict(images, edits=edits) for edits in (None, {"mid": torch.zeros_like}))
            >>> bool((plain["target"] == edited["target"]).all()), bool((plain["prediction"] == edited["prediction"]).all())
            (True, False)
            >>> (plain["prediction"] - plain["target"]).square().mean((1, 2, 3)).shape  # the loss of every image
            torch.Size([4])
        """
        (step,) = self.noise.steps(expect.as_count("timestep", timestep, 0, len(self.noise.alphas_cumprod) - 1))
        seed, draw = expect.as_count("seed", seed, *settings.SEEDS), expect.as_count("draw", draw, 0, 10**9)
        self.u_net()
        made = self._edits(edits)

        def passes(latents: Tensor, ids: list[str], prompts: list[str]) -> Grids:
            predicted = self.grids(latents, ids, [OUTPUT], step, seed, prompts, draw, edits=made)[OUTPUT]
            return {"prediction": predicted.float().contiguous(), "target": self.target(latents, ids, step, seed, draw)}

        return self._of_images(images, size, ids, prompt, seed, False, passes, 0, "predict")

    def _of_images(
        self, images: Any, size: Any, ids: Any, prompt: Any, seed: int, with_grad: bool,
        passes: Callable[[Tensor, list[str], list[str]], Grids], axis: int, name: str,
    ) -> Grids | list[Grids]:  # fmt: skip
        """All images: what ``passes`` gives for latents, ids and prompts of images of one size; ``axis`` is that of images."""
        tensors = tensors_of(images, size, self.encoder.stride * self.unet.patch)
        prompts = _one_per_image("prompt", [prompt] * len(tensors) if isinstance(prompt, str) else prompt, len(tensors))
        if ids is not None and not isinstance(ids, str) and np.iterable(ids):
            ids = [*map(str, ids)]
        ids = _one_per_image("ids", [_digest(image) for image in tensors] if ids is None else ids, len(tensors))

        if len(set(prompts)) > 1:  # together, because text encoders may have to be loaded
            self.prompts.prepare(prompts, self.device)

        def of(indices: list[int]) -> Grids:
            if isinstance(tensors, Tensor):
                pixels = tensors[indices[0] : indices[-1] + 1]
            else:
                pixels = torch.stack([tensors[i].to(self.device) for i in indices])
            named = [ids[i] for i in indices]
            return passes(self.encoder(pixels, named, seed, with_grad), named, [prompts[i] for i in indices])

        batches = self._batches(tensors)
        if len(batches) > 1:
            batches = progress.track(batches, name, "batch", len(batches))
        mixed = len({image.shape[-2:] for image in tensors}) > 1
        return _in_order([(indices, of(indices)) for indices in batches], axis, mixed)

    def _edits(self, edits: Any) -> dict[str, Edit]:
        """Layer → function of its grid, of maps and functions by layer, glob or published name."""
        if edits is None:
            return {}
        if not isinstance(edits, Mapping):
            raise InputError(
                f"Expected edits to be layer → fitted map or function, but got {type(edits).__name__}. Use {{'mid': map}}."
            )
        made: dict[str, Edit] = {}
        for block, edit in edits.items():
            function: Any = getattr(edit, "transform", edit)
            if not callable(function) or isinstance(edit, type):
                remedy = "Fit it first: fit(grids['mid'])."
                if hasattr(edit, "passes"):
                    remedy = "It changes how the network is shown an image, and cannot be applied inside it."
                raise InputError(
                    "Expected edits to be fitted maps or functions of a grid, but got "
                    f"{edit.__name__ if isinstance(edit, type) else type(edit).__name__} for {block}. {remedy}"
                )
            for layer in self._resolve(block):
                if layer in made:
                    raise InputError(f"Expected one edit per layer, but got a second of {layer} by {block}. Chain them in one.")
                made[layer] = function
        return made

    def _resolve(self, layers: Any) -> tuple[str, ...]:
        if not isinstance(layers, str) and not np.iterable(layers):
            raise InputError(f"Expected layers to be a name or a list of names, but got {layers!r}. Use layers='mid'.")
        try:
            return self.unet.resolve(layers)
        except InputError as error:  # the command line calls layers `block`
            raise InputError(re.sub(r"(?<=Expected )block\b|\bblock(?==)", "layers", error.message())) from None

    def _batches(self, tensors: Tensor | list[Tensor]) -> Any:
        """Indices of images that go through the networks together: of one size, as many as a quarter of the memory holds."""
        sizes: dict[torch.Size, list[int]] = {}
        for index, image in enumerate(tensors):
            sizes.setdefault(image.shape[-2:], []).append(index)
        vae = self.encoder.vae
        # at full resolution the encoder holds about six tensors of its first width
        per_pixel = 6 * self.encoder.width * (self.encoder.dtype or vae.dtype).itemsize
        batches = []
        for (height, width), indices in sizes.items():
            most = max(1, int(memory_of(self.device) / 4 / (per_pixel * height * width)))
            batches += [indices[start : start + most] for start in range(0, len(indices), most)]
        return batches

    def grids(
        self,
        latents: Float[Tensor, "b c h w"],
        ids: Sequence[str],
        layers: Sequence[str],
        timestep: int,
        seed: int,
        prompt: str | Sequence[str],
        draw: int = 0,
        with_grad: bool = False,
        edits: Mapping[str, Edit] | None = None,
        outputs: dict[str, Any] | None = None,
        cut: Cut | None = None,
    ) -> dict[str, Float[Tensor, "b _c _h _w"]]:
        """Activation grids of latents.

        Args:
            latents: (B, 4, H/8, W/8), as ``encoder`` returns them.
            ids: one name per latent.
            layers: canonical names, see :meth:`sdprobe.backbones.unet.FrozenUNet.resolve`.
            timestep: noise level, an integer in [0, 1000).
            seed: together with ``ids`` it determines the noise.
            prompt: conditioning text, or one per latent.
            draw: number of the noise draw.
            with_grad: record gradients with respect to the latents.
            edits: layer → function of its grid (B, C, h, w), see :meth:`sdprobe.backbones.unet.FrozenUNet.forward`. The network
                goes on with what the function returns.
            outputs: of modules in an earlier pass on the same inputs, see there; filled if it is empty.
            cut: where the latents lie in larger ones for which noise is drawn; None draws it for the latents.

        Returns:
            layer → (B, C, h, w), on the device. ``conv_out`` is the prediction of the network.

        Raises:
            InputError: a timestep out of range, latents too small for reflection padding, activations that are NaN or
                infinite, or an edit that cannot be made.
        """
        check_sides(self.padding, latents, len(self.unet.config.get("block_out_channels", ())))
        latents = latents.to(self.device)
        noisy = self.noise(latents, timestep, ids, seed, draw, cut)
        inputs = {"latent": latents, "noisy_latent": noisy}
        grids = {name: inputs[name] for name in layers if name in INPUTS}
        inner = [name for name in layers if name not in INPUTS]
        if inner:
            conditioning = self.prompts(prompt, self.device, self.dtype)
            noisy = noisy.to(self.dtype, memory_format=torch.channels_last)
            if edits or outputs is not None:
                grids |= self.u_net()(noisy, timestep, conditioning, inner, with_grad, edits, outputs)
            else:
                grids |= self.unet(noisy, timestep, conditioning, inner, with_grad)
        elif edits:
            raise InputError(
                f"Expected edits before the layer that is read, but {layers[-1]} is an input of the network. "
                "Read a later layer."
            )
        check_finite(grids, ids, self.dtype, tuple(edits or ()))
        return grids

    def u_net(self) -> FrozenUNet:
        """The network, for edits and predictions.

        Returns:
            the frozen U-Net.

        Raises:
            InputError: it is a diffusion transformer.
        """
        if isinstance(self.unet, FrozenUNet):
            return self.unet
        raise InputError(
            f"Expected a U-Net for edits and predictions, but {self.path} is a diffusion transformer. Read its layers without "
            "edits, or use a U-Net."
        )

    def target(
        self, latents: Float[Tensor, "b c h w"], ids: Sequence[str], timestep: int, seed: int, draw: int = 0
    ) -> Float[Tensor, "b c h w"]:
        """What the checkpoint is trained to predict for latents, the target of its ``conv_out`` in :meth:`grids`.

        Args:
            latents: (B, 4, H/8, W/8), as ``encoder`` returns them.
            ids: one name per latent.
            timestep: noise level, an integer in [0, 1000).
            seed: together with ``ids`` it determines the noise.
            draw: number of the noise draw.

        Returns:
            noise, velocity or clean latents (B, 4, H/8, W/8), float32, as the checkpoint's scheduler says; see
            :meth:`sdprobe.backbones.noise.NoiseSchedule.target`.

        Raises:
            InputError: a timestep out of range, or a scheduler with another target.
        """
        return self.noise.target(latents.to(self.device), timestep, ids, seed, draw)

    def shapes(self, size: int, layers: str | Sequence[str]) -> dict[str, tuple[int, int, int]]:
        """Shapes of layers, without running the network.

        Args:
            size: side of square images in pixels.
            layers: as in :meth:`activations`; ``inside`` gives those inside attention.

        Returns:
            layer → (C, h, w), in execution order.

        Raises:
            InputError: an unknown layer, or a side that is no multiple of 8 pixels.

        Example:
            >>> from sdprobe import FrozenSD
            >>> FrozenSD.from_pretrained("tiny").shapes(512, ["mid", "mid_attn_0_query"])
            {'mid_attn_0_query': (64, 8, 8), 'mid': (64, 8, 8)}
        """
        expect.multiple("size", size, self.encoder.stride * self.unet.patch)
        side = int(size) // self.encoder.stride
        names = self._resolve(layers)
        inner = [name for name in names if name not in INPUTS]
        shapes = self.unet.shapes((side, side), inner) if inner else {}
        channels = self.encoder.vae.config.latent_channels
        return {name: (channels, side, side) if name in INPUTS else shapes[name] for name in names}

    def published_names(self, layers: Sequence[str]) -> dict[str, str]:
        """The names that papers and diffusers use.

        Args:
            layers: canonical names.

        Returns:
            layer → name, such as ``up_blocks[1].upsamplers[0]``.
        """
        return {name: self.unet.table[name].published if name in self.unet.table else name for name in layers}

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
            **self._of_transformers,
        }

    @property
    def _of_transformers(self) -> dict[str, str]:
        """What describes diffusion transformers beside what all networks have."""
        if isinstance(self.unet, FrozenUNet):
            return {}
        return {"position": self.unet.position, "text": "encoded" if self.prompts.weights != "none" else "none"}


def _digest(image: Tensor) -> str:
    return hashlib.blake2b(image.detach().float().cpu().contiguous().numpy().tobytes(), digest_size=8).hexdigest()


def _one_per_image(name: str, texts: Any, count: int) -> list[str]:
    if isinstance(texts, str | bytes) or not isinstance(texts, Sequence | np.ndarray):
        raise InputError(f"Expected {name} to be one text per image, {count}, but got {texts!r}. Give a list of {count}.")
    if len(texts) != count or not all(isinstance(text, str) for text in texts):
        kinds = " or ".join(sorted({type(text).__name__ for text in texts}))
        raise InputError(
            f"Expected {name} to be one text per image, but got {len(texts)} of type {kinds or 'str'} for {count} images. "
            "Correct it."
        )
    return list(texts)


def _stacked(parts: Iterable[Grids], dtype: torch.dtype | None) -> Grids:
    """Grids on a new first axis."""
    parts = list(parts)
    return {layer: torch.stack([part[layer].to(dtype) for part in parts]).contiguous() for layer in parts[0]}


def _mean(drawn: Iterator[Grids], dtype: torch.dtype | None) -> Grids:
    """Mean over draws, summed in float32; a single draw is as it is."""
    first = next(drawn)
    total, count = first, 1
    for grids in drawn:
        total, count = {layer: grid.float() + grids[layer] for layer, grid in total.items()}, count + 1
    return {
        layer: (grid / count if count > 1 else grid).to(dtype or first[layer].dtype).contiguous()
        for layer, grid in total.items()
    }


def _in_order(results: list[tuple[list[int], Grids]], axis: int, mixed: bool) -> Grids | list[Grids]:
    """Grids of all images, or of each image if their sizes are ``mixed``; ``axis`` is that of images."""
    if not mixed:
        parts = [grids for _, grids in results]
        return parts[0] if len(parts) == 1 else {layer: torch.cat([part[layer] for part in parts], axis) for layer in parts[0]}
    each = {
        index: {layer: grid.narrow(axis, place, 1).contiguous().clone() for layer, grid in grids.items()}
        for indices, grids in results
        for place, index in enumerate(indices)
    }
    return [each[index] for index in sorted(each)]
