"""The embedded demo models are ordinary diffusers folders, as their cards say."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline

from sdprobe.backbones import FrozenSD
from sdprobe.backbones.architectures import meta_unet, preset_config
from sdprobe.backbones.cards import digest, listed
from sdprobe.backbones.embedded import DEMO, NAMES, embedded
from sdprobe.backbones.layers import layer_table
from sdprobe.utilities.errors import InputError
from tools.demo.card import write

pytestmark = pytest.mark.skipif(not DEMO.is_dir(), reason="the demo model is still in training")


CLASSES = {"demo": ("StableDiffusionPipeline", "unet"), "demo_dit": ("PixArtAlphaPipeline", "transformer")}
SIZES = {"demo": 30e6, "demo_dit": 15e6}  # bytes; the transformer comes with a copy of the autoencoder


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return Path(shutil.copytree(DEMO, tmp_path / "demo"))


@pytest.fixture(params=NAMES)
def folder(request: pytest.FixtureRequest) -> Path:
    found = embedded(request.param)
    assert found is not None
    return found


def test_diffusers_alone_loads_and_samples_it(folder: Path) -> None:
    pipe = DiffusionPipeline.from_pretrained(folder, local_files_only=True)
    kind, part = CLASSES[folder.name]
    assert type(pipe).__name__ == kind
    assert {pipe.components[name].dtype for name in (part, "vae", "text_encoder")} == {torch.float32}, "though stored in half"
    pipe.set_progress_bar_config(disable=True)
    options = {"num_inference_steps": 4, "height": 128, "width": 128}
    options |= {"use_resolution_binning": False} if part == "transformer" else {}
    pictures = [
        np.asarray(pipe(prompt, generator=torch.Generator().manual_seed(0), **options).images[0])
        for prompt in ("a photo of a bird", "a photo of a chair")
    ]
    assert all(picture.shape == (128, 128, 3) and picture.std() > 5 for picture in pictures)
    assert not np.array_equal(*pictures)


def test_it_is_small_and_holds_safetensors_only(folder: Path) -> None:
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < SIZES[folder.name]
    assert {path.suffix for path in files} <= {".safetensors", ".json", ".txt", ".md", ".png", ".jpg"}


def test_the_card_lists_every_weight_file_with_its_digest(folder: Path) -> None:
    digests = listed(folder / "README.md")
    assert set(digests) == {path.relative_to(folder).as_posix() for path in folder.rglob("*.safetensors")}
    assert all(digest(folder / name) == value for name, value in digests.items())


def test_the_card_is_its_template_with_what_was_measured(folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    write(copy, {"demo": "config", "demo_dit": "dit"}[folder.name])
    assert (copy / "README.md").read_text() == (folder / "README.md").read_text()


def test_its_layers_are_stable_diffusions_but_for_attention_at_64() -> None:
    own, full = (set(layer_table(meta_unet(preset_config(name)))) for name in ("demo", "sd15"))
    # without attention the last resnet of up_3 is the stage's output
    assert full - own == {"down_0_attn_0", "down_0_attn_1", "up_3_attn_0", "up_3_attn_1", "up_3_res_2"}
    assert own < full


def test_its_grids_are_stable_diffusions() -> None:
    sd = FrozenSD.from_pretrained("demo", device="cpu", precision="fp32")
    shapes = sd.shapes(512, sd.unet.resolve("stages"))
    assert [side for _, side, _ in shapes.values()] == [64, 32, 16, 8, 8, 8, 16, 32, 64, 64, 64]


def test_it_is_found_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert FrozenSD.from_pretrained("demo", device="cpu").path == "assets/demo"


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_altered_weights_are_refused(copy: Path, part: str) -> None:
    [file] = (copy / part).glob("*.safetensors")
    content = bytearray(file.read_bytes())
    content[-5] ^= 1  # loads without complaint
    file.write_bytes(bytes(content))
    with pytest.raises(InputError, match="truncated or altered"):
        FrozenSD.from_pretrained(str(copy), device="cpu")


def test_a_missing_demo_model_is_no_hub_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sdprobe.backbones.embedded.ASSETS", tmp_path / "none")
    with pytest.raises(InputError, match=r"train it with python -m tools.demo\.train"):
        FrozenSD.from_pretrained("demo", device="cpu")
