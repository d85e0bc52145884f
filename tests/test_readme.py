"""Every command of the README runs, in miniature, on the tiny network."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import open_dict

import train
from backbones.layers import main as layers
from runs import command

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
LINES = [
    line.split("#")[0].strip()
    for block in re.findall(r"```\n(.*?)```", README, flags=re.S)
    for line in block.splitlines()
    if line.split("#")[0].strip()
]
EXAMPLES = re.findall(r"```python\n(.*?)```", README, flags=re.S)
SMALL = ["backbone=tiny", "images.size=128", "images.limit=12", "trainer.max_epochs=1", "logger=none", "twins=0", "device=cpu"]
# statistics want 40 measured images and layers of at least 4×4 tokens; the study, 6×6; pairs, six scenes of each category
SHALLOW = "block=[conv_in,down_0_res_0]"
SMALLER = {
    "probe=statistics": [SHALLOW, "images.limit=70", "datamodule.margin=16", "datamodule.repeats=2"],
    "probe=correspondence": ["images.limit=48", "probe.min_steps=10"],
    "block=all": ["protocol.solver=closed_form"],
    "experiment=loos2025": [SHALLOW, "probe.solver=closed_form"],
    "experiment=mitigations": ["block=mid"],  # four fit images are enough for a basis of a 2×2 grid
    "experiment=controls": ["images.limit=12"],
}


def test_the_readme_has_commands_of_every_kind() -> None:
    kinds = {" ".join(line.split()[:2]) for line in LINES}
    assert {"make demo", "make test", "python train.py", ".venv/bin/python train.py", "python -m"} <= kinds


@pytest.mark.parametrize("line", [line for line in LINES if "train.py" in line and "--help" not in line])
def test_train_commands_run(line: str, tmp_path: Path) -> None:
    overrides = shlex.split(line.split("train.py")[1])
    command.check(overrides)
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        smaller = [change for text, changes in SMALLER.items() if text in overrides for change in changes]
        cfg = compose("train", overrides=[*SMALL, *overrides, *smaller, f"cache_dir={tmp_path}"], return_hydra_config=True)
    HydraConfig.instance().set_config(cfg)
    with open_dict(cfg):
        del cfg["hydra"]
    cfg.run_dir = str(tmp_path / "run")
    assert train.run(cfg).meta["complete"]


@pytest.mark.parametrize("line", [line for line in LINES if "--help" in line])
def test_help_is_given(line: str) -> None:
    arguments = [sys.executable, *shlex.split(line)[1:]]
    answer = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert answer.returncode == 0
    assert "timestep: 50" in answer.stdout


@pytest.mark.parametrize("line", [line for line in LINES if "backbones.layers" in line])
def test_layers_are_listed(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    layers(shlex.split(line)[3:])
    assert "up_1_attn_2" in capsys.readouterr().out


@pytest.mark.parametrize("line", [line for line in LINES if line.startswith("make")])
def test_make_targets_exist(line: str) -> None:
    answer = subprocess.run([*shlex.split(line), "-n"], cwd=ROOT, capture_output=True, text=True)
    assert answer.returncode == 0, answer.stderr
    wanted = {"make demo": "train.py probe=position block=mid", "make test": "-m pytest"}[line]
    assert wanted in answer.stdout


def test_the_python_examples_run(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for example, printed in zip(EXAMPLES, ["mid (2, 128, 8, 8)", "torch.Size([2, 128, 4, 4])"], strict=True):
        assert len(example.splitlines()) <= 10
        exec(compile(example, "README.md", "exec"), {})
        assert printed in capsys.readouterr().out


def test_everything_the_readme_points_at_exists() -> None:
    for target in re.findall(r"\]\(((?!http)[^)#]+)\)", README):
        assert (ROOT / target).exists(), target
