"""``python train.py probe=correspondence``, run as a user runs it, in miniature: scenes, an exported tree, refusals."""

import dataclasses
import io
import itertools
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from omegaconf import DictConfig
from PIL import Image
from rich.console import Console

from sdprobe.metrics.pair_means import PairMeans
from sdprobe.metrics.pck import ALPHAS, PROTOCOLS, REFINED, distances, input_distances, pixel_distances
from sdprobe.reports.correspondence import (
    cost_table,
    matching_best_at,
    over_layers,
    pck_table,
    shown_layers,
)
from sdprobe.reports.dispatch import draw, figures, show
from sdprobe.reports.run import Run
from sdprobe.runs.cli import UserError
from sdprobe.runs.record import OUTPUT_FILES
from sdprobe.scenes.spair_export import export
from sdprobe.tokens.batch import Keypoints
from tests.datamodules.pair_trees import add_spair
from tests.reports.fabricated import curves

ROOT = Path(__file__).parent.parent
MAIN = "pck_ours_point_0.10"
SMALL = [
    "probe=correspondence", "block=up_1", "backbone=tiny", "images.size=128", "probe.min_steps=10", "trainer.max_epochs=1",
    "logger=none", "device=cpu",
]  # fmt: skip


@pytest.fixture
def configure(configure: Callable[..., DictConfig]) -> Callable[..., DictConfig]:
    """With fewer pairs where no other images are asked for."""

    def make(*overrides: str, **options: Any) -> DictConfig:
        fewer = [] if any(text.startswith("images=") for text in overrides) else ["images.limit=120"]
        return configure(*fewer, *overrides, **options)

    return make


TRAINED = ["images.limit=48", "twins=0", "trainer.max_epochs=2", "backbone.precision=fp32"]


@pytest.fixture
def trained(launch, module_cache: Path) -> Run:
    """A run with a head, made once; read only."""
    folder = module_cache / "trained"
    return Run.read(folder) if folder.exists() else launch(*TRAINED, folder=str(folder))


@pytest.fixture
def zero_shot(launch, module_cache: Path) -> Run:
    """A run without one, made once; read only."""
    folder = module_cache / "zero_shot"
    given = ("images.limit=64", "probe.head=none", "twins=0")
    return Run.read(folder) if folder.exists() else launch(*given, folder=str(folder))


def test_a_run_leaves_every_way_of_matching_beside_its_nulls(launch, tmp_path: Path) -> None:
    run = launch("images.limit=48", "block=[up_0,up_1]", figures=True)
    for layer in ("up_0", "up_1"):
        for what in ("test", "zero_shot", "shuffled_labels", "random_weights", "random_weights_zero_shot"):
            assert 0 <= run.value(what, layer, MAIN) <= 1, what
        assert run.value("gain_over_random_weights", layer, MAIN, end="ci_low") is None, "one network is no sample"
        for what in ("gain_over_zero_shot", "gain_over_same_position"):
            low, value, high = (run.value(what, layer, MAIN, end=end) for end in ("ci_low", "", "ci_high"))
            assert value is not None and (low is None) == (high is None)
            assert low is None or low <= value <= high, "none where fewer than 6 pictures differ"
        difference = run.value("test", layer, MAIN) - run.value("random_weights", layer, MAIN)
        assert run.value("gain_over_random_weights", layer, MAIN) == pytest.approx(difference)
        for key in ("pck_dift_image_0.10", "pck_dift_point_0.05"):
            assert run.value("zero_shot", layer, key) is not None
    for what in ("same_position", "random_point"):
        assert run.value(what, "baseline", MAIN) is not None
    assert run.meta["pairs"]["test"] == 16
    assert run.meta["passes"]["unet"] == 48, "every image once"
    for figure in ("pck_over_layers", "errors_over_offset", "matches"):
        assert f"{figure}.png" in OUTPUT_FILES, "a later run clears it"
        with Image.open(tmp_path / "run" / f"{figure}.png") as picture:
            assert np.asarray(picture.convert("L")).std() > 5, "a picture, not a blank sheet"


def test_predictions_are_kept_and_give_the_reported_number(zero_shot: Run) -> None:
    run = zero_shot
    table = pq.read_table(run.folder / "predictions.parquet")
    cell = table["up_1/test/cell"].to_numpy()
    stride = 128 / run.meta["shapes"]["up_1"][1]
    side = run.meta["shapes"]["up_1"][2]
    x, y = (cell % side + 0.5) * stride, (cell // side + 0.5) * stride
    away = np.hypot(x - table["target_point_x"].to_numpy(), y - table["target_point_y"].to_numpy())
    wide = table["target_box_x1"].to_numpy() - table["target_box_x0"].to_numpy()
    high = table["target_box_y1"].to_numpy() - table["target_box_y0"].to_numpy()
    right = away <= 0.10 * np.maximum(wide, high)
    assert right.mean() == pytest.approx(run.value("test", "up_1", MAIN))
    assert np.array_equal(right, table["up_1/hit"].to_numpy())
    assert run.meta["train_steps"] == 0, "nothing is fitted"


def test_every_protocol_follows_from_the_kept_predictions(zero_shot: Run) -> None:
    run = zero_shot
    table = pq.read_table(run.folder / "predictions.parquet").to_pydict()
    columns = {}
    for field in dataclasses.fields(Keypoints):
        parts = [torch.tensor(values) for name, values in table.items() if re.fullmatch(rf"{field.name}(_[xy][01]?)?", name)]
        columns[field.name] = parts[0] if len(parts) == 1 else torch.stack(parts, 1)
    points = Keypoints(**(columns | {name: table[name][0] for name in ("size", "image_reach", "squashed")}))
    assert (points.size, points.image_reach, points.squashed) == (128, False, False)
    assert (run.meta["target_box"], run.meta["image_reach"]) == ("object", False)
    side = run.meta["shapes"]["up_1"][1]
    cell = torch.tensor(table["up_1/test/cell"])
    cell = torch.stack([cell // side, cell % side], 1).long()
    pixel = torch.stack([torch.tensor(table[f"up_1/test/pixel_{axis}"]) for axis in "xy"], 1)
    between = torch.stack([torch.tensor(table[f"up_1/test/refined_{axis}"]) for axis in "xy"], 1).double()
    assert (between.floor().long() != cell.flip(1)).any(), "they are points of their own"
    for protocol, averages in PROTOCOLS.items():
        if protocol.endswith(REFINED):
            away = input_distances(protocol, points, between * 128 / side)
        else:
            away = pixel_distances(points, pixel) if protocol == "dift" else distances(protocol, points, cell, side)
        for average in averages:
            for alpha in ALPHAS:
                value = away.correct(alpha)[:, None].double()
                mean = PairMeans(points).means(average, value, torch.ones_like(value)).item()
                assert mean == pytest.approx(run.value("test", "up_1", f"pck_{protocol}_{average}_{alpha:.2f}"))
    assert {"category_name", "source_name", "target_name", "keypoint", "up_1/share_corner"} <= table.keys()


@pytest.mark.slow
def test_a_twin_is_measured_again_when_annotations_change(launch, tmp_path: Path, caplog) -> None:
    export(tmp_path / "tree", images_per_category=6, size=128)
    given = ("images=spair", f"images.root={tmp_path / 'tree'}", "probe.head=none", "probe.enlarged=false")
    launch(*given, folder="before")
    launch(*given, folder="again")
    assert not (tmp_path / "again" / "random_weights_0").exists(), "taken from the cache"
    for path in (tmp_path / "tree" / "PairAnnotation" / "test").glob("*.json"):
        pair = json.loads(path.read_text())
        pair["trg_kps"] = [[min(x + 3, 127), y] for x, y in pair["trg_kps"]]
        path.write_text(json.dumps(pair))
    run = launch(*given, folder="after")
    difference = run.value("test", "up_1", MAIN) - run.value("random_weights", "up_1", MAIN)
    assert run.value("gain_over_random_weights", "up_1", MAIN) == pytest.approx(difference)
    assert not caplog.text.count("taken from") > 1


def test_a_resumed_run_ends_with_the_same_numbers(launch, trained: Run, tmp_path: Path) -> None:
    folder = shutil.copytree(trained.folder, tmp_path / "run")
    (folder / "metrics.json").unlink()
    assert launch(*TRAINED, f"resume={folder}").metrics == trained.metrics


def test_without_a_head_only_test_pictures_are_looked_at(zero_shot: Run) -> None:
    assert zero_shot.meta["images"] == {"test": 16}
    assert zero_shot.meta["latents"]["encoded"] + zero_shot.meta["latents"]["reused"] == 16


@pytest.mark.slow
def test_the_same_command_gives_the_same_numbers_whatever_the_memory(launch, trained: Run) -> None:
    again, scarce = (launch(*TRAINED, *more, folder=str(i)) for i, more in enumerate([(), ("activation_budget=0",)]))
    assert trained.metrics == again.metrics
    assert trained.metrics.keys() == scarce.metrics.keys()
    # the order of target pictures rounds nothing differently, batches of another size may
    main = [key for key in scarce.metrics if key.endswith(f"{MAIN}/all")]
    assert all(abs(trained.metrics[key] - scarce.metrics[key]) <= 0.02 for key in main)


@pytest.mark.slow
def test_an_exported_tree_gives_about_the_numbers_of_the_scenes_it_shows(launch, tmp_path: Path) -> None:
    export(tmp_path / "tree", images_per_category=8, size=128)
    given = ("probe.head=none", "twins=0", "probe.enlarged=false")
    tree = launch("images=spair", f"images.root={tmp_path / 'tree'}", *given, folder="tree_run")
    scenes = launch("images.limit=64", *given, folder="scenes_run")
    assert tree.meta["pairs"] == scenes.meta["pairs"]
    # pixels went through JPEG, points and boxes were rounded
    assert abs(tree.value("test", "up_1", MAIN) - scenes.value("test", "up_1", MAIN)) < 0.06
    same = (run.value("same_position", "baseline", MAIN) for run in (tree, scenes))
    assert abs(next(same) - next(same)) < 0.03


def test_a_tree_made_by_hand_runs(launch, tmp_path: Path) -> None:
    for split, names in (("trn", "abcd"), ("val", "ef"), ("test", "ghi")):
        for category in ("cat", "dog"):
            for one, other in itertools.permutations(names, 2):
                add_spair(tmp_path / "tree", split, category, one, other)
    run = launch("images=spair", f"images.root={tmp_path / 'tree'}", "twins=0")
    assert run.meta["pairs"] == {"train": 24, "val": 4, "test": 12}
    assert run.meta["categories"] == ["cat", "dog"]
    assert 0 <= run.value("test", "up_1", MAIN) <= 1


def test_reports_show_an_old_run_again(trained: Run, tmp_path: Path) -> None:
    run = trained
    out = io.StringIO()
    show(run, Console(file=out, width=110))
    for text in ("zero-shot", "same position", "displacement near", "harm of corner", "geoaware"):
        assert text in out.getvalue(), text
    assert {path.name for path in draw(run, tmp_path)} == {"errors_over_offset.png", "matches.png"}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("images=scenes",), "images=scene_pairs, spair"),
        (("datamodule=activations",), "datamodule=pairs"),
        (("images.limit=20",), "images.limit to be at least 48"),
        (("probe.head=mlp",), "probe.head to be one of linear, none"),
        (("images=spair", "images.root=/nowhere"), "images.root"),
    ],
)
def test_wrong_input_is_one_sentence(launch, overrides: tuple[str, ...], message: str) -> None:
    with pytest.raises(UserError, match=message):
        launch(*overrides)


def fabricated(folder: Path, layers: dict[str, float], pictures: int = 16, seeds: int = 1) -> Run:
    """Layers of a known PCK, each with an interval where there are 6 pictures; masking corners changes no match."""
    metrics: dict[str, float] = {}
    units = {}
    for layer, value in layers.items():
        costs = {f"{MAIN}/all": value, f"{MAIN}/displacement_far": value / 2, "harm/corner": 0.0}
        for key, number in costs.items():
            ends = {} if key == "harm/corner" else {"/ci_low": number - 0.05, "/ci_high": number + 0.05}
            metrics |= {f"test/{layer}/{key}": number, f"test/{layer}/{key}/n": 40}
            metrics |= {f"test/{layer}/{key}{end}": each for end, each in ends.items() if pictures >= 6}
            units[f"test/{layer}/{key}"] = np.where(np.arange(pictures) < (9 if "far" in key else pictures), number, np.nan)
        metrics |= {f"test/{layer}/pck_ours_point_0.{alpha}/all": value for alpha in ("05", "15")}
        metrics |= {f"random_weights/{layer}/pck_ours_point_0.{alpha}/all": 0.02 for alpha in ("05", "15")}
        for what, number in (("random_weights", 0.02), ("gain_over_random_weights", value - 0.02)):
            metrics |= {f"{what}/{layer}/{MAIN}/all": number, f"{what}/{layer}/{MAIN}/all/seeds": seeds}
            ends = {"/ci_low": number - 0.01, "/ci_high": number + 0.01}
            metrics |= {f"{what}/{layer}/{MAIN}/all{end}": each for end, each in ends.items() if seeds >= 3 and pictures >= 6}
    meta = {
        "layers": list(layers), "probe": "correspondence", "model": "some/model", "weights": "stored", "timestep": 50,
        "images": {"test": pictures}, "pairs": {"test": 20}, "schema": 2, "complete": True,
    }  # fmt: skip
    np.savez(folder / "pseudovalues.npz", **units)
    return Run(metrics, meta, {}, folder)


def lines(table: Any) -> list[list[str]]:
    return [list(row) for row in zip(*(column.cells for column in table.columns), strict=True)]


def test_costs_say_how_many_pictures_and_where_nothing_differs(tmp_path: Path) -> None:
    shown = cost_table(fabricated(tmp_path, {"mid": 0.4}))
    found = {row[1]: [row[2], row[3], *row[-2:]] for row in lines(shown)}
    assert found["all keypoints"] == ["40.0", "5.0", "40", "16"]
    assert found["displacement far"] == ["20.0", "5.0", "40", "9"]
    assert found["harm of corner"] == ["0.0", "few", "40", "16"], "many pictures, but none tells anything"
    assert "fewer than 6 test pictures contribute to it or differ in it" in str(shown.caption)
    few = {row[1]: [row[2], row[3], *row[-2:]] for row in lines(cost_table(fabricated(tmp_path, {"mid": 0.4}, pictures=4)))}
    assert few["all keypoints"] == ["40.0", "n < 6", "40", "4"] and few["harm of corner"] == ["0.0", "n < 6", "40", "4"]


@pytest.mark.parametrize(
    ("pictures", "seeds", "own", "random"),
    [(16, 1, "5.0", "one seed"), (16, 2, "5.0", "2 seeds"), (16, 3, "5.0", "1.0"), (4, 3, "n < 6", "n < 6")],
)
def test_missing_intervals_say_what_there_is_too_little_of(
    tmp_path: Path, pictures: int, seeds: int, own: str, random: str
) -> None:
    shown = pck_table(fabricated(tmp_path, {"mid": 0.4}, pictures, seeds))
    found = {row[1].split(",")[0]: row[-1] for row in lines(shown)}
    assert [found["zero-shot"], found["random weights"]] == [own, random]
    assert found["gain over random weights"] == ("37.0 to 39.0" if random == "1.0" else random)
    assert f"20 test pairs of {pictures} pictures" in str(shown.title)
    said = "over 16 test pictures;" if pictures == 16 else "Only 4 test pictures: there are no intervals below 6"
    assert said in str(shown.caption)


def test_of_many_layers_the_one_is_shown_where_matching_is_best(tmp_path: Path) -> None:
    run = fabricated(tmp_path, {"down_0": 0.1, "down_0__leace": 0.9, "mid": 0.3, "mid__leace": 0.2})
    assert matching_best_at(run) == "mid" and shown_layers(run) == ["mid"], "a mitigation is no layer"
    assert "at mid, without mitigation (highest PCK)" in str(cost_table(run).title)
    drawn = curves(over_layers(run).axes[0])
    assert drawn["zero-shot, without mitigation"] == pytest.approx([10, 30]) and drawn["with leace"] == pytest.approx([90, 20])
    one = fabricated(tmp_path, {"mid": 0.3, "mid__leace": 0.2})
    assert "highest" not in str(cost_table(one).title) and "pck_over_layers" not in figures(one)
    plt.close("all")
