"""``python train.py probe=depth``, run as a user runs it, in miniature: scenes, pairs of files, reports, resuming, refusals."""

import io
import json
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pytest
from lightning import Callback
from PIL import Image
from rich.console import Console

from sdprobe.reports.depth import over_grid, over_layers
from sdprobe.reports.dispatch import draw, figures, show
from sdprobe.reports.run import Run
from sdprobe.runs.cli import UserError
from sdprobe.runs.record import OUTPUT_FILES
from tests.reports.fabricated import curves

ROOT = Path(__file__).parent.parent
SMALL = [
    "probe=depth",
    "block=up_0",
    "backbone=tiny",
    "images.size=128",
    "images.limit=30",
    "probe.min_steps=10",
    "trainer.max_epochs=2",
    "logger=none",
    "device=cpu",
]
NULLS = ("constant", "position_only", "shuffled_labels", "random_weights")


def test_a_run_leaves_everything_behind(launch, tmp_path: Path, capsys) -> None:
    run = launch("block=[mid,up_0]", figures=True)
    stored = json.loads((tmp_path / "run" / "metrics.json").read_text())
    meta = stored.pop("meta")
    assert (run.metrics, run.kind, meta["complete"]) == (stored, "depth", True)
    for layer in ("mid", "up_0"):
        for what in ("test", *NULLS):
            assert 0 < stored[f"{what}/{layer}/rmse/all"] < 10
            assert stored[f"{what}/{layer}/abs_rel/corner"] > 0
            assert 0 <= stored[f"{what}/{layer}/delta1/all"] <= 1
        assert stored[f"test/{layer}/rmse/all/ci_low"] <= stored[f"test/{layer}/rmse/all/ci_high"]
        assert stored[f"val/{layer}/rmse/all"] > 0
        assert stored[f"test/{layer}/rmse_per_image/all"] > 0
        assert run.maps[f"{layer}/error"].shape == tuple(meta["shapes"][layer][1:])
    assert meta["images"] == {"fit": 12, "train": 10, "val": 2, "test": 6}
    assert meta["seconds"]["depth"] > 0
    for figure in ("depth_error_over_layers", "depth_error_over_grid"):
        with Image.open(tmp_path / "run" / f"{figure}.png") as picture:
            assert np.asarray(picture.convert("L")).std() > 5, "a picture, not a blank sheet"
    printed = capsys.readouterr().out
    assert f"{stored['test/mid/rmse/all']:.3f}".removeprefix("0") in printed
    assert "position only" in printed


def test_latents_are_those_of_plain_scenes_and_numbers_repeat(launch) -> None:
    launch("probe=position", "images=scenes", "twins=0", "block=mid", "probe.solver=closed_form", folder="plain")
    first = launch("twins=0", "probe.solver=closed_form", folder="a")
    assert first.meta["latents"] == {"reused": 18, "encoded": 0}
    assert first.meta["passes"]["unet"] == 18, "10 train, 2 val, 6 test images, once each"
    assert launch("twins=0", "probe.solver=closed_form", folder="b").metrics == first.metrics


class Interrupt(Callback):
    """Ctrl-C in the middle of the second epoch."""

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        if trainer.current_epoch == 1 and batch_idx == 7:
            raise KeyboardInterrupt


@pytest.mark.slow
def test_an_interrupted_run_resumes_to_the_same_numbers(launch, interrupt, tmp_path: Path) -> None:
    options = ["trainer.max_epochs=4", "twins=0"]
    whole = launch(*options, folder="whole")
    part = interrupt(Interrupt(), *options)
    assert [path.name for path in draw(part, tmp_path)] == [], "no maps, a single layer"
    assert launch(*options, f"resume={part.folder}", folder="cut").metrics == whole.metrics


def test_pairs_of_files_run_with_missing_depth(launch, tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    for scene in range(12):
        folder = tmp_path / "nyu" / f"office_{scene:04d}"
        folder.mkdir(parents=True)
        for frame in range(2):
            Image.fromarray(generator.integers(0, 256, (48, 64, 3), dtype=np.uint8)).save(folder / f"rgb_{frame:05d}.jpg")
            depth = generator.integers(500, 9000, (48, 64)).astype(np.uint16)
            depth[:24, :32] = 0
            Image.fromarray(depth).save(folder / f"sync_depth_{frame:05d}.png")
    run = launch("images=nyu", f"images.root={tmp_path / 'nyu'}", "images.limit=null", "twins=0", "protocol=loos2025")
    assert run.meta["photographs"]["test"] == run.meta["images"]["test"] // 2
    _, height, width = run.meta["shapes"]["up_0"]
    # the square is columns 8 to 56, of which those below 32 are half
    known = height * width * 3 // 4
    assert run.metrics["test/up_0/rmse/all/n"] == known * run.meta["images"]["test"]
    assert np.isnan(run.maps["up_0/error"]).sum() == height * width - known
    assert not any(key.startswith("val/") for key in run.metrics), "this protocol validates nothing"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["images=scenes"], "Expected images with depth, images=scene_depth or images=nyu, but got Scenes"),
        (["datamodule=activations"], "Expected datamodule=depth for probe=depth, but got datamodule=activations"),
        (["images=nyu"], "Expected images.root to be given"),
        (["probe.solver=newton"], "probe.solver to be one of adam, closed_form"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_sentence(launch, overrides: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        launch(*overrides, "twins=0")


def fabricated(layers: list[str], side: int = 4) -> Run:
    metrics: dict[str, float] = {}
    for i, layer in enumerate(layers):
        for k, what in enumerate(("test", *NULLS)):
            metrics |= {f"{what}/{layer}/rmse/{group}": 0.5 + 0.25 * k + i for group in ("all", "interior")}
            metrics |= {
                f"{what}/{layer}/rmse_per_image/all": 2.75 + k + i,
                f"{what}/{layer}/abs_rel/all": 0.125,
                f"{what}/{layer}/delta1/all": 0.875,
            }
        metrics |= {f"test/{layer}/rmse/all/ci_low": 0.25 + i, f"test/{layer}/rmse/all/ci_high": 1.25 + i}
    meta = {
        "layers": layers, "probe": "depth", "model": "some/model", "weights": "stored", "timestep": 50, "images": {"test": 7},
        "twins": 1,        "complete": True,
    }  # fmt: skip
    table = np.arange(float(side * side)).reshape(side, side)
    table[0, 0] = np.nan
    return Run(metrics, meta, {f"{layer}/error": table for layer in layers})


@pytest.mark.parametrize("width", [80, 200])
def test_the_table_names_layers_groups_and_nulls_without_cutting(width: int) -> None:
    out = io.StringIO()
    run = fabricated(["down_0_attn_0", "mid"])
    show(run, Console(file=out, width=width))
    for piece in (
        "down_0_attn_0",
        "mid",
        "RMSE per image",
        "2.750",
        ".500",
        "1.500",
        ".875",
        ".125",
        "position only",
        "constant",
        "shuffled",
        "random",
    ):
        assert piece in out.getvalue(), piece
    assert "…" not in out.getvalue()
    assert "INCOMPLETE" not in out.getvalue()
    out = io.StringIO()
    show(Run(run.metrics, run.meta | {"complete": False}, {}), Console(file=out, width=width))
    assert "INCOMPLETE" in out.getvalue()


def test_figures_show_the_numbers_of_the_run(tmp_path: Path) -> None:
    layers = ["conv_in", "mid", "up_1"]
    run = fabricated(layers)
    drawn = curves(over_layers(run).axes[0])
    assert {label: values for label, values in drawn.items() if not label.startswith("_")} == {
        "this network": [0.5, 1.5, 2.5],
        "constant": [0.75, 1.75, 2.75],
        "position only": [1.0, 2.0, 3.0],
        "random weights, one seed": [1.5, 2.5, 3.5],
    }
    panels = [axis for axis in over_grid(run).axes if axis.get_title()]
    assert [panel.get_title().split()[0] for panel in panels] == layers
    np.testing.assert_array_equal(panels[0].images[0].get_array().filled(np.nan), run.maps["conv_in/error"])
    plt.close("all")
    names = {path.name for path in draw(run, tmp_path)}
    assert names == {"depth_error_over_layers.png", "depth_error_over_grid.png"}
    assert names <= set(OUTPUT_FILES), "what an earlier run drew is removed"
    alone = figures(fabricated(["mid"]))
    assert set(alone) == {"depth_error_over_grid"}
    plt.close("all")
