"""sdprobe: probes of frozen diffusion features for position, corner and high-norm artefacts, and mitigations against them.

>>> from sdprobe import FrozenSD, explore, heads, match, mitigations, position, split, statistics
"""

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

# transformers and diffusers read this when they are imported; it silences warnings about torchvision and dtype casts
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
# torch reads this when it makes its first tensor: huge pages, because one batch of activations costs 100 000 page faults
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
# torch reads this when it is imported; it silences notes on DistributedDataParallel
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")

if TYPE_CHECKING:
    from sdprobe import mitigations as mitigations
    from sdprobe.api import match as match
    from sdprobe.api import position as position
    from sdprobe.api import split as split
    from sdprobe.api import statistics as statistics
    from sdprobe.backbones.frozen_sd import FrozenSD as FrozenSD
    from sdprobe.estimators import heads as heads
    from sdprobe.notebook import explore as explore

__all__ = ["FrozenSD", "explore", "heads", "match", "mitigations", "position", "split", "statistics"]
_MODULES = {"heads": "sdprobe.estimators.heads", "mitigations": "sdprobe.mitigations"}
_FUNCTIONS = ("match", "position", "split", "statistics")


def __getattr__(name: str) -> Any:
    """Import on first use, because torch and diffusers take seconds to import."""
    if name == "FrozenSD":
        return import_module("sdprobe.backbones").FrozenSD
    if name == "explore":
        return import_module("sdprobe.notebook").explore
    if name in _FUNCTIONS:
        return getattr(import_module("sdprobe.api"), name)
    if name in _MODULES:
        return import_module(_MODULES[name])
    raise AttributeError(f"module 'sdprobe' has no attribute '{name}'")


def __dir__() -> list[str]:
    return [*globals(), *__all__]
