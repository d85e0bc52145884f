"""Identity of weights: a digest of what is in memory, and random twins of a network."""

import hashlib
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from torch import nn

DEMO = Path(__file__).parent.parent / "assets" / "demo"  # the embedded demo model


def weight_hash(module: nn.Module) -> str:
    """SHA-256 over names, dtypes and bytes of all parameters and buffers, as loaded. Same weights in, same hash out."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def random_unet(config: dict[str, object], seed: int, dtype: torch.dtype) -> UNet2DConditionModel:
    """A U-Net of this configuration with freshly initialised weights: the null of every trained network."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return UNet2DConditionModel.from_config(config).to(dtype)
