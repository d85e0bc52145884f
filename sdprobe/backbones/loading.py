"""Checkpoint folders → networks: find (or download) a diffusers folder, check it, and load safetensors only.

Weight files are compared with the SHA-256 digests in a model card: ``sha256: {file: digest}`` in its front matter.
"""

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from huggingface_hub import ModelCard, snapshot_download
from torch import Tensor
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer
from transformers.utils import logging as transformers_logging

from sdprobe.backbones.architectures import DEMO
from sdprobe.backbones.foreign import check_folder
from sdprobe.backbones.prompts import PromptEncoder
from sdprobe.backbones.random_pipeline import random_pipeline
from sdprobe.backbones.weights import random_unet, shuffle_entries
from sdprobe.utilities import settings
from sdprobe.utilities.errors import InputError
from sdprobe.utilities.io import parsing

EMBEDDED = "assets/demo"
NETWORKS = ("unet", "vae", "text_encoder")
# model.fp16.safetensors, model.fp16-00001-of-00002.safetensors
VARIANT = re.compile(r"\.(\w+)(-\d+-of-\d+)?\.safetensors$")
REMEDY = "Restore it (for the demo model: git checkout -- assets/demo), or correct the card if you changed the weights."
transformers_logging.disable_progress_bar()  # loading weights is quick; downloads still show progress


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
    """Components of a local folder, a hub repository, the embedded demo model (``assets/demo``) or ``tiny``.

    The VAE runs in ``dtype``, except for fp16, where the VAEs of Stable Diffusion overflow. Then it runs in fp32.

    Raises:
        InputError: nothing usable at ``path``; the message says what is missing.
    """
    settings.check("backbone", weights=weights)
    if path == "tiny":
        return _tiny(weights, weights_seed, dtype)
    folder = _embedded() if path == EMBEDDED else Path(path) if Path(path).is_dir() else _download(path, revision, variant)
    _check(folder, variant)
    check_folder(folder)
    check_card(folder)
    try:
        return _load_folder(folder, variant, weights, weights_seed, dtype)
    except Exception as error:  # diffusers and transformers raise a dozen unrelated types
        raise InputError(
            f"Expected {folder} to hold intact diffusers weights, but loading them failed: {_first_line(error)}. "
            "Copy or download the folder again."
        ) from error


def _embedded() -> Path:
    """Folder of the demo model, independent of the working directory."""
    if not DEMO.is_dir():
        raise InputError(
            f"Expected the demo model in {DEMO}, but there is none. Restore it with git checkout -- {EMBEDDED}, train it with "
            "python -m tools.demo.train (hours), or use backbone=tiny."
        )
    return DEMO


def _load_folder(folder: Path, variant: str | None, weights: str, weights_seed: int, dtype: torch.dtype) -> Components:
    if weights == "random":
        unet = random_unet(UNet2DConditionModel.load_config(folder, subfolder="unet"), weights_seed, dtype)
    else:
        unet = _network(UNet2DConditionModel, folder, "unet", variant, dtype)
    if weights == "shuffled":
        shuffle_entries(unet, weights_seed)
    schedule = DDPMScheduler.load_config(folder, subfolder="scheduler", local_files_only=True)
    return Components(
        unet=unet,
        vae=_network(AutoencoderKL, folder, "vae", variant, _vae_dtype(dtype)),
        prompts=_prompts(folder, variant),
        alphas_cumprod=DDPMScheduler.from_config(schedule).alphas_cumprod,
        euler="Euler" in schedule["_class_name"],
    )


def _network(kind: Any, folder: Path, part: str, variant: str | None, dtype: torch.dtype) -> Any:
    """A diffusers model from its safetensors files, in the given variant if the folder has it."""
    model, info = kind.from_pretrained(
        folder,
        subfolder=part,
        torch_dtype=dtype,
        variant=_variant_of(folder / part, variant),
        use_safetensors=True,
        local_files_only=True,
        output_loading_info=True,
    )
    if info["missing_keys"]:
        raise ValueError(f"{part} lacks {', '.join(sorted(info['missing_keys'])[:3])}")
    return model


def _prompts(folder: Path, variant: str | None) -> PromptEncoder:
    kinds = {"": CLIPTextModel, "_2": CLIPTextModelWithProjection}
    tokenizers, encoders = [], []
    for suffix, kind in kinds.items():
        part = f"text_encoder{suffix}"
        if not (folder / part).is_dir():
            continue
        encoder = kind.from_pretrained(
            folder, subfolder=part, variant=_variant_of(folder / part, variant), use_safetensors=True, local_files_only=True
        )
        encoders.append(encoder.float())
        tokenizers.append(CLIPTokenizer.from_pretrained(folder, subfolder=f"tokenizer{suffix}", local_files_only=True))
    return PromptEncoder(tokenizers, encoders)


def _variant_of(folder: Path, variant: str | None) -> str | None:
    return variant if variant and any(folder.glob(f"*.{variant}*.safetensors")) else None


def _vae_dtype(dtype: torch.dtype) -> torch.dtype:
    """Stable Diffusion's VAEs overflow in fp16."""
    return torch.float32 if dtype == torch.float16 else dtype


def _tiny(weights: str, seed: int, dtype: torch.dtype) -> Components:
    pipeline = random_pipeline("tiny", 0)
    # its stored weights have seed 0
    unet = random_unet(dict(pipeline.unet.config), seed + 1 if weights == "random" else 0, dtype)
    if weights == "shuffled":
        shuffle_entries(unet, seed)
    return Components(
        unet=unet,
        vae=pipeline.vae.to(_vae_dtype(dtype)),
        prompts=PromptEncoder([pipeline.tokenizer], [pipeline.text_encoder]),
        alphas_cumprod=pipeline.scheduler.alphas_cumprod,
        euler=False,
    )


def _download(path: str, revision: str | None, variant: str | None) -> Path:
    """Download the needed files of a hub repository; use the local copy if the hub does not answer."""
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
            f"({_first_line(error)}). On a machine with network access run `hf download {path} --local-dir DIR`, copy DIR here "
            "(unet, vae, text_encoder, tokenizer, scheduler) and use backbone=local backbone.path=DIR."
        ) from error
    return Path(folder)


def _check(folder: Path, variant: str | None) -> None:
    needed = [f"{part}/config.json" for part in NETWORKS]
    needed += ["scheduler/scheduler_config.json", "tokenizer/tokenizer_config.json"]
    if (folder / "text_encoder_2").is_dir():
        needed.append("tokenizer_2/tokenizer_config.json")
    for name in needed:
        if not (folder / name).is_file():
            raise InputError(
                f"Expected {folder} to be a diffusers folder with {name}, but there is none. "
                "Point backbone.path at the folder that holds model_index.json, unet, vae, text_encoder, tokenizer, scheduler."
            )
    for part in NETWORKS:
        _check_weights(folder / part, variant)


def _check_weights(folder: Path, variant: str | None) -> None:
    files = sorted(file.name for file in folder.glob("*.safetensors"))
    if not files:
        pickled = sorted(file.name for file in folder.glob("*.bin"))
        stored = f"only pickled weights ({', '.join(pickled)}), which are not loaded" if pickled else "no weights"
        raise InputError(
            f"Expected {folder} to hold .safetensors weights, but found {stored}. "
            "Save the pipeline again with save_pretrained(..., safe_serialization=True)."
        )
    variants = {match[1] if (match := VARIANT.search(name)) else None for name in files}
    if len(variants) == 1 and not variants & {variant, None}:
        raise InputError(
            f"Expected {folder} to hold weights without a variant, but found only {', '.join(files)}. "
            f"Use backbone.variant={variants.pop()}."
        )


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")


def check_card(folder: Path) -> None:
    """Compare every file that the card ``folder/README.md`` lists with its digest. A folder without such a list passes.

    Raises:
        InputError: a listed file is missing or has other content.
    """
    card = folder / "README.md"
    if not card.is_file():
        return
    for name, expected in listed(card).items():
        file = folder / name
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise InputError(f"Expected {card} to list files of its folder, but got '{name}'. {REMEDY}")
        if not file.is_file():
            raise InputError(f"Expected {folder} to hold {name}, which its card lists, but there is none. {REMEDY}")
        actual = digest(file)
        if actual != expected:
            raise InputError(
                f"Expected {file} to have the SHA-256 {expected[:12]}… of its card, but got {actual[:12]}… "
                f"({file.stat().st_size:,} bytes): it is truncated or altered. {REMEDY}"
            )


def listed(card: Path) -> dict[str, str]:
    """File → digest, as the front matter of the card lists them; empty without such a list."""
    with parsing(card):
        entries = dict(ModelCard.load(card, ignore_metadata_errors=True).data.to_dict().get("sha256") or {})
    return {str(name): str(value) for name, value in entries.items()}


def digest(file: Path) -> str:
    """SHA-256 of a file in hexadecimal."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
