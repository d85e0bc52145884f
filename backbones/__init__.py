"""Frozen diffusion models: image → latent → noisy latent → activation grids of any layer."""

from transformers.utils import logging as transformers_logging

# before diffusers imports transformers' image processors, which otherwise warn about torchvision that nobody needs here
transformers_logging.set_verbosity_error()

from diffusers.utils import logging as diffusers_logging  # noqa: E402

diffusers_logging.set_verbosity_error()

from backbones.frozen_sd import FrozenSD  # noqa: E402

__all__ = ["FrozenSD"]
