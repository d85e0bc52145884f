"""Laws of the comparison of runs: who may share a figure, what curves are called, what is drawn and what never is."""

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.axes import Axes
from matplotlib.colors import to_hex

from sdprobe.backbones import FrozenSD
from sdprobe.reports import style
from sdprobe.reports.comparison import (
    MOST,
    OUTPUTS,
    comparison_figures,
    groups_of,
    in_order,
    selected_layer,
)
from sdprobe.reports.grouping import comparable, curves, measurement, named
from sdprobe.reports.overview import overview
from sdprobe.reports.run import Run
from sdprobe.reports.tasks import TASKS
from tests.reports.fabricated import KINDS, configured, fabricated, printed

NETWORK = FrozenSD.from_pretrained("tiny", precision="fp32", device="cpu").unet.resolve("all")
PLAIN: dict[str, Any] = {"seed": 0, "image_size": 512, "timestep": 50, "model": "sd"}


def run_in(folder: Path, kind: str = "position", layers: Sequence[str] = ("mid", "up_1"), **changes: Any) -> Run:
    """A run in a folder; changes with ``__`` or of :func:`configured` are settings, the others are in meta."""
    own = {name: changes.pop(name) for name in list(changes) if "__" in name or name in ("images", "limit", "splits")}
    run = fabricated(kind, list(layers), **PLAIN | changes)
    return replace(run, folder=configured(folder, **own))


def drawn_day(folder: Path, seed: int) -> list[Run]:
    """Runs of one day, drawn at random."""
    pick = random.Random(seed)
    runs = []
    for number in range(pick.randint(5, 15)):
        layers = [layer for layer in NETWORK if pick.random() < pick.choice((0.02, 0.1, 0.5))] or ["mid"]
        changes: dict[str, Any] = {
            "timestep": pick.choice((10, 50, 100, 261, 400, 700)), "seed": pick.randint(0, 2),
            "image_size": pick.choice((512, 512, 768)),
            "model": pick.choice(("sd", "a/very/long/path/to/a/network", "b/tiny")),
            "images": pick.choice(("scenes", "texture")),
            "limit": pick.choice((160, None)), "splits": pick.choice(("default", "default", "loos2025")),
            "probe__solver": pick.choice(("adam", "closed_form")), "padding": pick.choice(("zeros", "reflect")),
            "mitigations": pick.choice(({}, {"none": {"steps": ["Leace"]}})),
        }  # fmt: skip
        runs.append(run_in(folder / f"run{number:02}", pick.choice(KINDS), layers, **changes))
    return runs


def lines(axis: Axes) -> list[tuple[str, np.ndarray]]:
    """(label, y values) of what is drawn as a connected line, without the chance level."""
    connected = [line for line in axis.get_lines() if line.get_linestyle() != "None"]
    found = [(str(line.get_label()), np.asarray(line.get_ydata(), dtype=float)) for line in connected]
    return [(label, values) for label, values in found if label != "chance"]


@pytest.mark.parametrize("seed", range(3))
def test_laws_of_figures_and_tables_of_a_mixed_day(seed: int, tmp_path: Path) -> None:
    runs = drawn_day(tmp_path, seed)
    groups = groups_of(runs)
    drawn = comparison_figures(groups)
    for name, figure in drawn.figures.items():
        assert max(figure.get_size_inches()) * style.DPI <= style.PIXELS, name
        assert str(tmp_path) not in figure.get_suptitle() and "/" not in figure.get_suptitle().replace("a/very", ""), name
        axis = figure.axes[0]
        labels = [label for label in axis.get_legend_handles_labels()[1] if label != "chance"]
        assert len(labels) == len(set(labels)) <= MOST, name
        if name.startswith(("layers_", "selected")):
            ticks = [tick.get_text() for tick in axis.get_xticklabels()]
            assert ticks == [layer for layer in NETWORK if layer in ticks], "execution order"
        if name.startswith(("layers_", "timesteps_")):
            assert all(len(values) >= style.FEW and np.isfinite(values).all() for _, values in lines(axis)), name
    text = printed(overview(groups, runs, {}, tmp_path), 80)
    assert max(map(len, text.splitlines())) <= 80
    for run in runs:
        assert sum(line.split()[0] == run.folder.name for line in text.splitlines() if line.strip()) == 1, run.folder.name


def test_groups_never_mix_images_sizes_or_splits(tmp_path: Path) -> None:
    runs = drawn_day(tmp_path, 9)
    for group in groups_of(runs):
        assert len({str(measurement(run)) for run in group.runs}) == 1
        assert len({TASKS[run.kind].name for run in group.runs}) == 1
    titles = [(group.task.name, group.title) for group in groups_of(runs)]
    assert len(titles) == len(set(titles)), "each group has its own name"
    assert sorted(id(run) for group in groups_of(runs) for run in group.runs) == sorted(map(id, runs))


@settings(max_examples=30, deadline=None)
@given(st.lists(st.fixed_dictionaries({
    "timestep": st.sampled_from((10, 50)), "model": st.sampled_from(("a", "b")),
    "noise": st.sampled_from(("independent", "none")),
    "train_steps": st.sampled_from((0, 9)), "prompt": st.sampled_from(("", "a cat")),
}), min_size=1, max_size=6))  # fmt: skip
def test_a_label_has_exactly_the_settings_that_differ(metas: list[dict[str, Any]]) -> None:
    runs = [fabricated("position", ["mid"], **meta) for meta in metas]
    values = {name: {meta[name] for meta in metas} for name in metas[0]}
    for condition in curves(runs):
        for run in condition.runs:
            said = {"timestep": "timestep {}", "model": "{}", "noise": "noise {}", "prompt": "prompt {}"}
            expected = [text.format(run.meta[name]) for name, text in said.items() if len(values[name]) > 1 and run.meta[name]]
            expected += [["closed_form", "adam"][run.meta["train_steps"] > 0]] * (len(values["train_steps"]) > 1)
            assert sorted(condition.label.split(", ")) == sorted(expected or [run.meta["model"]])
    assert sorted(id(run) for condition in curves(runs) for run in condition.runs) == sorted(map(id, runs))


@pytest.mark.parametrize(
    ("one", "two", "said"),
    [
        ({}, {"mitigations": {"none": {"steps": ["Standardize", "Leace"]}}}, "mitigation standardize → leace"),
        ({"padding": "zeros"}, {"padding": "reflect"}, "padding reflect"),
        ({"concatenated": ["mid", "up_1"]}, {"concatenated": ["up_1", "up_2"]}, "concatenated up_1 + up_2"),
        ({}, {"weights": "random-1"}, "random weights 1"),
        ({"precision": "bf16"}, {"precision": "fp32"}, "precision fp32"),
        ({"probe__learning_rate": 0.01}, {"probe__learning_rate": 0.1}, "learning rate 0.1"),
        ({"mitigation__leace__rank": 2}, {"mitigation__leace__rank": 4}, "leace rank 4"),
        ({"datamodule__batch_size": 2}, {"datamodule__batch_size": 4}, None),
        ({"images__seed": 0}, {"images__seed": 1, "seed": 1}, None),
    ],
)
def test_only_repetitions_are_averaged_and_others_say_what_differs(
    one: dict[str, Any], two: dict[str, Any], said: str | None, tmp_path: Path
) -> None:
    runs = [run_in(tmp_path / name, **changes) for name, changes in {"a": one, "b": two}.items()]
    assert len(comparable(runs)) == 1
    found = curves(runs)
    if said is None:
        assert [len(each.runs) for each in found] == [2]
    else:
        [condition] = [each for each in found if each.runs[0] is runs[1]]
        assert len(found) == 2 and condition.label == said
        assert condition.filter(runs) or "precision" in said or "concatenated" in said


@pytest.mark.parametrize(
    ("changes", "title"),
    [
        ({"images": "texture"}, "texture, 160 images"),
        ({"limit": 40}, "scenes, 40 images"),
        ({"splits": "loos2025"}, "scenes, 160 images, splits loos2025"),
        ({"image_size": 768}, "scenes, 160 images, size 768"),
        ({"images": "folder", "images__root": "/data/holidays"}, "holidays, 160 images"),
        ({"control": "rolled"}, "controls, 160 images"),
    ],
)
def test_runs_of_other_images_sizes_or_splits_are_groups_with_a_name(
    changes: dict[str, Any], title: str, tmp_path: Path
) -> None:
    runs = [run_in(tmp_path / "a"), run_in(tmp_path / "b", **changes)]
    names = list(comparable(runs))
    assert names[0].startswith("scenes, 160 images") and names[1] == title


def test_files_that_changed_in_a_folder_are_another_group(tmp_path: Path) -> None:
    folder = {"images": "folder", "images__root": "/data/holidays"}
    runs = [run_in(tmp_path / digest, test_fingerprint=digest * 20, **folder) for digest in "ab"]
    assert list(comparable(runs)) == ["holidays, 160 images, files aaaaaaaa", "holidays, 160 images, files bbbbbbbb"]


def test_runs_of_unknown_settings_are_told_apart_by_digests() -> None:
    runs = [fabricated("position", ["mid"], settings_hash=text * 16, **PLAIN) for text in "cd"]
    assert [each.label for each in curves(runs)] == ["settings cccccccc", "settings dddddddd"]
    other = [fabricated("position", ["mid"], dataset_fingerprint=text * 64) for text in "ab"]
    assert list(comparable(other)) == ["images aaaaaaaa", "images bbbbbbbb"]


def test_networks_of_one_name_are_told_apart_by_their_paths() -> None:
    runs = [fabricated("position", ["mid"], model=model) for model in ("a/unet", "b/unet", "c/other")]
    assert [each.label for each in curves(runs)] == ["a/unet", "b/unet", "other"]


def with_value(run: Run, value: float, layer: str = "mid") -> Run:
    key = f"test/{layer}/binned_accuracy/all"
    run.metrics.update({key: value, f"{key}/ci_low": value - 0.1, f"{key}/ci_high": value + 0.2})
    return run


def test_seeds_are_averaged_with_the_ends_of_their_intervals_and_a_seed_counts_once(tmp_path: Path) -> None:
    values = {"a": (0.5, 0), "b": (0.7, 1), "c": (0.9, 1)}
    runs = [with_value(run_in(tmp_path / name, seed=seed), value) for name, (value, seed) in values.items()]
    [group] = groups_of(runs)
    found = group.points(runs)["mid"]
    assert (found.value, found.low, found.high) == pytest.approx((0.65, 0.4, 1.0)), "the ends of the intervals of both seeds"
    alone = group.points(runs[:1])["mid"]
    assert (alone.value, alone.low, alone.high) == pytest.approx((0.5, 0.4, 0.7)), "the interval of the run"


def test_layers_follow_the_execution_of_the_network() -> None:
    shuffled = random.Random(0).sample(NETWORK, len(NETWORK))
    assert in_order(shuffled) == list(NETWORK)
    assert in_order(["mine", "conv_out", "noisy_latent", "latent"]) == ["latent", "noisy_latent", "conv_out", "mine"]


def test_outputs_are_never_selected_and_validation_images_choose(tmp_path: Path) -> None:
    run = run_in(tmp_path / "a", layers=["mid", "up_1", "conv_out"])
    for layer, value in {"mid": 0.4, "up_1": 0.5, "conv_out": 0.9}.items():
        with_value(run, value, layer)
    assert selected_layer(run) == ("up_1", "test")
    run.metrics.update(
        {f"val/{layer}/axis_accuracy/all": score for layer, score in {"mid": 0.8, "up_1": 0.3, "conv_out": 1}.items()}
    )
    assert selected_layer(run) == ("mid", "val"), "although up_1 is better on the test images"
    assert selected_layer(run_in(tmp_path / "b", layers=["conv_out"])) == ("conv_out", "")
    figure = comparison_figures(groups_of([run])).figures["selected_layers"]
    assert not {tick.get_text() for tick in figure.axes[0].get_xticklabels()} & set(OUTPUTS)
    assert "selected_layers" not in comparison_figures(groups_of([run_in(tmp_path / "c", layers=["mid"])])).figures


def test_curves_and_points_are_the_numbers_of_the_runs(tmp_path: Path) -> None:
    few, many = run_in(tmp_path / "few"), run_in(tmp_path / "many", layers=NETWORK, model="tiny")
    axis = comparison_figures(groups_of([few, many])).figures["layers_position"].axes[0]
    drawn = {str(line.get_label()): line for line in axis.get_lines()}
    assert [label for label, _ in lines(axis)] == ["tiny"] and drawn["sd"].get_linestyle() == "None"
    for label, run in {"sd": few, "tiny": many}.items():
        values = [run.value("test", layer, "binned_accuracy") for layer in run.layers]
        assert np.asarray(drawn[label].get_ydata()).tolist() == pytest.approx(values)
    places = [NETWORK.index(layer) for layer in few.layers]
    assert np.round(np.asarray(drawn["sd"].get_xdata(), dtype=float)).tolist() == places
    bars = next(each for each in axis.collections if to_hex(each.get_edgecolor()[0]) == to_hex(drawn["sd"].get_color()))
    low, high = np.array([run_ends(few, layer) for layer in few.layers]).T
    assert [path.vertices[:, 1].tolist() for path in bars.get_paths()] == [
        pytest.approx(pair) for pair in zip(low, high, strict=True)
    ]


def run_ends(run: Run, layer: str) -> tuple[float, float]:
    _, low, high = run.estimate("test", layer, "binned_accuracy")
    assert low is not None and high is not None
    return low, high


def test_more_than_eight_conditions_name_the_rest_and_the_filter_that_shows_it(tmp_path: Path) -> None:
    steps = [run_in(tmp_path / str(step), timestep=step) for step in range(100, 900, 100)]
    rare = run_in(tmp_path / "rare", timestep=100, probe__solver="adam", padding="reflect")
    drawn = comparison_figures(groups_of([*steps, rare]))
    axis = drawn.figures["layers_position"].axes[0]
    labels = [label for label in axis.get_legend_handles_labels()[1] if label != "chance"]
    assert labels == [f"timestep {step}" for step in range(100, 900, 100)]
    [note] = drawn.notes
    assert "layers_position shows 8 of 9 curves" in note and "timestep 100, padding reflect" in note
    assert note.endswith("--where backbone.padding=reflect")


def test_pairs_are_drawn_and_a_missing_figure_is_explained(tmp_path: Path) -> None:
    both = [run_in(tmp_path / kind, kind, ["mid", "up_1"]) for kind in ("position", "depth")]
    drawn = comparison_figures(groups_of(both))
    [line] = [line for line in drawn.figures["position_against_depth"].axes[0].get_lines() if line.get_marker() != "None"]
    expected = [[run.value("test", layer, TASKS[run.kind].metric) for layer in ("mid", "up_1")] for run in both]
    assert [np.asarray(each).tolist() for each in (line.get_xdata(), line.get_ydata())] == expected
    apart = [both[0], run_in(tmp_path / "other", "depth", timestep=261)]
    drawn = comparison_figures(groups_of(apart))
    assert "position_against_depth" not in drawn.figures
    [note] = drawn.notes
    assert note.startswith("There is no figure position_against_depth: it needs two layers that runs of both tasks measured")


def test_a_mitigated_run_has_the_raw_number_beside_it(tmp_path: Path) -> None:
    leace = {"mitigations": {"none": {"steps": ["Leace"]}}}
    raw, mitigated = run_in(tmp_path / "raw", layers=["mid"]), run_in(tmp_path / "leace", layers=["mid"], **leace)
    with_value(raw, 0.654), with_value(mitigated, 0.321)
    [line] = [line for line in table([raw, mitigated], tmp_path) if line.startswith("leace")]
    assert line.split()[1:] == ["mitigation", "leace", "mid", ".321", "[.221,", ".521]", ".654", ".235,", "3", "s"]
    [line] = [line for line in table([mitigated], tmp_path) if line.startswith("leace")]
    assert "–" in line, "the folder has no raw number"


def table(runs: list[Run], folder: Path) -> list[str]:
    return printed(overview(groups_of(runs), runs, {}, folder), 80).splitlines()


def test_names_say_settings_and_leave_out_what_is_not_set() -> None:
    known = {"backbone": "tiny", "mitigation": "", "backbone.weights": "stored", "probe.head": "none"}
    assert named(known, known) == "tiny, head none"
