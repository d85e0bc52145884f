"""ContentR2: agrees with a loop over tokens, knows 1 and 0, its intervals are over photographs, and it compares in pairs."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sdprobe.metrics.r2 import ContentR2

GROUPS = ("corner", "high_norm")
Tokens = tuple[Tensor, Tensor, dict[str, Tensor], Tensor]


def tokens_of(count: int, photos: int, seed: int, noise: float = 0.5) -> Tokens:
    generator = torch.Generator().manual_seed(seed)
    target = torch.randn(count, 4, generator=generator)
    predicted = target + noise * torch.randn(count, 4, generator=generator)
    masks = {group: torch.rand(count, generator=generator) < 0.3 for group in GROUPS}
    return predicted, target, masks, torch.randint(photos, (count,), generator=generator)


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


@given(cases())
@settings(deadline=None, max_examples=40)
def test_it_agrees_with_a_loop(case: tuple[int, Tokens]) -> None:
    photos, tokens = case
    values = measured(photos, tokens).compute()
    assert {key: value for key, value in values.items() if "/ci_" not in key} == pytest.approx(reference(tokens), abs=1e-6)


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


def test_targets_that_do_not_vary_have_no_key() -> None:
    predicted, target, masks, photo = tokens_of(20, 2, seed=0)
    assert measured(2, (predicted, torch.zeros_like(target), masks, photo)).compute() == {}
    masks = masks | {"corner": torch.zeros(20, dtype=torch.bool)}
    assert not any("corner" in key for key in measured(2, (predicted, target, masks, photo)).compute())
    assert measured(2).compute() == {}
    assert measured(2).pseudovalues() == {}
