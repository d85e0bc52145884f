"""Laws of token groups: a partition by place, and outliers of the norm found per image."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sdprobe.tokens.groups import HIGH_NORM_Z, border_groups, high_norm, token_groups
from sdprobe.tokens.keys import GROUPS

side = st.integers(2, 40)


@given(height=side, width=side)
@settings(max_examples=60, deadline=None)
def test_corner_border_and_interior_partition_the_grid(height: int, width: int) -> None:
    masks = border_groups(height, width)
    assert set(masks) == {"corner", "border", "interior"}
    assert (torch.stack(list(masks.values())).sum(0) == 1).all()
    assert masks["corner"].sum() == 4
    assert masks["border"].sum() == 2 * (height - 2) + 2 * (width - 2)
    assert masks["interior"].sum() == (height - 2) * (width - 2)


@given(height=side, width=side)
@settings(max_examples=30, deadline=None)
def test_groups_are_what_their_names_say(height: int, width: int) -> None:
    masks = border_groups(height, width)
    for row in (0, 1, height - 1):
        for col in (0, 1, width - 1):
            edges = (row in (0, height - 1)) + (col in (0, width - 1))
            assert [masks[name][row, col].item() for name in ("interior", "border", "corner")] == [
                edges == 0,
                edges == 1,
                edges == 2,
            ]


def reference(grid: np.ndarray) -> np.ndarray:
    """Robust z of log-norms, token by token and in double precision: the definition, slowly."""
    z = np.zeros((len(grid), *grid.shape[2:]))
    for n, image in enumerate(grid.astype(np.float64)):
        logs = [np.log(np.sqrt((image[:, r, c] ** 2).sum())) for r in range(image.shape[1]) for c in range(image.shape[2])]
        median = np.median(logs)
        mad = np.median(np.abs(np.array(logs) - median))
        z[n] = ((np.array(logs) - median) / (1.4826 * mad)).reshape(z[n].shape)
    return z


def heavy_tailed(batch: int, height: int, width: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    directions = torch.nn.functional.normalize(torch.randn(batch, 6, height, width, generator=generator), dim=1)
    tails = torch.randn(batch, 1, height, width, generator=generator) / torch.rand(batch, 1, height, width, generator=generator)
    return directions * (tails / 4).clamp(-20, 20).exp()


def test_high_norm_is_the_robust_z_of_the_log_norm() -> None:
    grid = heavy_tailed(20, 9, 7)  # an odd number of tokens has one median
    expected = reference(grid.numpy()) > HIGH_NORM_Z
    assert 20 < expected.sum() < expected.size / 2, "some tokens of each kind"
    assert np.array_equal(high_norm(grid).numpy(), expected)


def test_high_norm_agrees_on_even_grids_except_next_to_the_threshold() -> None:
    grid = heavy_tailed(8, 16, 16)
    z = reference(grid.numpy())
    clear = np.abs(z - HIGH_NORM_Z) > 0.15  # the median of an even number of values is a convention
    assert np.array_equal(high_norm(grid).numpy()[clear], (z > HIGH_NORM_Z)[clear])
    assert ((z > HIGH_NORM_Z) & clear).sum() > 50


@given(seed=st.integers(0, 1000), row=st.integers(0, 15), col=st.integers(0, 15))
@settings(max_examples=25, deadline=None)
def test_a_planted_outlier_is_found_and_nothing_else(seed: int, row: int, col: int) -> None:
    grid = torch.randn(1, 64, 16, 16, generator=torch.Generator().manual_seed(seed))
    grid[0, :, row, col] *= 10
    assert high_norm(grid).nonzero().tolist() == [[0, row, col]]


def test_a_token_of_low_norm_is_no_high_norm_token() -> None:
    grid = torch.randn(1, 64, 16, 16, generator=torch.Generator().manual_seed(0))
    grid[0, :, 3, 4] /= 10
    assert not high_norm(grid).any()


def test_gaussian_tokens_are_hardly_ever_flagged() -> None:
    grid = torch.randn(32, 64, 32, 32, generator=torch.Generator().manual_seed(0))
    assert high_norm(grid).float().mean() < 1e-4


@pytest.mark.parametrize("norm", [1.0, 30.0, 1e4])
@pytest.mark.parametrize("channels", [4, 320])
def test_equal_norms_are_never_flagged(norm: float, channels: int) -> None:
    # they are equal up to rounding only, which must not be blown up into outliers
    tokens = torch.randn(4, channels, 16, 16, generator=torch.Generator().manual_seed(0))
    assert not high_norm(torch.nn.functional.normalize(tokens, dim=1) * norm).any()


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_a_constant_grid_has_no_high_norm_tokens(value: float) -> None:
    assert not high_norm(torch.full((2, 5, 8, 8), value)).any()


def test_every_image_is_judged_by_itself() -> None:
    grid = heavy_tailed(6, 8, 8) * torch.logspace(-3, 3, 6).view(-1, 1, 1, 1)
    alone = torch.cat([high_norm(image[None]) for image in grid])
    assert alone.any()
    assert torch.equal(high_norm(grid), alone)
    assert torch.equal(high_norm(grid.flip(0)), alone.flip(0))


@pytest.mark.parametrize("scale", [2.0**-12, 2.0**9, 1e3])
def test_scale_does_not_matter(scale: float) -> None:
    grid = heavy_tailed(8, 15, 15)
    assert torch.equal(high_norm(grid * scale), high_norm(grid))


def test_half_precision_does_not_overflow() -> None:
    grid = torch.randn(1, 1024, 8, 8, generator=torch.Generator().manual_seed(0)).mul(3000).half()
    grid[0, :, 2, 5] *= 4  # every norm, 96,000 and more, exceeds the largest half-precision number
    assert grid.isfinite().all()
    assert high_norm(grid).nonzero().tolist() == [[0, 2, 5]]


def test_a_higher_threshold_flags_a_subset() -> None:
    grid = heavy_tailed(8, 16, 16)
    loose, strict = high_norm(grid, 3.0), high_norm(grid, 8.0)
    assert (strict <= loose).all() and strict.sum() < loose.sum()


def test_token_groups_holds_every_group_for_every_image() -> None:
    grid = heavy_tailed(3, 8, 10)
    groups = token_groups(grid)
    assert tuple(groups) == GROUPS
    assert all(mask.shape == (3, 8, 10) and mask.dtype == torch.bool for mask in groups.values())
    assert torch.equal(groups["high_norm"], high_norm(grid))
    for name, mask in border_groups(8, 10).items():
        assert (groups[name] == mask).all()
