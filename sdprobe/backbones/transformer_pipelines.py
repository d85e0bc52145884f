"""A pipeline of a diffusion transformer in memory → components that share its weights. The pipeline does not change."""

import copy
import inspect
from functools import cached_property
from typing import Any

import torch
from diffusers import AutoencoderDC, AutoencoderKL, DiffusionPipeline
from diffusers.utils import is_bs4_available, is_ftfy_available

from sdprobe.backbones.families import FAMILIES, Conditions, Family, family_of
from sdprobe.backbones.loading import Components, vae_dtype
from sdprobe.backbones.noise import alphas_of
from sdprobe.backbones.pipelines import borrowed, check_adapters, check_network, shell_of
from sdprobe.backbones.prompts import Prompts
from sdprobe.backbones.transformer import FrozenTransformer
from sdprobe.backbones.weights import weight_hash
from sdprobe.utilities.errors import InputError

# arguments of a pipeline's call that its encode_prompt takes, too, and whose defaults decide what the text states are
OPTIONS = ("max_sequence_length", "clean_caption", "complex_human_instruction", "system_prompt")


def is_transformer_pipeline(pipe: Any) -> bool:
    """Whether an object is a diffusers pipeline with a transformer in place of a U-Net."""
    return isinstance(pipe, DiffusionPipeline) and "transformer" in pipe.components


def options_of(pipeline: type) -> dict[str, Any]:
    """The defaults of a pipeline's call that decide what its text states are, as far as the installed packages allow them."""
    takes, call = (inspect.signature(getattr(pipeline, name)).parameters for name in ("encode_prompt", "__call__"))
    found = {name: call[name].default for name in OPTIONS if name in takes and name in call}
    if found.get("clean_caption"):  # without these packages the pipeline warns, and does not clean
        found["clean_caption"] = bool(is_bs4_available() and is_ftfy_available())
    return found


class PipelineText(Prompts):
    """Conditions of prompts, as a pipeline's own ``encode_prompt`` computes them with the defaults of its call.

    A class-conditional pipeline (DiT) has no text. There a prompt is the number of a class or one of the pipeline's ``labels``,
    and the empty prompt is the null class.

    Args:
        pipe: a pipeline of ``family``. Its encoders are shared, so that moving those of this object leaves the pipeline's.
        family: says what ``encode_prompt`` returns.
    """

    def __init__(self, pipe: Any, family: Family) -> None:
        super().__init__()
        self.family = family
        self.pipe = copy.copy(pipe)
        self.encoders: list[Any] = []
        for name in (*family.encoders, *family.optional):
            if (encoder := getattr(pipe, name)) is not None:
                self.encoders.append(shell_of(getattr(encoder, "_orig_mod", encoder)))
                setattr(self.pipe, name, self.encoders[-1])

    @cached_property
    def weights(self) -> str:  # type: ignore[override]
        """Digests of the encoders, computed on first use: T5-XXL has 10 GB."""
        absent = ["absent" for name in self.family.optional if getattr(self.pipe, name) is None]
        return "-".join([*map(weight_hash, self.encoders), *absent])

    @torch.no_grad()
    def encode(self, prompt: str) -> Conditions:
        """Conditions of one prompt, on the device of the encoders."""
        if not self.family.encoders:
            return self._label(prompt)
        takes, arguments = inspect.signature(self.pipe.encode_prompt).parameters, options_of(type(self.pipe))
        arguments |= {name: None for name in ("prompt_2", "prompt_3") if name in takes}  # the same text for every encoder
        if "do_classifier_free_guidance" in takes:
            arguments["do_classifier_free_guidance"] = False
        found = self.pipe.encode_prompt(prompt=prompt, device=self.encoders[0].device, **arguments)
        return Conditions(**{name: part for name, part in zip(self.family.returned, found, strict=False) if name})

    def _label(self, prompt: str) -> Conditions:
        classes = self.pipe.transformer.config.num_embeds_ada_norm
        number = classes if not prompt else int(prompt) if prompt.isdecimal() else self.pipe.labels.get(prompt, -1)
        if not 0 <= number < classes + (not prompt):
            raise InputError(
                f"Expected prompt to be a class of the network, a number below {classes} or a label of the pipeline, but got "
                f"'{prompt}'. Use '' for the null class."
            )
        return Conditions(labels=torch.tensor([number]))


def transformer_components_of(pipe: Any) -> Components:
    """The parts of a pipeline that a frozen diffusion transformer needs, as networks of their own that share its tensors.

    The transformer and the text encoders compute what they compute in the pipeline, in its dtype. A VAE in fp16 runs in fp32.

    Raises:
        InputError: another pipeline, one without a part that it needs, or one whose network takes more than text.
    """
    kind = type(pipe).__name__
    family = next((family for family in FAMILIES if kind in family.pipelines), None)
    if family is None:
        known = ", ".join(name for family in FAMILIES for name in family.pipelines)
        raise InputError(f"Expected a pipeline of U-Nets or one of {known}, but got {kind}. Use one of these classes.")
    parts = {name: getattr(part, "_orig_mod", part) for name, part in pipe.components.items()}
    _check_parts(kind, family, parts)
    frozen = FrozenTransformer(shell_of(parts["transformer"]))
    check_channels(kind, frozen, parts["vae"])
    scheduler = {**pipe.scheduler.config, "_class_name": type(pipe.scheduler).__name__}
    return Components(
        unet=frozen.network,
        vae=borrowed(parts["vae"], vae_dtype(parts["vae"].dtype)),
        prompts=PipelineText(pipe, family),
        alphas_cumprod=torch.ones(0) if family.flow else alphas_of(scheduler),
        euler=False,
        borrowed=True,
        flow=family.flow,
    )


def check_channels(where: str, network: FrozenTransformer, vae: Any) -> None:
    """Raises InputError unless a VAE makes latents of as many channels as a transformer takes."""
    channels = vae.config.latent_channels
    if network.latent_channels != channels:
        raise InputError(
            f"Expected the VAE and the transformer of {where} to be of one checkpoint, but latents have {channels} channels "
            f"and the transformer takes {network.latent_channels}. Use one checkpoint."
        )


def _check_parts(kind: str, family: Family, parts: dict[str, Any]) -> None:
    for name in ("transformer", "vae", "scheduler", *family.encoders):
        if parts.get(name) is None:
            raise InputError(f"Expected {kind} to have pipe.{name}, but got None. Load the pipeline with it.")
    if family_of(parts["transformer"]) is not family:
        found = type(parts["transformer"]).__name__
        raise InputError(f"Expected pipe.transformer to be of type {family.network}, but got {found} in {kind}. Exchange it.")
    needed = AutoencoderDC if family.name == "sana" else AutoencoderKL
    if not isinstance(parts["vae"], needed):
        found = type(parts["vae"]).__name__
        raise InputError(f"Expected pipe.vae to be of type {needed.__name__}, but got {found} in {kind}. Exchange it.")
    networks = [name for name in ("transformer", "vae", *family.encoders, *family.optional) if parts[name] is not None]
    for name in networks:
        check_network(f"pipe.{name}", parts[name])
    devices = {str(next(parts[name].parameters()).device) for name in networks}
    if len(devices) > 1:
        raise InputError(f"Expected the parts of pipe on one device, but they are on {', '.join(sorted(devices))}. Move them.")
    check_adapters(parts["transformer"], parts["vae"])
