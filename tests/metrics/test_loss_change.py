"""LossChange says what a planted linear network loses; shares need a ceiling that the loss sees; re-emergence is a ratio."""

import numpy as np
import pytest
import torch
from torch import Tensor

from sdprobe.metrics.grid_accuracy import GridAccuracy, chance
from sdprobe.metrics.intervals import mean_interval
from sdprobe.metrics.loss_change import WHERE, LossChange, reemergence, reported, squared_errors
from sdprobe.mitigations.energy import random_energy
from sdprobe.tokens.geometry import positions
from tests.metrics.drawn import randn

IMAGES, CHANNELS, SIDE = 12, 6, 8


def filled(edited: Tensor, plain: Tensor, target: Tensor) -> LossChange:
    metric = LossChange(len(edited))
    for part in torch.arange(len(edited)).split(5):
        metric.update(edited[part], plain[part], target[part], part)
    return metric


# --- recovery --------------------------------------------------------------------------------------------------------


def linear() -> tuple[Tensor, Tensor, Tensor]:
    """Grids h, W of a network y = W h (4 × C), and targets that W predicts best, so that its errors are uncorrelated with h."""
    grid = randn(IMAGES, CHANNELS, SIDE, SIDE, seed=1).double() + randn(CHANNELS, SIDE, SIDE, seed=2).double()
    target = torch.einsum("oc,bchw->bohw", randn(4, CHANNELS, seed=3).double(), grid) + randn(IMAGES, 4, SIDE, SIDE, seed=4)
    tokens, goals = (x.movedim(1, -1).flatten(0, 2) for x in (grid, target))
    return grid, torch.linalg.lstsq(tokens, goals).solution.T, target


def applied(weight: Tensor, grid: Tensor) -> Tensor:
    return torch.einsum("oc,bchw->bohw", weight, grid)


@pytest.mark.parametrize("rank", [1, 3, 6])
def test_a_linear_network_loses_the_energy_that_it_reads_in_the_erased_subspace(rank: int) -> None:
    grid, weight, target = linear()
    basis = torch.linalg.qr(randn(CHANNELS, rank, seed=5).double()).Q
    erased = basis @ basis.T
    plain = applied(weight, grid)
    found = filled(applied(weight, grid - applied(erased, grid)), plain, target).compute()
    second = torch.einsum("bchw,bdhw->cd", grid, grid) / (IMAGES * SIDE**2)
    lost = (weight @ erased @ second @ erased.T @ weight.T).trace() / 4  # per value
    assert found["loss_change/all"] == pytest.approx(float(lost / (plain - target).square().mean()), rel=1e-9)
    moved = (weight @ erased @ second @ erased.T @ weight.T).trace() / (weight @ second @ weight.T).trace()
    assert found["displacement/all"] == pytest.approx(float(moved), rel=1e-9)


def test_random_edits_of_equal_energy_cost_their_closed_form_on_average() -> None:
    """Of tokens with covariance I a random subspace has energy E·QQᵀ/r, whose mean over subspaces is E·I/C."""
    draws, tokens = 400, torch.linalg.qr(randn(SIDE**2 - 1, CHANNELS, seed=6).double()).Q.T
    mean_free = torch.cat([tokens, -tokens.sum(1, keepdim=True)], 1)
    whitened = torch.linalg.solve(torch.linalg.cholesky(mean_free @ mean_free.T), mean_free)
    grid = whitened.view(1, CHANNELS, SIDE, SIDE).float().expand(draws, -1, -1, -1)
    weight = randn(4, CHANNELS, seed=7)
    control = random_energy(grid, 0.6 * grid, seed=0, layer="mid", images=list(range(draws)))
    energy = (grid - control).double().square().sum((1, 2, 3))
    assert torch.allclose(energy, (0.4 * grid).double().square().sum((1, 2, 3)), rtol=1e-5)
    plain = applied(weight, grid)
    costs = (applied(weight, control) - plain).double().square().sum((1, 2, 3))  # the target is what the network predicts
    expected = float(energy[0] * weight.double().square().sum() / CHANNELS)
    error = float(costs.std() / draws**0.5)
    assert 0 < error < 0.1 * expected
    assert abs(float(costs.mean()) - expected) < 3 * error


# --- reference -------------------------------------------------------------------------------------------------------


def naive(edited: Tensor, plain: Tensor, target: Tensor, cells: Tensor) -> float:
    """Change of the error in some cells, with loops."""
    errors = [
        sum(
            float((prediction[i] - target[i])[:, row, col].square().sum()) for i in range(IMAGES) for row, col in cells.tolist()
        )
        for prediction in (edited, plain)
    ]
    return (errors[0] - errors[1]) / errors[1]


def test_groups_and_bands_agree_with_loops() -> None:
    edited, plain, target = (randn(IMAGES, 4, SIDE, SIDE, seed=seed).double() for seed in (8, 9, 10))
    found = filled(edited, plain, target).compute()
    grid = positions(SIDE, SIDE)
    edges = ((grid == 0) | (grid == SIDE - 1)).sum(1)
    for where, cells in {
        "all": grid,
        "corner": grid[edges == 2],
        "border": grid[edges == 1],
        "interior": grid[edges == 0],
    }.items():
        assert found[f"loss_change/{where}"] == pytest.approx(naive(edited, plain, target, cells)), where
    for side in (4, 8):
        pooled = [x.unflatten(3, (-1, side)).unflatten(2, (-1, side)).mean((3, 5)) for x in (edited, plain, target)]
        assert found[f"loss_change/band_{side}"] == pytest.approx(naive(*pooled, positions(SIDE // side, SIDE // side)))
    assert found["loss_change/all/n"] == IMAGES


def test_no_edit_changes_nothing_and_an_error_of_high_frequency_is_in_no_band() -> None:
    plain, target = randn(IMAGES, 4, SIDE, SIDE, seed=9), randn(IMAGES, 4, SIDE, SIDE, seed=10)
    same = filled(plain, plain, target).compute()
    assert {key: value for key, value in same.items() if not key.endswith("/n")} == dict.fromkeys(
        (
            f"{name}{end}"
            for name in (*(f"loss_change/{w}" for w in WHERE), "displacement/all")
            for end in (("",) if name == "displacement/all" else ("", "/ci_low", "/ci_high"))
        ),
        0.0,
    )
    checks = torch.tensor([[1.0, -1.0], [-1.0, 1.0]]).repeat(4, 4).expand(1, 4, 8, 8)
    assert squared_errors(checks, torch.zeros_like(checks)).tolist() == [[1, 1, 1, 1, 0, 0]]


def test_no_interval_of_what_is_never_negative_reaches_below_zero() -> None:
    plain, target = randn(IMAGES, 4, SIDE, SIDE, seed=9), torch.zeros(IMAGES, 4, SIDE, SIDE)
    plain[0] *= 5  # one photograph has most of the loss
    edited = plain.clone()
    edited[1] += 3
    found = filled(edited, plain, target).compute() | filled(edited, plain, target).loss()
    for name in ("displacement/all", "prediction_loss/all"):
        assert 0 < found[f"{name}/ci_low"] < found[name] < found[f"{name}/ci_high"]


def test_the_interval_is_over_photographs_and_unseen_ones_do_not_count() -> None:
    plain, target = torch.ones(8, 4, SIDE, SIDE), torch.zeros(8, 4, SIDE, SIDE)
    edited = plain * (1 + torch.arange(8.0)).sqrt()[:, None, None, None]
    metric = LossChange(20)
    metric.update(edited, plain, target, torch.arange(8) * 2)
    found = metric.compute()
    low, high = map(float, mean_interval(np.arange(8.0)))
    assert found["loss_change/all"] == pytest.approx(3.5)
    assert [found[f"loss_change/all/{end}"] for end in ("ci_low", "ci_high")] == pytest.approx([low, high])
    assert found["loss_change/all/n"] == 8
    assert metric.loss()["prediction_loss/all"] == 1 and metric.loss()["prediction_loss/all/n"] == 8


# --- shares and re-emergence -----------------------------------------------------------------------------------------


def test_a_share_of_the_ceiling_is_a_ratio_of_sums_and_absent_where_the_ceiling_holds_zero() -> None:
    plain, target = randn(IMAGES, 4, SIDE, SIDE, seed=9), randn(IMAGES, 4, SIDE, SIDE, seed=10)
    most, half = filled(3 * plain, plain, target), filled(2 * plain, plain, target)
    found = reported(half.shares(most))
    errors = [(factor * plain - target).double().square().sum((1, 2, 3)) for factor in (1, 2, 3)]
    ratio = float((errors[1] - errors[0]).sum() / (errors[2] - errors[0]).sum())
    assert found["ceiling_share/all"] == pytest.approx(ratio)
    assert found["ceiling_share/all/ci_low"] < ratio < found["ceiling_share/all/ci_high"]
    assert {key: value for key, value in reported(most.shares(most)).items() if "ci" in key}.keys() and all(
        value == pytest.approx(1) for key, value in reported(most.shares(most)).items() if not key.endswith("/n")
    )
    unseen = plain + 1e-3 * randn(IMAGES, 4, SIDE, SIDE, seed=11)
    assert "ceiling_share/all" not in half.shares(filled(unseen, plain, target))
    assert not half.shares(filled(plain, plain, target))


def guesses(right: int, seed: int = 0) -> GridAccuracy:
    """An accuracy over 12 photographs of 64 tokens: the first ``right`` places are known, the others are guessed as one."""
    metric, where = GridAccuracy(SIDE, SIDE, (), IMAGES), positions(SIDE, SIDE)
    for photo in range(IMAGES):
        known = torch.arange(SIDE**2) < right + (photo + seed) % 3
        metric.update(torch.where(known[:, None], where, 0), where, {}, torch.full((SIDE**2,), photo))
    return metric


def test_reemergence_is_the_share_of_accuracy_above_chance() -> None:
    null = chance(SIDE, SIDE)["binned_accuracy"]
    plain, edited = guesses(60), guesses(30, seed=1)
    share = reemergence(edited, plain, null)
    assert share is not None
    accuracies = [metric.compute()["binned_accuracy/all"] - null for metric in (edited, plain)]
    assert share.mean() == pytest.approx(accuracies[0] / accuracies[1])
    assert reemergence(plain, plain, null) == pytest.approx(np.ones(IMAGES))
    assert reemergence(edited, guesses(0), null) is None, "nothing to lose"
