"""Credibility: the risks are their formulas, and their intervals are the unclipped values' and hold what is reported."""

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sdprobe.metrics.credibility import (
    RISKS,
    above_chance,
    channel_risk,
    clipped_pseudovalues,
    corner_risk,
    credibility,
    credibility_pseudovalues,
    credibility_report,
    larger_risk,
    norm_risk,
    token_risk,
    with_clipped,
)
from sdprobe.metrics.folds import FOLDS, Estimate, pseudovalues
from sdprobe.metrics.intervals import mean_interval
from sdprobe.utilities.errors import InputError

share = st.floats(0, 1)
cosine = st.floats(-1, 1)


def number(value: float) -> torch.Tensor:
    return torch.tensor(value, dtype=torch.float64)


def estimate(centre: float, spread: float, seed: int = 0) -> Estimate:
    """The mean of 20 folds, and without one each."""
    values = centre + spread * torch.randn(FOLDS, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return values.mean(), (values.sum() - values) / (FOLDS - 1)


@given(cosine, cosine)
def test_corner_risk_is_the_excess_similarity_of_corners_unclipped(inner: float, outer: float) -> None:
    expected = 0.0 if outer == 1 else (inner - outer) / (1 - outer)
    assert corner_risk(number(inner), number(outer)).item() == pytest.approx(expected, rel=1e-9, abs=1e-12)


@given(share, share)
def test_beyond_chance_is_zero_at_chance_and_one_at_most(value: float, chance: float) -> None:
    found = above_chance(number(value), number(chance)).item()
    assert found <= 1 + 1e-12
    assert above_chance(number(chance), number(chance)).item() == 0
    assert above_chance(number(1), number(chance)).item() == pytest.approx(1 if chance < 1 else 0)
    assert math.copysign(1, found) == math.copysign(1, value - chance) or chance == 1 or abs(found) < 1e-12
    assert above_chance(number(math.nan), number(chance)).isnan()


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


@given(st.lists(st.lists(st.one_of(cosine, st.just(math.nan)), min_size=4, max_size=4), min_size=1, max_size=3))
def test_the_larger_risk_is_taken_value_by_value_and_what_is_undefined_is_left_out(kinds: list[list[float]]) -> None:
    estimates = [(number(kind[0]), torch.tensor(kind[1:], dtype=torch.float64)) for kind in kinds]
    value, without = larger_risk(*estimates)
    for found, parts in zip([value.item(), *without.tolist()], zip(*kinds, strict=True), strict=True):
        known = [part for part in parts if not math.isnan(part)]
        assert found == pytest.approx(max(known) if known else math.nan, nan_ok=True)


@pytest.mark.parametrize("outside", [-0.3, -1e-9])
def test_a_negative_share_is_clipped_inside_the_score_only(outside: float) -> None:
    assert credibility(number(outside), number(0), number(0)).item() == 1
    parts = {"r_pos": number(outside), "r_cor": number(0), "r_norm": number(0)}
    report = credibility_report({name: (value, value.expand(FOLDS)) for name, value in parts.items()}, images=40)
    assert report["r_pos/all"] == outside
    assert report["credibility/all"] == 1


def test_what_is_not_a_number_stays_so() -> None:
    undefined = torch.tensor(torch.nan, dtype=torch.float64)
    assert credibility(undefined, number(0), number(0)).isnan()
    lacking = {name: estimate(0.2, 0.05) for name in RISKS} | {"r_cor": (undefined, undefined.expand(FOLDS))}
    report = credibility_report(lacking, images=100)
    assert set(report) == {f"{name}/all{end}" for name in ("r_pos", "r_norm") for end in ("", "/ci_low", "/ci_high")}


# --- intervals -------------------------------------------------------------------------------------------------------


@given(
    st.lists(st.sampled_from([-0.3, -0.05, 0.0, 0.02, 0.5, 0.98]), min_size=3, max_size=3),
    st.sampled_from([0.0, 0.01, 0.1, 0.5]),
    st.integers(0, 10**6),
)
@settings(max_examples=80)
def test_every_interval_holds_its_own_estimate(centres: list[float], spread: float, seed: int) -> None:
    risks = {name: estimate(centre, spread, seed + i) for i, (name, centre) in enumerate(zip(RISKS, centres, strict=True))}
    report = credibility_report(risks, images=100)
    for name in (*RISKS, "credibility"):
        value, low, high = (report[f"{name}/all{end}"] for end in ("", "/ci_low", "/ci_high"))
        assert low - 1e-12 <= value <= high + 1e-12, name
        assert name == "r_pos" or 0 <= low <= high <= 1, name
    json.dumps(report, allow_nan=False)


@pytest.mark.parametrize("name", ["r_cor", "r_norm"])
@pytest.mark.parametrize("seed", range(8))
def test_ends_are_those_of_the_unclipped_value(name: str, seed: int) -> None:
    risk = estimate(0.01, 0.05, seed)
    low, high = mean_interval(pseudovalues(risk))
    found = credibility_report(dict.fromkeys(RISKS, risk), images=40)
    assert found[f"{name}/all"] == max(0.0, risk[0].item())
    assert (found[f"{name}/all/ci_low"], found[f"{name}/all/ci_high"]) == (max(0.0, low), max(0.0, high))
    assert (found["r_pos/all/ci_low"], found["r_pos/all/ci_high"]) == (low, high)
    # clipped first, the mean of the folds would lie above the estimate of all of them
    clipped = np.maximum(pseudovalues(risk), 0)
    assert clipped.mean() > found[f"{name}/all"] + 0.005


def test_a_risk_that_is_surely_none_is_zero_without_doubt() -> None:
    assert with_clipped("r/all", *estimate(-0.2, 0.05)) == {"r/all": 0, "r/all/ci_low": 0, "r/all/ci_high": 0}
    assert with_clipped("r/all", *(number(math.nan), number(math.nan).expand(FOLDS))) == {}
    np.testing.assert_array_equal(clipped_pseudovalues(estimate(-0.2, 0.05)), 0)
    for unsure in (estimate(-0.01, 0.1), estimate(0.3, 0.05)):
        np.testing.assert_array_equal(clipped_pseudovalues(unsure), pseudovalues(unsure))


def test_a_fold_without_a_risk_is_none_of_the_settled_ones_either() -> None:
    value, without = estimate(-0.2, 0.05)
    without[4] = torch.nan
    assert np.flatnonzero(np.isnan(clipped_pseudovalues((value, without)))).tolist() == [4]


def test_the_interval_of_credibility_is_the_jackknife_of_the_product() -> None:
    risks = {name: estimate(0.3, 0.05, seed) for seed, name in enumerate(RISKS)}
    values = credibility_pseudovalues(risks)
    whole = math.prod(1 - risks[name][0].item() for name in RISKS) ** (1 / 3)
    without = [math.prod(1 - risks[name][1][k].item() for name in RISKS) ** (1 / 3) for k in range(FOLDS)]
    expected = [whole + (FOLDS - 1) * (sum(without) / FOLDS - each) for each in without]
    np.testing.assert_allclose(values, expected, rtol=1e-9)
    report = credibility_report(risks, images=100)
    assert report["credibility/all"] == pytest.approx(whole)
    assert (report["credibility/all/ci_low"], report["credibility/all/ci_high"]) == pytest.approx(
        tuple(map(float, mean_interval(values)))
    )


def test_risks_that_are_surely_none_do_not_move_credibility() -> None:
    risks = {"r_pos": estimate(0.3, 0.05), "r_cor": estimate(-0.4, 0.05, 1), "r_norm": estimate(-0.3, 0.05, 2)}
    none = risks | {name: (number(0), number(0).expand(FOLDS)) for name in ("r_cor", "r_norm")}
    np.testing.assert_allclose(credibility_pseudovalues(risks), credibility_pseudovalues(none), rtol=1e-12)
    assert credibility_report(risks, 100)["credibility/all"] == pytest.approx((1 - risks["r_pos"][0].item()) ** (1 / 3))


def test_too_few_images_for_an_interval_are_refused() -> None:
    with pytest.raises(InputError, match="for an interval over 20 groups of images to be at least 40, but got 39"):
        credibility_report({name: estimate(0, 0) for name in RISKS}, images=39)
