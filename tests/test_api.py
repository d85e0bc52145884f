"""The functions that people import give the numbers of a run, to the last bit, and refuse what they cannot measure."""

import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from torch import Tensor

import sdprobe
from datamodules.images.scenes import ScenePairs, Scenes
from sdprobe import FrozenSD, mitigations
from sdprobe.estimators.results import Result
from sdprobe.reports.run import Run
from sdprobe.tokens.keys import COLUMNS, CONDITIONS, Key
from sdprobe.utilities.errors import InputError

LAYERS = ["mid", "up_1"]
# one image per pass: how convolutions round depends on how many images a pass has
SMALL = [
    "backbone=tiny", "backbone.precision=fp32", "device=cpu", "logger=none", "images.size=128", "datamodule.batch_size=1",
    "block=[mid,up_1]",
]  # fmt: skip


def network(weights_seed: int | None = None) -> FrozenSD:
    """The network of the runs, or the random one that they are compared with."""
    random = {} if weights_seed is None else {"weights": "random", "weights_seed": weights_seed}
    return FrozenSD.from_pretrained("tiny", device="cpu", precision="fp32", **random)


def extracted(
    sd: FrozenSD, images: Scenes, layers: Sequence[str] = LAYERS, margin: int = 0, **options: Any
) -> dict[str, Tensor]:
    """Grids of all images, one pass each, with the noise of a run."""
    inner = slice(margin, images.size - margin)
    pictures = (images.picture(i)[None, :, inner, inner] for i in range(len(images)))
    each = [sd.activations(picture, layers, ids=[images.name(i)], **options) for i, picture in enumerate(pictures)]
    return {layer: torch.cat([grids[layer] for grids in each]) for layer in each[0]}


def names(images: Scenes) -> list[str]:
    return [images.name(i) for i in range(len(images))]


def agree(result: Result, run: Run, *conditions: str) -> None:
    """Every number of a run, under the conditions or all of them, and no other."""
    measured = {text: value for text, value in run.metrics.items() if Key.parse(text).condition in conditions or not conditions}
    assert dict(result.numbers) == measured and len(measured) > 50


@pytest.mark.slow
@pytest.mark.parametrize("options", [{"head": "regression"}, {"sampling": "all"}, {"splits": "loos2025"}])
def test_position_in_closed_form_is_that_of_a_run(launch: Callable[..., Run], options: dict[str, str]) -> None:
    images = Scenes(size=128, limit=24)
    places = {"head": "probe", "sampling": "datamodule", "splits": "datamodule"}
    overrides = [f"{places[name]}.{name}={value}" for name, value in options.items()]
    run = launch("images.limit=24", "probe.solver=closed_form", "twins=0", *overrides)
    agree(sdprobe.position(extracted(network(), images), names=names(images), batch_size=1, **options), run)


def test_numbers_and_their_random_weights_baseline_are_those_of_a_run(launch: Callable[..., Run]) -> None:
    images = Scenes(size=128, limit=10)
    run = launch("images.limit=10", "probe.solver=closed_form", "twins=1", "seed=3")
    grids, random = (extracted(sd, images, seed=3) for sd in (network(), network(1)))
    result = sdprobe.position(grids, names=names(images), seed=3, batch_size=1, random_weights=random)
    agree(result, run)
    assert result["mid"].value == run.metrics["test/mid/binned_accuracy/all"] and result["mid"].ci_low is None
    assert result["mid"].null == (run.metrics["random_weights/mid/binned_accuracy/all"], None, None)


@pytest.mark.slow
@pytest.mark.parametrize("epochs", [4, 100])
def test_position_with_adam_is_that_of_a_run(launch: Callable[..., Run], monkeypatch: pytest.MonkeyPatch, epochs: int) -> None:
    """Cut off before the heads are at their plateau, and trained to it."""
    for module in ("sdprobe.estimators.training", "datamodules.activations"):
        monkeypatch.setattr(f"{module}.STEPS_PER_EPOCH", 10)
    monkeypatch.setattr("sdprobe.estimators.training.MIN_STEPS", 30)
    monkeypatch.setattr("sdprobe.estimators.training.MAX_EPOCHS", epochs)
    images = Scenes(size=128, limit=12)
    run = launch("images.limit=12", "probe.min_steps=30", f"trainer.max_epochs={epochs}", "twins=0", "block=up_1")
    assert (epochs == 4) == bool(run.meta["before_plateau"])
    agree(sdprobe.position(extracted(network(), images, ["up_1"]), names=names(images), solver="adam", batch_size=1), run)


@pytest.mark.slow
def test_the_mean_over_random_networks_is_that_of_a_run(launch: Callable[..., Run]) -> None:
    images = Scenes(size=128, limit=30)
    run = launch("images.limit=30", "probe.solver=closed_form", "twins=3")
    random = [extracted(network(seed), images) for seed in (1, 2, 3)]
    result = sdprobe.position(extracted(network(), images), names=names(images), random_weights=random, batch_size=1)
    agree(result, run)
    ends = ("", "/ci_low", "/ci_high")
    assert result["mid"].null == tuple(run.metrics[f"random_weights/mid/binned_accuracy/all{end}"] for end in ends)
    assert result["mid"].control == tuple(run.metrics[f"shuffled_labels/mid/binned_accuracy/all{end}"] for end in ends)
    assert result["mid"].chance == run.metrics["chance/mid/binned_accuracy/all"]
    assert "needs 3 networks" not in repr(result)


@pytest.mark.slow
def test_a_mitigation_and_its_gain_are_those_of_a_run(launch: Callable[..., Run]) -> None:
    images = Scenes(size=128, limit=30)
    run = launch(
        "images.limit=30", "probe.solver=closed_form", "twins=0", "mitigation=[standardize]", "datamodule.compare=true",
        "datamodule.batch_size=1",
    )  # fmt: skip
    grids = extracted(network(), images)
    fit = sdprobe.split(names(images))["fit"]
    repairs = {layer: mitigations.Standardize().fit(grid[fit].split(1)) for layer, grid in grids.items()}
    grids |= {f"{layer}__standardize": repairs[layer].transform(grid) for layer, grid in grids.items()}
    result = sdprobe.position(grids, names=names(images), batch_size=1)
    agree(result, run, *(condition for condition in CONDITIONS if condition != "random_energy"))  # of runs only
    gain = result.number(condition="gain_over_none", layer="mid__standardize")
    assert gain and gain.value == run.metrics["gain_over_none/mid__standardize/binned_accuracy/all"]


@pytest.mark.slow
def test_statistics_are_those_of_a_run(launch: Callable[..., Run]) -> None:
    images = Scenes(size=192, limit=70)
    layers = ["up_1", "down_1"]
    run = launch(
        "probe=statistics", "images.limit=70", "images.size=192", "block=[up_1,down_1]", "datamodule.margin=32",
        "datamodule.repeats=3", "twins=1",
    )  # fmt: skip

    def views(sd: FrozenSD) -> dict[str, Any]:
        return {
            "grids": extracted(sd, images, layers),
            "cropped": extracted(sd, images, layers, margin=32),
            "other_noise": extracted(sd, images, layers, seed=1),
            "other_timestep": extracted(sd, images, layers, timestep=261),
        }

    options = {"names": names(images), "repeats": 3, "batch_size": 1}
    random = sdprobe.statistics(**views(network(1)), **options)
    result = sdprobe.statistics(**views(network()), **options, random_weights=random)
    agree(result, run)
    assert result["up_1"].value == run.metrics["test/up_1/credibility/all"] and result["up_1"].null


@pytest.mark.slow
def test_matches_are_those_of_a_run(launch: Callable[..., Run]) -> None:
    images = ScenePairs(size=128, limit=48)
    run = launch("probe=correspondence", "probe.head=none", "images.limit=48", "twins=2")
    pairs = images.pairs("test")
    source, target = ([getattr(pair, name) for pair in pairs] for name in ("source", "target"))

    def both(sd: FrozenSD) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        grids = extracted(sd, images)
        return tuple({layer: grid[index] for layer, grid in grids.items()} for index in (source, target))  # type: ignore[return-value]

    result = sdprobe.match(
        *both(network()), [pair.source_points for pair in pairs], [pair.target_points for pair in pairs], size=128,
        boxes_b=[pair.target_box for pair in pairs], pictures_a=source, pictures_b=target,
        categories=[pair.category for pair in pairs], random_weights=[both(network(seed)) for seed in (1, 2)],
    )  # fmt: skip
    agree(result, run)
    assert result["mid"].control and result["mid"].chance == run.metrics["random_point/baseline/pck_ours_point_0.10/all"]


def test_an_image_of_a_run_is_a_plain_tensor_of_any_origin() -> None:
    """A tensor, an array and a dictionary give the same numbers; names may be numbers."""
    grids = planted(30)
    result = sdprobe.position(grids)
    for same in (grids.numpy(), {"layer": grids}, grids.clone().requires_grad_(), grids.double()):
        assert sdprobe.position(same).numbers == result.numbers
    assert sdprobe.position(grids, names=range(30)).numbers == result.numbers
    assert sdprobe.position(grids, names=[f"{i}.png" for i in range(30)]).numbers != result.numbers  # other splits


def planted(images: int, side: int = 8, code: float = 1.0, channels: int = 24, seed: int = 0) -> Tensor:
    """Noise and, the same in every image, a code of the row and one of the column."""
    generator = torch.Generator().manual_seed(seed)
    rows, columns = torch.randn(2, channels, side, generator=generator)
    noise = torch.randn(images, channels, side, side, generator=generator)
    return noise + code * (rows[:, :, None] + columns[:, None, :])


def test_a_planted_code_is_found_and_its_absence_is_chance() -> None:
    coded, plain = sdprobe.position(planted(60)), sdprobe.position(planted(60, code=0))
    assert coded.ci_low and coded.control and coded.control.ci_high and coded.ci_low > 3 * coded.control.ci_high
    assert plain.ci_low and plain.ci_high and plain.ci_low < 1 / 8 == plain.chance < plain.ci_high < 0.2
    assert coded.n == len(coded.split["test"]) == 12


def test_photographs_stay_together_and_are_the_units() -> None:
    photographs = [str(i // 3) for i in range(60)]
    result = sdprobe.position(planted(60), photographs=photographs)
    parts = [{photographs[i] for i in result.split[part]} for part in ("fit", "train", "val", "test")]
    assert sum(map(len, parts)) == len(set.union(*parts)) == 20 and result.n == len(parts[3]) == 4


def test_chosen_parts_replace_the_split_and_must_be_apart() -> None:
    result = sdprobe.position(planted(30), train=range(20), test=np.arange(20, 30))
    assert dict(result.split) == {"train": list(range(20)), "test": list(range(20, 30))} and result.n == 10
    with pytest.raises(InputError, match="test to show other photographs than train, but 1 are in both, such as 5"):
        sdprobe.position(planted(30), train=range(6), test=range(5, 12))


@pytest.mark.slow
def test_adam_stops_and_finds_what_the_closed_form_finds() -> None:
    grids = planted(40, side=4)
    found = [sdprobe.position(grids, solver=solver) for solver in ("adam", "closed_form")]
    assert found[0].value == pytest.approx(found[1].value, abs=0.1) and found[0].value > 0.7
    assert found[0].numbers["val/layer/axis_accuracy/all"] > 0.7


def test_a_mitigation_of_any_grids_removes_the_code() -> None:
    grids = planted(160, side=4)
    parts = sdprobe.split(160)
    repair = mitigations.PositionMean().fit(grids[parts["fit"]])
    same = mitigations.PositionMean().fit(grids[parts["fit"]].numpy())
    repaired = repair.transform(grids)
    assert torch.equal(repaired, same.transform(grids))
    result = sdprobe.position({"mid": grids, "mid__repaired": repaired})
    gain = result.number(condition="gain_over_none", layer="mid__repaired")
    assert gain and gain.ci_high and gain.ci_high < -0.3
    assert result["mid__repaired"].value < result["mid"].value - 0.3


def test_statistics_without_crops_claim_no_credibility() -> None:
    grids = planted(70)
    result = sdprobe.statistics(grids)
    assert result.metric == "r_pos" and result.value == result.number("r_pos").value > 0.3
    assert not [key for key in result.numbers if Key.parse(key).metric.startswith(("cred", "r_cor", "content_", "cropped_"))]
    assert "Corner risk and credibility: not measured. Pass cropped=." in repr(result)
    whole = sdprobe.statistics(grids, cropped=grids[:, :, 1:-1, 1:-1])
    assert whole.metric == "credibility" and 0 < whole.value < 1 and whole.number("r_cor")
    assert {key: value for key, value in whole.numbers.items() if key in result.numbers} == result.numbers
    again = sdprobe.statistics(grids, cropped=grids[:, :, 1:-1, 1:-1], random_weights=[whole, whole])
    assert again.null and again.null.value == whole.value and again.numbers["random_weights/layer/credibility/all/seeds"] == 2


def test_matches_of_a_code_of_parts_are_right_and_those_of_noise_are_chance() -> None:
    generator = torch.Generator().manual_seed(0)
    parts, points = torch.randn(5, 32, generator=generator), 64 * torch.rand(2, 20, 5, 2, generator=generator)
    grids = 0.1 * torch.randn(2, 20, 32, 16, 16, generator=generator)
    noise = grids.clone()
    for side in range(2):
        for pair in range(20):
            column, row = (points[side, pair] / 4).long().unbind(1)
            grids[side, pair, :, row, column] = parts.T
    found = sdprobe.match(*grids, *points, size=64, random_weights=[tuple(noise)])
    assert found.value > 0.9 and found.n == 40 and "boxes_b was not given" in repr(found)
    assert found.control and found.chance and found.control.value < 0.2 and found.chance == pytest.approx(0.03, abs=0.01)
    assert found.null and found.null.value == pytest.approx(found.chance, abs=0.06)
    gain = found.number(condition="gain_over_random_weights")
    assert gain and gain.value == pytest.approx(found.value - found.null.value)
    ragged = sdprobe.match(*grids, [p[:3] for p in points[0]], [p[:3] for p in points[1]], size=64, enlarged=False)
    assert ragged.numbers["test/layer/pck_ours_point_0.10/all/n"] == 60


def test_a_result_prints_draws_and_tabulates_what_it_has(tmp_path: Path) -> None:
    grids = {"mid": planted(40, side=4), "up_1": planted(40)}
    result = sdprobe.position(
        grids, random_weights={layer: planted(40, grid.shape[-1], code=0) for layer, grid in grids.items()}
    )
    printed = repr(result).splitlines()
    assert printed[0].split("  ")[0] == "layer" and [line.split()[0] for line in printed[1:3]] == ["mid", "up_1"]
    assert str(result.number(layer="mid")) in printed[1] and str(result["mid"].null) in printed[1]
    assert printed[3:] == ["95 % intervals over 8 test photographs.", "Random weights: an interval needs 3 networks."]
    assert "not measured" in repr(sdprobe.position(grids)) and sdprobe.position(grids)["mid"].null is None
    table = result.to_pandas()
    assert list(table) == list(COLUMNS)
    [row] = table.query("condition == 'test' and layer == 'mid' and metric == 'binned_accuracy' and group == 'all'").to_dict(
        "records"
    )
    own = result["mid"]
    assert (row["value"], row["low"], row["high"], row["n"]) == (own.value, own.ci_low, own.ci_high, 8 * 16)
    axis = result.plot()
    heights = sorted(float(y) for line in axis.lines if len(line.get_ydata()) == 2 for y in line.get_ydata())
    assert {round(own.value, 6), round(own.control.value, 6)} <= {round(height, 6) for height in heights}
    assert [text.get_text() for text in axis.get_legend().get_texts()] == [
        "chance", "binned_accuracy", "shuffled labels", "random weights",
    ]  # fmt: skip
    axis.figure.savefig(tmp_path / "drawn.png")
    plt.close(axis.figure)
    assert list(result) == ["mid", "up_1"] and len(result) == 2
    with pytest.raises(InputError, match=r"one layer, but the result has mid, up_1\. Choose one: result\['mid'\]"):
        _ = result.value
    with pytest.raises(InputError, match="a measured layer, mid, up_1, but got 'down_0'"):
        _ = result["down_0"]


def test_few_photographs_have_no_interval_and_the_result_says_so() -> None:
    result = sdprobe.position(planted(12))
    assert result.ci_low is None is result.ci_high and "No intervals: 2 test photographs, and 6 are needed." in repr(result)


GRIDS = planted(12)
SPOILT = torch.cat([GRIDS[:3], GRIDS[3:4] * torch.nan, GRIDS[4:]])
SEVENTY = planted(70)
POINTS = torch.full((12, 2, 2), 5.0)
PAIRS = (GRIDS, GRIDS, POINTS, POINTS)
REFUSED = [
    ("position", (GRIDS[0],), {}, r"grids to be .*\(B, C, h, w\), but got \(24, 8, 8\) of torch.float32"),
    ("position", (GRIDS[None],), {}, r"grids to be .*, but got \(1, 12, 24, 8, 8\)"),
    ("position", (GRIDS.long(),), {}, r"grids to be floating-point .* of torch.int64"),
    ("position", ({"mid": GRIDS.numpy().astype(int)},), {}, r"grids\['mid'\] to be floating-point .* of int64"),
    ("position", (SPOILT,), {}, "grids to be finite, but image 3 has NaN"),
    ("position", ([{"mid": GRIDS}],), {}, "grids to be a tensor .* but got list"),
    ("position", ({},), {}, "grids to be a tensor .* but got an empty one"),
    ("position", ({"mid": GRIDS, "up_1": GRIDS[:5]},), {}, "grids to hold the same images at every layer"),
    ("position", ({"a/b": GRIDS},), {}, "grids to have layers as keys, without '/'.* but got 'a/b'"),
    ("position", ({"mid__leace": GRIDS},), {}, "a variant LAYER__NAME beside its LAYER, but got 'mid__leace'"),
    ("position", (GRIDS[:, :, :1],), {}, "grids of at least 2×2 tokens to probe positions, but got 1×8"),
    ("position", (GRIDS[:9],), {}, "at least 10 photographs to split, but got 9"),
    ("position", (GRIDS,), {"photographs": ["a"] * 12}, "at least 10 photographs to split, but got 1"),
    ("position", (GRIDS,), {"names": ["a", "b"]}, "names to be one per image, 12, but got 2"),
    ("position", (GRIDS,), {"photographs": "abc"}, "photographs to be one per image, 12, but got the text 'abc'"),
    ("position", (GRIDS,), {"train": range(5)}, "train and test together, but got train only"),
    ("position", (GRIDS,), {"train": range(5), "test": [20]}, "test to be different indices of images, each from 0 to 11"),
    ("position", (GRIDS,), {"train": [1, 1], "test": [2]}, "train to be different indices"),
    ("position", (GRIDS,), {"train": [], "test": [2]}, "train to be different indices"),
    ("position", (GRIDS,), {"train": "first", "test": [2]}, "train to be numbers of a regular shape, but got 'first'"),
    ("match", (GRIDS, GRIDS, [[(1, 2), (3,)]] * 12, POINTS), {}, r"points_a\[0\] to be numbers of a regular shape"),
    ("position", (GRIDS,), {"head": "mlp"}, "Expected head to be one of classification, regression, but got 'mlp'"),
    ("position", (GRIDS,), {"solver": "sgd"}, "Expected solver to be one of adam, closed_form, but got 'sgd'"),
    ("position", (GRIDS,), {"train": ["a"], "test": [2]}, r"train to be numbers of a regular shape, but got \['a'\]"),
    ("position", (GRIDS,), {"train": [1, 2], "test": [3], "val": [2]}, "val to show other photographs than train"),
    ("position", (GRIDS,), {"seed": "a"}, "Expected seed to be an integer, but got 'a'"),
    ("position", (GRIDS,), {"batch_size": 0}, "Expected batch_size to be at least 1"),
    ("position", (GRIDS,), {"sampling": "x"}, "Expected sampling to be one of stratified, all"),
    ("statistics", (SEVENTY,), {"fit": range(20), "test": range(10, 60)}, "test to show other photographs than fit"),
    ("match", PAIRS, {"boxes_b": "x"}, "boxes_b to be numbers of a regular shape"),
    ("match", PAIRS, {"pictures_a": 5}, "pictures_a to be one per pair, 12, but got 5"),
    ("match", (GRIDS, GRIDS, [None] * 12, POINTS), {}, r"points_a\[0\] to be"),
    ("split", (None,), {}, "photographs to be an integer, but got None"),
    ("split", ("a.jpg, b.jpg",), {}, "photographs to be one per image, .* the text"),
    ("position", (GRIDS,), {"random_weights": GRIDS[:5]}, "random_weights to have the layers, images and shapes of grids"),
    ("statistics", (GRIDS,), {}, "grids of enough images to measure 40, but got 12 images, of which 7"),
    ("statistics", (planted(70, side=3),), {}, "the grid to be at least 4×4"),
    ("statistics", (SEVENTY,), {"cropped": planted(70, side=7)}, "cropped to lack the same number of tokens on every side"),
    ("statistics", (SEVENTY,), {"cropped": planted(60, side=6)}, "cropped to have the layers, images and channels of grids"),
    ("statistics", (SEVENTY,), {"other_noise": planted(70, side=6)}, "other_noise to have the layers, images and shapes"),
    (
        "statistics", (SEVENTY,), {"cropped": planted(70, side=6), "random_weights": planted(70)},
        "random_weights to be results of sdprobe.statistics, since cropped was given, but got Tensor",
    ),
    ("match", (GRIDS, GRIDS[:5], POINTS, POINTS), {}, "grids_b to have the layers, images and shapes of grids_a"),
    ("match", (GRIDS[:, :, :4],) * 2 + (POINTS,) * 2, {}, "grids_a to be square, but got 4×8"),
    ("match", (GRIDS, GRIDS, POINTS[:3], POINTS), {}, "points_a to have points for each of 12 pairs, but got 3"),
    ("match", (GRIDS, GRIDS, POINTS, POINTS[:, :1]), {}, "points_b to have a partner .* pair 0 has 2 and 1"),
    ("match", (GRIDS, GRIDS, POINTS, POINTS + 60), {}, r"points_b to be points \(x, y\) from 0 to 64"),
    ("match", (GRIDS, GRIDS, POINTS * torch.nan, POINTS), {}, "points_a to be points"),
    ("match", PAIRS, {"size": 0}, "size to be at least 1, but got 0"),
    ("match", PAIRS, {"boxes_b": torch.zeros(12, 4)}, r"boxes_b to be \(x0, y0, x1, y1\)"),
    ("match", PAIRS, {"pictures_a": [1]}, "pictures_a to be one per pair, 12, but got 1"),
    ("match", PAIRS, {"categories": ["a"]}, "categories to be one per pair, 12, but got 1"),
    ("match", PAIRS, {"random_weights": GRIDS}, r"random_weights to be \(grids_a, grids_b\)"),
    ("split", (9,), {}, "at least 10 photographs to split, but got 9"),
    ("split", (["a"] * 20,), {"protocol": "default"}, "at least 10 photographs to split, but got 1"),
]  # fmt: skip


@pytest.mark.parametrize(("function", "given", "options", "message"), REFUSED, ids=[message for *_, message in REFUSED])
def test_what_cannot_be_measured_is_one_sentence(
    function: str, given: tuple[Any, ...], options: dict[str, Any], message: str
) -> None:
    size = {"size": 64} if function == "match" else {}
    with pytest.raises(InputError, match=message):
        getattr(sdprobe, function)(*given, **size | options)


def test_random_networks_of_another_measurement_are_refused() -> None:
    other = sdprobe.position(SEVENTY[:30])
    for function in (sdprobe.position, sdprobe.statistics):
        with pytest.raises(InputError, match=r"measured as the network is .* but got position at layer, 6 test"):
            function(SEVENTY, random_weights=other)


def test_random_networks_of_another_call_are_refused() -> None:
    position, statistics = sdprobe.position(SEVENTY, seed=1), sdprobe.statistics(SEVENTY)
    with pytest.raises(InputError, match="with the same seed and images as the network"):
        sdprobe.position(SEVENTY, random_weights=position)
    with pytest.raises(InputError, match="with the same solver as"):
        sdprobe.position(SEVENTY, seed=1, random_weights=replace(position, settings={**position.settings, "solver": "adam"}))
    with pytest.raises(InputError, match="with the same views as"):
        sdprobe.statistics(SEVENTY, other_noise=SEVENTY, random_weights=statistics)
    with pytest.raises(InputError, match="with the same points as"):
        sdprobe.match(*PAIRS, size=64, random_weights=sdprobe.match(GRIDS, GRIDS, POINTS + 1, POINTS, size=64))
    both = sdprobe.position({"a": SEVENTY, "b": SEVENTY}, seed=1)
    alone = sdprobe.position({"a": SEVENTY}, seed=1, random_weights=both["a"])
    assert alone.null and alone.null.value == alone.value


@pytest.mark.parametrize("head", ["classification", "regression"])
def test_layers_of_other_networks_have_dots_and_any_name(head: str) -> None:
    found = sdprobe.position({"layer1.0.conv2": SEVENTY, "train": SEVENTY}, head=head)
    other = sdprobe.position({"a": SEVENTY}, head=head)
    assert found["layer1.0.conv2"].value == found["train"].value == other.value
    assert {"layer1.0.conv2", "train"} <= set(found.to_pandas()["layer"])
    assert sdprobe.statistics({"layer1.0.conv2": SEVENTY}).value == sdprobe.statistics(SEVENTY).value


def test_arrays_of_any_strides_and_byte_order_are_grids() -> None:
    expected = sdprobe.position(SEVENTY).numbers
    array = SEVENTY.numpy()
    flipped = array[:, :, :, ::-1].copy()[:, :, :, ::-1]
    for same in (flipped, array.astype(array.dtype.newbyteorder())):
        assert sdprobe.position(same).numbers == expected
        fitted = mitigations.Standardize().fit(same)
        assert torch.equal(fitted.transform(same), mitigations.Standardize().fit(array).transform(SEVENTY))


def test_a_result_says_where_intervals_are_missing_or_too_narrow() -> None:
    names = ["p", *["q"] * 40, *"rstuv"]  # one photograph has most crops
    unequal = sdprobe.position(planted(46), photographs=names, train=[0], test=range(1, 46))
    assert unequal.n == 6 and unequal.ci_low is None and "None at layer: a few of them hold most tokens" in repr(unequal)
    few = sdprobe.statistics(SEVENTY, photographs=[str(number // 7) for number in range(70)])
    assert "Intervals are too narrow: the images show 6 photographs, fewer than 20 groups." in repr(few)
    assert "too narrow" not in repr(sdprobe.statistics(SEVENTY))


def test_what_a_result_does_not_have_is_neither_drawn_nor_found() -> None:
    result = sdprobe.position(SEVENTY)
    with pytest.raises(InputError, match=r"metric to be one of .*Use axis_accuracy"):
        result.plot("axis_acuracy")
    with pytest.raises(InputError, match="layer to be one of layer, but got 'mid'"):
        result.number(layer="mid")
    with pytest.raises(InputError, match=r"metric to be one of .*axis_accuracy.* but got 'acuracy'"):
        result.number("acuracy")
    with pytest.raises(InputError, match=r"where to be one of .*, but got 'cornr'\. Use corner"):
        result.number(where="cornr")
    with pytest.raises(InputError, match=r"condition to be one of .*, but got 'random_weight'\. Use random_weights"):
        result.number(condition="random_weight")
    assert result.number(condition="random_weights") is None and sdprobe.statistics(SEVENTY).number("r_cor") is None


def test_pairs_without_visible_points_and_one_channel_are_measured() -> None:
    pairs = [[], *POINTS[1:].tolist()]
    assert sdprobe.match(GRIDS, GRIDS, pairs, pairs, size=64).numbers["test/layer/pck_ours_point_0.10/all/n"] == 22
    assert sdprobe.statistics(SEVENTY[:, :1], cropped=SEVENTY[:, :1, 1:-1, 1:-1]).n == 42


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ({"mid": GRIDS}, r"batches to be grids of one layer, but got mid\. Fit one map per layer"),
        (GRIDS[0], r"batches to be finite activations with the axes \(B, C, h, w\), but got \(24, 8, 8\)"),
        (GRIDS * torch.inf, "batches to be finite"), ([GRIDS[0, 0]], "batches to be finite"), ([], "at least one fit image"),
    ],
)  # fmt: skip
def test_what_mitigations_cannot_be_fitted_on_is_one_sentence(batches: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        mitigations.Standardize().fit(batches)
    with pytest.raises(InputError, match=r"grid to have the axes \(B, C, h, w\), but got \(24, 8, 8\)"):
        mitigations.Standardize().fit(GRIDS).transform(GRIDS[0])


@pytest.mark.slow
def test_nothing_is_imported_that_trains_or_draws_images() -> None:
    """No trainer, no Hydra, no tracker, no checkpoint library: tensors of other networks need none."""
    code = """
import sys, torch, sdprobe
result = sdprobe.position(torch.randn(40, 4, 4, 4))
heavy = {"lightning", "pytorch_lightning", "hydra", "wandb", "diffusers", "datasets", "pandas"}
print(sorted(heavy & {*sys.modules}))
"""
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert answer.stdout.strip() == "[]"
