"""Gains are paired differences of what units contribute, and stand alone where too few units speak."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from sdprobe.metrics.gains import holding, over_seeds, paired_gains, simultaneous_quantile, surely_worse
from sdprobe.metrics.intervals import FEWEST, two_way_interval


@pytest.mark.parametrize("seed", range(5))
def test_a_gain_is_the_paired_t_interval(seed: int) -> None:
    generator = np.random.default_rng(seed)
    other = generator.normal(0, 3, 20)
    own = other + generator.normal(0.3, 1, 20)
    found = paired_gains({"k": own}, {"k": other})
    expected = stats.ttest_rel(own, other).confidence_interval(0.95)
    assert found["k"] == pytest.approx((own - other).mean())
    assert (found["k/ci_low"], found["k/ci_high"]) == pytest.approx((expected.low, expected.high), rel=1e-9)
    assert found["k/n"] == 20 and set(found) == {"k", "k/ci_low", "k/ci_high", "k/n"}


def test_what_both_share_cancels() -> None:
    generator = np.random.default_rng(0)
    shared = generator.normal(0, 5, 40)
    found = paired_gains({"k": shared + 0.1}, {"k": shared})
    assert [found[f"k{end}"] for end in ("", "/ci_low", "/ci_high")] == pytest.approx([0.1] * 3)


@given(st.integers(1, 12), st.integers(0, 10**6))
def test_a_gain_lies_amid_its_interval_and_turns_with_the_order(units: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    own, other = generator.normal(size=units), generator.normal(size=units)
    found, back = paired_gains({"k": own}, {"k": other}), paired_gains({"k": other}, {"k": own})
    assert back["k"] == -found["k"] and back["k/n"] == found["k/n"] == units
    assert ("k/ci_low" in found) == ("k/ci_high" in found) == (units >= FEWEST)
    if units >= FEWEST:
        assert (found["k/ci_low"] + found["k/ci_high"]) / 2 == pytest.approx(found["k"], abs=1e-12)
        assert (back["k/ci_low"], back["k/ci_high"]) == pytest.approx((-found["k/ci_high"], -found["k/ci_low"]))


def test_keys_have_units_of_their_own() -> None:
    many, few, none = np.arange(8.0), np.append(np.arange(3.0), [np.nan] * 5), np.full(8, np.nan)
    own = {"many": many, "few": few, "none": none, "mine": many, "unpaired": few}
    other = {"many": many - 1, "few": few - 2, "none": none, "theirs": many, "unpaired": many}
    found = paired_gains(own, other)
    assert found == {"many": 1, "many/ci_low": 1, "many/ci_high": 1, "many/n": 8, "few": 2, "few/n": 3}
    assert paired_gains({}, other) == paired_gains(own, {}) == {}


@pytest.mark.parametrize("differing", [0, 1, 5, 6, 12])
def test_where_fewer_than_six_units_differ_the_gain_stands_alone(differing: int) -> None:
    own = np.random.default_rng(0).uniform(size=12)
    other = own - 0.3 * (np.arange(12) < differing) + 1e-16 * np.arange(12)
    found = paired_gains({"k": own}, {"k": other})
    assert found["k"] == pytest.approx(0.3 * differing / 12) and found["k/n"] == 12
    assert ("k/ci_low" in found) == ("k/ci_high" in found) == (differing >= FEWEST)


@pytest.mark.parametrize("gain", [-0.5, 0.0, 0.2, 0.9])
def test_an_interval_is_moved_to_hold_a_gain_and_no_further(gain: float) -> None:
    found = {"k": 0.1, "k/ci_low": 0.0, "k/ci_high": 0.3, "k/n": 9, "other/ci_low": 5.0}
    held = holding("k", gain, found)
    assert held == {"k": gain, "k/ci_low": min(0.0, gain), "k/ci_high": max(0.3, gain)}
    assert holding("k", gain, {"k/n": 3}) == {"k": gain}


@given(st.integers(1, 5), st.integers(1, 10), st.integers(0, 3), st.integers(0, 10**6))
def test_means_over_networks_hold_their_estimate(seeds: int, units: int, lacking: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    table = 0.01 * generator.normal(size=(seeds, units)) + generator.normal(size=units)
    for _ in range(lacking):  # a unit that one network lacks is compared in none
        table[generator.integers(seeds), generator.integers(units)] = np.nan
    kept = table[:, np.isfinite(table).all(0)]
    found = over_seeds({"k": table})
    if not kept.size:
        assert found == {}
        return
    assert found["k"] == pytest.approx(kept.mean()) and found["k/seeds"] == seeds
    low, high = two_way_interval(table)
    assert ("k/ci_low" in found) == (seeds >= 3 and kept.shape[1] >= FEWEST) == math.isfinite(low)
    if "k/ci_low" in found:
        assert (found["k/ci_low"], found["k/ci_high"]) == (low, high)
        assert low - 1e-12 <= found["k"] <= high + 1e-12


def test_a_key_without_units_has_no_mean_over_networks() -> None:
    assert over_seeds({"k": np.full((3, 8), np.nan)}) == {} == over_seeds({})


@pytest.mark.parametrize("units", [6, 8, 32])
def test_one_comparison_with_the_best_is_the_paired_interval_and_more_are_stricter(units: int) -> None:
    generator = np.random.default_rng(units)
    for _ in range(200):
        best, own = generator.normal(0.5, 1, units), generator.normal(0, 1, units)
        low = paired_gains({"k": best}, {"k": own})["k/ci_low"]
        assert surely_worse(own, best, 1) == (low > 0)
        assert surely_worse(own, best, 1) or not surely_worse(own, best, 10)
    assert simultaneous_quantile(units, 20) == pytest.approx(stats.t.ppf(1 - 0.025 / 20, units - 1))


def test_a_clear_difference_is_seen_and_few_units_see_nothing() -> None:
    generator = np.random.default_rng(0)
    shared = generator.normal(0, 5, 32)
    best, own = shared + 1 + generator.normal(0, 0.3, 32), shared + generator.normal(0, 0.3, 32)
    assert surely_worse(own, best, 1000) and not surely_worse(best, own, 1000) and not surely_worse(best, best, 1)
    assert not surely_worse(own[: FEWEST - 1], best[: FEWEST - 1], 1)
    assert not surely_worse(np.where(np.arange(32) < FEWEST - 1, own, best), best, 1), "only five units differ"
