"""bootstrap_ratio: the percentile bootstrap of scipy, and an interval that covers what it says it covers."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from metrics.intervals import bootstrap_ratio


def photographs(units: int, tokens: int, seed: int, spread: float = 0.15) -> tuple[np.ndarray, np.ndarray]:
    """Right tokens and all tokens of photographs whose own accuracy scatters around 0.6."""
    generator = np.random.default_rng(seed)
    accuracy = np.clip(generator.normal(0.6, spread, units), 0, 1)
    return generator.binomial(tokens, accuracy).astype(float), np.full(units, float(tokens))


def interval(right: np.ndarray, count: np.ndarray, seed: int = 0) -> tuple[float, float]:
    """The interval of a single column."""
    low, high = bootstrap_ratio(right[:, None], count[:, None], seed)
    assert low.shape == high.shape == (1,)
    return low.item(), high.item()


@pytest.mark.parametrize("units", [12, 40])
def test_it_agrees_with_scipy_on_units_of_equal_size(units: int) -> None:
    right, count = photographs(units, 64, seed=units)
    low, high = interval(right, count)
    theirs = stats.bootstrap((right / count,), np.mean, n_resamples=20_000, method="percentile", rng=1).confidence_interval
    width = theirs.high - theirs.low
    assert abs(low - theirs.low) < 0.07 * width
    assert abs(high - theirs.high) < 0.07 * width


def test_it_agrees_with_scipy_on_a_ratio_of_sums() -> None:
    generator = np.random.default_rng(0)
    count = generator.integers(1, 100, 30).astype(float)
    right = generator.binomial(count.astype(int), generator.uniform(0.2, 0.9, 30)).astype(float)

    def ratio(a: np.ndarray, b: np.ndarray, axis: int) -> np.ndarray:
        return a.sum(axis) / b.sum(axis)

    theirs = stats.bootstrap((right, count), ratio, paired=True, n_resamples=20_000, method="percentile", rng=1)
    low, high = interval(right, count)
    width = theirs.confidence_interval.high - theirs.confidence_interval.low
    assert abs(low - theirs.confidence_interval.low) < 0.07 * width
    assert abs(high - theirs.confidence_interval.high) < 0.07 * width


def test_it_covers_the_truth_at_least_90_times_in_100() -> None:
    trials, covered = 400, 0
    for seed in range(trials):
        low, high = interval(*photographs(40, 64, seed), seed=seed)
        covered += low <= 0.6 <= high
    assert covered / trials >= 0.90
    assert covered / trials <= 0.99, "and is not merely wide"


def test_treating_tokens_as_independent_would_not_cover() -> None:
    trials, covered = 200, 0
    for seed in range(trials):
        right, count = photographs(40, 64, seed)
        share, total = right.sum() / count.sum(), count.sum()
        covered += abs(share - 0.6) <= 1.96 * (share * (1 - share) / total) ** 0.5
    assert covered / trials < 0.75, "the control: photographs, not tokens, are what is sampled"


@given(st.integers(1, 30), st.integers(0, 10**6))
@settings(deadline=None, max_examples=30)
def test_the_ends_are_ordered_and_within_the_units(units: int, seed: int) -> None:
    right, count = photographs(units, 16, seed)
    low, high = interval(right, count)
    ratios = right / count
    assert ratios.min() - 1e-12 <= low <= high <= ratios.max() + 1e-12


def test_columns_are_independent_of_one_another() -> None:
    one, two = photographs(20, 64, 0), photographs(20, 64, 1)
    low, high = bootstrap_ratio(np.stack([one[0], two[0]], 1), np.stack([one[1], two[1]], 1))
    for column, (right, count) in enumerate((one, two)):
        assert (low[column], high[column]) == interval(right, count)


def test_two_methods_on_the_same_units_are_resampled_alike() -> None:
    right, count = photographs(25, 64, 0)
    better = right + 3.2  # by 0.05 in every photograph
    low, high = interval(right, count)
    better_low, better_high = interval(better, count)
    assert better_low - low == pytest.approx(0.05, abs=1e-12)
    assert better_high - high == pytest.approx(0.05, abs=1e-12)
    assert interval(right, count, seed=1) != (low, high)


def test_units_without_columns_give_ends_without_axes() -> None:
    low, high = bootstrap_ratio(*photographs(20, 64, 0))
    assert np.shape(low) == np.shape(high) == ()
    assert (low, high) == interval(*photographs(20, 64, 0))


def test_a_single_unit_has_an_interval_without_width() -> None:
    low, high = interval(np.array([3.0]), np.array([4.0]))
    assert low == high == 0.75


def test_a_rare_group_uses_the_resamples_that_have_it() -> None:
    right, count = np.zeros(10), np.zeros(10)
    right[3], count[3] = 1.0, 2.0
    assert interval(right, count) == (0.5, 0.5)


def test_a_group_without_tokens_is_nan_without_a_warning(recwarn: pytest.WarningsRecorder) -> None:
    low, high = interval(np.zeros(10), np.zeros(10))
    assert np.isnan([low, high]).all()
    assert not recwarn.list


def test_more_photographs_narrow_it_and_more_tokens_of_the_same_do_not() -> None:
    def width(units: int, tokens: int) -> float:
        low, high = interval(*photographs(units, tokens, 5))
        return float(high - low)

    assert width(160, 64) == pytest.approx(width(40, 64) / 2, rel=0.35)
    assert width(40, 6400) > 0.6 * width(40, 64)
