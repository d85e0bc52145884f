"""Intervals hold their own estimate, agree with scipy and slow loops, and are absent where too few units speak."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from sdprobe.metrics import intervals
from sdprobe.metrics.intervals import (
    FEWEST,
    FEWEST_SEEDS,
    PRIOR,
    effective_units,
    independent_interval,
    jackknife_pseudovalues,
    mean_interval,
    positive_interval,
    ratio_pseudovalues,
    share_interval,
    two_way_interval,
    units_of,
    with_ends,
)

ROUNDING = 1e-12  # relative, of sums of a few float64 numbers
TABLES = (mean_interval, share_interval, positive_interval)


@st.composite
def tables(draw: Any, low: float = -1e3, high: float = 1e3, least: int = 1) -> np.ndarray:
    """Pseudo-values by unit and column; some units lack a column, so that columns differ in their n."""
    units, columns = draw(st.integers(least, 20)), draw(st.integers(1, 4))
    number = st.floats(low, high, allow_subnormal=False)
    values = draw(st.lists(number, min_size=units * columns, max_size=units * columns))
    lacking = draw(st.lists(st.sampled_from([False, False, False, True]), min_size=len(values), max_size=len(values)))
    return np.where(lacking, np.nan, values).reshape(units, columns)


@st.composite
def counts(draw: Any) -> tuple[np.ndarray, np.ndarray]:
    """Right tokens and all tokens by unit; some units have no token."""
    count = np.array(draw(st.lists(st.integers(0, 100), min_size=1, max_size=20)), dtype=float)
    share = np.array(draw(st.lists(st.sampled_from([0, 0.3, 0.9, 1]), min_size=len(count), max_size=len(count))))
    return np.floor(count * share), count


def present(column: np.ndarray) -> np.ndarray:
    return column[np.isfinite(column)]


# --- pseudo-values ---------------------------------------------------------------------------------------------------


@given(counts())
def test_the_mean_of_a_ratios_pseudovalues_is_the_ratio_of_the_sums(case: tuple[np.ndarray, np.ndarray]) -> None:
    right, count = case
    values = ratio_pseudovalues(right, count)
    assert np.array_equal(np.isnan(values), count == 0), "a unit without tokens is no unit"
    assert units_of(values) == (count > 0).sum()
    if count.any():
        assert present(values).mean() == pytest.approx(right.sum() / count.sum(), rel=ROUNDING, abs=ROUNDING)


@given(counts())
def test_a_ratios_pseudovalues_are_the_jackknifes(case: tuple[np.ndarray, np.ndarray]) -> None:
    right, count = case
    kept = np.flatnonzero(count > 0)
    if len(kept) < 2:
        expected = right[kept] / count[kept]
    else:
        without = [right[kept[kept != k]].sum() / count[kept[kept != k]].sum() for k in kept]
        expected = jackknife_pseudovalues(float(right.sum() / count.sum()), np.array(without))
    np.testing.assert_allclose(present(ratio_pseudovalues(right, count)), expected, rtol=ROUNDING, atol=ROUNDING)


def test_among_many_units_their_standard_error_is_the_delta_methods() -> None:
    generator = np.random.default_rng(1)
    count = generator.integers(1, 100, 400).astype(float)
    right = generator.binomial(count.astype(int), 0.4).astype(float)
    theta = right.sum() / count.sum()
    squares = sum((h - theta * c) ** 2 for h, c in zip(right, count, strict=True))
    expected = math.sqrt(squares * 400 / 399) / count.sum()  # Cochran (1977), Sampling Techniques, section 6.3
    assert stats.sem(ratio_pseudovalues(right, count)) == pytest.approx(expected, rel=0.01)


@given(st.lists(st.integers(0, 100), min_size=1, max_size=20).filter(any), st.floats(0.1, 10))
def test_effective_units_are_all_where_weights_are_equal_and_one_where_one_has_all(weights: list[int], scale: float) -> None:
    found = effective_units(scale * np.array(weights, dtype=float)).item()
    assert 1 - ROUNDING <= found <= sum(weight > 0 for weight in weights) + 1e-9
    assert effective_units(np.append(weights, 0.0)).item() == pytest.approx(found), "a unit without tokens tells nothing"
    assert effective_units(np.full(len(weights), scale)).item() == pytest.approx(len(weights))
    assert effective_units(np.eye(len(weights))[0]).item() == 1


@given(st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=20))
def test_the_jackknife_of_a_mean_gives_the_units_back(values: list[float]) -> None:
    units = np.array(values)
    without = np.array([np.delete(units, k).mean() for k in range(len(units))])
    np.testing.assert_allclose(jackknife_pseudovalues(float(units.mean()), without), units, atol=1e-9)


def test_the_jackknife_of_a_variance_has_the_textbooks_standard_error_and_the_estimates_mean() -> None:
    units = np.random.default_rng(2).exponential(size=15)
    without = np.array([np.delete(units, k).var() for k in range(15)])
    values = jackknife_pseudovalues(float(units.var()), without)
    squares = sum((each - sum(without) / 15) ** 2 for each in without)  # Efron & Tibshirani (1993), formula 11.5
    assert values.mean() == pytest.approx(units.var(), rel=ROUNDING)
    assert values.std(ddof=1) / math.sqrt(15) == pytest.approx(math.sqrt(14 / 15 * squares), rel=ROUNDING)


@given(st.lists(st.one_of(st.floats(-10, 10), st.just(math.nan)), min_size=1, max_size=12), st.floats(-10, 10))
def test_units_that_cannot_be_left_out_are_left_out(without: list[float], value: float) -> None:
    found = jackknife_pseudovalues(value, np.array(without))
    assert np.array_equal(np.isnan(found), np.isnan(without))
    if np.isfinite(found).any():
        assert present(found).mean() == pytest.approx(value, abs=1e-9)
        np.testing.assert_allclose(present(found), jackknife_pseudovalues(value, present(np.array(without))), atol=1e-9)


# --- laws of all intervals -------------------------------------------------------------------------------------------


def bounded(interval: Any, values: np.ndarray) -> np.ndarray:
    """Values in the range that an interval is made for: shares lie in [0, 1], errors above 0."""
    return {share_interval: np.abs(values) / 1e3, positive_interval: np.abs(values)}.get(interval, values)


@pytest.mark.parametrize("interval", TABLES)
@given(case=tables())
@settings(max_examples=60)
def test_an_interval_holds_its_own_estimate_and_needs_six_units(interval: Any, case: np.ndarray) -> None:
    values = bounded(interval, case)
    lows, highs = interval(values)
    for column, low, high in zip(values.T, lows, highs, strict=True):
        units = present(column)
        told = len(units) >= FEWEST and (interval is not positive_interval or units.mean() > 0)
        assert np.isfinite([low, high]).all() == told and np.isnan([low, high]).all() == (not told)
        if told:
            slack = ROUNDING * np.abs(units).max()
            assert low - slack <= units.mean() <= high + slack


@pytest.mark.parametrize("interval", TABLES)
@given(case=tables(least=FEWEST))
@settings(max_examples=40)
def test_columns_stand_alone_and_units_without_a_value_are_left_out(interval: Any, case: np.ndarray) -> None:
    values = bounded(interval, case)
    together = np.stack(interval(values), axis=1)
    apart = np.array([[float(end) for end in interval(present(column))] for column in values.T])
    np.testing.assert_allclose(together, apart, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("interval", TABLES)
def test_nothing_at_all_is_nan_without_a_warning(interval: Any, recwarn: pytest.WarningsRecorder) -> None:
    for values in (np.full((10, 2), np.nan), np.zeros((0, 2)), np.ones((1, 2)), np.full((5, 2), 0.5)):
        assert np.isnan(interval(values)).all()
    assert not recwarn.list


@pytest.mark.parametrize("interval", [share_interval, positive_interval])
def test_six_units_of_which_one_has_most_tokens_are_not_six(interval: Any) -> None:
    values = np.linspace(0.2, 0.6, 7)[:, None] * np.ones(4)
    even, own = np.full(7, 64.0), np.append(np.full(6, 64.0), 0.0)
    # 64 · (6 + 9)² / (6 + 81) = 2.6; six and a seventh nearly as large: 6.5
    weights = np.stack([even, np.append(np.full(6, 64.0), 9 * 64), np.append(np.full(6, 64.0), 30.0), own], axis=1)
    low, high = interval(values, weights)
    assert np.isfinite(low).tolist() == np.isfinite(high).tolist() == [True, False, True, True]
    plain = interval(values)
    np.testing.assert_array_equal(low[[0, 2, 3]], plain[0][[0, 2, 3]])
    np.testing.assert_array_equal(high[[0, 2, 3]], plain[1][[0, 2, 3]])


# --- one by one ------------------------------------------------------------------------------------------------------


@given(st.lists(st.floats(-100, 100), min_size=FEWEST, max_size=20).filter(lambda units: np.std(units) > 1e-6))
def test_the_mean_interval_is_students(units: list[float]) -> None:
    low, high = mean_interval(np.array(units))
    expected = stats.t.interval(0.95, len(units) - 1, loc=np.mean(units), scale=stats.sem(units))
    assert (low, high) == pytest.approx(expected, rel=1e-9, abs=1e-9)


def test_units_that_agree_have_a_mean_without_width() -> None:
    assert mean_interval(np.full(8, 0.25)) == (0.25, 0.25)


@given(tables(0, 1, least=FEWEST))
def test_a_share_stays_a_share_and_wrong_mirrors_right(values: np.ndarray) -> None:
    low, high = share_interval(values)
    told = np.isfinite(low)
    assert (low[told] >= 0).all() and (high[told] <= 1).all() and (low[told] < high[told]).all()
    mirrored_low, mirrored_high = share_interval(1 - values)
    np.testing.assert_allclose(mirrored_low, 1 - high, atol=1e-9)
    np.testing.assert_allclose(mirrored_high, 1 - low, atol=1e-9)


@given(st.lists(st.floats(0, 1), min_size=FEWEST, max_size=20))
def test_the_ends_of_a_share_solve_wilsons_equation(units: list[float]) -> None:
    n, share = len(units), min(max(sum(units) / len(units), 0.0), 1.0)
    spread = sum((each - sum(units) / n) ** 2 for each in units)
    between = (spread + PRIOR) / ((n - 1) * share * (1 - share) + PRIOR)  # ρ
    quantile = stats.t.ppf(0.975, n - 1)
    for end in share_interval(np.array(units)):
        # an end is a share from which the one found lies t standard errors away
        assert (share - end) ** 2 == pytest.approx(quantile**2 * end * (1 - end) * between / n, abs=1e-9)


@pytest.mark.parametrize("units", [6, 8, 32])
def test_a_share_without_errors_is_no_certainty(units: int) -> None:
    low, high = share_interval(np.ones(units))
    plain, _ = mean_interval(np.ones(units))
    assert plain == 1, "Student's has no width there"
    square = stats.t.ppf(0.975, units - 1) ** 2
    assert (low, high) == pytest.approx((units / (units + square), 1)), "each unit counts as one token"


@given(st.lists(st.floats(0.01, 100), min_size=FEWEST, max_size=20), st.floats(0.01, 100))
def test_a_positive_interval_is_positive_even_around_its_estimate_and_scales(units: list[float], scale: float) -> None:
    values = np.array(units)
    low, high = positive_interval(values)
    half = stats.t.ppf(0.975, len(units) - 1) * values.std(ddof=1) / math.sqrt(len(units))
    assert 0 < low <= high
    assert low * high == pytest.approx(values.mean() ** 2, rel=1e-9)
    assert math.log(high / low) == pytest.approx(2 * half / values.mean(), rel=1e-9, abs=1e-9)
    assert np.array(positive_interval(scale * values)) == pytest.approx(scale * np.array([low, high]), rel=1e-9)


# --- networks and units ----------------------------------------------------------------------------------------------


def analysis_of_variance(table: list[list[float]]) -> tuple[float, float]:
    """The interval of a two-way table without replication, number by number."""
    seeds, units = len(table), len(table[0])
    mean = sum(sum(row) for row in table) / (seeds * units)
    by_seed = [sum(row) / units for row in table]
    by_unit = [sum(row[k] for row in table) / seeds for k in range(units)]
    ms_seed = units * sum((each - mean) ** 2 for each in by_seed) / (seeds - 1)
    ms_unit = seeds * sum((each - mean) ** 2 for each in by_unit) / (units - 1)
    rest = 0.0
    for s in range(seeds):
        for k in range(units):
            rest += (table[s][k] - by_seed[s] - by_unit[k] + mean) ** 2
    ms_rest = rest / ((seeds - 1) * (units - 1))
    quantiles = stats.t.ppf(0.975, seeds - 1), stats.t.ppf(0.975, units - 1)
    square = quantiles[0] ** 2 * max(0, ms_seed - ms_rest) + quantiles[1] ** 2 * max(ms_unit, ms_rest)
    half = math.sqrt(square / (seeds * units))
    return mean - half, mean + half


@given(st.integers(1, 6), st.integers(1, 12), st.floats(0, 3), st.floats(0, 3), st.integers(0, 10**6))
def test_the_interval_over_networks_is_an_explicit_analysis_of_variance(
    seeds: int, units: int, network: float, photograph: float, seed: int
) -> None:
    generator = np.random.default_rng(seed)
    table = network * generator.normal(size=(seeds, 1)) + photograph * generator.normal(size=units)
    table = table + generator.normal(size=(seeds, units))
    low, high = two_way_interval(table)
    if seeds < FEWEST_SEEDS or units < FEWEST:
        assert math.isnan(low) and math.isnan(high)
        return
    assert (low, high) == pytest.approx(analysis_of_variance(table.tolist()), rel=1e-9, abs=1e-9)
    assert low <= table.mean() <= high
    gapped = np.concatenate([table, np.full((seeds, 1), 7.0)], axis=1)
    gapped[seeds - 1, units] = np.nan
    assert two_way_interval(gapped) == pytest.approx((low, high)), "a unit that one network lacks is left out"


@given(st.integers(FEWEST, 20), st.integers(FEWEST, 20), st.floats(0.1, 10), st.integers(0, 10**6))
def test_the_interval_of_independent_units_is_welchs(first: int, second: int, scale: float, seed: int) -> None:
    generator = np.random.default_rng(seed)
    upper, lower = generator.normal(1, scale, first), generator.normal(0, 1, second)
    expected = stats.ttest_ind(upper, lower, equal_var=False).confidence_interval(0.95)
    found = independent_interval(np.append(upper, np.nan), np.append(np.nan, lower))
    assert found == pytest.approx((expected.low, expected.high), rel=1e-9, abs=1e-9)


def test_independent_units_that_are_few_or_agree() -> None:
    six, five = np.full(6, 2.0), np.full(5, 0.5)
    assert np.isnan(independent_interval(six, five)).all()
    assert np.isnan(independent_interval(five, six)).all()
    assert independent_interval(six, np.full(8, 0.5)) == (1.5, 1.5)


# --- what is kept ----------------------------------------------------------------------------------------------------


def test_units_that_have_no_value_anywhere_were_not_tested() -> None:
    values = {"a": np.array([1, np.nan, np.nan, 4]), "b": np.array([np.nan, np.nan, 3, 4])}
    kept = intervals.present_units(values)
    np.testing.assert_array_equal(kept["a"], [1, np.nan, 4])
    np.testing.assert_array_equal(kept["b"], [np.nan, 3, 4])
    assert intervals.present_units({}) == {}


def test_ends_that_are_unknown_and_values_that_are_none_have_no_key() -> None:
    assert with_ends("k", np.float64(1), np.array(0.5), 2) == {"k": 1.0, "k/ci_low": 0.5, "k/ci_high": 2.0}
    assert with_ends("k", 1, math.nan, 2) == with_ends("k", 1, 0, math.inf) == {"k": 1.0}
    assert with_ends("k", math.nan, 0, 1) == with_ends("k", math.inf, 0, 1) == {}
