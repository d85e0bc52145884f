"""Digests of weights and configurations, and networks with random or shuffled weights."""

import hashlib
import json
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import nn

from sdprobe.utilities.errors import InputError
from sdprobe.utilities.rng import keyed_generator


def weight_hash(module: nn.Module, dtype: torch.dtype | None = None) -> str:
    """SHA-256 over names, dtypes and bytes of all parameters and buffers, as loaded. Equal weights have equal digests.

    With ``dtype``, floating-point tensors count as cast to it. The scales of attached LoRA adapters count, too.
    """
    digest = hashlib.sha256()
    for name, part in module.named_modules():
        if isinstance(scales := getattr(part, "scaling", None), dict):
            state = sorted(scales.items()), getattr(part, "active_adapters", None), getattr(part, "disable_adapters", None)
            digest.update(f"{name}:{state}".encode())
    for name, tensor in sorted(module.state_dict().items()):
        tensor = tensor.to(dtype) if dtype and tensor.is_floating_point() else tensor
        digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def config_hash(config: Any) -> str:
    """Digest of an architecture, independent of where it was loaded from."""
    settings = {key: value for key, value in dict(config).items() if not key.startswith("_")}
    return hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()


def shuffle_entries(network: nn.Module, seed: int) -> None:
    """Permute the entries inside each parameter. Every tensor keeps its distribution of values but not its function.

    A permutation is keyed by (seed, name of the parameter) only.
    """
    for name, parameter in network.named_parameters():
        order = torch.randperm(parameter.numel(), generator=keyed_generator("shuffled weights", seed, name))
        parameter.data = parameter.data.flatten()[order.to(parameter.device)].view_as(parameter)


def random_unet(config: dict[str, object], seed: int, dtype: torch.dtype) -> UNet2DConditionModel:
    """A U-Net of this configuration with newly initialised weights: the random-weights baseline."""
    return random_network(UNet2DConditionModel, config, seed, dtype)


def random_network(kind: Any, config: dict[str, Any], seed: int, dtype: torch.dtype) -> Any:
    """A network of a class of diffusers with newly initialised weights, as :func:`random_unet`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        # diffusers' own to() warns of a list of modules that is empty for all of these networks
        return nn.Module.to(kind.from_config(config), dtype)


MODULATIONS = ("AdaLayerNormZero", "AdaLayerNormZeroSingle", "SD35AdaLayerNormZeroX")


@torch.no_grad()
def adaln_zero(network: nn.Module) -> None:
    """Set the modulations of a diffusion transformer to zero, from which training with adaLN-Zero starts (Peebles & Xie 2023).

    Every block then returns its input. The initialisation of diffusers leaves them random, so that a random network of
    diffusers is not one before its first training step.

    Raises:
        InputError: a network without adaLN-Zero (PixArt, Sana and Lumina2 modulate otherwise).
    """
    found: list[Any] = [module for module in network.modules() if type(module).__name__ in MODULATIONS]
    if not found:
        kind = type(network).__name__
        raise InputError(f"Expected a network with adaLN-Zero, DiT, SD3 or FLUX, but got {kind}. Leave adaln_zero out.")
    for module in found:
        nn.init.zeros_(module.linear.weight)
        nn.init.zeros_(module.linear.bias)
