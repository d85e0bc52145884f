"""Many runs together: which are read, which are named and skipped, the table, the figures."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sdprobe.reports.__main__ import main
from sdprobe.reports.collection import read_runs, show_runs, summarise
from sdprobe.reports.comparison import comparison_figures, means, rows, selected_layer, selection, write_tables
from sdprobe.reports.run import Run
from tests.reports.fabricated import KINDS, fabricated, printed

LAYERS = ["down_0", "mid", "up_1"]
METRICS = {"position": "binned_accuracy", "correspondence": "pck_ours_point_0.10", "depth": "rmse"}
VALUES = {"position": (0.2, 0.9, 0.6), "correspondence": (0.1, 0.2, 0.475), "depth": (1.0, 0.7, 0.5)}


def planted(
    folder: Path, probe: str, timestep: int = 50, model: str = "sd", layers: list[str] | None = None, **meta: object
) -> Path:
    """A run folder with known numbers, a little lower at higher noise."""
    folder.mkdir(parents=True)
    layers = layers or LAYERS
    metrics: dict[str, object] = {}
    for layer in layers:
        key = f"test/{layer}/{METRICS.get(probe, 'unknown')}/all"
        value = VALUES.get(probe, VALUES["position"])[LAYERS.index(layer)] * (1 - timestep / 1000)
        metrics |= {key: value, f"{key}/ci_low": value - 0.05, f"{key}/ci_high": value + 0.05}
    metrics["meta"] = {
        "layers": layers, "model": model, "weights": "stored", "timestep": timestep, "images": {"test": 7}, "complete": True,
        "probe": probe, "seed": 0,
    } | meta  # fmt: skip
    (folder / "metrics.json").write_text(json.dumps(metrics))
    return folder


@pytest.fixture
def several(tmp_path: Path) -> Path:
    for model in ("a/one", "b/two"):
        for timestep in (10, 261):
            for probe in ("position", "correspondence", "depth"):
                planted(tmp_path / f"{model[2:]}-{timestep}-{probe}", probe, timestep, model)
    return tmp_path


def test_unusable_runs_are_named_with_their_reason(tmp_path: Path) -> None:
    planted(tmp_path / "10", "position")
    planted(tmp_path / "2", "position")
    planted(tmp_path / "incomplete", "position", complete=False)
    failed = planted(tmp_path / "failed", "position")
    (failed / "error.txt").write_text("Expected a, but got b.\n\nTraceback")
    texts = {"cut": '{"a": 1', "list": "[]", "bare": "{}", "poor": '{"meta": {"complete": true}}'}
    for name, text in (texts | {"odd": '{"test/mid/rmse": 1, "meta": {}}'}).items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "metrics.json").write_text(text)
    for name, meta in {"3": {}, "maps": {"control": "trained"}}.items():  # only contrasts of controls need maps
        (planted(tmp_path / name, "position", **meta) / "maps.npz").write_bytes(b"PK\x03\x04 cut off")
    (tmp_path / "killed").mkdir()
    (tmp_path / "killed" / "config_hash").write_text("x")
    runs, skipped = read_runs(tmp_path)
    assert [run.folder.name for run in runs] == ["2", "3", "10"]
    assert {path.name: reason for path, reason in skipped.items()} == {
        "bare": "metrics.json is unreadable (no meta)",
        "cut": "metrics.json is unreadable (Expecting ',' delimiter: line 1 column 8 (char 7))",
        "failed": "Expected a, but got b.",
        "incomplete": "is incomplete",
        "killed": "has no result: it is still running or was killed",
        "list": "metrics.json is unreadable ('list' object is not a mapping)",
        "maps": "maps.npz is unreadable (File is not a zip file)",
        "odd": "metrics.json has keys that this version does not know",
        "poor": "metrics.json lacks meta.layers",
    }


def test_the_selected_layer_follows_the_criterion(several: Path) -> None:
    runs, _ = read_runs(several)
    assert {run.kind: selected_layer(run) for run in runs} == {"position": "mid", "correspondence": "up_1", "depth": "up_1"}


SETS: dict[str, list[Run]] = {
    "questions": [fabricated(kind, ["conv_in", "mid"]) for kind in KINDS],
    "units": [fabricated("position", ["mid"], units, seeds) for units, seeds in ((4, 1), (12, 1), (12, 3))],
    "conditions": [
        fabricated("position", ["mid"], padding="zeros", image_size=512, dataset_fingerprint="0123456789", **meta)
        for meta in (
            {}, {"mitigations": {"none": {"steps": ["Standardize", "Leace"]}}}, {"control": "rotated|1"},
            {"mitigations": {"none": {"steps": []}, "leace": {"steps": ["Leace"]}}, "seed": 7, "config_hash": "abc"},
        )
    ],
}  # fmt: skip


@pytest.mark.parametrize("name", SETS)
def test_tables_are_those_of_the_snapshots(name: str, tmp_path: Path, snapshot: Callable[[str, str], None]) -> None:
    runs = [replace(run, folder=Path("sweep", str(i))) for i, run in enumerate(SETS[name])]
    files = "\n".join(path.read_text() for path in write_tables(runs, tmp_path))
    snapshot(f"runs_{name}", printed(lambda console: show_runs(runs, console)) + files)


def test_the_legend_has_the_criteria(several: Path) -> None:
    legend = comparison_figures(read_runs(several)[0])["selected_layers"].legends[0]
    assert {text.get_text() for text in legend.get_texts()} == {
        "highest position accuracy", "highest PCK", "lowest depth RMSE",
    }  # fmt: skip


def test_a_chain_is_named_in_every_figure_even_where_all_runs_share_it() -> None:
    figure = comparison_figures([a_run(0.5, mitigations=LEACE)])["layers_position"]
    assert figure.axes[0].get_title(loc="left") == "sd, mitigation standardize → leace"


def test_seeds_are_averaged(tmp_path: Path) -> None:
    one = Run.read(planted(tmp_path / "a", "position"))
    two = Run({key: value + 0.02 for key, value in one.metrics.items()}, one.meta | {"seed": 1}, {})
    found = means([one, two])["sd", 50, "mid"]
    assert found == pytest.approx(one.metrics["test/mid/binned_accuracy/all"] + 0.01)


def test_every_standard_figure_is_drawn(several: Path) -> None:
    runs, _ = read_runs(several)
    figures = {path.stem for path in summarise(runs, several) if path.suffix == ".png"}
    over = {f"{kind}_{task}" for kind in ("layers", "timesteps", "layers_timesteps") for task in METRICS}
    assert figures == over | {"selected_layers", "position_against_correspondence", "position_against_depth"}
    for name in ("layers_depth", "layers_timesteps_correspondence", "selected_layers", "position_against_depth"):
        with Image.open(several / f"{name}.png") as picture:
            assert np.asarray(picture.convert("L")).std() > 5, name


def test_figures_show_the_numbers(several: Path) -> None:
    figures = comparison_figures(read_runs(several)[0])
    curve = figures["timesteps_correspondence"].axes[0].lines
    shown = {line.get_label(): list(line.get_ydata()) for line in curve}
    assert shown["up_1"] == pytest.approx([47.5 * 0.99, 47.5 * 0.739])
    grid = figures["layers_timesteps_correspondence"].axes[0].images[0].get_array()
    assert np.asarray(grid)[:, 2] == pytest.approx([47.5 * 0.99, 47.5 * 0.739])
    assert "12 layers and timesteps" in figures["position_against_correspondence"].get_suptitle()


def test_figures_follow_what_there_is(tmp_path: Path) -> None:
    alone = Run.read(planted(tmp_path / "alone", "position", layers=["mid"]))
    assert comparison_figures([alone]) == {}
    strange = Run.read(planted(tmp_path / "strange", "somethingelse"))
    assert comparison_figures([strange]) == {} and rows([strange]) == []
    wide = Run.read(planted(tmp_path / "wide", "position"))
    figure = comparison_figures([alone, wide])["layers_position"]
    assert [label.get_text() for label in figure.axes[-1].get_xticklabels()] == LAYERS, "execution order"


def test_the_command_collects_and_names_what_it_skips(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    planted(tmp_path / "one", "position", layers=["mid"])
    planted(tmp_path / "broken", "position", complete=False)
    main([str(tmp_path)])
    said = capsys.readouterr()
    assert "1 runs" in said.out
    assert "broken: is incomplete" in said.err
    assert (tmp_path / "runs.md").is_file()


def a_run(value: float, seed: int = 0, layers: tuple[str, ...] = ("down_0", "mid"), **meta: object) -> Run:
    """Position accuracy ``value`` at the first layer and 0.1 less at every next."""
    numbers = {f"test/{layer}/binned_accuracy/all": value - 0.1 * i for i, layer in enumerate(layers)}
    known = {"layers": list(layers), "model": "sd", "weights": "stored", "timestep": 50, "images": {"test": 7}, "seed": seed}
    return Run(numbers, known | {"probe": "position", "complete": True} | meta, {})


LEACE = {"none": {"steps": ["Standardize", "Leace"]}}


@pytest.mark.parametrize(
    ("one", "two", "said"),
    [
        ({}, {"mitigations": LEACE}, "mitigation standardize → leace"),
        ({"image_size": 512}, {"image_size": 768}, "size 768"),
        ({"noise": "independent"}, {"noise": "shared"}, "noise shared"),
        ({"padding": "zeros"}, {"padding": "reflect"}, "padding reflect"),
        ({}, {"control": "rotated"}, "control rotated"),
        ({}, {"prompt": "a cat"}, "prompt a cat"),
        ({"concatenated": ["mid", "up_1"]}, {"concatenated": ["up_1", "up_2"]}, "concatenated up_1 + up_2"),
        ({}, {"weights": "random-1"}, "random-1"),
        ({"precision": "bf16"}, {"precision": "fp32"}, "precision fp32"),
        ({"dataset_fingerprint": "a" * 64}, {"dataset_fingerprint": "b" * 64}, "images bbbbbbbb"),
        ({"train_steps": 0}, {"train_steps": 9}, "solver trained"),
        ({"settings_hash": "c" * 16}, {"settings_hash": "d" * 16}, "settings dddddddd"),
    ],
)
def test_only_seeds_are_averaged_and_other_runs_say_what_differs(one: dict, two: dict, said: str) -> None:
    found = means([a_run(0.5, **one), a_run(0.9, **two)])
    assert sorted(found[cell] for cell in found if cell[2] == "down_0") == pytest.approx([0.5, 0.9])
    assert found[f"sd, {said}", 50, "down_0"] == pytest.approx(0.9)


def test_two_sweeps_are_two_curves_whatever_their_points() -> None:
    points = [(settings, timestep) for settings in ("a", "b") for timestep in (10, 50, 261)]
    runs = [a_run(0.5, timestep=step, settings_hash=name, config_hash=f"{name}{step}") for name, step in points]
    assert {cell[0] for cell in means(runs)} == {"sd, settings a", "sd, settings b"}
    again = [a_run(0.5, timestep=step, settings_hash="a", config_hash=f"again{step}") for step in (10, 50, 261)]
    assert {cell[0] for cell in means([*runs[:3], *again])} == {"sd"}, "the same sweep again, into another folder"


def test_a_seed_may_draw_other_images() -> None:
    seeds = [a_run(0.5, 0, dataset_fingerprint="a", config_hash="1"), a_run(0.9, 1, dataset_fingerprint="b", config_hash="2")]
    assert means(seeds)["sd", 50, "down_0"] == pytest.approx(0.7)


def test_a_seed_measured_twice_counts_once() -> None:
    assert means([a_run(0.4), a_run(0.4), a_run(0.7, seed=1)])["sd", 50, "down_0"] == pytest.approx(0.55)


def test_a_figure_that_cannot_be_drawn_says_why(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    for name, changes in {"a": {}, "b": {"settings_hash": "other"}}.items():
        for timestep in (10, 50):
            planted(tmp_path / f"{name}{timestep}", "position", timestep, **changes)
    planted(tmp_path / "depth10", "depth", 10)
    planted(tmp_path / "depth50", "depth", 50)
    assert "position_against_depth" not in comparison_figures(read_runs(tmp_path)[0])
    assert "No figure of position against depth: no name occurs in both tasks (" in caplog.text


def test_networks_of_one_file_name_are_told_apart_by_their_paths() -> None:
    found = means([a_run(0.5, model="a/unet"), a_run(0.9, model="b/unet"), a_run(0.4, model="c/other")])
    assert {cell[0] for cell in found} == {"a/unet", "b/unet", "other"}


def test_the_selected_layer_is_that_of_the_mean_over_seeds() -> None:
    one, two = a_run(0.5, 0), a_run(0.5, 1)
    two.metrics["test/mid/binned_accuracy/all"] = 0.9  # 0.4 and 0.9 against 0.5 twice
    assert selection(means([one, two]), "position") == {("sd", 50): "mid"}
    two.metrics["test/mid/binned_accuracy/all"] = 0.55  # best of its own run, not on average
    assert selection(means([one, two]), "position") == {("sd", 50): "down_0"}
    figure = comparison_figures([one, two])["selected_layers"]
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == ["down_0"]


def test_variants_never_count_as_layers() -> None:
    run = a_run(0.3, layers=("mid", "up_1", "mid__leace"))
    run.metrics["test/mid__leace/binned_accuracy/all"] = 0.99
    assert selected_layer(run) == "mid" and [row["layer"] for row in rows([run])] == ["mid", "up_1"]
    assert {cell[2] for cell in means([run])} == {"mid", "up_1"}
    labels = comparison_figures([run])["layers_position"].axes[-1].get_xticklabels()
    assert [label.get_text() for label in labels] == ["mid", "up_1"]


def test_tasks_of_one_condition_meet_where_one_of_them_has_two() -> None:
    other = a_run(0.4, noise="shared", probe="depth")
    other.metrics.update({f"test/{layer}/rmse/all": 0.3 for layer in other.layers})
    both = [a_run(0.5, noise="shared"), a_run(0.7, noise="independent"), other]
    legend = comparison_figures(both)["position_against_depth"].axes[0].get_legend()
    assert [text.get_text() for text in legend.get_texts()] == ["sd, noise shared"]
