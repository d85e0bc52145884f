"""Checkpoint folders → networks: finds (or downloads) a diffusers folder, checks it, loads safetensors only."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from huggingface_hub import snapshot_download
from omegaconf import OmegaConf
from safetensors import SafetensorError
from torch import Tensor
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from backbones.prompts import PromptEncoder
from backbones.random_pipeline import random_pipeline
from backbones.weights import random_unet
from tokens.errors import InputError

PRESETS = Path(__file__).parent.parent / "configs" / "backbone"
WEIGHTS = ("trained", "random")


@dataclass(frozen=True)
class Components:
    """The parts of a checkpoint that a frozen backbone needs."""

    unet: UNet2DConditionModel
    vae: AutoencoderKL
    prompts: PromptEncoder
    alphas_cumprod: Tensor
    euler: bool


def load(
    path: str, revision: str | None, variant: str | None, weights: str, weights_seed: int, dtype: torch.dtype
) -> Components:
    """Components of a local folder, a hub repository or ``tiny``.

    The VAE runs in ``dtype`` except for fp16, where Stable Diffusion's VAEs overflow: there it runs in fp32.

    Raises:
        InputError: nothing usable at ``path``; the message says what is missing.
    """
    if weights not in WEIGHTS:
        raise InputError(f"Expected weights to be one of {', '.join(WEIGHTS)}, but got '{weights}'. Use weights=trained.")
    if path == "tiny":
        return _tiny(weights_seed if weights == "random" else 0, dtype)
    folder = Path(path) if Path(path).is_dir() else _download(path, revision, variant)
    _check(folder, variant)
    try:
        return _load_folder(folder, variant, weights, weights_seed, dtype)
    except (SafetensorError, OSError, RuntimeError, ValueError) as error:
        raise InputError(
            f"Expected {folder} to hold intact diffusers weights, but loading them failed: {_first_line(error)}. "
            "Copy or download the folder again."
        ) from error


def _load_folder(folder: Path, variant: str | None, weights: str, weights_seed: int, dtype: torch.dtype) -> Components:
    options: dict[str, Any] = {"use_safetensors": True, "local_files_only": True}
    if weights == "random":
        unet = random_unet(UNet2DConditionModel.load_config(folder, subfolder="unet"), weights_seed, dtype)
    else:
        variant_here = variant if any((folder / "unet").glob(f"*.{variant}.safetensors")) else None
        unet = UNet2DConditionModel.from_pretrained(
            folder, subfolder="unet", torch_dtype=dtype, variant=variant_here, **options
        )
    vae_dtype = torch.float32 if dtype == torch.float16 else dtype
    variant_here = variant if any((folder / "vae").glob(f"*.{variant}.safetensors")) else None
    vae = AutoencoderKL.from_pretrained(folder, subfolder="vae", torch_dtype=vae_dtype, variant=variant_here, **options)
    schedule = DDPMScheduler.load_config(folder, subfolder="scheduler", local_files_only=True)
    return Components(
        unet=unet,
        vae=vae,
        prompts=_prompts(folder, variant, options),
        alphas_cumprod=DDPMScheduler.from_config(schedule).alphas_cumprod,
        euler="Euler" in schedule["_class_name"],
    )


def _prompts(folder: Path, variant: str | None, options: dict[str, Any]) -> PromptEncoder:
    kinds = {"": CLIPTextModel, "_2": CLIPTextModelWithProjection}
    present = [suffix for suffix in kinds if (folder / f"text_encoder{suffix}").is_dir()]
    tokenizers, encoders = [], []
    for suffix in present:
        subfolder = f"text_encoder{suffix}"
        variant_here = variant if any((folder / subfolder).glob(f"*.{variant}.safetensors")) else None
        encoder = kinds[suffix].from_pretrained(folder, subfolder=subfolder, variant=variant_here, **options)
        encoders.append(encoder.float())
        tokenizers.append(CLIPTokenizer.from_pretrained(folder, subfolder=f"tokenizer{suffix}", local_files_only=True))
    return PromptEncoder(tokenizers, encoders)


def _tiny(seed: int, dtype: torch.dtype) -> Components:
    pipeline = random_pipeline("tiny", 0)
    return Components(
        unet=random_unet(dict(pipeline.unet.config), seed, dtype),
        vae=pipeline.vae.to(torch.float32 if dtype == torch.float16 else dtype),
        prompts=PromptEncoder([pipeline.tokenizer], [pipeline.text_encoder]),
        alphas_cumprod=pipeline.scheduler.alphas_cumprod,
        euler=False,
    )


def preset(name: str) -> dict[str, Any] | None:
    """path, revision and variant of ``configs/backbone/<name>.yaml``; None where there is no such preset."""
    card = PRESETS / f"{name}.yaml"
    if not card.is_file():
        return None
    settings = OmegaConf.to_container(OmegaConf.load(card))
    return {key: settings.get(key) for key in ("path", "revision", "variant")}  # type: ignore[union-attr]


def _download(path: str, revision: str | None, variant: str | None) -> Path:
    """Snapshot of a hub repository, only the files that are needed; the local copy when the hub does not answer."""
    if path.count("/") != 1 or path.startswith((".", "/", "~")):
        raise InputError(
            f"Expected the backbone to be a preset, a hub repository (owner/name) or a local diffusers folder, "
            f"but got '{path}', which does not exist. Check the path."
        )
    weights = [f"{part}/*{f'.{variant}' if variant else ''}.safetensors" for part in ("unet", "vae", "text_encoder*")]
    skipped = ["*non_ema*"] if variant else ["*.fp16.safetensors", "*non_ema*"]
    try:
        folder = snapshot_download(
            path,
            revision=revision,
            allow_patterns=["*/*.json", "tokenizer*/*", *weights],
            ignore_patterns=["safety_checker/*", *skipped],
        )
    except Exception as error:  # the hub client raises a dozen unrelated types for "no network" and "no such repository"
        at = f"@{revision}" if revision else ""
        raise InputError(
            f"Expected to download {path}{at} from the Hugging Face hub, but it cannot be reached or does not have it "
            f"({_first_line(error)}). Where there is network, run `hf download {path} --local-dir DIR`, bring DIR here "
            "(unet, vae, text_encoder, tokenizer, scheduler) and use backbone=local backbone.path=DIR."
        ) from error
    return Path(folder)


def _check(folder: Path, variant: str | None) -> None:
    for part in ("unet", "vae", "text_encoder"):
        if not (folder / part / "config.json").is_file():
            raise InputError(
                f"Expected {folder} to be a diffusers folder with {part}/config.json, but there is none. "
                "Point backbone.path at the folder that holds model_index.json, unet, vae, text_encoder, tokenizer, scheduler."
            )
        if not any((folder / part).glob("*.safetensors")):
            pickled = sorted(file.name for file in (folder / part).glob("*.bin"))
            found = f"only pickled weights ({', '.join(pickled)}), which are not loaded" if pickled else "no weights"
            raise InputError(
                f"Expected {folder / part} to hold .safetensors weights, but found {found}. "
                "Save the pipeline again with save_pretrained(..., safe_serialization=True)."
            )


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
