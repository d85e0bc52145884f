"""CornerSimilarity: agrees with a loop over pairs of images, and sees corners that are alike across images only."""

import math
from itertools import combinations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sdprobe.metrics.corner_similarity import CornerSimilarity
from sdprobe.metrics.folds import FOLDS, Estimate, folds_of
from sdprobe.metrics.group_similarity import GroupSimilarity, corner_mask
from sdprobe.metrics.layer_tokens import LayerTokens
from sdprobe.utilities.errors import InputError
from tests.metrics.drawn import randn

SIDE, MARGIN = 7, 1
CORNERS = [(1, 1), (1, 5), (5, 1), (5, 5)]


def layer_of(grid: Tensor, mean: Tensor | None = None, rank: Tensor | None = None) -> LayerTokens:
    return LayerTokens.of(grid, {"inner": corner_mask(SIDE, SIDE, MARGIN).expand(len(grid), -1, -1)}, mean, rank)


def measured(grid: Tensor, mean: Tensor | None = None, parts: int = 1) -> CornerSimilarity:
    metric = CornerSimilarity(grid.shape[1], images=len(grid))
    for index in torch.arange(len(grid)).tensor_split(parts):
        metric.update(layer_of(grid[index], mean), "inner")
    return metric


def estimate(metric: CornerSimilarity) -> Estimate:
    return metric.estimates()["similarity_across/corner"]


def reference(grid: Tensor, mean: Tensor) -> float:
    """Cosine by cosine over pairs of images, for each corner; the mean of those that have any."""
    means = []
    for row, col in CORNERS:
        tokens = [(image[:, row, col] - mean).double() for image in grid]
        tokens = [token for token in tokens if token.norm() > 0]
        values = [float(a @ b / a.norm() / b.norm()) for a, b in combinations(tokens, 2)]
        means += [sum(values) / len(values)] if values else []
    return sum(means) / len(means) if means else math.nan


@given(st.integers(2, 21), st.integers(1, 6), st.integers(1, 2), st.integers(0, 10**6))
@settings(deadline=None, max_examples=4)
def test_it_agrees_with_a_loop_over_pairs_of_images(images: int, channels: int, parts: int, seed: int) -> None:
    mean = randn(channels, seed=seed + 1)
    grid = randn(images, channels, SIDE, SIDE, seed=seed) + randn(1, channels, SIDE, SIDE, seed=seed + 2)
    grid[0, :, 1, 1] = grid[-1, :, 5, 1] = mean  # no direction left
    metric = measured(grid, mean, parts)
    assert estimate(metric)[0].item() == pytest.approx(reference(grid, mean), abs=1e-6, nan_ok=True)
    assert metric.compute().get("similarity_across/corner", math.nan) == pytest.approx(estimate(metric)[0].item(), nan_ok=True)
    fold = folds_of(0, images, images)
    expected = [reference(grid[fold != k], mean) for k in range(FOLDS)]
    assert estimate(metric)[1].tolist() == pytest.approx(expected, abs=1e-6, nan_ok=True)


def test_corners_that_differ_from_each_other_are_seen_where_they_are_the_same_in_every_image() -> None:
    grid = randn(40, 64, SIDE, SIDE)
    assert estimate(measured(grid))[0].abs() < 0.01, "the control: nothing planted"
    grid[:, :, [1, 1, 5, 5], [1, 5, 1, 5]] = torch.linalg.qr(randn(64, 4, seed=1)).Q + 0.01 * randn(40, 64, 4, seed=2)
    metric = measured(grid)
    assert estimate(metric)[0] > 0.95 and (estimate(metric)[1] > 0.95).all()
    within = GroupSimilarity(("inner",), images=40)
    within.update(layer_of(grid))
    assert abs(within.compute()["similarity/inner"]) < 0.01, "within an image they are not alike"


def test_corners_without_pairs_have_no_value_and_one_image_too_many_is_refused() -> None:
    assert estimate(measured(torch.zeros(3, 2, SIDE, SIDE)))[0].isnan()
    assert estimate(measured(randn(1, 2, SIDE, SIDE)))[0].isnan()
    metric = measured(randn(3, 2, SIDE, SIDE))
    with pytest.raises(InputError, match="but got 3, and at least 4 arrived"):
        metric.update(layer_of(randn(1, 2, SIDE, SIDE)), "inner")


def test_a_group_that_is_not_four_tokens_is_a_defect() -> None:
    with pytest.raises(AssertionError, match="not 4 tokens"):
        CornerSimilarity(2, images=3).update(
            LayerTokens.of(randn(3, 2, 4, 4), {"inner": torch.ones(3, 4, 4, dtype=torch.bool)}), "inner"
        )
