"""Kept tokens: errors are what they are said to be, projections are exact where they can be, and pages keep their size."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import normalize

from sdprobe.tokens.batch import GridBatch
from sdprobe.tokens.groups import token_groups
from sdprobe.tokens.kept import MOST_PAIRED, KeptTokens, Plan, quantised
from sdprobe.utilities.errors import InputError


def restored(kept: dict[str, Tensor]) -> Tensor:
    """(n, h·w, K) tokens as the page reads them."""
    tokens = kept["mean"][:, None, None] + kept["scale"][..., None] * kept["codes"]
    return tokens.flatten(1, 2)


def largest_errors(grid: Tensor, kept: dict[str, Tensor]) -> Tensor:
    """Of cosine, dot product and distance, over all pairs, raw and centred, in double precision."""
    found = []
    for centred in (False, True):
        both = []
        for tokens in (grid.flatten(2).mT.double(), restored(kept).double()):
            tokens = (tokens - tokens.mean(1, keepdim=True) if centred else tokens).flatten(0, 1)
            units = normalize(tokens, dim=1)
            both.append(torch.stack([units @ units.mT, tokens @ tokens.mT, torch.cdist(tokens, tokens)]))
        found.append((both[0] - both[1]).abs().amax((1, 2)))
    return torch.stack(found).amax(0)


@given(
    images=st.integers(1, 3), channels=st.integers(1, 40), side=st.integers(2, 6), bits=st.sampled_from([8, 16]),
    components=st.sampled_from([4, 512]), seed=st.integers(0, 99), outlier=st.sampled_from([1.0, 100.0]),
)  # fmt: skip
def test_no_similarity_is_further_off_than_stated(images, channels, side, bits, components, seed, outlier) -> None:
    grid = torch.randn(images, channels, side, side, generator=torch.Generator().manual_seed(seed)) + 1
    grid[:, 0] *= outlier
    kept = quantised(grid, components, bits)
    slack = 1e-5 * torch.tensor([1.0, grid.square().sum(1).max(), grid.norm(dim=1).max()])
    assert (largest_errors(grid, kept) <= kept["error"] + slack).all()
    assert kept["codes"].shape == (images, side, side, min(components, channels, images * side * side))


def test_the_stated_error_of_a_cosine_is_attained_and_bounded_where_pairs_are_many() -> None:
    grid = torch.randn(2, 16, 32, 32, generator=torch.Generator().manual_seed(0))
    many = torch.randn(2, 16, 64, 64, generator=torch.Generator().manual_seed(1))
    assert 2 * 32 * 32 <= MOST_PAIRED < 2 * 64 * 64
    kept, bounded = quantised(grid, 64, 8), quantised(many, 64, 8)
    assert kept["error"][0] == pytest.approx(largest_errors(grid, kept)[0].item(), rel=1e-3)
    corner = {name: bounded[name][:, :24, :24] for name in ("codes", "scale")} | {"mean": bounded["mean"]}
    exact = normalize(many.flatten(2).mT, dim=2).unflatten(1, (64, 64))[:, :24, :24].flatten(0, 2)
    shown = normalize(restored(corner), dim=2).flatten(0, 1)
    attained = (exact @ exact.mT - shown @ shown.mT).abs().max()
    assert attained < bounded["error"][0] < 8 * attained


def test_a_projection_keeps_inner_products_where_the_rank_suffices() -> None:
    factors = torch.randn(2, 12, 64, generator=torch.Generator().manual_seed(0))
    grid = torch.einsum("nkp,kc->ncp", factors, torch.randn(12, 200, generator=torch.Generator().manual_seed(1))).unflatten(
        2, (8, 8)
    )
    kept = quantised(grid, 14, 16)  # 12 directions, and at most 2 for the mean tokens
    assert kept["codes"].shape[-1] == 14 and kept["error"][0] < 3e-4
    assert quantised(grid, 6, 16)["error"][0] > 0.05


def test_a_large_channel_costs_the_others_no_precision() -> None:
    grid = torch.randn(2, 128, 8, 8, generator=torch.Generator().manual_seed(0))
    loud = grid.clone()
    loud[:, 5] *= 20
    assert quantised(loud, 512, 8)["error"][0] < 0.02


def test_kept_tokens_wait_for_enough_images_and_take_the_first() -> None:
    grid = torch.randn(5, 6, 4, 4, generator=torch.Generator().manual_seed(0))
    whole, parts = (KeptTokens(Plan.of({"mid": (6, 4, 4)}, images=3, megabytes=1)) for _ in range(2))
    batch = GridBatch({"mid": grid}, {"mid": token_groups(grid)}, torch.arange(5), torch.arange(5))
    whole.take(batch)
    for index in range(5):
        parts.take(batch.select([index]))
    assert whole.arrays["images"].tolist() == parts.arrays["images"].tolist() == [0, 1, 2]
    assert all(torch.equal(whole.arrays[name], parts.arrays[name]) for name in whole.arrays)
    torch.testing.assert_close(whole.arrays["trained/mid/norm"], grid[:3].norm(dim=1))


SHAPES = {
    f"{layer}{level}{label}": shape
    for layer, shape in {"mid": (128, 8, 8), "up_1": (128, 32, 32), "up_3": (32, 64, 64)}.items()
    for level in ("__t50", "__t261")
    for label in ("", "__leace")
}


def test_a_smaller_page_is_less_exact_then_leaves_out_the_least_important() -> None:
    plans = {megabytes: Plan.of(SHAPES, 4, megabytes, ("trained", "random")) for megabytes in (1, 3, 8, 18, 100)}
    assert set(plans[100].stored.values()) == {(512, 16)} and set(plans[100].stored) == set(SHAPES)
    assert {(512, 16)} < set(plans[18].stored.values()) and not plans[18].left_out + plans[100].left_out
    assert 0 < len(plans[8].grids) < len(plans[18].grids) and "timestep 261" in plans[8].left_out[-1]
    assert plans[3].grids[0] == ("trained", "mid__t50") and "random weights, timestep 50" in plans[3].left_out
    assert any("images" in text for text in plans[1].left_out)
    assert len({len(plan.grids) for plan in plans.values()}) >= 3


def test_a_page_that_holds_nothing_is_refused() -> None:
    with pytest.raises(
        InputError, match=r"Expected report.megabytes to be at least 1\.\d for one image at 2 layers, but got 1"
    ):
        Plan.of({"a": (320, 64, 64), "b": (640, 64, 64)}, 4, 1)
