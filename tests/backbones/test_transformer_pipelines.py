"""Pipelines of diffusion transformers: the calls that they make, what from_pipeline computes, and what it refuses."""

import inspect
import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxImg2ImgPipeline, PixArtAlphaPipeline
from torch import Tensor

import sdprobe
from sdprobe import FrozenSD
from sdprobe.backbones import transformer_pipelines
from sdprobe.backbones.families import packed
from sdprobe.backbones.noise import FlowSchedule
from sdprobe.backbones.transformer_pipelines import options_of
from sdprobe.utilities.errors import InputError
from tests.backbones.tiny_transformers import network, pipeline, vae

PIPELINES = ("pixart", "pixart_sigma", "sd3", "flux", "dit", "sana", "lumina2")
SIDES = {"sana": 256}  # pixels; Sana's autoencoder has 32 per cell
PROMPT = "a cat"
shared = cache(pipeline)  # of tests that leave it as it is


class Called(Exception):
    """The network was called; the pipeline need not go on."""


def first_call(network: Any, run: Any) -> dict[str, Any]:
    """The arguments of the first call of a network, by their names."""
    seen: list[dict[str, Any]] = []

    def spy(module: Any, inputs: Any, named: Any) -> None:
        seen.append(dict(inspect.signature(type(module).forward).bind(module, *inputs, **named).arguments))
        raise Called

    handle = network.register_forward_pre_hook(spy, with_kwargs=True)
    with pytest.raises(Called):
        run()
    handle.remove()
    [seen[0].pop(name) for name in ("self",)]
    return seen[0]


def of_pipeline(name: str, pipe: Any, sigma: float, noisy: Tensor, prompt: str = PROMPT) -> dict[str, Any]:
    """What a pipeline passes at a noise level without guidance."""
    family, side = name.split("_")[0], noisy.shape[-1] * (32 if name == "sana" else 8)
    options: dict[str, Any] = {"guidance_scale": 1.0, "num_inference_steps": 1}
    monkey = pytest.MonkeyPatch()  # the call of DiT's pipeline takes no timesteps
    if family != "dit":
        options |= {"prompt": prompt, "num_images_per_prompt": 2, "height": side, "width": side}
        options |= {"latents": packed(noisy) if family == "flux" else noisy}
    if family == "dit":
        options |= {"class_labels": [int(prompt or 1000)] * 2}
        monkey.setattr(pipe.scheduler, "set_timesteps", lambda *_: None)
        monkey.setattr(pipe.scheduler, "timesteps", torch.tensor([round(1000 * sigma)]))
    elif family == "pixart":
        options |= {"timesteps": [round(1000 * sigma)], "use_resolution_binning": False}
    else:
        options |= {"sigmas": [sigma]}
    if family == "sana":
        options |= {"use_resolution_binning": False}
    if family == "flux":
        options.pop("guidance_scale")  # an input of the network here, not classifier-free guidance
    try:
        return first_call(pipe.transformer, lambda: pipe(**options))
    finally:
        monkey.undo()


def same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, Mapping):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    return type(a) is type(b) and a == b


def noisy_of(sd: FrozenSD, name: str) -> Tensor:
    side = SIDES.get(name, 128) // sd.encoder.stride
    channels = sd.encoder.vae.config.latent_channels
    return torch.randn(2, channels, side, side, generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize(("sigma", "prompt"), [(0.261, "a cat"), pytest.param(0.05, "", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", PIPELINES)
def test_the_network_is_called_as_its_own_pipeline_calls_it(name: str, sigma: float, prompt: str) -> None:
    pipe = shared(name)
    sd = FrozenSD.from_pipeline(pipe)
    noisy = noisy_of(sd, name)
    prompt = "3" if name == "dit" and prompt else prompt
    ours = first_call(
        sd.unet.network,
        lambda: sd.grids(noisy, ["a", "b"], ["block_3"], round(1000 * sigma), 0, prompt),
    )
    theirs = of_pipeline(name, pipe, sigma, noisy, prompt)
    assert ours.keys() == theirs.keys()
    for argument in ours.keys() - {"hidden_states"}:
        assert same(ours[argument], theirs[argument]), (argument, ours[argument], theirs[argument])
    assert ours["hidden_states"].shape == theirs["hidden_states"].shape


def test_alpha_for_1024_pixels_is_told_the_size() -> None:
    pipe = pipeline("pixart", transformer=network("pixart", sample_size=128))
    sd = FrozenSD.from_pipeline(pipe)
    noisy = noisy_of(sd, "pixart")
    ours = first_call(sd.unet.network, lambda: sd.grids(noisy, ["a", "b"], ["block_3"], 261, 0, PROMPT))
    theirs = of_pipeline("pixart", pipe, 0.261, noisy)
    assert same(ours["added_cond_kwargs"], theirs["added_cond_kwargs"])
    assert ours["added_cond_kwargs"]["resolution"].tolist() == [[128, 128]] * 2


def test_the_noise_level_is_what_the_network_sees_after_the_shift_of_the_scheduler() -> None:
    pipe = pipeline("sd3", scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0))
    sd = FrozenSD.from_pipeline(pipe)
    noisy = noisy_of(sd, "sd3")
    theirs = of_pipeline("sd3", pipe, 0.1, noisy)
    shifted = 3 * 0.1 / (1 + 2 * 0.1)
    ours = first_call(sd.unet.network, lambda: sd.grids(noisy, ["a", "b"], ["block_3"], round(1000 * shifted), 0, PROMPT))
    torch.testing.assert_close(ours["timestep"], theirs["timestep"])
    assert ours["timestep"][0] == 250


def test_without_guidance_embedding_and_without_t5() -> None:
    pipe = pipeline("flux", transformer=network("flux", guidance_embeds=False))
    sd = FrozenSD.from_pipeline(pipe)
    call = first_call(sd.unet.network, lambda: sd.grids(noisy_of(sd, "flux"), ["a", "b"], ["block_0"], 5, 0, ""))
    assert call["guidance"] is None
    pipe = pipeline("sd3", text_encoder_3=None, tokenizer_3=None)
    sd = FrozenSD.from_pipeline(pipe)
    states = sd.prompts("a cat", sd.device, sd.dtype).states
    assert states.shape[1] > 256 and not states[:, -256:].any() and states[:, :-256].any()
    assert sd.describe()["text_hash"].endswith("-absent")


@pytest.mark.parametrize("installed", [True, False])
def test_captions_are_cleaned_where_the_packages_for_it_are_installed(installed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("is_bs4_available", "is_ftfy_available"):
        monkeypatch.setattr(transformer_pipelines, name, lambda: installed)
    options = options_of(PixArtAlphaPipeline)  # part of the key of stored text states
    assert options["clean_caption"] == installed and options["max_sequence_length"] == 120


@pytest.fixture(scope="module", params=PIPELINES)
def named(request: pytest.FixtureRequest) -> tuple[str, Any, FrozenSD, Tensor]:
    """A pipeline, the backbone of it, and images of its size."""
    pipe = shared(request.param)
    side = SIDES.get(request.param, 128)
    images = torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(3))
    return request.param, pipe, FrozenSD.from_pipeline(pipe), images


def test_images_become_grids_of_all_layers(named: tuple[str, Any, FrozenSD, Tensor]) -> None:
    _, _, sd, images = named
    names = ["latent", "noisy_latent", "all", "inside"]
    grids = sd.activations(images, names, timestep=260, prompt=["", "3"])
    assert {name: tuple(grid.shape[1:]) for name, grid in grids.items()} == sd.shapes(images.shape[-1], names)
    assert list(grids) == ["latent", "noisy_latent", *sd.unet.table]
    json.dumps(sd.describe())
    assert sd.describe()["position"] == "stored"
    assert sd.passes["unet"] > 0


def test_an_image_does_not_depend_on_its_batch_nor_on_early_exit(named: tuple[str, Any, FrozenSD, Tensor]) -> None:
    _, _, sd, images = named
    together = sd.activations(images, ["block_1", "block_3"], timestep=260)
    for number in (0, 1):
        alone = sd.activations(images[number : number + 1], "block_1", timestep=260)["block_1"]
        torch.testing.assert_close(together["block_1"][number : number + 1], alone, rtol=1e-4, atol=1e-5)


def test_the_latent_is_that_of_the_pipelines_autoencoder(named: tuple[str, Any, FrozenSD, Tensor]) -> None:
    _, pipe, sd, images = named
    with torch.no_grad():
        encoded = pipe.vae.encode(images * 2 - 1)
    z = encoded.latent if hasattr(encoded, "latent") else encoded.latent_dist.mode()
    config = pipe.vae.config
    expected = (z - (config.get("shift_factor") or 0)) * config.scaling_factor
    torch.testing.assert_close(sd.activations(images, "latent")["latent"], expected)


def test_noise_is_that_of_the_family(named: tuple[str, Any, FrozenSD, Tensor]) -> None:
    name, _, sd, images = named
    grids = sd.activations(images, ["latent", "noisy_latent"], timestep=260, ids=["a", "b"])
    pure = sd.noise(torch.zeros_like(grids["latent"]), 260, ["a", "b"])
    if sd.unet.family.flow:
        assert name not in ("dit", "pixart", "pixart_sigma")
        expected = 0.74 * grids["latent"] + pure
        assert sd.noise.noise_levels[260] == 0.26 and 0.2 < pure.std() < 0.32
    else:
        # linear betas of DDPM, so that t = 261 is the flow time .504
        assert abs(sd.noise.noise_levels[261].item() - 0.504) < 0.001
        expected = sd.noise.alphas_cumprod[260] ** 0.5 * grids["latent"] + pure
    torch.testing.assert_close(grids["noisy_latent"], expected)


def test_the_pipeline_does_not_change_and_shares_its_weights(named: tuple[str, Any, FrozenSD, Tensor]) -> None:
    _, pipe, sd, images = named
    before = dict(pipe.config)
    sd.activations(images, "block_3", prompt="", timestep=260)
    assert dict(pipe.config) == before
    for part, borrowed in (("transformer", sd.unet.network), ("vae", sd.encoder.vae)):
        own = dict(getattr(pipe, part).named_parameters())
        assert all(own[path].data_ptr() == tensor.data_ptr() for path, tensor in borrowed.named_parameters())
        assert all(tensor.requires_grad for tensor in own.values())
        assert not any(module._forward_hooks or module._forward_pre_hooks for module in getattr(pipe, part).modules())


@pytest.mark.slow
@pytest.mark.parametrize("name", PIPELINES)
def test_a_saved_pipeline_gives_the_same_grids(name: str, tmp_path: Path) -> None:
    pipe = shared(name)
    pipe.save_pretrained(tmp_path)
    side = SIDES.get(name, 128)
    images = torch.rand(1, 3, side, side)
    loaded = type(pipe).from_pretrained(tmp_path, local_files_only=True, use_safetensors=True)
    read = [FrozenSD.from_pipeline(each).activations(images, "block_3", timestep=260, ids=["a"]) for each in (pipe, loaded)]
    first, second = read
    torch.testing.assert_close(first["block_3"], second["block_3"])


def test_labels_are_prompts_of_class_conditional_networks() -> None:
    sd = FrozenSD.from_pipeline(shared("dit"))
    labels = sd.prompts(["", "3", "tabby", "dog"], sd.device, sd.dtype).labels
    assert labels.tolist() == [1000, 3, 3, 7]
    for wrong in ("1000", "a cat"):
        with pytest.raises(InputError, match=f"Expected prompt to be a class .*below 1000.* but got '{wrong}'"):
            sd.prompts(wrong, sd.device, sd.dtype)


@pytest.mark.slow
def test_grids_go_into_position_statistics_and_match() -> None:
    sd = FrozenSD.from_pipeline(shared("sd3"))
    images = torch.rand(70, 3, 128, 128, generator=torch.Generator().manual_seed(1))
    grids = sd.activations(images, "block_3", timestep=260)
    with sd.unet.positioned("zero"):
        zero = sd.activations(images, "block_3", timestep=260)
    read, gone = sdprobe.position(grids), sdprobe.position(zero)
    assert gone.ci_high < 0.5 < 0.8 < read.value  # what is left is from the VAE, whose convolutions pad
    assert sdprobe.statistics(grids).value > 4 * sdprobe.statistics(zero).value
    points = torch.tensor([[[8.0, 8.0], [120.0, 72.0]]]).expand(4, -1, -1)
    same_place = sdprobe.match({"block_3": grids["block_3"][:4]}, {"block_3": grids["block_3"][4:8]}, points, points, size=128)
    assert same_place.value > 0.1  # the embedding alone matches tokens of the same place; a random point, 3 %


def test_a_pipeline_that_has_made_an_image_is_read() -> None:
    pipe = pipeline("flux")
    pipe("a cat", height=32, width=32, num_inference_steps=1, output_type="latent")
    FrozenSD.from_pipeline(pipe)


def test_schedule_of_rectified_flow() -> None:
    schedule = FlowSchedule()
    z = torch.randn(2, 16, 4, 4)
    noise = schedule(torch.zeros_like(z), 500, ["a", "b"]) * 2
    for step in (0, 1, 260, 999):
        sigma = step / 1000
        torch.testing.assert_close(schedule(z, step, ["a", "b"]), (1 - sigma) * z + sigma * noise)
        assert schedule.nearest(sigma) == (step,)
    for wrong in (0.26, 1000):
        with pytest.raises(InputError, match=rf"Expected timestep .* but got {wrong}\. It is 1000 times the noise level"):
            schedule.check(wrong)
    ratio = schedule.alphas_cumprod / (1 - schedule.alphas_cumprod)
    torch.testing.assert_close(ratio[260].sqrt(), torch.tensor(0.74 / 0.26))


REFUSED = {
    "class": (
        "flux",
        lambda pipe: FluxImg2ImgPipeline(**pipe.components),
        r"one of PixArtAlphaPipeline.* but got FluxImg2ImgPipeline",
    ),
    "no T5": ("flux", lambda pipe: setattr(pipe, "text_encoder_2", None), r"to have pipe.text_encoder_2, but got None"),
    "no network": ("pixart", lambda pipe: setattr(pipe, "transformer", None), r"to have pipe.transformer, but got None"),
    "betas": ("dit", lambda pipe: setattr(pipe, "scheduler", FlowMatchEulerDiscreteScheduler()), r"Rectified flow"),
    "VAE": ("flux", lambda pipe: setattr(pipe, "vae", vae(4, 1.0)), r"latents have 4 channels and the transf.* 16"),
    "kind of VAE": (
        "sana",
        lambda pipe: setattr(pipe, "vae", vae(32, 1.0)),
        r"pipe.vae to be of type AutoencoderDC, but got Autoenc",
    ),
    "network": (
        "sd3",
        lambda pipe: setattr(pipe, "transformer", network("flux")),
        r"SD3Transformer2DModel, but got FluxTransf",
    ),
    "tiles": ("flux", lambda pipe: pipe.vae.enable_tiling(), r"Call pipe.vae.disable_tiling"),
    "adapter": ("sd3", lambda pipe: setattr(pipe.transformer, "image_proj", torch.nn.Linear(1, 1)), r"it has an IP-Adapter"),
    "meta": ("sana", lambda pipe: pipe.text_encoder.to("meta") and None, r"pipe.text_encoder to have weights"),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_pipelines_that_cannot_be_read_are_refused(reason: str) -> None:
    name, change, message = REFUSED[reason]
    pipe = pipeline(name)
    with pytest.raises(InputError, match=message):
        FrozenSD.from_pipeline(change(pipe) or pipe)


def test_options_without_meaning_are_refused() -> None:
    sd = FrozenSD.from_pipeline(shared("sd3"))
    with pytest.raises(InputError, match="Expected padding=zeros for SD3Transformer2DModel"), sd.padded("circular"):
        pass
    assert sd.padding == "zeros"
    with pytest.raises(InputError, match=r"multiples of 16"):
        sd.activations(torch.rand(1, 3, 120, 128), "block_0")
    with pytest.raises(InputError, match=r"Expected size to be a positive multiple of 16, but got 100"):
        sd.shapes(100, "block_0")
    with pytest.raises(InputError, match=r"Expected layers to be a layer of SD3Transformer2DModel, .* got 'up_1'"):
        sd.activations(torch.rand(1, 3, 128, 128), "up_1")
    sana = shared("sana")
    with pytest.raises(InputError, match=r"Expected posterior=mode"):
        FrozenSD.from_pipeline(sana, posterior="sample")
    with pytest.raises(InputError, match=r"with a posterior"):
        FrozenSD.from_pipeline(sana).encoder.floor_cells(torch.rand(1, 3, 64, 64))


def test_the_borders_of_sana_can_be_padded_otherwise() -> None:
    sd = FrozenSD.from_pipeline(shared("sana"))
    images = torch.rand(1, 3, 256, 256)
    before = sd.activations(images, "block_3", ids=["a"])["block_3"]
    with sd.padded("circular"):
        inside = sd.activations(images, "block_3", ids=["a"])["block_3"]
    assert not torch.equal(inside, before)
    assert torch.equal(sd.activations(images, "block_3", ids=["a"])["block_3"], before)
    with sd.padded("reflect"), pytest.raises(InputError, match="image sides of at least 64 pixels for padding=reflect"):
        sd.activations(images[..., :32, :32], "block_3")


def test_half_precision_is_that_of_the_pipeline() -> None:
    dtype = torch.bfloat16
    pipe = pipeline("sd3").to(dtype)
    sd = FrozenSD.from_pipeline(pipe)
    noisy = noisy_of(sd, "sd3")
    ours = first_call(sd.unet.network, lambda: sd.grids(noisy, ["a", "b"], ["block_3"], 261, 0, PROMPT))
    theirs = of_pipeline("sd3", pipe, 0.261, noisy.to(dtype))
    assert all(same(ours[name], theirs[name]) for name in ours.keys() - {"hidden_states"})
