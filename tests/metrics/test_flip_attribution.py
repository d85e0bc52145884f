"""Flip attribution: 1 where predictions follow the network, −1 where they follow the content, nothing where there is none."""

import pytest
import torch
from scipy import stats
from torch import Tensor

from sdprobe.metrics.flip_attribution import FlipAttribution, mirrored
from sdprobe.tokens.geometry import positions

SIDE, PHOTOS = 8, 12


def noisy(where: Tensor, share: float, seed: int) -> Tensor:
    """Right for a share of the tokens, a random guess for the others."""
    generator = torch.Generator().manual_seed(seed)
    guess = torch.randint(SIDE, where.shape, generator=generator)
    return torch.where(torch.rand(len(where), 1, generator=generator) < share, where, guess)


def measured(follows: float, share: float = 0.8) -> dict[str, float]:
    """Rotated predictions follow the network in a share `follows` of photographs, the content in the others."""
    metric = FlipAttribution(SIDE, SIDE, PHOTOS)
    where = positions(SIDE, SIDE)
    for photo in range(PHOTOS):
        index = torch.full((len(where),), photo)
        metric.update(noisy(where, share, photo), where, index, rotated=False)
        told = where if photo < follows * PHOTOS else mirrored(where, SIDE, SIDE)
        metric.update(noisy(told, share, 100 + photo), where, index, rotated=True)
    return metric.compute()


@pytest.mark.parametrize(("follows", "expected"), [(1.0, 1.0), (0.0, -1.0), (0.5, 0.0), (0.75, 0.5)])
def test_attribution_is_the_share_that_follows_the_network(follows: float, expected: float) -> None:
    values = measured(follows)
    assert values["flip_attribution/all"] == pytest.approx(expected, abs=0.06)
    assert values["flip_attribution/all/ci_low"] <= values["flip_attribution/all"] <= values["flip_attribution/all/ci_high"]
    assert values["flip_surviving/all"] == pytest.approx(1, abs=0.06)


def test_what_rotation_destroys_does_not_survive() -> None:
    metric = FlipAttribution(SIDE, SIDE, PHOTOS)
    where = positions(SIDE, SIDE)
    for photo in range(PHOTOS):
        index = torch.full((len(where),), photo)
        metric.update(where, where, index, rotated=False)
        metric.update(noisy(where, 0.0, photo), where, index, rotated=True)
    values = metric.compute()
    # a guess is right in one of 8 bins, and as often in the mirrored one
    assert values["flip_surviving/all"] == pytest.approx(2 / 8, abs=0.04)
    assert values["flip_attribution/all"] == pytest.approx(0, abs=0.04)


def three_tokens(photos: int) -> FlipAttribution:
    """The same three tokens in every photograph."""
    metric, where = FlipAttribution(4, 4, photos), torch.tensor([[0, 0], [1, 2], [3, 3]])
    for photo in (torch.full((3,), k) for k in range(photos)):
        metric.update(torch.tensor([[0, 0], [1, 2], [0, 3]]), where, photo, rotated=False)  # a⁰ = 5/6, m⁰ = 1/6
        metric.update(torch.tensor([[0, 3], [2, 1], [3, 3]]), where, photo, rotated=True)  # a_net = 3/6, a_cnt = 3/6
    return metric


def test_the_formula_on_three_tokens() -> None:
    metric = three_tokens(6)
    assert metric.right[0].mul(2).tolist() == [[5, 1], [3, 3]]
    assert metric.compute() == pytest.approx({f"{key}/all{end}": value for key, value in
        (("flip_attribution", 0.0), ("flip_surviving", 1.0)) for end in ("", "/ci_low", "/ci_high")})  # fmt: skip


def test_of_five_photographs_nothing_is_known_to_be_there() -> None:
    assert three_tokens(5).compute() == {}


@pytest.mark.parametrize("seed", range(4))
def test_the_interval_is_the_ratios_by_its_residuals(seed: int) -> None:
    metric, where = FlipAttribution(SIDE, SIDE, PHOTOS), positions(SIDE, SIDE)
    for photo in range(PHOTOS):
        index = torch.full((len(where),), photo)
        metric.update(noisy(where, 0.6, 100 * seed + photo), where, index, rotated=False)
        metric.update(noisy(where, 0.4, 100 * seed + photo + 50), where, index, rotated=True)
    right, values = metric.right.numpy() / SIDE**2, metric.compute()
    above, below = right[:, 1, 0] - right[:, 1, 1], right[:, 0, 0] - right[:, 0, 1]
    value = above.sum() / below.sum()
    half = stats.t.ppf(0.975, PHOTOS - 1) * stats.sem((above - value * below) / below.mean())  # the delta method
    found = [values[f"flip_attribution/all{end}"] for end in ("", "/ci_low", "/ci_high")]
    assert found == pytest.approx([value, value - half, value + half])


def test_a_guess_has_nothing_to_attribute() -> None:
    assert measured(1.0, share=0.0) == {}
    assert FlipAttribution(4, 4, 3).compute() == {}
