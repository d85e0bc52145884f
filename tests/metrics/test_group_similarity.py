"""GroupSimilarity: agrees with a loop over pairs, leaves out what has no cosine, and finds planted corners."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sdprobe.metrics.group_similarity import GroupSimilarity, corner_mask
from sdprobe.metrics.layer_tokens import LayerTokens
from sdprobe.tokens.groups import border_groups
from sdprobe.utilities.errors import InputError
from tests.metrics.drawn import randn

GROUPS = ("corner", "border", "interior")
OVERLAPPING = ("corner", "border", "odd")
ROUNDING = 1e-6  # of a cosine whose unit tokens are summed in float32, which rounds by 6e-8


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


@pytest.mark.parametrize(("height", "width"), [(3, 8), (8, 3), (1, 1)])
def test_a_grid_without_an_interior_worth_the_name_is_refused(height: int, width: int) -> None:
    with pytest.raises(InputError, match=rf"at least 4×4 .* but got {height}×{width}\. Use larger images"):
        measured(randn(1, 3, height, width), {"corner": torch.ones(1, height, width, dtype=torch.bool)}, ("corner",))


def test_a_corner_mask_is_the_corner_group_of_the_cropped_grid() -> None:
    assert torch.equal(corner_mask(7, 9), border_groups(7, 9)["corner"])
    assert torch.equal(corner_mask(12, 10, margin=2)[2:-2, 2:-2], border_groups(8, 6)["corner"])
    assert corner_mask(12, 10, margin=2).sum() == 4
    with pytest.raises(InputError, match="but got 2×2"):
        corner_mask(6, 6, margin=2)
