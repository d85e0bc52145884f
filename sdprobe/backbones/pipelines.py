"""A diffusers pipeline in memory → components that share its weights. The pipeline does not change."""

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, TypeVar

import torch
from diffusers import AutoencoderKL, DiffusionPipeline, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from sdprobe.backbones.loading import Components, vae_dtype
from sdprobe.backbones.noise import alphas_of, prediction_of
from sdprobe.backbones.precision import DTYPES
from sdprobe.backbones.prompts import PromptEncoder
from sdprobe.utilities.errors import InputError

Network = TypeVar("Network", bound=nn.Module)
NETWORKS = {"unet": UNet2DConditionModel, "vae": AutoencoderKL}
ENCODERS = {"text_encoder": CLIPTextModel, "text_encoder_2": CLIPTextModelWithProjection}
# parts that leave the U-Net's activations as they are; an image encoder serves an IP-Adapter, which is refused by itself
HARMLESS = {"tokenizer", "tokenizer_2", "scheduler", "safety_checker", "feature_extractor", "image_encoder"}
OWN = "Use a pipeline of Stable Diffusion 1, 2 or XL, or a fine-tuned one."


def components_of(pipe: Any) -> Components:
    """The parts of a pipeline that a frozen backbone needs, as networks of their own that share tensors and hooks with it.

    They compute what the parts of the saved and loaded pipeline compute: the text encoders in fp32, an fp16 VAE in fp32, and
    convolutions in the channels-last format. Casts last as long as one module runs, so no copy of the weights stays.

    Raises:
        InputError: no such pipeline, or one whose activations are not those of its U-Net alone.
    """
    parts = _parts(pipe)
    encoders = [name for name in ENCODERS if parts.get(name) is not None]
    for name in (*NETWORKS, *encoders):
        check_network(f"pipe.{name}", parts[name])
    devices = {str(next(parts[name].parameters()).device) for name in (*NETWORKS, *encoders)}
    if len(devices) > 1:
        raise InputError(f"Expected the parts of pipe on one device, but they are on {', '.join(sorted(devices))}. Move them.")
    zeros = len(encoders) > 1 and pipe.config.get("force_zeros_for_empty_prompt", True)
    scheduler = {**pipe.scheduler.config, "_class_name": type(pipe.scheduler).__name__}
    alphas_of(scheduler)
    return Components(
        unet=borrowed(parts["unet"]),
        vae=borrowed(parts["vae"], vae_dtype(parts["vae"].dtype)),
        prompts=PromptEncoder(
            [parts[name.replace("text_encoder", "tokenizer")] for name in encoders],
            [borrowed(parts[name], torch.float32) for name in encoders],
            bool(zeros),
        ),
        alphas_cumprod=pipe.scheduler.alphas_cumprod.detach().cpu().float(),
        euler="Euler" in type(pipe.scheduler).__name__,
        prediction=prediction_of(scheduler),
        borrowed=True,
    )


def _parts(pipe: Any) -> Mapping[str, Any]:
    """Name → part, without ``torch.compile``'s wrappers."""
    kind = type(pipe).__name__
    if not isinstance(pipe, DiffusionPipeline):
        raise InputError(
            f"Expected pipe to be a diffusers pipeline, but got an object of type {kind}. "
            "Load a folder or repository with FrozenSD.from_pretrained."
        )
    parts = {name: getattr(part, "_orig_mod", part) for name, part in pipe.components.items()}
    for name, needed in (NETWORKS | ENCODERS).items():
        optional = name == "text_encoder_2" and parts.get(name) is None
        if not optional and not isinstance(parts.get(name), needed):
            found = type(parts.get(name)).__name__
            raise InputError(f"Expected pipe.{name} to be of type {needed.__name__}, but got {found} in {kind}. {OWN}")
    for name in ("scheduler", *(name.replace("text_encoder", "tokenizer") for name in ENCODERS if parts.get(name) is not None)):
        if parts.get(name) is None:
            raise InputError(f"Expected {kind} to have pipe.{name}, but got None. Load the pipeline with it.")
    other = [name for name in parts if parts[name] is not None and name not in {*NETWORKS, *ENCODERS, *HARMLESS}]
    other += ["pag"] if hasattr(pipe, "set_pag_applied_layers") else []
    if other:
        raise InputError(
            f"Expected a pipeline whose U-Net works alone, but {kind} has {other[0]}, which changes what it computes. "
            "Use the pipeline without it."
        )
    check_adapters(parts["unet"], parts["vae"])
    return parts


def check_adapters(network: nn.Module, vae: nn.Module) -> None:
    """Raises InputError if an IP-Adapter conditions the network, or the VAE encodes tiles."""
    if any(getattr(network, name, None) is not None for name in ("encoder_hid_proj", "image_proj")):
        raise InputError(
            "Expected a pipeline that is conditioned on text alone, but it has an IP-Adapter. "
            "Call pipe.unload_ip_adapter() first."
        )
    if vae.use_tiling:
        raise InputError(
            "Expected pipe.vae to encode whole images, but it encodes tiles, whose latents differ at the seams. "
            "Call pipe.vae.disable_tiling() first."
        )


def check_network(name: str, network: nn.Module) -> None:
    """Raises InputError if a network is not on a device in floating point with the forward passes of its classes."""
    for path, module in network.named_modules():
        # a call of FluxPipeline leaves an empty registry of hooks
        hooked = hasattr(module, "_hf_hook") or bool(getattr(getattr(module, "_diffusers_hook", None), "hooks", ()))
        replaced = {"forward", "encode"} & vars(module).keys()  # a method of the caller's network, not of the borrowed one
        if hooked or (replaced and any(module.children())):
            raise InputError(
                f"Expected {name} to compute as loaded, but '{path}' is offloaded, cached, cast layer by layer or has another "
                "forward pass. Switch this off (pipe.remove_all_hooks() ends offloading), and move the pipeline to a device."
            )
        mode = getattr(module, "padding_mode", "zeros")
        if mode != "zeros":
            raise InputError(
                f"Expected {name} to pad with zeros as trained, but '{path}' has padding_mode {mode}. "
                f"Restore it, and pass padding='{mode}'."
            )
    quantised = getattr(network, "hf_quantizer", None) is not None
    for path, parameter in network.named_parameters():
        if parameter.device.type == "meta":
            raise InputError(f"Expected {name} to have weights, but '{path}' is on the meta device. Load them first.")
        if quantised or parameter.dtype not in DTYPES.values() or type(parameter.data) is not Tensor:
            raise InputError(
                f"Expected {name} in {', '.join(DTYPES)}, but '{path}' is quantised or of another type ({parameter.dtype}). "
                "Load the pipeline without quantisation."
            )


def borrowed(network: Network, dtype: torch.dtype | None = None) -> Network:
    """A network of the same modules, which share tensors and the functions of hooks with those of ``network``.

    Args:
        network: stays as it is, whatever is done to the other one, except in place to its tensors.
        dtype: that it computes in; None is that of its weights.
    """
    shell = shell_of(network)
    for module in shell.modules():
        if any(_cast(parameter, dtype) is not parameter for parameter in module._parameters.values()):
            _cast_while_running(module, dtype)
    return shell


def shell_of(module: Any, made: dict[int, Any] | None = None) -> Any:
    """Modules anew, tensors shared. ``made`` holds by identity what has been made, because modules can occur twice."""
    made = {} if made is None else made
    if id(module) in made:
        return made[id(module)]
    shell = made[id(module)] = module.__class__.__new__(module.__class__)
    for name, value in vars(module).items():
        shell.__dict__[name] = value.copy() if type(value) in (dict, OrderedDict, list, set) else value
    shell.__dict__.pop("_compiled_call_impl", None)  # a compiled pass cannot stop at a layer
    for name, parameter in module._parameters.items():
        if parameter is not None and id(parameter) not in made:
            made[id(parameter)] = nn.Parameter(parameter.detach(), requires_grad=False)
        shell._parameters[name] = made.get(id(parameter))
    for name, child in module._modules.items():
        shell._modules[name] = None if child is None else shell_of(child, made)
    return shell


def _cast(parameter: nn.Parameter | None, dtype: torch.dtype | None) -> Tensor | None:
    """The parameter in ``dtype`` and, for convolutions, in the channels-last format; itself if nothing changes."""
    if parameter is None:
        return None
    memory = torch.channels_last if parameter.dim() == 4 else torch.preserve_format
    return parameter.to(dtype or parameter.dtype, memory_format=memory)


def _cast_while_running(module: nn.Module, dtype: torch.dtype | None) -> None:
    """Give a module cast parameters during its forward pass, and back its own afterwards."""
    own: dict[str, nn.Parameter | None] = {}

    def before(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        own.update(module._parameters)
        for name, parameter in own.items():
            module._parameters[name] = _cast(parameter, dtype)  # type: ignore[assignment]
        return tuple(
            each.to(dtype) if dtype and torch.is_tensor(each) and each.is_floating_point() else each for each in inputs
        )

    def after(module: nn.Module, inputs: Any, output: Any) -> None:
        module._parameters.update(own)
        own.clear()  # a later move to another device makes other parameters

    module.register_forward_pre_hook(before)
    module.register_forward_hook(after, always_call=True)
