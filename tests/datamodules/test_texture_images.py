"""Textures look alike everywhere; periodic ones have no border; latents pass the store unencoded."""

import itertools
from pathlib import Path

import pytest
import torch

from datamodules.images.source import LatentSource
from datamodules.images.texture import Constants, LatentTextures, Textures, pink
from datamodules.images.views import rotated
from datamodules.latents import LatentCache, LatentStore
from sdprobe.backbones import FrozenSD


def step(image: torch.Tensor, column: int) -> float:
    """Mean absolute difference between a column and the one on its right, around the border."""
    return (image - image.roll(-1, -1))[..., column].abs().mean().item()


@pytest.mark.parametrize("periodic", [True, False])
def test_only_periodic_textures_continue_across_the_border(periodic: bool) -> None:
    textures = Textures(128, 8, periodic=periodic)
    images = torch.stack([textures[i]["image"] for i in range(8)])
    inside = sum(step(images, column) for column in range(20, 100, 8)) / 10
    border = max(step(images, -1), step(images.mT, -1))
    assert (border < 1.3 * inside) == periodic
    assert border > 2 * inside or periodic


def test_the_amplitude_falls_as_one_over_the_frequency() -> None:
    spectrum = torch.fft.rfft2(pink(64, 64, True, torch.Generator().manual_seed(0))).abs().square().mean(0)
    power = [spectrum[0, f].item() for f in (2, 4, 8, 16)]
    ratios = [a / b for a, b in itertools.pairwise(power)]
    assert all(2.5 < ratio < 6 for ratio in ratios), "a quarter of the power per octave"
    assert spectrum[0, 0] < 1e-6


@pytest.mark.parametrize("periodic", [True, False])
def test_no_place_has_another_mean_or_variance(periodic: bool) -> None:
    textures = torch.stack([pink(64, 32, periodic, torch.Generator().manual_seed(i)) for i in range(16)]).flatten(0, 1)
    assert abs(textures.var().item() - 1) < 0.35
    variance = torch.nn.functional.avg_pool2d(textures.square().mean(0)[None], 8)[0]
    assert (variance / variance.mean() - 1).abs().max() < 0.15
    assert torch.nn.functional.avg_pool2d(textures.mean(0)[None], 8).abs().max() < 0.15


def test_a_texture_depends_on_seed_and_number_alone() -> None:
    a, longer, other = Textures(64, 2), Textures(64, 5), Textures(64, 2, seed=1)
    assert len(longer) == 5
    assert torch.equal(a[1]["image"], longer[1]["image"]) and a.content_key(1) == longer.content_key(1)
    assert not torch.equal(a[1]["image"], other[1]["image"])
    windows = Textures(64, 2, periodic=False)
    keys = {source.content_key(i) for source in (a, other, windows, Textures(128, 2), Constants(64, 2)) for i in (0, 1)}
    assert len(keys) == 10
    with pytest.raises(IndexError, match=r"images\.limit"):
        a[2]


def test_constants_show_one_colour_each() -> None:
    constants = Constants(64, 3)
    images = torch.stack([constants[i]["image"] for i in range(3)])
    assert (images.flatten(2).std(-1) < 1e-6).all() and (images[0] - images[1]).abs().max() > 0.05


def test_latents_pass_the_store_without_an_encoder(tmp_path: Path) -> None:
    textures = LatentTextures(128, 12)
    sd = FrozenSD.from_pretrained("tiny", precision="fp32", device="cpu")
    store = LatentStore(textures, sd.encoder, LatentCache(tmp_path), 0, 4, 0)
    assert store.prepare([0, 3]) == [0, 3] and sd.passes["encoder"] == 0
    assert torch.equal(store[3], textures.latent(3)) and store[3].shape == (4, 16, 16)
    assert not list(tmp_path.rglob("*.safetensors"))
    latents = torch.stack([textures.latent(i) for i in range(12)])
    assert 0.6 < latents.std() < 1.4
    assert isinstance(textures, LatentSource) and not isinstance(Textures(64, 1), LatentSource)
    turned = rotated(textures)
    assert isinstance(turned, LatentSource) and torch.equal(turned.latent(3), store[3].rot90(2, (-2, -1)))
