"""Several noise levels in one run: they equal separate runs, number for number."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from sdprobe.tokens.keys import Key, label_of, variant

LEVELS = (10, 50, 261)
SMALL = [
    "backbone=tiny",
    "images.size=128",
    "images.limit=20",
    "logger=none",
    "device=cpu",
    "timestep=[10,50,261]",
]
POSITION = ("block=[mid,up_1]", "probe.solver=closed_form")


def named(text: str, timestep: int) -> str:
    """The key of a run at one timestep, as a run at several has it."""
    key = Key.parse(text)
    if key.layer == "baseline":
        return text
    layer, label = key.layer.partition("__")[0], label_of(key.layer)
    return str(replace(key, layer=variant(layer, label, timestep)))


def separate(launch: Callable[..., Any], *overrides: str) -> dict[str, float]:
    """The numbers of a run per level, by the names that they have in one run."""
    found: dict[str, float] = {}
    for timestep in LEVELS:
        run = launch(*overrides, f"timestep={timestep}", folder=f"t{timestep}")
        assert run.meta["timestep"] == timestep
        found |= {named(text, timestep): value for text, value in run.metrics.items()}
    return found


def test_levels_equal_separate_runs(launch: Callable[..., Any]) -> None:
    together = launch(*POSITION)
    assert together.meta["timestep"] == list(LEVELS)
    assert together.layers == [f"{layer}__t{timestep}" for layer in ("mid", "up_1") for timestep in LEVELS]
    apart = separate(launch, *POSITION)
    assert together.metrics == apart and any(key.startswith("random_weights/mid__t10/") for key in apart)
