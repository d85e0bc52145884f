"""ChannelEnergy: agrees with loops, and finds a planted channel."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sdprobe.metrics.channel_energy import ChannelEnergy, top_count
from sdprobe.metrics.layer_tokens import LayerTokens
from tests.metrics.drawn import randn

ROUNDING = 1e-6  # of a share of energies that are summed in float32, which rounds by 6e-8


def metric_of(grid: Tensor, mean: Tensor | None = None, parts: int = 1) -> ChannelEnergy:
    metric = ChannelEnergy(grid.shape[1], images=len(grid))
    for index in torch.arange(len(grid)).tensor_split(parts):
        metric.update(LayerTokens.of(grid[index], {}, mean))
    return metric


def reference(grid: Tensor, mean: Tensor) -> list[float]:
    """Energy share of every channel, number by number."""
    energy = [sum(x**2 for x in (grid[:, c] - mean[c]).flatten().tolist()) for c in range(grid.shape[1])]
    return [each / sum(energy) for each in energy]


@given(st.integers(1, 3), st.sampled_from([1, 2, 5, 130, 201]), st.integers(0, 10**6))
@settings(deadline=None, max_examples=20)
def test_it_agrees_with_a_loop_over_channels(batch: int, channels: int, seed: int) -> None:
    grid, mean = randn(batch, channels, 2, 3, seed=seed), randn(channels, seed=seed + 1)
    k = -(-channels // 100)
    expected = sum(sorted(reference(grid, mean))[-k:])
    values = metric_of(grid, mean).compute()
    assert values["channel_energy/all"] == pytest.approx(expected, rel=ROUNDING)
    risk = 0.0 if k == channels else max(0.0, (expected - k / channels) / (1 - k / channels))
    assert values["r_chn/all"] == pytest.approx(risk, abs=ROUNDING)


def test_without_a_fold_the_channels_are_those_chosen_on_all_images() -> None:
    grid = randn(60, 150, 2, 2)
    metric = metric_of(grid)
    chosen = metric.top().tolist()
    assert len(chosen) == 2
    fold_of = torch.arange(60) * 20 // 60
    shares = [reference(grid[fold_of != fold], torch.zeros(150)) for fold in range(20)]
    expected = [sum(share[c] for c in chosen) for share in shares]
    value, without = metric.estimates()["channel_energy/all"]
    assert without.tolist() == pytest.approx(expected, rel=ROUNDING)
    assert any(sum(sorted(share)[-2:]) > total + ROUNDING for share, total in zip(shares, expected, strict=True))
    values = metric.compute()
    assert values["channel_energy/all"] == value.item()
    assert values["channel_energy/all/ci_low"] < values["channel_energy/all"] < values["channel_energy/all/ci_high"]
    risk, without_risk = metric.estimates()["r_chn/all"]
    for found, total in zip([risk, *without_risk], [value, *without], strict=True):
        assert found.item() == pytest.approx(max(0.0, (total.item() - 2 / 150) / (1 - 2 / 150)), rel=ROUNDING)


@given(st.integers(1, 3000))
def test_one_channel_in_a_hundred_is_looked_at_and_at_least_one(channels: int) -> None:
    assert 100 * top_count(channels) >= channels > 100 * (top_count(channels) - 1)


def test_without_energy_there_is_no_key() -> None:
    assert metric_of(torch.zeros(2, 3, 3, 3)).compute() == {}
