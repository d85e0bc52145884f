"""Shift equivariance: exact where activations move along, what a planted code of position costs, a slow reference."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sdprobe.metrics.equivariance import ShiftEquivariance, margin_name, margins
from tests.metrics.drawn import randn

IMAGES, PHOTOS, CHANNELS = 24, 12, 5
PHOTO = torch.arange(IMAGES) % PHOTOS
MEAN = torch.zeros(CHANNELS)


def windows(side: int, shift: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Two windows of larger grids."""
    larger = randn(IMAGES, CHANNELS, side + shift, side + shift, seed=seed)
    return larger[..., :side, :side], larger[..., shift:, shift:]


def measured(first: Tensor, second: Tensor, shift: int, mean: Tensor = MEAN) -> ShiftEquivariance:
    metric = ShiftEquivariance(*first.shape[2:], shift, PHOTOS)
    metric.update(first, second, mean, PHOTO)
    return metric


@settings(max_examples=20, deadline=None)
@given(st.integers(2, 12), st.data())
def test_what_moves_with_the_picture_is_exact(side: int, data: st.DataObject) -> None:
    shift = data.draw(st.integers(1, side - 1))
    report = measured(*windows(side, shift), shift).compute()
    shown = {key for key in report if not key.endswith("/n")}
    assert shown == {f"equivariance/{margin_name(margin)}" for margin in margins(side, shift)}  # PSNR is infinite
    assert all(report[key] == 1 for key in shown)
    assert report["equivariance/all/n"] == IMAGES * (side - shift) ** 2


def test_a_planted_code_of_position_costs_what_it_differs_by() -> None:
    """Exactly the mean of ‖g_{p+s} − g_p‖² over the tokens of each distance, whatever the content is."""
    side, shift = 9, 2
    content, code = windows(side, shift), randn(CHANNELS, side, side, seed=7)
    metric = measured(content[0] + code, content[1] + code, shift)
    step = (code[:, shift:, shift:] - code[:, :-shift, :-shift]).square().sum(0)
    cost = metric.residual.sum(0) / metric.count.sum(0)
    for group, margin in enumerate(margins(side, shift)):
        inner = slice(margin, side - shift - margin)
        assert cost[group].item() == pytest.approx(step[inner, inner].mean().item(), rel=1e-5)


def test_windows_without_anything_in_common_are_at_minus_one() -> None:
    first, second = randn(IMAGES, CHANNELS, 16, 16, seed=1), randn(IMAGES, CHANNELS, 16, 16, seed=2)
    report = measured(first, second, 2).compute()
    assert report["equivariance/all"] == pytest.approx(-1, abs=0.03)


def test_numbers_equal_a_slow_reference() -> None:
    side, shift = 6, 1
    first, second = windows(side, shift)
    second = second + 0.3 * randn(*second.shape, seed=5)
    mean = randn(CHANNELS, seed=6)
    report = measured(first, second, shift, mean).compute()
    for margin in margins(side, shift):
        residual = spread = error = scale = 0.0
        for image in range(IMAGES):
            both = torch.stack([first[image], second[image]])
            extent = (both.max() - both.min()).item()
            for row in range(side - shift):
                for column in range(side - shift):
                    ours, theirs = first[image, :, row + shift, column + shift], second[image, :, row, column]
                    places = (row, column, row + shift, column + shift)
                    if min(min(place, side - 1 - place) for place in places) < margin:
                        continue
                    residual += (ours - theirs).square().sum().item()
                    spread += ((ours - mean).square().sum() + (theirs - mean).square().sum()).item() / 2
                    error += (ours - theirs).square().mean().item()
                    scale += extent**2
        name = margin_name(margin)
        assert report[f"equivariance/{name}"] == pytest.approx(1 - residual / spread, rel=1e-5)
        assert report[f"equivariance_psnr/{name}"] == pytest.approx(10 * math.log10(scale / error), rel=1e-5)
        for kind in ("equivariance", "equivariance_psnr"):
            low, high = (report[f"{kind}/{name}/{end}"] for end in ("ci_low", "ci_high"))
            assert low < report[f"{kind}/{name}"] < high


def test_photographs_contribute_pseudo_values_and_batches_do_not_matter() -> None:
    first, second = windows(6, 1)
    second = second + 0.3 * randn(*second.shape, seed=5)
    metric, other = measured(first, second, 1), ShiftEquivariance(6, 6, 1, PHOTOS)
    for index in (slice(0, 5), slice(5, None)):
        other.update(first[index], second[index], MEAN, PHOTO[index])
    report = metric.compute()
    assert other.compute() == pytest.approx(report)
    for key, values in metric.pseudovalues().items():
        assert len(values) == PHOTOS and np.mean(values) == pytest.approx(report[key])
    assert metric.gain(other) == pytest.approx(dict.fromkeys(metric.gain(other), 0) | {  # of the same, number of photographs
        f"{key}/n": PHOTOS for key in metric.pseudovalues()
    })  # fmt: skip


def test_layers_whose_tokens_are_all_equal_have_no_number() -> None:
    constant = torch.ones(IMAGES, CHANNELS, 4, 4)
    assert not {key for key in measured(constant, constant, 1, mean=torch.ones(CHANNELS)).compute() if not key.endswith("/n")}
