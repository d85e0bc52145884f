"""Tables and figures from a run folder alone."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from reports.__main__ import main
from reports.figures import draw
from reports.run import Run
from reports.tables import rows, show

LAYERS = ["down_0_attn_0", "mid"]


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
    for piece in (*LAYERS, ".987", ".512", ".125", ".100", "corner", "interior", "chance", "random", "shuffled"):
        assert piece in text, piece
    assert "…" not in text
    assert "some/model with random weights, seed 3" in text


def test_an_unfinished_run_says_so(folder: Path) -> None:
    run = Run.read(folder)
    assert "INCOMPLETE" not in printed(run, 120)
    assert "INCOMPLETE" in printed(Run(run.metrics, run.meta | {"complete": False}, run.maps), 120)


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
