"""GroupSimilarity: agrees with a loop over pairs, leaves out what has no cosine, and finds planted corners."""

import doctest
import itertools
import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchmetrics.utilities.data import dim_zero_sum

import sdprobe.metrics.group_similarity
from sdprobe.metrics.group_similarity import GroupSimilarity, corner_mask
from sdprobe.metrics.layer_tokens import LayerTokens
from sdprobe.tokens.groups import border_groups
from sdprobe.utilities.errors import InputError

GROUPS = ("corner", "border", "interior")
OVERLAPPING = ("corner", "border", "odd")
ROUNDING = 1e-6  # of a cosine whose unit tokens are summed in float32, which rounds by 6e-8


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def masks_of(batch: int, height: int, width: int, seed: int = 0) -> dict[str, Tensor]:
    """The groups of place, and a random one (different in every image) that overlaps them."""
    masks = {name: mask.expand(batch, -1, -1) for name, mask in border_groups(height, width).items()}
    return masks | {"odd": torch.rand(batch, height, width, generator=torch.Generator().manual_seed(seed)) < 0.2}


def pair_cosines(image: Tensor, first: Tensor, second: Tensor) -> list[float]:
    """Cosines of all ordered pairs of different tokens that have one, pair by pair."""
    places = [list(map(tuple, mask.nonzero().tolist())) for mask in (first, second)]
    values = []
    for p, q in itertools.product(*places):
        x, y = image[:, p[0], p[1]].tolist(), image[:, q[0], q[1]].tolist()
        norms = math.hypot(*x), math.hypot(*y)
        if p != q and all(norms):
            values.append(sum(a * b for a, b in zip(x, y, strict=True)) / norms[0] / norms[1])
    return values


def reference(grid: Tensor, masks: dict[str, Tensor], first: str, second: str) -> tuple[float, int]:
    means = []
    for image, a, b in zip(grid, masks[first], masks[second], strict=True):
        values = pair_cosines(image, a, b)
        means += [sum(values) / len(values)] if values else []
    return (sum(means) / len(means) if means else math.nan), len(means)


def layer(grid: Tensor, masks: dict[str, Tensor], index: Tensor | slice, mean: Tensor | None = None) -> LayerTokens:
    return LayerTokens.of(grid[index], {group: mask[index] for group, mask in masks.items()}, mean)


def measured(
    grid: Tensor,
    masks: dict[str, Tensor],
    groups: tuple[str, ...] = GROUPS,
    parts: int = 1,
    mean: Tensor | None = None,
    counts: dict[str, int] | None = None,
) -> dict:
    metric = GroupSimilarity(groups, images=len(grid), centred=mean is not None, counts=counts)
    for index in torch.arange(len(grid)).tensor_split(parts):
        metric.update(layer(grid, masks, index, mean))
    return metric.compute()


@given(st.integers(1, 4), st.integers(1, 6), st.integers(4, 7), st.integers(4, 7), st.integers(0, 10**6))
@settings(deadline=None, max_examples=25)
def test_it_agrees_with_a_loop_over_pairs(batch: int, channels: int, height: int, width: int, seed: int) -> None:
    grid, masks, mean = randn(batch, channels, height, width, seed=seed), masks_of(batch, height, width, seed), randn(channels)
    grid[randn(batch, 1, height, width, seed=seed + 1).expand_as(grid) > 1.5] = 0  # some tokens of norm 0
    values = measured(grid, masks, OVERLAPPING, mean=mean)
    for kind, tokens in (("similarity", grid), ("similarity_centred", grid - mean.view(-1, 1, 1))):
        for i, first in enumerate(OVERLAPPING):
            for second in OVERLAPPING[i:]:
                key = f"{kind}/{first}" + ("" if first == second else f"_{second}")
                expected, count = reference(tokens, masks, first, second)
                assert (key in values) == bool(count)
                if count:
                    assert values[key] == pytest.approx(expected, abs=ROUNDING)
                    assert values[f"{key}/n"] == count


@pytest.mark.parametrize("parts", [2, 7, 45])
def test_any_batch_size_gives_what_all_at_once_give(parts: int) -> None:
    grid, masks = randn(45, 3, 5, 6), masks_of(45, 5, 6)
    options = {"mean": randn(3), "counts": {"border": 30}}
    whole = measured(grid, masks, OVERLAPPING, **options)
    assert any("ci_low" in key for key in whole)
    assert measured(grid, masks, OVERLAPPING, parts, **options) == pytest.approx(whole, abs=ROUNDING)


def test_two_devices_merge_by_summing_states() -> None:
    grid, masks = randn(10, 3, 5, 5), masks_of(10, 5, 5)
    devices = [GroupSimilarity(GROUPS, images=5) for _ in range(3)]
    for start, metric in zip((0, 5), devices[1:], strict=True):
        metric.update(layer(grid, masks, slice(start, start + 5)))
    assert set(devices[0]._reductions.values()) == {dim_zero_sum}
    for name in devices[0]._reductions:
        setattr(devices[0], name, sum(getattr(metric, name) for metric in devices[1:]))
    devices[0]._update_count = 1
    assert devices[0].compute() == pytest.approx(measured(grid, masks), abs=ROUNDING)


def test_tokens_without_norm_are_left_out_of_their_group() -> None:
    grid, masks = randn(2, 3, 4, 4), masks_of(2, 4, 4)
    grid[0, :, 0, 0] = 0
    without = {name: mask.clone() for name, mask in masks.items()}
    without["corner"][0, 0, 0] = False
    assert measured(grid, masks) == measured(grid, without)
    assert measured(torch.zeros(2, 3, 4, 4), masks) == {}


def test_a_group_without_pairs_has_no_key() -> None:
    masks = masks_of(2, 4, 4)
    masks["interior"] = torch.zeros(2, 4, 4, dtype=torch.bool)
    masks["border"] = torch.zeros(2, 4, 4, dtype=torch.bool).index_fill_(1, torch.tensor(1), False)
    masks["border"][:, 0, 1] = True  # a single token has no pair with itself
    assert {key for key in measured(randn(2, 3, 4, 4), masks) if not key.endswith("/n")} == {
        "similarity/corner",
        "similarity/corner_border",
    }


@given(st.floats(1e-6, 1e6), st.integers(0, 100))
@settings(deadline=None, max_examples=20)
def test_scale_and_rotation_change_nothing(scale: float, seed: int) -> None:
    grid, masks = randn(3, 4, 5, 5, seed=seed), masks_of(3, 5, 5)
    rotation = torch.linalg.qr(randn(4, 4, seed=seed).double()).Q
    turned = scale * torch.einsum("dc,bchw->bdhw", rotation, grid.double())
    assert measured(turned, masks) == pytest.approx(measured(grid, masks), abs=ROUNDING)


def test_a_common_offset_raises_raw_similarity_and_not_the_centred_one() -> None:
    grid, masks, offset = randn(50, 16, 6, 6), masks_of(50, 6, 6), 4 * torch.ones(16)
    values = measured(grid + offset.view(-1, 1, 1), masks, mean=offset)
    for group in GROUPS:
        assert values[f"similarity/{group}"] > 0.9
        assert values[f"similarity_centred/{group}/ci_low"] - 0.01 < 0 < values[f"similarity_centred/{group}/ci_high"] + 0.01


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_every_float_type_is_welcome(dtype: torch.dtype) -> None:
    grid, masks = (300 * randn(2, 64, 4, 4)).to(dtype), masks_of(2, 4, 4)
    values = measured(grid, masks)
    for group in GROUPS:
        assert values[f"similarity/{group}"] == pytest.approx(reference(grid.double(), masks, group, group)[0], abs=ROUNDING)


def test_long_tokens_that_are_all_alike_are_as_similar_as_float64_says() -> None:
    grid, masks = randn(1, 640, 32, 32) + 3, masks_of(1, 32, 32)
    unit = torch.nn.functional.normalize(grid[0].double(), dim=0).flatten(1)
    for group in GROUPS:
        total, count = unit[:, masks[group].flatten()].sum(1), int(masks[group].sum())
        expected = (total @ total - count) / (count * (count - 1))
        assert measured(grid, masks)[f"similarity/{group}"] == pytest.approx(expected.item(), abs=ROUNDING)


def published(grid: Tensor, mask: Tensor, counted: int) -> float:
    """All cosines with the self pairs, less one for each token counted, over the pairs counted: image by image."""
    values = []
    for image, chosen in zip(grid, mask, strict=True):
        everything = sum(pair_cosines(image, chosen, chosen)) + int(chosen.sum())
        values.append((everything - counted) / (counted * (counted - 1)))
    return sum(values) / len(values)


def test_the_published_convention_divides_by_the_counts_of_the_uncropped_grid() -> None:
    grid, masks = randn(3, 5, 6, 6) + 0.5, masks_of(3, 6, 6)
    counts = {group: int(mask.sum()) for group, mask in border_groups(8, 8).items()}
    values = measured(grid, masks, counts=counts)
    for group in GROUPS:
        assert values[f"similarity_published/{group}"] == pytest.approx(
            published(grid, masks[group], counts[group]), abs=ROUNDING
        )
    assert values["similarity_published/corner"] == pytest.approx(values["similarity/corner"], abs=ROUNDING)
    assert values["similarity_published/interior"] < 0.2 * values["similarity/interior"]


def test_counts_of_the_grid_itself_change_nothing() -> None:
    grid, masks = randn(3, 5, 6, 6), masks_of(3, 6, 6)
    values = measured(grid, masks, counts={group: int(mask.sum()) for group, mask in border_groups(6, 6).items()})
    for group in GROUPS:
        assert values[f"similarity_published/{group}"] == pytest.approx(values[f"similarity/{group}"])


@pytest.mark.parametrize(("height", "width"), [(3, 8), (8, 3), (1, 1)])
def test_a_grid_without_an_interior_worth_the_name_is_refused(height: int, width: int) -> None:
    with pytest.raises(InputError, match=rf"at least 4×4 .* but got {height}×{width}\. Use larger images"):
        measured(randn(1, 3, height, width), {"corner": torch.ones(1, height, width, dtype=torch.bool)}, ("corner",))


def test_more_images_than_announced_are_refused() -> None:
    with pytest.raises(InputError, match="but got 2 and at least 3 came"):
        GroupSimilarity(("corner",), images=2).update(LayerTokens.of(randn(3, 2, 4, 4), masks_of(3, 4, 4)))


def test_a_corner_mask_is_the_corner_group_of_the_cropped_grid() -> None:
    assert torch.equal(corner_mask(7, 9), border_groups(7, 9)["corner"])
    assert torch.equal(corner_mask(12, 10, margin=2)[2:-2, 2:-2], border_groups(8, 6)["corner"])
    assert corner_mask(12, 10, margin=2).sum() == 4
    with pytest.raises(InputError, match="but got 2×2"):
        corner_mask(6, 6, margin=2)


def test_values_are_what_json_can_hold_and_intervals_surround_the_mean() -> None:
    grid, masks = randn(40, 3, 5, 5), masks_of(40, 5, 5)
    values = measured(grid, masks, mean=randn(3))
    assert json.loads(json.dumps(values, allow_nan=False)) == values
    for key in (key for key in values if key.count("/") == 1):
        assert values[f"{key}/ci_low"] < values[key] < values[f"{key}/ci_high"]


def test_without_a_fold_it_is_the_mean_over_the_other_images() -> None:
    grid, masks = randn(60, 3, 5, 5), masks_of(60, 5, 5)
    masks["odd"][6:9] = False  # the third fold has no such token
    metric = GroupSimilarity(("corner", "odd"), images=60, centred=True)
    metric.update(layer(grid, masks, slice(None), randn(3)))
    found, fold_of = metric.estimates(), torch.arange(60) // 3
    assert set(found) == {f"similarity{kind}/{group}" for kind in ("", "_centred") for group in ("corner", "corner_odd", "odd")}
    for fold in (0, 2, 19):
        kept = (fold_of != fold).nonzero()[:, 0]
        alone = GroupSimilarity(("corner", "odd"), images=57, centred=True)
        alone.update(layer(grid, masks, kept, randn(3)))
        values = alone.compute()
        assert {key: without[fold].item() for key, (_, without) in found.items()} == pytest.approx(
            {key: values[key] for key in found}, abs=ROUNDING
        )
    value, without = found["similarity/odd"]
    assert without[2].item() == pytest.approx(value.item()), "a fold without pairs is left out without a trace"


def test_examples_in_the_documentation_hold() -> None:
    outcome = doctest.testmod(sdprobe.metrics.group_similarity)
    assert outcome.attempted and not outcome.failed
