"""The control of equal energy: exact per image, along random directions, independent of the batch."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sdprobe.mitigations import PositionMean, Standardize
from sdprobe.mitigations.energy import random_energy
from sdprobe.utilities.errors import InputError


def grids(images: int = 5, channels: int = 12, side: int = 4, seed: int = 0) -> Tensor:
    return torch.randn(images, channels, side, side, generator=torch.Generator().manual_seed(seed)) + 3.0


def energy(change: Tensor) -> Tensor:
    return change.double().square().sum((1, 2, 3))


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 20), st.integers(1, 5), st.sampled_from([1e-3, 0.1, 1.0, 3.0]), st.integers(0, 99))
def test_the_energy_of_every_image_is_that_of_the_edit(channels: int, side: int, strength: float, seed: int) -> None:
    # strengths of 1 and 3 remove more than varies over tokens
    x, other = grids(3, channels, side, seed), grids(3, channels, side, seed + 1)
    edited = x - strength * other
    result = random_energy(x, edited, seed=seed, layer="mid", images=[0, 1, 1])
    assert torch.allclose(energy(x - result), energy(x - edited), rtol=1e-4, atol=1e-6)


def test_what_is_removed_is_a_part_of_the_tokens_and_nothing_is_reversed() -> None:
    x = grids()
    edited = PositionMean(gamma=1.0).fit(grids(16, seed=1)).transform(x)
    change = (x - edited).flatten(2)
    result = random_energy(x, edited, seed=0, layer="mid", images=range(5)).flatten(2)
    centred, left = (value - value.mean(2, keepdim=True) for value in (x.flatten(2), result))
    assert (left.square().sum((1, 2)) <= centred.square().sum((1, 2)) + 1e-4).all()
    # a projection: energy before is that after plus that removed, except for the direction that is removed in part
    removed = centred - left
    assert ((removed * left).sum((1, 2)) >= -1e-4).all()
    assert torch.allclose(removed.square().sum((1, 2)), (change - change.mean(2, keepdim=True)).square().sum((1, 2)), rtol=1e-4)


def test_a_mitigation_that_subtracts_one_vector_is_compared_with_one_vector() -> None:
    x = grids()
    edited = Standardize().fit(grids(16, seed=1)).transform(x)  # x − μ
    change = (x - random_energy(x, edited, seed=0, layer="mid", images=[0] * 5)).flatten(2)
    assert torch.allclose(change, change.mean(2, keepdim=True).expand_as(change), atol=1e-4)
    assert torch.allclose(change[0], change[1], atol=1e-4)  # the same for all images, as μ is
    assert torch.cosine_similarity(change[0, :, 0], (x - edited)[0, :, 0, 0], dim=0).abs() < 0.9  # another direction


def test_no_edit_is_bit_equal_and_the_batch_does_not_matter() -> None:
    x, names = grids(), ["a", "b", "c", "d", "e"]
    assert torch.equal(random_energy(x, x, seed=0, layer="mid", images=names), x)
    edited = 0.8 * x
    together = random_energy(x, edited, seed=0, layer="mid", images=names)
    alone = [random_energy(x[i : i + 1], edited[i : i + 1], seed=0, layer="mid", images=[names[i]]) for i in range(5)]
    assert torch.allclose(together, torch.cat(alone), atol=1e-5)
    assert torch.equal(together, random_energy(x, edited, seed=0, layer="mid__t261__leace", images=names))
    for other in ({"seed": 1}, {"layer": "up_1"}, {"images": list("vwxyz")}):
        arguments = {"seed": 0, "layer": "mid", "images": names} | other
        assert not torch.allclose(together, random_energy(x, edited, **arguments), atol=1e-2)  # type: ignore[arg-type]
    assert random_energy(x.half(), edited.half(), seed=0, layer="mid", images=names).dtype == torch.float16


def test_directions_are_uniform() -> None:
    # isotropic tokens: whatever reads W of the change loses the energy times ‖W‖²/C, on average over draws
    x = grids(400, channels=6, side=3) - 3.0
    edited, readout = 0.7 * x, torch.tensor([[1.0, 2.0, 0.0, 0.0, 0.0, -1.0]])
    change = (x - random_energy(x, edited, seed=0, layer="mid", images=range(400))).flatten(2)
    share = (readout @ change).double().square().sum((1, 2)) / energy(x - edited)
    expected = readout.square().sum().item() / 6
    assert abs(share.mean().item() - expected) < 4 * share.std().item() / 400**0.5


def test_what_does_not_fit_together_is_refused() -> None:
    x = grids()
    with pytest.raises(InputError, match="one shape"):
        random_energy(x, x[:, :4], seed=0, layer="mid", images=range(5))
    with pytest.raises(InputError, match="4 entries"):
        random_energy(x, x, seed=0, layer="mid", images=range(4))
