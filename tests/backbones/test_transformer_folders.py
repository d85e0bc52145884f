"""Folders and repositories of diffusion transformers: what is loaded and fetched, and what is refused."""

import json
import re
import shutil
from collections.abc import Callable
from fnmatch import fnmatch
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from sdprobe import FrozenSD
from sdprobe.backbones.capabilities import capabilities_of
from sdprobe.backbones.loading import native_size, schedule
from sdprobe.backbones.noise import FlowSchedule
from sdprobe.backbones.published import transformers
from sdprobe.backbones.transformer_folders import needed_files
from sdprobe.utilities.errors import InputError
from sdprobe.utilities.io import read_json
from tests.backbones.tiny_transformers import pipeline, vae
from tests.hub_server import Hub

PIPELINES = ("pixart", "pixart_sigma", "sd3", "flux", "dit", "sana", "lumina2")
SIDES = {"sana": 256}


@pytest.fixture
def copied(saved_pipeline: Callable[[str], Path], tmp_path: Path) -> Callable[[str], Path]:
    """A copy of the folder that a test may damage."""
    return lambda name: Path(shutil.copytree(saved_pipeline(name), tmp_path / name))


def load(folder: Path | str, **options: Any) -> FrozenSD:
    return FrozenSD.from_pretrained(str(folder), device="cpu", precision="fp32", **options)


def grids(sd: FrozenSD, name: str, layers: Any = ("patch", "block_1_norm", "block_3"), prompt: str = "3") -> Any:
    side = SIDES.get(name, 128)
    images = torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(3))
    return sd.activations(images, list(layers), timestep=260, prompt=prompt, ids=["a", "b"])


def change(file: Path, **values: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


# ---- what is loaded ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * (name != "sd3")) for name in PIPELINES])
def test_a_folder_gives_the_grids_of_its_pipeline(name: str, saved_pipeline: Callable[[str], Path]) -> None:
    folder = saved_pipeline(name)
    assert list((folder / "transformer").glob("*.safetensors.index.json"))
    sd, pipe = load(folder), FrozenSD.from_pipeline(pipeline(name))
    first, second = grids(sd, name), grids(pipe, name)
    for layer, grid in first.items():
        # the autoencoder's convolutions have another memory layout here
        torch.testing.assert_close(grid, second[layer], rtol=1e-4, atol=1e-5)
    own, others = sd.describe(), pipe.describe()
    same = ("unet_hash", "vae_hash", "text_hash", "schedule_hash", "unet_config_hash", "position", "text")
    assert {key: own[key] for key in same} == {key: others[key] for key in same}
    assert native_size(str(folder)) == sd.native_size
    assert isinstance(schedule(str(folder)), FlowSchedule) == isinstance(sd.noise, FlowSchedule)
    torch.testing.assert_close(schedule(str(folder)).noise_levels, sd.noise.noise_levels)


def test_shards_have_no_bar(saved_pipeline: Callable[[str], Path], capfd: pytest.CaptureFixture[str]) -> None:
    folder = saved_pipeline("dit")
    capfd.readouterr()
    load(folder)
    assert capfd.readouterr().err == ""


@pytest.mark.slow
@pytest.mark.parametrize("name", PIPELINES)
def test_weights_are_random_or_shuffled_by_seed(name: str, saved_pipeline: Callable[[str], Path]) -> None:
    made = [
        load(saved_pipeline(name), weights=weights, weights_seed=seed) for weights in ("random", "shuffled") for seed in (1, 2)
    ]
    assert len({sd.describe()["unet_hash"] for sd in made}) == 4
    again = load(saved_pipeline(name), weights="random", weights_seed=1)
    assert again.unet_hash == made[0].unet_hash and len({sd.encoder.weights for sd in made}) == 1
    assert not torch.equal(grids(made[0], name)["block_3"], grids(made[1], name)["block_3"])


def test_without_t5_sd3_gets_zeros_and_without_text_all_do(copied: Callable[[str], Path]) -> None:
    folder = copied("sd3")
    shutil.rmtree(folder / "text_encoder_3"), shutil.rmtree(folder / "tokenizer_3")
    sd = load(folder)
    states = sd.prompts("a cat", sd.device, sd.dtype).states
    assert states.shape[1] > 256 and not states[:, -256:].any() and states[:, :-256].any()
    assert sd.describe()["text_hash"].endswith("-absent")
    for part in ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"):
        shutil.rmtree(folder / part)
    none = load(folder, text="none")
    given = none.prompts(["", ""], none.device, none.dtype)
    assert not given.states.any() and not given.pooled.any() and none.describe()["text"] == "none"
    assert none.describe()["text_hash"] == "none"
    grids(none, "sd3", prompt="")
    with pytest.raises(InputError, match=r"an empty prompt with text=none, .* got 'a cat'"):
        none.prompts("a cat", none.device, none.dtype)


@pytest.mark.slow
def test_position_is_that_of_positioned(saved_pipeline: Callable[[str], Path]) -> None:
    plain, zero = load(saved_pipeline("dit")), load(saved_pipeline("dit"), position="zero")
    with plain.unet.positioned("zero"):
        expected = grids(plain, "dit")
    assert torch.equal(grids(zero, "dit")["block_3"], expected["block_3"])
    assert zero.describe()["position"] == "zero" and plain.describe()["position"] == "stored"


@pytest.mark.slow
@pytest.mark.parametrize(("name", "norm"), [("pixart", "ada_norm_single"), ("dit", "ada_norm_zero")])
def test_configurations_of_earlier_classes_are_read(name: str, norm: str, copied: Callable[[str], Path]) -> None:
    folder = copied(name)
    change(folder / "transformer" / "config.json", _class_name="Transformer2DModel", norm_type=norm)
    assert load(folder).unet_hash == FrozenSD.from_pipeline(pipeline(name)).unet_hash
    assert load(folder, weights="random").unet.family.name == name
    kind = capabilities_of(str(folder))
    assert kind is not None and kind.network == type(load(folder).unet.network).__name__


# ---- what is refused ---------------------------------------------------------------------------------------------------------

DAMAGED: dict[str, tuple[str, Callable[[Path], Any], str]] = {
    "video": (
        "sd3",
        lambda folder: change(folder / "model_index.json", _class_name="WanPipeline"),
        r"Expected _class_name in model_index.json of .* or one of PixArtAlphaPipeline, .* but got 'WanPipeline'",
    ),
    "no index": ("sd3", lambda folder: (folder / "model_index.json").unlink(), r"to hold model_index.json, which names the"),
    "no T5": (
        "flux",
        lambda folder: shutil.rmtree(folder / "text_encoder_2"),
        r"to hold text_encoder_2/config.json, as FluxPipeline saves it, but there is none",
    ),
    "no tokenizer": ("pixart", lambda folder: shutil.rmtree(folder / "tokenizer"), r"to hold tokenizer/tokenizer_config.json"),
    "other encoder": (
        "flux",
        lambda folder: change(folder / "text_encoder_2" / "config.json", model_type="llama"),
        r"text_encoder_2/config.json to describe a T5EncoderModel \(t5\), but got 'llama'",
    ),
    "other network": (
        "sd3",
        lambda folder: change(folder / "transformer" / "config.json", _class_name="FluxTransformer2DModel"),
        r"transformer/config.json to describe a SD3Transformer2DModel .* but got 'FluxTransformer2DModel'",
    ),
    "index elsewhere": (
        "dit",
        lambda folder: change(
            folder / "transformer" / "diffusion_pytorch_model.safetensors.index.json", weight_map={"a": "../../b.safetensors"}
        ),
        r"index.json to name .safetensors files beside it, but got '../../b.safetensors'",
    ),
    "code": (
        "pixart",
        lambda folder: change(folder / "text_encoder" / "config.json", auto_map={"AutoModel": "x.y"}),
        r"but got 'auto_map', which names code",
    ),
    "a shard less": (
        "dit",
        lambda folder: next((folder / "transformer").glob("*-00002-*")).unlink(),
        r"to hold intact diffusers weights, but loading them failed",
    ),
    "latents": (
        "flux",
        lambda folder: (shutil.rmtree(folder / "vae"), vae(4, 1.0).save_pretrained(folder / "vae")),
        r"latents have 4 channels and the transformer takes 16",
    ),
    "layers": (
        "dit",
        lambda folder: change(folder / "transformer" / "config.json", num_layers=10**9),
        r"at most 1000 num_layers",
    ),
}


@pytest.mark.parametrize("damage", [pytest.param(name, marks=[pytest.mark.slow] * (name == "latents")) for name in DAMAGED])
def test_folders_that_cannot_be_read_are_refused(damage: str, copied: Callable[[str], Path]) -> None:
    name, make, message = DAMAGED[damage]
    folder = copied(name)
    make(folder)
    with pytest.raises(InputError, match=message):
        load(folder)


@pytest.mark.parametrize(
    ("path", "options", "message"),
    [
        ("flux_dev", {"padding": "circular"}, r"padding=zeros for FluxTransformer2DModel, .* 'circular'\. .*position=zero"),
        ("sana", {"position": "zero"}, r"position=stored for SanaTransformer2DModel, .* 'zero'\. .*padding=circular"),
        ("tiny", {"position": "zero"}, r"position=stored for UNet2DConditionModel"),
        ("sd15", {"text": "none"}, r"text=encoded for UNet2DConditionModel, whose prompt is always encoded"),
        ("dit_xl", {"text": "none"}, r"text=encoded for DiTTransformer2DModel, which has classes in place of text"),
        ("sana", {"posterior": "sample"}, r"posterior=mode for SanaTransformer2DModel"),
        ("flux_dev", {"position": "none"}, r"Expected position to be one of stored, zero"),
        ("flux_dev", {"precision": "fp16"}, r"Expected precision bf16 or fp32 for FluxTransformer2DModel, .* got fp16"),
        ("black-forest-labs/FLUX.1-dev", {"padding": "circular"}, r"padding=zeros for FluxTransformer2DModel"),
    ],
)  # fmt: skip
def test_options_that_a_family_does_not_have_are_refused_before_anything_is_fetched(
    path: str, options: dict[str, str], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        FrozenSD.from_pretrained(path, **options)


@pytest.mark.slow
def test_flux_in_fp16_is_refused_and_other_text_encoders_are_in_fp32(saved_pipeline: Callable[[str], Path]) -> None:
    with pytest.raises(InputError, match=r"Expected precision bf16 or fp32 for FluxTrans.* got fp16"):
        FrozenSD.from_pretrained(str(saved_pipeline("flux")), device="cpu", precision="fp16")
    sd = FrozenSD.from_pretrained(str(saved_pipeline("sd3")), device="cpu", precision="fp16")
    assert sd.dtype == torch.float16 and {encoder.dtype for encoder in sd.prompts.encoders} == {torch.float32}
    assert (
        FrozenSD.from_pretrained(str(saved_pipeline("flux")), device="cpu", precision="bf16").prompts.encoders[1].dtype
        == torch.bfloat16
    )


# ---- what is fetched ---------------------------------------------------------------------------------------------------------

CLUTTER = {
    "README.md": b"# a model\n", "flux1-dev.safetensors": bytes(10), "ae.safetensors": bytes(10),
    "transformer/diffusion_pytorch_model.bin": bytes(10), "text_encoder_4/model.safetensors": bytes(10),
    "text_encoder/pytorch_model.bin": bytes(10), "image_encoder/model.safetensors": bytes(10),
}  # fmt: skip


def contents(folder: Path) -> dict[str, bytes]:
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_only_what_is_needed_is_fetched_after_its_size_and_licence_are_said(
    hub: Hub, saved_pipeline: Callable[[str], Path], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = contents(saved_pipeline("flux"))
    name = transformers()["flux_dev"]["repository"]
    hub.add(name, files | CLUTTER)
    with caplog.at_level("INFO"):
        sd = load("flux_dev")
    # equal files, such as the two tokenizers here, come once
    assert hub.fetched() <= set(files) and {files[path] for path in hub.fetched()} == set(files.values())
    said = [record.getMessage() for record in caplog.records if record.getMessage().startswith(f"Downloading {name}")]
    assert len(said) == 2 and f"{len(files) - 1} files, " in said[1]
    assert all("(licence: FLUX.1 [dev] Non-Commercial License)" in line for line in said)
    hub.forget()
    assert load("flux_dev").unet_hash == sd.unet_hash == load(saved_pipeline("flux")).unet_hash
    assert not hub.requests


def test_without_text_no_encoder_is_fetched_and_sizes_need_configurations_only(
    hub: Hub, saved_pipeline: Callable[[str], Path]
) -> None:
    files = contents(saved_pipeline("sd3"))
    hub.add("me/sd3", files | CLUTTER)
    assert native_size("me/sd3") == native_size(str(saved_pipeline("sd3")))
    assert hub.fetched() == {"model_index.json", "transformer/config.json", "vae/config.json"}
    assert isinstance(schedule("me/sd3"), FlowSchedule)
    load("me/sd3", text="none")
    assert hub.fetched() == {path for path in files if not path.startswith(("text_encoder", "tokenizer"))}


def test_repositories_of_other_pipelines_are_refused_before_their_weights(
    hub: Hub, saved_pipeline: Callable[[str], Path]
) -> None:
    files = contents(saved_pipeline("dit"))
    index = json.dumps({**json.loads(files["model_index.json"]), "_class_name": "WanPipeline"}).encode()
    hub.add("me/video", files | {"model_index.json": index})
    with pytest.raises(InputError, match=r"model_index.json of me/video .* got 'WanPipeline'"):
        load("me/video")
    assert hub.fetched() == {"model_index.json"}


# SD3's repository: half-precision files of the text encoders, the third of them in shards
SD3 = [
    "model_index.json", "scheduler/scheduler_config.json", "transformer/config.json", "vae/config.json",
    "transformer/diffusion_pytorch_model.safetensors", "vae/diffusion_pytorch_model.safetensors",
    *(f"text_encoder{i}/config.json" for i in ("", "_2", "_3")),
    *(f"tokenizer{i}/tokenizer_config.json" for i in ("", "_2", "_3")),
    *(f"text_encoder{i}/model{kind}.safetensors" for i in ("", "_2") for kind in ("", ".fp16")),
    *(f"text_encoder_3/model{kind}-0000{i}-of-00002.safetensors" for kind in ("", ".fp16") for i in (1, 2)),
    "text_encoder_3/model.safetensors.index.json", "text_encoder_3/model.safetensors.index.fp16.json", "sd3_medium.safetensors",
]  # fmt: skip


def test_the_files_of_published_repositories_are_chosen_by_their_names() -> None:
    chosen = needed_files(SD3, {"_class_name": "StableDiffusion3Pipeline"}, "fp16", "the repository")
    assert [name for name in chosen if name.startswith("text_encoder_3/")] == [
        "text_encoder_3/config.json", "text_encoder_3/model.fp16-00001-of-00002.safetensors",
        "text_encoder_3/model.fp16-00002-of-00002.safetensors", "text_encoder_3/model.safetensors.index.fp16.json",
    ]  # fmt: skip
    assert "text_encoder/model.fp16.safetensors" in chosen and "text_encoder/model.safetensors" not in chosen
    assert "transformer/diffusion_pytorch_model.safetensors" in chosen and "sd3_medium.safetensors" not in chosen


@pytest.mark.parametrize(("preset", "variant"), [("sd3", "fp16"), ("flux_dev", None)])
def test_without_network_the_command_in_the_message_brings_what_is_needed(
    hub: Hub, saved_pipeline: Callable[[str], Path], preset: str, variant: str | None
) -> None:
    hub.close()
    said = []
    for ask in (load, partial(native_size, variant="preset"), partial(schedule, variant="preset")):
        with pytest.raises(InputError) as caught:
            ask(preset)
        said.append(str(caught.value))
    assert len(set(said)) == 1 and said[0].endswith(" backbone.path=DIR" + " backbone.variant=fp16" * bool(variant) + ".")
    patterns = re.findall(r'--include "(.*?)"', said[0])
    names = SD3 if preset == "sd3" else list(contents(saved_pipeline("flux")))
    kind = {"sd3": "StableDiffusion3Pipeline", "flux_dev": "FluxPipeline"}[preset]
    needed = needed_files(names, {"_class_name": kind}, variant, "the repository")
    brought = {name for name in names if any(fnmatch(name, pattern) for pattern in patterns)}
    assert set(needed) <= brought and not {name for name in brought - set(needed) if not name.endswith(".json")}


@pytest.mark.slow
def test_a_folder_with_the_card_of_another_file_is_refused(copied: Callable[[str], Path]) -> None:
    folder = copied("dit")
    (folder / "README.md").write_text("---\nsha256:\n  transformer/config.json: " + "f" * 64 + "\n---\n")
    with pytest.raises(InputError, match=r"transformer/config.json to have the SHA-256 ffff"):
        load(folder)
    assert read_json(folder / "model_index.json")["_class_name"] == "DiTPipeline"
