"""Several devices: the real command in two processes on a CPU measures what one process does; what cannot be is refused."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, open_dict

from sdprobe.reports.run import Run
from sdprobe.runs.checks import check_devices
from sdprobe.runs.record import config_hash
from sdprobe.runs.run import run
from sdprobe.utilities.errors import InputError

ROOT = Path(__file__).parents[2]
SMALL = [
    "backbone=tiny", "images.size=128", "images.limit=14", "block=[mid,up_0]", "logger=none", "device=cpu", "twins=0",
    "backbone.precision=fp32", "datamodule.batch_size=3",
]  # fmt: skip
two_cores = pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="a process takes a core")


def command(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    cache = folder.parent / "cache"
    return subprocess.run(
        [sys.executable, "train.py", *SMALL, f"cache_dir={cache}", f"hydra.run.dir={folder}", *arguments],
        cwd=ROOT, capture_output=True, text=True, timeout=600, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def measured(folder: Path, *arguments: str) -> Run:
    answer = command(folder, *arguments)
    assert answer.returncode == 0, answer.stderr
    return Run.read(folder)


def alone(folder: Path, *arguments: str) -> Run:
    """The same in this process."""
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        given = [*SMALL, f"cache_dir={folder.parent / 'cache'}", *arguments]
        cfg = compose("train", overrides=given, return_hydra_config=True)
    HydraConfig.instance().set_config(cfg)
    with open_dict(cfg):
        del cfg["hydra"]
    cfg.run_dir = str(folder)
    run(cfg)
    return Run.read(folder)


def assert_equal(one: Run, two: Run) -> None:
    """Equal to the last bit: every process computes what a single one does, but for its shard of passes."""
    assert one.metrics == two.metrics
    assert one.maps.keys() == two.maps.keys()
    for name, table in one.maps.items():
        np.testing.assert_array_equal(two.maps[name], table, err_msg=name)
    assert two.meta["passes"]["unet"] == one.meta["passes"]["unet"], "every image in one process"
    assert two.meta["images"] == one.meta["images"]
    assert two.meta["train_steps"] == one.meta["train_steps"]
    assert (one.meta["devices"], two.meta["devices"]) == (1, 2)
    assert one.meta["config_hash"] == two.meta["config_hash"]


RUNS = {
    "position": ["probe.solver=closed_form", "mitigation=[standardize,position_mean]", "datamodule.compare=true"],
    "statistics": ["probe=statistics", "block=conv_in", "images.size=256", "images.limit=68", "datamodule.repeats=2"],
    "role": ["probe=role", "mitigation=position_mean", "datamodule.reemergence=true", "timestep=[50,600]", "images.limit=30"],
    "equivariance": ["probe=equivariance", "images.limit=68", "mitigation=[standardize]", "datamodule.compare=true"],
    "zero-shot": ["probe=correspondence", "probe.head=none", "images.limit=48", "images.size=128", "block=up_0"],
}
TRAINED = {
    "position": ["twins=1"],
    "depth": ["probe=depth"],
    "content": ["probe=content"],
    "study": ["probe=study", "images.size=512"],
    "correspondence": ["probe=correspondence", "images.limit=48", "block=up_0"],
}
FEW = ["images.limit=20", "probe.min_steps=100", "probe.patience=1", "trainer.max_epochs=4"]


def check_two_processes(tmp_path: Path, options: list[str]) -> None:
    two = measured(tmp_path / "two", "trainer=ddp", "trainer.devices=2", *options)
    one = alone(tmp_path / "one", *options, f"cache_dir={tmp_path / 'other'}")
    assert_equal(one, two)
    assert one.meta["latents"]["encoded"] == two.meta["latents"]["encoded"], "each of them was encoded by one of the two"


@two_cores
@pytest.mark.parametrize(
    "name", ["position", *(pytest.param(name, marks=pytest.mark.slow) for name in RUNS if name != "position")]
)
def test_two_processes_measure_what_one_does(tmp_path: Path, name: str) -> None:
    check_two_processes(tmp_path, RUNS[name])


@two_cores
@pytest.mark.slow
@pytest.mark.parametrize("name", TRAINED)
def test_heads_trained_by_two_processes_are_those_of_one(tmp_path: Path, name: str) -> None:
    few = [option for option in FEW if option.partition("=")[0] not in {o.partition("=")[0] for o in TRAINED[name]}]
    few = [option for option in few if name not in ("content",) or not option.startswith("probe.")]
    check_two_processes(tmp_path, [*few, *TRAINED[name]])


@two_cores
@pytest.mark.slow
def test_unusable_images_end_all_processes_with_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    for number in range(12):
        (tmp_path / "photos" / f"{number}.jpg").write_text(f"no picture {number}")
    answer = command(
        tmp_path / "run", "trainer=ddp", "images=folder", f"images.root={tmp_path / 'photos'}", "images.limit=null"
    )
    assert answer.returncode == 1
    assert answer.stderr.count("to be an intact image") == 1
    assert "Traceback" not in answer.stderr


# ---------------------------------------------------------------- bad input


def composed(*overrides: str) -> DictConfig:
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        return compose("train", overrides=list(overrides))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["trainer.devices=999", "device=cpu"], "at most [0-9]+, the number of processor cores, but got 999"),
        (["trainer.devices=0"], "trainer.devices to be an integer of at least 1, but got 0"),
        (["trainer.devices=auto"], "trainer.devices to be an integer of at least 1, but got 'auto'"),
        (["device=cuda"], "device=cuda to have a CUDA GPU, but torch finds none"),
        (["device=cuda:1"], "device to be auto, cpu or cuda for several devices, but got 'cuda:1'"),
    ],
)
def test_devices_that_cannot_be_had_are_refused(overrides: list[str], message: str, monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match=message):
        check_devices(composed("trainer=ddp", *overrides), sweep=False)


def test_a_sweep_has_one_device_per_job() -> None:
    with pytest.raises(InputError, match=r"trainer\.devices to be 1 in a sweep, whose jobs have one device each, but got 2"):
        check_devices(composed("trainer=ddp"), sweep=True)
    check_devices(composed("trainer=ddp", "trainer.devices=1"), sweep=True)
    check_devices(composed(), sweep=True)


def test_the_number_of_devices_is_no_part_of_what_is_measured() -> None:
    assert config_hash(composed()) == config_hash(composed("trainer=ddp", "trainer.devices=3"))
