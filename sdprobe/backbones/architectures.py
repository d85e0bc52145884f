"""Presets and their U-Net configurations, available offline, and U-Nets of a configuration without weights."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from omegaconf import OmegaConf

from sdprobe.utilities.errors import InputError
from sdprobe.utilities.io import read_json

HERE = Path(__file__).parent
PACKAGED = HERE.parent / "assets" / "demo"
# the embedded demo model: inside the package in a wheel, next to it in a checkout
DEMO = PACKAGED if PACKAGED.is_dir() else HERE.parents[1] / "assets" / "demo"


@cache
def presets() -> dict[str, dict[str, Any]]:
    """Name → ``path`` (hub repository or source of the weights), ``revision``, ``variant``, ``architecture``."""
    stored = OmegaConf.to_container(OmegaConf.load(HERE / "presets.yaml"))
    assert isinstance(stored, dict)
    return {str(name): {"revision": None, "variant": None, **entry} for name, entry in stored.items()}


def preset_config(model: str) -> dict[str, Any]:
    """U-Net configuration of a local diffusers folder or of a preset, without any download.

    Raises:
        InputError: neither a folder with ``unet/config.json`` nor a known preset.
    """
    folder = DEMO if model == "demo" else Path(model)
    if (folder / "unet" / "config.json").is_file():
        return read_json(folder / "unet" / "config.json")
    architecture = presets().get(model, {}).get("architecture")
    if architecture is None:
        raise InputError(
            f"Expected a preset ({', '.join(presets())}) or a diffusers folder with unet/config.json, but got '{model}'."
        )
    return json.loads((HERE / "architectures.json").read_text())[architecture]


def meta_unet(config: dict[str, Any]) -> UNet2DConditionModel:
    """A U-Net of this configuration without weights: structure and shapes only."""
    with torch.device("meta"):
        return UNet2DConditionModel.from_config(config)
