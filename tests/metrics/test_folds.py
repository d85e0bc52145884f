"""Folds: runs of consecutive images, one of which is left out at a time; intervals are the jackknife's."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from sdprobe.metrics.folds import (
    FOLDS,
    folds_of,
    leave_one_out,
    pseudovalues,
    ratio,
    require_images,
    with_interval,
    with_intervals,
)
from sdprobe.utilities.errors import InputError


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@given(st.integers(1, 300), st.integers(1, 30), st.integers(1, 40))
def test_folds_are_runs_of_consecutive_images_of_almost_equal_size(images: int, folds: int, batch: int) -> None:
    parts = [folds_of(first, min(batch, images - first), images, folds) for first in range(0, images, batch)]
    whole = torch.cat(parts)
    assert torch.equal(whole, folds_of(0, images, images, folds))
    assert (whole.diff() >= 0).all() and whole.min() >= 0 and whole.max() < folds
    if images >= folds:
        assert whole.bincount(minlength=folds).max() - whole.bincount(minlength=folds).min() <= 1


def test_images_out_of_order_belong_to_the_fold_of_their_number() -> None:
    order = torch.randperm(50, generator=torch.Generator().manual_seed(0))
    assert torch.equal(folds_of(0, 50, 50, rank=order), folds_of(0, 50, 50)[order])


def test_an_image_too_many_is_refused() -> None:
    with pytest.raises(InputError, match="but got 40, and at least 41 arrived"):
        folds_of(39, 2, images=40)


def test_leaving_one_out_is_summing_the_others() -> None:
    sums = randn(7, 2, 3)
    for k, left in enumerate(leave_one_out(sums)):
        torch.testing.assert_close(left, torch.cat([sums[:k], sums[k + 1 :]]).sum(0))


def test_a_ratio_of_folds_is_one_of_sums_and_its_pseudovalues_mean_it() -> None:
    total, number = randn(20), 1 + torch.arange(20, dtype=torch.float64)
    whole, without = ratio(total, number)
    assert whole.item() == pytest.approx((total.sum() / number.sum()).item())
    for k in range(20):
        others = [i for i in range(20) if i != k]
        assert without[k].item() == pytest.approx((total[others].sum() / number[others].sum()).item())
    assert pseudovalues((whole, without)).mean() == pytest.approx(whole.item(), abs=1e-12)


def test_the_interval_of_a_mean_over_folds_of_equal_size_is_students() -> None:
    values = 2 + 3 * randn(FOLDS)
    found = with_interval("x/all", ratio(values, torch.ones(FOLDS, dtype=torch.float64)), images=40)
    expected = stats.t.interval(0.95, FOLDS - 1, loc=values.mean().item(), scale=stats.sem(values.numpy()))
    assert (found["x/all/ci_low"], found["x/all/ci_high"]) == pytest.approx(expected)
    assert found["x/all"] == pytest.approx(values.mean().item())


def test_intervals_appear_from_two_images_per_fold_on() -> None:
    estimate = ratio(randn(FOLDS), torch.ones(FOLDS, dtype=torch.float64))
    assert set(with_interval("x/all", estimate, torch.tensor(39))) == {"x/all"}
    assert set(with_interval("x/all", estimate, torch.tensor(40))) == {"x/all", "x/all/ci_low", "x/all/ci_high"}


@pytest.mark.parametrize("present", [0, 1, 5, 6])
def test_folds_that_cannot_be_left_out_are_no_units(present: int) -> None:
    value, without = ratio(randn(FOLDS), torch.ones(FOLDS, dtype=torch.float64))
    without = torch.where(torch.arange(FOLDS) < present, without, torch.nan)
    found = with_interval("x/all", (value, without), images=40)
    assert found["x/all"] == value.item() and ("x/all/ci_low" in found) == (present >= 6)


@given(st.floats(-0.2, 1.2), st.floats(0, 0.5), st.integers(0, 10**6))
def test_bounds_cut_the_ends_and_not_the_value(centre: float, spread: float, seed: int) -> None:
    value, without = ratio(centre + spread * randn(FOLDS, seed=seed), torch.ones(FOLDS, dtype=torch.float64))
    free, cut = (with_interval("x/all", (value, without), 40, bounds) for bounds in ((-math.inf, math.inf), (0, 1)))
    assert cut["x/all"] == free["x/all"] == value.item()
    assert free["x/all/ci_low"] - 1e-12 <= free["x/all"] <= free["x/all/ci_high"] + 1e-12
    for end in ("ci_low", "ci_high"):
        assert cut[f"x/all/{end}"] == np.clip(free[f"x/all/{end}"], 0, 1)


def test_what_is_not_a_number_has_no_key() -> None:
    undefined = torch.tensor(torch.nan)
    kept = ratio(randn(FOLDS), torch.ones(FOLDS, dtype=torch.float64))
    found = with_intervals({"x/all": (undefined, undefined.expand(FOLDS)), "y/all": kept}, images=40)
    assert set(found) == {"y/all", "y/all/ci_low", "y/all/ci_high"}


def test_too_few_images_are_refused() -> None:
    require_images(40)
    with pytest.raises(InputError, match=r"for an interval over 20 groups of images to be at least 40, but got 39\. Use 40"):
        require_images(39)
