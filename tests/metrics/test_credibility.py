"""Credibility: the risks are their formulas, and intervals over folds of images hold the truth as often as they say."""

import doctest
import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

import metrics.credibility
from metrics.credibility import (
    FOLDS,
    channel_risk,
    corner_risk,
    credibility,
    credibility_report,
    folds_of,
    interval,
    norm_risk,
    token_risk,
    with_interval,
)
from tokens.errors import InputError

share = st.floats(0, 1)
cosine = st.floats(-1, 1)


def number(value: float) -> torch.Tensor:
    return torch.tensor(value, dtype=torch.float64)


@given(cosine, cosine)
def test_corner_risk_is_the_excess_similarity_of_corners(inner: float, outer: float) -> None:
    expected = 0.0 if outer == 1 else min(1.0, max(0.0, (inner - outer) / (1 - outer)))
    assert corner_risk(number(inner), number(outer)).item() == pytest.approx(expected, abs=1e-12)


@given(share, share)
def test_token_risk_is_the_energy_beyond_the_count(energy: float, count: float) -> None:
    expected = 0.0 if count == 1 else max(0.0, (energy - count) / (1 - count))
    assert token_risk(number(energy), number(count)).item() == pytest.approx(expected, abs=1e-12)


@given(share, st.integers(1, 20), st.integers(1, 500))
def test_channel_risk_is_the_energy_beyond_the_count(energy: float, top: int, channels: int) -> None:
    top = min(top, channels)
    expected = 0.0 if top == channels else max(0.0, (energy - top / channels) / (1 - top / channels))
    assert channel_risk(number(energy), top, channels).item() == pytest.approx(expected, abs=1e-12)


@given(share, share, share, share)
def test_credibility_is_one_without_risk_and_falls_with_every_risk(a: float, b: float, c: float, more: float) -> None:
    value = credibility(number(a), number(b), number(c)).item()
    assert value == pytest.approx(((1 - a) * (1 - b) * (1 - c)) ** (1 / 3), abs=1e-12)
    assert credibility(number(max(a, more)), number(b), number(c)).item() <= value + 1e-12
    assert credibility(number(0), number(0), number(0)).item() == 1


@given(share, share)
def test_norm_risk_is_at_least_each_of_its_parts(token: float, channel: float) -> None:
    risk = norm_risk(number(token), number(channel)).item()
    assert max(token, channel) - 1e-12 <= risk <= 1
    assert risk == pytest.approx(token + channel - token * channel, abs=1e-12)


@pytest.mark.parametrize("outside", [-0.3, -1e-9])
def test_a_negative_share_is_clipped_inside_the_score_only(outside: float) -> None:
    assert credibility(number(outside), number(0), number(0)).item() == 1
    parts = {"r_pos": number(outside), "r_cor": number(0), "r_norm": number(0)}
    report = credibility_report(parts, {name: value.expand(FOLDS) for name, value in parts.items()}, images=40)
    assert report["r_pos/all"] == outside
    assert report["credibility/all"] == 1


def test_what_is_not_a_number_stays_so() -> None:
    undefined = torch.tensor(torch.nan)
    assert credibility(undefined, number(0), number(0)).isnan()
    assert with_interval("x/all", undefined, undefined.expand(FOLDS), torch.tensor(100)) == {}


@given(st.integers(1, 300), st.integers(1, 30), st.integers(1, 40))
def test_folds_are_runs_of_consecutive_images_of_almost_equal_size(images: int, folds: int, batch: int) -> None:
    parts = [folds_of(first, min(batch, images - first), images, folds) for first in range(0, images, batch)]
    whole = torch.cat(parts)
    assert torch.equal(whole, folds_of(0, images, images, folds))
    assert (whole.diff() >= 0).all() and whole.min() >= 0 and whole.max() < folds
    if images >= folds:
        assert whole.bincount(minlength=folds).max() - whole.bincount(minlength=folds).min() <= 1


def test_an_image_too_many_is_refused() -> None:
    with pytest.raises(InputError, match="but got 40 and at least 41 came"):
        folds_of(39, 2, images=40)


def test_the_interval_is_students() -> None:
    values = np.random.default_rng(0).normal(2, 3, FOLDS)
    expected = stats.t.interval(0.95, FOLDS - 1, loc=values.mean(), scale=stats.sem(values))
    assert interval(torch.tensor(values)) == pytest.approx(expected)
    gapped = torch.cat([torch.tensor(values), torch.tensor([torch.nan, torch.inf])])
    assert interval(gapped) == pytest.approx(expected), "folds without a value are left out"


def test_the_interval_holds_the_truth_as_often_as_it_says() -> None:
    values = torch.randn(2000, FOLDS, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    held = sum(low <= 0 <= high for low, high in map(interval, values))
    assert stats.binom.interval(0.9999, 2000, 0.95)[0] <= held <= stats.binom.interval(0.9999, 2000, 0.95)[1]


def test_intervals_appear_from_two_images_per_fold_on() -> None:
    per_fold = torch.linspace(0, 1, FOLDS, dtype=torch.float64)
    assert set(with_interval("x/all", number(0.5), per_fold, torch.tensor(39))) == {"x/all"}
    assert set(with_interval("x/all", number(0.5), per_fold, torch.tensor(40))) == {"x/all", "x/all/ci_low", "x/all/ci_high"}
    one = torch.where(torch.arange(FOLDS) == 3, per_fold, torch.nan)
    assert all(math.isnan(end) for end in interval(one))
    assert set(with_interval("x/all", number(0.5), one, torch.tensor(40))) == {"x/all"}


def test_a_report_has_every_part_and_the_interval_of_the_score_follows_its_folds() -> None:
    generator = torch.Generator().manual_seed(0)
    names = ("r_pos", "r_cor", "r_norm")
    folds = {name: 0.2 + 0.05 * torch.randn(FOLDS, generator=generator, dtype=torch.float64) for name in names}
    report = credibility_report({name: value.mean() for name, value in folds.items()}, folds, images=100)
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    assert list(report)[::3] == ["r_pos/all", "r_cor/all", "r_norm/all", "credibility/all"]
    expected = ((1 - folds["r_pos"]) * (1 - folds["r_cor"]) * (1 - folds["r_norm"])) ** (1 / 3)
    assert (report["credibility/all/ci_low"], report["credibility/all/ci_high"]) == pytest.approx(interval(expected))
    for name in (*names, "credibility"):
        assert report[f"{name}/all/ci_low"] < report[f"{name}/all"] < report[f"{name}/all/ci_high"]


def test_too_few_images_for_an_interval_are_refused() -> None:
    parts = {name: number(0) for name in ("r_pos", "r_cor", "r_norm")}
    with pytest.raises(InputError, match="at least 40 for an interval over 20 groups of images, but got 39"):
        credibility_report(parts, {name: value.expand(FOLDS) for name, value in parts.items()}, images=39)


def test_examples_in_the_documentation_hold() -> None:
    outcome = doctest.testmod(metrics.credibility)
    assert outcome.attempted and not outcome.failed
