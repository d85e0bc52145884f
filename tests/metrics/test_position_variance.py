"""PositionVariance: agrees with the definition, does not care about batches, and finds what was planted."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from sdprobe.metrics.layer_tokens import LayerTokens
from sdprobe.metrics.position_variance import PositionVariance, position_share, share_of_sums
from sdprobe.utilities.errors import InputError
from tests.metrics.drawn import randn
from tests.planted import position_code

ROUNDING = 1e-6  # of a share of sums that are taken in float32, which rounds by 6e-8
T19 = stats.t.ppf(0.975, 19)


def reference(tokens: Tensor) -> float:
    """The definition with every mean and residual written out; tokens are (N, C, h, w)."""
    t = [[tuple(token) for token in image.flatten(1).mT.tolist()] for image in tokens]
    count, places, channels = len(t), len(t[0]), len(t[0][0])

    def mean(vectors: list[tuple[float, ...]]) -> list[float]:
        return [sum(v[c] for v in vectors) / len(vectors) for c in range(channels)]

    by_place = [mean([image[p] for image in t]) for p in range(places)]
    by_image = [mean(image) for image in t]
    whole = mean([token for image in t for token in image])
    between = within = residual = 0.0
    for p in range(places):
        between += sum((by_place[p][c] - whole[c]) ** 2 for c in range(channels))
        for n in range(count):
            for c in range(channels):
                within += (t[n][p][c] - by_place[p][c]) ** 2
                residual += (t[n][p][c] - by_image[n][c] - by_place[p][c] + whole[c]) ** 2
    ms_b = count / (places - 1) * between
    ms_w = within / (places * (count - 1))
    ms_e = residual / ((count - 1) * (places - 1))
    variance = (ms_b - ms_e) / count
    return variance / (variance + ms_w)


def metric_of(grid: Tensor, parts: int = 1, mean: Tensor | None = None, **options: Any) -> PositionVariance:
    metric = PositionVariance(*grid.shape[1:], images=len(grid), **options)
    for index in torch.arange(len(grid)).tensor_split(parts):
        metric.update(LayerTokens.of(grid[index], {}, mean))
    return metric


def measured(grid: Tensor, parts: int = 1, **options: Any) -> dict[str, float]:
    return metric_of(grid, parts, **options).compute()


@given(st.integers(2, 3), st.integers(1, 4), st.integers(2, 4), st.floats(0, 3), st.booleans(), st.integers(0, 10**6))
@settings(deadline=None, max_examples=15)
def test_it_is_the_definition(channels: int, height: int, width: int, strength: float, normalise: bool, seed: int) -> None:
    grid = randn(40, channels, height, width, seed=seed) + strength * randn(channels, height, width, seed=seed + 1)
    mean = randn(channels, seed=seed + 2)
    tokens = (grid - mean.view(-1, 1, 1)).double()
    if normalise:
        tokens = tokens / tokens.norm(dim=1, keepdim=True)
    values = measured(grid, mean=mean, normalise=normalise)
    assert values["position_variance/all"] == pytest.approx(reference(tokens), abs=ROUNDING)


def share_without(rest: Tensor, half: Tensor, sign: int) -> float:
    """V_pos of images of which a map of sums is known to ± ``half``: as large (``sign`` 1) or as small (−1) as that allows.

    V_pos rises with Σ_p ‖Σ_n t‖² and falls with ‖Σ_{n,p} t‖².
    """
    explained, common = rest.sum(0).square().sum(), rest.sum((0, 2, 3)).square().sum()
    # |‖a + d‖² − ‖a‖²| ≤ 2 ‖a‖ ‖d‖ + ‖d‖²
    more = 2 * explained.sqrt() * half.norm() + half.square().sum()
    apart = half.sum((1, 2)).norm()
    less = 2 * common.sqrt() * apart + apart**2
    squares = torch.stack([rest.square().sum(), rest.sum((2, 3)).square().sum()])
    places = rest.shape[2] * rest.shape[3]
    common = (common - sign * less).clamp(min=0)
    return share_of_sums(explained + sign * more, common, squares, len(rest), places, 0.0).item()


@pytest.mark.parametrize("images", [47, 100])
@pytest.mark.parametrize("strength", [0.0, 1.0])
def test_without_a_fold_it_is_the_definition_on_the_other_images(images: int, strength: float) -> None:
    grid = randn(images, 3, 3, 4) + strength * randn(3, 3, 4, seed=1)
    value, without = metric_of(grid, normalise=False).estimate()
    fold_of = torch.arange(images) * 20 // images
    assert value.item() == pytest.approx(reference(grid), abs=ROUNDING)
    for fold in range(20):
        rest, own = grid[fold_of != fold].double(), grid[fold_of == fold].double().sum(0)
        # a fold's map is kept in half precision: 11 significant bits, and steps of 2⁻²⁴ of its largest entry at least
        half = own.abs() * 2.0**-11 + own.abs().max() * 2.0**-25
        low, high = (share_without(rest, half, sign) + sign * ROUNDING for sign in (-1, 1))
        assert low <= reference(rest) <= high
        assert low <= without[fold].item() <= high
        assert high - low < 0.01, "bounds that mean something"


def test_the_interval_is_that_of_leaving_images_out() -> None:
    grid = randn(60, 4, 4, 4) + 0.5 * randn(4, 4, 4, seed=1)
    unit = torch.nn.functional.normalize(grid.double(), dim=1)
    fold_of = torch.arange(60) // 3

    def share(tokens: Tensor) -> float:
        squares = torch.stack([tokens.square().sum(), tokens.sum((2, 3)).square().sum()])
        return position_share(tokens.sum(0), squares, len(tokens)).item()

    without = torch.tensor([share(unit[fold_of != k]) for k in range(20)], dtype=torch.float64)
    error = math.sqrt(19 / 20 * (without - without.mean()).square().sum())  # Efron & Tibshirani (1993), formula 11.5
    value = share(unit)
    expected = {"": value, "/ci_low": value - T19 * error, "/ci_high": value + T19 * error}
    found = measured(grid)
    for end, number in expected.items():
        assert found[f"position_variance/all{end}"] == pytest.approx(number, rel=0.01, abs=ROUNDING)


def planted(images: int, channels: int, side: int, strength: float, seed: int) -> Tensor:
    """Independent tokens with σ² = E‖e‖² = 1 and a position code of α = strength."""
    generator = torch.Generator().manual_seed(seed)
    code = position_code(channels, side, side, strength, generator)
    return code + torch.randn(images, channels, side, side, generator=generator, dtype=torch.float64) / channels**0.5


@pytest.mark.parametrize("strength", [0.0, 0.1, 0.3, 1.0, 3.0])
def test_it_finds_the_planted_share(strength: float) -> None:
    truth = strength**2 / (strength**2 + 1)
    values = [measured(planted(60, 8, 8, strength, seed), normalise=False) for seed in range(20)]
    found = torch.tensor([value["position_variance/all"] for value in values], dtype=torch.float64)
    assert abs(found.mean() - truth) < 4 * found.std() / 20**0.5 + 1e-3
    assert (found - truth).abs().max() < 0.02
    held = sum(value["position_variance/all/ci_low"] <= truth <= value["position_variance/all/ci_high"] for value in values)
    assert held >= stats.binom.ppf(1e-3, 20, 0.95)


def test_what_differs_between_whole_images_is_not_position() -> None:
    clean = planted(200, 8, 8, 0.5, 0)
    offsets = 2 * randn(200, 8, 1, 1, seed=1) / 8**0.5  # variance 4 between images, beside 1 within
    value = measured(clean + offsets, normalise=False)["position_variance/all"]
    assert value == pytest.approx(0.25 / (0.25 + 1 + 4), abs=0.01)
    assert measured(offsets.expand(-1, -1, 8, 8), normalise=False)["position_variance/all"] == pytest.approx(0, abs=ROUNDING)


def test_float32_sums_of_many_images_agree_with_float64() -> None:
    grid = randn(2000, 16, 6, 6) + 0.1 * randn(16, 6, 6, seed=1) + 0.5  # about a fifth of a token's norm is common to all
    unit = torch.nn.functional.normalize(grid.double(), dim=1)
    squares = torch.stack([unit.square().sum(), unit.sum((2, 3)).square().sum()])
    expected = position_share(unit.sum(0), squares, images=2000).item()
    assert measured(grid)["position_variance/all"] == pytest.approx(expected, abs=ROUNDING)


def test_tokens_that_do_not_vary_have_no_share() -> None:
    assert measured(torch.ones(40, 3, 4, 4), normalise=False) == {}
    assert measured(torch.zeros(40, 3, 4, 4)) == {}
    assert measured(randn(1, 3, 1, 1).expand(400, -1, 4, 4)) == {}, "not even in the last bits"
    assert measured(randn(40, 3, 1, 1)) == {}, "a single position explains nothing"
    assert position_share(randn(3, 4, 4), randn(2), images=1).isnan()


def test_two_maps_are_alive_and_not_one_per_fold() -> None:
    metric = PositionVariance(64, 16, 16, images=40)
    numbers = sum(getattr(metric, name).numel() for name in metric._reductions)
    assert numbers < 2 * 64 * 16 * 16 + 100


def test_too_few_images_are_refused() -> None:
    with pytest.raises(InputError, match=r"for an interval over 20 groups of images to be at least 40, but got 39\. Use 40"):
        measured(randn(39, 2, 4, 4))


def test_a_stream_of_another_length_is_refused() -> None:
    metric = PositionVariance(2, 4, 4, images=60)
    metric.update(LayerTokens.of(randn(50, 2, 4, 4), {}))
    with pytest.raises(InputError, match="but got 60, and 50 arrived"):
        metric.compute()
    with pytest.raises(InputError, match="but got 60, and at least 61 arrived"):
        metric.update(LayerTokens.of(randn(11, 2, 4, 4), {}))
