"""What every probe keeps to, tested on hand-made batches: keys, repeatability, layers side by side, refusals."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from probes import (
    ContentProbe,
    ControlsProbe,
    CorrespondenceProbe,
    DepthProbe,
    EquivarianceProbe,
    PositionProbe,
    StatisticsProbe,
    StudyProbe,
)
from sdprobe import heads
from sdprobe.tokens.keys import Key
from sdprobe.utilities.errors import InputError
from tests.probes.conftest import Planted, Targeted, fit_and_test
from tests.probes.planted_pairs import PlantedPairs, planted_pairs
from tests.probes.recomputed import NUMBERS
from tests.probes.test_statistics_probe import Views, views
from tests.probes.test_study_probe import IMAGES, Study

LAYERS = {"mid": (6, 8), "up_1": (5, 16)}  # name → channels, side


def grids(images: int, layers: dict[str, tuple[int, int]]) -> dict[str, Tensor]:
    """Tokens of each layer around a mean of their own."""
    made = {}
    for number, (layer, (channels, side)) in enumerate(sorted(layers.items())):
        generator = torch.Generator().manual_seed(len(layer) + number)
        made[layer] = 1 + torch.randn(images, channels, side, side, generator=torch.Generator().manual_seed(side)) * (
            0.5 + torch.rand(channels, 1, 1, generator=generator)
        )
    return made


def position(layers: dict[str, tuple[int, int]]) -> Planted:
    return Planted(grids(20, layers), batch=64)


def targeted(kind: str, targets: int) -> Callable[[dict[str, tuple[int, int]]], Targeted]:
    def make(layers: dict[str, tuple[int, int]]) -> Targeted:
        tokens = grids(20, layers)
        wanted = {
            layer: torch.rand(20, side, side, targets, generator=torch.Generator().manual_seed(side)) + 1
            for layer, (_, side) in layers.items()
        }
        return Targeted(kind, tokens, wanted, batch=64)

    return make


def study(layers: dict[str, tuple[int, int]]) -> Study:
    whole = grids(IMAGES, layers)
    data = Study(whole, {layer: grid[:, :, 1:-1, 1:-1] for layer, grid in whole.items()}, IMAGES, 8, None)
    data.order = torch.arange(IMAGES)
    return data


def statistics(layers: dict[str, tuple[int, int]]) -> Views:
    return Views({layer: views(grid) for layer, grid in grids(90, layers).items()})


def pairs(layers: dict[str, tuple[int, int]]) -> PlantedPairs:
    made, _ = planted_pairs(6, 5, seed=3)
    return PlantedPairs(grids(6, layers), {"train": made[:16], "val": made[16:20], "test": made[20:]})


@dataclass(frozen=True)
class Kind:
    """A probe, the data it is tested with, and the conditions its keys may have."""

    probe: type
    data: Callable[[dict[str, tuple[int, int]]], Any]
    conditions: set[str]
    options: dict[str, Any]
    trained: bool = True


HEADS = {"min_steps": 10, "patience": 1}
LABELS = {"test", "shuffled_labels", "val"}
KINDS = {
    "position": Kind(PositionProbe, position, LABELS | {"random_partition", "chance"}, HEADS),
    "position, closed form": Kind(PositionProbe, position, LABELS | {"random_partition", "chance"}, {"solver": "closed_form"}),
    "depth": Kind(DepthProbe, targeted("depth", 1), LABELS | {"constant", "position_only"}, HEADS),
    "content": Kind(ContentProbe, targeted("content", 4), LABELS | {"chance", "position_only"}, {}),
    "study": Kind(StudyProbe, study, {"test", "shuffled_labels", "random_partition", "chance"}, {"solver": "closed_form"}),
    "correspondence": Kind(
        CorrespondenceProbe,
        pairs,
        LABELS | {"zero_shot", "random_point", "same_position", "gain_over_zero_shot", "gain_over_same_position"},
        HEADS | {"dimensions": 8, "enlarged": False},
    ),
}


def measured(kind: Kind, layers: dict[str, tuple[int, int]]) -> Any:
    data = kind.data(layers)
    probe = kind.probe(data.shapes, 90, data, **kind.options)
    fit_and_test(probe, data, epochs=4)
    return probe


@pytest.fixture(scope="module", params=list(KINDS))
def both(request: pytest.FixtureRequest) -> tuple[Kind, Any]:
    """A kind of probe, and the probe after a run on two layers."""
    kind = KINDS[request.param]
    return kind, measured(kind, LAYERS)


def test_every_number_is_finite_and_its_key_follows_the_grammar(both: tuple[Kind, Any]) -> None:
    kind, probe = both
    keys = {text: Key.parse(text) for text in probe.results}
    assert {key.condition for key in keys.values()} == kind.conditions
    assert {key.layer for key in keys.values()} - {"baseline"} == set(LAYERS)
    assert all(math.isfinite(value) for value in probe.results.values())
    assert not set(probe.not_converged) - set(LAYERS)


def test_what_units_contribute_belongs_to_a_result(both: tuple[Kind, Any]) -> None:
    _, probe = both
    assert set(probe.pseudovalues()) <= set(probe.results)
    assert all(values.ndim == 1 for values in probe.pseudovalues().values())


def test_a_layer_beside_another_gives_what_it_gives_alone(both: tuple[Kind, Any]) -> None:
    kind, probe = both
    alone = measured(kind, {"mid": LAYERS["mid"]})
    mine = {key: value for key, value in probe.results.items() if "/mid/" in key}
    assert {key: value for key, value in alone.results.items() if "/mid/" in key} == mine


def test_no_process_reduces_metrics_that_have_seen_everything(both: tuple[Kind, Any]) -> None:
    _, probe = both
    assert not any(module._to_sync for module in probe.modules() if hasattr(module, "_to_sync"))


# --- saved heads -----------------------------------------------------------------------------------------------------


def check_saved(probe: Any, data: Any, folder: Path) -> None:
    """The saved heads give the numbers that the probe reports, on its own test activations."""
    probe.save(folder, timestep=50)
    loaded = heads.load(folder, timestep=50)
    assert list(loaded) == list(LAYERS)
    for layer, head in loaded.items():
        grid = data.grids[layer][list(data.parts["test"])] if isinstance(data, Planted) else data.grids[layer]
        found = NUMBERS[head.predicts](head, grid, data, layer)
        # sums have another order; predictions may differ in their last bit, and only at a tie in more
        assert found == pytest.approx({name: probe.results[f"test/{layer}/{name}/all"] for name in found}, abs=1e-6)


def test_saved_heads_give_the_test_numbers(both: tuple[Kind, Any], tmp_path: Path) -> None:
    kind, probe = both
    if kind.probe is not StudyProbe:  # its heads are those of PositionProbe
        check_saved(probe, kind.data(LAYERS), tmp_path)


REGRESSION = {"head": "regression"}


@pytest.mark.parametrize(
    ("probe", "data", "options"),
    [
        pytest.param(PositionProbe, position, REGRESSION | {"solver": "closed_form"}, id="regression, closed form"),
        pytest.param(PositionProbe, position, REGRESSION | HEADS, id="regression", marks=pytest.mark.slow),
        pytest.param(DepthProbe, targeted("depth", 1), {"solver": "closed_form"}, id="depth, closed form"),
    ],
)
def test_saved_heads_of_other_solvers_do_too(probe: type, data: Any, options: dict[str, Any], tmp_path: Path) -> None:
    check_saved(measured(Kind(probe, data, set(), options), LAYERS), data(LAYERS), tmp_path)


# --- bad input -------------------------------------------------------------------------------------------------------

PROBES = (
    PositionProbe,
    ControlsProbe,
    StudyProbe,
    DepthProbe,
    ContentProbe,
    CorrespondenceProbe,
    StatisticsProbe,
    EquivarianceProbe,
)


@pytest.mark.parametrize("probe", PROBES, ids=lambda probe: probe.kind)
def test_data_of_another_kind_are_refused_where_the_probe_is_built(probe: type) -> None:
    said = f"Expected datamodule={probe.reads} for probe={probe.kind}, but got datamodule=other. Leave out datamodule="
    with pytest.raises(InputError, match=said):
        probe({"mid": (4, 16, 16)}, 10, SimpleNamespace(kind="other"))


@pytest.mark.parametrize(
    ("probe", "option", "message"),
    [
        (PositionProbe, {"head": "linear"}, "probe.head to be one of classification, regression, but got 'linear'"),
        (PositionProbe, {"solver": "sgd"}, "probe.solver to be one of adam, closed_form, but got 'sgd'"),
        (DepthProbe, {"solver": "sgd"}, "probe.solver to be one of adam, closed_form, but got 'sgd'"),
        (DepthProbe, {"learning_rate": 0.0}, "probe.learning_rate to be positive, but got 0"),
        (CorrespondenceProbe, {"head": "mlp"}, "probe.head to be one of linear, none, but got 'mlp'"),
        (CorrespondenceProbe, {"dimensions": 0}, "probe.dimensions to be at least 1"),
        (CorrespondenceProbe, {"temperature": -1.0}, "probe.temperature to be positive"),
        (CorrespondenceProbe, {"pictured": -1}, "probe.pictured to be at least 0"),
        (CorrespondenceProbe, {"patience": 0}, "probe.patience to be at least 1"),
        (CorrespondenceProbe, {"min_steps": -1}, "probe.min_steps to be at least 0"),
        (StatisticsProbe, {"pictured": -1}, "probe.pictured to be at least 0, but got -1"),
        (StatisticsProbe, {"token": [12]}, r"probe\.token to be \[row,col\], each from 0 to 31, but got \["),
        (StatisticsProbe, {"token": [12, 32]}, r"probe\.token to be \[row,col\], each from 0 to 31, but got \["),
        (StatisticsProbe, {"token": [-1, 0]}, r"probe\.token to be \[row,col\], each from 0 to 31, but got \["),
    ],
)
def test_unusable_options_are_refused(probe: type, option: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        probe({"mid": (4, 16, 16)}, 50, SimpleNamespace(kind=probe.reads), **option)
