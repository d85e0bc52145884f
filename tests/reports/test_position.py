"""Tables and figures from a run folder alone."""

import io
import json
from collections.abc import Iterator
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
from rich.console import Console

from sdprobe.reports.__main__ import main
from sdprobe.reports.dispatch import draw, figures, rows, show
from sdprobe.reports.position import over_layers
from sdprobe.reports.run import Run

LAYERS = ["down_0_attn_0", "mid"]


@pytest.fixture(autouse=True)
def _closed() -> Iterator[None]:
    yield
    plt.close("all")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    metrics: dict[str, object] = {}
    for i, layer in enumerate(LAYERS):
        for what in ("test", "shuffled_labels", "random_weights", "chance"):
            for kind in ("axis", "cell", "binned"):
                metrics[f"{what}/{layer}/{kind}_accuracy/all"] = 0.125 + 0.1 * i
        metrics[f"test/{layer}/axis_accuracy/all/ci_low"] = 0.1
        metrics[f"test/{layer}/axis_accuracy/all/ci_high"] = 0.3
        metrics[f"test/{layer}/axis_accuracy/corner"] = 0.987
        metrics[f"shuffled_labels/{layer}/axis_accuracy/corner"] = 0.512
    metrics["meta"] = {
        "layers": LAYERS, "model": "some/model", "weights": "random-3", "timestep": 50, "images": {"test": 7}, "complete": True,
    }  # fmt: skip
    (tmp_path / "metrics.json").write_text(json.dumps(metrics))
    maps = {
        f"{layer}/{name}": np.random.default_rng(0).random((8, 8)) for layer in LAYERS for name in ("accuracy", "rows", "cols")
    }
    np.savez(tmp_path / "maps.npz", **maps)
    return tmp_path


def printed(run: Run, width: int) -> str:
    out = io.StringIO()
    show(run, Console(file=out, width=width))
    return out.getvalue()


@pytest.mark.parametrize("width", [80, 200])
def test_the_table_names_layers_groups_and_nulls_without_cutting(folder: Path, width: int) -> None:
    text = printed(Run.read(folder), width)
    for piece in (*LAYERS, ".987", ".512", ".125", ".175", "corner", "interior", "chance", "random", "shuffled"):
        assert piece in text, piece
    assert "…" not in text
    assert "some/model with random weights, seed 3" in text


def test_an_unfinished_run_says_so(folder: Path) -> None:
    run = Run.read(folder)
    assert "INCOMPLETE" not in printed(run, 120)
    assert "INCOMPLETE" in printed(Run(run.metrics, run.meta | {"complete": False}, run.maps), 120)


def few_and_many(run: Run, photographs: int, seeds: int) -> Run:
    """The run as tested on so many photographs and random networks; the control of one is the other."""
    metrics = {key: value for key, value in run.metrics.items() if "/ci_" not in key}
    for layer in LAYERS:
        for kind in ("axis", "cell", "binned"):
            metrics[f"random_weights/{layer}/{kind}_accuracy/all/seeds"] = seeds
            for what, enough in (("test", photographs >= 6), ("random_weights", photographs >= 6 and seeds >= 3)):
                ends = {"ci_low": 0.05, "ci_high": 0.328}
                metrics |= {f"{what}/{layer}/{kind}_accuracy/all/{end}": value for end, value in ends.items() if enough}
        if photographs >= 6:
            metrics |= {f"test/{layer}/axis_accuracy/corner/ci_{end}": 0.9 for end in ("low", "high")}
    sizes = {"images": {"test": photographs}, "photographs": {"test": photographs}}
    return Run(metrics, run.meta | sizes, run.maps)


def test_few_photographs_are_told_where_the_numbers_stand(folder: Path) -> None:
    few = " ".join(printed(few_and_many(Run.read(folder), 4, 1), 200).split())
    assert "4 test photographs" in few and few.count("n < 6") == 6
    assert (
        ".987†" in few
        and "†: fewer than 6 test photographs carry the number or differ in it, or few hold most of it: no interval." in few
    )
    assert "Only 4 test photographs: no intervals below 6, and values near 0 or 1 say little." in few and "±:" not in few
    many = printed(few_and_many(Run.read(folder), 12, 1), 200)
    assert "±: the longer arm of the 95 % interval over 12 test photographs." in " ".join(many.split())
    assert "n < 6" not in many and ".987†" not in many and ".987" in many
    assert (
        over_layers(few_and_many(Run.read(folder), 4, 1))
        .get_suptitle()
        .endswith("no bands: 4 test photographs are too few for an interval")
    )


def test_random_weights_say_how_many_seeds(folder: Path) -> None:
    one, three = (few_and_many(Run.read(folder), 12, seeds) for seeds in (1, 3))
    # .328 − .125 at the first layer, .328 − .225 = .103 < .225 − .05 at the second
    counts = [[printed(run, 200).count(arm) for arm in (".203", ".175")] for run in (one, three)]
    assert counts[0] == [3, 3], "the longer arm of every accuracy's interval"
    assert counts[1] == [6, 6], "and of every accuracy with random weights"
    assert "one seed" in printed(one, 200) and "3 seeds" in printed(three, 200)
    bands = [len(over_layers(run).axes[0].collections) for run in (one, three)]
    assert bands == [1, 2]
    legends = [[text.get_text() for text in over_layers(run).legends[0].get_texts()] for run in (one, three)]
    assert "random weights, one seed" in legends[0] and "random weights, 3 seeds" in legends[1]


def test_crops_of_a_photograph_are_no_units(folder: Path) -> None:
    run = Run.read(folder)
    crops = Run(run.metrics, run.meta | {"images": {"test": 24}, "photographs": {"test": 12}}, {})
    assert "24 test images of 12 photographs" in printed(crops, 200)


def test_a_chain_of_mitigations_stands_in_table_and_figures(folder: Path) -> None:
    run = Run.read(folder)
    chain = Run(run.metrics, run.meta | {"mitigations": {"none": {"steps": ["PositionMean", "Leace"]}}}, run.maps)
    assert "timestep 50, behind position_mean → leace" in " ".join(printed(chain, 200).split())
    for name, figure in figures(chain).items():
        assert "behind position_mean → leace" in figure.get_suptitle().replace("\n", " "), name
    assert "behind" not in printed(run, 200) and run.chain == ""


def compared(run: Run, *labels: str) -> Run:
    metrics = run.metrics | {
        key.replace(f"/{layer}/", f"/{layer}__{label}/"): value / 2
        for label in labels
        for layer in LAYERS
        for key, value in run.metrics.items()
        if f"/{layer}/" in key
    }
    layers = [name for layer in LAYERS for name in (layer, *(f"{layer}__{label}" for label in labels))]
    return Run(metrics, run.meta | {"layers": layers, "pairs": {"test": 7}}, {})


@pytest.mark.parametrize("probe", ["position", "statistics", "content", "depth", "correspondence"])
def test_a_comparison_says_that_it_did_not_measure_the_chain(folder: Path, probe: str) -> None:
    run = Run.read(folder)
    run.meta["probe"] = probe
    said = "Each mitigation is applied alone; {} is measured without datamodule.compare."
    two, five = (" ".join(printed(compared(run, *labels), 200).split()) for labels in (["leace", "canvas"], "abcde"))
    assert said.format("the chain leace → canvas") in two
    assert said.format("the chain of all") in five
    assert "datamodule.compare" not in printed(compared(run, "leace"), 200), "one mitigation is its own chain"


def test_variants_are_curves_of_their_own_and_no_layers(folder: Path) -> None:
    figure = over_layers(compared(Run.read(folder), "leace"))
    drawn = {line.get_label(): line.get_ydata().tolist() for line in figure.axes[0].lines}
    assert drawn["this network"] == [0.125, 0.225] and drawn["behind leace"] == [0.0625, 0.1125]
    assert [label.get_text() for label in figure.axes[1].get_xticklabels()] == LAYERS
    one = compared(Run.read(folder), "leace")
    assert "accuracy_over_layers" not in figures(Run(one.metrics, one.meta | {"layers": ["mid", "mid__leace"]}, {}))


def test_a_run_of_an_older_version_is_shown(folder: Path) -> None:
    run = Run.read(folder)
    assert "schema" not in run.meta and "photographs" not in run.meta
    text = " ".join(printed(run, 200).split())
    assert "7 test images" in text and "over 7 test images." in text and "seed," not in text and "nan" not in text.lower()


def test_rows_for_tracking_hold_every_number(folder: Path) -> None:
    columns, table = rows(Run.read(folder))
    assert [row[0] for row in table] == LAYERS
    assert table[1][columns.index("test/axis_accuracy/corner")] == 0.987
    assert not any("ci_" in column for column in columns)


def test_figures_follow_what_was_measured(folder: Path) -> None:
    run = Run.read(folder)
    assert [path.stem for path in draw(run, folder)] == ["accuracy_over_layers", "accuracy_over_grid", "predicted_against_true"]
    single = Run(run.metrics, run.meta | {"layers": ["mid"]}, run.maps)
    assert [path.stem for path in draw(single, folder)] == ["accuracy_over_grid", "predicted_against_true"]


def test_the_command_shows_a_folder_again(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main([str(folder)])
    assert "mid" in capsys.readouterr().out


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main([str(tmp_path)])
    assert caught.value.code == 1
    assert "Expected a run folder with metrics.json" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "said"),
    [('{"a": 1', "is unreadable (JSONDecodeError)"), ("{}", "is unreadable (KeyError)"), ('{"meta": {}}', "lacks meta.layers")],
)
def test_a_damaged_result_is_told_in_a_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, said: str
) -> None:
    (tmp_path / "metrics.json").write_text(text)
    with pytest.raises(SystemExit) as caught:
        main([str(tmp_path)])
    assert caught.value.code == 1
    assert f"but its metrics.json {said}" in capsys.readouterr().err
