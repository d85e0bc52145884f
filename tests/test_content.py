"""``python train.py probe=content``, run as a user runs it, in miniature: variants, reports, resuming, refusals."""

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

from sdprobe.reports.content import over_layers
from sdprobe.reports.dispatch import figures, show
from sdprobe.reports.run import Run
from sdprobe.runs.cli import UserError
from sdprobe.runs.record import OUTPUT_FILES
from tests.reports.fabricated import curves

ROOT = Path(__file__).parent.parent
SMALL = [
    "probe=content", "block=mid", "backbone=tiny", "images.size=128", "images.limit=16", "twins=0", "logger=none", "device=cpu",
]  # fmt: skip


def test_a_run_leaves_everything_behind(launch, tmp_path: Path, capsys) -> None:
    run = launch(
        "block=[latent,mid]", "twins=1", "images.limit=48", figures=True
    )  # 10 to test: unequal photographs count for fewer
    stored = json.loads((tmp_path / "run" / "metrics.json").read_text())
    meta = stored.pop("meta")
    assert (run.metrics, run.kind, meta["complete"]) == (stored, "content", True)
    for layer in ("latent", "mid"):
        for what in ("test", "shuffled_labels", "chance", "position_only", "random_weights"):
            assert stored[f"{what}/{layer}/content_r2/all"] <= 1, what
        assert stored[f"test/{layer}/content_r2/all/ci_low"] <= stored[f"test/{layer}/content_r2/all/ci_high"]
        assert stored[f"val/{layer}/content_r2/all"] <= 1
    # the mean of n training images has a noise of its own, which the latent does not tell
    n = meta["images"]["train"]
    assert stored["test/latent/content_r2/all"] == pytest.approx(n / (n + 1), abs=0.1)
    assert meta["seconds"]["content"] > 0
    with Image.open(tmp_path / "run" / "content_over_layers.png") as picture:
        assert np.asarray(picture.convert("L")).std() > 5, "a picture, not a blank sheet"
    assert "Linear content probe" in capsys.readouterr().out


class Interrupt(Callback):
    """Ctrl-C after fitting."""

    def on_test_batch_start(self, *arguments: Any) -> None:
        raise KeyboardInterrupt


def test_a_run_interrupted_while_testing_resumes_to_the_same_numbers(launch, interrupt) -> None:
    whole = launch(folder="whole")
    part = interrupt(Interrupt())
    assert launch(f"resume={part.folder}", folder="cut").metrics == whole.metrics


def test_a_protocol_without_validation_runs(launch) -> None:
    run = launch("protocol=loos2025")
    assert "test/mid/content_r2/all" in run.metrics
    assert not any(key.startswith("val/") for key in run.metrics)


def test_other_data_is_refused_in_one_sentence(launch) -> None:
    with pytest.raises(UserError, match="Expected datamodule=content for probe=content, but got datamodule=activations"):
        launch("datamodule=activations")


def fabricated(layers: list[str], complete: bool = True) -> Run:
    metrics: dict[str, float] = {}
    for i, layer in enumerate(layers):
        metrics |= {f"test/{layer}/content_r2/{group}": 0.5 + i / 8 for group in ("all", "interior")}
        metrics |= {f"test/{layer}/content_r2/all/ci_low": 0.25 + i / 8, f"test/{layer}/content_r2/all/ci_high": 0.75 + i / 8}
        metrics |= {f"random_weights/{layer}/content_r2/all": 0.3125, f"shuffled_labels/{layer}/content_r2/all": -0.0625}
        metrics |= {f"chance/{layer}/content_r2/all": 0.0}
        if "__" in layer:
            ends = {"": 0.125, "/ci_low": 0.0625, "/ci_high": 0.1875}
            metrics |= {f"gain_over_none/{layer}/content_r2/all{end}": value for end, value in ends.items()}
    meta = {
        "layers": layers, "probe": "content", "model": "some/model", "weights": "stored", "timestep": 50, "images": {"test": 7},
        "twins": 1,        "complete": complete,
    }  # fmt: skip
    return Run(metrics, meta, {})


@pytest.mark.parametrize("width", [80, 200])
def test_the_table_holds_layers_groups_nulls_and_gains_without_cutting(width: int) -> None:
    def printed(run: Run) -> str:
        out = io.StringIO()
        show(run, Console(file=out, width=width))
        assert "…" not in out.getvalue()
        return out.getvalue()

    plain = printed(fabricated(["down_0_attn_0", "mid"]))
    for piece in ("down_0_attn_0", "mid", ".500", ".625", ".250", ".312", "-.062", "weights"):
        assert piece in plain, piece
    assert "gain" not in plain and "INCOMPLETE" not in plain
    assert "+.125 ± .062" in printed(fabricated(["mid", "mid__position_mean"]))
    assert "INCOMPLETE" in printed(fabricated(["mid"], complete=False))
    few = fabricated(["mid", "mid__position_mean"])
    for images, said in ((7, "few"), (5, "n < 6")):
        few = Run({k: v for k, v in few.metrics.items() if "/ci_" not in k}, few.meta | {"images": {"test": images}}, {})
        assert f"+.125, {said}" in printed(few) and ".500†" in printed(few)


def test_the_figure_draws_a_line_per_network_null_and_mitigation() -> None:
    drawn = curves(over_layers(fabricated(["conv_in", "mid"])).axes[0])
    assert {label: values for label, values in drawn.items() if not label.startswith("_")} == {
        "this network": [0.5, 0.625],
        "random weights, one seed": [0.3125] * 2,
        "shuffled labels": [-0.0625] * 2,
        "knowing the position only": [0, 0],
    }
    both = over_layers(fabricated(["conv_in", "conv_in__leace", "mid", "mid__leace"])).axes[0]
    drawn = curves(both)
    assert drawn["this network, without mitigation"] == [0.5, 0.75] and drawn["with leace"] == [0.625, 0.875]
    assert set(figures(fabricated(["conv_in", "mid"]))) == {"content_over_layers"}
    assert "content_over_layers.png" in OUTPUT_FILES, "what an earlier run drew is removed"
    assert figures(fabricated(["mid", "mid__leace"])) == {}
    plt.close("all")
