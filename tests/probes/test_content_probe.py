"""The content probe finds a planted latent code, finds nothing in noise or in position, and compares mitigations in pairs."""

from typing import Any

import pytest
import torch
from torch import Tensor

from probes import ContentProbe
from probes.targets import LEVELS
from sdprobe.estimators.closed_form import RidgeMoments
from tests.probes.conftest import Targeted, contributions


def shown(grids: dict[str, Tensor], latents: dict[int, Tensor], **options: Any) -> Targeted:
    """Planted grids with the latents of their tokens, side → (images, side, side, 4)."""
    return Targeted("content", grids, {layer: latents[grid.shape[2]] for layer, grid in grids.items()}, **options)


def random_latents(images: int, side: int, seed: int = 0, layout_strength: float = 0.0) -> Tensor:
    """Four channels of unlike scale, around means of every position that vary so many times as much as images do."""
    generator = torch.Generator().manual_seed(seed)
    layout = torch.randn(side, side, 4, generator=generator)
    latents = torch.randn(images, side, side, 4, generator=generator) + layout_strength * layout
    return latents * torch.tensor([1.0, 10.0, 0.1, 3.0])


def coded(latents: Tensor, channels: int, noise: float, seed: int = 1) -> Tensor:
    """Grids that hold each latent channel, at unit scale, along a direction of its own, an offset, and noise."""
    generator = torch.Generator().manual_seed(seed)
    directions, offset = torch.randn(4, channels, generator=generator), 5 * torch.randn(channels, generator=generator)
    grids = (latents / latents.std((0, 1, 2))) @ directions + offset
    return (grids + noise * torch.randn(grids.shape, generator=generator)).permute(0, 3, 1, 2).contiguous()


def noise(images: int, channels: int, side: int, seed: int = 3) -> Tensor:
    return torch.randn(images, channels, side, side, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("validate", [True, False])
def test_a_planted_latent_code_is_read_and_shuffled_labels_are_not(validate, fit_and_test) -> None:
    latents = random_latents(60, 8)
    data = shown({"mid": coded(latents, 16, 0.05)}, {8: latents}, validate=validate)
    n = len(data.parts["train"])
    results = fit_and_test(ContentProbe(data.shapes, data.images, data), data, epochs=5)
    for group in ("all", "corner", "border", "interior"):
        # the mean of n training images has a noise of its own, σ²/n, which no activation tells
        assert results[f"test/mid/content_r2/{group}"] == pytest.approx(n / (n + 1), abs=0.015)
        assert results[f"chance/mid/content_r2/{group}"] == results[f"position_only/mid/content_r2/{group}"] == 0
    assert results["test/mid/content_r2/corner/n"] == 12 * 4
    assert abs(results["shuffled_labels/mid/content_r2/all"]) < 0.1
    assert ("val/mid/content_r2/all" in results) == validate


def test_noise_tells_nothing(fit_and_test) -> None:
    latents = random_latents(100, 8)
    data = shown({"mid": noise(100, 16, 8)}, {8: latents})
    results = fit_and_test(ContentProbe(data.shapes, data.images, data), data, epochs=5)
    assert -0.05 < results["test/mid/content_r2/all"] < 0.01
    assert results["test/mid/content_r2/all/ci_low"] <= 0.002


def test_tokens_that_know_their_position_alone_tell_nothing_and_with_content_everything(fit_and_test) -> None:
    latents = random_latents(60, 8, layout_strength=2)
    place = torch.eye(64).reshape(1, 8, 8, 64).permute(0, 3, 1, 2).expand(60, -1, -1, -1)  # every position its own channel
    grids = {"mid": place + 1e-3 * noise(60, 64, 8), "up_0": torch.cat([place * 5, coded(latents, 16, 0.05)], dim=1)}
    grids["up_1"] = coded(latents, 16, 0.05)
    data = shown(grids, {8: latents})
    results = fit_and_test(ContentProbe(data.shapes, data.images, data), data, epochs=5)
    # the layout of these latents is four times the variance around it, and a probe of raw latents would read it all
    assert -0.1 < results["test/mid/content_r2/all"] < 0.01
    assert results["test/up_0/content_r2/all"] > 0.98
    # latents without their position: nobody can tell layout from content, and layout has 4 of 5 parts of the variance
    assert results["test/up_1/content_r2/all"] == pytest.approx(1 / 5, abs=0.06)


def test_channels_weigh_alike_whatever_their_scale(fit_and_test) -> None:
    latents = random_latents(60, 8)
    only = latents * torch.tensor([1.0, 0.0, 1.0, 1.0])  # all but the channel of largest scale
    grids = {"mid": coded(only.where(only != 0, noise(60, 1, 8, 5).permute(0, 2, 3, 1)), 16, 0.05)}
    data = shown(grids, {8: latents})
    results = fit_and_test(ContentProbe(data.shapes, 60, data), data, epochs=5)
    assert results["test/mid/content_r2/all"] == pytest.approx(3 / 4, abs=0.03)
    # a channel that never varies counts in no sum
    still = latents.clone()
    still[..., 1] = 7.0
    data = shown(grids, {8: still})
    results = fit_and_test(ContentProbe(data.shapes, 60, data), data, epochs=5)
    assert results["test/mid/content_r2/all"] > 0.96


def test_the_level_that_validates_best_is_kept(fit_and_test) -> None:
    latents = random_latents(20, 4)
    # the code lies in directions far smaller than one that says nothing; then 150 channels of noise on 192 tokens
    small = torch.cat([1e3 * noise(20, 1, 4), coded(latents, 12, 0.01)], dim=1)
    many = torch.cat([coded(latents, 4, 3.0), 4 * noise(20, 150, 4)], dim=1)
    data = shown({"mid": small, "up_0": many}, {4: latents})
    probe = ContentProbe(data.shapes, data.images, data)
    results = fit_and_test(probe, data, epochs=5)
    assert results["test/mid/content_r2/all"] > 0.9
    assert results["val/mid/ridge_level/all"] == LEVELS[0] < results["val/up_0/ridge_level/all"]
    moments = RidgeMoments(13, 4, torch.device("cpu"))
    tokens = data.grids["mid"][:12].permute(0, 2, 3, 1).reshape(-1, 13)
    off = latents[:12] - latents[:12].mean(0)
    target = off / off.square().mean((0, 1, 2)).sqrt()
    moments.update(tokens, target.reshape(-1, 4))
    weight, bias = moments.solve()
    assert (tokens.double() @ weight.T + bias).var() < 0.1, "one level for all would shrink this code away"
    torch.testing.assert_close(probe.heads["mid"].weight[0], moments.solve(LEVELS[0])[0].float(), rtol=1e-3, atol=1e-5)


def test_variants_share_random_numbers_and_are_compared_in_pairs(fit_and_test) -> None:
    latents = random_latents(60, 8)
    plain = coded(latents, 16, 1.0)
    worse = plain + noise(60, 16, 8)
    data = shown({"mid": plain, "mid__same": plain.clone(), "mid__worse": worse}, {8: latents})
    probe = ContentProbe(data.shapes, data.images, data)
    results = fit_and_test(probe, data, epochs=5)
    key = "mid__same/content_r2/all"
    assert results[f"shuffled_labels/{key}"] == results["shuffled_labels/mid/content_r2/all"]
    assert {end: results.get(f"gain_over_none/{key}{end}") for end in ("", "/n", "/ci_low")} == {
        "": 0,
        "/n": 6,
        "/ci_low": None,
    }
    units = contributions(probe, units=6)  # photographs of two crops each
    difference = units["test/mid__worse/content_r2/all"] - units["test/mid/content_r2/all"]
    assert difference.mean() == pytest.approx(results["gain_over_none/mid__worse/content_r2/all"])
    lost = results["gain_over_none/mid__worse/content_r2/all"]
    assert lost == pytest.approx(results["test/mid__worse/content_r2/all"] - results["test/mid/content_r2/all"])
    assert lost < results["gain_over_none/mid__worse/content_r2/all/ci_high"] < 0
    assert not any(key.startswith("gain_over_none/mid/") for key in results)


def test_intervals_are_over_photographs(fit_and_test) -> None:
    latents = random_latents(20, 4)
    data = shown({"mid": coded(latents, 8, 1.0)}, {4: latents})
    probe = ContentProbe(data.shapes, data.images, data)
    fit_and_test(probe, data, epochs=5)
    assert int((probe.scores["test/mid"].count[:, 0] > 0).sum()) == 2, "four crops of two photographs"
