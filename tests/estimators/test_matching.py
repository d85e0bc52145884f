"""Matching: enlarged grids are read as DIFT reads them, masked tokens never match, random masks keep to the interior."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import grid_sample, interpolate, normalize

from datamodules.images.pairs import placement_of
from sdprobe.estimators.matching import CHUNK, best, cosines, random_mask, refined, upsampled_argmax
from sdprobe.tokens.geometry import Placement, border_groups, sampled_at
from tests.metrics.drawn import randmask, randn

MARGIN = 1e-5  # of cosines: how much more alike the best pixel must be for float32 to find it
SIZE = 64


# --- enlarged grids --------------------------------------------------------------------------------------------------


def squashed(grid: Tensor, width: int, height: int) -> Tensor:
    """DIFT's: all features at all pixels of the original picture."""
    return interpolate(grid[None].double(), (height, width), mode="bilinear", align_corners=False)[0]


def padded(grid: Tensor, place: Placement, width: int, height: int) -> Tensor:
    """Features at the places in the padded input that the original picture's pixels have."""
    pixels = torch.cartesian_prod(torch.arange(height) + 0.5, torch.arange(width) + 0.5).flip(1).double()
    where = (2 * place.to_input(pixels) / SIZE - 1).view(1, height, width, 2)
    return grid_sample(grid[None].double(), where, mode="bilinear", padding_mode="border", align_corners=False)[0]


def alike(token: Tensor, features: Tensor) -> Tensor:
    """Cosine of a token with every pixel, normalised after enlarging."""
    return (normalize(token.double(), dim=0)[:, None, None] * normalize(features, dim=0)).sum(0)


def assert_found(found: Tensor, source: Tensor, features: Tensor) -> None:
    """Every pixel (x, y) that was found is the most alike, keypoint by keypoint.

    Beyond the outermost tokens' centres enlarged grids are flat: there, ties are common and one of the tied pixels is right.
    """
    clear = 0
    for token, (x, y) in zip(source, found.tolist(), strict=True):
        cosine = alike(token, features)
        first, second = cosine.flatten().topk(2).values
        assert cosine[y, x] > first - MARGIN
        if first - second > MARGIN:
            clear += 1
            assert (y, x) == np.unravel_index(int(cosine.argmax()), cosine.shape)
    assert clear >= 0.3 * len(source), "the control: not all are tied"


PICTURES = [(37, 53), (90, 41), (64, 64), (5, 7), (8, 8), (100, 9)]


@pytest.mark.parametrize(("width", "height"), PICTURES)
@pytest.mark.parametrize("shape", [(8, 8), (7, 5), (16, 16)])
def test_a_squashed_picture_is_matched_as_dift_matches_it(width: int, height: int, shape: tuple[int, int]) -> None:
    source, target = randn(CHUNK + 8, 12, seed=width), randn(12, *shape, seed=height)
    place = placement_of(width, height, SIZE, "squash")
    found = upsampled_argmax(source, target, place, width, height, SIZE)
    assert_found(found, source, squashed(target, width, height))


@pytest.mark.parametrize(("width", "height"), PICTURES)
@pytest.mark.parametrize("side", [4, 8, 13])
def test_a_padded_picture_is_matched_within_itself(width: int, height: int, side: int) -> None:
    source, target = randn(20, 12, seed=width), randn(12, side, side, seed=height)
    place = placement_of(width, height, SIZE, "pad")
    found = upsampled_argmax(source, target, place, width, height, SIZE)
    assert_found(found, source, padded(target, place, width, height))
    assert (found >= 0).all() and (found < torch.tensor([width, height])).all()


def test_the_two_references_agree_where_both_apply() -> None:
    grid = randn(3, 6, 6)
    torch.testing.assert_close(padded(grid, placement_of(31, 20, SIZE, "squash"), 31, 20), squashed(grid, 31, 20))


@pytest.mark.parametrize("kind", ["high norms", "an offset", "small", "large", "half"])
def test_the_kind_of_tokens_changes_nothing(kind: str) -> None:
    source, target = randn(30, 16), randn(16, 8, 8, seed=1)
    if kind == "high norms":
        target = target * torch.where(randmask(8, 8, share=0.2, seed=2), 30.0, 1.0)
    elif kind == "an offset":  # as activations are: cosines are all high
        source, target = source + 3, target + 3
    elif kind == "half":
        source, target = source.half(), target.half()
    else:
        target = target * {"small": 1e-2, "large": 1e3}[kind]
    found = upsampled_argmax(source, target, placement_of(50, 30, SIZE, "squash"), 50, 30, SIZE)
    assert_found(found, source, squashed(target, 50, 30))


@pytest.mark.parametrize("resize", ["squash", "pad"])
def test_a_pixel_finds_itself_in_its_own_picture(resize: str) -> None:
    grid, place = randn(24, 8, 8), placement_of(48, 30, SIZE, resize)
    pixels = torch.tensor([[0, 0], [47, 29], [13, 7], [20, 21], [40, 3]])
    tokens = sampled_at(grid, place.to_input(pixels + 0.5), SIZE / 8)
    assert upsampled_argmax(tokens, grid, place, 48, 30, SIZE)[2:].tolist() == pixels[2:].tolist()
    features = squashed(grid, 48, 30) if resize == "squash" else padded(grid, place, 48, 30)
    read = torch.stack([features[:, y, x] for x, y in pixels.tolist()])
    torch.testing.assert_close(tokens.double(), read, atol=1e-5, rtol=0)


def test_the_whole_of_dift_from_two_grids_and_a_keypoint_of_whole_pixels() -> None:
    source, target = randn(16, 8, 8), randn(16, 8, 8, seed=1)
    (wide, high), (width, height) = (45, 31), (28, 60)
    keypoints = torch.tensor([[3, 4], [44, 30], [0, 0], [20, 11], [31, 2], [9, 25]])
    enlarged = squashed(source, wide, high)
    read = torch.stack([enlarged[:, y, x] for x, y in keypoints.tolist()])
    pixels = placement_of(wide, high, SIZE, "squash").to_input(keypoints + 0.5)
    place = placement_of(width, height, SIZE, "squash")
    found = upsampled_argmax(sampled_at(source, pixels, SIZE / 8), target, place, width, height, SIZE)
    assert_found(found, read, squashed(target, width, height))


@pytest.mark.parametrize("count", [0, 1, CHUNK, CHUNK + 1])
def test_keypoints_are_matched_one_by_one_however_many_there_are(count: int) -> None:
    source, target, place = randn(count, 6), randn(6, 8, 8, seed=1), placement_of(40, 30, SIZE, "pad")
    together = upsampled_argmax(source, target, place, 40, 30, SIZE)
    assert together.shape == (count, 2)
    for k in range(count):
        assert torch.equal(upsampled_argmax(source[k : k + 1], target, place, 40, 30, SIZE)[0], together[k])


# --- tokens ----------------------------------------------------------------------------------------------------------


@given(st.integers(1, 6), st.integers(1, 8), st.integers(1, 5), st.integers(1, 5), st.integers(0, 10**6))
@settings(max_examples=25)
def test_cosines_agree_with_a_loop_over_tokens(n: int, channels: int, height: int, width: int, seed: int) -> None:
    source, target = randn(n, channels, seed=seed), 7 * randn(channels, height, width, seed=seed + 1)
    found = cosines(source, target)
    for i in range(n):
        for row in range(height):
            for col in range(width):
                x, y = source[i].tolist(), target[:, row, col].tolist()
                dot = sum(a * b for a, b in zip(x, y, strict=True))
                assert found[i, row * width + col].item() == pytest.approx(dot / math.hypot(*x) / math.hypot(*y), abs=1e-5)


def test_tokens_without_norm_are_like_nothing_and_no_nan() -> None:
    source, target = randn(3, 4), randn(4, 2, 2)
    source[1], target[:, 0, 1] = 0, 0
    found = cosines(source, target)
    assert found.isfinite().all()
    assert (found[1] == 0).all() and (found[:, 1] == 0).all()


@given(st.integers(1, 6), st.integers(1, 30), st.floats(0, 0.95), st.integers(0, 10**6))
@settings(max_examples=40)
def test_the_best_token_is_the_first_of_the_most_alike_that_are_not_masked(n: int, p: int, share: float, seed: int) -> None:
    similarity = (2 * randn(n, p, seed=seed)).round() / 8  # many ties, many below zero
    masked = randmask(p, share=share, seed=seed)
    masked[seed % p] = False
    kept = similarity.clone()
    for mask in (masked, None, torch.zeros_like(masked)):
        found = best(similarity, mask).tolist()
        for i in range(n):
            allowed = [k for k in range(p) if mask is None or not mask[k]]
            assert found[i] == max(allowed, key=lambda k: (similarity[i, k].item(), -k))
    assert torch.equal(similarity, kept), "what is masked is masked for one group only"


# --- between tokens --------------------------------------------------------------------------------------------------


def window_soft_argmax(similarity: list[float], width: int, height: int) -> tuple[float, float]:
    """As released by geoaware, token by token: similarities outside 15 × 15 tokens are zeroed, then softmax with 0.02."""
    first = similarity.index(max(similarity))
    kept = {
        (row, col): similarity[row * width + col] if abs(row - first // width) <= 7 and abs(col - first % width) <= 7 else 0.0
        for row in range(height)
        for col in range(width)
    }
    largest = max(kept.values())
    weight = {place: math.exp((value - largest) / 0.02) for place, value in kept.items()}
    total = sum(weight.values())
    x = sum(col * share for (_, col), share in weight.items()) / total
    return x, sum(row * share for (row, _), share in weight.items()) / total


@given(st.integers(1, 24), st.integers(1, 24), st.sampled_from([0.02, 0.1, 0.4]), st.integers(0, 10**6))
@settings(max_examples=40)
def test_the_refined_match_is_geoawares_window_soft_argmax(width: int, height: int, scale: float, seed: int) -> None:
    similarity = scale * randn(3, height * width, seed=seed)
    for found, values in zip(refined(similarity, width).tolist(), similarity.tolist(), strict=True):
        x, y = window_soft_argmax(values, width, height)
        assert found == pytest.approx([x + 0.5, y + 0.5], abs=1e-3), "a token's centre is its index + ½"


def test_a_sharp_peak_is_its_tokens_centre_and_two_equal_ones_meet_between_them() -> None:
    similarity = torch.zeros(3, 20 * 30)
    similarity[0, 4 * 30 + 9] = similarity[1, [4 * 30 + 9, 4 * 30 + 10]] = similarity[2, [4 * 30 + 9, 4 * 30 + 20]] = 1.0
    expected = torch.tensor([[9.5, 4.5], [10.0, 4.5], [9.5, 4.5]])  # the last peak lies outside the first one's window
    torch.testing.assert_close(refined(similarity, 30), expected, atol=1e-4, rtol=0)


# --- random masks ----------------------------------------------------------------------------------------------------


@given(st.integers(3, 12), st.integers(3, 12), st.floats(0, 1), st.integers(0, 10**6))
@settings(max_examples=40)
def test_a_random_mask_is_as_large_as_its_group_inside_and_outside_of_it(h: int, w: int, share: float, seed: int) -> None:
    masks = border_groups(h, w) | {"high_norm": randmask(h, w, share=share, seed=seed)}
    for group in ("corner", "border", "high_norm"):
        drawn = random_mask(masks, group, seed).view(h, w)
        assert not (drawn & ~masks["interior"]).any()
        assert not (drawn & masks[group]).any()
        allowed = int((masks["interior"] & ~masks[group]).sum())
        assert int(drawn.sum()) == min(int(masks[group].sum()), allowed)


def test_a_random_mask_depends_on_its_key_alone() -> None:
    masks = border_groups(16, 16) | {"high_norm": randmask(16, 16, share=0.1, seed=0)}
    torch.manual_seed(1)
    first = random_mask(masks, "high_norm", 0, "up_1", 7)
    torch.manual_seed(2)
    assert torch.equal(random_mask(masks, "high_norm", 0, "up_1", 7), first)
    assert not torch.equal(random_mask(masks, "high_norm", 0, "up_1", 8), first)
    assert not torch.equal(random_mask(masks, "high_norm", 0, "up_2", 7), first)


def test_random_masks_cover_the_interior_evenly() -> None:
    masks, draws = border_groups(8, 8), 2000
    counts = torch.stack([random_mask(masks, "corner", key) for key in range(draws)]).sum(0).view(8, 8)[1:-1, 1:-1]
    expected = draws * 4 / 36
    assert (counts - expected).abs().max().item() < 5 * math.sqrt(expected)
