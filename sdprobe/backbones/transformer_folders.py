"""Diffusers folders of diffusion transformers: which parts they need, and how they are loaded. Data path steps 2 to 4."""

import importlib.util
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from torch import nn
from transformers import AutoTokenizer

from sdprobe.backbones.capabilities import KINDS, check_options, check_prompt, check_prompt_cache, class_of
from sdprobe.backbones.families import FAMILIES, Conditions, Family
from sdprobe.backbones.hub import weight_files
from sdprobe.backbones.loading import SCHEDULER, Components, network_of, vae_dtype
from sdprobe.backbones.noise import FlowSchedule, NoiseSchedule, alphas_of
from sdprobe.backbones.parts import check_numbers
from sdprobe.backbones.pool import Pool
from sdprobe.backbones.precision import name_of
from sdprobe.backbones.prompts import Prompts
from sdprobe.backbones.stored_prompts import StoredPrompts, TextCache, identity
from sdprobe.backbones.transformer import FrozenTransformer
from sdprobe.backbones.transformer_pipelines import PipelineText, check_channels, options_of
from sdprobe.backbones.weights import random_network, shuffle_entries, weight_hash
from sdprobe.utilities.errors import InputError
from sdprobe.utilities.io import read_json

INDEX = "model_index.json"
# class of an encoder → what model_type of its config.json may be
MODELS = {
    "CLIPTextModel": ("clip_text_model", "clip"), "CLIPTextModelWithProjection": ("clip_text_model", "clip"),
    "T5EncoderModel": ("t5",), "Gemma2Model": ("gemma2",),
}  # fmt: skip
CLIP = "CLIPTextModelWithProjection"
ENCODERS = {
    "pixart": {"text_encoder": "T5EncoderModel"},
    "sd3": {"text_encoder": CLIP, "text_encoder_2": CLIP, "text_encoder_3": "T5EncoderModel"},
    "flux": {"text_encoder": "CLIPTextModel", "text_encoder_2": "T5EncoderModel"},
    "dit": {},
    "sana": {"text_encoder": "Gemma2Model"},
    "lumina2": {"text_encoder": "Gemma2Model"},
}
LOST = "Point backbone.path at the folder that holds model_index.json, {}."


def family_in(index: object, where: str) -> Family:
    """The family of a pipeline, by its model_index.json.

    Raises:
        InputError: a pipeline of no family.
    """
    kind = index.get("_class_name") if isinstance(index, Mapping) else None
    found = next((family for family in FAMILIES if kind in family.pipelines), None)
    if found is None:
        known = ", ".join(name for family in FAMILIES for name in family.pipelines)
        raise InputError(
            f"Expected _class_name in {INDEX} of {where} to be a pipeline of Stable Diffusion 1, 2 or XL, or one of {known}, "
            f"but got {kind!r}. Use a checkpoint of one of these."
        )
    return found


def parts_of(family: Family, names: Collection[str], text: bool = True) -> list[str]:
    """The networks of a folder or repository with these files that are loaded. Without ``text``, no encoder is."""
    optional = [part for part in family.optional if f"{part}/config.json" in names]
    return ["transformer", "vae", *([*family.encoders, *optional] if text else [])]


def needed_files(names: Collection[str], index: object, variant: str | None, where: str, text: bool = True) -> list[str]:
    """The files of a repository that a backbone is loaded from.

    Raises:
        InputError: a part is missing, has no weights that can be loaded, or the pipeline is of no family.
    """
    family = family_in(index, where)
    parts = parts_of(family, names, text)
    tokenizers = [_tokenizer(part) for part in parts if part.startswith("text_encoder")]
    required = [f"{part}/config.json" for part in parts] + [f"{part}/tokenizer_config.json" for part in tokenizers]
    for name in (*required, SCHEDULER):
        if name not in names:
            parts_named = ", ".join((*parts, *tokenizers, "scheduler"))
            raise InputError(
                f"Expected {where} to hold {name}, as {family.pipelines[0]} saves it, but there is none. "
                + LOST.format(parts_named)
            )
    needed = [INDEX, *required, SCHEDULER]
    needed += [name for name in names if name.partition("/")[0] in tokenizers]
    needed += [name for part in parts for name in weight_files(names, part, variant, where)]
    return sorted(set(needed))


def check(folder: Path, variant: str | None, text: bool = True) -> None:
    """Raises InputError if files of a folder are missing, or if a part is of another kind than its pipeline needs."""
    if not (folder / INDEX).is_file():
        raise InputError(
            f"Expected {folder} to hold {INDEX}, which names the pipeline of its transformer, but there is none. "
            "Save the whole pipeline with save_pretrained."
        )
    index = read_json(folder / INDEX)
    family = family_in(index, str(folder))
    names = {file.relative_to(folder).as_posix() for file in folder.glob("*/*") if file.is_file()}
    needed_files(names, index, variant, str(folder), text)
    for part in parts_of(family, names, text):
        config = read_json(folder / part / "config.json")
        known: tuple[str, ...]
        if part in ("transformer", "vae"):
            wanted, found = (family.network if part == "transformer" else _vae(family).__name__), class_of(config)
            known = (wanted,)
        else:
            wanted = ENCODERS[family.name][part]
            found, known = str(config.get("model_type")), MODELS[wanted]
        if found not in known:
            raise InputError(
                f"Expected {folder / part / 'config.json'} to describe a {wanted} ({' or '.join(known)}), but got '{found}'. "
                f"Use a checkpoint that {index['_class_name']} saved."
            )


def native_size(folder: Path) -> object:
    """Side in cells of the latents that a checkpoint was made for, as its configuration says; FLUX's does not."""
    config = read_json(folder / "transformer" / "config.json")
    return config.get("sample_size") or (128 if class_of(config) == "FluxTransformer2DModel" else None)


def schedule(folder: Path) -> NoiseSchedule:
    """The noise schedule of a folder."""
    family = family_in(read_json(folder / INDEX), str(folder))
    return FlowSchedule() if family.flow else NoiseSchedule(alphas_of(read_json(folder / SCHEDULER)))


def load(
    folder: Path,
    variant: str | None,
    weights: str,
    seed: int,
    dtype: torch.dtype,
    kept: Pool,
    text: bool = True,
    prompt_cache: str | None = None,
) -> Components:
    """Components of a checked folder.

    The transformer and the text encoders have ``dtype``, except for fp16, in which T5 and Gemma overflow. Then the encoders
    have fp32. The VAE is that of :func:`sdprobe.backbones.loading.load`. Without ``text``, no encoder is loaded, and zeros
    stand in for what they return. With ``prompt_cache``, a folder, they are loaded for prompts that it lacks only.

    Raises:
        InputError: FLUX in fp16, in which it overflows, a VAE with other latents than the transformer takes, or a prompt cache
            without text.
    """
    index = read_json(folder / INDEX)
    family = family_in(index, str(folder))
    check_options(KINDS[family.network], precision=name_of(dtype))
    kind, vae_kind = getattr(diffusers, family.network), _vae(family)
    config = read_json(folder / "transformer" / "config.json")
    check_numbers(folder / "transformer" / "config.json", kind)
    check_numbers(folder / "vae" / "config.json", vae_kind)
    alphas = torch.ones(0) if family.flow else alphas_of(read_json(folder / SCHEDULER))
    encoding = torch.float32 if dtype == torch.float16 else dtype

    def transformer() -> tuple[nn.Module, str]:
        random = weights == "random"
        network = (
            random_network(kind, config, seed, dtype)
            if random
            else network_of(kind, folder, "transformer", variant, torch_dtype=dtype)
        )
        if weights == "shuffled":
            shuffle_entries(network, seed)
        return network, weight_hash(network)

    def autoencoder() -> tuple[nn.Module, str]:
        network = network_of(vae_kind, folder, "vae", variant, torch_dtype=vae_dtype(dtype))
        return network, weight_hash(network)

    if prompt_cache:
        check_prompt_cache(family.network, "encoded" if text else "none", KINDS[family.network].prompt)
    made = lambda: _prompts(folder, family, index, variant, encoding, text, prompt_cache)  # noqa: E731
    prompts = kept.part(("prompts", text, prompt_cache), made)
    vae, vae_hash = kept.part("vae", autoencoder)
    key = ("transformer", weights, None if weights == "stored" else seed)
    network, network_hash = kept.part(key, transformer, spare=weights != "stored")
    check_channels(str(folder), FrozenTransformer(network), vae)
    return Components(
        unet=network, vae=vae, prompts=prompts, alphas_cumprod=alphas, euler=False, flow=family.flow,
        unet_hash=network_hash, vae_hash=vae_hash,
    )  # fmt: skip


class NoText(Prompts):
    """Zeros in place of text states, or the null class, without a text encoder. Some published works use them.

    Args:
        network: without weights.
    """

    weights = "none"

    def __init__(self, network: FrozenTransformer) -> None:
        super().__init__()
        self._network = network

    def encode(self, prompt: str) -> Conditions:
        """Conditions for the whole batch.

        Raises:
            InputError: a prompt, which would have no effect.
        """
        check_prompt("none", prompt)
        return self._network.without_text(device=torch.device("cpu"))


def _prompts(
    folder: Path,
    family: Family,
    index: Mapping[str, Any],
    variant: str | None,
    dtype: torch.dtype,
    text: bool,
    prompt_cache: str | None,
) -> Prompts:
    """What turns prompts into conditions: the pipeline's own method, with its encoders and a transformer without weights."""
    config = read_json(folder / "transformer" / "config.json")
    with torch.device("meta"):
        network = nn.Module.to(getattr(diffusers, family.network).from_config(config), dtype)
    if not text:
        return NoText(FrozenTransformer(network))
    pipeline = getattr(diffusers, str(index["_class_name"]))
    names = {file.relative_to(folder).as_posix() for file in folder.glob("*/config.json")}
    there = [part for part in parts_of(family, names) if part in ENCODERS[family.name]]

    def encoder(part: str) -> Any:
        kind = getattr(transformers, ENCODERS[family.name][part])
        return network_of(kind, folder, part, variant, strict=False, dtype=dtype).eval().requires_grad_(False)

    def loaded() -> PipelineText:
        parts: dict[str, Any] = {"transformer": network, "vae": None, "scheduler": None}
        for part in (*family.encoders, *family.optional):
            found = part in there
            parts[part] = encoder(part) if found else None
            parts[_tokenizer(part)] = _read_tokenizer(folder / _tokenizer(part)) if found else None
        if family.name == "dit":
            labels = index.get("id2label")
            parts["id2label"] = labels if isinstance(labels, dict) and all(str(key).isdecimal() for key in labels) else None
        return PipelineText(pipeline(**parts), family)

    if prompt_cache is None:
        return loaded()
    settings = dtype, pipeline.__name__, options_of(pipeline), family.width and config.get(family.width)
    return StoredPrompts(loaded, TextCache(prompt_cache, Conditions), identity(folder, there, variant, *settings))


def _read_tokenizer(folder: Path) -> Any:
    models = sorted(file.name for file in folder.glob("*.model"))
    if models and not (folder / "tokenizer.json").is_file() and importlib.util.find_spec("sentencepiece") is None:
        raise InputError(
            f"Expected {folder} to hold tokenizer.json, but got only {models[0]}, which the package sentencepiece reads. "
            "Install it: pip install sentencepiece."
        )
    return AutoTokenizer.from_pretrained(folder, local_files_only=True)


def _tokenizer(encoder: str) -> str:
    return encoder.replace("text_encoder", "tokenizer")


def _vae(family: Family) -> Any:
    return diffusers.AutoencoderDC if family.name == "sana" else diffusers.AutoencoderKL
