"""The depth probe finds a planted code, finds nothing where nothing was, and is not misled by missing depth."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from probes import DepthProbe
from sdprobe.estimators.closed_form import RidgeMoments
from tests.probes.conftest import Targeted, contributions


def deep(grids: dict[str, Tensor], depth: dict[str, Tensor], **options: Any) -> Targeted:
    """Planted grids with the depth of their tokens, layer → (images, side, side), NaN where it is missing."""
    return Targeted("depth", grids, {layer: table[..., None] for layer, table in depth.items()}, **options)


def random_depth(images: int, side: int, seed: int = 0) -> Tensor:
    return torch.rand(images, side, side, generator=torch.Generator().manual_seed(seed)) * 8 + 1


def coded_depth(depth: Tensor, channels: int, noise: float = 0.05, seed: int = 0) -> Tensor:
    """Grids that hold (depth − 5) along one direction, a fixed offset, and noise."""
    generator = torch.Generator().manual_seed(seed)
    direction, offset = torch.randn(2, channels, generator=generator)
    signal = (depth - 5)[:, None] * direction[:, None, None] + offset[:, None, None]
    return signal + noise * torch.randn(signal.shape, generator=generator)


def squared_errors(probe: DepthProbe, data: Any, depth: Tensor) -> np.ndarray:
    """Of the probe's predictions, by test image and token."""
    test = list(data.parts["test"])
    tokens = data.grids["mid"][test].flatten(2).mT
    off = probe.heads["mid"](tokens.flatten(0, 1))[:, 0, 0].view(len(test), -1) - depth[test].flatten(1)
    return off.square().detach().numpy()


@pytest.mark.parametrize("solver", ["adam", "closed_form"])
def test_a_planted_depth_code_is_found(solver, fit_and_test) -> None:
    depth = random_depth(40, 8)
    data = deep({"mid": coded_depth(depth, 16)}, {"mid": depth})
    probe = DepthProbe(data.shapes, data.images, data, solver=solver)
    results = fit_and_test(probe, data, epochs=60)
    assert results["test/mid/rmse/all"] < 0.1
    contributions(probe, units=4)  # photographs of two frames each
    errors = np.sqrt(squared_errors(probe, data, depth).mean(1))
    assert results["test/mid/rmse_per_image/all"] == pytest.approx(errors.mean(), rel=1e-5)
    assert results["test/mid/rmse/corner"] < 0.1
    assert results["test/mid/delta1/all"] > 0.99
    assert results["test/mid/abs_rel/all"] < 0.05
    assert results["test/mid/rmse/all/n"] == 8 * 64
    assert results["constant/mid/rmse/all"] == pytest.approx(8 / math.sqrt(12), rel=0.05), "spread of a uniform depth"
    # depths are shuffled: all that can be learnt is their middle
    assert results["shuffled_labels/mid/rmse/all"] == pytest.approx(results["constant/mid/rmse/all"], rel=0.1)


@pytest.mark.parametrize("solver", ["adam", "closed_form"])
def test_noise_tells_no_more_than_a_constant(solver, fit_and_test) -> None:
    depth = random_depth(100, 8)
    noise = torch.randn(100, 8, 8, 8, generator=torch.Generator().manual_seed(1))
    data = deep({"mid": noise}, {"mid": depth})
    probe = DepthProbe(data.shapes, data.images, data, solver=solver, min_steps=100)
    results = fit_and_test(probe, data, epochs=20)
    assert torch.equal(probe.heads["mid"].weight, probe.heads["mid"].best_weight), "tested in its best state, not its last"
    for what in ("test", "shuffled_labels"):
        assert results[f"{what}/mid/rmse/all"] == pytest.approx(results["constant/mid/rmse/all"], rel=0.03), what


@pytest.mark.parametrize("solver", ["adam", "closed_form"])
def test_missing_depth_is_left_out_of_training_and_errors(solver, fit_and_test) -> None:
    depth = random_depth(40, 8)
    grids = coded_depth(depth, 16)
    missing = torch.rand(depth.shape, generator=torch.Generator().manual_seed(2)) < 0.3
    missing[0] = missing[25] = missing[39] = True  # whole images of every split
    grids.permute(0, 2, 3, 1)[missing] = 1e4  # what a probe that trained on them could not overlook
    data = deep({"mid": grids}, {"mid": depth.masked_fill(missing, torch.nan)})
    probe = DepthProbe(data.shapes, data.images, data, solver=solver)
    results = fit_and_test(probe, data, epochs=60)
    assert results["test/mid/rmse/all"] < 0.1
    assert results["val/mid/rmse/all"] < 0.1
    assert results["test/mid/rmse/all/n"] == results["constant/mid/rmse/all/n"] == int((~missing[32:]).sum())
    assert np.array_equal(np.isnan(probe.maps()["mid/error"]), missing[32:].all(0).numpy())


def test_position_only_knows_what_the_place_tells_and_no_more(fit_and_test) -> None:
    noise = torch.randn(200, 8, 8, generator=torch.Generator().manual_seed(0))
    depth = 3 + 0.5 * torch.arange(8.0)[:, None] + 0.1 * noise
    depth[:120, 0, 0] = torch.nan  # never seen in training: the constant is what is left to say
    data = deep({"mid": torch.randn(200, 4, 8, 8, generator=torch.Generator().manual_seed(1))}, {"mid": depth})
    results = fit_and_test(DepthProbe(data.shapes, data.images, data, solver="closed_form"), data, epochs=1)
    assert results["constant/mid/rmse/all"] == pytest.approx(0.5 * math.sqrt(63 / 12), rel=0.03)
    assert results["position_only/mid/rmse/interior"] == pytest.approx(0.1, rel=0.05)
    # three corners are known to 0.1, the fourth is 1.75 below the middle of 3 and 6.5
    assert results["position_only/mid/rmse/corner"] == pytest.approx(1.75 / 2, rel=0.05)
    assert results["test/mid/rmse/all"] == pytest.approx(results["constant/mid/rmse/all"], rel=0.03)


def test_the_closed_form_is_ridge_regression() -> None:
    generator = np.random.default_rng(0)
    x = generator.normal(size=(300, 5)) @ generator.normal(size=(5, 5)) + 3
    y = x @ generator.normal(size=(5, 2)) + generator.normal(size=(300, 2)) + 7
    moments = RidgeMoments(5, 2, torch.device("cpu"))
    for rows in np.array_split(np.arange(300), 7):
        moments.update(torch.tensor(x[rows]), torch.tensor(y[rows]))
    weight, bias = moments.solve()
    centred = x - x.mean(0)
    covariance = centred.T @ centred / 300
    level = 1e-3 * np.trace(covariance) / 5
    expected = np.linalg.solve(covariance + level * np.eye(5), centred.T @ (y - y.mean(0)) / 300).T
    np.testing.assert_allclose(weight.numpy(), expected, rtol=1e-8)
    np.testing.assert_allclose(bias.numpy(), y.mean(0) - expected @ x.mean(0), rtol=1e-8)


def test_the_loss_is_huber(fit_and_test) -> None:
    depth = torch.full((20, 4, 4), 5.0)
    depth[torch.arange(20) % 10 == 0] = 9.0  # one image in ten is far away
    data = deep({"mid": torch.ones(20, 1, 4, 4)}, {"mid": depth})
    results = fit_and_test(DepthProbe(data.shapes, data.images, data, min_steps=200), data, epochs=100)
    # squared error would settle at the mean of the training images (5.67, two of twelve); Huber's slope is ±1 beyond an
    # error of 1: 10 · (x − 5) = 2 · 1, so x = 5.2
    assert results["test/mid/rmse/all"] == pytest.approx(0.2, abs=0.02)
    assert results["val/mid/loss/all"] == pytest.approx(0.2**2 / 2, abs=0.01)
    assert results["constant/mid/rmse/all"] == pytest.approx(2 / 3, abs=1e-3)


def test_intervals_are_over_photographs_not_frames(fit_and_test) -> None:
    depth = random_depth(80, 4)
    # the two frames of a photograph are as noisy as each other
    noise = torch.rand(40, generator=torch.Generator().manual_seed(1)).repeat_interleave(2) * 3
    spread = noise[:, None, None, None] * torch.randn(80, 8, 4, 4, generator=torch.Generator().manual_seed(2))
    data = deep({"mid": coded_depth(depth, 8) + spread}, {"mid": depth})
    widths = []
    for data.frames in (2, 1):
        results = fit_and_test(DepthProbe(data.shapes, data.images, data, solver="closed_form"), data, epochs=1)
        widths.append(results["test/mid/rmse/all/ci_high"] - results["test/mid/rmse/all/ci_low"])
    assert widths[0] > 1.15 * widths[1]
