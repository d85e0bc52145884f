"""GridAccuracy: agrees with a loop over tokens, does not care how tokens arrive, and chance is what guessing gets."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from sdprobe.metrics.grid_accuracy import KINDS, GridAccuracy, chance, correct

GROUPS = ("corner", "high_norm")
Tokens = tuple[Tensor, Tensor, dict[str, Tensor], Tensor]


def tokens_of(count: int, height: int, width: int, photos: int, seed: int) -> Tokens:
    """Predictions right about half of the time, masks and photographs at random."""
    generator = torch.Generator().manual_seed(seed)
    sides = torch.tensor([height, width])
    target, guess = ((torch.rand(count, 2, generator=generator) * sides).long() for _ in range(2))
    predicted = torch.where(torch.rand(count, 2, generator=generator) < 0.5, target, guess)
    masks = {group: torch.rand(count, generator=generator) < 0.3 for group in GROUPS}
    return predicted, target, masks, torch.randint(photos, (count,), generator=generator)


@st.composite
def cases(draw: Any) -> tuple[int, int, int, Tokens]:
    height, width, photos = draw(st.integers(1, 20)), draw(st.integers(1, 20)), draw(st.integers(1, 5))
    tokens = tokens_of(draw(st.integers(1, 60)), height, width, photos, draw(st.integers(0, 10**6)))
    return height, width, photos, tokens


def measured(height: int, width: int, photos: int, *batches: Tokens) -> GridAccuracy:
    metric = GridAccuracy(height, width, GROUPS, photos)
    for batch in batches:
        metric.update(*batch)
    return metric


def reference(height: int, width: int, tokens: Tokens) -> dict[str, float]:
    """The definitions, token by token."""
    sums: dict[str, float] = {}
    counts: dict[str, int] = {}
    predicted, target, masks, _ = tokens
    for n in range(len(target)):
        (row, col), (true_row, true_col) = predicted[n].tolist(), target[n].tolist()
        fine = [row == true_row, col == true_col]
        coarse = [
            math.floor(guess * min(8, side) / side) == math.floor(true * min(8, side) / side)
            for guess, true, side in ((row, true_row, height), (col, true_col, width))
        ]
        values = {"axis_accuracy": sum(fine) / 2, "cell_accuracy": float(all(fine)), "binned_accuracy": sum(coarse) / 2}
        for group in ("all", *(group for group in GROUPS if masks[group][n])):
            for kind, value in values.items():
                key = f"{kind}/{group}"
                sums[key] = sums.get(key, 0.0) + value
                counts[key] = counts.get(key, 0) + 1
    return {key: value / counts[key] for key, value in sums.items()} | {f"{key}/n": n for key, n in counts.items()}


@given(cases())
@settings(deadline=None, max_examples=60)
def test_it_agrees_with_a_loop_over_tokens(case: tuple[int, int, int, Tokens]) -> None:
    height, width, photos, tokens = case
    values = measured(height, width, photos, tokens).compute()
    expected = reference(height, width, tokens)
    assert {key for key in values if "/ci_" not in key} == set(expected)
    for key, value in expected.items():
        assert values[key] == pytest.approx(value, abs=1e-12), key


def test_a_right_and_a_wrong_predictor_score_one_and_zero_and_are_not_certain() -> None:
    _, target, masks, _ = tokens_of(64, 16, 12, 1, seed=1)
    photo = torch.arange(64) % 8
    right = measured(16, 12, 8, (target, target, masks, photo)).compute()
    opposite = (target + torch.tensor([8, 6])) % torch.tensor([16, 12])
    wrong = measured(16, 12, 8, (opposite, target, masks, photo)).compute()
    square = stats.t.ppf(0.975, 7) ** 2
    for kind in KINDS:
        assert right[f"{kind}/all"] == right[f"{kind}/all/ci_high"] == 1
        assert wrong[f"{kind}/all"] == wrong[f"{kind}/all/ci_low"] == 0
        assert right[f"{kind}/all/ci_low"] == pytest.approx(8 / (8 + square)), "eight photographs without an error"
        assert wrong[f"{kind}/all/ci_high"] == pytest.approx(square / (8 + square))


@given(st.integers(1, 80), st.integers(1, 80))
@settings(deadline=None, max_examples=50)
def test_binning_only_helps_and_changes_nothing_up_to_eight(height: int, width: int) -> None:
    predicted, target, *_ = tokens_of(80, height, width, 1, seed=height)
    axis, cell, binned = correct(predicted, target, height, width).unbind(1)
    assert (binned >= axis).all()
    assert (cell <= axis).all()
    if max(height, width) <= 8:
        assert torch.equal(binned, axis)


@pytest.mark.parametrize(("height", "width"), [(8, 8), (64, 64), (2, 3), (1, 1), (9, 13), (12, 70), (20, 31)])
def test_chance_is_what_random_guesses_get(height: int, width: int) -> None:
    repeats = max(1, 40_000 // (height * width))
    generator = torch.Generator().manual_seed(height * width)
    rows, cols = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    target = torch.stack([rows.flatten(), cols.flatten()], dim=1).repeat(repeats, 1)  # whole grids
    guess = (torch.rand(len(target), 2, generator=generator) * torch.tensor([height, width])).long()
    right = correct(guess, target, height, width)
    expected = chance(height, width)
    assert list(expected) == list(KINDS)
    for k, (kind, level) in enumerate(expected.items()):
        trials = len(target) * (1 if kind == "cell_accuracy" else 2)  # an axis accuracy is the mean of two guesses
        successes = round(right[:, k].sum().item() * (1 if kind == "cell_accuracy" else 2))
        low, high = stats.binom.interval(0.9999, trials, level)
        assert low <= successes <= high, kind


def test_chance_differs_where_it_should() -> None:
    assert chance(64, 64)["axis_accuracy"] == 1 / 64
    assert chance(64, 64)["binned_accuracy"] == 1 / 8
    assert chance(4, 2) == {"axis_accuracy": 3 / 8, "cell_accuracy": 1 / 8, "binned_accuracy": 3 / 8}
    assert chance(9, 9)["binned_accuracy"] == pytest.approx((7 * 1 + 4) / 81), "seven bins of one and one of two"


def test_maps_hold_accuracy_per_position_and_counts_of_true_and_predicted() -> None:
    target = torch.tensor([[0, 0], [0, 0], [1, 2], [2, 1]])
    predicted = torch.tensor([[0, 0], [0, 1], [2, 0], [2, 1]])
    masks = {group: torch.zeros(4, dtype=torch.bool) for group in GROUPS}
    maps = measured(3, 4, 1, (predicted, target, masks, torch.zeros(4, dtype=torch.long))).maps()
    assert maps["accuracy"][0, 0] == 0.75
    assert maps["accuracy"][1, 2] == 0
    assert maps["accuracy"][2, 1] == 1
    assert np.isnan(maps["accuracy"]).sum() == 12 - 3
    assert maps["rows"].tolist() == [[2, 0, 0], [0, 0, 1], [0, 0, 1]]
    assert maps["cols"].shape == (4, 4)
    assert maps["cols"][0, 1] == maps["cols"][2, 0] == maps["cols"][1, 1] == maps["cols"][0, 0] == 1
