"""Checkpoint folders: what loads, what is refused, and whether the message says what to do."""

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import huggingface_hub
import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel

from sdprobe.backbones import FrozenSD
from sdprobe.backbones.architectures import meta_unet, preset_config, presets
from sdprobe.backbones.cards import listed
from sdprobe.backbones.random_pipeline import main, random_pipeline
from sdprobe.backbones.unet import FrozenUNet
from sdprobe.backbones.weights import random_unet, weight_hash
from sdprobe.utilities.errors import InputError

LAYERS = ["conv_in", "mid", "up_1"]
UNET_WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


def load(path: Path | str, **options: object) -> FrozenSD:
    return FrozenSD.from_pretrained(str(path), **{"precision": "fp32", "device": "cpu", **options})  # type: ignore[arg-type]


def by_hand(pipeline: StableDiffusionPipeline, sd: FrozenSD, image: Tensor, path: str, **added: Tensor) -> Tensor:
    """One layer's activation for the prompt "a cat" at timestep 50, from a pipeline's parts alone."""
    encoded = pipeline.encode_prompt(
        "a cat", device=torch.device("cpu"), num_images_per_prompt=1, do_classifier_free_guidance=False
    )
    outputs: list[Tensor] = []
    handle = pipeline.unet.get_submodule(path).register_forward_hook(
        lambda _module, _inputs, output: outputs.append(output[0] if isinstance(output, tuple) else output)
    )
    with torch.no_grad():
        latent = pipeline.vae.encode(image * 2 - 1).latent_dist.mode() * pipeline.vae.config.scaling_factor
        noisy = sd.noise(latent, 50, ["x"], seed=4)
        if "time_ids" in added:
            added["text_embeds"] = encoded[2]
        pipeline.unet(noisy, 50, encoder_hidden_states=encoded[0], added_cond_kwargs=added or None)
    handle.remove()
    return outputs[0]


# --- what loads ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("layer", "path"), [("mid", "mid_block"), ("up_1", "up_blocks.1.upsamplers.0")])
def test_a_saved_pipeline_gives_the_activations_of_the_one_in_memory(
    layer: str, path: str, pipeline: StableDiffusionPipeline, sd: FrozenSD, images: Tensor
) -> None:
    grid = sd.activations(images[:1], layer, timestep=50, seed=4, prompt="a cat", ids=["x"])[layer]
    torch.testing.assert_close(grid, by_hand(pipeline, sd, images[:1], path), rtol=1e-4, atol=1e-5)


def test_an_sdxl_folder_gives_the_activations_of_its_pipeline(
    sdxl_pipeline: StableDiffusionXLPipeline, sdxl_folder: Path, images: Tensor
) -> None:
    sd = load(sdxl_folder)
    image = images[:1, :, :, :64]
    time_ids = torch.tensor([[128.0, 64, 0, 0, 128, 64]])
    grid = sd.activations(image, "up_1", timestep=50, seed=4, prompt="a cat", ids=["x"])["up_1"]
    expected = by_hand(sdxl_pipeline, sd, image, "up_blocks.1.upsamplers.0", time_ids=time_ids)
    torch.testing.assert_close(grid, expected, rtol=1e-4, atol=1e-5)
    assert len(sd.unet.layers) == 34


def test_tiny_is_the_random_pipeline(sd: FrozenSD, images: Tensor) -> None:
    tiny = load("tiny")
    assert tiny.unet_hash == sd.unet_hash and tiny.encoder.weights == sd.encoder.weights
    mid = [backbone.activations(images[:2], "mid")["mid"] for backbone in (tiny, sd)]
    torch.testing.assert_close(*mid)


def test_half_precision_variants_are_read_where_they_exist(folder: Path, sd: FrozenSD) -> None:
    random_pipeline("tiny", seed=5).save_pretrained(folder, variant="fp16")
    assert load(folder).unet_hash == sd.unet_hash, "without variant= the usual files count"
    assert load(folder, variant="fp16").unet_hash == weight_hash(random_pipeline("tiny", seed=5).unet)
    for part in ("vae", "text_encoder"):  # a part without that variant falls back to its usual file
        for file in (folder / part).glob("*.fp16.safetensors"):
            file.unlink()
    assert load(folder, variant="fp16").encoder.weights == sd.encoder.weights


def test_a_folder_with_nothing_but_a_variant_says_so(tmp_path: Path, pipeline: StableDiffusionPipeline) -> None:
    pipeline.save_pretrained(tmp_path, variant="fp16")
    assert load(tmp_path, variant="fp16").unet_hash == weight_hash(pipeline.unet)
    with pytest.raises(InputError, match="variant"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("precision", "unet", "vae"), [("bf16", torch.bfloat16, torch.bfloat16), ("fp16", torch.float16, torch.float32)]
)
def test_precision_casts_the_unet_and_keeps_the_vae_out_of_fp16(
    precision: str, unet: torch.dtype, vae: torch.dtype, saved: Path
) -> None:
    sd = load(saved, precision=precision)
    assert {p.dtype for p in sd.unet.parameters()} == {unet} and sd.dtype == unet
    assert {p.dtype for p in sd.encoder.vae.parameters()} == {vae}


def test_the_command_writes_a_folder_that_both_libraries_load(
    tmp_path: Path, pipeline: StableDiffusionPipeline, images: Tensor
) -> None:
    main(["tiny", str(tmp_path / "new")])
    loaded = StableDiffusionPipeline.from_pretrained(tmp_path / "new", local_files_only=True)
    halved = {name: tensor.half() for name, tensor in pipeline.unet.state_dict().items()}
    assert all(torch.equal(tensor.half(), halved[name]) for name, tensor in loaded.unet.state_dict().items())
    loaded.set_progress_bar_config(disable=True)
    assert loaded("a bird", num_inference_steps=1, height=64, width=64).images[0].size == (64, 64)  # no Half against Float
    grid = load(tmp_path / "new").activations(images[:1], "mid")["mid"]
    torch.testing.assert_close(grid, load("tiny").activations(images[:1], "mid")["mid"], rtol=0.05, atol=0.05)


def test_a_folder_that_was_written_is_compared_with_the_digests_in_its_card(tmp_path: Path) -> None:
    main(["tiny", str(tmp_path)])
    (tmp_path / "README.md").write_text((tmp_path / "README.md").read_text() + "# My model\n")
    main(["tiny", str(tmp_path), "--seed", "1"])
    load(tmp_path)
    assert (tmp_path / "README.md").read_text().endswith("# My model\n")
    files = [path for path in tmp_path.rglob("*") if path.is_file() and path.name != "README.md"]
    assert {path.relative_to(tmp_path).as_posix() for path in files} == set(listed(tmp_path / "README.md"))
    for file in files:
        content = file.read_bytes()
        file.write_bytes(content[:-3] + bytes([content[-3] ^ 1]) + content[-2:])
        with pytest.raises(InputError):
            load(tmp_path)
        file.write_bytes(content)


def test_a_folder_whose_writing_was_interrupted_is_refused_and_one_that_was_written_is_shared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = os.umask(0o022)
    main(["tiny", str(tmp_path / "a")])
    os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "a").rglob("*.*")} == {0o644}
    real = os.replace

    def interrupted(source: Path, target: Path) -> None:
        if target.name == "diffusion_pytorch_model.safetensors":
            raise KeyboardInterrupt
        real(source, target)

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        main(["tiny", str(tmp_path / "a"), "--seed", "3"])
    with pytest.raises(InputError, match=r"a diffusers folder with unet/config\.json, but there is none"):
        load(tmp_path / "a")
    monkeypatch.undo()
    main(["tiny", str(tmp_path / "a"), "--seed", "3"])
    assert load(tmp_path / "a").unet_hash != load("tiny").unet_hash
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_the_command_takes_a_seed(tmp_path: Path) -> None:
    main(["tiny", str(tmp_path / "a"), "--seed", "3"])
    expected = weight_hash(random_pipeline("tiny", 3).unet.half())
    assert (
        weight_hash(UNet2DConditionModel.from_pretrained(tmp_path / "a", subfolder="unet", torch_dtype=torch.half)) == expected
    )


def test_a_random_pipeline_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(9)
    state = torch.get_rng_state()
    first = random_pipeline("tiny", 2)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(10)
    second = random_pipeline("tiny", 2)
    for part in ("unet", "vae", "text_encoder"):
        assert weight_hash(getattr(first, part)) == weight_hash(getattr(second, part))


# --- random weights --------------------------------------------------------------------------------------------------


@pytest.fixture
def trained(folder: Path) -> Path:
    """A folder whose U-Net is no fresh initialisation, as training leaves it."""
    weights = load_file(folder / UNET_WEIGHTS)
    save_file({name: 1.5 * tensor + 0.01 for name, tensor in weights.items()}, folder / UNET_WEIGHTS, {"format": "pt"})
    return folder


def test_random_weights_depend_on_their_seed_alone(trained: Path) -> None:
    torch.manual_seed(1)
    first = load(trained, weights="random", weights_seed=0)
    torch.manual_seed(2)
    again, other = (load(trained, weights="random", weights_seed=seed) for seed in (0, 1))
    assert first.unet_hash == again.unet_hash != other.unet_hash
    assert first.unet_hash != load(trained).unet_hash
    assert first.encoder.weights == other.encoder.weights == load(trained).encoder.weights, "the VAE stays trained"
    assert (first.weights, other.weights, load(trained).weights) == ("random-0", "random-1", "stored")
    # otherwise a control run on tiny compares a network with itself
    assert load("tiny", weights="random").unet_hash != load("tiny").unet_hash


def test_random_weights_have_the_same_structure_and_change_activations(trained: Path, images: Tensor) -> None:
    grids = [load(trained, weights=weights).activations(images[:2], LAYERS) for weights in ("stored", "random")]
    assert {name: grid.shape for name, grid in grids[0].items()} == {name: grid.shape for name, grid in grids[1].items()}
    assert all(not torch.allclose(grids[0][name], grids[1][name], atol=1e-2) for name in LAYERS)


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder", "scheduler", "tokenizer"])
def test_a_missing_part_is_named(part: str, folder: Path) -> None:
    shutil.rmtree(folder / part)
    with pytest.raises(InputError, match=rf"with {part}/\w*config\.json, but there is none\. Point backbone\.path at"):
        load(folder)


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def widen(file: Path) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), "cross_attention_dim": 48}))


def thin(file: Path) -> None:
    # diffusers would fill the gap at random: a network that looks trained and is not
    weights = load_file(file)
    del weights["mid_block.resnets.0.conv1.weight"]
    save_file(weights, file, {"format": "pt"})


INTACT = r"Expected .*checkpoint to hold intact diffusers weights, but loading them failed: .+ Copy or download the folder"
DAMAGE: list[tuple[str, Callable[[Path], object], str]] = [
    (UNET_WEIGHTS, cut, INTACT),
    ("vae/diffusion_pytorch_model.safetensors", cut, INTACT),
    ("text_encoder/model.safetensors", cut, INTACT),
    (UNET_WEIGHTS, Path.unlink, r"unet to hold \.safetensors weights, but found no weights"),
    (UNET_WEIGHTS, thin, r"unet lacks mid_block\.resnets\.0\.conv1\.weight"),
    ("unet/config.json", widen, INTACT),
    ("unet/config.json", lambda file: file.write_text("{"), INTACT),
]


@pytest.mark.parametrize(("file", "damage", "message"), DAMAGE)
def test_damaged_files_are_refused(file: str, damage: Callable[[Path], object], message: str, folder: Path) -> None:
    damage(folder / file)
    with pytest.raises(InputError, match=message):
        load(folder)


def test_pickled_weights_are_not_loaded(tmp_path: Path, pipeline: StableDiffusionPipeline) -> None:
    pipeline.save_pretrained(tmp_path, safe_serialization=False)
    if not list((tmp_path / "unet").glob("*.bin")):
        pytest.skip("this diffusers writes no pickles")
    message = r"unet to hold \.safetensors weights, but found only pickled weights \(diffusion_pytorch_model\.bin\).*Save the"
    with pytest.raises(InputError, match=message):
        load(tmp_path)


def renamed(file: Path) -> None:
    save_file({f"bert.{name}": tensor for name, tensor in load_file(file).items()}, file, {"format": "pt"})


def without_attention(file: Path) -> None:
    save_file({name: t for name, t in load_file(file).items() if "q_proj" not in name}, file, {"format": "pt"})


def with_more(file: Path) -> None:
    save_file(load_file(file) | {"time_embedding.cond_proj.weight": torch.zeros(2, 2)}, file, {"format": "pt"})


TEXT_WEIGHTS, VAE_WEIGHTS = "text_encoder/model.safetensors", "vae/diffusion_pytorch_model.safetensors"
OTHER_TENSORS: list[tuple[str, Callable[[Path], object], str]] = [
    (TEXT_WEIGHTS, without_attention, r"text_encoder lacks .*q_proj\."),
    (TEXT_WEIGHTS, renamed, r"text_encoder lacks "),
    (UNET_WEIGHTS, with_more, r"unet has tensors that its config\.json does not describe: time_embedding\.cond_proj\.weight"),
    (VAE_WEIGHTS, with_more, r"vae has tensors that its config\.json does not describe: time_embedding"),
]


@pytest.mark.parametrize(("file", "change", "message"), OTHER_TENSORS)
def test_a_part_whose_tensors_are_not_those_of_its_configuration_is_refused(
    file: str, change: Callable[[Path], object], message: str, folder: Path
) -> None:
    change(folder / file)
    with pytest.raises(InputError, match=message):
        load(folder)


def test_a_text_encoder_from_a_whole_clip_model_loads(folder: Path, sd: FrozenSD) -> None:
    file = folder / TEXT_WEIGHTS
    save_file(load_file(file) | {"vision_model.post_layernorm.weight": torch.ones(2)}, file, {"format": "pt"})
    assert load(folder).prompts.weights == sd.prompts.weights


def test_tensors_under_the_names_of_published_checkpoints_load(folder: Path, sd: FrozenSD) -> None:
    """Stable Diffusion 1.x has names of older libraries in its VAE and its text encoder."""
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    weights = load_file(folder / VAE_WEIGHTS)
    for name in [name for name in weights if ".attentions." in name]:
        new = next((name.replace(now, then) for now, then in old.items() if f".{now}." in name), name)
        weights[new] = weights.pop(name)
    assert any(".query." in name for name in weights)
    save_file(weights, folder / VAE_WEIGHTS, {"format": "pt"})
    texts = {f"text_model.{name.removeprefix('text_model.')}": t for name, t in load_file(folder / TEXT_WEIGHTS).items()}
    texts["text_model.embeddings.position_ids"] = torch.arange(77)[None]
    save_file(texts, folder / TEXT_WEIGHTS, {"format": "pt"})
    loaded = load(folder)
    assert (loaded.encoder.weights, loaded.prompts.weights) == (sd.encoder.weights, sd.prompts.weights)


def edit(file: Path, **changes: object) -> None:
    """Set keys of a JSON file; an Ellipsis removes one."""
    content = {**json.loads(file.read_text()), **changes}
    file.write_text(json.dumps({key: value for key, value in content.items() if value is not ...}))


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("text_encoder", {"model_type": "bert"}, "model_type in .* to be clip_text_model, but got 'bert'"),
        (
            "unet",
            {"_class_name": "UNetSpatioTemporalConditionModel"},
            "_class_name in .* to be UNet2DConditionModel, but got 'UNetS",
        ),
        ("vae", {"_class_name": "AutoencoderTiny"}, "_class_name in .* to be AutoencoderKL, but got 'AutoencoderTiny'"),
    ],
)
def test_a_part_of_another_kind_is_named(part: str, change: dict[str, object], message: str, folder: Path) -> None:
    edit(folder / part / "config.json", **change)
    with pytest.raises(InputError, match=message + ".* Use a checkpoint of Stable Diffusion"):
        load(folder)


def test_a_part_that_does_not_say_its_kind_loads(folder: Path, sd: FrozenSD) -> None:
    for part in ("unet", "vae"):
        edit(folder / part / "config.json", _class_name=...)
    assert load(folder).unet_hash == sd.unet_hash


@pytest.mark.parametrize(
    ("needs", "message"),
    [
        (
            {"class_embed_type": "projection", "projection_class_embeddings_input_dim": 32},
            "class labels .class_embed_type=proj",
        ),
        ({"num_class_embeds": 10}, "class labels .num_class_embeds=10"),
        ({"encoder_hid_dim": 24, "encoder_hid_dim_type": "text_proj"}, "projected states .encoder_hid_dim_type=text_proj"),
        ({"encoder_hid_dim": 24}, "projected states .encoder_hid_dim_type=text_proj"),
        ({"time_cond_proj_dim": 256}, "an embedding of the guidance scale .time_cond_proj_dim=256"),
        ({"addition_embed_type": "text"}, "added states .addition_embed_type=text"),
    ],
)
def test_a_unet_that_needs_more_than_text_is_refused(needs: dict[str, object], message: str, folder: Path) -> None:
    edit(folder / "unet/config.json", **needs)
    with pytest.raises(InputError, match=f"conditioned on text alone, but this one needs {message}"):
        load(folder, weights="random")
    with pytest.raises(InputError, match=message):
        FrozenUNet(meta_unet(preset_config(str(folder))))  # as the list of layers makes it


def no_second_encoder(folder: Path) -> None:
    shutil.rmtree(folder / "text_encoder_2")
    edit(folder / "unet/config.json", cross_attention_dim=16)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: edit(f / "unet/config.json", cross_attention_dim=48), "the 48 text channels that its U-Net takes.* give 40"),
        (
            lambda f: edit(f / "unet/config.json", projection_class_embeddings_input_dim=80),
            "the 32 pooled text channels that its U-Net takes.* give 20",
        ),
        (no_second_encoder, "the 20 pooled text channels that its U-Net takes.* give 0"),
        (
            lambda f: edit(f / "vae/config.json", latents_mean=[0, 0, 0], latents_std=[1, 1, 1]),
            r"to be 4 numbers each, .* but got \[0, 0, 0\]",
        ),
        (
            lambda f: edit(f / "vae/config.json", latents_mean=[0.0] * 4, latents_std=[1, 1, 0, 1]),
            "the deviations above 0",
        ),
    ],
)
def test_parts_that_do_not_fit_each_other_are_refused(
    change: Callable[[Path], object], message: str, sdxl_folder: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(sdxl_folder, tmp_path / "xl"))
    change(folder)
    with pytest.raises(InputError, match=message):
        load(folder, weights="random")


def test_a_text_encoder_of_another_checkpoint_is_refused(folder: Path) -> None:
    config = json.loads((folder / "text_encoder/config.json").read_text())
    sizes = {"hidden_size": 48, "intermediate_size": 96, "num_attention_heads": 3}
    CLIPTextModel(CLIPTextConfig(**config | sizes)).save_pretrained(folder / "text_encoder")
    with pytest.raises(InputError, match="to give the 32 text channels that its U-Net takes, but they give 48"):
        load(folder)
    CLIPTextModel(CLIPTextConfig(**config | {"vocab_size": 300})).save_pretrained(folder / "text_encoder")
    with pytest.raises(InputError, match="the tokenizer has 514 tokens and the encoder 300"):
        load(folder)


def test_an_inpainting_unet_is_refused(folder: Path) -> None:
    config = json.loads((folder / "unet/config.json").read_text())
    random_unet({**config, "in_channels": 9}, 0, torch.float32).save_pretrained(folder / "unet")
    with pytest.raises(InputError, match=r"text-to-image U-Net with 4 input channels, but .* has 9\. Inpainting"):
        load(folder)


@pytest.mark.parametrize("path", ["v1-5.safetensors", "models/v1-5.ckpt"])
def test_a_single_file_is_not_asked_of_the_hub(path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / path).parent.mkdir(exist_ok=True)
    (tmp_path / path).touch()
    message = rf"a diffusers folder, but '{path}' is a file\. Convert .*from_single_file\(FILE\)\.save_pretrained\(DIR\)"
    with pytest.raises(InputError, match=message):
        load(path)


def test_a_tilde_is_the_home(folder: Path, sd: FrozenSD, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(folder.parent))
    assert load(f"~/{folder.name}").unet_hash == sd.unet_hash


@pytest.mark.parametrize("path", ["no_such_folder", "./no/such", "/no/such", "~/sd", "a/b/c", "sd99", "local"])
def test_a_path_that_does_not_exist_is_said_not_to_exist(path: str) -> None:
    message = rf"a preset, a hub repository \(owner/name\) or a local diffusers folder, but got '{path}', which does not exist"
    with pytest.raises(InputError, match=message):
        load(path)


def test_a_yaml_file_beside_a_folder_does_not_turn_it_into_a_preset(folder: Path, sd: FrozenSD) -> None:
    # original checkpoints ship with such files (model/ next to model.yaml)
    folder.with_name(f"{folder.name}.yaml").write_text("model: {target: ldm}\n")
    assert load(folder).unet_hash == sd.unet_hash


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"weights": "trained"}, "weights to be one of stored, random, shuffled, but got 'trained'. Use stored"),
        ({"precision": "fp8"}, "precision to be auto, fp32, bf16, fp16, but got 'fp8'"),
        ({"device": "mps"}, "device to be one of auto, cpu, cuda, but got 'mps'"),
        ({"noise": "pink"}, "noise to be one of independent, shared, rolled, none, but got 'pink'"),
        ({"vae_input": "signed"}, "vae_input to be one of symmetric, unit, but got 'signed'"),
        ({"posterior": "mean"}, "posterior to be one of mode, sample, but got 'mean'"),
    ],
)
def test_options_that_do_not_exist_are_refused(option: dict[str, str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        load("tiny", **option)


# --- the hub (more in test_hub_checkpoints.py) -----------------------------------------------------------------------


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """No network and an empty hub cache, whatever this machine has."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def test_the_cache_of_an_older_client_which_lists_no_files_loads_without_network(
    offline: Path, saved: Path, sd: FrozenSD
) -> None:
    repository = offline / "models--somebody--tiny-sd"
    commit = "0" * 40
    shutil.copytree(saved, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    cached = load("somebody/tiny-sd")
    assert cached.unet_hash == sd.unet_hash
    assert cached.path == "somebody/tiny-sd"


# --- presets ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["sd14", "sd15", "sd21", "sd_turbo", "sdxl", "sdxl_turbo"])
def test_presets_name_a_hub_repository(name: str) -> None:
    assert re.fullmatch(r"[\w-]+/[\w.-]+", presets()[name]["path"])


def test_what_is_no_preset_is_none() -> None:
    assert not presets().keys() & {"sd99", "stable-diffusion-v1-5/stable-diffusion-v1-5"}
