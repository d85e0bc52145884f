"""DepthError: agrees with a loop over tokens, leaves out missing depth, and does not care how tokens arrive."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from sdprobe.metrics.depth_error import KINDS, NEAREST, DepthError, errors
from sdprobe.metrics.intervals import ratio_pseudovalues

GROUPS = ("corner", "high_norm")
Tokens = tuple[Tensor, Tensor, Tensor, dict[str, Tensor], Tensor, Tensor]
IMAGES_EACH = 3  # images of a photograph at most


def tokens_of(count: int, height: int, width: int, photos: int, seed: int) -> Tokens:
    """Depths in [0.5, 9.5], about a fifth missing; predictions off by a normal error, some below zero. Photographs have up to
    three images, numbered out of order."""
    generator = torch.Generator().manual_seed(seed)
    target = torch.rand(count, generator=generator) * 9 + 0.5
    predicted = target + 2 * torch.randn(count, generator=generator)
    target[torch.rand(count, generator=generator) < 0.2] = torch.nan
    where = (torch.rand(count, 2, generator=generator) * torch.tensor([height, width])).long()
    masks = {group: torch.rand(count, generator=generator) < 0.3 for group in GROUPS}
    image = torch.randint(IMAGES_EACH * photos, (count,), generator=generator)
    return predicted, target, where, masks, image % photos, 7 * image


@st.composite
def cases(draw: Any) -> tuple[int, int, int, Tokens]:
    height, width, photos = draw(st.integers(1, 12)), draw(st.integers(1, 12)), draw(st.integers(1, 5))
    tokens = tokens_of(draw(st.integers(1, 60)), height, width, photos, draw(st.integers(0, 10**6)))
    return height, width, photos, tokens


def part(tokens: Tokens, index: Tensor) -> Tokens:
    masks = {name: mask[index] for name, mask in tokens[3].items()}
    return tokens[0][index], tokens[1][index], tokens[2][index], masks, tokens[4][index], tokens[5][index]


def measured(height: int, width: int, photos: int, *batches: Tokens) -> DepthError:
    metric = DepthError(height, width, GROUPS, photos)
    for batch in batches:
        metric.update(*batch)
    return metric


def reference(tokens: Tokens) -> tuple[dict[str, float], dict[tuple[int, int], float]]:
    """The definitions, token by token: values by key, mean absolute error by position."""
    seen: dict[str, list[tuple[float, float]]] = {}
    by_image: dict[str, dict[int, list[float]]] = {}
    places: dict[tuple[int, int], list[float]] = {}
    predicted, target, where, masks, _, image = tokens
    for n, (guess, true) in enumerate(zip(predicted.tolist(), target.tolist(), strict=True)):
        if math.isnan(true):
            continue
        for group in ("all", *(group for group in GROUPS if masks[group][n])):
            seen.setdefault(group, []).append((guess, true))
            by_image.setdefault(group, {}).setdefault(int(image[n]), []).append((guess - true) ** 2)
        row, col = where[n].tolist()
        places.setdefault((row, col), []).append(abs(guess - true))
    values: dict[str, float] = {}
    for group, pairs in seen.items():
        raised = [(max(guess, 0.001), true) for guess, true in pairs]
        values[f"rmse/{group}"] = math.sqrt(sum((guess - true) ** 2 for guess, true in pairs) / len(pairs))
        values[f"abs_rel/{group}"] = sum(abs(guess - true) / true for guess, true in raised) / len(pairs)
        values[f"delta1/{group}"] = sum(max(guess / true, true / guess) < 1.25 for guess, true in raised) / len(pairs)
        roots = [math.sqrt(sum(off) / len(off)) for off in by_image[group].values()]
        values[f"rmse_per_image/{group}"] = sum(roots) / len(roots)
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


def test_a_root_has_the_standard_error_of_the_delta_method() -> None:
    tokens = tokens_of(3000, 8, 8, 25, seed=0)
    metric = measured(8, 8, 25, tokens)
    units, root = metric.pseudovalues()["rmse/all"], metric.compute()["rmse/all"]
    mean = ratio_pseudovalues(metric.sums[:, 0, 0].numpy(), metric.count[:, 0].numpy())
    assert stats.sem(units) == pytest.approx(stats.sem(mean) / (2 * root))
    without = [measured(8, 8, 25, part(tokens, (tokens[4] != k).nonzero()[:, 0])).compute()["rmse/all"] for k in range(25)]
    spread = math.sqrt(24 / 25 * sum((each - sum(without) / 25) ** 2 for each in without))
    assert stats.sem(units) == pytest.approx(spread, rel=0.02), "close to leaving photographs out"


def test_the_interval_is_over_photographs() -> None:
    _, target, where, masks, *_ = tokens_of(4000, 8, 8, 1, seed=0)
    photo = torch.arange(4000) % 40
    some = torch.where(photo % 2 == 0, 0.1, 3.0)
    even, uneven = (
        measured(8, 8, 40, (target + off, target, where, masks, photo, photo)).compute()
        for off in (torch.full_like(some, 1.5), some)
    )
    assert even["rmse/all/ci_low"] == pytest.approx(1.5) == even["rmse/all/ci_high"]
    assert uneven["rmse/all/ci_low"] < uneven["rmse/all"] < uneven["rmse/all/ci_high"]
    assert uneven["rmse_per_image/all"] == pytest.approx(1.55, abs=1e-6) != uneven["rmse/all"]
    # half of the photographs are right: the share of tokens within the ratio differs between photographs, not tokens
    assert uneven["delta1/all/ci_high"] - uneven["delta1/all/ci_low"] > 0.2


def test_exact_predictions_are_without_error() -> None:
    _, target, where, masks, photo, image = tokens_of(300, 4, 4, 9, seed=0)
    values = measured(4, 4, 9, (target, target, where, masks, photo, image)).compute()
    assert [values[f"{kind}/all"] for kind in KINDS] == [0, 0, 1, 0]
    assert "rmse/all/ci_low" not in values, "an error that was never seen has no interval"
    assert values["delta1/all/ci_low"] < values["delta1/all/ci_high"] == 1


def test_predictions_below_zero_count_as_nearly_zero_in_ratios_only() -> None:
    off = errors(torch.tensor([-1.0, 0.0, 2.4, 2.6]), torch.tensor([2.0, 2.0, 2.0, 2.0]))
    assert off[:, 0].tolist() == pytest.approx([9, 4, 0.16, 0.36])
    assert off[:, 1].tolist() == pytest.approx([(2 - NEAREST) / 2, (2 - NEAREST) / 2, 0.2, 0.3])
    assert off[:, 2].tolist() == [0, 0, 1, 0]


def test_without_any_depth_there_is_no_key() -> None:
    predicted, target, *rest = tokens_of(9, 4, 4, 2, seed=0)
    metric = measured(4, 4, 2, (predicted, torch.full_like(target, torch.nan), *rest))
    assert metric.compute() == metric.pseudovalues() == {}
    assert np.isnan(metric.maps()["error"]).all()
