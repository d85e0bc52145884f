"""Jobs in other processes: a job whose process dies is started once more, then named, and no other job is lost."""

import atexit
import json
import os
import pickle
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hydra.core.utils import JobReturn
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from sdprobe.runs import launchers
from sdprobe.runs.sweep import SweepSummary
from sdprobe.utilities import locks
from sdprobe.utilities.errors import InputError
from tests.runs import fake_ray, forks


class Dying:
    """Workers in this process. ``deaths`` says for each job how many of its workers die."""

    def __init__(self, deaths: Sequence[int], room: int = 2) -> None:
        self.deaths, self.room = list(deaths), room
        self.alive: set[int] = set()
        self.runs: list[tuple[int, int]] = []
        self.started = 0

    def start(self) -> int:
        self.started += 1
        self.alive.add(self.started)
        return self.started

    def ready(self, worker: int) -> Any:
        return worker, None

    def run(self, worker: int, job: int) -> Any:
        self.runs.append((worker, job))
        return worker, job

    def first(self, handles: Sequence[Any]) -> Any:
        return handles[-1]  # the latest: results come in another order than jobs

    def result(self, handle: Any) -> Any:
        worker, job = handle
        if job is not None and self.deaths[job]:
            self.deaths[job] -= 1
            self.alive.remove(worker)
            raise launchers.Died
        return job if job is None else f"result {job}"

    def stop(self, worker: int) -> None:
        self.alive.remove(worker)


@given(st.lists(st.integers(0, 3), min_size=1, max_size=12))
def test_every_job_has_its_result_unless_two_of_its_processes_died(deaths: list[int]) -> None:
    workers, said = Dying(deaths), list[tuple[int, bool]]()
    results = launchers.hand_out(range(len(deaths)), workers, lambda job, again: said.append((job, again)))
    assert results == [None if count >= 2 else f"result {job}" for job, count in enumerate(deaths)]
    assert sorted(said) == sorted((job, again) for job, count in enumerate(deaths) for again in (True, False)[: min(count, 2)])
    assert not workers.alive, "no worker is left behind"
    assert workers.started <= len(deaths) + len(said), "a worker is replaced only where one died"


def test_a_worker_runs_one_job_after_another() -> None:
    workers = Dying([0] * 10)
    launchers.hand_out(range(10), workers, lambda job, again: None)
    assert len({worker for worker, _ in workers.runs}) == 1 and [job for _, job in workers.runs] == list(range(10))


def test_where_no_worker_can_start_the_sweep_ends() -> None:
    class Unborn(Dying):
        def result(self, handle: Any) -> Any:
            raise launchers.Died

    workers = Unborn([0] * 30)
    with pytest.raises(launchers.Died):
        launchers.hand_out(range(30), workers, lambda job, again: None)
    assert workers.started == 31, "the second death is the last"


def test_workers_that_cannot_start_end_no_job_of_others() -> None:
    class OneWorker(Dying):
        def first(self, handles: Sequence[Any]) -> Any:
            return max(handles, key=lambda handle: (handle == (1, None), handle[1] is None))  # starts first, and that of 1

        def result(self, handle: Any) -> Any:
            if handle[0] != 1:
                raise launchers.Died
            return super().result(handle)

    workers = OneWorker([0] * 5)
    assert launchers.hand_out(range(5), workers, lambda job, again: None) == [f"result {job}" for job in range(5)]
    assert {worker for worker, _ in workers.runs} == {1} and workers.started < 10


# --- submitit ----------------------------------------------------------------------------------------------------------


class Submitted:
    """A job of submitit with a fate: its results, or the error of its process."""

    def __init__(self, fate: Any, state: str) -> None:
        self.fate, self.state = fate, state

    def results(self) -> list[Any]:
        if isinstance(self.fate, Exception):
            raise self.fate
        return [self.fate]


def test_an_array_task_that_dies_is_submitted_once_more_and_a_cancelled_one_is_not(capsys: pytest.CaptureFixture[str]) -> None:
    died = RuntimeError("Job has not produced any output")
    fates = {"a": ["done"], "b": [died, "done later"], "c": [died, died, "too late"], "d": [died, "unwanted"]}

    class Executor:
        def submit(self, function: Any, overrides: list[str], key: str, number: int) -> Submitted:
            assert (function, key) == ("launcher", "hydra.sweep.dir")
            name = overrides[-1].removeprefix("seed=")
            return Submitted(fates[name].pop(0), "CANCELLED by 0" if name == "d" else "FAILED")

        def map_array(self, function: Any, *columns: Any) -> list[Submitted]:
            return [self.submit(function, *row) for row in zip(*columns, strict=True)]

    launchers.start_again(Executor)
    columns = zip(*[(["probe=depth", f"seed={name}"], "hydra.sweep.dir", 4 + i) for i, name in enumerate("abcd")], strict=True)
    a, b, c, d = (job.results()[0] for job in Executor().map_array("launcher", *columns))
    assert (a, b) == ("done", "done later")
    assert isinstance(c, JobReturn) and c.return_value is None, "Hydra goes on"
    assert isinstance(d, JobReturn) and fates["d"] == ["unwanted"]
    again, gone = "It is started once more.", "It died before, too, so the sweep goes on without it."
    said = capsys.readouterr().err.splitlines()
    assert said[:3] == [
        f"The process of job {n} (seed={s}) died. {w}" for n, s, w in ((6, "b", again), (7, "c", again), (7, "c", gone))
    ]
    assert said[3] == "Job 8 (seed=d) was cancelled. The sweep goes on without it."


# --- Ray ---------------------------------------------------------------------------------------------------------------


def test_the_callback_of_a_sweep_can_be_sent_to_other_processes(tmp_path: Path) -> None:
    node = {"launcher": {"_target_": "other"}, "sweep": {"dir": str(tmp_path)}, "sweeper": {}, "overrides": {"task": ["a=1,2"]}}
    summary = SweepSummary()
    summary.on_multirun_start(OmegaConf.create({"hydra": node}))
    assert type(pickle.loads(pickle.dumps(summary))) is SweepSummary
    summary._watch.stop()
    atexit.unregister(summary._unsaid)
    locks.release(tmp_path)


@pytest.mark.parametrize("error", [fake_ray.RayActorError, fake_ray.OutOfMemoryError])
def test_a_worker_whose_process_or_memory_ended_has_died_and_an_error_of_its_own_is_raised(error: type[Exception]) -> None:
    def result(raised: type[Exception]) -> Any:
        def get(handle: str) -> None:
            raise raised(handle)

        return launchers._Actors(SimpleNamespace(get=get, exceptions=fake_ray.exceptions), lambda: None).result("handle")

    with pytest.raises(launchers.Died):
        result(error)
    with pytest.raises(fake_ray.RayTaskError):
        result(fake_ray.RayTaskError)


def test_a_job_that_asks_for_more_than_there_is_is_refused() -> None:
    launchers._check_resources({"CPU": 2.0}, {"num_cpus": 2, "num_gpus": 0})
    with pytest.raises(
        InputError, match=r"ray\.remote\.num_cpus to be at most 2, what this machine has, but got 64\. Lower it"
    ):
        launchers._check_resources({"CPU": 2.0}, {"num_cpus": 64, "num_gpus": 0})
    with pytest.raises(InputError, match=r"num_gpus to be at most 0"):
        launchers._check_resources({"CPU": 2.0}, {"num_cpus": 1, "num_gpus": 0.5})


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A stand-in for Ray."""
    monkeypatch.setitem(sys.modules, "ray", fake_ray)
    monkeypatch.setattr("sdprobe.runs.configuration._installed", lambda module: True)
    fake_ray.state.update(room=1, init=None)
    monkeypatch.setattr("sdprobe.runs.run.draw", lambda finished, folder, form: [])
    return fake_ray


SMALL = [
    "backbone=tiny", "images.size=128", "images.limit=12", "block=up_0", "twins=1", "logger=none", "device=cpu",
    "probe.min_steps=120", "trainer.max_epochs=12",
]  # fmt: skip


@pytest.mark.slow
def test_a_worker_that_is_killed_in_the_middle_costs_nothing(ray: Any, quick: None, tmp_path: Path) -> None:
    options = ["-m", *SMALL, "seed=0,1,2", f"cache_dir={tmp_path / 'cache'}", "hydra/launcher=ray"]
    cut, whole, log = tmp_path / "cut", tmp_path / "whole", tmp_path / "log"
    process = forks.begin([*options, f"hydra.sweep.dir={cut}"], log)
    deadline = time.monotonic() + 120
    while not (cut / "1" / "checkpoints" / "last.ckpt").is_file():
        assert time.monotonic() < deadline
        time.sleep(0.005)
    os.kill(json.loads((cut / "1" / locks.NAME).read_text())["pid"], signal.SIGKILL)
    assert forks.ended(process) == 0
    assert "The process of job 2 (seed=1) died. It is started once more." in log.read_text()
    assert "continues from its last epoch" in (cut / "1" / "train.log").read_text()
    code, said = forks.command(*options, f"hydra.sweep.dir={whole}", log=log)
    assert code == 0 and "died" not in said
    for number in "012":
        assert forks.numbers(cut / number) == forks.numbers(whole / number)
        for name in ("maps.npz", "pseudovalues.npz"):
            one, other = (np.load(folder / number / name) for folder in (cut, whole))
            assert one.files == other.files and all(np.array_equal(one[key], other[key]) for key in one.files)
