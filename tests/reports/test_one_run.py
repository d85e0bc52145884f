"""Tables, files and the command, for a run of every probe."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from rich.text import Text

from sdprobe.metrics.pck import ALPHAS, PROTOCOLS
from sdprobe.reports.__main__ import main
from sdprobe.reports.correspondence import PUBLISHED_ALPHAS, reference
from sdprobe.reports.dispatch import FILES, REPORTS, draw, figures, show, tables
from sdprobe.reports.printing import printed as printed_text
from sdprobe.reports.run import Run
from sdprobe.reports.tasks import main_task
from sdprobe.reports.tracked import COLUMNS, chosen, headline, layer_rows, long_table
from tests.reports.fabricated import KINDS, LAYERS, behind, fabricated, printed, stored, without

OVER_LAYERS = {
    "accuracy_over_layers", "credibility", "similarity_over_layers", "norms_over_layers", "cka", "depth_error_over_layers",
    "content_over_layers", "pck_over_layers", "equivariance_over_layers",
}  # fmt: skip
CASES: dict[str, Callable[[str], Run]] = {
    "plain": lambda kind: fabricated(kind, ["conv_in", "mid"]),
    "few": lambda kind: fabricated(kind, ["mid"], units=4, seeds=1, complete=False),
    "compared": lambda kind: behind(kind, "leace", layers=["mid"], seeds=1),
}
CHAIN = {"none": {"steps": ["PositionMean", "Leace"]}}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", CASES)
def test_tables_are_those_of_the_snapshots(kind: str, case: str, snapshot: Callable[[str, str], None]) -> None:
    run = CASES[case](kind)
    snapshot(f"{kind}_{case}", printed(lambda console: show(run, console)))


@pytest.mark.parametrize(
    ("name", "run"),
    [
        ("chain", fabricated("position", ["mid"], weights="random-3", mitigations=CHAIN)),
        ("crops", fabricated("position", ["mid"], images={"test": 24})),
        ("old", Run(without(fabricated("position", ["mid"]), "/seeds").metrics, {"layers": ["mid"], "model": "some/model"}
                    | {"weights": "stored", "timestep": 50, "images": {"test": 7}, "complete": True}, {})),
        ("chain_of_all", behind("position", *"abcde", layers=["mid"])),
        ("chain_of_two", behind("position", "leace", "canvas", layers=["mid"])),
        ("sparse", without(fabricated("content", ["mid"]), "/ci_")),
        ("without_per_image", without(fabricated("depth", ["mid"]), "per_image")),
        ("without_high_norm", without(without(fabricated("statistics", ["mid"]), "high_norm"), "random_weights")),
        ("many", fabricated("correspondence", ["mid", "mid__leace", "mid__canvas", "up_1"], image_reach=True)),
        ("labels", without(fabricated("study", ["mid"], labels="a digest"), "reprcropped")),
    ],
)  # fmt: skip
def test_tables_of_special_runs_are_those_of_the_snapshots(name: str, run: Run, snapshot: Callable[[str, str], None]) -> None:
    snapshot(f"{run.kind}_{name}", printed(lambda console: show(run, console)))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("width", [80, 200])
def test_no_cell_is_cut(kind: str, width: int) -> None:
    for run in (fabricated(kind, ["down_0_attn_0", "mid"]), behind(kind, "position_mean")):
        out = io.StringIO()
        show(run, Console(file=out, width=width, force_terminal=True, color_system=None))
        shown = out.getvalue()
        assert "…" not in shown and max(map(len, shown.splitlines())) <= width
        words = {
            word for table in tables(run) for column in table.columns for text in (column.header, *column.cells)
            for word in Text.from_markup(str(text)).plain.split()
        }  # fmt: skip
        assert words <= set(shown.split()), "every heading and number is whole"
        console = Console(file=io.StringIO(), color_system=None)
        show(run, console)
        assert printed_text(tables(run)) == without_ends(console.file.getvalue())  # type: ignore[attr-defined]


def without_ends(text: str) -> str:
    return "".join(f"{line.rstrip()}\n" for line in text.splitlines())


def test_the_printed_tables_are_a_file_of_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = stored(fabricated("content"), tmp_path)
    main([str(tmp_path), "--format", "pdf"])
    said = without_ends(capsys.readouterr().out)
    text = (tmp_path / "report.txt").read_text()
    assert said.startswith(text) and "\x1b" not in text
    first = f"{next(iter(figures(run)))}.pdf"
    assert f"Open first: {tmp_path / first}" in said
    once = (tmp_path / first).read_bytes()
    draw(run, tmp_path, "pdf")
    assert (tmp_path / first).read_bytes() == once and not list(tmp_path.glob("*.png"))


def test_an_uneven_interval_is_given_by_its_ends() -> None:
    run = fabricated("content", ["mid"])
    run.metrics.update(
        {f"test/mid/content_r2/all{end}": value for end, value in (("", 0.001), ("/ci_low", 0), ("/ci_high", 0.365))}
    )
    assert ".001 [.000, .365]" in printed(lambda console: show(run, console))


def test_names_with_markup_are_text() -> None:
    run = fabricated("position", ["mid"], model="a[bold]$b_c$")
    assert "a[bold]$b_c$" in printed(lambda console: show(run, console))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("metrics", [True, False])
def test_an_interrupted_run_is_shown_and_drawn(tmp_path: Path, kind: str, metrics: bool) -> None:
    """Maps are written last: an interrupted run has none."""
    run = fabricated(kind, complete=False)
    part = stored(Run(run.metrics if metrics else {}, run.meta, {}), tmp_path)
    text = printed(lambda console: show(part, console))
    assert "INCOMPLETE" in text and "nan" not in text.lower()
    assert {path.stem for path in draw(part, tmp_path)} <= OVER_LAYERS | {"loos2025", "equivariance_by_margin"}


@pytest.mark.parametrize("kind", KINDS)
def test_a_report_writes_the_files_that_it_declares(tmp_path: Path, kind: str) -> None:
    paths = draw(stored(fabricated(kind), tmp_path), tmp_path)
    files = [name for name in REPORTS[kind].files if "__t" not in name and "over_noise" not in name]  # of one noise level
    assert [path.name for path in paths] == [name for name in files if name.endswith(".png")]
    assert all((tmp_path / name).is_file() for name in files if not name.endswith(".pdf"))
    assert set(REPORTS[kind].files) < set(FILES)
    for path in paths:
        with Image.open(path) as picture:
            assert np.asarray(picture.convert("L")).std() > 5, f"{path.name} is a blank sheet"


@pytest.mark.parametrize("kind", KINDS)
def test_a_layer_and_what_is_behind_a_mitigation_are_no_two_layers(kind: str) -> None:
    declared = set(REPORTS[kind].drawings)
    assert set(figures(behind(kind, "leace"))) == declared
    assert set(figures(behind(kind, "leace", layers=["mid"]))) == declared - OVER_LAYERS


def test_a_probe_without_a_report_is_shown_as_one_of_position() -> None:
    run = fabricated("position", probe="somethingelse")
    assert set(figures(run)) == set(REPORTS["position"].drawings)


@pytest.mark.parametrize(
    ("meta", "ours", "papers"),
    [
        ({"target_box": "object", "image_reach": False}, "box", "box"),
        ({"target_box": "object", "image_reach": True}, "box", "image"),
        ({"target_box": "keypoints", "image_reach": False}, "keypoints", "keypoints"),
        ({}, "box", "box"),
    ],
)
def test_every_protocol_names_its_length_on_every_data_set(meta: dict[str, Any], ours: str, papers: str) -> None:
    found = {protocol: reference(fabricated("correspondence", **meta), protocol) for protocol in PROTOCOLS}
    expected = dict.fromkeys(("ours", "ours_refined", "dift", "loos_thesis"), ours)
    expected |= dict.fromkeys(("sd_dino", "geoaware", "geoaware_refined"), papers) | {"ours_img": "image"}
    assert found == expected
    assert tuple(f"{alpha:.2f}" for alpha in ALPHAS) == PUBLISHED_ALPHAS


# --- the command -----------------------------------------------------------------------------------------------------


def test_the_command_shows_a_folder_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stored(fabricated("position"), tmp_path)
    main([str(tmp_path)])
    said = capsys.readouterr().out
    assert all(layer in said for layer in LAYERS) and "accuracy_over_layers.png" in said
    assert (tmp_path / "accuracy_over_layers.png").is_file()


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({}, "Expected a run folder or a folder that contains runs, but '{}' has no run. Correct the path."),
        (
            {"metrics.json": '{"a": 1'},
            "Expected '{}' to contain a run, but its metrics.json is unreadable (no JSON)",
        ),
        ({"metrics.json": "{}"}, "Expected '{}' to contain a run, but its metrics.json is unreadable (it lacks meta)."),
        (
            {"metrics.json": '{"meta": {}}'},
            "Expected '{}' to contain a run, but its metrics.json is not that of a run: it lacks meta.complete.",
        ),
        (
            {"maps.npz": "PK\x03\x04 cut off"},
            "Expected '{}' to contain a run, but its maps.npz is unreadable (checksum mismatch).",
        ),
    ],
)
def test_a_folder_that_holds_no_run_is_refused_in_a_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], files: dict[str, str], said: str
) -> None:
    if "maps.npz" in files:
        stored(fabricated("content"), tmp_path)
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(SystemExit) as caught:
        main([str(tmp_path)])
    assert caught.value.code == 1
    assert said.format(tmp_path) in capsys.readouterr().err


# ---------------------------------------------------------------- for trackers

NETWORK = ["conv_in", "down_0", "mid", "up_0", "up_1"]


@pytest.mark.parametrize("kind", KINDS)
def test_the_long_table_holds_every_number(kind: str) -> None:
    run = behind(kind, "leace")
    table = [dict(zip(COLUMNS, row, strict=True)) for row in long_table(run)]
    for row in table:
        layer = row["layer"] if row["mitigation"] == "none" else f"{row['layer']}__{row['mitigation']}"
        assert run.estimate(row["condition"], layer, row["metric"], row["group"]) == (row["value"], row["low"], row["high"])
    assert len(table) == sum(not key.endswith(("/ci_low", "/ci_high", "/seeds")) for key in run.metrics)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_over_layers_hold_the_tracked_numbers(kind: str) -> None:
    run = behind(kind, "leace", layers=["latent", "conv_in", "mid"])
    rows = layer_rows(run, NETWORK)
    assert [(row["layers/name"], row["layers/depth"]) for row in rows] == [("conv_in", 0), ("mid", 0.5)]
    metric = main_task(run.kind).metric
    for row in rows:
        layer = row["layers/name"]
        assert row[f"layers/{metric}"] == row[f"mitigations/{metric}/none"] == run.value("test", layer, metric)
        assert row[f"mitigations/{metric}/leace"] == run.value("test", f"{layer}__leace", metric)
        if kind != "study":
            assert f"layers/{metric}/gain_over_random_weights" in row


@pytest.mark.parametrize("kind", KINDS)
def test_the_summary_is_short_and_of_one_layer(kind: str) -> None:
    run = fabricated(kind)
    found = headline(run, NETWORK)
    assert len(found) <= 15 and found["layer"] in run.layers
    assert found["value"] == run.value("test", found["layer"], found["metric"])
    assert found["layer_is"].endswith("on test images, of 3 layers")
    assert headline(fabricated(kind, ["mid"]), NETWORK)["layer_is"] == "the only layer"
    assert headline(without(run, "test/"), NETWORK) == {}


@pytest.mark.parametrize(
    ("kind", "validated", "best"),
    [
        ("depth", {"val/conv_in/rmse/all": 2.0, "val/mid/rmse/all": 1.0}, "mid"),
        # the first is no better than chance
        ("position", {"val/conv_in/axis_accuracy/all": 0.9, "val/mid/axis_accuracy/all": 0.8,
                      "chance/conv_in/axis_accuracy/all": 0.9, "chance/mid/axis_accuracy/all": 0.1}, "mid"),
    ],
)  # fmt: skip
def test_validation_chooses_the_layer_by_what_chance_leaves(kind: str, validated: dict[str, float], best: str) -> None:
    run = fabricated(kind, ["conv_in", "mid"])
    losses = {f"val/{layer}/loss/all": 1.0 for layer in run.layers}
    layer, why = chosen(Run(run.metrics | losses | validated, run.meta, {}))
    assert layer == best and why == "most readable at, on validation images, of 2 layers"
