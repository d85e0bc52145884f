"""TokenNorms: agrees with loops and with the published worked example of the ICC, and finds planted norms."""

import json
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sdprobe.metrics.layer_tokens import LayerTokens
from sdprobe.metrics.position_variance import position_share
from sdprobe.metrics.token_norms import TokenNorms
from sdprobe.tokens.groups import token_groups
from sdprobe.utilities.errors import InputError
from tests.metrics.drawn import randn

GROUPS = ("corner", "border", "interior", "high_norm")
ROUNDING = 1e-6  # relative, of a norm in float32, which rounds by 6e-8


def metric_of(grid: Tensor, parts: int = 1, groups: tuple[str, ...] = GROUPS, **masks: Tensor) -> TokenNorms:
    metric = TokenNorms(*grid.shape[2:], groups, images=len(grid))
    masks = token_groups(grid) | masks
    for index in torch.arange(len(grid)).tensor_split(parts):
        metric.update(LayerTokens.of(grid[index], {group: mask[index] for group, mask in masks.items()}))
    return metric


def reference_ratio(grid: Tensor, mask: Tensor) -> tuple[float, int]:
    ratios = []
    for image, chosen in zip(grid, mask, strict=True):
        norms = [[math.hypot(*image[:, r, c].tolist()) for c in range(grid.shape[3])] for r in range(grid.shape[2])]
        inside = [norms[r][c] for r, c in chosen.nonzero().tolist()]
        everywhere = [norm for row in norms for norm in row]
        if inside and sum(everywhere):
            ratios.append(sum(inside) / len(inside) / (sum(everywhere) / len(everywhere)))
    return (sum(ratios) / len(ratios) if ratios else math.nan), len(ratios)


def shrout_fleiss(table: np.ndarray) -> float:
    """ICC(2,1) of targets × judges by the mean squares of the two-way table."""
    targets, judges = table.shape
    rows, cols, mean = table.mean(1), table.mean(0), table.mean()
    bms = judges * ((rows - mean) ** 2).sum() / (targets - 1)
    jms = targets * ((cols - mean) ** 2).sum() / (judges - 1)
    ems = ((table - rows[:, None] - cols + mean) ** 2).sum() / ((targets - 1) * (judges - 1))
    return (bms - ems) / (bms + (judges - 1) * ems + judges * (jms - ems) / targets)


EXAMPLE = np.array([[9, 2, 5, 8], [6, 1, 3, 2], [8, 4, 6, 8], [7, 1, 2, 6], [10, 5, 6, 9], [6, 2, 4, 7]], dtype=float)


def test_position_share_of_one_channel_is_the_icc_of_shrout_and_fleiss() -> None:
    table = torch.tensor(EXAMPLE.T)  # six targets are positions, four judges are images
    squares = torch.stack([table.square().sum(), table.sum(1).square().sum()])
    value = position_share(table.sum(0)[None], squares, images=4).item()
    assert value == pytest.approx(0.29, abs=0.005), "the value printed in the paper"
    assert value == pytest.approx(shrout_fleiss(EXAMPLE))


@given(st.integers(1, 5), st.integers(1, 6), st.integers(4, 6), st.integers(4, 6), st.integers(0, 10**6))
@settings(deadline=None, max_examples=25)
def test_it_agrees_with_loops(batch: int, channels: int, height: int, width: int, seed: int) -> None:
    grid = randn(batch, channels, height, width, seed=seed) * (2 * randn(batch, 1, height, width, seed=seed + 1)).exp()
    metric = metric_of(grid)
    values, masks = metric.compute(), token_groups(grid)
    for group in GROUPS:
        expected, count = reference_ratio(grid, masks[group])
        assert (f"relative_norm/{group}" in values) == bool(count)
        if count:
            assert values[f"relative_norm/{group}"] == pytest.approx(expected, rel=ROUNDING)
            assert values[f"relative_norm/{group}/n"] == count
    norms = grid.double().square().sum(1).sqrt()
    np.testing.assert_allclose(metric.maps()["norm"], norms.mean(0).numpy(), rtol=ROUNDING)
    if batch > 1:
        assert values["norm_icc/all"] == pytest.approx(shrout_fleiss(norms.log().flatten(1).numpy().T), abs=ROUNDING)


@pytest.mark.parametrize("strength", [0.0, 0.5, 2.0])
def test_the_icc_is_the_planted_share_of_log_norm(strength: float) -> None:
    place = randn(8, 8, seed=1)
    place = strength * (place - place.mean()) / place.std()
    log = place + randn(200, 8, 8) + randn(200, 1, 1, seed=2)  # position, token, image: variances strength², 1, 1
    grid = torch.nn.functional.normalize(randn(200, 6, 8, 8, seed=3), dim=1) * log.exp().unsqueeze(1)
    values = metric_of(grid).compute()
    assert values["norm_icc/all"] == pytest.approx(strength**2 / (strength**2 + 2), abs=0.03)
    assert values["norm_icc/all/ci_low"] - 0.02 < strength**2 / (strength**2 + 2) < values["norm_icc/all/ci_high"] + 0.02


def test_an_empty_group_has_no_key_and_an_image_of_zeros_does_not_count() -> None:
    grid = randn(3, 4, 5, 5)
    grid[1] = 0
    values: dict[str, Any] = metric_of(grid, high_norm=torch.zeros(3, 5, 5, dtype=torch.bool)).compute()
    assert not any("high_norm" in key for key in values)
    assert values["relative_norm/corner/n"] == 2
    json.dumps(values, allow_nan=False)


def test_a_grid_without_an_interior_worth_the_name_is_refused() -> None:
    with pytest.raises(InputError, match=r"at least 4×4 .* but got 2×4"):
        TokenNorms(2, 4, GROUPS, images=1)
