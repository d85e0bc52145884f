"""The main job, run as a user runs it, in miniature: what it writes, that it repeats, resumes and refuses."""

import json
import os
import pickletools
import re
import shutil
import signal
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning import Callback
from PIL import Image

from sdprobe.backbones import FrozenSD
from sdprobe.backbones.random_pipeline import random_pipeline
from sdprobe.backbones.weights import weight_hash
from sdprobe.metrics.intervals import two_way_interval
from sdprobe.reports.run import Run
from sdprobe.runs.cli import UserError
from sdprobe.runs.record import VERSION
from sdprobe.utilities.io import read_arrays

ROOT = Path(__file__).parents[2]
SMALL = [
    "block=up_0",
    "backbone=tiny",
    "images.size=128",
    "images.limit=30",
    "probe.min_steps=10",
    "trainer.max_epochs=3",
    "logger=none",
    "device=cpu",
]


PLAIN = ["backbone.precision=fp32", "twins=0"]


@pytest.fixture
def plain(launch, module_cache: Path) -> Run:
    """A run that others are compared with, made once; read only."""
    folder = module_cache / "plain"
    return Run.read(folder) if folder.exists() else launch(*PLAIN, folder=str(folder))


def test_a_run_leaves_everything_behind(launch, tmp_path: Path, capsys) -> None:
    run = launch("block=[mid,up_0]", figures=True)
    stored = json.loads((tmp_path / "run" / "metrics.json").read_text())
    meta = stored.pop("meta")
    assert run.metrics == stored
    for what in ("test", "chance", "shuffled_labels", "random_partition", "random_weights"):
        assert f"{what}/mid/axis_accuracy/all" in stored
    for kind in ("axis", "cell", "binned"):
        for group in ("all", "corner"):
            assert 0 <= stored[f"test/up_0/{kind}_accuracy/{group}"] <= 1
    assert all(isinstance(value, int | float) for value in stored.values()), "a flat object"
    needed = "command config_hash git_commit packages model unet_hash vae_hash dataset_fingerprint images seed"
    for key in f"{needed} hardware precision seconds passes layers timestep peak_memory_gib".split():
        assert key in meta, key
    assert meta["complete"] is True
    assert meta["images"] == {"fit": 12, "train": 10, "val": 2, "test": 6}
    for figure in ("accuracy_over_layers", "accuracy_over_grid", "predicted_against_true"):
        with Image.open(tmp_path / "run" / f"{figure}.png") as picture:
            assert np.asarray(picture.convert("L")).std() > 5, "a picture, not a blank sheet"
    printed = capsys.readouterr().out
    assert "mid" in printed
    assert "up_0" in printed
    assert f"{stored['test/mid/axis_accuracy/all']:.3f}".lstrip("0") in printed


def test_one_unet_pass_per_image_feeds_every_layer(launch) -> None:
    run = launch("block=all", "twins=0", "trainer.max_epochs=1")
    assert len(run.layers) == 46
    assert all(f"test/{layer}/binned_accuracy/all" in run.metrics for layer in run.layers)
    assert run.meta["passes"]["unet"] == 18, "10 train, 2 val, 6 test images, once each"


def test_seeds_matter(launch, plain: Run) -> None:
    assert launch("seed=1", *PLAIN).metrics != plain.metrics


@pytest.mark.parametrize("change", ["activation_budget=0", "activation_budget=0.00005", "datamodule.batch_size=3"])
def test_speed_settings_change_no_number(launch, plain: Run, change: str) -> None:
    one, other = plain.metrics, launch(*PLAIN, change).metrics
    assert one.keys() == other.keys()
    # kernels may round differently for another batch; a token near a tie may then fall to the other side
    assert all(abs(one[key] - other[key]) <= 0.01 for key in one if key.endswith("/all") and "loss" not in key)


def test_the_same_command_gives_the_same_numbers_and_measures_its_twin_once(launch, tmp_path: Path) -> None:
    first = launch("seed=5", folder="a")
    shutil.rmtree(tmp_path / "a" / "random_weights_0")
    again = launch("seed=5", folder="b")
    assert not (tmp_path / "b" / "random_weights_0").exists(), "taken from the cache"
    assert first.metrics == again.metrics
    assert first.value("random_weights", "up_0", "axis_accuracy") != first.value("test", "up_0", "axis_accuracy")


def test_several_twins_give_a_mean_and_from_three_on_an_interval_over_both(launch, tmp_path: Path, caplog) -> None:
    key = "random_weights/up_0/axis_accuracy/all"
    options = "probe.solver=closed_form", f"cache_dir={tmp_path / 'cache'}"
    caplog.set_level("INFO")
    alone = [launch(*options, f"twins={count}", folder=str(count)).metrics for count in (1, 2, 3)]
    assert [metrics[f"{key}/seeds"] for metrics in alone] == [1, 2, 3]
    tokens = alone[0]["test/up_0/axis_accuracy/all/n"]
    assert {metrics[f"{key}/n"] for metrics in alone} == {tokens}, "what it counts in the measured network"
    assert [f"{key}/ci_low" in metrics for metrics in alone] == [False, False, True]
    stored = sorted((tmp_path / "cache" / "twins").glob("*.npz"))
    assert len(stored) == 3, "those of fewer twins were taken from the cache"
    tables = [read_arrays(path)[f"pseudovalues/{key}"] for path in stored]
    mean = np.mean([table.mean() for table in tables])
    assert alone[2][key] == pytest.approx(mean)
    expected = two_way_interval(np.stack(tables))
    assert (alone[2][f"{key}/ci_low"], alone[2][f"{key}/ci_high"]) == pytest.approx(expected)
    assert expected[0] < mean < expected[1]
    stored[0].unlink()
    caplog.clear()
    assert launch(*options, "twins=3", folder="again").metrics == alone[2]
    lines = [message for message in caplog.messages if re.match(r"\d of \d: random weights", message)]
    assert ["taken from" in line for line in sorted(lines)].count(False) == 1, "what its photographs contribute was lost"


def test_the_backbone_is_untouched_and_stays_out_of_checkpoints(configure, tmp_path: Path) -> None:
    from sdprobe.runs.measurement import Measurement

    measurement = Measurement(configure())
    before = weight_hash(measurement.data.backbone.unet), weight_hash(measurement.data.backbone.encoder.vae)
    measurement.run()
    assert before == (weight_hash(measurement.data.backbone.unet), weight_hash(measurement.data.backbone.encoder.vae))
    file = tmp_path / "run" / "checkpoints" / "last.ckpt"
    checkpoint = torch.load(file, weights_only=True)
    assert {key.split(".")[0] for key in checkpoint["state_dict"]} <= {"heads", "accuracy"}
    assert file.stat().st_size < 200_000
    assert checkpoint["numbers_version"] == VERSION
    with zipfile.ZipFile(file) as archive:
        pickled = archive.read(next(name for name in archive.namelist() if name.endswith("/data.pkl")))
    classes = {str(argument).split(".")[0] for code, argument, _ in pickletools.genops(pickled) if code.name == "GLOBAL"}
    assert {name.split()[0] for name in classes} <= {"torch", "collections"}, "a move of modules would make it unreadable"
    assert not any("." in key.split("{")[0] for key in checkpoint["callbacks"]), "callbacks by class name alone"


class Interrupt(Callback):
    """Ctrl-C in the middle of the third epoch."""

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        if trainer.current_epoch == 2 and batch_idx == 7:
            raise KeyboardInterrupt


def test_an_interrupted_run_resumes_to_the_same_numbers(launch, interrupt, tmp_path: Path, caplog) -> None:
    options = ["trainer.max_epochs=5", "twins=0"]
    whole = launch(*options, folder="whole")
    part = interrupt(Interrupt(), *options)
    assert "val/up_0/axis_accuracy/all" in part.metrics
    file = tmp_path / "cut" / "checkpoints" / "last.ckpt"
    checkpoint = torch.load(file, weights_only=True)
    del checkpoint["config_hash"]  # as older versions wrote it, without a checksum
    torch.save(checkpoint, file)
    resumed = launch(*options, f"resume={part.folder}", folder="cut")
    assert sum(message.startswith(f"An older version wrote {file}.") for message in caplog.messages) == 1
    assert resumed.metrics == whole.metrics
    assert resumed.meta["train_steps"] == whole.meta["train_steps"]


def test_resuming_a_complete_run_does_nothing(launch, plain: Run) -> None:
    written = (plain.folder / "metrics.json").stat().st_mtime_ns
    launch(*PLAIN, f"resume={plain.folder}", folder=str(plain.folder))
    assert (plain.folder / "metrics.json").stat().st_mtime_ns == written


def test_the_published_protocol_runs_in_miniature(launch) -> None:
    run = launch("protocol=loos2025", "block=[down_3,mid,up_1]", "trainer.max_epochs=2", "twins=0")
    assert run.meta["noise"] == "shared"
    assert run.meta["vae_input"] == "unit"
    assert run.meta["posterior"] == "sample"
    assert run.meta["images"] == {"fit": 0, "train": 24, "val": 0, "test": 6}
    assert not any(key.startswith("val/") for key in run.metrics)


def test_regression_is_reported_with_r2(launch) -> None:
    run = launch("probe.head=regression", "twins=0")
    assert run.value("test", "up_0", "r2", end="ci_low") <= run.value("test", "up_0", "r2") <= 1


def test_the_inputs_of_the_unet_can_be_probed_too(launch) -> None:
    run = launch("block=[latent,noisy_latent,mid]", "twins=0")
    assert run.layers == ["latent", "noisy_latent", "mid"]


def test_csv_logs_beside_the_numbers(launch, tmp_path: Path) -> None:
    launch("logger=csv", "twins=0")
    assert "val/up_0/loss/all" in (tmp_path / "run" / "csv" / "metrics.csv").read_text()


# ---------------------------------------------------------------- bad input


def refused(launch: Callable[..., Run], *overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        launch(*overrides)
    return str(caught.value)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("timestep=abc", "Expected timestep to be an integer or a list of integers, but got 'abc'"),
        ("block=midd", "got 'midd'. The nearest name is 'mid'"),
        ("block=up_7", "got 'up_7', which it does not have"),
        ("timestep=1000", "timestep to be from 0 to 999, but got 1000"),
        ("timestep=-1", "but got -1"),
        ("images.size=100", "images.size to be a positive multiple of 64, but got 100. Use 64 or 128"),
        ("images.limit=4", "at least 10 distinct photographs to split, but got 4"),
        ("probe.solver=sgd", "probe.solver to be one of adam, closed_form, but got 'sgd'"),
        ("backbone.precision=fp8", "precision to be auto, fp32, bf16, fp16, but got 'fp8'"),
        ("backbone.noise=pink", "noise to be one of independent, shared, rolled, none, but got 'pink'"),
        ("device=tpu", "device to be one of auto, cpu, cuda, but got 'tpu'"),
        ("activation_budget=-1", "activation_budget to be at least 0, but got -1"),
    ],
)
def test_a_bad_value_gets_one_sentence(launch, tmp_path: Path, override: str, message: str) -> None:
    said = refused(launch, override)
    assert message in said
    assert "\n" not in said
    assert not (tmp_path / "run" / "metrics.json").exists()


def test_a_missing_root_is_asked_for(launch) -> None:
    assert "Expected images.root to be given" in refused(lambda *o: launch(*o, small=False), "images=folder", "logger=none")


def folder_run(launch: Callable[..., Run], root: Path, *overrides: str) -> Run:
    options = [
        "images=folder",
        f"images.root={root}",
        "images.size=128",
        "block=up_0",
        "logger=none",
        "twins=0",
        "trainer.max_epochs=1",
    ]
    return launch(*options, *overrides, small=False)


def test_missing_and_empty_folders_are_refused(launch, tmp_path: Path) -> None:
    said = refused(lambda *o: folder_run(launch, tmp_path / "nowhere", *o))
    assert "nowhere', which does not exist" in said
    (tmp_path / "empty").mkdir()
    assert "to hold images" in refused(lambda *o: folder_run(launch, tmp_path / "empty", *o))


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    """Twenty pictures of mixed sizes; two of them are damaged."""
    root = tmp_path / "photographs"
    root.mkdir()
    generator = np.random.default_rng(0)
    for i in range(20):
        size = (int(generator.integers(80, 200)), int(generator.integers(80, 200)))
        Image.fromarray(generator.integers(0, 255, (*size, 3), dtype=np.uint8)).save(root / f"{i:02}.jpg")
    data = (root / "05.jpg").read_bytes()
    (root / "05.jpg").write_bytes(data[: len(data) // 2])
    (root / "06.jpg").write_text("no picture")
    return root


def test_damaged_files_are_named_or_skipped(launch, tmp_path: Path, photographs: Path) -> None:
    # whichever split they fall into, both are met: every image is used where there is no mitigation split
    said = refused(lambda *o: folder_run(launch, photographs, "protocol=loos2025", *o))
    assert re.search(r"Expected .*0[56]\.jpg to be an intact image", said)
    assert "images.on_error=skip" in said
    run = folder_run(launch, photographs, "protocol=loos2025", "trainer.max_epochs=1", "images.on_error=skip")
    assert run.meta["skipped"] == ["05.jpg", "06.jpg"]
    assert sum(run.meta["images"].values()) == 18


def test_a_folder_without_a_unet_is_refused(launch, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    said = refused(launch, "backbone=local", f"backbone.path={tmp_path / 'model'}")
    assert "to be a diffusers folder with unet/config.json" in said


def test_pickled_weights_are_refused(launch, tmp_path: Path) -> None:
    random_pipeline("tiny").save_pretrained(tmp_path / "model", safe_serialization=False)
    said = refused(launch, "backbone=local", f"backbone.path={tmp_path / 'model'}")
    assert "only pickled weights" in said


def test_an_unreachable_hub_says_what_to_place_where(launch) -> None:
    said = refused(launch, "backbone=sd15")
    assert "hf download stable-diffusion-v1-5/stable-diffusion-v1-5" in said
    assert "backbone=local backbone.path=DIR" in said


def test_nan_activations_are_named(launch, tmp_path: Path) -> None:
    pipeline = random_pipeline("tiny")
    pipeline.unet.mid_block.resnets[1].conv2.bias.data[0] = torch.nan
    pipeline.save_pretrained(tmp_path / "model")
    said = refused(launch, "backbone=local", f"backbone.path={tmp_path / 'model'}", "backbone.precision=bf16")
    assert "layer up_0 has NaN or Inf for image scenes-0-" in said
    assert "precision=fp32" in said


def test_a_full_disk_is_one_sentence(launch, monkeypatch) -> None:
    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("sdprobe.utilities.io.os.replace", full)
    assert "but got 'No space left on device'" in refused(launch, "twins=0")


def test_the_command_line_exits_with_1_and_one_sentence(command, tmp_path: Path) -> None:
    code, _, said = command(*SMALL, "block=up_9", f"hydra.run.dir={tmp_path}")
    assert code == 1
    assert "but got 'up_9', which" in said
    assert "Traceback" not in said


@pytest.mark.slow
def test_a_failing_job_of_a_sweep_keeps_to_itself(tmp_path: Path) -> None:
    pipeline = random_pipeline("tiny")
    pipeline.unet.mid_block.resnets[1].conv2.bias.data[0] = torch.nan
    pipeline.save_pretrained(tmp_path / "model")
    local = ["backbone=local", f"backbone.path={tmp_path / 'model'}", "logger=wandb", "twins=0", "trainer.max_epochs=1"]
    answer = subprocess.run(
        [sys.executable, "train.py", "-m", *SMALL[1:], "block=up_0,down_2", *local, f"hydra.sweep.dir={tmp_path / 'sweep'}"],
        cwd=ROOT, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert answer.returncode == 1
    assert "layer up_0 has NaN or Inf" in answer.stderr, "the log, as for every job"
    assert not (tmp_path / "sweep" / "0" / "metrics.json").exists()
    assert Run.read(tmp_path / "sweep" / "1").layers == ["down_2"]
    for job in "01":
        assert list((tmp_path / "sweep" / job / "wandb").glob("offline-run-*/*.wandb")), "each job has a record of its own"


def test_an_earlier_result_does_not_outlive_a_failing_run(launch, tmp_path: Path) -> None:
    launch("twins=0")
    refused(launch, "twins=0", "block=nowhere")
    assert list((tmp_path / "run").glob("*.json")), "settings are checked before anything is removed"
    (tmp_path / "photos").mkdir()
    for number in range(12):
        (tmp_path / "photos" / f"{number}.jpg").write_text(f"no picture {number}")
    refused(launch, "twins=0", "images=folder", f"images.root={tmp_path / 'photos'}", "images.limit=null")
    assert not list((tmp_path / "run").glob("*.json"))


def test_an_earlier_checkpoint_is_not_taken_for_todays(launch) -> None:
    first = launch("twins=0", "trainer.max_epochs=1")
    again = launch("twins=0", "trainer.max_epochs=1", "timestep=900")
    assert again.meta["train_steps"] == first.meta["train_steps"] > 0
    assert first.metrics != again.metrics


@pytest.mark.slow
def test_another_architecture_gets_a_twin_of_its_own(launch, tmp_path: Path) -> None:
    values = []
    for act in ("silu", "relu"):
        pipeline = random_pipeline("tiny")
        config = dict(pipeline.unet.config) | {"act_fn": act}
        pipeline.unet = type(pipeline.unet).from_config(config)
        pipeline.save_pretrained(tmp_path / "model")
        run = launch("backbone=local", f"backbone.path={tmp_path / 'model'}", "probe.solver=closed_form")
        values.append(run.value("random_weights", "up_0", "axis_accuracy"))
    assert values[0] != values[1]


def test_a_cache_that_cannot_keep_a_twin_costs_no_result(launch, tmp_path: Path, caplog) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "twins").write_text("a file where a folder should be")
    run = launch(f"cache_dir={tmp_path / 'cache'}", "probe.solver=closed_form")
    assert run.meta["complete"]
    assert run.value("random_weights", "up_0", "axis_accuracy") is not None
    assert "cannot be stored" in caplog.text


@pytest.mark.slow
def test_ctrl_c_ends_cleanly(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "train.py", *SMALL, "trainer.max_epochs=1000", "probe.min_steps=1000000", f"hydra.run.dir={tmp_path}"],
        cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONUNBUFFERED": "1"},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    for _ in range(1200):
        if (tmp_path / "checkpoints" / "last.ckpt").is_file():
            break
        try:
            process.wait(0.1)
        except subprocess.TimeoutExpired:
            continue
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in said
    assert Run.read(tmp_path).meta["complete"] is False


def test_ctrl_c_while_encoding_leaves_a_record(launch, tmp_path: Path, monkeypatch) -> None:
    def interrupted(*arguments: object, **named: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("datamodules.latents.LatentStore._encode_all", interrupted)
    with pytest.raises(SystemExit) as caught:
        launch()
    assert caught.value.code == 130
    assert Run.read(tmp_path / "run").meta["complete"] is False


def test_the_python_interface_of_the_readme() -> None:
    sd = FrozenSD.from_pretrained("tiny", device="cpu")
    grids = sd.activations(torch.rand(2, 3, 128, 128), layers=["mid", "up_1"], timestep=50, seed=0)
    assert {layer: tuple(grid.shape) for layer, grid in grids.items()} == {"mid": (2, 64, 2, 2), "up_1": (2, 64, 8, 8)}
