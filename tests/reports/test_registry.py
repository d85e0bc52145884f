"""The registry: which runs there are, which is best, how two differ. Numbers equal pandas on the exported file."""

import fcntl
import io
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from sdprobe.metrics.gains import surely_worse
from sdprobe.reports.__main__ import COMMANDS, main
from sdprobe.reports.filters import settings_of, where
from sdprobe.reports.registry import entries as registry
from sdprobe.reports.registry.best import Metric, rank
from sdprobe.reports.registry.entries import find, one, read_run
from sdprobe.reports.registry.listing import main_numbers, row, show_list
from sdprobe.reports.registry.show import differences, show_run
from sdprobe.reports.run import Run
from sdprobe.reports.tracked import chosen
from sdprobe.utilities import locks
from sdprobe.utilities.errors import InputError
from sdprobe.utilities.io import write_json
from tests.reports.fabricated import KINDS, behind, fabricated

CONFIG: dict[str, Any] = {
    "block": ["conv_in", "mid", "up_1"], "timestep": 50, "seed": 0, "prompt": "", "twins": 1, "run_dir": "x",
    "cache_dir": ".cache",
    "backbone": {"_target_": "sdprobe.FrozenSD", "path": "model", "padding": "zeros", "device": "${device}"},
    "images": {"_target_": "Scenes", "size": 512, "limit": 160}, "mitigation": {}, "device": "auto",
    "datamodule": {"timestep": "${timestep}", "seed": "${seed}", "splits": "${protocol.splits}", "batch_size": 8},
    "probe": {"_target_": "P", "head": "classification", "solver": "${protocol.solver}", "learning_rate": 0.003},
    "protocol": {"splits": "default", "solver": "adam"},
}  # fmt: skip


def configure(folder: Path, overrides: tuple[str, ...] = (), **changes: Any) -> None:
    """Write ``.hydra/`` as a run does; ``changes``: dotted settings, with __ for the dot."""
    config = json.loads(json.dumps(CONFIG)) | {"run_dir": str(folder)}
    for name, value in changes.items():
        *sections, last = name.split("__")
        node = config
        for section in sections:
            node = node[section]
        node[last] = value
    choices = {"probe": "position", "backbone": "model", "images": "scenes", "protocol": "default", "experiment": None}
    hydra = {"hydra": {"runtime": {"version": "1.3.8", "choices": choices | {"hydra/launcher": "basic"}}, "verbose": False}}
    (folder / ".hydra").mkdir(parents=True, exist_ok=True)
    for name, content in {"config": config, "hydra": hydra, "overrides": [f"run_dir='{folder}'", *overrides]}.items():
        (folder / ".hydra" / f"{name}.yaml").write_text(yaml.dump(content, sort_keys=False))


def write(folder: Path, run: Run, units: dict[str, np.ndarray] | None = None, lines: bool = True) -> Path:
    """A run folder; ``lines``: metrics.json in the form in which runs write it."""
    folder.mkdir(parents=True, exist_ok=True)
    content = {**dict(sorted(run.metrics.items())), "meta": run.meta}
    (folder / "metrics.json").write_text(json.dumps(content, indent=1 if lines else None))
    if units:
        np.savez_compressed(folder / "pseudovalues.npz", **units)  # type: ignore[arg-type]  # its stub takes a table for its option
    return folder


def measured(means: dict[str, float], units: int = 32, spread: float = 0.02, seed: int = 0, **meta: Any) -> tuple[Run, Any]:
    """A position run whose layers have these accuracies, and its pseudo-values, which share photographs."""
    shared = np.random.default_rng(99).normal(0, 0.1, units)
    metrics, values = {}, {}
    for number, (layer, mean) in enumerate(means.items()):
        noise = np.random.default_rng((seed, number)).normal(0, spread, units)
        values[f"test/{layer}/binned_accuracy/all"] = mean + shared - shared.mean() + noise - noise.mean()
        metrics |= {f"test/{layer}/binned_accuracy/all": mean, f"chance/{layer}/binned_accuracy/all": 0.125}
        metrics |= {
            f"test/{layer}/binned_accuracy/all/ci_low": mean - 0.04,
            f"test/{layer}/binned_accuracy/all/ci_high": mean + 0.04,
        }
    known = {"test_fingerprint": "a" * 64, "dataset_fingerprint": "b" * 64, "seed": 0, "twins": 1} | meta
    return Run(metrics, fabricated("position", list(means), units, **known).meta, {}), values


def ask(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    main(list(arguments))
    return capsys.readouterr().out


@pytest.fixture(autouse=True)
def _wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")


# reading


@pytest.mark.parametrize("kind", KINDS)
def test_the_lines_that_are_read_have_the_numbers_of_the_whole_file(kind: str, tmp_path: Path) -> None:
    run = fabricated(kind, mitigations={})
    for form in (True, False):
        folder = write(tmp_path / str(form), run, lines=form)
        whole, part = read_run(folder), read_run(folder, main_numbers)
        assert whole.metrics == run.metrics and whole.meta == part.meta == run.meta
        name = main_numbers(run.meta)[0]
        assert {key: value for key, value in run.metrics.items() if f"/{name}" in key} == {
            key: value for key, value in part.metrics.items() if f"/{name}" in key
        }
    entries = find([tmp_path], [], main_numbers)
    assert len({json.dumps(row(entry) | {"folder": "", "name": "", "when": ""}) for entry in entries}) == 1


def test_ls_chooses_a_layer_as_the_whole_file_does(tmp_path: Path) -> None:
    run = fabricated("position", ["mid", "up_0"], mitigations={})
    # up_0 has the larger share of what chance leaves, .47 and .46, and the lower accuracy
    beside = {"val/mid": 0.53, "val/up_0": 0.50, "chance/mid": 0.125, "chance/up_0": 0.0625}
    numbers = run.metrics | {f"{place}/axis_accuracy/all": value for place, value in beside.items()}
    write(tmp_path / "a", Run(dict(sorted(numbers.items())), run.meta, {}))
    (entry,) = find([tmp_path], [], main_numbers)
    assert row(entry)["layer"] == chosen(read_run(entry.folder))[0] == "up_0"


def test_a_narrow_terminal_cuts_no_name(tmp_path: Path) -> None:
    for day in range(2):
        run = fabricated("position", ["mid", "up_0_res_0"], mitigations={})
        write(tmp_path / f"2026-01-31/12-00-0{day}-000000", run)
    write(tmp_path / "b", fabricated("correspondence", ["mid"]))
    console = Console(width=80, force_terminal=True, color_system=None, record=True, file=io.StringIO())
    show_list(find([tmp_path], [], main_numbers), console)
    text = console.export_text()
    assert "…" not in text and max(map(len, text.splitlines())) <= 80
    assert "2026-01-" in text and "finished" in text and "correspondence" in text


def test_a_run_that_is_asked_for_itself_is_named_and_folders_may_follow_options(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write(tmp_path / "a", fabricated("depth", mitigations={}))
    main(["best", "rmse", "--json", str(folder)])
    assert {cell["name"] for cell in json.loads(capsys.readouterr().out)} == {str(folder)}


def test_show_continues_a_wide_table_below_itself(tmp_path: Path) -> None:
    layers = ["down_2_res_0", "down_2_attn_0"]
    write(tmp_path / "a", fabricated("statistics", layers))
    console = Console(width=80, force_terminal=True, color_system=None, record=True, file=io.StringIO())
    show_run(one(str(tmp_path / "a")), console)
    lines = console.export_text().splitlines()
    assert sum(line.startswith(layers[0]) for line in lines) > 1 and max(map(len, lines)) <= 80


DAMAGED = {
    "": "unreadable", "[1]": "unreadable", "{": "unreadable", '{"meta": 3}': "lacks meta", "{}": "lacks meta",
    "[" * 100_000: "unreadable", '{"meta": {"complete": true}}': "lacks meta.layers", "\x00": "unreadable",
    '{"meta": {"complete": "yes"}}': "lacks meta.layers",
}  # fmt: skip


@pytest.mark.parametrize("text", DAMAGED, ids=lambda text: text[:12])
def test_a_damaged_or_foreign_file_is_a_state_with_a_reason(
    text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "good", fabricated("position"))
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "metrics.json").write_text(text)
    listed = json.loads(ask(capsys, "ls", str(tmp_path), "--json"))
    assert {each["name"]: each["state"] for each in listed} == {"good": "finished", "bad": "damaged"}
    assert DAMAGED[text] in next(each["reason"] for each in listed if each["name"] == "bad")
    assert "1 finished, 1 damaged" in ask(capsys, "ls", str(tmp_path)).replace("1 damaged, 1 finished", "1 finished, 1 damaged")


def test_values_that_are_no_numbers_are_left_out_and_texts_are_shown_as_text(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = fabricated("position", model="evil/[red]m\x1b[31m", prompt="[bold]")
    odd = {
        "test/mid/binned_accuracy/all": "words",
        "test/up_1/binned_accuracy/all": float("nan"),
        "nested": {"a": [1]},
        "x": True,
    }
    folder = write(tmp_path / "odd[red]\x1b[31m", Run(run.metrics | odd, run.meta, {}))
    assert not set(odd) & set(read_run(folder).metrics) and "test/conv_in/binned_accuracy/all" in read_run(folder).metrics
    for arguments in (["ls", str(tmp_path)], ["show", str(folder)], ["best", "binned_accuracy", str(tmp_path)]):
        shown = ask(capsys, *arguments)
        assert "\x1b" not in shown and "odd[red]\N{REPLACEMENT CHARACTER}[31m" in shown.replace("\n", "")


def test_a_huge_file_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write(tmp_path / "a", fabricated("position"))
    monkeypatch.setattr(registry, "LARGEST", 100)
    with pytest.raises(InputError, match="larger than"):
        read_run(folder)


# states


def lock(folder: Path, host: str = "") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / ".lock").write_text(json.dumps({"pid": 1, "host": host or socket.gethostname(), "started": 0}))
    return folder / ".lock"


def test_a_running_job_is_told_from_a_dead_one(tmp_path: Path) -> None:
    for name in ("running", "dead", "elsewhere", "unlocked"):
        configure(tmp_path / name)
    with open(lock(tmp_path / "running")) as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        lock(tmp_path / "dead")
        lock(tmp_path / "elsewhere", "another-host")
        states = {entry.name: entry.state for entry in find([tmp_path])}
    assert states == {"running": "running", "dead": "dead", "elsewhere": "no result", "unlocked": "no result"}
    assert locks.state(tmp_path / "running")[0] is False, "the lock went with its holder"
    assert "another-host" in locks.state(tmp_path / "elsewhere")[1]


def test_a_foreign_lock_file_says_nothing(tmp_path: Path) -> None:
    for text in ("", "[]", "{}", '{"host": 3, "started": "x"}'):
        (tmp_path / ".lock").write_text(text)
        assert locks.state(tmp_path)[0] is None
    (tmp_path / ".lock").unlink()
    os.mkfifo(tmp_path / ".lock")
    assert locks.state(tmp_path)[0] is None, "and does not wait for a writer"


def test_failed_and_incomplete_runs_say_why(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "partial", fabricated("position", complete=False))
    (tmp_path / "failed").mkdir()
    (tmp_path / "failed" / "error.txt").write_text("InputError: no [red]pictures\n\nTraceback")
    write(tmp_path / "good", fabricated("depth"))
    states = {entry.name: (entry.state, entry.reason) for entry in find([tmp_path])}
    assert states["good"] == ("finished", "") and states["failed"] == ("failed", "InputError: no [red]pictures")
    assert states["partial"][0] == "incomplete"
    shown = ask(capsys, "ls", str(tmp_path))
    assert shown.startswith("3 runs: ") and "failed: InputError: no [red]pictures" in shown


def test_the_totals_of_ls_are_the_folders(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number, kind in enumerate(KINDS * 2):
        write(tmp_path / f"{number % 3}" / f"{number}", fabricated(kind, timestep=number))
    (tmp_path / "0" / "0" / "checkpoints").mkdir()
    (tmp_path / "0" / "0" / "checkpoints" / "metrics.json").write_text("{}")
    shown = ask(capsys, "ls", str(tmp_path))
    assert shown.startswith(f"{2 * len(KINDS)} runs: {2 * len(KINDS)} finished")
    for kind in KINDS:
        assert len(json.loads(ask(capsys, "ls", str(tmp_path), f"probe={kind}", "--json"))) == 2


# filters


def test_filters_read_the_composed_configuration(tmp_path: Path) -> None:
    for name, changes in {"a": {}, "b": {"timestep": 261, "block": "stages"}, "c": {"probe__solver": "closed_form"}}.items():
        configure(tmp_path / name, **changes)
        write(tmp_path / name, fabricated("position", timestep=changes.get("timestep", 50), seed=0))
    entries = find([tmp_path])

    def names(*filters: str) -> str:
        return "".join(sorted(entry.name for entry in where(entries, filters, lambda entry: entry.settings)))

    assert names() == names("images.limit=160", "prompt=") == names("block=mid") == names("backbone=model") == "abc"
    assert names("timestep=261") == names("block=stages") == names("timestep=261,999") == "b"
    assert names("probe.solver=adam") == "ab", "also where a setting refers to another"
    assert names("probe.learning_rate=3e-3") == names("experiment=none") == names("block=[mid,up_1]") == "abc"
    with pytest.raises(InputError, match=r"'prob\.solvr'\. Use probe\.solver"):
        names("prob.solvr=adam")
    with pytest.raises(InputError, match=r"Use images\.limit"):
        names("limit=3")
    with pytest.raises(InputError, match=r"timestep=3, but got 3 runs without\. They have timestep: .*261"):
        names("timestep=3")
    with pytest.raises(InputError, match="none has all"):
        names("timestep=261", "probe.solver=closed_form")
    with pytest.raises(InputError, match="form setting=value"):
        names("probe")


@pytest.mark.parametrize("text", ["a: [", "- 1", "a: &a [*a]", "!!python/object:os.system x", "\x00", "x: " + "[" * 5000])
def test_a_damaged_configuration_leaves_what_is_recorded(text: str, tmp_path: Path) -> None:
    configure(tmp_path)
    (tmp_path / ".hydra" / "config.yaml").write_text(text)
    found = settings_of(tmp_path, fabricated("position", seed=3).meta)
    assert found["seed"] == ("3",) and "mid" in found["block"]


def test_aliases_in_a_configuration_do_not_grow(tmp_path: Path) -> None:
    configure(tmp_path)
    lines = ["a0: &a0 {x: 1}", *(f"a{i}: &a{i} {{p: *a{i - 1}, q: *a{i - 1}}}" for i in range(1, 40))]
    (tmp_path / ".hydra" / "config.yaml").write_text("s:\n" + "".join(f"  {line}\n" for line in lines))
    assert len(settings_of(tmp_path, {})) < 3000


# best


def test_best_names_those_that_cannot_be_told_from_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "a", *measured({"mid": 0.60, "up_1": 0.50}))
    write(tmp_path / "b", *measured({"mid": 0.599, "up_1": 0.56}, seed=1, timestep=261))
    run, values = measured({"mid": 0.58}, seed=2, test_fingerprint="c" * 64)
    run.meta["seed"] = 1
    write(tmp_path / "c", run, values)
    found = {
        (each["name"], each["layer"]): each
        for each in json.loads(ask(capsys, "best", "binned_accuracy", str(tmp_path), "--json"))
    }
    assert next(iter(found)) == ("a", "mid") and found["a", "mid"]["null"] == 0.125 and found["a", "mid"]["null_is"] == "chance"
    told = {key: each["told_from_best"] for key, each in found.items()}
    assert told == {
        ("a", "mid"): None, ("b", "mid"): False, ("c", "mid"): None, ("b", "up_1"): True, ("a", "up_1"): True,
    }  # fmt: skip
    shown = ask(capsys, "best", "binned_accuracy", str(tmp_path))
    assert shown.startswith("highest binned_accuracy of 5 layers in 3 runs: mid of a, .600 [.560, .640]")
    assert "Not told from it: mid of b; 2 of 3 compared are worse." in shown and "Not compared: 1" in shown
    lowest = json.loads(ask(capsys, "best", "binned_accuracy", str(tmp_path), "--lowest", "--json"))
    assert [each["value"] for each in lowest] == sorted(each["value"] for each in lowest)
    only = json.loads(ask(capsys, "best", "binned_accuracy", str(tmp_path), "block=up_1", "timestep=50,261", "--json"))
    assert {each["layer"] for each in only} == {"up_1"}


@settings(max_examples=20, deadline=None)
@given(means=st.lists(st.floats(0.2, 0.9), min_size=2, max_size=6), spread=st.floats(0.001, 0.2))
def test_what_is_not_read_would_have_been_called_worse(
    means: list[float], spread: float, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("runs")
    layers = [f"up_{number}" for number in range(len(means))]
    run, values = measured(dict(zip(layers, means, strict=True)), spread=spread)
    for layer in layers:  # intervals as metrics.json has them
        own = values[f"test/{layer}/binned_accuracy/all"]
        half = 2.04 * own.std(ddof=1) / np.sqrt(len(own))
        key = f"test/{layer}/binned_accuracy/all"
        run.metrics[f"{key}/ci_low"], run.metrics[f"{key}/ci_high"] = run.metrics[key] - half, run.metrics[key] + half
    write(folder / "a", run, values)
    cells = rank(find([folder]), Metric.parse("binned_accuracy"), [], True)
    best = values[f"test/{cells[0].layer}/binned_accuracy/all"]
    for cell in cells[1:]:
        assert cell.told == surely_worse(values[f"test/{cell.layer}/binned_accuracy/all"], best, len(layers) - 1)


@pytest.mark.parametrize(
    ("changes", "meta", "what", "name"),
    [
        ({"probe__solver": "closed_form"}, {}, "protocol", "probe.solver=adam"),
        ({"images__limit": 40}, {}, "data set", "images.limit=160"),
        ({"twins": 3}, {"twins": 3}, "baseline", "twins=1"),
        ({}, {"probe": "controls"}, "probe", "probe=position"),
        ({}, {"test_fingerprint": "e" * 64}, "data set", "test_fingerprint=aaaaaaaa"),
    ],
)
def test_what_must_not_be_mixed_is_refused_with_the_filter_that_resolves_it(
    changes: dict[str, Any], meta: dict[str, Any], what: str, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(3):
        run, values = measured({"mid": 0.5 + number / 100}, **(meta if number == 2 else {}))
        write(tmp_path / str(number), run, values)
        if what != "probe":
            configure(tmp_path / str(number), **(changes if number == 2 else {}))
    with pytest.raises(InputError, match=rf"Expected runs of one {what}, .*Add --where {name}, or") as refused:
        rank(find([tmp_path]), Metric.parse("binned_accuracy"), [], True)
    assert "(2 runs, such as" in str(refused.value) and "(1 run, such as 2)" in str(refused.value)
    assert len(json.loads(ask(capsys, "best", "binned_accuracy", str(tmp_path), "--where", name, "--json"))) == 2


def test_accuracies_with_other_chance_levels_are_not_ranked(tmp_path: Path) -> None:
    run = fabricated("position")
    run.metrics.update({"chance/mid/axis_accuracy/all": 0.125, "chance/up_1/axis_accuracy/all": 0.0625})
    write(tmp_path / "a", run)
    with pytest.raises(InputError, match="Expected one chance level of axis_accuracy"):
        rank(find([tmp_path]), Metric.parse("axis_accuracy"), [], True)


def test_a_metric_that_no_run_has_is_refused_with_those_there_are(tmp_path: Path) -> None:
    write(tmp_path / "a", fabricated("depth"))
    with pytest.raises(InputError, match=r"They have rmse, abs_rel, delta1, rmse_per_image\. Use rmse\."):
        rank(find([tmp_path]), Metric.parse("rmsee"), [], True)
    with pytest.raises(InputError, match="Expected a metric such as"):
        Metric.parse("test/a/b/c")
    write(tmp_path / "a", fabricated("depth", complete=False))
    with pytest.raises(InputError, match="none is finished"):
        rank(find([tmp_path]), Metric.parse("rmse"), [], True)


# show and diff

SETTINGS = {
    "timestep": (261, "timestep=261", {"timestep": 261}), "seed": (1, "seed=1", {"seed": 1}),
    "images__limit": (40, "images.limit=40", {"images": {"test": 6}}), "twins": (3, "twins=3", {"twins": 3}),
    "probe__head": ("regression", "probe.head=regression", {}),
    "protocol__solver": ("closed_form", "protocol.solver=closed_form", {}),
    "backbone__padding": ("reflect", "backbone.padding=reflect", {"padding": "reflect"}),
    "block": (["mid"], "block=[mid]", {}), "cache_dir": ("elsewhere", "cache_dir=elsewhere", {}),
    "prompt": ("a cat, asleep", "prompt='a cat, asleep'", {"prompt": "a cat, asleep"}),
    "mitigation": ({"leace": {"_target_": "Leace", "tolerance": 0.01}}, "mitigation=leace", {}),
}  # fmt: skip


@pytest.mark.parametrize("typed", [True, False], ids=["typed", "untyped"])
@pytest.mark.parametrize("name", SETTINGS)
def test_diff_names_the_only_setting_that_differs_first(
    name: str, typed: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    value, override, meta = SETTINGS[name]
    for folder, changes in {"a": {}, "b": {name: value}}.items():
        configure(tmp_path / folder, (override,) * bool(changes and typed), **changes)
        known = {"timestep": 50, "seed": 0, "padding": "zeros", "twins": 1, "prompt": ""} | (meta if changes else {})
        write(
            tmp_path / folder,
            fabricated("position", ["mid"] if changes and name == "block" else ["conv_in", "mid", "up_1"], **known),
        )
    found = differences(one(str(tmp_path / "a")), one(str(tmp_path / "b")))
    assert next(iter(found["set"])) == name.replace("__", ".")
    lines = ask(capsys, "diff", str(tmp_path / "a"), str(tmp_path / "b")).splitlines()
    assert lines[lines.index("Set differently:") + 1].startswith(f"  {name.replace('__', '.')}: ")


def test_diff_works_without_configurations(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "a", fabricated("position", precision="fp32"))
    write(tmp_path / "b", fabricated("position", precision="fp32", timestep=261))
    write(tmp_path / "c", fabricated("position", precision="bf16"))
    assert list(differences(one(str(tmp_path / "a")), one(str(tmp_path / "b")))["set"]) == ["timestep"]
    shown = ask(capsys, "diff", str(tmp_path / "a"), str(tmp_path / "c"))
    assert "No setting differs." in shown and "precision: fp32 → bf16" in shown


def test_differences_of_numbers_are_paired_where_the_units_are_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "a", *measured({"mid": 0.5}))
    write(tmp_path / "b", *measured({"mid": 0.6}, seed=1))
    write(tmp_path / "c", *measured({"mid": 0.6}, seed=1, test_fingerprint="e" * 64))
    shown = ask(capsys, "diff", str(tmp_path / "a"), str(tmp_path / "b"))
    values = [np.load(tmp_path / name / "pseudovalues.npz")["test/mid/binned_accuracy/all"] for name in "ab"]
    change = values[1] - values[0]
    half = 2.0395 * change.std(ddof=1) / np.sqrt(32)
    assert f"+.100 [{0.1 - half:.3f}, {0.1 + half:.3f}]".replace("0.", ".") in shown
    assert "No intervals" in ask(capsys, "diff", str(tmp_path / "a"), str(tmp_path / "c"))


@pytest.mark.parametrize("kind", KINDS)
def test_show_has_settings_before_numbers_and_json_has_all(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = behind(kind, "leace", mitigations={})
    configure(write(tmp_path / "a", run), ("timestep=50", "logger=none"))
    shown = ask(capsys, "show", str(tmp_path / "a"))
    assert shown.splitlines()[1] == "Set for this run: timestep=50, logger=none" and "mid__leace" in shown
    found = json.loads(ask(capsys, "show", str(tmp_path / "a"), "--json"))
    assert found["set"] == {"timestep": "50", "logger": "none"} and found["settings"]["images.limit"] == "160"
    for layer, numbers in found["numbers"].items():
        for metric, number in numbers.items():
            assert (number["value"], number["low"], number["high"]) == run.estimate("test", layer, metric)


def test_a_run_may_be_named_by_the_end_of_its_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("outputs/day/1", "outputs/other/1", "multirun/x/2"):
        write(tmp_path / name, fabricated("position"))
    assert one("2").folder == Path("multirun/x/2") and one("day/1").folder == Path("outputs/day/1")
    assert [entry.name for entry in find([])] == ["outputs/day/1", "outputs/other/1", "multirun/x/2"]
    assert {entry.name for entry in find([Path("outputs")])} == {"day/1", "other/1"}
    with pytest.raises(InputError, match=r"2 runs have this name: outputs/.*/1, outputs/.*/1\. Give its path"):
        one("1")
    with pytest.raises(InputError, match="there is none"):
        one("3")
    with pytest.raises(InputError, match="lists the runs below it"):
        one("outputs")


# export


def test_numbers_of_the_registry_equal_pandas_on_the_exported_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number, kind in enumerate(KINDS):
        run = behind(kind, "leace", timestep=number, seed=number, mitigations={})
        write(tmp_path / "runs" / kind, run)
    write(tmp_path / "runs" / "depth 2", fabricated("depth", timestep=7))
    write(tmp_path / "runs" / "partial", fabricated("depth", complete=False))
    out = ask(capsys, "export", str(tmp_path / "runs"), "-o", str(tmp_path / "numbers"))
    assert f"{len(KINDS) + 1} runs; 1 are not finished" in out
    table, text = pd.read_parquet(tmp_path / "numbers.parquet"), pd.read_csv(tmp_path / "numbers.csv")
    pd.testing.assert_frame_equal(table, text, check_dtype=False)
    assert (
        table["value"].notna().all() and len(table) == table.drop(columns=["value", "low", "high"]).drop_duplicates().shape[0]
    )
    own = table[(table.condition == "test") & (table.group == "all")]
    for entry in find([tmp_path / "runs"]):
        assert entry.run is not None
        numbers = [key for key in entry.run.metrics if key.count("/") == 3]
        assert len(numbers) == (table.run == entry.name).sum() * (entry.state == "finished") or entry.state == "incomplete"
    rmse = own[(own.metric == "rmse")].sort_values("value", kind="stable")
    ranked = rank(find([tmp_path / "runs"], ["probe=depth"]), Metric.parse("rmse"), [], False)
    assert [cell.value for cell in ranked] == rmse.value.tolist()
    for each in json.loads(ask(capsys, "ls", str(tmp_path / "runs"), "--json")):
        if each["state"] == "finished":
            same = own[
                (own.run == each["name"])
                & (own.metric == each["metric"])
                & (own.layer == each["layer"])
                & (own.mitigation == "none")
            ]
            assert same[["value", "low", "high"]].to_numpy()[0] == pytest.approx(
                [each["value"], *(np.nan if each[end] is None else each[end] for end in ("low", "high"))],
                rel=0,
                abs=0,
                nan_ok=True,
            )
    main(["export", str(tmp_path / "runs"), "probe=depth", "-o", str(tmp_path / "only.csv")])
    assert set(pd.read_csv(tmp_path / "only.csv").probe) == {"depth"} and not (tmp_path / "only.parquet").exists()


def test_words_in_meta_are_told_and_nothing_leaves_an_empty_cell(tmp_path: Path) -> None:
    write(tmp_path / "a", fabricated("position", seed=None, image_size=None))
    write(tmp_path / "b", fabricated("position", seed="many"))
    assert {entry.reason for entry in find([tmp_path])} == {
        "", "metrics.json is not that of a run: meta.seed is not an integer or null",
    }  # fmt: skip
    main(["export", str(tmp_path), "-o", str(tmp_path / "out.parquet")])
    assert pd.read_parquet(tmp_path / "out.parquet").seed.isna().all()


# the command


@pytest.mark.parametrize(
    "arguments", [["best", "binned_accuracy"], ["ls"], ["--help"], ["ls", "--help"], ["lss"]], ids=" ".join
)
def test_answers_import_neither_torch_nor_what_draws(arguments: list[str], tmp_path: Path) -> None:
    write(tmp_path / "outputs" / "a", *measured({"mid": 0.5, "up_1": 0.4}))
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "sdprobe.reports", *arguments], cwd=tmp_path, capture_output=True, text=True,
        check=False, env=os.environ | {"PYTHONPATH": str(Path(registry.__file__).parents[3])},
    )  # fmt: skip
    modules = {
        line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines() if line.startswith("import")
    }
    assert "sdprobe" in modules and not modules & {"torch", "matplotlib", "hydra", "lightning", "pandas", "pyarrow"}
    assert done.returncode == (1 if arguments == ["lss"] else 0), done.stderr[-300:]


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    shown = capsys.readouterr().out
    assert all(f"  {command} " in shown or f"reports {command}" in shown for command in COMMANDS)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["ls", "nowhere"], "but got 'nowhere'"), (["ls", "."], "Give the folder of your runs"), (["shw"], "Did you mean show"),
        (["export", ".", "-o", "x.txt"], "Give the folder of your runs"), (["show", "nowhere"], "Give its path"),
    ],
)  # fmt: skip
def test_mistakes_get_a_sentence(
    arguments: list[str], sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    captured = capsys.readouterr()
    assert ended.value.code == 1 and sentence in captured.err and not captured.out and captured.err.count("\n") == 1


def test_a_number_that_was_changed_is_not_ranked_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = fabricated("position")
    key = "test/mid/binned_accuracy/all"
    file = tmp_path / "a" / "metrics.json"
    file.parent.mkdir()
    write_json(file, {**dict(sorted(run.metrics.items())), "meta": run.meta})
    file.write_text(file.read_text().replace(f'"{key}": {json.dumps(run.metrics[key])}', f'"{key}": 0.999'))
    with pytest.raises(SystemExit):
        main(["best", "binned_accuracy", str(tmp_path), "block=mid"])
    assert "to be intact, but got a: metrics.json is unreadable" in capsys.readouterr().err


def test_runs_at_several_noise_levels_are_listed_ranked_and_compared_by_level(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    several = {"mid__t50": 0.5, "mid__t261": 0.7, "up_1__t50": 0.4, "up_1__t261": 0.6}
    for name, (run, units) in {"a": measured(several, timestep=[50, 261]), "b": measured({"mid": 0.55})}.items():
        configure(write(tmp_path / name, run, units), timestep=run.meta["timestep"])
    shown = ask(capsys, "ls", str(tmp_path))
    assert "mid, up_1" in shown and "4 layers" not in shown
    shown = ask(capsys, "best", "binned_accuracy", str(tmp_path), "timestep=50")
    assert "of 3 layers in 2 runs: mid of b" in shown and ".700" not in shown
    shown = ask(capsys, "diff", str(tmp_path / "a"), str(tmp_path / "b"))
    assert ".500" in shown and ".550" in shown and "No main number" not in shown
