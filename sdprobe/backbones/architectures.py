"""Presets and their configurations, available offline, and networks of a configuration without weights."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import UNet2DConditionModel
from omegaconf import OmegaConf

from sdprobe.backbones.capabilities import class_of, is_transformer_folder
from sdprobe.backbones.embedded import folder_of
from sdprobe.backbones.published import transformers
from sdprobe.utilities.errors import InputError
from sdprobe.utilities.io import read_json

HERE = Path(__file__).parent


@cache
def presets() -> dict[str, dict[str, Any]]:
    """Name → ``path`` (hub repository or source of the weights), ``revision``, ``variant``, ``architecture``."""
    stored = OmegaConf.to_container(OmegaConf.load(HERE / "presets.yaml"))
    assert isinstance(stored, dict)
    return {str(name): {"revision": None, "variant": None, **entry} for name, entry in stored.items()}


def source_of(name: str) -> dict[str, Any]:
    """Where a checkpoint is: ``path``, ``revision`` and ``variant`` of a preset; others are their own path."""
    if name in transformers():
        entry = transformers()[name]
        return {"path": entry["repository"], "revision": None, "variant": entry.get("variant")}
    return presets().get(name, {"path": name, "revision": None, "variant": None})


def preset_config(model: str) -> dict[str, Any]:
    """U-Net configuration of a local diffusers folder or of a preset, without any download.

    Raises:
        InputError: neither a folder with ``unet/config.json`` nor a known preset.
    """
    folder = folder_of(model)
    if (folder / "unet" / "config.json").is_file():
        return read_json(folder / "unet" / "config.json")
    architecture = presets().get(model, {}).get("architecture")
    if architecture is None:
        raise InputError(
            f"Expected a preset ({', '.join((*presets(), *transformers()))}) or a diffusers folder with unet/config.json or "
            f"transformer/config.json, but got '{model}'. Correct the name."
        )
    return json.loads((HERE / "architectures.json").read_text())[architecture]


def meta_unet(config: dict[str, Any]) -> UNet2DConditionModel:
    """A U-Net of this configuration without weights: structure and shapes only."""
    return _without_weights(UNet2DConditionModel, config)


def meta_transformer(model: str) -> Any:
    """A diffusion transformer without weights: a published one by name, or that of a local diffusers folder.

    Raises:
        InputError: a folder without ``transformer/config.json``, or a network of another class.
    """
    file = folder_of(model) / "transformer" / "config.json"
    known = transformers().get(model)
    config = known["config"] if known else read_json(file)
    kind = str(known["class"]) if known else class_of(config)
    classes = {entry["class"] for entry in transformers().values()}
    if kind not in classes:
        supported = ", ".join(sorted(classes))
        raise InputError(f"Expected _class_name in {file} to be one of {supported}, but got '{kind}'. Use another checkpoint.")
    return _without_weights(getattr(diffusers, kind), config)


def _without_weights(kind: Any, config: dict[str, Any]) -> Any:
    try:
        with torch.device("meta"):
            return kind.from_config(config)
    except Exception as error:  # networks raise what their arithmetic raises
        raise InputError(f"Expected config.json to describe a {kind.__name__}, but got: {error}. Correct the file.") from error


def is_transformer(model: str) -> bool:
    """Whether a name or a local folder is a diffusion transformer, and not a U-Net."""
    return model in transformers() or is_transformer_folder(folder_of(model))
