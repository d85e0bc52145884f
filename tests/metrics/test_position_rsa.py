"""PositionRSA: agrees with a loop over pairs, samples evenly and reproducibly, and finds a smooth position code."""

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from sdprobe.metrics.layer_tokens import LayerTokens
from sdprobe.metrics.position_rsa import PositionRSA, spearman, stratified
from sdprobe.utilities.rng import keyed_generator
from tests.metrics.drawn import randn


def metric_of(
    grid: Tensor,
    parts: int = 1,
    image: Tensor | None = None,
    photo: Tensor | None = None,
    mean: Tensor | None = None,
    **options: Any,
) -> PositionRSA:
    index = torch.arange(len(grid))
    image, photo = index if image is None else image, index if photo is None else photo
    metric = PositionRSA(images=len(grid), **options)
    for chosen in index.tensor_split(parts):
        metric.update(LayerTokens.of(grid[chosen], {}, mean), image[chosen], photo[chosen])
    return metric


def measured(grid: Tensor, parts: int = 1, **options: Any) -> dict[str, float]:
    return metric_of(grid, parts, **options).compute()


def place_and_token(image: Tensor, index: Tensor) -> list[tuple[int, int, list[float]]]:
    width = image.shape[2]
    places = [(int(i) // width, int(i) % width) for i in index]
    return [(row, col, image[:, row, col].tolist()) for row, col in places]


def pair(first: tuple[int, int, list[float]], second: tuple[int, int, list[float]]) -> tuple[float, float]:
    (row, col, x), (other_row, other_col, y) = first, second
    cosine = sum(a * b for a, b in zip(x, y, strict=True)) / math.hypot(*x) / math.hypot(*y)
    return 1 - cosine, math.hypot(row - other_row, col - other_col)


def correlated(pairs: list[tuple[float, float]]) -> float:
    dissimilarity, distance = zip(*[(round(d, 10), s) for d, s in pairs], strict=True)
    return float(stats.spearmanr(dissimilarity, distance).statistic)


@given(st.integers(2, 4), st.integers(2, 5), st.integers(2, 6), st.integers(2, 6), st.integers(0, 10**6))
@settings(deadline=None, max_examples=20)
def test_it_agrees_with_a_loop_over_pairs(images: int, channels: int, height: int, width: int, seed: int) -> None:
    grid, mean = randn(images, channels, height, width, seed=seed), randn(channels, seed=seed + 1)
    tokens = [place_and_token(image, torch.arange(height * width)) for image in grid - mean.view(-1, 1, 1)]
    within = [correlated([pair(a, b) for i, a in enumerate(each) for b in each[i + 1 :]]) for each in tokens]
    between = [correlated([pair(a, b) for a in first for b in second]) for first, second in itertools.pairwise(tokens)]
    values = measured(grid, mean=mean)
    assert values["rsa/within"] == pytest.approx(np.mean(within), abs=1e-6)
    assert values["rsa/between"] == pytest.approx(np.mean(between), abs=1e-6)
    assert (values["rsa/within/n"], values["rsa/between/n"]) == (images, images - 1)


def test_large_grids_are_sampled_by_the_key_of_their_image() -> None:
    grid, image = randn(3, 4, 20, 17), torch.tensor([70, 3, 12])
    tokens = [
        place_and_token(each, stratified(20, 17, keyed_generator(5, "rsa", int(key))))
        for each, key in zip(grid, image, strict=True)
    ]
    expected = [correlated([pair(a, b) for i, a in enumerate(each) for b in each[i + 1 :]]) for each in tokens]
    assert measured(grid, image=image, seed=5)["rsa/within"] == pytest.approx(np.mean(expected), abs=1e-9)
    order = torch.tensor([2, 0, 1])
    shuffled = measured(grid[order], image=image[order], seed=5)
    assert shuffled["rsa/within"] == pytest.approx(np.mean(expected), abs=1e-9)
    assert measured(grid, image=image, seed=6) != shuffled


@given(st.integers(16, 70), st.integers(16, 70), st.integers(0, 100))
@settings(deadline=None, max_examples=30)
def test_a_sample_has_four_tokens_of_every_cell(height: int, width: int, seed: int) -> None:
    index = stratified(height, width, torch.Generator().manual_seed(seed))
    assert len(index) == len(index.unique()) == 256
    cells = (index // width * 8 // height) * 8 + index % width * 8 // width
    assert torch.equal(cells.bincount(minlength=64), torch.full((64,), 4))


def test_every_token_of_a_cell_is_drawn_sooner_or_later() -> None:
    drawn = torch.cat([stratified(24, 24, torch.Generator().manual_seed(seed)) for seed in range(60)])
    counts = drawn.bincount(minlength=24 * 24)
    assert counts.min() > 0
    assert abs(counts.double().mean() - 60 * 4 / 9) < 1e-9


@pytest.mark.parametrize(("height", "width"), [(1, 1), (8, 8), (15, 15), (15, 40)])
def test_small_grids_are_taken_whole(height: int, width: int) -> None:
    assert torch.equal(stratified(height, width, torch.Generator()), torch.arange(height * width))


def test_consecutive_images_of_one_photograph_are_no_pair() -> None:
    grid, photo = randn(6, 3, 5, 5), torch.tensor([0, 0, 1, 1, 1, 2])
    values = measured(grid, photo=photo)
    assert (values["rsa/within/n"], values["rsa/between/n"]) == (6, 2)
    assert "rsa/between" not in measured(grid, photo=torch.zeros(6, dtype=torch.long))


@pytest.mark.parametrize(("images", "limit"), [(10, 3), (10, 10), (9, 4), (5, 50)])
def test_a_limit_takes_images_spread_evenly(images: int, limit: int) -> None:
    grid = randn(images, 3, 5, 5)
    used = [i for i in range(images) if (i + 1) * min(limit, images) // images > i * min(limit, images) // images]
    assert len(used) == min(limit, images) and max(np.diff([-1, *used])) <= math.ceil(images / min(limit, images))
    image = torch.tensor(used)
    assert measured(grid, limit=limit) == pytest.approx(measured(grid[image], image=image))


def smooth_code(channels: int, side: int, strength: float) -> Tensor:
    """Every channel a ramp over the grid, so that tokens differ the more the farther they are apart."""
    ramp = torch.linspace(-1, 1, side)
    slope = torch.nn.functional.normalize(randn(2, channels, 1, 1, seed=7), dim=1)
    return strength * (slope[0] * ramp.view(1, -1, 1) + slope[1] * ramp)


@pytest.mark.parametrize("side", [8, 16])
def test_a_smooth_position_code_is_found_and_grows_with_strength(side: int) -> None:
    noise = randn(40, 32, side, side) / 32**0.5
    found = [measured(noise + smooth_code(32, side, strength), limit=40) for strength in (0.0, 0.5, 1.0, 4.0)]
    for group in ("within", "between"):
        values = [value[f"rsa/{group}"] for value in found]
        assert values == sorted(values)
        assert found[0][f"rsa/{group}/ci_low"] - 0.005 < 0 < found[0][f"rsa/{group}/ci_high"] + 0.005
        assert found[1][f"rsa/{group}/ci_low"] > 0
        assert values[-1] > 0.5


def test_smooth_content_shows_within_and_not_between_images() -> None:
    coarse = randn(40, 8, 3, 3)
    grid = torch.nn.functional.interpolate(coarse, (12, 12), mode="bilinear")
    values = measured(grid)
    assert values["rsa/within"] > 0.3
    assert abs(values["rsa/between"]) < 0.05


def test_what_has_no_cosine_or_no_distance_does_not_count() -> None:
    grid = randn(3, 4, 5, 5)
    holed = grid.clone()
    holed[:, :, 2, 2] = 0
    keep = torch.arange(25) != 12
    tokens = [place_and_token(image, torch.arange(25)[keep]) for image in grid]
    expected = [correlated([pair(a, b) for i, a in enumerate(each) for b in each[i + 1 :]]) for each in tokens]
    assert measured(holed)["rsa/within"] == pytest.approx(np.mean(expected), abs=1e-9)
    assert measured(torch.zeros(3, 4, 5, 5)) == {}
    assert measured(torch.ones(3, 4, 5, 5)) == {}
    assert measured(randn(3, 4, 1, 1)) == {}


@given(st.integers(2, 300), st.integers(1, 30), st.integers(1, 300), st.integers(0, 10**6))
def test_ranks_are_those_of_scipy_with_and_without_ties(count: int, distances: int, values: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    distance, tied = generator.integers(0, distances, count), generator.integers(0, values, count) / 7
    for dissimilarity in (tied, generator.normal(size=count)):
        found = spearman(dissimilarity, distance)
        if np.ptp(distance) and np.ptp(dissimilarity):
            assert found == pytest.approx(stats.spearmanr(dissimilarity, distance).statistic, abs=1e-12)
        else:
            assert math.isnan(found)
