"""Images have the size that the checkpoint was made for, unless a setting or a protocol says otherwise."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from sdprobe.backbones.architectures import presets
from sdprobe.backbones.loading import native_size
from sdprobe.backbones.random_pipeline import random_pipeline
from sdprobe.runs import checks, cli, configuration
from sdprobe.runs import run as runner
from sdprobe.runs.groups import CONFIGS
from sdprobe.runs.record import config_hash
from sdprobe.utilities.errors import InputError

SMALL = ["block=conv_in", "images.limit=12", "probe.solver=closed_form", "twins=0", "logger=none", "device=cpu"]


def filled(*overrides: str) -> DictConfig:
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        cfg = compose("train", overrides=list(overrides))
    checks.fill_size(cfg)
    return cfg


NATIVE = {
    "demo": 512, "demo_dit": 512, "tiny": 512,
    "sd14": 512, "sd15": 512, "sd21": 768, "sd_turbo": 512, "sdxl": 1024, "sdxl_turbo": 512,
}  # fmt: skip


def test_presets_have_their_own_size() -> None:
    assert {name: native_size(name) for name in presets()} == NATIVE


def test_null_is_the_size_of_the_checkpoint() -> None:
    cfg = filled("backbone=sdxl", "images=flipped")
    assert cfg.images.size == cfg.images.images.size == 1024
    assert config_hash(filled()) == config_hash(filled("images.size=512")), "no other run than before"
    assert filled("backbone=sdxl", "protocol=loos2025").images.size == 512, "the study's"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint made for 128 pixels."""
    folder = tmp_path_factory.mktemp("checkpoint")
    random_pipeline("tiny", seed=0).save_pretrained(folder)
    change(folder, "unet", sample_size=16)
    return folder


def change(folder: Path, part: str, **values: Any) -> None:
    file = folder / part / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def test_a_folder_has_its_own_size_and_a_run_names_another_once(
    folder: Path, launch: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    runner.name_size.cache_clear()
    local = ["backbone=local", f"backbone.path={folder}"]
    assert filled(*local).images.size == 128
    assert launch(*local, "images.size=64", folder="other").meta["image_size"] == 64
    runner.name_size(64, 128)  # the next job of a sweep
    line = "Images have 64 pixels per side; the checkpoint was made for 128 (images.size=null)."
    assert caplog.text.count(line) == 1


def test_a_checkpoint_that_does_not_say_is_refused(folder: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.mkdir()
    for part in folder.iterdir():
        (link / part.name).symlink_to(part)
    (link / "unet").unlink()
    (link / "unet").mkdir()
    for file in (folder / "unet").iterdir():
        (link / "unet" / file.name).write_bytes(file.read_bytes())
    change(link, "unet", sample_size=None)
    with pytest.raises(InputError, match=r"to say for which size it was made, .* but got None and .*\. Set images\.size, to"):
        filled("backbone=local", f"backbone.path={link}")


def test_a_resumed_run_keeps_the_size_that_was_filled_in(tmp_path: Path) -> None:
    stored = tmp_path / ".hydra"
    stored.mkdir()
    (stored / "overrides.yaml").write_text("- backbone=sdxl\n")
    (stored / "config.yaml").write_text("images: {size: 512}\n")
    assert "images.size=512" in cli.expanded([f"resume={tmp_path}"]), "as an older version filled it in"
    (stored / "overrides.yaml").write_text("- backbone=sdxl\n- images.size=768\n")
    assert [text for text in cli.expanded([f"resume={tmp_path}"]) if "size" in text] == ["images.size=768"]


@pytest.mark.parametrize(("size", "said"), [("100", "a positive multiple of 64"), ("wide", "an integer")])
def test_a_wrong_size_is_refused_before_anything_is_loaded(size: str, said: str) -> None:
    with pytest.raises(InputError, match=f"Expected images.size to be {said}, but got"):
        checks.check(configuration.check([f"images.size={size}"]))  # type: ignore[arg-type]


def test_no_size_is_a_size() -> None:
    cfg = configuration.check([])
    assert cfg is not None and cfg.images.size is None
    checks.check(cfg)
