"""``python -m tools.golden``: what it compares of run folders made by hand, and what it refuses."""

import csv
import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import safetensors.numpy
import yaml

from sdprobe.utilities.errors import InputError
from tools import golden

KEY = "test/mid/axis_accuracy/all"
METRICS = {KEY: 0.5, f"{KEY}/n": 64, "test/mid/loss/all": 2.0}
META = {"git_commit": "1" * 40, "seconds": {"train": 1.5}, "layers": ["mid"], "images": {"test": 2}, "labels": None}
PREDICTIONS = "predictions.parquet"
MAP = np.array([[0.25, np.nan], [0.5, 1.0]], dtype=np.float32)


def run_folder(folder: Path) -> Path:
    """A run as ``train.py`` leaves it: numbers, arrays, predictions, a saved mitigation, tables and a figure."""
    (folder / "mitigation").mkdir(parents=True)
    write_metrics(folder)
    np.savez(folder / "maps.npz", correct=MAP, counts=np.array([3, 4]))
    pq.write_table(pa.table({"cell": [1, 2], "hit": [True, False], "name": ["a", "b"]}), folder / PREDICTIONS)
    safetensors.numpy.save_file({"mid/mean": np.ones(3, np.float32)}, folder / "mitigation" / "mitigation.safetensors")
    (folder / "mitigation" / "mitigation.json").write_text(json.dumps({"layers": {"mid": [{"rank": 2}]}}))
    write_table(folder, "0.5")
    (folder / "runs.md").write_text("| run | value | config_hash |\n| /some/where | .50 | 0123456789abcdef |\n")
    (folder / "accuracy.png").write_bytes(b"pixels")
    return folder


def write_metrics(folder: Path, values: dict[str, Any] = METRICS, **meta: Any) -> None:
    (folder / "metrics.json").write_text(json.dumps({**values, "meta": META | meta}))


def write_table(folder: Path, value: str, config: str = "x") -> None:
    with (folder / "runs.csv").open("w", newline="") as file:
        csv.writer(file).writerows(
            [["run", "value", "note", "config_hash"], [folder, value, "", config], [folder, "", "b", config]]
        )


def told(before: Path, after: Path, *intended: dict[str, str]) -> list[str]:
    frozen, present, stale = golden.without_intended(intended, golden.values_of(before, "one"), golden.values_of(after, "one"))
    return golden.differences(frozen, present) + stale


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    return run_folder(tmp_path / "before"), run_folder(tmp_path / "after")


def test_times_commits_paths_and_pixels_are_no_difference(folders: tuple[Path, Path]) -> None:
    before, after = folders
    write_metrics(after, {**METRICS, KEY: 0.5 + 1e-13}, git_commit="2" * 40, seconds={"train": 9.0})
    write_table(after, "0.50", "y")
    (after / "runs.md").write_text("| run | value | config_hash |\n| /else | .50 | fedcba9876543210 |\n")
    (after / "accuracy.png").write_bytes(b"other pixels")
    assert told(before, after) == []
    counted = golden.counted(golden.values_of(before, "one"))
    assert counted == "13 keys, 8 arrays and columns, 8 files"


def lose(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


CHANGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "value": (lambda f: write_metrics(f, {**METRICS, KEY: 0.5 + 1e-9}), f"one/metrics.json:{KEY}: 0.5, now 0.500000001"),
    "not a number": (lambda f: write_metrics(f, {**METRICS, KEY: np.nan}), f"one/metrics.json:{KEY}: 0.5, now nan"),
    "missing key": (
        lambda f: write_metrics(f, {KEY: 0.5, f"{KEY}/n": 64}), "one/metrics.json:test/mid/loss/all: missing, was 2.0",
    ),
    "extra key": (lambda f: write_metrics(f, {**METRICS, "test/up_0": 1}), "one/metrics.json:test/up_0: new, 1"),
    "meta": (lambda f: write_metrics(f, images={"test": 3}), "one/metrics.json:meta/images/test: 2, now 3"),
    "meta's keys": (
        lambda f: write_metrics(f, seconds={"test": 1.5, "train": 1.5}),
        "one/metrics.json:meta/seconds/test: new, 'not compared'",
    ),
    "null": (lambda f: write_metrics(f, labels=0), "one/metrics.json:meta/labels: None, now 0"),
    "array": (
        lambda f: np.savez(f / "maps.npz", correct=np.nan_to_num(MAP), counts=np.array([3, 4])),
        "one/maps.npz:correct: 1 of 4 values, first at (0, 1): nan, now 0.0",
    ),
    "shape": (
        lambda f: np.savez(f / "maps.npz", correct=MAP[:1], counts=np.array([3, 4])),
        "one/maps.npz:correct: float32 (2, 2), now float32 (1, 2)",
    ),
    "type": (
        lambda f: np.savez(f / "maps.npz", correct=MAP, counts=np.array([3.0, 4.0])),
        "one/maps.npz:counts: int64 (2,), now float64 (2,)",
    ),
    "predictions": (
        lambda f: pq.write_table(pa.table({"cell": [1, 2], "hit": [True, False], "name": ["a", "c"]}), f / PREDICTIONS),
        f"one/{PREDICTIONS}:name: 1 of 2 values, first at (1,): b, now c",
    ),
    "mitigation": (
        lambda f: safetensors.numpy.save_file(
            {"mid/mean": np.nextafter(np.ones(3, np.float32), np.float32(2))}, f / "mitigation" / "mitigation.safetensors"
        ),
        "one/mitigation/mitigation.safetensors:mid/mean (float32): 3 of 3 values, first at (0,): 1065353216, now 1065353217",
    ),
    "table": (lambda f: write_table(f, "0.6"), "one/runs.csv:value: 1 of 2 values, first at (0,): 0.5, now 0.6"),
    "figure": (lose("accuracy.png"), "one/accuracy.png: missing, was 'a file'"),
}  # fmt: skip


@pytest.mark.parametrize("name", CHANGES)
def test_every_other_change_is_a_difference(folders: tuple[Path, Path], name: str) -> None:
    change, line = CHANGES[name]
    change(folders[1])
    assert told(*folders) == [line]


def test_intended_changes_are_none_and_say_when_they_do_not_happen(folders: tuple[Path, Path]) -> None:
    before, after = folders
    write_metrics(after, {KEY: 0.5, f"{KEY}/count": 64, "test/mid/loss/all": 3.0, "test/mid/share/all": 1.0})
    renamed = {"renamed": r"(.*)/n", "to": r"\1/count", "reason": "n counts photographs"}
    value = [{kind: ".*loss/all", "reason": "another loss"} for kind in ("added", "removed")]
    added = {"added": ".*/share/all", "reason": "a new metric"}
    assert told(before, after, renamed, *value, added) == []
    assert told(before, after, renamed, *value) == ["one/metrics.json:test/mid/share/all: new, 1.0"]
    assert told(before, after, *value, added) == [
        f"one/metrics.json:{KEY}/count: new, 64", f"one/metrics.json:{KEY}/n: missing, was 64",
    ]  # fmt: skip
    write_metrics(after)
    assert told(before, after, added) == [f"intended change without effect: {added}"]
    with pytest.raises(InputError, match="Expected 'renamed' and 'to', 'removed' or 'added', with a 'reason', but got"):
        told(before, after, {"removed": ".*"})


def repository(root: Path) -> str:
    """A repository with the plan alone; returns its commit."""
    (root / "tools").mkdir(parents=True)
    shutil.copy(golden.ROOT / golden.PLAN, root / golden.PLAN)
    (root / ".gitignore").write_text(".cache/\n")
    identity = ["-c", "user.name=n", "-c", "user.email=e"]
    for words in (["init", "--quiet"], ["add", "."], [*identity, "commit", "--quiet", "--no-verify", "--message=m"]):
        subprocess.run(["git", "-C", str(root), *words], check=True)
    return golden.git(root, "rev-parse", "HEAD")


def test_write_freezes_head_once_everything_is_committed(tmp_path: Path) -> None:
    head = repository(tmp_path)
    before = yaml.safe_load((tmp_path / golden.PLAN).read_text())
    assert golden.main(["write"], tmp_path) == 0
    after = yaml.safe_load((tmp_path / golden.PLAN).read_text())
    assert after == before | {"commit": head, "intended": []}
    with pytest.raises(InputError, match=r"Expected tracked files to be those of HEAD, but got 'M tools/golden.yaml'"):
        golden.main(["write"], tmp_path)


def test_what_cannot_be_compared_gets_one_sentence(tmp_path: Path) -> None:
    repository(tmp_path)
    with pytest.raises(InputError, match=r"Expected runs among .*, but got 'positions'\. Correct the name\."):
        golden.main(["compare", "positions"], tmp_path)
    with pytest.raises(
        InputError, match="to be a git checkout with its history, but git worktree says 'fatal: invalid reference"
    ):
        golden.main(["compare", "position"], tmp_path)
    assert not list((tmp_path / golden.CACHE).glob("checkout-*"))
    shutil.rmtree(tmp_path / ".git")
    with pytest.raises(InputError, match="to be a git checkout with its history, but git rev-parse says 'fatal: not a git"):
        golden.main(["compare"], tmp_path)


def test_runs_are_those_a_user_can_type() -> None:
    plan = yaml.safe_load((golden.ROOT / golden.PLAN).read_text())
    runs = golden.chosen(plan, [])
    assert runs["demo_position"][0] == "backbone=demo" and "images.size=128" not in runs["demo_position"]
    assert "prompt='a photo of a {category}'" in runs["correspondence_zero_shot"]
    text = " ".join(word for words in runs.values() for word in words)
    for group in ("probe", "experiment"):
        for choice in (golden.ROOT / "configs" / group).glob("*.yaml"):
            by_experiment = choice.stem in ("controls", "study")
            assert f"{group}={choice.stem} " in text or by_experiment, f"no run has {group}={choice.stem}"
