"""Laws of token coordinates: one order of tokens, one convention of centres, even bins."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sdprobe.tokens.geometry import bins, centres, flatten, positions, unflatten

side = st.integers(1, 9)


@given(batch=st.integers(1, 3), channels=st.integers(1, 4), height=side, width=side)
@settings(max_examples=40, deadline=None)
def test_unflatten_undoes_flatten(batch: int, channels: int, height: int, width: int) -> None:
    grid = torch.arange(batch * channels * height * width).float().view(batch, channels, height, width)
    tokens = flatten(grid)
    assert tokens.shape == (batch, height * width, channels)
    assert torch.equal(unflatten(tokens, height, width), grid)
    assert torch.equal(flatten(unflatten(tokens, height, width)), tokens)


@given(height=side, width=side)
@settings(max_examples=40, deadline=None)
def test_positions_name_the_tokens_that_flatten_lists(height: int, width: int) -> None:
    rows = torch.arange(height).view(-1, 1).expand(height, width)
    cols = torch.arange(width).view(1, -1).expand(height, width)
    grid = torch.stack([rows, cols])[None].float()
    listed = positions(height, width)
    assert listed.dtype == torch.long
    assert torch.equal(flatten(grid)[0].long(), listed)


def test_flatten_of_channels_last_copies_nothing() -> None:
    grid = torch.rand(2, 3, 4, 5).to(memory_format=torch.channels_last)
    assert flatten(grid).data_ptr() == grid.data_ptr()


@given(height=side, width=side, stride=st.sampled_from([1.0, 2.0, 8.0, 12.5, 14.0, 64.0]))
@settings(max_examples=40, deadline=None)
def test_centre_lies_in_its_token(height: int, width: int, stride: float) -> None:
    token = positions(height, width)
    assert torch.equal((centres(token, stride) / stride).floor().long().flip(-1), token)


@given(height=side, width=side, stride=st.sampled_from([1.0, 8.0, 12.5]))
@settings(max_examples=20, deadline=None)
def test_centres_are_centred_on_the_image(height: int, width: int, stride: float) -> None:
    # a half-cell bias, the commonest mistake in keypoint code, moves this mean
    mean = centres(positions(height, width), stride).double().mean(0)
    assert torch.allclose(mean, torch.tensor([width * stride / 2, height * stride / 2], dtype=torch.double))


def test_points_are_x_then_y() -> None:
    assert centres(torch.tensor([[0, 2]]), stride=8).tolist() == [[20.0, 4.0]]


@given(data=st.data(), size=st.integers(1, 130))
@settings(max_examples=60, deadline=None)
def test_bins_partition_an_axis_evenly(data: st.DataObject, size: int) -> None:
    count = data.draw(st.integers(1, size))
    bin_of = bins(torch.arange(size), size, count)
    sizes = bin_of.bincount(minlength=count)
    assert len(sizes) == count and sizes.min() >= 1
    assert sizes.max() - sizes.min() <= 1
    assert (bin_of.diff() >= 0).all()


@pytest.mark.parametrize(("size", "share"), [(8, 1), (16, 2), (64, 8)])
def test_eight_bins_have_equal_sizes_on_the_grids_of_stable_diffusion(size: int, share: int) -> None:
    assert bins(torch.arange(size), size, 8).bincount().tolist() == [share] * 8
