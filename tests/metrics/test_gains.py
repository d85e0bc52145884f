"""Paired gains: intervals cover what was planted, p-values agree with published tests and reject at their level."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from metrics.gains import fold_gain, resampled_gain, two_sided
from metrics.grid_accuracy import GridAccuracy
from metrics.intervals import resampled_ratios


def test_bootstrap_p_counts_the_rarer_side_by_hand() -> None:
    resampled = np.array([-1.0, 0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0])  # two of nine are not above 0
    assert two_sided(resampled) == pytest.approx(2 * (1 + 2) / (1 + 9))


def test_a_resample_without_a_value_is_left_out() -> None:
    values = np.array([1.0, 2.0, np.nan, -1.0, np.nan])
    assert two_sided(values) == two_sided(values[np.isfinite(values)])


@given(st.lists(st.floats(-5, 5), min_size=1, max_size=40))
def test_bootstrap_p_is_a_p_value_and_blind_to_the_sign(values: list[float]) -> None:
    resampled = np.array(values)
    p = float(two_sided(resampled))
    assert 2 / (1 + len(values)) <= p <= 1 or p == 1
    assert p == float(two_sided(-resampled)) == float(two_sided(3 * resampled))


def test_columns_are_tested_one_by_one() -> None:
    resampled = np.random.default_rng(0).normal(0.5, 1, (50, 3, 2))
    apart = [[float(two_sided(resampled[:, i, k])) for k in range(2)] for i in range(3)]
    assert two_sided(resampled).tolist() == apart


def differences(mean: float, seed: int, units: int = 40) -> np.ndarray:
    """What one image adds: an effect beside a part that both measurements share and that cancels."""
    generator = np.random.default_rng(seed)
    shared = generator.normal(0, 5, units)
    return (shared + generator.normal(mean, 1, units)) - shared


def resampled_mean(values: np.ndarray, seed: int) -> dict[str, float]:
    drawn = resampled_ratios(values[:, None], np.ones((len(values), 1)), seed)[:, 0]
    return resampled_gain("k", float(values.mean()), drawn, len(values))


def test_bootstrap_interval_covers_and_p_rejects_at_its_level() -> None:
    repeats, covered, rejected = 200, 0, 0
    for seed in range(repeats):
        found = resampled_mean(differences(0.0, seed), seed)
        covered += found["k/ci_low"] <= 0 <= found["k/ci_high"]
        rejected += found["k/p"] < 0.05
    # 95 % less the percentile interval's known shortfall at 40 units, and three standard errors of 200 repeats
    assert covered / repeats >= 0.89
    assert rejected / repeats <= 0.11


def test_interval_and_p_tell_the_same_story() -> None:
    for mean in (0.0, 0.25, 0.35, 0.6):
        found = resampled_mean(differences(mean, seed=7), seed=1)
        outside = not found["k/ci_low"] <= 0 <= found["k/ci_high"]
        assert outside == (found["k/p"] < 0.05), mean


def test_a_planted_gain_is_found() -> None:
    found = resampled_mean(differences(0.8, seed=3), seed=0)
    assert found["k"] == pytest.approx(0.8, abs=0.4)
    assert found["k/ci_low"] > 0 and found["k/p"] == pytest.approx(2 / 2001)


@pytest.mark.parametrize("gain", [math.nan, math.inf])
def test_a_gain_without_a_value_has_no_key(gain: float) -> None:
    assert resampled_gain("k", gain, np.ones(3), 40) == {}
    assert resampled_gain("k", 1.0, np.full(3, np.nan), 40) == {}


def test_few_photographs_make_no_p() -> None:
    for units in range(1, 9):
        found = resampled_mean(np.linspace(0.5, 0.6, units), seed=0)
        ends = {"k/ci_low", "k/ci_high", "k/p"} if units >= 6 else set()
        assert set(found) == {"k", *ends}, units


@pytest.mark.parametrize("other", [2, 8])
def test_units_are_the_photographs_of_the_group(other: int) -> None:
    own, base = (GridAccuracy(8, 8, ("corner",), photos=10) for _ in range(2))
    for metric in (own, base):
        metric.count[:] = 5
        metric.count[other:, 1] = 0
    own.right[:] = 1.0 * (own.count > 0)[..., None]
    found = own.gain(base)
    assert "binned_accuracy/all/p" in found and "binned_accuracy/corner" in found
    assert ("binned_accuracy/corner/p" in found) == (other >= 6)


@pytest.mark.parametrize("seed", range(5))
def test_fold_gain_is_the_paired_t_test(seed: int) -> None:
    generator = np.random.default_rng(seed)
    other = generator.normal(0, 3, 20)
    own = other + generator.normal(0.3, 1, 20)
    found = fold_gain("k", own.mean(), other.mean(), torch.from_numpy(own), torch.from_numpy(other))
    expected = stats.ttest_rel(own, other)
    interval = expected.confidence_interval(0.95)
    assert found["k"] == pytest.approx((own - other).mean())
    assert found["k/p"] == pytest.approx(expected.pvalue, rel=1e-9)
    assert (found["k/ci_low"], found["k/ci_high"]) == pytest.approx((interval.low, interval.high), rel=1e-9)


def test_folds_without_both_are_left_out() -> None:
    own = torch.tensor([1.0, math.nan, 3.0, 5.0, 2.0])
    other = torch.tensor([0.5, 1.0, math.nan, 3.0, 2.5])
    kept = [0, 3, 4]
    assert fold_gain("k", 2.0, 1.0, own, other) == fold_gain("k", 2.0, 1.0, own[kept], other[kept])
    assert fold_gain("k", 2.0, 1.0, own[:2], other[:2]) == {}
    assert fold_gain("k", math.nan, 1.0, own, other) == {}


def test_folds_that_all_agree_are_certain() -> None:
    ones = torch.ones(4)
    assert fold_gain("k", 2.0, 1.0, 2 * ones, ones)["k/p"] == 0.0
    assert fold_gain("k", 1.0, 1.0, ones, ones)["k/p"] == 1.0


@pytest.mark.parametrize("seed", range(5))
def test_a_gain_lies_amid_its_interval_whatever_small_folds_add(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    # clipped at 0, as risks are: folds of few images lie above the estimate of all
    own, other = ((0.05 * torch.randn(20, generator=generator)).clamp_min(0) for _ in range(2))
    found = fold_gain("k", 0.3, 0.0, own + 0.1, other)
    assert (found["k/ci_low"] + found["k/ci_high"]) / 2 == pytest.approx(found["k"]) and found["k/p"] < 1e-6
    null = fold_gain("k", 0.0, 0.0, own + 0.1, other)
    assert null["k/ci_low"] < 0 < null["k/ci_high"] and null["k/p"] == 1


def test_rounding_is_no_gain_and_clipped_folds_are_no_certainty() -> None:
    own = torch.full((20,), 3e-5) + 1e-7 * torch.arange(20)
    assert fold_gain("k", 3e-5, 0.0, own, torch.zeros(20))["k/p"] == 1
    assert fold_gain("k", 0.3, 0.0, torch.zeros(20), torch.zeros(20)) == {"k": 0.3}


def test_fold_intervals_cover_and_reject_at_their_level() -> None:
    generator = np.random.default_rng(0)
    repeats, covered, rejected = 400, 0, 0
    for _ in range(repeats):
        shared = generator.normal(0, 5, 20)
        own, other = shared + generator.normal(0.2, 1, 20), shared + generator.normal(0, 1, 20)
        found = fold_gain("k", own.mean(), other.mean(), torch.from_numpy(own), torch.from_numpy(other))
        covered += found["k/ci_low"] <= 0.2 <= found["k/ci_high"]
        null = fold_gain("k", own.mean() - 0.2, other.mean(), torch.from_numpy(own - 0.2), torch.from_numpy(other))
        rejected += null["k/p"] < 0.05
    assert covered / repeats >= 0.95 - 3 * math.sqrt(0.05 * 0.95 / repeats)
    assert rejected / repeats <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / repeats)
