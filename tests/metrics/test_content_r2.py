"""ContentR2: agrees with a loop over tokens, knows 1 and 0, its intervals are over photographs, and it compares in pairs."""

import json
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchmetrics.utilities.data import dim_zero_sum

from sdprobe.metrics.r2 import ContentR2

GROUPS = ("corner", "high_norm")
Tokens = tuple[Tensor, Tensor, dict[str, Tensor], Tensor]


def tokens_of(count: int, photos: int, seed: int, noise: float = 0.5) -> Tokens:
    generator = torch.Generator().manual_seed(seed)
    target = torch.randn(count, 4, generator=generator)
    predicted = target + noise * torch.randn(count, 4, generator=generator)
    masks = {group: torch.rand(count, generator=generator) < 0.3 for group in GROUPS}
    return predicted, target, masks, torch.randint(photos, (count,), generator=generator)


def part(tokens: Tokens, index: Tensor) -> Tokens:
    predicted, target, masks, photo = tokens
    return predicted[index], target[index], {name: mask[index] for name, mask in masks.items()}, photo[index]


def measured(photos: int, *batches: Tokens) -> ContentR2:
    metric = ContentR2(GROUPS, photos)
    for batch in batches:
        metric.update(*batch)
    return metric


def reference(tokens: Tokens) -> dict[str, float]:
    """The definition, number by number."""
    predicted, target, masks, _ = tokens
    values: dict[str, float] = {}
    for group in ("all", *GROUPS):
        chosen = [n for n in range(len(target)) if group == "all" or masks[group][n]]
        off = spread = 0.0
        for n in chosen:
            for guess, true in zip(predicted[n].tolist(), target[n].tolist(), strict=True):
                off += (guess - true) ** 2
                spread += true**2
        if spread:
            values |= {f"content_r2/{group}": 1 - off / spread, f"content_r2/{group}/n": len(chosen)}
    return values


@st.composite
def cases(draw: Any) -> tuple[int, Tokens]:
    photos = draw(st.integers(1, 5))
    return photos, tokens_of(draw(st.integers(1, 50)), photos, draw(st.integers(0, 10**6)), draw(st.floats(0, 3)))


@given(cases(), st.lists(st.integers(0, 3), min_size=50, max_size=50))
@settings(deadline=None, max_examples=40)
def test_it_agrees_with_a_loop_however_tokens_arrive(case: tuple[int, Tokens], of: list[int]) -> None:
    photos, tokens = case
    chunks = [torch.tensor([i for i in range(len(tokens[0])) if of[i] == b], dtype=torch.long) for b in range(4)]
    metric = measured(photos, *(part(tokens, chunk) for chunk in chunks))
    values = metric.compute()
    assert {key: value for key, value in values.items() if "/ci_" not in key} == pytest.approx(reference(tokens), abs=1e-6)
    json.dumps(values, allow_nan=False)
    assert set(metric._reductions.values()) == {dim_zero_sum}, "devices merge by summing states"


@given(st.integers(1, 12), st.floats(0.01, 3), st.integers(0, 10**6))
@settings(deadline=None, max_examples=40)
def test_intervals_hold_their_value_and_pseudovalues_mean_it(photos: int, noise: float, seed: int) -> None:
    tokens = tokens_of(60, photos, seed, noise)
    metric = measured(photos, tokens)
    values, units = metric.compute(), metric.pseudovalues()
    assert set(units) == {key for key in values if key.count("/") == 1}
    for key, found in units.items():
        assert np.nanmean(found) == pytest.approx(values[key], abs=1e-9)
        ends = [values[f"{key}/{end}"] for end in ("ci_low", "ci_high") if f"{key}/{end}" in values]
        if ends:
            assert np.isfinite(found).sum() >= 6
            assert ends[0] <= values[key] <= ends[1] < 1
    spread = torch.zeros(photos).index_add_(0, tokens[3], tokens[1].square().sum(1))
    effective = spread.sum() ** 2 / spread.square().sum()
    if abs(effective - 6) > 1e-3:
        assert ("content_r2/all/ci_low" in values) == bool(effective > 6), "unequal photographs count for fewer"


def test_a_perfect_readout_is_one_and_saying_nothing_is_zero() -> None:
    _, target, masks, photo = tokens_of(400, 8, seed=0)
    right, silent = (measured(8, (guess, target, masks, photo)).compute() for guess in (target, torch.zeros_like(target)))
    for key in (f"content_r2/{group}" for group in ("all", *GROUPS)):
        assert [silent[f"{key}{end}"] for end in ("", "/ci_low", "/ci_high")] == pytest.approx([0] * 3, abs=1e-12)
        assert right[key] == 1 and f"{key}/ci_low" not in right, "an error that was never seen has no interval"


def test_the_interval_is_over_photographs() -> None:
    _, target, masks, _ = tokens_of(4000, 1, seed=0)
    photo = torch.arange(4000) % 40
    # half of the photographs are read, the others not at all; then the same of every photograph's tokens
    widths = []
    for read in (photo % 2 == 0, torch.arange(4000) % 80 < 40):
        values = measured(40, (target * read[:, None], target, masks, photo)).compute()
        assert values["content_r2/all"] == pytest.approx(0.5, abs=0.05)
        assert values["content_r2/all/ci_low"] < values["content_r2/all"] < values["content_r2/all/ci_high"]
        widths.append(values["content_r2/all/ci_high"] - values["content_r2/all/ci_low"])
    assert widths[0] > 5 * widths[1]


def test_gains_are_paired() -> None:
    predicted, target, masks, photo = tokens_of(2000, 30, seed=1)
    # photographs differ far more than the two readouts
    scale = (torch.rand(30, generator=torch.Generator().manual_seed(2)) * 2)[photo][:, None]
    predicted = target + (predicted - target) * scale
    better = measured(30, (target + 0.9 * (predicted - target), target, masks, photo))
    worse = measured(30, (predicted, target, masks, photo))
    gained, own = better.gain(worse), worse.compute()
    assert set(gained) == {f"content_r2/{g}{end}" for g in ("all", *GROUPS) for end in ("", "/ci_low", "/ci_high", "/n")}
    assert gained["content_r2/all"] == pytest.approx(better.compute()["content_r2/all"] - own["content_r2/all"])
    assert 0 < gained["content_r2/all/ci_low"] < gained["content_r2/all"] < gained["content_r2/all/ci_high"]
    width = own["content_r2/all/ci_high"] - own["content_r2/all/ci_low"]
    assert gained["content_r2/all/ci_high"] - gained["content_r2/all/ci_low"] < 0.3 * width
    assert gained["content_r2/all/n"] == 30
    assert worse.gain(worse)["content_r2/all"] == 0


def test_groups_of_other_tokens_have_no_gain() -> None:
    predicted, target, masks, photo = tokens_of(200, 5, seed=0)
    other = masks | {"high_norm": ~masks["high_norm"]}
    gained = measured(5, (predicted, target, masks, photo)).gain(measured(5, (predicted, target, other, photo)))
    assert {key.split("/")[1] for key in gained} == {"all", "corner"}
    assert measured(5).gain(measured(5)) == {}


def test_targets_that_do_not_vary_have_no_key() -> None:
    predicted, target, masks, photo = tokens_of(20, 2, seed=0)
    assert measured(2, (predicted, torch.zeros_like(target), masks, photo)).compute() == {}
    masks = masks | {"corner": torch.zeros(20, dtype=torch.bool)}
    assert not any("corner" in key for key in measured(2, (predicted, target, masks, photo)).compute())
    assert measured(2).compute() == {}
    assert measured(2).pseudovalues() == {}
