"""Several noise levels in one run: they equal separate runs, number for number."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning import Callback

from sdprobe import FrozenSD, heads, mitigations
from sdprobe.reports.run import Run
from sdprobe.runs.cli import UserError
from sdprobe.tokens.keys import Key, label_of, variant
from sdprobe.utilities.errors import InputError

LEVELS = (10, 50, 261)
EVERY = "timestep=[10,50,261]"
SMALL = [
    "backbone=tiny",
    "images.size=128",
    "images.limit=12",
    "logger=none",
    "device=cpu",
    "trainer.max_epochs=2",
]
COMPARED = ("mitigation=[standardize,shift_flip_noise]", "datamodule.compare=true")
PAIRS = ("probe=correspondence", "images=scene_pairs", "images.limit=48", "images.size=64", "images.pairs_per_category=1")
PROBES = {
    "position with Adam": (
        "block=[mid,up_1]",
        "probe.min_steps=10",
        "probe.patience=1",
        *COMPARED,
        "mitigation=[position_mean]",
        "images.limit=40",
    ),
    "regression": (
        "block=[mid,up_1]",
        "images.limit=40",
        "probe.head=regression",
        "probe.solver=closed_form",
        "mitigation=[standardize,leace]",
    ),
    "statistics": (
        "probe=statistics",
        "block=[conv_in,up_1]",
        "images.limit=70",
        "images.size=256",
        *COMPARED,
        "mitigation=[standardize]",
    ),
    "statistics without a mitigation": ("probe=statistics", "block=[conv_in,up_1]", "images.limit=70", "images.size=256"),
    "equivariance": ("probe=equivariance", "block=[down_0,mid]", "images.limit=70", *COMPARED, "mitigation=[standardize]"),
    "correspondence": (*PAIRS, "block=[mid,up_1]", "probe.min_steps=10", "probe.patience=1"),
    "zero-shot": (*PAIRS, "images.size=128", "block=[mid,up_1]", "probe.head=none", *COMPARED),
    "concatenated": (*PAIRS, "block=[mid,up_1]", "probe.head=none", "datamodule.concatenate=true"),
    "depth": ("probe=depth", "images=scene_depth", "block=[mid,up_1]", "probe.solver=closed_form", *COMPARED),
    "depth with Adam": ("probe=depth", "images=scene_depth", "block=[mid,up_1]", "probe.min_steps=10"),
    "content": ("probe=content", "block=[mid,up_1]", *COMPARED),
    "controls": ("probe=controls", "block=[mid,up_1]", "backbone.noise=shared", "probe.solver=closed_form"),
    "study": ("probe=study", "block=[down_1,up_1]", "images.size=512", "images.limit=10", "probe.solver=closed_form"),
}


def named(text: str, timestep: int) -> str:
    """The key of a run at one timestep, as a run at several has it."""
    key = Key.parse(text)
    if key.layer == "baseline":  # of positions alone, without a network
        return text
    return str(replace(key, layer=variant(key.layer.partition("__")[0], label_of(key.layer), timestep)))


def separate(launch: Callable[..., Any], *overrides: str) -> dict[int, Run]:
    """A run per level."""
    return {timestep: launch(*overrides, f"timestep={timestep}", folder=f"t{timestep}") for timestep in LEVELS}


def check_equal(together: Run, apart: dict[int, Run]) -> None:
    """One run has the numbers of the separate runs, their pseudo-values, maps and heads, bit for bit."""
    assert together.meta["timestep"] == list(LEVELS)
    assert together.metrics == {named(text, t): value for t, run in apart.items() for text, value in run.metrics.items()}
    units = {named(text, t): values for t, run in apart.items() for text, values in run.pseudovalues().items()}
    assert units and together.pseudovalues().keys() == units.keys()
    for level in together.levels:
        alone = apart[level.meta["timestep"]]
        assert level.metrics == alone.metrics and level.layers == alone.layers and level.maps.keys() == alone.maps.keys()
        assert all(
            np.array_equal(level.maps[name], table, equal_nan=table.dtype.kind == "f") for name, table in alone.maps.items()
        )
        own, other = level.pseudovalues(), alone.pseudovalues()
        assert own.keys() == other.keys() and all(np.array_equal(own[key], other[key], equal_nan=True) for key in own)
        for name in ("shapes", "published_names", "mitigations", "noise_level"):
            assert level.meta[name] == alone.meta[name], name
    if (together.folder / "heads").is_dir():
        fitted = heads.load(together.folder)
        for timestep, run in apart.items():
            for layer, head in heads.load(run.folder).items():
                same = fitted[variant(layer.partition("__")[0], label_of(layer), timestep)]
                assert all(torch.equal(tensor, same.tensors[name]) for name, tensor in head.tensors.items())


def test_levels_equal_separate_runs(launch: Callable[..., Any]) -> None:
    """Also every mitigation at every level, and the same network with random weights."""
    overrides = ("block=mid", "probe.solver=closed_form", "mitigation=[standardize]", "datamodule.compare=true")
    together = launch(*overrides, EVERY)
    apart = separate(launch, *overrides)
    check_equal(together, apart)
    kinds = {(Key.parse(text).condition, label_of(Key.parse(text).layer)) for text in together.metrics}
    assert {("random_weights", "standardize"), ("gain_over_none", "standardize"), ("test", "")} <= kinds
    assert together.meta["passes"]["encoder"] == 12, "an image is encoded once"
    assert together.meta["passes"]["unet"] == sum(run.meta["passes"]["unet"] for run in apart.values())


@pytest.mark.slow
@pytest.mark.parametrize("probe", PROBES)
def test_levels_of_every_probe_equal_separate_runs(probe: str, launch: Callable[..., Any]) -> None:
    overrides = ("trainer.num_sanity_val_steps=0", *PROBES[probe])
    check_equal(launch(*overrides, EVERY), separate(launch, *overrides))


def test_noise_levels_are_the_nearest_timesteps(launch: Callable[..., Any]) -> None:
    """Both are recorded; a single level has the names and the settings of its timestep."""
    position = ("block=mid", "probe.solver=closed_form", "twins=0")
    run = launch(*position, "noise_level=[.42,.7]")
    known = FrozenSD.from_pretrained("tiny", device="cpu").noise.noise_levels
    assert run.meta["noise_level"] == known[run.meta["timestep"]].tolist()
    assert run.meta["timestep"][0] == 261 and run.layers[0] == "mid__t261"
    one, same = launch(*position, "noise_level=[.42]"), launch(*position, "timestep=261")
    assert one.metrics == same.metrics and one.meta["timestep"] == 261 and one.layers == ["mid"]
    assert one.meta["config_hash"] == same.meta["config_hash"] and one.meta["noise_level"] == pytest.approx(0.42, abs=1e-3)
    for wrong, message in {"[.2,.2001]": "both nearest to timestep 60", ".99": "from 0.028 to 0.936"}.items():
        with pytest.raises(UserError, match=message):
            launch(*position, f"noise_level={wrong}")


def test_a_fit_at_several_levels_is_used_at_some_of_them(launch: Callable[..., Any], tmp_path: Path) -> None:
    position = ("block=mid", "probe.solver=closed_form", "twins=0")
    fitted = launch(*position, "mitigation=standardize", EVERY)
    saved = ("mitigation=saved", f"mitigation.saved.folder={fitted.folder}")
    one = launch(*position, *saved, "timestep=261", folder="one")
    level = next(level for level in fitted.levels if level.meta["timestep"] == 261)
    assert one.metrics == level.metrics
    with pytest.raises(UserError, match=r"with timestep \[10, 50, 261\], which it was fitted on, but got \[10, 100\]"):
        launch(*position, *saved, "timestep=[10,100]", folder="other")
    assert list(mitigations.load(fitted.folder, timestep=[10, 261])) == [f"mid__t{timestep}" for timestep in LEVELS]
    head = heads.load(fitted.folder, timestep=10)["mid__t10"]
    assert head.mitigation.maps and head.shape == (64, 2, 2)
    with pytest.raises(InputError, match="with timestep"):
        heads.load(fitted.folder, timestep=100)


@pytest.mark.slow
def test_a_resumed_run_continues_at_every_level(launch: Callable[..., Any], interrupt: Callable[..., Any]) -> None:
    trained = (EVERY, "block=[mid,up_1]", "probe.min_steps=10", "trainer.max_epochs=4", "twins=0")

    class Interrupt(Callback):
        def on_train_epoch_start(self, trainer: Any, module: Any) -> None:
            if trainer.current_epoch == 2:
                raise KeyboardInterrupt

    whole = launch(*trained, folder="whole")
    interrupt(Interrupt(), *trained)
    assert launch(*trained, f"resume={whole.folder.with_name('cut')}", folder="cut").metrics == whole.metrics
