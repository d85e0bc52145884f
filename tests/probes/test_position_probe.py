"""The position probe finds what was planted, finds nothing where nothing was, and every head is its own."""

import numpy as np
import pytest
import torch
from scipy import stats

from probes import PositionProbe
from tests.probes.conftest import contributions


@pytest.mark.parametrize("solver", ["adam", "closed_form"])
def test_a_planted_position_code_is_found(solver, planted, coded, fit_and_test) -> None:
    data = planted({"mid": coded(images=40, channels=32, side=8, strength=3.0)})
    probe = PositionProbe(data.shapes, data.images, solver=solver)
    results = fit_and_test(probe, data, epochs=60)
    assert results["test/mid/axis_accuracy/all"] > 0.99
    contributions(probe, units=8)
    assert results["test/mid/cell_accuracy/corner"] > 0.98
    assert results["test/mid/axis_accuracy/all/n"] == 8 * 64
    assert results["test/mid/axis_accuracy/all/ci_low"] <= results["test/mid/axis_accuracy/all"]


@pytest.mark.parametrize("solver", ["adam", "closed_form"])
@pytest.mark.parametrize("variant", ["test", "shuffled_labels", "random_partition"])
def test_white_noise_gives_chance(solver, variant, planted, coded, fit_and_test) -> None:
    data = planted({"mid": coded(images=100, channels=16, side=8, strength=0.0)})
    results = fit_and_test(PositionProbe(data.shapes, data.images, solver=solver, min_steps=50), data, epochs=10)
    guesses = 2 * int(results[f"{variant}/mid/axis_accuracy/all/n"])  # a row and a column guess per token
    low, high = stats.binom.interval(0.9999, guesses, 1 / 8)
    assert low <= results[f"{variant}/mid/axis_accuracy/all"] * guesses <= high


def test_shuffled_labels_stay_at_chance_where_the_code_is_perfect(planted, coded, fit_and_test) -> None:
    data = planted({"mid": coded(images=60, channels=32, side=8, strength=3.0)})
    results = fit_and_test(PositionProbe(data.shapes, data.images, min_steps=200), data, epochs=20)
    assert results["test/mid/axis_accuracy/all"] > 0.95
    # what is left is a fixed, arbitrary guess per position: 64 of them, so the binomial runs over positions
    low, high = stats.binom.interval(0.999, 128, 1 / 8)
    assert low <= results["shuffled_labels/mid/axis_accuracy/all"] * 128 <= high


def test_a_random_partition_tells_memory_from_a_low_rank_code(planted, coded, fit_and_test) -> None:
    onehot = torch.eye(64).unflatten(1, (8, 8))[None].expand(40, -1, -1, -1)  # every position its own channel
    noise = torch.randn(40, 64, 8, 8, generator=torch.Generator().manual_seed(0))
    data = planted({"memory": 20 * onehot + noise, "code": coded(images=40, channels=64, side=8, strength=3.0)})
    results = fit_and_test(PositionProbe(data.shapes, data.images, solver="closed_form"), data, epochs=1)
    assert results["test/memory/axis_accuracy/all"] > 0.98
    assert results["random_partition/memory/axis_accuracy/all"] > 0.98, "64 free directions memorise any labelling"
    assert results["test/code/axis_accuracy/all"] > 0.98
    assert results["random_partition/code/axis_accuracy/all"] < 0.6, "row + column codes cannot"


@pytest.mark.parametrize("solver", ["adam", "closed_form"])
def test_regression_recovers_planted_coordinates(solver, planted, fit_and_test) -> None:
    ramp = torch.linspace(-1, 1, 8)
    signal = torch.stack([ramp[:, None].expand(8, 8), ramp[None].expand(8, 8)])
    mixing = torch.randn(12, 2, generator=torch.Generator().manual_seed(1))
    grids = torch.einsum("cs,shw->chw", mixing, signal) + 0.02 * torch.randn(
        40, 12, 8, 8, generator=torch.Generator().manual_seed(2)
    )
    data = planted({"mid": grids})
    probe = PositionProbe(data.shapes, data.images, head="regression", solver=solver, learning_rate=1e-2)
    results = fit_and_test(probe, data, epochs=200)
    assert results["test/mid/r2/all"] > 0.99
    assert results["test/mid/axis_accuracy/all"] > 0.95
    assert abs(results["shuffled_labels/mid/axis_accuracy/all"] - 1 / 8) < 0.05


def test_layers_with_more_tokens_do_not_disturb_smaller_ones(planted, coded, fit_and_test) -> None:
    grids = {"mid": coded(20, 16, 4, 0.3, seed=1), "up_1": coded(20, 8, 16, 0.2, seed=2)}
    together = PositionProbe({layer: tuple(grid.shape[1:]) for layer, grid in grids.items()}, 20)
    fit_and_test(together, planted(grids, validate=False, batch=64), epochs=3)
    probe = PositionProbe({"mid": tuple(grids["mid"].shape[1:])}, 20)
    fit_and_test(probe, planted({"mid": grids["mid"]}, validate=False, batch=64), epochs=3)
    assert torch.equal(probe.heads["mid"].weight, together.heads["mid"].weight)


def test_chance_matches_the_grid(planted, coded, fit_and_test) -> None:
    data = planted({"up_1": coded(20, 4, 12, 0.0)})
    results = fit_and_test(PositionProbe(data.shapes, data.images, solver="closed_form"), data, epochs=1)
    assert results["chance/up_1/axis_accuracy/all"] == pytest.approx(1 / 12)
    assert results["chance/up_1/cell_accuracy/all"] == pytest.approx(1 / 144)
    # 12 rows in 8 bins: four bins of two rows, four of one
    assert results["chance/up_1/binned_accuracy/all"] == pytest.approx(4 * (2 / 12) ** 2 + 4 * (1 / 12) ** 2)


def test_maps_add_up_to_the_accuracy(planted, coded, fit_and_test) -> None:
    data = planted({"mid": coded(20, 8, 8, 0.5)})
    probe = PositionProbe(data.shapes, data.images, solver="closed_form")
    results = fit_and_test(probe, data, epochs=1)
    maps = probe.maps()
    assert maps["mid/accuracy"].mean() == pytest.approx(results["test/mid/axis_accuracy/all"])
    diagonal = (np.trace(maps["mid/rows"]) + np.trace(maps["mid/cols"])) / (maps["mid/rows"].sum() + maps["mid/cols"].sum())
    assert diagonal == pytest.approx(results["test/mid/axis_accuracy/all"])
