"""Parts of a checkpoint: supported kinds, complete weights, and sizes that fit each other."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from diffusers import AutoencoderKL, UNet2DConditionModel

from sdprobe.utilities.errors import InputError
from sdprobe.utilities.io import read_json
from sdprobe.utilities.signatures import declared, fits

# part → key of its config.json, and the values that load here
KINDS = {
    "unet": ("_class_name", ("UNet2DConditionModel",)),
    "vae": ("_class_name", ("AutoencoderKL",)),
    "text_encoder": ("model_type", ("clip_text_model", "clip")),
    "text_encoder_2": ("model_type", ("clip_text_model", "clip")),
}


def check_kinds(folder: Path) -> None:
    """Raises InputError if a part of a diffusers folder is another kind of network. A part that does not say passes."""
    for part, (key, kinds) in KINDS.items():
        file = folder / part / "config.json"
        kind = read_json(file).get(key) if file.is_file() else None
        if kind is not None and kind not in kinds:
            raise InputError(
                f"Expected {key} in {file} to be {kinds[0]}, but got '{kind}'. "
                "Use a checkpoint of Stable Diffusion 1, 2 or XL, or a fine-tuned one."
            )


def check_numbers(file: Path, network: type) -> None:
    """Raises InputError if a configuration has text, a list or an object where the constructor of a network takes a number."""
    given = read_json(file)
    for name, hint in declared(network).items():
        if isinstance(given.get(name), str | list | dict) and _is_number(hint):
            raise InputError(f"Expected {name} in {file} to be a number, but got {given[name]!r}. Correct the file.")


def _is_number(hint: Any) -> bool:
    """Whether a type has numbers and flags only, or null."""
    others: tuple[Any, ...] = ("", [], {})
    return not any(fits(value, hint) for value in others)


def check_complete(part: str, info: Mapping[str, Collection[str]], strict: bool = True) -> None:
    """Raises ValueError if loading left tensors of a part unset or, if ``strict``, did not use all that are stored."""
    for key, problem in {"missing_keys": "lacks", "mismatched_keys": "has another shape for"}.items():
        if info[key]:
            raise ValueError(f"{part} {problem} {_some(info[key])}")
    if strict and info["unexpected_keys"]:
        raise ValueError(f"{part} has tensors that its config.json does not describe: {_some(info['unexpected_keys'])}")


def _some(keys: Collection[Any]) -> str:
    return ", ".join(sorted(map(str, keys))[:3])


def check_fit(
    path: str, unet: UNet2DConditionModel, vae: AutoencoderKL, tokenizers: Sequence[Any], configs: Sequence[Any]
) -> None:
    """Raises InputError unless the parts have the same number of latent channels, text channels and tokens.

    ``tokenizers`` and ``configs`` are those of the text encoders.
    """
    channels, takes = vae.config.latent_channels, unet.config.in_channels
    if takes != channels:
        raise InputError(
            f"Expected a text-to-image U-Net with {channels} input channels, but {path} has {takes}. "
            "Inpainting and other conditioned U-Nets are not supported."
        )
    if vae.config.in_channels != 3:
        raise InputError(
            f"Expected the VAE of {path} to take 3 channels, red, green and blue, but it takes {vae.config.in_channels}. "
            "Use another checkpoint."
        )
    widths = unet.config.cross_attention_dim
    _same(path, "text channels", widths, sum(config.hidden_size for config in configs))
    if unet.config.addition_embed_type == "text_time":
        pooled = unet.config.projection_class_embeddings_input_dim - 6 * unet.config.addition_time_embed_dim
        _same(path, "pooled text channels", pooled, configs[1].projection_dim if len(configs) > 1 else 0)
    for tokenizer, config in zip(tokenizers, configs, strict=True):
        if len(tokenizer) > config.vocab_size:
            raise InputError(
                f"Expected the tokenizer and text encoder of {path} to be of one checkpoint, but the tokenizer has "
                f"{len(tokenizer)} tokens and the encoder {config.vocab_size}. Copy both from the same checkpoint."
            )


def _same(path: str, what: str, takes: Any, given: int) -> None:
    if {given} != ({takes} if isinstance(takes, int) else set(takes)):
        raise InputError(
            f"Expected the text encoders of {path} to give the {takes} {what} that its U-Net takes, but they give {given}. "
            "Use the U-Net and text encoders of one checkpoint."
        )
