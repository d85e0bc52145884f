"""``probe=equivariance``, the command: exact with circular padding on periodic texture, and not otherwise."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from probes import EquivarianceProbe
from sdprobe.reports.run import Run
from sdprobe.runs.cli import UserError
from sdprobe.tokens.keys import select
from sdprobe.utilities.errors import InputError

SMALL = [
    "probe=equivariance", "backbone=tiny", "images=texture", "images.size=128", "images.limit=70", "logger=none", "device=cpu",
    "block=[down_0,mid,prediction]",
]  # fmt: skip
CIRCULAR = "backbone.padding=circular"


def check_exact(run: Run, *conditions: str) -> None:
    assert run.layers == ["down_0", "mid", "conv_out"]
    for condition in conditions:
        shares = select(run.metrics, condition=condition, metric="equivariance", statistic="")
        assert len(shares) == 6 and all(share == pytest.approx(1, abs=1e-8) for share in shares.values())
    assert all(run.value("test", layer, "equivariance_psnr") > 90 for layer in run.layers)
    for layer in run.layers:
        value, low, high = run.estimate("test", layer, "r_pos")
        assert low <= 0 <= high and abs(value) < 0.02


def test_circular_padding_on_periodic_texture_is_exact(launch: Callable[..., Any]) -> None:
    """Although every image has noise of its own: it moves with the picture."""
    check_exact(launch(CIRCULAR, "twins=0"), "test")


@pytest.mark.slow
def test_so_it_is_with_random_weights(launch: Callable[..., Any]) -> None:
    run = launch(CIRCULAR, figures=True)
    check_exact(run, "test", "random_weights")
    assert {"equivariance_by_margin.png", "equivariance_over_layers.png"} <= {path.name for path in run.folder.iterdir()}
    assert "Shift equivariance: " in (run.folder / "report.txt").read_text()


@pytest.mark.slow
def test_zero_padding_is_not_exact_and_less_so_near_the_border(launch: Callable[..., Any]) -> None:
    """Also with a mitigation, and at several noise levels."""
    options = ("twins=0", "timestep=[50,600]", "mitigation=[standardize]", "datamodule.compare=true")
    run = launch(*options)
    assert len(run.layers) == 12
    for layer in ("down_0__t50", "conv_out__t600"):
        everywhere, inside = (run.value("test", layer, "equivariance", where) for where in ("all", "margin_1"))
        assert everywhere < inside < 0.999
        assert run.value("test", layer, "equivariance", "all", "ci_low") < everywhere
    # a constant token more or less moves nothing, but the share is of the distance from the mean, which is the same
    gain = run.estimate("gain_over_none", "mid__t50__standardize", "equivariance")
    assert gain[0] == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (
            "datamodule.shift=24",
            r"datamodule\.shift to be a whole number of tokens in layer down_0 \(16 pixels each\), but got 24",
        ),
        ("datamodule.shift=128", r"datamodule\.shift to be less than images\.size, .* but got 128"),
        ("images.size=64", r"datamodule\.shift to be less than images\.size, .* but got 64 for 64 pixels"),
        ("images.limit=20", "at least 40 images to measure, but got 12 of 20"),
        ("images=texture_latents", "pictures to change, but got the latents"),
        ("mitigation=canvas", "mitigations that keep the picture for datamodule=windows"),
        ("choose=layer", "a probe with a score to maximise, but probe=equivariance has none"),
    ],
)
def test_bad_input_is_refused_before_anything_is_computed(option: str, message: str, launch: Callable[..., Any]) -> None:
    with pytest.raises(UserError, match=message):
        launch(option)


def test_shifts_are_checked_by_the_probe_too() -> None:
    with pytest.raises(InputError, match=r"less than images\.size"):
        EquivarianceProbe({"mid": (4, 1, 1)}, 10, SimpleNamespace(kind="windows"), size=64, shift=64)
