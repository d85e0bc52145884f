"""RandomRank and PcaDrop: what they take, how much of it, and how little that has to do with position."""

import pytest
import torch
from torch import Tensor

from sdprobe.metrics.intervals import share_interval
from sdprobe.mitigations import PcaDrop, PositionMean, RandomRank
from sdprobe.tokens.geometry import flatten
from tests.mitigations.planted import axis_accuracies, generator, grids
from tests.planted import position_code


def taken(raw: Tensor, left: Tensor) -> Tensor:
    """What went, a row per token, float64."""
    return flatten(raw - left).flatten(0, 1).double()


@pytest.mark.parametrize("make", [lambda: RandomRank(rank=5), lambda: PcaDrop(rank=5)])
def test_exactly_so_many_directions_around_the_mean_go(make: type) -> None:
    raw = grids(40, 24, 6, 6)
    mitigation = make().fit([raw])
    left = mitigation.transform(raw)
    values = torch.linalg.svdvals(taken(raw, left))
    assert (values > 1e-2).sum() == 5 and values[5:].max() < 1e-3
    torch.testing.assert_close(left.mean((0, 2, 3)), raw.mean((0, 2, 3)))
    torch.testing.assert_close(mitigation.transform(left), left, atol=1e-4, rtol=0)
    rest = flatten(left - mitigation.fitted["mean"][:, None, None]).flatten(0, 1).double()
    assert (taken(raw, left) * rest).sum(1).abs().max() < 1e-3, "what goes is orthogonal to what stays"


def test_a_random_rank_removal_changes_accuracy_by_less_than_its_interval() -> None:
    white = torch.randn(240, 256, 6, 6, generator=generator(0))
    train, test = (white + position_code(256, 6, 6, 2.8, generator(1)).float()).split(200)
    mitigation = RandomRank().fit([train])
    before, after = axis_accuracies(train, test), axis_accuracies(*(mitigation.transform(part) for part in (train, test)))
    low, high = share_interval(before.numpy())
    assert 0.5 < before.mean() < 0.98
    assert abs(before.mean() - after.mean()) < (high - low)
    position = PositionMean().fit([train])
    gone = axis_accuracies(*(position.transform(part) for part in (train, test)))
    assert before.mean() - gone.mean() > 5 * (high - low), "position_mean, of the same rank, does change it"


def test_the_default_rank_is_that_of_the_additive_basis_as_far_as_half_the_channels_go() -> None:
    raw = grids(20, 24, 6, 5)
    assert RandomRank().fit([raw]).describe() == {"fit_images": 20, "rank": 9}
    assert RandomRank().fit([raw]).describe()["rank"] == PositionMean().fit([raw]).describe()["rank"]
    assert RandomRank().fit([raw[:, :12]]).describe()["rank"] == 6


def test_seeds_draw_subspaces() -> None:
    raw = grids(4, 24, 4, 4)
    first, again, other = (RandomRank(rank=3, seed=seed).fit([raw]).transform(raw) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert (first - other).abs().max() > 0.1


def test_pca_drop_finds_a_planted_direction() -> None:
    raw = grids(40, 24, 6, 6)
    direction = torch.nn.functional.normalize(torch.randn(24, generator=generator(4)), dim=0)
    loud = raw + 20 * torch.randn(40, 1, 6, 6, generator=generator(5)) * direction.view(-1, 1, 1)
    mitigation = PcaDrop().fit([loud])
    assert (mitigation.fitted["right"] @ direction).abs().item() > 0.99
    assert torch.einsum("bchw,c->bhw", mitigation.transform(loud), direction).var() < 0.01 * 20**2
