"""Checkpoint folders → networks: find (or download) a diffusers folder, check it, and load safetensors only."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderDC, AutoencoderKL, UNet2DConditionModel
from diffusers.utils import logging as diffusers_logging
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer
from transformers.utils import logging as transformers_logging

from sdprobe.backbones import pool
from sdprobe.backbones.architectures import preset_config, presets, source_of
from sdprobe.backbones.capabilities import check_prompt_cache, is_transformer_folder
from sdprobe.backbones.cards import check_card
from sdprobe.backbones.embedded import embedded
from sdprobe.backbones.foreign import PARTS, check_folder
from sdprobe.backbones.hub import NETWORKS, download, weight_files
from sdprobe.backbones.noise import NoiseSchedule, alphas_of, prediction_of
from sdprobe.backbones.parts import check_complete, check_kinds, check_numbers
from sdprobe.backbones.pool import Pool
from sdprobe.backbones.prompts import PromptEncoder, Prompts
from sdprobe.backbones.random_pipeline import SCHEDULE, random_pipeline
from sdprobe.backbones.stored_prompts import StoredPrompts, TextCache, identity
from sdprobe.backbones.unet import Conditioning
from sdprobe.backbones.weights import random_unet, shuffle_entries, weight_hash
from sdprobe.utilities import settings
from sdprobe.utilities.errors import InputError
from sdprobe.utilities.io import read_json, reason
from sdprobe.utilities.signatures import fits

STRIDE = 8  # pixels per cell of a latent, of all presets
SCHEDULER = "scheduler/scheduler_config.json"
CONVERT = (
    "Convert a single-file checkpoint with diffusers: StableDiffusionPipeline.from_single_file(FILE).save_pretrained(DIR), or "
    "StableDiffusionXLPipeline for SDXL; then use backbone=local backbone.path=DIR."
)
for library in (diffusers_logging, transformers_logging):
    library.disable_progress_bar()  # loading weights is quick; downloads have bars of their own


@dataclass(frozen=True)
class Components:
    """The parts of a checkpoint that a frozen backbone needs. ``borrowed`` networks stay where they are.

    The hashes are those of the weights as loaded; None where they are still to be computed.
    """

    unet: Any  # a U-Net, or a diffusion transformer
    vae: AutoencoderKL | AutoencoderDC
    prompts: Any  # Prompts; of a U-Net with tokenizers and configs
    alphas_cumprod: Tensor
    euler: bool
    prediction: str = "epsilon"
    borrowed: bool = False
    flow: bool = False  # trained with rectified flow; then alphas_cumprod is not used
    unet_hash: str | None = None
    vae_hash: str | None = None


def load(
    path: str,
    revision: str | None,
    variant: str | None,
    weights: str,
    weights_seed: int,
    dtype: torch.dtype,
    device: torch.device,
    text: bool = True,
    prompt_cache: str | None = None,
) -> Components:
    """Components of a local folder, a hub repository, an embedded demo model (``assets/demo``) or ``tiny``.

    Diffusion transformers are loaded by :mod:`sdprobe.backbones.transformer_folders`. Without ``text``, they need no encoder.
    With ``prompt_cache``, a folder, text states are kept in it, and text encoders are loaded for prompts that it lacks only.

    The VAE runs in ``dtype``, except for fp16, where the VAEs of Stable Diffusion overflow. Then it runs in fp32.
    Parts that the pool of this process has are not loaded again, see :func:`sdprobe.backbones.pool.shared`. They are on the
    CPU or on ``device``.

    Raises:
        InputError: nothing usable at ``path``; the message says what is missing.
    """
    settings.check("backbone", weights=weights)
    kept = pool.current()
    if path == "tiny":
        if prompt_cache:
            check_prompt_cache(path)
        kept.turn_to((path, dtype, device))
        return _tiny(weights, weights_seed, dtype, kept)
    folder = _found(path, revision, variant, text)
    kept.turn_to((_state(folder), variant, dtype, device))
    kept.part("checked", lambda: _checked(folder))
    try:
        if is_transformer_folder(folder):
            from sdprobe.backbones import transformer_folders  # not needed for U-Nets

            return transformer_folders.load(folder, variant, weights, weights_seed, dtype, kept, text, prompt_cache)
        return _load_folder(folder, variant, weights, weights_seed, dtype, kept, prompt_cache)
    except Exception as error:  # diffusers and transformers raise a dozen unrelated types
        if type(error) is InputError:
            raise
        raise InputError(
            f"Expected {folder} to hold intact diffusers weights, but loading them failed: "
            f"{reason(error, _first_line(error))}. Copy or download the folder again."
        ) from error


def native_size(path: str, revision: str | None = None, variant: str | None = None) -> int:
    """Side in pixels of the images that a checkpoint was made for. Of a hub repository two configurations are fetched.

    Raises:
        InputError: nothing usable at ``path``, or its configuration has no size.
    """
    if "architecture" in presets().get(path, {}):
        return int(preset_config(path)["sample_size"]) * STRIDE
    folder = _configured(path, revision, variant, [f"{part}/config.json" for part in ("unet", "transformer", "vae")])
    vae = read_json(folder / "vae" / "config.json")
    widths = vae.get("block_out_channels", vae.get("encoder_block_out_channels"))
    part = "unet"
    if is_transformer_folder(folder):
        from sdprobe.backbones import transformer_folders

        side, part = transformer_folders.native_size(folder), "transformer"
    else:
        side = read_json(folder / "unet" / "config.json").get("sample_size")
    if not isinstance(side, int) or not isinstance(widths, list):
        raise InputError(
            f"Expected {folder} to say for which size it was made, sample_size of {part}/config.json and block_out_channels of "
            f"vae/config.json, but got {side} and {widths}. Set images.size, to 512 for example."
        )
    return side * 2 ** (len(widths) - 1)


def schedule(path: str, revision: str | None = None, variant: str | None = None) -> NoiseSchedule:
    """The noise schedule of a checkpoint. Of a hub repository one configuration is fetched, or two.

    Raises:
        InputError: nothing usable at ``path``, or no schedule of betas.
    """
    if path == "tiny":
        return NoiseSchedule(alphas_of({"_class_name": "DDIMScheduler", **SCHEDULE}))
    folder = _configured(path, revision, variant, [SCHEDULER, "transformer/config.json"])
    check_folder(folder)
    if is_transformer_folder(folder):
        from sdprobe.backbones import transformer_folders

        return transformer_folders.schedule(folder)
    return NoiseSchedule(alphas_of(read_json(folder / SCHEDULER)))


def _configured(path: str, revision: str | None, variant: str | None, files: Sequence[str]) -> Path:
    """The folder of a checkpoint with at least these files, which are fetched if it is a hub repository."""
    card = source_of(path)
    place, variant = card["path"], card["variant"] if variant == "preset" else variant
    there = embedded(place) or Path(place).expanduser().exists()
    return _found(place, revision, variant) if there else download(place, revision, variant, files)


def _found(path: str, revision: str | None, variant: str | None, text: bool = True) -> Path:
    """The checked folder of a checkpoint, downloaded if it is not there."""
    local = Path(path).expanduser()
    if local.is_file():
        raise InputError(f"Expected the backbone to be a diffusers folder, but '{path}' is a file. {CONVERT}")
    folder = _embedded(path) or (local if local.is_dir() else download(path, revision, variant, text=text))
    if is_transformer_folder(folder):
        from sdprobe.backbones import transformer_folders

        transformer_folders.check(folder, variant, text)
    else:
        _check(folder, variant)
    return folder


def _state(folder: Path) -> tuple[tuple[str, int, int], ...]:
    """Name, bytes and time of change of every file of a checkpoint: a changed file makes another checkpoint."""
    files = [*folder.iterdir(), *(file for part in PARTS for file in (folder / part).rglob("*"))]
    states = ((str(file), file.stat()) for file in sorted(files) if file.is_file())
    return tuple((name, state.st_size, state.st_mtime_ns) for name, state in states)


def _checked(folder: Path) -> bool:
    """True, if the folder holds networks without code, and the weights that its card lists. Raises InputError otherwise."""
    check_folder(folder)
    check_card(folder)
    return True


def _embedded(path: str) -> Path | None:
    """Folder of a demo model, independent of the working directory; None for other paths."""
    folder = embedded(path)
    if folder and not folder.is_dir():
        raise InputError(
            f"Expected a demo model in {folder}, but there is none. Restore it with git checkout -- assets/{folder.name}, "
            "train it with python -m tools.demo.train (hours), or use backbone=tiny."
        )
    return folder


def _load_folder(
    folder: Path,
    variant: str | None,
    weights: str,
    weights_seed: int,
    dtype: torch.dtype,
    kept: Pool,
    prompt_cache: str | None,
) -> Components:
    check_kinds(folder)
    for part, kind in (("unet", UNet2DConditionModel), ("vae", AutoencoderKL)):
        check_numbers(folder / part / "config.json", kind)
    scheduler = read_json(folder / SCHEDULER)
    alphas_cumprod = alphas_of(scheduler)

    def unet() -> UNet2DConditionModel:
        if weights == "random":
            return random_unet(UNet2DConditionModel.load_config(folder, subfolder="unet"), weights_seed, dtype)
        return network_of(UNet2DConditionModel, folder, "unet", variant, torch_dtype=dtype)

    def vae() -> AutoencoderKL:
        return network_of(AutoencoderKL, folder, "vae", variant, torch_dtype=vae_dtype(dtype))

    prompts = kept.part(("prompts", prompt_cache), lambda: _prompts(folder, variant, prompt_cache))
    found = _components(kept, unet, vae, prompts, alphas_cumprod, "Euler" in scheduler["_class_name"], weights, weights_seed)
    return replace(found, prediction=prediction_of(scheduler))


def _components(
    kept: Pool,
    unet: Callable[[], UNet2DConditionModel],
    vae: Callable[[], AutoencoderKL],
    prompts: Prompts,
    alphas_cumprod: Tensor,
    euler: bool,
    weights: str,
    weights_seed: int,
) -> Components:
    """Components whose networks come from the pool, with the hashes of their weights."""

    def made() -> tuple[UNet2DConditionModel, str]:
        network = unet()
        if weights == "shuffled":
            shuffle_entries(network, weights_seed)
        return network, weight_hash(network)

    def encoder() -> tuple[AutoencoderKL, str]:
        network = vae()
        return network, weight_hash(network)

    key = ("unet", weights, None if weights == "stored" else weights_seed)
    vae_network, vae_hash = kept.part("vae", encoder)
    unet_network, unet_hash = kept.part(key, made, spare=weights != "stored")
    return Components(unet_network, vae_network, prompts, alphas_cumprod, euler, unet_hash=unet_hash, vae_hash=vae_hash)


def network_of(kind: Any, folder: Path, part: str, variant: str | None, strict: bool = True, **options: Any) -> Any:
    """A model of diffusers or transformers from its safetensors files, in the given variant if the folder has it.

    Without ``strict``, files may hold weights that the model does not use: a whole CLIP model has a picture encoder, a language
    model has a head, and pipelines may use fewer layers than are stored.
    """
    model, info = kind.from_pretrained(
        folder,
        subfolder=part,
        variant=variant_of(folder / part, variant),
        use_safetensors=True,
        local_files_only=True,
        output_loading_info=True,
        **options,
    )
    check_complete(part, info, strict=strict)
    return model


def _prompts(folder: Path, variant: str | None, prompt_cache: str | None) -> Prompts:
    kinds = {"text_encoder": CLIPTextModel, "text_encoder_2": CLIPTextModelWithProjection}
    parts = [part for part in kinds if (folder / part).is_dir()]
    tokenizers = [_tokenizer(folder, part.replace("text_encoder", "tokenizer")) for part in parts]
    index = folder / "model_index.json"
    # the default of StableDiffusionXLPipeline, the only one with two encoders
    zeros = len(parts) > 1 and bool(not index.is_file() or read_json(index).get("force_zeros_for_empty_prompt", True))

    def loaded() -> PromptEncoder:
        encoders = [network_of(kinds[part], folder, part, variant, strict=False).float() for part in parts]
        return PromptEncoder(tokenizers, encoders, zeros)

    if prompt_cache is None:
        return loaded()
    key = identity(folder, parts, variant, zeros)
    configs = [CLIPTextConfig.from_pretrained(folder, subfolder=part, local_files_only=True) for part in parts]
    return StoredPrompts(loaded, TextCache(prompt_cache, Conditioning), key, tokenizers, configs)


def _tokenizer(folder: Path, part: str) -> CLIPTokenizer:
    tokenizer = CLIPTokenizer.from_pretrained(folder, subfolder=part, local_files_only=True)
    if not fits(tokenizer.model_max_length, float) or tokenizer.model_max_length < 1 or tokenizer.pad_token is None:
        raise ValueError(f"{part} states no length from 1 and no padding")
    return tokenizer


def variant_of(folder: Path, variant: str | None) -> str | None:
    return variant if variant and any(folder.glob(f"*.{variant}*.safetensors")) else None


def vae_dtype(dtype: torch.dtype) -> torch.dtype:
    """Stable Diffusion's VAEs overflow in fp16."""
    return torch.float32 if dtype == torch.float16 else dtype


def _tiny(weights: str, seed: int, dtype: torch.dtype, kept: Pool) -> Components:
    pipeline = kept.part("pipeline", lambda: random_pipeline("tiny", 0))
    return _components(
        kept,
        # its stored weights have seed 0
        lambda: random_unet(dict(pipeline.unet.config), seed + 1 if weights == "random" else 0, dtype),
        lambda: pipeline.vae.to(vae_dtype(dtype)),
        kept.part("prompts", lambda: PromptEncoder([pipeline.tokenizer], [pipeline.text_encoder])),
        pipeline.scheduler.alphas_cumprod,
        False,
        weights,
        seed,
    )


def _check(folder: Path, variant: str | None) -> None:
    needed = [f"{part}/config.json" for part in NETWORKS]
    needed += [SCHEDULER, "tokenizer/tokenizer_config.json"]
    if (folder / "text_encoder_2").is_dir():
        needed.append("tokenizer_2/tokenizer_config.json")
    for name in needed:
        if not (folder / name).is_file():
            raise InputError(
                f"Expected {folder} to be a diffusers folder with {name}, but there is none. "
                "Point backbone.path at the folder that holds model_index.json, unet, vae, text_encoder, tokenizer, scheduler."
            )
    for part in NETWORKS:
        weight_files([f"{part}/{file.name}" for file in (folder / part).iterdir()], part, variant, str(folder))


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
