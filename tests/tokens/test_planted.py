"""Planted anomalies are what they claim, and the statistics find the planted one and no other."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sdprobe.metrics.channel_energy import ChannelEnergy
from sdprobe.metrics.credibility import channel_risk, corner_risk, norm_risk, token_risk
from sdprobe.metrics.group_similarity import GroupSimilarity, corner_mask
from sdprobe.metrics.high_norm import DetectionScore, HighNormTokens, resembles
from sdprobe.metrics.layer_tokens import LayerTokens, TokenMeans
from sdprobe.metrics.position_variance import PositionVariance
from sdprobe.metrics.token_norms import TokenNorms
from sdprobe.tokens.groups import border_groups, high_norm, token_groups
from sdprobe.utilities.errors import InputError
from tests.planted import corner_code, direction, high_norm_patches, position_code

CHANNELS, IMAGES = 64, 60


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def clean(images: int = IMAGES, side: int = 12, seed: int = 0) -> Tensor:
    """Independent Gaussian tokens with E‖e‖² = 1: nothing is wrong with them."""
    return torch.randn(images, CHANNELS, side, side, generator=generator(seed), dtype=torch.float64) / CHANNELS**0.5


@given(st.integers(1, 9), st.integers(1, 9), st.integers(2, 9), st.floats(0, 100), st.integers(0, 10**6))
@settings(deadline=None, max_examples=40)
def test_a_position_code_has_the_variance_it_claims(channels: int, height: int, width: int, strength: float, seed: int) -> None:
    code = position_code(channels, height, width, strength, generator(seed))
    torch.testing.assert_close(
        code.mean((1, 2)), torch.zeros(channels, dtype=torch.float64), atol=1e-9 * (strength + 1), rtol=0
    )
    assert code.square().sum().item() / (height * width - 1) == pytest.approx(strength**2, abs=1e-9)


def test_a_position_code_is_a_row_part_and_a_column_part() -> None:
    code = position_code(5, 6, 7, 1.0, generator())
    torch.testing.assert_close(code - code[:, :1] - code[:, :, :1] + code[:, :1, :1], torch.zeros(5, 6, 7, dtype=torch.float64))


@given(st.integers(1, 9), st.integers(2, 9), st.integers(2, 9), st.floats(0, 100))
@settings(deadline=None, max_examples=40)
def test_a_corner_code_is_one_vector_at_four_tokens(channels: int, height: int, width: int, strength: float) -> None:
    code, corner = corner_code(channels, height, width, strength, generator()), border_groups(height, width)["corner"]
    assert (code[:, ~corner] == 0).all()
    torch.testing.assert_close(code[:, corner].norm(dim=0), torch.full((4,), strength, dtype=torch.float64))
    assert (code[:, corner] == code[:, :1, 0]).all()


@given(st.integers(2, 9), st.integers(2, 9), st.integers(0, 3), st.floats(0, 20), st.integers(0, 10**6))
@settings(deadline=None, max_examples=40)
def test_patches_are_aligned_and_of_the_strength_they_claim(
    height: int, width: int, patches: int, strength: float, seed: int
) -> None:
    grid = torch.randn(3, 5, height, width, generator=generator(seed))
    patches = min(patches, (height // 2) * (width // 2))
    changed, mask = high_norm_patches(grid, strength, patches, generator(seed))
    assert changed.dtype == grid.dtype
    assert torch.equal(changed.movedim(1, -1)[~mask], grid.movedim(1, -1)[~mask])
    for image, chosen, raw in zip(changed, mask, grid, strict=True):
        cells = {(r // 2, c // 2) for r, c in chosen.nonzero().tolist()}
        assert len(cells) == patches and chosen.sum() == 4 * patches
        added = (image - raw)[:, chosen].norm(dim=0)
        median = sorted(raw.norm(dim=0).flatten().tolist())[(height * width - 1) // 2]
        torch.testing.assert_close(added, torch.full_like(added, strength * median), atol=1e-4, rtol=1e-4)


def test_impossible_plantings_are_refused() -> None:
    with pytest.raises(InputError, match="at most 4 on a 4×5 grid, but got 5"):
        high_norm_patches(torch.ones(1, 2, 4, 5), 1.0, 5, generator())
    with pytest.raises(InputError, match="larger than 1×1"):
        position_code(2, 1, 1, 1.0, generator())


def test_a_direction_is_a_unit_vector_and_no_two_are_alike() -> None:
    first, second = direction(500, generator(0)), direction(500, generator(1))
    assert first.norm().item() == pytest.approx(1)
    assert abs(first @ second) < 0.2


def test_detection_gets_better_with_strength_up_to_all_and_nothing_else() -> None:
    grid, scores = clean(side=16), []
    for strength in (0.25, 0.5, 1.0, 1.5, 2.0, 4.0, 8.0):
        changed, mask = high_norm_patches(grid, strength, 2, generator(3))
        score = DetectionScore(IMAGES)
        score.update(high_norm(changed), mask)
        scores.append(score.compute())
    recalls = [score["recall/all"] for score in scores]
    assert recalls == sorted(recalls)
    assert recalls[0] < 0.05, "as strong as the noise: cannot be seen"
    for score in scores[-3:]:
        assert score["recall/all"] > 0.95 and score["patch_recall/all"] == 1
        assert score["precision/all"] > 0.999 and score["patch_precision/all"] > 0.999


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_clean_tokens_have_no_detections(scale: float) -> None:
    assert not high_norm(scale * clean(200, side=16)).any()


def test_the_template_recognises_patches_of_other_images() -> None:
    changed, mask = high_norm_patches(clean(), 4.0, 2, generator(3))
    fitted = TokenMeans(CHANNELS)
    fitted.update(changed[:30], token_groups(changed[:30])["high_norm"])
    mean, template = fitted.compute()
    score = DetectionScore(30)
    score.update(resembles(LayerTokens.of(changed[30:], {}, mean), template), mask[30:])
    assert score.compute()["recall/all"] > 0.99
    assert score.compute()["precision/all"] > 0.99


def statistics(grid: Tensor, mean: Tensor) -> dict[str, float]:
    """What all the statistics of one layer say."""
    groups, images, count = ("corner", "border", "interior"), len(grid), tuple(grid.shape[1:])
    metrics = [GroupSimilarity(groups, images, centred=True), TokenNorms(*count[1:], groups, images)]
    metrics += [PositionVariance(*count, images=images), HighNormTokens(images), ChannelEnergy(CHANNELS, images)]
    layer = LayerTokens.of(grid, token_groups(grid), mean)
    for metric in metrics:
        metric.update(layer)
    return {key: value for metric in metrics for key, value in metric.compute().items()}


def r_cor(full: Tensor, cropped: Tensor, margin: int) -> float:
    """Corner tokens of the cropped images against the tokens of the full ones that show the same."""
    found = []
    for grid, ring in ((cropped, 0), (full, margin)):
        metric = GroupSimilarity(("corner",), len(grid), centred=True)
        mask = {"corner": corner_mask(*grid.shape[2:], margin=ring).expand(len(grid), -1, -1)}
        metric.update(LayerTokens.of(grid, mask, full.mean((0, 2, 3))))
        found.append(torch.tensor(metric.compute()["similarity_centred/corner"], dtype=torch.float64))
    return corner_risk(*found).item()


@pytest.mark.parametrize("strength", [0.0, 0.5, 1.0, 3.0])
def test_a_corner_code_is_corner_risk_and_nothing_else(strength: float) -> None:
    full, margin = clean(side=14), 1
    cropped = full[:, :, margin:-margin, margin:-margin]
    before, code = statistics(cropped, full.mean((0, 2, 3))), corner_code(CHANNELS, 12, 12, strength, generator(5))
    after = statistics(cropped + code, full.mean((0, 2, 3)))
    expected = strength**2 / (strength**2 + 1)
    assert after["similarity_centred/corner"] == pytest.approx(expected, abs=0.04)
    assert r_cor(full, cropped + code, margin) == pytest.approx(expected, abs=0.04)
    for key in ("similarity_centred/border", "similarity_centred/interior", "similarity_centred/border_interior"):
        assert after[key] == pytest.approx(before[key], abs=1e-6)
    for key in ("similarity_centred/corner_border", "similarity_centred/corner_interior"):
        assert after[key] == pytest.approx(before[key], abs=0.02)
    energy = 1 / CHANNELS + code.square().mean((1, 2))  # the code adds its own energy to its channels, and no more
    assert after["channel_energy/all"] == pytest.approx((energy.max() / energy.sum()).item(), abs=0.005)
    # four tokens with a place of their own are a position effect too, of the size four tokens can have
    share = 4 * (1 - 4 / 144) / 143 * strength**2 / (strength**2 + 1)
    assert after["position_variance/all"] - before["position_variance/all"] == pytest.approx(share, abs=0.003)


def test_content_that_repeats_in_the_corners_is_no_corner_risk() -> None:
    full = clean(side=14) + corner_mask(14, 14, margin=1) * direction(CHANNELS, generator(5)).view(-1, 1, 1)
    cropped = full[:, :, 1:-1, 1:-1]
    assert statistics(cropped, full.mean((0, 2, 3)))["similarity_centred/corner"] > 0.4
    assert r_cor(full, cropped, 1) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("strength", [0.5, 2.0])
def test_a_position_code_is_shared_variance_and_no_risk_of_norm(strength: float) -> None:
    grid = clean() + position_code(CHANNELS, 12, 12, strength, generator(5))
    values = statistics(grid, grid.mean((0, 2, 3)))
    assert values["position_variance/all"] == pytest.approx(strength**2 / (strength**2 + 1), abs=0.05)
    assert values["r_tok/all"] < 0.01 and values["r_chn/all"] < 0.1
    assert values["similarity_centred/interior"] < 0.1, "places differ from one another"


@pytest.mark.parametrize("strength", [4.0, 16.0])
def test_patches_are_risk_of_norm_and_nothing_else(strength: float) -> None:
    changed, _ = high_norm_patches(clean(), strength, 2, generator(5))
    values = statistics(changed, changed.mean((0, 2, 3)))
    share = 8 / 144
    energy = share * (1 + strength**2) / (1 + share * strength**2)
    assert values["high_norm_share/all"] == pytest.approx(share, rel=0.01)
    assert values["high_norm_energy/all"] == pytest.approx(energy, abs=0.02)
    assert values["r_tok/all"] == pytest.approx((energy - share) / (1 - share), abs=0.02)
    assert values["high_norm_patches/all"] == pytest.approx(2, abs=0.05)
    assert values["high_norm_aligned/all"] > 0.99
    assert abs(values["position_variance/all"]) < 0.01
    risk = norm_risk(*(torch.tensor(values[f"{name}/all"]) for name in ("r_tok", "r_chn")))
    assert risk > 0.4


def test_clean_tokens_carry_no_risk() -> None:
    values = statistics(clean(), torch.zeros(CHANNELS))
    for key in ("position_variance/all", "norm_icc/all", *(f"similarity/{name}" for name in ("corner", "border", "interior"))):
        assert abs(values[key]) < 0.01, key
    assert values["r_tok/all"] == 0 and values["high_norm_share/all"] == 0
    assert values["r_chn/all"] < 0.005
    none, one = torch.tensor(0.0), torch.tensor(1.0)
    assert token_risk(none, none) == 0 and channel_risk(none, 1, CHANNELS) == 0 and token_risk(one, none) == 1
