"""LayerTokens: the tokens, norms and masks of a grid, exact for half precision, wherever its numbers lie in memory."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sdprobe.metrics.layer_tokens import LayerTokens, inverse_norms
from sdprobe.tokens.groups import border_groups
from tests.metrics.drawn import randn

ROUNDING = 1e-6  # relative, of a norm in float32, which rounds by 6e-8


def masks_of(batch: int, height: int, width: int) -> dict[str, Tensor]:
    return {group: mask.expand(batch, -1, -1) for group, mask in border_groups(height, width).items()}


@given(st.integers(1, 3), st.integers(1, 5), st.integers(1, 4), st.integers(1, 4), st.integers(0, 10**6))
@settings(deadline=None, max_examples=25)
def test_every_token_has_its_place_its_norm_and_its_mask(batch: int, channels: int, height: int, width: int, seed: int) -> None:
    grid, mean = randn(batch, channels, height, width, seed=seed), randn(channels, seed=seed + 1)
    masks = masks_of(batch, height, width)
    layer = LayerTokens.of(grid, masks, mean)
    assert (len(layer), layer.height, layer.width) == (batch, height, width)
    for n in range(batch):
        for place in range(height * width):
            token = grid[n, :, place // width, place % width]
            assert torch.equal(layer.tokens[n, place], token)
            assert torch.equal(layer.centred[n, place], token - mean)
            assert layer.norms[n, place].item() == pytest.approx(math.hypot(*token.tolist()), rel=ROUNDING)
            assert layer.centred_norms[n, place].item() == pytest.approx(math.hypot(*(token - mean).tolist()), rel=ROUNDING)
            for group, mask in masks.items():
                assert layer.masks[group][n, place] == mask[n, place // width, place % width]
    assert all(torch.equal(layer.grid_mask(group), mask) for group, mask in masks.items())


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_half_precision_is_held_exactly_in_any_layout(dtype: torch.dtype, layout: torch.memory_format) -> None:
    grid = (300 * randn(2, 64, 4, 5)).to(dtype).to(memory_format=layout)
    layer = LayerTokens.of(grid, {})
    assert torch.equal(layer.tokens, grid.float().flatten(2).mT)
    assert layer.tokens.is_contiguous(), "every later pass reads it in order"
    torch.testing.assert_close(layer.norms, grid.double().norm(dim=1).flatten(1), rtol=ROUNDING, atol=0)
    assert layer.norms.isfinite().all(), "squares overflow in half precision"


def test_a_grid_in_float32_and_channels_last_is_not_copied() -> None:
    grid = randn(2, 8, 4, 4).to(memory_format=torch.channels_last)
    layer = LayerTokens.of(grid, {})
    assert layer.tokens.data_ptr() == layer.centred.data_ptr() == grid.data_ptr()
    assert LayerTokens.of(grid, {}, torch.ones(8)).tokens.data_ptr() == grid.data_ptr()


def test_a_mean_far_away_costs_no_precision() -> None:
    grid = (4096 * randn(2, 8, 4, 4)).round() / 4096  # so that float32 holds grid + 1024 exactly
    far = LayerTokens.of(grid + 1024, {}, torch.full((8,), 1024.0, dtype=torch.float64))
    assert torch.equal(far.centred, LayerTokens.of(grid, {}).tokens)
    assert torch.equal(far.centred_norms, LayerTokens.of(grid, {}).norms)


def test_tokens_too_short_for_a_direction_have_no_inverse_norm() -> None:
    norms = torch.tensor([0.0, 1e-40, 1e-30, 2.0, 1e30], dtype=torch.float64)
    assert inverse_norms(norms).tolist() == pytest.approx([0, 0, 1e30, 0.5, 1e-30], rel=ROUNDING, abs=0)
