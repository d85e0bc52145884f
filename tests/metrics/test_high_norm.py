"""Statistics of detected tokens: agree with loops over tokens, and score detections as definitions say."""

import json
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sdprobe.metrics.high_norm import DetectionScore, HighNormTokens, MaskOverlap, resembles
from sdprobe.metrics.layer_tokens import LayerTokens, TokenMeans
from sdprobe.utilities.errors import InputError
from tests.metrics.drawn import randmask, randn

sides = st.integers(1, 7)
seeds = st.integers(0, 10**6)
ROUNDING = 1e-6  # relative, of energies summed in float32, which rounds by 6e-8


def means(grid: Tensor, mask: Tensor, parts: int = 1) -> tuple[Tensor, Tensor]:
    """Mean token and template."""
    metric = TokenMeans(grid.shape[1])
    for pieces in zip(grid.chunk(parts), mask.chunk(parts), strict=True):
        metric.update(*pieces)
    return metric.compute()


def layer(grid: Tensor, mask: Tensor, mean: Tensor | None = None) -> LayerTokens:
    return LayerTokens.of(grid, {"high_norm": mask}, mean)


def fed(metric: Any, first: Tensor, second: Tensor, parts: int = 1, mean: Tensor | None = None) -> Any:
    """Two masks, or a grid and the mask of its detections, in several batches."""
    for index in torch.arange(len(first)).tensor_split(parts):
        given = first[index], second[index]
        metric.update(*(given if first.dtype == torch.bool else (layer(*given, mean),)))
    return metric.compute()


def tokens_reference(grid: Tensor, mask: Tensor) -> dict[str, float]:
    """Every definition, token by token."""
    batch, _, height, width = grid.shape
    tokens = [(n, r, c) for n in range(batch) for r in range(height) for c in range(width)]
    hot = [token for token in tokens if mask[token]]
    energy = {(n, r, c): math.hypot(*grid[n, :, r, c].tolist()) ** 2 for n, r, c in tokens}
    share, carried = len(hot) / len(tokens), sum(energy[t] for t in hot) / sum(energy.values())
    patches = [
        (n, r, c) for n, r, c in tokens if r % 2 == c % 2 == 0 and all((n, r + i, c + j) in hot for i in (0, 1) for j in (0, 1))
    ]
    in_patch = [(n, r, c) for n, r, c in hot if (n, r - r % 2, c - c % 2) in patches]
    values = {
        "high_norm_share/all": share,
        "high_norm_energy/all": carried,
        "r_tok/all": 0.0 if share == 1 else max(0.0, (carried - share) / (1 - share)),
        "high_norm_images/all": len({n for n, _, _ in hot}) / batch,
        "high_norm_patches/all": len(patches) / batch,
    }
    if hot:
        values["high_norm_aligned/all"] = len(in_patch) / len(hot)
        for row, row_name in enumerate(("even", "odd")):
            for col, col_name in enumerate(("even", "odd")):
                inside = [t for t in hot if t[1] % 2 == row and t[2] % 2 == col]
                values[f"high_norm_parity/{row_name}_{col_name}"] = len(inside) / len(hot)
    return values


@given(st.integers(1, 4), sides, sides, st.sampled_from([0.0, 0.2, 0.8, 1.0]), seeds)
@settings(deadline=None, max_examples=50)
def test_counts_energies_and_places_agree_with_a_loop(batch: int, height: int, width: int, share: float, seed: int) -> None:
    grid, mask = randn(batch, 3, height, width, seed=seed), randmask(batch, height, width, share=share, seed=seed)
    assert fed(HighNormTokens(images=batch), grid, mask) == pytest.approx(
        tokens_reference(grid, mask), rel=ROUNDING, abs=ROUNDING
    )


def test_values_are_what_json_can_hold() -> None:
    grid, nothing = randn(40, 3, 4, 4), torch.zeros(40, 4, 4, dtype=torch.bool)
    for metric, tensors in (
        (HighNormTokens(40), (grid, nothing)),
        (HighNormTokens(40), (0 * grid, nothing)),
        (MaskOverlap(40), (nothing, nothing)),
        (DetectionScore(40), (nothing, nothing)),
    ):
        json.dumps(fed(metric, *tensors), allow_nan=False)


@pytest.mark.parametrize("folds", [1, 5, 6, 20])
def test_detections_in_fewer_than_six_folds_have_no_interval(folds: int) -> None:
    mask = torch.zeros(40, 4, 4, dtype=torch.bool)
    mask[: 2 * folds, 1, 2] = randmask(2 * folds, share=0.6)
    mask[::2, 1, 2] |= torch.arange(20) < folds
    images = mask.any(2).any(1)
    assert len(set((images.nonzero()[:, 0] // 2).tolist())) == folds
    values = fed(HighNormTokens(40), randn(40, 3, 4, 4), mask)
    assert values["high_norm_images/all"] == images.double().mean().item()
    assert values["high_norm_parity/odd_even"] == 1
    assert any(key.endswith("/ci_low") for key in values) == (folds >= 6)
    if folds >= 6:
        assert values["high_norm_images/all/ci_low"] < values["high_norm_images/all"] < values["high_norm_images/all/ci_high"]


def test_the_template_is_the_unit_mean_of_centred_detections() -> None:
    grid, mask = randn(6, 5, 4, 4) + 3, randmask(6, 4, 4, share=0.4)
    mean, template = means(grid, mask)
    torch.testing.assert_close(mean, grid.double().mean((0, 2, 3)))
    vectors = [(grid[n, :, r, c] - mean).double() for n, r, c in mask.nonzero().tolist()]
    expected = sum(vectors) / len(vectors)
    torch.testing.assert_close(template, expected / expected.norm())
    found = resembles(layer(grid, mask, mean), template, threshold=0.3)
    for n, r, c in torch.ones_like(mask).nonzero().tolist():
        token = (grid[n, :, r, c] - mean).double()
        assert found[n, r, c] == (token @ template / token.norm() > 0.3)
    assert found.any() and not found.all()


def test_without_detections_no_token_resembles_the_template() -> None:
    grid, nothing = randn(2, 5, 4, 4), torch.zeros(2, 4, 4, dtype=torch.bool)
    _, template = means(grid, nothing)
    assert not resembles(layer(grid, nothing), template, threshold=0).any()


@given(sides, sides, st.integers(1, 3), st.booleans(), seeds)
@settings(deadline=None, max_examples=50)
def test_overlap_on_the_coarser_grid_agrees_with_a_loop(height: int, width: int, factor: int, swap: bool, seed: int) -> None:
    coarse, fine = (
        randmask(3, height, width, share=0.4, seed=seed),
        randmask(3, factor * height, factor * width, share=0.2, seed=seed + 1),
    )
    places = {(n, r, c) for n, r, c in coarse.nonzero().tolist()}
    others = {(n, r // factor, c // factor) for n, r, c in fine.nonzero().tolist()}
    values = fed(MaskOverlap(images=3), *((fine, coarse) if swap else (coarse, fine)))
    if places | others:
        a, b = len(places) / coarse.numel(), len(others) / coarse.numel()
        assert values == pytest.approx(
            {"iou/all": len(places & others) / len(places | others), "iou_chance/all": a * b / (a + b - a * b)}
        )
    else:
        assert values == {}


@pytest.mark.parametrize("shape", [(6, 7), (4, 12), (5, 4)])
def test_grids_that_do_not_nest_are_refused(shape: tuple[int, int]) -> None:
    with pytest.raises(InputError, match="Expected one grid of masks to divide the other"):
        MaskOverlap(1).update(randmask(1, *shape, share=0.4), randmask(1, 4, 6, share=0.4))


@given(sides, sides, st.sampled_from([0.0, 0.3, 1.0]), st.sampled_from([0.0, 0.2, 1.0]), seeds)
@settings(deadline=None, max_examples=50)
def test_precision_and_recall_agree_with_sets_of_places(
    height: int, width: int, detected_share: float, label_share: float, seed: int
) -> None:
    detected = randmask(3, height, width, share=detected_share, seed=seed)
    label = randmask(3, height, width, share=label_share, seed=seed + 1)
    expected = {}
    for prefix, side in (("", 1), ("patch_", 2)):
        found, true = ({(n, r // side, c // side) for n, r, c in mask.nonzero().tolist()} for mask in (detected, label))
        places = 3 * -(-height // side) * -(-width // side)
        expected |= {f"{prefix}precision/all": len(found & true) / len(found)} if found else {}
        expected |= {f"{prefix}recall/all": len(found & true) / len(true)} if true else {}
        expected |= {f"{prefix}precision_chance/all": len(true) / places, f"{prefix}recall_chance/all": len(found) / places}
    assert fed(DetectionScore(images=3), detected, label) == pytest.approx(expected)
