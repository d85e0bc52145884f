"""sdprobe: can these diffusion features be trusted? Probes of frozen activations, and maps that repair them.

>>> from sdprobe import FrozenSD, mitigations
"""

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

# read when transformers and diffusers are imported: they warn about torchvision and dtype casts, which is no news here
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
# read when torch makes its first tensor: activations in huge pages, since one batch of them costs 100 000 page faults else
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
# read when torch is imported: notes on DistributedDataParallel
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")

if TYPE_CHECKING:
    from sdprobe import mitigations as mitigations
    from sdprobe.backbones.frozen_sd import FrozenSD as FrozenSD

__all__ = ["FrozenSD", "mitigations"]


def __getattr__(name: str) -> Any:
    """Import on first use: torch and diffusers take seconds."""
    if name == "FrozenSD":
        return import_module("sdprobe.backbones").FrozenSD
    if name == "mitigations":
        return import_module("sdprobe.mitigations")
    raise AttributeError(f"module 'sdprobe' has no attribute '{name}'")


def __dir__() -> list[str]:
    return [*globals(), *__all__]
