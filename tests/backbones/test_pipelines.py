"""Pipelines in memory: what from_pipeline computes, that the pipeline stays as it was, and what is refused."""

import copy
from pathlib import Path
from typing import Any

import accelerate
import pytest
import torch
from diffusers import (
    AutoencoderTiny,
    ControlNetModel,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    StableDiffusionControlNetPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionPAGPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLPipeline,
)
from torch import Tensor, nn

from sdprobe.backbones import FrozenSD
from sdprobe.backbones.random_pipeline import random_pipeline
from sdprobe.backbones.weights import random_unet
from sdprobe.utilities.errors import InputError

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
NETWORKS = ("unet", "vae", "text_encoder", "text_encoder_2")
LAYERS = ["latent", "stages", "up_1_attn_0", "down_1_res_0"]


def networks(pipe: Any) -> dict[str, nn.Module]:
    return {name: getattr(pipe, name) for name in NETWORKS if getattr(pipe, name, None) is not None}


def spied(pipe: Any) -> dict[str, Any]:
    """All that a pipeline's networks are: modules, modes, hooks, attributes, and identity, place, format, values of tensors."""
    state: dict[str, Any] = {}
    for name, network in networks(pipe).items():
        state[name] = id(network), dict(network.config) if hasattr(network.config, "items") else network.config.to_dict()
        for path, module in network.named_modules(remove_duplicate=False):
            values = {
                key: repr(value) if type(value) in (bool, int, float, str, tuple, list) else id(value)
                for key, value in vars(module).items()
            }
            hooks = {key: list(value) for key, value in vars(module).items() if key.endswith("_hooks")}
            state[f"{name}.{path}"] = type(module), values, hooks, [id(child) for child in module.children()]
        for path, tensor in (*network.named_parameters(), *network.named_buffers()):
            place = (
                id(tensor),
                tensor.data_ptr(),
                tensor.dtype,
                tensor.stride(),
                tensor.device,
                tensor.requires_grad,
                tensor._version,
            )
            state[f"{name}.{path} tensor"] = place, tensor.detach().float().double().sum().item()
    return state


def grids_of(sd: FrozenSD, images: Tensor, side: int = 64) -> dict[str, Tensor]:
    return sd.activations(images[:2, :, :side, :side], LAYERS, prompt=["a cat", ""])


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return list(a) == list(b) and all(torch.equal(a[layer], b[layer]) for layer in a)


def loaded(pipe: Any, folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    """The pipeline saved and loaded again: rounding on a CPU depends on how weights are aligned in memory, as in the file."""
    pipe.save_pretrained(folder)
    return type(pipe).from_pretrained(folder, dtype=dtype)


def from_folder(folder: Path, precision: str = "fp32") -> FrozenSD:
    return FrozenSD.from_pretrained(str(folder), precision=precision, device="cpu")


def by_hand(pipe: Any, latent: Tensor, path: str, prompt: str) -> Tensor:
    """One module's output by the pipeline's own U-Net for a noisy latent at timestep 50."""
    states = pipe.encode_prompt(prompt, torch.device("cpu"), 1, False)[0]
    outputs: list[Tensor] = []
    handle = pipe.unet.get_submodule(path).register_forward_hook(lambda _module, _inputs, output: outputs.append(output))
    with torch.no_grad():
        pipe.unet(latent, 50, encoder_hidden_states=states.expand(len(latent), -1, -1))
    handle.remove()
    return outputs[0]


class Lora(nn.Module):
    """A low-rank adapter around a layer, with the names and the arithmetic of peft, which is not needed here."""

    def __init__(self, base: nn.Linear, rank: int = 2) -> None:
        super().__init__()
        self.base_layer = base
        self.lora_A = nn.ModuleDict({"default": nn.Linear(base.in_features, rank, bias=False)})
        self.lora_B = nn.ModuleDict({"default": nn.Linear(rank, base.out_features, bias=False)})
        self.scaling = {"default": 0.5}
        self.to(base.weight.dtype)

    def forward(self, x: Tensor) -> Tensor:
        result = self.base_layer(x)
        for name, scale in self.scaling.items():
            down = self.lora_A[name]
            result = result + self.lora_B[name](down(x.to(down.weight.dtype))) * scale
        return result


def attach(network: nn.Module, *names: str) -> None:
    for path, module in list(network.named_modules()):
        if isinstance(module, nn.Linear) and path.rpartition(".")[2] in names:
            setattr(network.get_submodule(path.rpartition(".")[0]), path.rpartition(".")[2], Lora(module))


# --- laws ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["fp32", pytest.param("bf16", marks=pytest.mark.slow), "fp16"])
def test_a_pipeline_gives_bit_for_bit_what_its_folder_gives(precision: str, images: Tensor, tmp_path: Path) -> None:
    pipe = random_pipeline("tiny", 3, DTYPES[precision])
    pipe.scheduler = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config, beta_end=0.02)
    sd, folder = FrozenSD.from_pipeline(loaded(pipe, tmp_path, DTYPES[precision])), from_folder(tmp_path, precision)
    for side in (128, 64):  # one token at `mid`, too
        assert equal(grids_of(sd, images, side), grids_of(folder, images, side))
    assert sd.dtype == DTYPES[precision]
    assert sd.describe() == folder.describe()
    assert sd.encoder.key(0) == folder.encoder.key(0)
    with sd.padded("circular"), folder.padded("circular"):
        assert equal(grids_of(sd, images), grids_of(folder, images))


@pytest.mark.parametrize("precision", [pytest.param("fp32", marks=pytest.mark.slow), "fp16"])
def test_sdxl_gives_bit_for_bit_what_its_folder_gives(
    precision: str, sdxl_pipeline: StableDiffusionXLPipeline, images: Tensor, tmp_path: Path
) -> None:
    pipe = loaded(copy.deepcopy(sdxl_pipeline).to(DTYPES[precision]), tmp_path, DTYPES[precision])
    sd, folder = FrozenSD.from_pipeline(pipe), from_folder(tmp_path, precision)
    assert equal(grids_of(sd, images), grids_of(folder, images))
    other = FrozenSD.from_pipeline(StableDiffusionXLImg2ImgPipeline(**pipe.components))
    assert equal(grids_of(other, images), grids_of(folder, images))


@pytest.mark.parametrize("kind", [StableDiffusionImg2ImgPipeline, StableDiffusionInpaintPipeline])
def test_other_classes_of_the_same_network_give_the_same(kind: Any, saved: Path, sd: FrozenSD, images: Tensor) -> None:
    other = kind.from_pretrained(saved)
    assert equal(grids_of(FrozenSD.from_pipeline(other), images), grids_of(sd, images))


@pytest.mark.parametrize("precision", [pytest.param("fp32", marks=pytest.mark.slow), "fp16"])
def test_the_pipeline_stays_as_it_was_and_no_weight_is_copied(precision: str, images: Tensor) -> None:
    pipe = random_pipeline("tiny", 0, DTYPES[precision])
    pipe.unet.train()
    pipe.vae.requires_grad_(False)
    attach(pipe.unet, "to_q")
    calls: list[Any] = []
    pipe.unet.mid_block.register_forward_hook(lambda *_: calls.append(1))
    before = spied(pipe)
    sd = FrozenSD.from_pipeline(pipe, padding="replicate")
    own = {tensor.data_ptr() for network in networks(pipe).values() for tensor in network.parameters()}
    read = [sd.unet.unet, sd.encoder.vae, *sd.prompts.encoders]
    for _ in range(2):
        grids_of(sd, images)
        sd.activations(images[:1], "mid", prompt="a dog", with_grad=True)
        assert {tensor.data_ptr() for network in read for tensor in network.parameters()} == own
        assert not any(parameter.requires_grad or module.training for module in read for parameter in module.parameters())
    with sd.padded("circular"):
        assert spied(pipe) == before
    assert spied(pipe) == before and calls, "hooks of the pipeline work on our passes, too"
    sd.unet.unet.mid_block.register_forward_hook(lambda *_: None)
    sd.unet.to(torch.float64)
    assert spied(pipe) == before


def test_a_failing_pass_leaves_shared_weights(images: Tensor) -> None:
    pipe = random_pipeline("tiny", 0, torch.float16)
    before, sd = spied(pipe), FrozenSD.from_pipeline(pipe)
    handle = sd.encoder.vae.quant_conv.register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        sd.activations(images[:1], "mid")
    handle.remove()
    own = {tensor.data_ptr() for tensor in pipe.vae.parameters()}
    assert {tensor.data_ptr() for tensor in sd.encoder.vae.parameters()} == own and spied(pipe) == before


def test_an_attached_lora_equals_the_pipelines_own_network(images: Tensor) -> None:
    pipe = random_pipeline("tiny")
    without = FrozenSD.from_pipeline(pipe)
    attach(pipe.unet, "to_q", "to_v")
    attach(pipe.text_encoder, "q_proj")
    sd = FrozenSD.from_pipeline(pipe)
    names = sd.unet.resolve(["mid_attn_0", "up_1_attn_0_[qv]*", "up_1_attn_0", "up_3_res_0"])
    assert isinstance(sd.unet.unet.get_submodule(sd.unet.table["up_1_attn_0_value"].path), Lora)
    found = sd.activations(images[:2], ["noisy_latent", *names], prompt="a cat")
    assert torch.equal(found["noisy_latent"], without.activations(images[:2], "noisy_latent")["noisy_latent"])
    for name, grid in without.activations(images[:2], ["up_1_attn_0", "up_1_attn_0_value"], prompt="a cat").items():
        assert not torch.allclose(found[name], grid)
    pipe.unet.to(memory_format=torch.channels_last)  # so that both run the same kernels
    noisy = found["noisy_latent"].to(memory_format=torch.channels_last)
    for name in names:
        output = by_hand(pipe, noisy, sd.unet.table[name].path, "a cat")
        output = output[0] if isinstance(output, tuple) else output
        grid = output.mT.unflatten(2, (4, 4)) if sd.unet.table[name].inside else output
        assert torch.equal(found[name], grid), name


def test_the_scale_of_a_lora_identifies_the_weights(images: Tensor) -> None:
    pipe = random_pipeline("tiny", 0, torch.float16)
    attach(pipe.unet, "to_q")
    attach(pipe.text_encoder, "q_proj")
    one = FrozenSD.from_pipeline(pipe)
    for module in (*pipe.unet.modules(), *pipe.text_encoder.modules()):
        if isinstance(module, Lora):
            module.scaling["default"] = 1.0
    other = FrozenSD.from_pipeline(pipe)
    assert one.unet_hash != other.unet_hash and one.prompts.weights != other.prompts.weights
    grids = [each.activations(images[:1], "up_1", prompt="a cat")["up_1"] for each in (one, other, one)]
    assert not torch.equal(grids[0], grids[1]) and torch.equal(grids[0], grids[2]), "the first keeps its scale"


def test_words_of_textual_inversion_are_those_of_the_pipeline(saved: Path, images: Tensor, tmp_path: Path) -> None:
    pipe = StableDiffusionPipeline.from_pretrained(saved)
    width = pipe.text_encoder.config.hidden_size
    pipe.load_textual_inversion({"<toy>": torch.randn(2, width)}, token="<toy>")
    sd = FrozenSD.from_pipeline(pipe)
    for prompt in ("a <toy> here", "a cat"):
        own = pipe.encode_prompt(prompt, torch.device("cpu"), 1, False)[0]
        assert torch.equal(sd.prompts(prompt, sd.device, sd.dtype).states, own)
    pipe.save_pretrained(tmp_path)
    folder = from_folder(tmp_path)
    ours, theirs = (each.activations(images[:1], "mid", prompt="a <toy> here") for each in (sd, folder))
    assert equal(ours, theirs)
    assert not equal(ours, sd.activations(images[:1], "mid", prompt="a  here"))


def test_hooks_of_the_pipeline_change_what_is_read(saved: Path, sd: FrozenSD, images: Tensor) -> None:
    pipe = StableDiffusionPipeline.from_pretrained(saved)
    handle = pipe.unet.conv_in.register_forward_hook(lambda _module, _inputs, output: output * 0)
    steered = FrozenSD.from_pipeline(pipe)
    handle.remove()
    assert not steered.activations(images[:1], "conv_in")["conv_in"].any()
    assert equal(grids_of(FrozenSD.from_pipeline(pipe), images), grids_of(sd, images))


@pytest.mark.slow
def test_compiled_networks_run_uncompiled(saved: Path, sd: FrozenSD, images: Tensor) -> None:
    pipe = StableDiffusionPipeline.from_pretrained(saved)
    pipe.unet = torch.compile(pipe.unet)
    pipe.vae.compile()
    assert equal(grids_of(FrozenSD.from_pipeline(pipe), images), grids_of(sd, images))
    assert pipe.vae._compiled_call_impl is not None


# --- failures --------------------------------------------------------------------------------------------------------


def controlled(pipe: Any) -> Any:
    parts = {name: part for name, part in pipe.components.items() if name != "image_encoder"}
    controlnet = ControlNetModel.from_unet(pipe.unet, load_weights_from_unet=False)
    return StableDiffusionControlNetPipeline(**parts, controlnet=controlnet, requires_safety_checker=False)


def guided(pipe: Any) -> Any:
    return StableDiffusionPAGPipeline(**pipe.components, requires_safety_checker=False)


def inpainting(pipe: Any) -> None:
    pipe.unet = random_unet(dict(pipe.unet.config) | {"in_channels": 9}, 0, torch.float32)


def offloaded(pipe: Any) -> None:
    accelerate.cpu_offload(pipe.unet, torch.device("cpu"))


def offloaded_by_group(pipe: Any) -> None:
    pipe.vae.enable_layerwise_casting(torch.float16, torch.float32)


def quantised(pipe: Any) -> None:
    pipe.unet.mid_block.to(torch.float8_e4m3fn)


def with_ip_adapter(pipe: Any) -> None:
    pipe.unet.encoder_hid_proj = nn.Linear(2, 2)


def replaced_forward(pipe: Any) -> None:
    pipe.unet.mid_block.forward = pipe.unet.mid_block.forward


REFUSED: dict[str, tuple[Any, str]] = {
    "ControlNet": (controlled, r"StableDiffusionControlNetPipeline has controlnet, which changes what it computes"),
    "PAG": (guided, r"StableDiffusionPAGPipeline has pag"),
    "IP-Adapter": (with_ip_adapter, r"IP-Adapter. Call pipe.unload_ip_adapter\(\) first"),
    "tiled VAE": (lambda pipe: pipe.vae.enable_tiling(), r"pipe.vae to encode whole images.*disable_tiling"),
    "nine channels": (inpainting, r"text-to-image U-Net with 4 input channels, but StableDiffusionPipeline has 9"),
    "offloaded": (offloaded, r"pipe.unet to compute as loaded.*offloaded"),
    "cast by layer": (offloaded_by_group, r"pipe.vae to compute as loaded.*cast layer by layer"),
    "quantised": (quantised, r"pipe.unet in fp32, bf16, fp16, but 'mid_block.*' is quantised"),
    "forward pass": (replaced_forward, r"'mid_block' .* has another forward pass"),
    "meta": (lambda pipe: pipe.vae.to("meta") and None, r"pipe.vae to have weights"),
    "padding": (lambda pipe: setattr(pipe.unet.conv_in, "padding_mode", "circular"), r"pass padding='circular'"),
    "no tokenizer": (lambda pipe: setattr(pipe, "tokenizer", None), r"to have pipe.tokenizer, but got None"),
    "no scheduler": (lambda pipe: setattr(pipe, "scheduler", None), r"to have pipe.scheduler, but got None"),
    "compiled encode": (lambda pipe: setattr(pipe.vae, "encode", pipe.vae.encode), r"pipe.vae to compute as loaded"),
    "no U-Net": (lambda pipe: setattr(pipe, "unet", None), r"pipe.unet to be of type UNet2DConditionModel, but got NoneType"),
    "tiny VAE": (lambda pipe: setattr(pipe, "vae", AutoencoderTiny()), r"pipe.vae to be of type AutoencoderKL, but got"),
    "flow": (lambda pipe: setattr(pipe, "scheduler", FlowMatchEulerDiscreteScheduler()), r"Rectified flow and EDM"),
    "folder": (lambda pipe: "folder", r"pipe to be a diffusers pipeline.*FrozenSD.from_pretrained"),
    "network": (lambda pipe: pipe.unet, r"pipe to be a diffusers pipeline, but got an object of type UNet2DConditionModel"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_honoured_is_one_sentence(case: str) -> None:
    change, message = REFUSED[case]
    pipe = random_pipeline("tiny")
    pipe = change(pipe) or pipe
    with pytest.raises(InputError, match=message) as refusal:
        FrozenSD.from_pipeline(pipe)
    assert "\n" not in str(refusal.value)
