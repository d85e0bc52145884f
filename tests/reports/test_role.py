"""The report of a role run: edits beside their controls, and nothing about layers that the loss does not see."""

from typing import Any

import numpy as np
import pytest

from sdprobe.reports.dispatch import figures, tables
from sdprobe.reports.role import first_rebuilt, loss_table, seen
from sdprobe.reports.run import Run
from tests.reports.fabricated import printed

LAYERS = ["down_0", "down_0__leace", "mid", "mid__leace"]
WHERE = ("all", "corner", "border", "interior", "band_4", "band_8")


def estimate(key: str, value: float, half: float) -> dict[str, float]:
    return {key: value, f"{key}/ci_low": value - half, f"{key}/ci_high": value + half, f"{key}/n": 12}


def fabricated(**meta: Any) -> Run:
    """The loss sees down_0 and not mid; position comes back in up_1."""
    numbers: dict[str, float] = {}
    for layer, most in (("down_0", 0.5), ("mid", 0.001)):
        for where in WHERE:
            numbers |= estimate(f"ceiling/{layer}/loss_change/{where}", most, 0.01)
            numbers |= estimate(f"shuffled_position/{layer}/loss_change/{where}", most / 5, 0.01)
            numbers |= estimate(f"test/{layer}__leace/loss_change/{where}", 0.1234, 0.01)
            numbers |= estimate(f"random_energy/{layer}__leace/loss_change/{where}", 0.0567, 0.01)
        numbers |= estimate(f"test/{layer}__leace/displacement/all", 0.0345, 0.01)
        for later, rho in (("up_0", 0.25), ("up_1", 0.75)):
            for name in (f"test/{layer}__leace", f"random_energy/{layer}__leace", f"ceiling/{layer}"):
                numbers |= estimate(f"{name}/reemergence/{later}", rho, 0.05)
    numbers |= estimate("test/down_0__leace/ceiling_share/all", 0.2468, 0.01)
    known = {
        "layers": LAYERS, "published_names": {layer: layer for layer in LAYERS}, "probe": "role", "model": "some/model",
        "weights": "stored", "timestep": 50, "images": {"test": 12}, "photographs": {"test": 12}, "complete": True, "schema": 2,
        "shapes": {layer: [64, 8, 8] for layer in LAYERS}, "later": ["up_0", "up_1"],
    }  # fmt: skip
    return Run(numbers, known | meta, {})


def test_a_layer_that_the_loss_does_not_see_has_no_number_but_its_ceiling() -> None:
    run = fabricated()
    assert seen(run, "down_0") and not seen(run, "mid__leace")
    lines = printed([loss_table(run)], width=200).splitlines()
    [mid] = [line for line in lines if line.startswith("mid")]
    assert "the loss does not see this layer" in mid and "+.10" in mid and "12.34" not in mid
    [edit] = [line for line in lines if "leace" in line and "+12.34" in line]
    assert "+24.68" in edit and "+5.67" in edit and "+3.45" in edit
    assert sum("12.34" in line for line in lines) == 1


def test_a_layer_without_a_ceiling_is_not_called_unseen_by_the_loss() -> None:
    single = fabricated(shapes={layer: [64, 1, 1] if layer.startswith("mid") else [64, 8, 8] for layer in LAYERS})
    assert "ceiling: one token, which is its own mean" in printed([loss_table(single)], width=200)
    few = {key: value for key, value in fabricated().metrics.items() if not key.endswith(("ci_low", "ci_high"))}
    assert "ceiling: too few photographs for an interval" in printed([loss_table(Run(few, fabricated().meta, {}))], width=200)


def test_panels_of_later_layers_are_drawn_alike() -> None:
    later = ["up_0", "up_1", "up_2", "up_3", "conv_out"]
    run = fabricated(later=later)
    for name in later:  # five layers after down_0, and two after mid
        run.metrics.update(estimate(f"ceiling/down_0/reemergence/{name}", 0.5, 0.05))
    left, right = figures(run)["reemergence"].axes[:2]
    lines = [line for axis in (left, right) for line in axis.get_lines() if line.get_label() == "ceiling"]
    assert len(lines) == 2 and lines[0].get_linestyle() == lines[1].get_linestyle() == "--"


def test_the_first_later_layer_with_half_of_the_accuracy_is_named() -> None:
    run = fabricated()
    assert first_rebuilt(run, "test", "down_0__leace") == "up_1"
    assert first_rebuilt(run, "test", "down_0") is None
    assert len(tables(run)) == 2 and len(tables(fabricated(later=[]))) == 1
    assert ".75" in printed(tables(run), width=200)


def test_figures_draw_edits_of_seen_layers_alone() -> None:
    drawn = figures(fabricated())
    assert list(drawn) == ["loss_change_over_layers", "reemergence"]
    losses, rho = (drawn[name].axes[0].get_lines() for name in drawn)
    [change] = [line.get_ydata() for line in losses if line.get_label() == "leace"]
    assert change == pytest.approx([12.34, np.nan], nan_ok=True)
    [later] = [line.get_ydata() for line in rho if line.get_label() == "leace"]
    assert later == pytest.approx([0.25, 0.75])
