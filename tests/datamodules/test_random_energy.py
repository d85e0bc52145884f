"""``datamodule.compare=true`` measures every mitigation with a map beside as much energy removed along random directions."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from datamodules.activations import ActivationDataModule
from datamodules.images.texture import Textures
from sdprobe import FrozenSD, heads
from sdprobe.mitigations import Canvas, Leace, Standardize
from sdprobe.reports.dispatch import tables
from sdprobe.reports.printing import printed
from sdprobe.tokens.keys import energy_control, is_energy_control, select

SMALL = [
    "backbone=tiny", "images.size=128", "images.limit=40", "logger=none", "device=cpu", "twins=0", "trainer.max_epochs=2",
    "mitigation=[standardize,leace,canvas]", "datamodule.compare=true", "block=up_1",
]  # fmt: skip
SOLVED = "probe.solver=closed_form"
PAIRS = ("probe=correspondence", "images=scene_pairs", "images.limit=48", "images.pairs_per_category=1")
PROBES = {
    "depth": ("probe=depth", "images=scene_depth", SOLVED),
    "content": ("probe=content",),
    "position with Adam": ("probe.min_steps=10", "probe.patience=1"),
    "statistics": ("probe=statistics", "images.limit=70", "images.size=256"),
    "equivariance": ("probe=equivariance", "images.limit=70", "mitigation=[standardize,leace,padding_swap]"),
    "zero-shot": (*PAIRS, "probe.head=none"),
    "trained pairs": (*PAIRS, "probe.min_steps=10", "probe.patience=1", "twins=1"),
}


def check(run: Any) -> None:
    """Controls stand under their condition, of mitigations with maps only, and nowhere else."""
    assert not any("__random_energy" in key for key in (*run.metrics, *run.maps, *run.pseudovalues(), *run.meta["shapes"]))
    assert not any(map(is_energy_control, run.layers))
    controls = {key.split("/")[1] for key in select(run.metrics, condition="random_energy")}
    assert controls == {"up_1__standardize", "up_1__leace"}
    tested, other = (  # intervals, and groups without tokens, may be missing in either
        {key.partition("/")[2] for key in select(run.metrics, condition=name, layer="up_1__leace", where="all", statistic="")}
        for name in ("test", "random_energy")
    )
    assert tested and tested == other


@pytest.mark.slow
def test_controls_stand_beside_their_mitigation_and_change_nothing(
    launch: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = launch(SOLVED)
    check(run)
    own, control = (run.value(name, "up_1__leace", "binned_accuracy") for name in ("test", "random_energy"))
    assert own < control, "random directions take less of position"
    assert run.value("random_energy", "up_1__standardize", "binned_accuracy") == pytest.approx(
        run.value("test", "up_1", "binned_accuracy"), abs=0.02
    ), "one vector subtracted from every token takes nothing"
    assert list(heads.load(run.folder)) == run.layers
    assert "random energy: as much" in " ".join(printed(tables(run)).split())
    monkeypatch.setattr("datamodules.mitigated.Mitigations.names", lambda self, variant, layer: [variant.name(layer)])
    plain = launch(SOLVED, folder="plain")
    assert plain.metrics == {key: value for key, value in run.metrics.items() if not key.startswith("random_energy/")}


@pytest.mark.slow
@pytest.mark.parametrize("probe", PROBES)
def test_every_probe_has_them(probe: str, launch: Callable[..., Any]) -> None:
    check(launch(*PROBES[probe]))


def test_the_energy_is_equal_in_every_batch(sd: FrozenSD, tmp_path: Path) -> None:
    chosen = {"standardize": Standardize(), "leace": Leace(), "canvas": Canvas()}
    data = ActivationDataModule(
        Textures(size=128, limit=20), sd, block="up_1", mitigation=chosen, compare=True, cache_dir=str(tmp_path)
    )
    data.prepare_data()
    data.setup("fit")
    assert energy_control("up_1__canvas") not in data.shapes and data.layers == tuple(
        name for name in data.shapes if not is_energy_control(name)
    )
    indices = data.split["test"]
    for batch in data.mitigations.wrap(data.base_stream)(indices):
        assert list(batch.grids) == list(data.shapes)
        for label in ("standardize", "leace"):
            name = f"up_1__{label}"
            own, control = (
                (batch.grids["up_1"] - batch.grids[other]).double().square().sum((1, 2, 3))
                for other in (name, energy_control(name))
            )
            assert torch.allclose(own, control, rtol=1e-4)


def test_networks_with_random_weights_have_none(sd: FrozenSD) -> None:
    random = FrozenSD.from_pretrained("tiny", weights="random", weights_seed=1, device="cpu")
    for backbone, count in ((sd, 3), (random, 2)):
        data = ActivationDataModule(
            Textures(size=128, limit=20), backbone, block="up_1", mitigation={"leace": Leace()}, compare=True
        )
        assert len(data.shapes) == count
