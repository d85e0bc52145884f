"""DepthError: agrees with a loop over tokens, leaves out missing depth, and does not care how tokens arrive."""

import json
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchmetrics.utilities.data import dim_zero_sum

from metrics.depth_error import KINDS, NEAREST, DepthError, errors

GROUPS = ("corner", "high_norm")
Tokens = tuple[Tensor, Tensor, Tensor, dict[str, Tensor], Tensor]


def tokens_of(count: int, height: int, width: int, photos: int, seed: int) -> Tokens:
    """Depths in [0.5, 9.5], about a fifth missing; predictions off by a normal error, some below zero."""
    generator = torch.Generator().manual_seed(seed)
    target = torch.rand(count, generator=generator) * 9 + 0.5
    predicted = target + 2 * torch.randn(count, generator=generator)
    target[torch.rand(count, generator=generator) < 0.2] = torch.nan
    where = (torch.rand(count, 2, generator=generator) * torch.tensor([height, width])).long()
    masks = {group: torch.rand(count, generator=generator) < 0.3 for group in GROUPS}
    return predicted, target, where, masks, torch.randint(photos, (count,), generator=generator)


@st.composite
def cases(draw: Any) -> tuple[int, int, int, Tokens]:
    height, width, photos = draw(st.integers(1, 12)), draw(st.integers(1, 12)), draw(st.integers(1, 5))
    tokens = tokens_of(draw(st.integers(1, 60)), height, width, photos, draw(st.integers(0, 10**6)))
    return height, width, photos, tokens


def part(tokens: Tokens, index: Tensor) -> Tokens:
    predicted, target, where, masks, photo = tokens
    return predicted[index], target[index], where[index], {name: mask[index] for name, mask in masks.items()}, photo[index]


def measured(height: int, width: int, photos: int, *batches: Tokens) -> DepthError:
    metric = DepthError(height, width, GROUPS, photos)
    for batch in batches:
        metric.update(*batch)
    return metric


def reference(tokens: Tokens) -> tuple[dict[str, float], dict[tuple[int, int], float]]:
    """The definitions, token by token: values by key, mean absolute error by position."""
    seen: dict[str, list[tuple[float, float]]] = {}
    places: dict[tuple[int, int], list[float]] = {}
    predicted, target, where, masks, _ = tokens
    for n, (guess, true) in enumerate(zip(predicted.tolist(), target.tolist(), strict=True)):
        if math.isnan(true):
            continue
        for group in ("all", *(group for group in GROUPS if masks[group][n])):
            seen.setdefault(group, []).append((guess, true))
        row, col = where[n].tolist()
        places.setdefault((row, col), []).append(abs(guess - true))
    values: dict[str, float] = {}
    for group, pairs in seen.items():
        raised = [(max(guess, 0.001), true) for guess, true in pairs]
        values[f"rmse/{group}"] = math.sqrt(sum((guess - true) ** 2 for guess, true in pairs) / len(pairs))
        values[f"abs_rel/{group}"] = sum(abs(guess - true) / true for guess, true in raised) / len(pairs)
        values[f"delta1/{group}"] = sum(max(guess / true, true / guess) < 1.25 for guess, true in raised) / len(pairs)
        values |= {f"{kind}/{group}/n": len(pairs) for kind in KINDS}
    return values, {place: sum(off) / len(off) for place, off in places.items()}


@given(cases())
@settings(deadline=None, max_examples=60)
def test_it_agrees_with_a_loop_over_tokens(case: tuple[int, int, int, Tokens]) -> None:
    height, width, photos, tokens = case
    metric = measured(height, width, photos, tokens)
    values, (expected, places) = metric.compute(), reference(tokens)
    assert {key for key in values if "/ci_" not in key} == set(expected)
    for key, value in expected.items():
        assert values[key] == pytest.approx(value, abs=1e-6), key
    table = metric.maps()["error"]
    assert np.isfinite(table).sum() == len(places)
    for place, value in places.items():
        assert table[place] == pytest.approx(value, abs=1e-6)


@given(cases(), st.lists(st.integers(0, 4), min_size=60, max_size=60))
@settings(deadline=None, max_examples=40)
def test_any_partition_of_the_tokens_gives_what_all_at_once_give(case: tuple[int, int, int, Tokens], of: list[int]) -> None:
    height, width, photos, tokens = case
    chunks = [[i for i in range(len(tokens[0])) if of[i] == b] for b in range(5)]
    together = measured(height, width, photos, tokens)
    apart = measured(height, width, photos, *(part(tokens, torch.tensor(chunk, dtype=torch.long)) for chunk in chunks))
    assert apart.compute() == pytest.approx(together.compute(), abs=1e-9)
    np.testing.assert_allclose(apart.maps()["error"], together.maps()["error"])
    assert set(together._reductions.values()) == {dim_zero_sum}, "devices merge by summing states"


@given(cases())
@settings(deadline=None, max_examples=30)
def test_values_are_what_json_can_hold_and_bounds_are_in_order(case: tuple[int, int, int, Tokens]) -> None:
    height, width, photos, tokens = case
    values = measured(height, width, photos, tokens).compute()
    json.dumps(values, allow_nan=False)
    for key in (key for key in values if key.count("/") == 1):
        assert 0 <= values[f"{key}/ci_low"] <= values[f"{key}/ci_high"]
        assert isinstance(values[f"{key}/n"], int)


def test_the_interval_holds_the_value_and_is_over_photographs() -> None:
    _, target, where, masks, _ = tokens_of(4000, 8, 8, 1, seed=0)
    photo = torch.arange(4000) % 40
    some = torch.where(photo % 2 == 0, 0.1, 3.0)
    even, uneven = (
        measured(8, 8, 40, (target + off, target, where, masks, photo)).compute() for off in (torch.full_like(some, 1.5), some)
    )
    assert even["rmse/all/ci_low"] == pytest.approx(1.5) == even["rmse/all/ci_high"]
    assert uneven["rmse/all/ci_low"] < uneven["rmse/all"] < uneven["rmse/all/ci_high"]
    # half of the photographs are right: the share of tokens within the ratio differs between photographs, not tokens
    assert uneven["delta1/all/ci_high"] - uneven["delta1/all/ci_low"] > 0.2


def test_exact_predictions_are_without_error() -> None:
    _, target, where, masks, photo = tokens_of(50, 4, 4, 3, seed=0)
    values = measured(4, 4, 3, (target, target, where, masks, photo)).compute()
    assert (values["rmse/all"], values["abs_rel/all"], values["delta1/all"]) == (0, 0, 1)


def test_predictions_below_zero_count_as_nearly_zero_in_ratios_only() -> None:
    off = errors(torch.tensor([-1.0, 0.0, 2.4, 2.6]), torch.tensor([2.0, 2.0, 2.0, 2.0]))
    assert off[:, 0].tolist() == pytest.approx([9, 4, 0.16, 0.36])
    assert off[:, 1].tolist() == pytest.approx([(2 - NEAREST) / 2, (2 - NEAREST) / 2, 0.2, 0.3])
    assert off[:, 2].tolist() == [0, 0, 1, 0]


def test_without_any_depth_there_is_no_key() -> None:
    predicted, target, where, masks, photo = tokens_of(9, 4, 4, 2, seed=0)
    metric = measured(4, 4, 2, (predicted, torch.full_like(target, torch.nan), where, masks, photo))
    assert metric.compute() == {}
    assert np.isnan(metric.maps()["error"]).all()
