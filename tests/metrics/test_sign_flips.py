"""Sign flips agree with brute force, and a p-value is never 0 and never smaller in company than alone."""

import itertools
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from sdprobe.metrics.intervals import FEWEST
from sdprobe.metrics.sign_flips import EXACT, FLIPS, adjusted_p


def statistic(column: list[float]) -> float:
    """|mean| / standard error of a column without gaps, of which ties are not parted by rounding."""
    mean = sum(column) / len(column)
    square = sum((each - mean) ** 2 for each in column)
    if square <= 1e-24 * mean**2 * len(column):
        return math.inf if mean else 0.0
    return abs(mean) / math.sqrt(square / (len(column) - 1) / len(column))


def brute_force(values: np.ndarray) -> list[float]:
    """Every flip of every unit, also those that differ by the sign of all."""
    n, columns = values.shape
    own = [statistic(values[:, c].tolist()) for c in range(columns)]
    reached = [0] * columns
    for signs in itertools.product((1, -1), repeat=n):
        largest = max(statistic([s * values[k, c] for k, s in enumerate(signs)]) for c in range(columns))
        for c in range(columns):
            reached[c] += largest >= own[c] - 1e-9
    return [count / 2**n for count in reached]


@st.composite
def differences(draw: Any, least: int = FEWEST, most: int = 9, columns: int = 3) -> np.ndarray:
    """Differences on a coarse scale, so that ties and zeros are frequent."""
    shape = draw(st.integers(least, most)), draw(st.integers(1, columns))
    number = st.sampled_from([-2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 1.5, 3.0])
    return np.array(draw(st.lists(number, min_size=shape[0] * shape[1], max_size=shape[0] * shape[1]))).reshape(shape)


@given(differences(most=7))
@settings(max_examples=25)
def test_all_flips_are_tried_for_few_units(values: np.ndarray) -> None:
    assert adjusted_p(values).tolist() == pytest.approx(brute_force(values), abs=1e-12)


def test_all_flips_are_tried_up_to_twelve_units() -> None:
    generator = np.random.default_rng(0)
    values = generator.normal(0.4, 1, (10, 3)) + generator.normal(0, 1, (10, 1))
    assert adjusted_p(values).tolist() == pytest.approx(brute_force(values), abs=1e-12)
    twelve = generator.normal(0.4, 1, (EXACT, 1))
    flips = np.array(list(itertools.product((1, -1), repeat=EXACT)))
    expected = (np.abs(flips @ twelve[:, 0]) >= abs(twelve.sum()) * (1 - 1e-9)).mean()
    assert adjusted_p(twelve).item() == pytest.approx(expected, abs=1e-12)
    assert expected * 2 ** (EXACT - 1) % 1 == 0


@pytest.mark.parametrize("units", [6, 7, 12])
def test_units_that_all_agree_reach_the_least_p_there_is(units: int) -> None:
    sizes = np.random.default_rng(units).uniform(0.1, 5, (units, 1))
    for values in (sizes, -sizes, np.full((units, 1), 0.3)):
        assert adjusted_p(values).item() == 2 / 2**units


def test_six_that_agree_are_one_in_thirty_two_and_five_have_no_p() -> None:
    assert adjusted_p(np.linspace(0.5, 0.6, 6)[:, None]).item() == 1 / 32
    assert np.isnan(adjusted_p(np.linspace(0.5, 0.6, 5)[:, None])).all()
    assert np.isnan(adjusted_p(np.zeros((0, 2)))).all() and adjusted_p(np.zeros((8, 0))).shape == (0,)


@pytest.mark.parametrize("units", [6, 12, 13, 40])
def test_no_difference_at_all_has_p_one_and_changes_no_other(units: int) -> None:
    column = np.random.default_rng(units).normal(0.8, 1, (units, 1))
    beside = adjusted_p(np.concatenate([np.zeros_like(column), column], axis=1))
    assert beside[0] == 1
    assert beside[1] == adjusted_p(column).item()


@given(differences(most=16), st.integers(0, 3))
@settings(max_examples=40)
def test_a_p_in_company_is_at_least_the_p_alone_and_never_zero(values: np.ndarray, seed: int) -> None:
    together = adjusted_p(values, seed)
    alone = np.array([adjusted_p(values[:, [c]], seed).item() for c in range(values.shape[1])])
    assert (together >= alone).all()
    assert (alone >= 1 / min(FLIPS, 2 ** (len(values) - 1))).all() and (together <= 1).all()


@given(differences(most=16), st.sampled_from([1e-6, 0.3, 7.0, 1e5]))
@settings(max_examples=40)
def test_neither_units_nor_signs_nor_the_order_of_columns_matter(values: np.ndarray, scale: float) -> None:
    expected = adjusted_p(values).tolist()
    rescaled = values.copy()
    rescaled[:, 0] *= scale
    for same in (rescaled, -values, values * np.where(np.arange(values.shape[1]) % 2, -1, 1)):
        assert adjusted_p(same).tolist() == expected
    assert adjusted_p(values[:, ::-1])[::-1].tolist() == expected


@given(differences(most=EXACT))
@settings(max_examples=25)
def test_the_order_of_units_does_not_matter_where_all_flips_are_tried(values: np.ndarray) -> None:
    np.testing.assert_allclose(adjusted_p(values[::-1]), adjusted_p(values), atol=1e-12)


def test_columns_that_repeat_cost_nothing_and_independent_ones_do() -> None:
    column = np.random.default_rng(3).normal(0.7, 1, (11, 1))
    alone = adjusted_p(column).item()
    assert adjusted_p(np.repeat(column, 20, axis=1)).tolist() == [alone] * 20
    beside = np.random.default_rng(4).normal(size=(11, 20))
    assert adjusted_p(np.concatenate([column, beside], axis=1))[0] > 2 * alone


def test_units_that_a_column_lacks_are_left_out_of_it() -> None:
    values = np.random.default_rng(5).normal(0.5, 1, (9, 3))
    values[2:4, 1] = np.nan
    values[:4, 2] = np.nan  # five are left
    found = adjusted_p(values)
    assert np.isnan(found[2])
    np.testing.assert_array_equal(found[:2], adjusted_p(values[:, :2]))
    kept = np.delete(values[:, [1]], [2, 3], axis=0)
    assert adjusted_p(values[:, [1]]).item() == pytest.approx(adjusted_p(kept).item(), abs=1e-12)
    # in company: Σ / √Σ² of what each column has, under one toss per unit
    filled = np.nan_to_num(values[:, :2])
    flips = np.array(list(itertools.product((1, -1), repeat=9)))
    reached = np.abs(flips @ filled) / np.sqrt((filled**2).sum(0))
    expected = (reached.max(1)[:, None] >= (np.abs(filled.sum(0)) / np.sqrt((filled**2).sum(0))) * (1 - 1e-9)).mean(0)
    np.testing.assert_allclose(found[:2], expected, atol=1e-12)


def test_many_units_draw_seeded_flips_that_are_close_to_all_of_them() -> None:
    values = np.random.default_rng(6).normal(0.45, 1, (13, 2))
    found = adjusted_p(values, seed=0)
    assert adjusted_p(values, seed=0).tolist() == found.tolist() != adjusted_p(values, seed=1).tolist()
    flips = np.array(list(itertools.product((1, -1), repeat=13)))
    reached = np.abs(flips @ values) / np.sqrt((values**2).sum(0))
    expected = (reached.max(1)[:, None] >= reached[0] * (1 - 1e-9)).mean(0)
    for p, exact in zip(found, expected, strict=True):
        low, high = stats.binom.interval(0.9999, FLIPS, exact)
        assert low <= p * FLIPS <= high + 1
    certain = adjusted_p(np.full((40, 1), 0.1))
    assert certain.item() == 1 / FLIPS, "no drawn flip of 40 units keeps all signs, but the identity is among them"
