"""probe=role as a user runs it, in miniature: what it writes, that it repeats after an interruption, and what it refuses."""

from pathlib import Path
from typing import Any

import pytest
from lightning import Callback

from sdprobe.runs.cli import UserError

SMALL = [
    "probe=role", "backbone=tiny", "images.size=64", "images.limit=40", "block=[mid,up_1]", "logger=none", "device=cpu",
    "twins=0", "backbone.precision=fp32", "mitigation=[position_mean,standardize]",
]  # fmt: skip


class Interrupt(Callback):
    """Ctrl-C while testing."""

    def on_test_batch_start(self, *arguments: Any) -> None:
        raise KeyboardInterrupt


@pytest.mark.slow
def test_an_interrupted_run_starts_again_and_gives_the_same_numbers(launch: Any, interrupt: Any, tmp_path: Path) -> None:
    options = ["datamodule.reemergence=true", "datamodule.later=up_2"]
    whole = launch(*options, folder="whole", figures=True)
    assert (tmp_path / "whole" / "loss_change_over_layers.png").exists() and (tmp_path / "whole" / "reemergence.png").exists()
    assert whole.meta["prediction"] == "epsilon" and whole.meta["later"] == ["up_2"]
    part = interrupt(Interrupt(), *options)
    assert launch(*options, f"resume={part.folder}", folder="cut").metrics == whole.metrics


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["mitigation=canvas"], "Expected mitigations with a fitted map, to apply inside the network, but got canvas"),
        (["mitigation=shift_flip_noise"], "but got shift_flip_noise, which changes how the network is shown an image"),
        (["mitigation=padding_swap"], r"mitigation\.padding_swap\.where to be a layer of block= \(mid, up_1\), but got None"),
        (["protocol=loos2025"], "Expected images to fit a mitigation on, but this protocol has none"),
        (
            ["probe=position", "mitigation=padding_swap", "mitigation.padding_swap.where=up_1", "block=up_1"],
            "only with probe=role",
        ),
    ],
)
def test_what_cannot_be_measured_is_refused(overrides: list[str], message: str, launch: Any) -> None:
    with pytest.raises(UserError, match=message):
        launch(*overrides)
