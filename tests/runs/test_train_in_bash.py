"""``python train.py`` as it is typed: bash splits the words, and what is refused is refused before torch is imported."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def without_torch(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An environment in which torch cannot be imported, and ``python`` is this one."""
    folder = tmp_path_factory.mktemp("blocked")
    (folder / "torch.py").write_text("raise SystemExit('torch was imported')")
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return os.environ | {"PYTHONPATH": f"{folder}:{ROOT}", "PATH": path, "COLUMNS": "200"}


def typed(line: str, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["bash", "-c", line], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("timestep=1000", "Expected timestep to be"),
        ("block=md", "The nearest name is 'mid'"),
        ("block=[mid, upp_1]", "but got 'upp_1'. The nearest name is 'up_1'"),
        ("seed=1.5", "Expected seed to be an integer, but got 1.5."),
        ("device=gpu", "Expected device to be one of auto, cpu, cuda, but got 'gpu'."),
        ("images=folder", "Expected images.root to be given, but it is missing. Add images.root=... to the command."),
        (
            "images=folder images.root='/no/such place'",
            "Expected images.root to be a folder, but got '/no/such place' (no such file or directory).",
        ),
        ("backbone=local", "Expected backbone.path to be given"),
        ("twins=-1", "Expected twins to be at least 0, but got -1"),
        ("probe=positon --help", "The nearest is 'position'."),
        ("'~logger'", "Expected every configuration group to stay, but got '~logger'."),
        ("logger=null", "Use logger=none."),
        ("probe.solver=closed-form", "Use closed_form."),
        ("images.root=~/photos", "Add images=folder or"),
        ("block=mid,up_1", "Write block=[mid,up_1]"),
        ("mitigation=leace,standardize", "Write mitigation=[leace,standardize] for several one after the other in one run"),
        ("'mitigation=[leace,standrdize]'", "but got 'standrdize'. The nearest is 'standardize'."),
        ("backbone=/models/x", "Write backbone=local backbone.path=/models/x."),
        ("backbone=sd51", "The nearest is 'sd21'."),
        ("mitigation.position_mean.basis=cosine", "Add mitigation=position_mean."),
        ("mitigation=leace mitigation.leace.tolernce=1", "The nearest is 'mitigation.leace.tolerance'."),
        ('resume="/tmp/it\'s gone"', "but '/tmp/it's gone' has none."),
    ],
)
def test_a_mistake_is_one_sentence(words: str, message: str, without_torch: dict[str, str]) -> None:
    answer = typed(f"python train.py {words}", without_torch)
    assert message in answer.stderr and answer.returncode == 1
    assert len(answer.stderr.strip().splitlines()) == 1 and not answer.stdout


def test_help_is_given_without_torch(without_torch: dict[str, str]) -> None:
    answer = typed("python train.py block=mid_block hydra/launcher=slurm --help", without_torch)
    assert answer.returncode == 0, answer.stderr
    for text in ("timestep", "hydra.launcher.partition", "credibility_validation", "python train.py probe=position block=mid"):
        assert text in answer.stdout
    assert "hydra_logging" not in answer.stdout


@pytest.mark.parametrize(
    ("module", "text"),
    [("sdprobe.backbones", "python -m sdprobe.backbones sd15"), ("sdprobe.reports", "reports similarity --image FILE")],
)
def test_other_commands_give_help_with_examples_without_torch(module: str, text: str, without_torch: dict[str, str]) -> None:
    answer = typed(f"python -m {module} --help", without_torch)
    assert text in answer.stdout and answer.returncode == 0, answer.stderr
