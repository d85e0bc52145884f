"""``mitigation=…`` in front of every probe, as a user types it, in miniature."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sdprobe.mitigations import load
from sdprobe.runs.cli import UserError

ROOT = Path(__file__).parent.parent
SMALL = [
    "backbone=tiny",
    "images.size=128",
    "images.limit=24",
    "logger=none",
    "device=cpu",
    "twins=0",
    "protocol.solver=closed_form",
]
TWO = "mitigation=[standardize,canvas]"


@pytest.fixture
def run(launch: Callable[..., Any], tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """metrics.json of a run that got these overrides."""

    def go(*overrides: str, folder: str = "run") -> dict[str, Any]:
        launch(*overrides, folder=folder)
        found: dict[str, Any] = json.loads((tmp_path / folder / "metrics.json").read_text())
        return found

    return go


def test_a_variant_has_the_numbers_that_its_mitigation_has_alone(run: Callable[..., dict[str, Any]]) -> None:
    probe = "depth"  # tests/datamodules/test_mitigated.py has the grids themselves
    both = run(f"probe={probe}", "block=up_0", TWO, "datamodule.compare=true", folder="both")
    plain, alone = (
        run(f"probe={probe}", "block=up_0", folder="plain"),
        run(f"probe={probe}", "block=up_0", "mitigation=standardize"),
    )
    for name, single in (("up_0", plain), ("up_0__standardize", alone)):
        keys = [key for key in single if key.startswith("test/up_0/") and not key.endswith(("n", "ci_low", "ci_high"))]
        assert keys
        for key in keys:
            assert both[key.replace("test/up_0/", f"test/{name}/")] == pytest.approx(single[key], abs=1e-5), key
    gain = "gain_over_none/up_0__canvas/rmse/all"
    own, base = (both[f"test/{name}/rmse/all"] for name in ("up_0__canvas", "up_0"))
    assert both[gain] == pytest.approx(own - base)
    assert both["meta"]["photographs"]["test"] < 6 and f"{gain}/p" not in both, "too few to tell how sure it is"
    assert both["meta"]["mitigations"]["canvas"]["passes"] == 4


@pytest.mark.slow
def test_pairs_are_matched_behind_mitigations_of_other_pictures(run: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    found = run(
        "probe=correspondence", "block=up_0", TWO, "datamodule.compare=true", "images.limit=48", "protocol.matching=none"
    )
    base, variant = (found[f"test/{name}/pck_ours_point_0.10/all"] for name in ("up_0", "up_0__standardize"))
    assert found["gain_over_none/up_0__standardize/pck_ours_point_0.10/all"] == pytest.approx(variant - base)
    fitted = json.loads((tmp_path / "run" / "mitigation" / "standardize" / "mitigation.json").read_text())["fitted_on"]
    assert len(fitted["images"]) == found["meta"]["mitigations"]["standardize"]["fits"]["up_0"][0]["fit_images"] > 0


def test_statistics_are_measured_behind_mitigations(run: Callable[..., dict[str, Any]]) -> None:
    found = run(
        "probe=statistics", "block=[conv_in,down_0_res_0]", "images.limit=70", "datamodule.margin=16",
        "mitigation=position_mean", "mitigation.position_mean.basis=cosine", "mitigation.position_mean.cosines=2",
        "datamodule.compare=true",
    )  # fmt: skip
    before, after = (found[f"test/{name}/r_pos/all"] for name in ("conv_in", "conv_in__position_mean"))
    assert after < before  # conv_in pads with zeros: its border is a position
    assert found["gain_over_none/conv_in__position_mean/r_pos/all"] == pytest.approx(after - before)
    assert found["gain_over_none/conv_in__position_mean/r_pos/all/ci_high"] < 0


def test_a_saved_mitigation_is_used_again(run: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    first = run("block=mid", "mitigation=[standardize,pca_drop]", folder="first")
    chain = load(tmp_path / "first", timestep=50)["mid"]
    assert [type(each.settings).__name__ for each in chain.maps] == ["Standardize", "PcaDrop"]
    again = run("block=mid", "mitigation=saved", f"mitigation.saved.folder={tmp_path / 'first'}", folder="again")
    accuracy = "test/mid/binned_accuracy/all"
    assert again[accuracy] == first[accuracy]
    with pytest.raises(UserError, match="used with timestep 50, which it was fitted on, but got 100"):
        run("block=mid", "timestep=100", "mitigation=saved", f"mitigation.saved.folder={tmp_path / 'first'}", folder="third")


@pytest.mark.parametrize(
    ("overrides", "match"),
    [
        (["mitigation=[standardize,canvas]"], "Expected Canvas to come first"),
        (["mitigation=standardize", "protocol=loos2025"], "this protocol has none"),
        (["mitigation=position_mean", "mitigation.position_mean.basis=onehot", "block=up_1"], "columns, 63, but got 10"),
        (["probe=study", "mitigation=standardize"], "Expected no mitigation for probe=study"),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_refused_in_one_sentence(
    run: Callable[..., dict[str, Any]], overrides: list[str], match: str
) -> None:
    with pytest.raises(UserError, match=match):
        run("block=mid", *overrides)
