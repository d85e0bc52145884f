"""Sweeps: what a job that fails, is finished, or was killed leaves; what the sweep says at its end."""

import atexit
import json
import multiprocessing
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict

from datamodules.images.scenes import Scenes
from datamodules.latents import LatentCache, LatentStore
from sdprobe.backbones import FrozenSD
from sdprobe.backbones.precision import choose_device
from sdprobe.reports.run import Run
from sdprobe.runs import cli, configuration, sweep
from sdprobe.runs.cli import UserError
from sdprobe.runs.record import VERSION, config_hash
from sdprobe.runs.sweep import SweepSummary, jobs, named
from sdprobe.utilities import locks
from sdprobe.utilities.errors import InputError
from sdprobe.utilities.locks import NO_LOCK

ROOT = Path(__file__).parents[2]
SMALL = [
    "backbone=tiny", "images.size=128", "images.limit=12", "block=up_0", "probe.solver=closed_form", "twins=0", "logger=none",
    "device=cpu",
]  # fmt: skip


@pytest.fixture
def job(tmp_path: Path) -> Callable[..., DictConfig]:
    """The configuration of a job of a sweep below ``tmp_path``, as a launcher gives it to the task."""

    def make(*overrides: str, number: int = 0, mode: str = "MULTIRUN") -> DictConfig:
        given = [*SMALL, *overrides, f"hydra.mode={mode}", f"hydra.sweep.dir={tmp_path}"]
        with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
            cfg = compose("train", overrides=given, return_hydra_config=True)
        with open_dict(cfg):
            cfg.hydra.job.num = number
            cfg.hydra.runtime.output_dir = str(tmp_path / str(number))
        (tmp_path / str(number)).mkdir(exist_ok=True)
        HydraConfig.instance().set_config(cfg)
        task = cfg.copy()
        with open_dict(task):
            del task["hydra"]
        task.run_dir = str(tmp_path / str(number))
        return task

    yield make
    HydraConfig.instance().cfg = None


def command_line(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "train.py", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=300, **options
    )


# --- jobs --------------------------------------------------------------------------------------------------------------


def test_a_users_mistake_is_kept_as_its_sentence(job, tmp_path: Path) -> None:
    with sweep.recorded(job()):
        raise UserError("Expected a, but got b. Use c.")
    assert (tmp_path / "0" / "error.txt").read_text() == "Expected a, but got b. Use c."
    assert (tmp_path / "0" / ".hydra" / "overrides.yaml").is_file(), "the end of the sweep lists what the job was asked for"


def test_a_defect_is_kept_with_its_traceback_and_forgotten_by_the_next_try(job, tmp_path: Path) -> None:
    cfg = job()
    with sweep.recorded(cfg):
        raise ZeroDivisionError("planted")
    text = (tmp_path / "0" / "error.txt").read_text()
    assert text.startswith("ZeroDivisionError: planted\n")
    assert "test_sweeps.py" in text
    with sweep.recorded(cfg):
        pass
    assert not (tmp_path / "0" / "error.txt").exists()


def test_a_single_run_and_ctrl_c_are_not_swallowed(job) -> None:
    with pytest.raises(SystemExit), sweep.recorded(job()):
        raise SystemExit(130)
    with pytest.raises(ZeroDivisionError, match="planted"), sweep.recorded(job(mode="RUN")):
        raise ZeroDivisionError("planted")


def test_a_failure_that_cannot_be_written_down_reaches_hydra(job, tmp_path: Path, monkeypatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(sweep, "write_file", full)
    with pytest.raises(UserError, match="the real reason"), sweep.recorded(job()):
        raise UserError("the real reason")


def test_only_a_complete_result_of_the_same_settings_is_skipped(job, tmp_path: Path) -> None:
    cfg = job()
    stored = {"config_hash": config_hash(cfg), "version": VERSION, "complete": True, "twins": cfg.twins, "control": None}
    file = tmp_path / "0" / "metrics.json"
    assert not sweep.finished(cfg)
    file.write_text(json.dumps({"meta": stored}))
    assert sweep.finished(cfg)
    assert not sweep.finished(job("seed=1")) and not sweep.finished(job("twins=2"))
    for older in (stored | {"version": VERSION - 1}, {key: value for key, value in stored.items() if key != "version"}):
        file.write_text(json.dumps({"meta": older}))
        assert not sweep.finished(cfg), older
    file.write_text(json.dumps({"meta": stored | {"source": "a comment changed"}}))
    assert sweep.finished(cfg)
    assert not sweep.finished(job(mode="RUN")), "a single run into an old folder is asked for on purpose"
    cut_off = json.dumps({"meta": stored | {"files": {"maps.npz": "0" * 32}}})
    for damaged in (json.dumps({"meta": stored | {"complete": False}}), "{", "[]", '{"meta": 3}', cut_off):
        file.write_text(damaged)
        assert not sweep.finished(job()), damaged


def test_a_job_whose_folder_is_in_use_is_left_out_and_changes_nothing(job, tmp_path: Path, capsys, monkeypatch) -> None:
    (tmp_path / "0").mkdir()
    (tmp_path / "0" / "error.txt").write_text("of the job that runs")
    with locks.locked(tmp_path / "0"):
        with sweep.job(job()) as free:
            assert not free
        assert "is left out. Expected " in capsys.readouterr().err
        with pytest.raises(locks.FolderInUse), sweep.job(job(mode="RUN")):
            pass
        monkeypatch.setenv("LOCAL_RANK", "1")
        with sweep.job(job(mode="RUN")) as free:  # a worker of the run that holds the lock
            assert free
        assert (tmp_path / "0" / "error.txt").read_text() == "of the job that runs"
        assert sorted(path.name for path in (tmp_path / "0").iterdir()) == [".lock", "error.txt"]
    monkeypatch.delenv("LOCAL_RANK")
    with sweep.job(job()) as free:
        assert free and not (tmp_path / "0" / "error.txt").exists()


def test_a_second_sweep_into_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "sweep.json").write_text("of the first")
    config = OmegaConf.create({"hydra": {"sweep": {"dir": str(tmp_path)}}})
    with (
        locks.locked(tmp_path),
        pytest.raises(SystemExit, match=rf"^Expected {tmp_path} to be free, but process {os.getpid()} "),
    ):
        SweepSummary().on_multirun_start(config)
    assert (tmp_path / "sweep.json").read_text() == "of the first"


def test_a_killed_job_continues_but_not_with_other_settings_or_numbers(job, tmp_path: Path, monkeypatch, caplog) -> None:
    caplog.set_level("INFO")
    first = job()
    sweep.begin(first)
    assert first.resume is None
    (tmp_path / "0" / "checkpoints").mkdir()
    (tmp_path / "0" / "checkpoints" / "last.ckpt").touch()
    monkeypatch.setattr(sweep, "source_digest", lambda: "a comment changed")
    again, other = job(), job("seed=1")
    sweep.begin(again)
    assert again.resume == str(tmp_path / "0")
    assert "starts anew" not in caplog.text
    sweep.begin(other)
    assert other.resume is None
    monkeypatch.setattr(sweep, "VERSION", VERSION + 1)
    changed = job("seed=1")
    sweep.begin(changed)
    assert changed.resume is None, "a head is trained by one version from start to end"
    (tmp_path / "0" / "config_hash").write_text("c6c127558403c3dd f021875ea20af563")  # before there were versions
    before = job("seed=1")
    sweep.begin(before)
    assert before.resume is None
    assert caplog.text.count("This job was interrupted, but with other settings or an older version. It starts again.") == 3


def test_building_a_run_leaves_the_hash_of_its_settings_alone(job, tmp_path: Path) -> None:
    from sdprobe.runs.measurement import Measurement

    cfg = job()
    before = config_hash(cfg)
    Measurement(cfg)
    assert config_hash(cfg) == before


def test_progress_counts_jobs_and_estimates_the_rest(tmp_path: Path) -> None:
    assert sweep.time_left(tmp_path, 0.0) == ""
    now = time.time()
    plan = {"jobs": 8, "folders": [str(number) for number in range(8)], "started": now - 100}
    (tmp_path / "sweep.json").write_text(json.dumps(plan))
    # 0, 3 and 11 are from an earlier and longer try, in which 3 failed
    for number, age, left in (
        (0, 500, "metrics"),
        (1, 60, "metrics"),
        (2, 0, "error"),
        (3, 500, "error"),
        (11, 500, "metrics"),
    ):
        (tmp_path / str(number)).mkdir()
        file = tmp_path / str(number) / {"metrics": "metrics.json", "error": "error.txt"}[left]
        file.touch()
        os.utime(file, (now - age, now - age))
    # two of the seven that this try has to do took 100 s: five are left
    assert sweep.time_left(tmp_path, now) == ", about 4 min 10 s left"


# --- what is refused before a sweep begins -----------------------------------------------------------------------------


@pytest.mark.parametrize(("launcher", "extra"), [("ray", "ray"), ("slurm", "slurm"), ("submitit_local", "slurm")])
def test_a_missing_launcher_names_its_extra(launcher: str, extra: str, monkeypatch) -> None:
    monkeypatch.setattr(configuration, "_installed", lambda module: False)
    with pytest.raises(InputError, match=rf"^Expected hydra/launcher to be installed.*needs the extra '{extra}'.*pip install"):
        configuration.check(["-m", f"hydra/launcher={launcher}", "seed=1,2"])
    configuration.check([f"hydra/launcher={launcher}"])  # a single run needs none


def test_what_is_not_installed_is_noticed() -> None:
    assert configuration._installed("hydra.core")
    assert not configuration._installed("hydra_plugins.hydra_no_such_launcher")
    assert not configuration._installed("no_such_package.module")


def test_a_job_has_one_device() -> None:
    with pytest.raises(InputError, match=r"trainer\.devices to be 1 in a sweep, whose jobs have one device each, but got 2"):
        cli.prepare(["-m", "+trainer.devices=2", "seed=1,2"])
    with pytest.raises(InputError, match=r"trainer\.devices to be 1 in a sweep"):
        cli.prepare(["sweep=timesteps", "+trainer.devices=2"])
    cli.prepare(["-m", "+trainer.devices=1", "seed=1,2"])


def test_a_gpu_that_is_not_there_is_refused(monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert choose_device("cuda:1").index == 1
    with pytest.raises(InputError, match=r"device=cuda:2 to exist, but torch finds 2 GPUs\. Use device=cuda:1 or less"):
        choose_device("cuda:2")


@pytest.mark.parametrize(("preset", "count"), [("stages", 3), ("layers", 3), ("timesteps", 2), ("models", 8)])
def test_presets_are_sweeps_and_their_jobs_are_counted(preset: str, count: int) -> None:
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        cfg = compose("train", overrides=[f"sweep={preset}"], return_hydra_config=True)
    assert cfg.hydra.mode == RunMode.MULTIRUN
    with open_dict(cfg):
        cfg.hydra.overrides.task = [f"sweep={preset}"]
    assert jobs(cfg) == count
    cfg.hydra.overrides.task = [f"sweep={preset}", "probe=position", "seed=range(0,4)"]
    assert jobs(cfg) == 4 * count // (3 if count == 3 else 2), "the command line wins over the preset"


@pytest.mark.parametrize(
    ("task", "which", "command"),
    [
        ("timestep=50,1,10 seed=3", "These 3 jobs differ only in noise level: they", "seed=3 'timestep=[1,10,50]'"),
        (
            "noise_level=.2,.05 block=mid,up_1", "These 4 jobs differ only in noise level and layer: they",
            "'noise_level=[0.05,0.2]' 'block=[mid,up_1]'",
        ),
        (
            "timestep=10,50 cache_dir='/tmp/cache'", "These 2 jobs differ only in noise level: they",
            "cache_dir=/tmp/cache 'timestep=[10,50]'",  # as a user types it, without the quotes of Hydra's grammar
        ),
        (
            "probe=position,depth timestep=range(1,4)", "Jobs that differ only in noise level",
            "-m probe=position,depth 'timestep=[1,2,3]'",
        ),
        ("probe=position,depth timestep=[1,50]", "", ""),  # one run already
        ("block=mid,up_1 datamodule.concatenate=true", "", ""),  # one run would concatenate them
        ("block=mid,up_1 datamodule.inside=true", "", ""),  # one run would edit mid alone
        ("block=mid,up_1 probe=position,study", "", ""),  # up_1 says which tokens of mid are anomalous
        ("block=[mid,up_1],up_2", "", ""),  # a list of lists has no such form
        ("timestep=50,10-50", "", ""),  # a misspelt job fails by itself
        ("timestep=50,50", "", ""),  # they do not differ
        ("seed=1,2", "", ""),
    ],
)  # fmt: skip
def test_jobs_that_are_one_pass_are_named_with_the_command_of_one_run(task: str, which: str, command: str) -> None:
    cfg = OmegaConf.create({"hydra": {"sweeper": {}, "overrides": {"task": task.split()}}})
    sentence = f"{which} can be one run, with the same numbers in less time: python train.py {command}"
    assert sweep.one_pass(cfg) == (sentence if which else "")
    if which:  # the command is accepted, and there is nothing more to offer
        words = shlex.split(command)
        cfg.hydra.overrides.task = [word for word in words if word != "-m"]
        assert sweep.one_pass(cfg) == ""
        assert configuration.check(words) is not None


def test_the_command_of_one_run_keeps_the_launcher_of_the_jobs() -> None:
    cfg = OmegaConf.create({"hydra": {"sweeper": {}, "overrides": {"task": ["timestep=10,50", "hydra/launcher=slurm"]}}})
    assert sweep.one_pass(cfg).endswith("python train.py -m hydra/launcher=slurm 'timestep=[10,50]'")


def test_a_glob_has_as_many_jobs_as_choices() -> None:
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        cfg = compose("train", return_hydra_config=True)
        with open_dict(cfg):
            cfg.hydra.overrides.task = ["backbone=glob(sd*)", "timestep=10,50"]
        assert jobs(cfg) == 2 * len(list((ROOT / "configs" / "backbone").glob("sd*.yaml")))


# --- the end of a sweep ------------------------------------------------------------------------------------------------


def test_jobs_know_the_sweep_they_belong_to(job, tmp_path: Path) -> None:
    job(number=1)
    assert sweep.name() == "-".join(tmp_path.parts[-2:])
    job(mode="RUN")
    assert sweep.name() is None


def test_killed_and_unborn_jobs_are_named_too(tmp_path: Path, caplog) -> None:
    (tmp_path / "sweep.json").write_text('{"jobs": 4, "started": 0}')
    for number, (name, text) in enumerate([("error.txt", "Expected a.\n\nTraceback"), ("config_hash", "x")]):
        (tmp_path / str(number) / ".hydra").mkdir(parents=True)
        (tmp_path / str(number) / name).write_text(text)
        OmegaConf.save([f"seed={number}"], tmp_path / str(number) / ".hydra" / "overrides.yaml")
    assert named(tmp_path) == [
        "  0 (seed=0): Expected a.",
        f"  1 (seed=1): has no result; {NO_LOCK}",
        "  2 of 4 jobs never started",
    ]
    assert "4 of 4 jobs have no result" in caplog.text
    assert f"hydra.sweep.dir='{tmp_path}'" in caplog.text


def test_a_failed_job_makes_the_exit_code_tell(tmp_path: Path) -> None:
    cfg = OmegaConf.create({"hydra": {"sweep": {"dir": str(tmp_path)}, "sweeper": {}, "overrides": {"task": ["seed=1,2"]}}})
    summary = SweepSummary()
    summary.on_multirun_start(cfg)
    assert json.loads((tmp_path / "sweep.json").read_text())["jobs"] == 2
    with pytest.raises(SystemExit) as caught:
        summary.on_multirun_end(cfg)
    assert caught.value.code == 1


def sweep_of(folder: Path, task: str, **sweep: str) -> DictConfig:
    return OmegaConf.create({"hydra": {"sweep": {"dir": str(folder), **sweep}, "sweeper": {}, "overrides": {"task": [task]}}})


def result(folder: Path, **meta: object) -> None:
    folder.mkdir(exist_ok=True)
    known = {"complete": True, "layers": ["up_0"], "model": "tiny", "weights": "stored", "timestep": 10, "images": {"test": 2}}
    (folder / "metrics.json").write_text(json.dumps({"test/up_0/binned_accuracy/all": 0.25, "meta": known | meta}))


def test_jobs_of_an_earlier_longer_sweep_are_not_this_ones(tmp_path: Path) -> None:
    result(tmp_path / "0")
    result(tmp_path / "1")
    result(tmp_path / "2", timestep=500)
    (tmp_path / "3").mkdir()
    (tmp_path / "3" / "error.txt").write_text("old")
    cfg, summary = sweep_of(tmp_path, "seed=1,2"), SweepSummary()
    summary.on_multirun_start(cfg)
    assert json.loads((tmp_path / "sweep.json").read_text())["folders"] == ["0", "1"]
    summary.on_multirun_end(cfg)  # does not exit
    assert (tmp_path / "runs.csv").read_text().count("\n") == 3
    assert not list(tmp_path.glob("*.tmp"))


def test_a_sweep_whose_folders_are_named_otherwise_reads_them_all(tmp_path: Path) -> None:
    result(tmp_path / "seed=1")
    cfg, summary = sweep_of(tmp_path, "seed=1,2", subdir="${hydra.job.override_dirname}"), SweepSummary()
    summary.on_multirun_start(cfg)
    assert named(tmp_path) == ["  1 of 2 jobs never started"]
    atexit.unregister(summary._unsaid)


def test_failed_jobs_are_named_where_the_table_cannot_be_written(tmp_path: Path, caplog) -> None:
    result(tmp_path / "0")
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / "error.txt").write_text("Expected a.")
    (tmp_path / "runs.csv").mkdir()
    cfg, summary = sweep_of(tmp_path, "seed=1,2"), SweepSummary()
    summary.on_multirun_start(cfg)
    with pytest.raises(SystemExit) as caught:
        summary.on_multirun_end(cfg)
    assert caught.value.code == 1
    assert "IsADirectoryError" in caplog.text and "1 (no overrides): Expected a." in caplog.text


def test_a_sweep_from_the_command_line(job, command, tmp_path: Path, caplog) -> None:
    caplog.set_level("INFO")
    known = {"config_hash": config_hash(job()), "complete": True, "layers": ["up_0"], "model": "tiny"}
    known |= {"weights": "stored", "timestep": 50, "images": {"test": 2}, "probe": "position"}
    known |= {"twins": job().twins, "control": None, "version": VERSION}
    (tmp_path / "0" / "metrics.json").write_text(json.dumps({"test/up_0/binned_accuracy/all": 0.25, "meta": known}))
    options = ["block=up_0,up_9,mid", f"hydra.sweep.dir={tmp_path}", f"cache_dir={tmp_path / 'cache'}"]
    code, printed, said = command("-m", *(word for word in SMALL if word != "block=up_0"), *options)
    assert code == 1
    skipped, failed, done = (message for message in caplog.messages if re.match("Job . of 3", message))
    assert skipped == "Job 1 of 3 (block=up_0) is finished already; skipped."
    assert failed.startswith("Job 2 of 3 (block=up_9) failed. Expected block to name a layer")
    assert re.fullmatch(r"Job 3 of 3 \(block=mid\): done in .* s\.", done)
    assert "1 of 3 jobs have no result" in caplog.text
    assert "  1 (" in caplog.text and caplog.text.count("but got 'up_9'") == 2
    assert "━" not in said and "\x1b" not in said, "bars are for terminals"
    assert printed.count("2 runs with a result, 1 without") == 1 and "[HYDRA]" not in printed + said, "that of the sweep"
    assert Run.read(tmp_path / "0").metrics == {"test/up_0/binned_accuracy/all": 0.25}
    assert Run.read(tmp_path / "2").meta["complete"]
    assert (tmp_path / "runs.csv").read_text().count("\n") == 3
    assert not (tmp_path / "1" / "metrics.json").exists()


def test_of_jobs_in_other_processes_the_sweep_says_which_have_ended(tmp_path: Path, capsys) -> None:
    plan = {"jobs": 3, "swept": ["seed"], "folders": ["0", "1", "2"], "started": time.time() - 60}
    (tmp_path / "sweep.json").write_text(json.dumps(plan))
    watch = sweep.Watch(tmp_path)
    watch.look()
    assert capsys.readouterr().err == ""
    for number in range(3):
        (tmp_path / str(number) / ".hydra").mkdir(parents=True)
        (tmp_path / str(number) / ".hydra" / "overrides.yaml").write_text(f"[backbone=tiny, seed={number}]")
        (tmp_path / str(number) / "config_hash").touch()
    result(tmp_path / "1")
    result(tmp_path / "2", complete=False)  # it still measures the random-weights baseline
    (tmp_path / "0" / "error.txt").write_text("Expected a.")
    watch.look()
    watch.look()
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith(f"Job 1 of 3 (seed=0): failed, see {tmp_path / '0' / 'error.txt'}")
    assert re.fullmatch(r"Job 2 of 3 \(seed=1\): done in 0\.. s.*\.", second)


# --- several processes, and one that is killed ------------------------------------------------------------------------


def encode(root: Path, start: Any, answers: Any) -> None:
    torch.set_num_threads(1)
    backbone = FrozenSD.from_pretrained("tiny", device="cpu")
    store = LatentStore(Scenes(size=64, limit=6), backbone.encoder, LatentCache(root), seed=0, batch_size=2, num_workers=0)
    start.wait(60)
    usable = store.prepare(range(6))
    answers.put((usable, [store[index].flatten()[:4].tolist() for index in usable], store.cache.damaged))


def test_two_processes_encode_the_same_images_into_one_cache(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    start, answers = context.Barrier(2), context.Queue()
    workers = [context.Process(target=encode, args=(tmp_path, start, answers), daemon=True) for _ in range(2)]
    for worker in workers:
        worker.start()
    one, two = answers.get(timeout=120), answers.get(timeout=120)
    for worker in workers:
        worker.join(60)
    assert one == two
    assert one[0] == list(range(6)) and one[2] == 0
    assert len(list(tmp_path.rglob("*.safetensors"))) == 6
    assert not list(tmp_path.rglob("*.tmp"))


def test_a_disk_that_fills_up_stops_with_a_sentence_and_keeps_what_is_whole(tmp_path: Path, monkeypatch) -> None:
    backbone, images = FrozenSD.from_pretrained("tiny", device="cpu"), Scenes(size=64, limit=6)

    def store() -> LatentStore:
        return LatentStore(images, backbone.encoder, LatentCache(tmp_path), seed=0, batch_size=2, num_workers=0)

    real, calls = os.replace, []

    def filling(*arguments: Any) -> None:
        calls.append(arguments)
        if len(calls) > 3:
            raise OSError(28, "No space left on device")
        real(*arguments)

    monkeypatch.setattr("sdprobe.utilities.io.os.replace", filling)
    with pytest.raises(InputError, match=r"No space left on device.*cache_dir"):
        store().prepare(range(6))
    monkeypatch.undo()
    again = store()
    assert again.prepare(range(6)) == list(range(6))
    assert again.encoded == 3, "three were whole"
    assert not list(tmp_path.rglob("*.tmp"))


@pytest.mark.slow
def test_a_killed_sweep_completes_to_the_numbers_of_an_undisturbed_one(tmp_path: Path) -> None:
    slow = [option for option in SMALL if "solver" not in option]
    options = [*slow, "probe.min_steps=2000", "trainer.max_epochs=12", "seed=0,1", f"cache_dir={tmp_path / 'cache'}"]
    cut, whole = tmp_path / "cut", tmp_path / "whole"
    process = subprocess.Popen(
        [sys.executable, "train.py", "-m", *options, f"hydra.sweep.dir={cut}"],
        cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while not (cut / "1" / "checkpoints" / "last.ckpt").is_file() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert Run.read(cut / "0").meta["complete"]
    assert not (cut / "1" / "metrics.json").exists(), "the control: it was killed in the middle"
    again = command_line("-m", *options, f"hydra.sweep.dir={cut}")
    assert again.returncode == 0, again.stderr
    assert "is finished already; skipped" in again.stderr
    assert "continues from its last epoch" in again.stderr
    assert command_line("-m", *options, f"hydra.sweep.dir={whole}").returncode == 0
    for number in "01":
        assert Run.read(cut / number).metrics == Run.read(whole / number).metrics
