"""ControlsDataModule: the test images again, rotated and under other noise, and nothing else changed."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from datamodules.activations import ControlsDataModule
from datamodules.images.texture import LatentTextures, Textures
from sdprobe.backbones import FrozenSD

COUNT = 12


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., ControlsDataModule]:
    def module(noise: str = "shared", latents: bool = False) -> ControlsDataModule:
        sd = FrozenSD.from_pretrained("tiny", precision="fp32", device="cpu", noise=noise)
        images = (LatentTextures if latents else Textures)(128, COUNT)
        data = ControlsDataModule(images, sd, block=["latent", "noisy_latent", "mid"], cache_dir=str(tmp_path), batch_size=2)
        data.prepare_data()
        return data

    return module


@pytest.mark.parametrize("noise", ["independent", "none", "shared", "rolled"])
def test_another_noise_tensor_exists_where_images_have_one_in_common(
    noise: str, make: Callable[..., ControlsDataModule]
) -> None:
    data = make(noise)
    extra = ["other_noise"] if noise in ("shared", "rolled") else []
    assert data.views == ["test", "rotated", *extra]
    assert len(data.test_dataloader()) == len(data.views)


def test_each_view_changes_what_its_name_says(make: Callable[..., ControlsDataModule]) -> None:
    data = make()
    batches = {view: list(loader) for view, loader in zip(data.views, data.test_dataloader(), strict=True)}
    assert [len(loader) for loader in data.test_dataloader()] == [len(batches["test"])] * 3
    tokens = {
        view: {layer: torch.cat([batch.tokens[layer] for batch in found]) for layer in data.layers}
        for view, found in batches.items()
    }
    alpha = data.backbone.noise.alphas_cumprod[50]
    noise = {view: each["noisy_latent"] - alpha.sqrt() * each["latent"] for view, each in tokens.items()}
    torch.testing.assert_close(noise["rotated"], noise["test"], rtol=0, atol=1e-5)
    assert not torch.allclose(noise["other_noise"], noise["test"], atol=0.1)
    assert torch.equal(tokens["other_noise"]["latent"], tokens["test"]["latent"])
    assert not torch.allclose(tokens["rotated"]["latent"], tokens["test"]["latent"], atol=0.1)
    index = data.split["test"][0]
    upright = data.images[index]["image"]
    wanted = data.backbone.encoder(upright.flip((-2, -1))[None], ["x"])[0]
    torch.testing.assert_close(tokens["rotated"]["latent"][:256].T.reshape(4, 16, 16), wanted, rtol=1e-3, atol=1e-4)
    first = batches["rotated"][0]
    assert torch.equal(first.positions["mid"], batches["test"][0].positions["mid"])
    assert [data.photographs[i] for i in first.photo["mid"].unique()] == sorted(
        (data.images.photo(i) for i in data.split["test"][:2]), key=data.photographs.index
    )


def test_latents_are_rotated_without_an_encoder(make: Callable[..., ControlsDataModule]) -> None:
    data = make(latents=True)
    upright, rotated, _ = (next(iter(loader)).tokens["latent"][:256] for loader in data.test_dataloader())
    assert torch.equal(rotated, upright.flip(0)) and data.backbone.passes["encoder"] == 0


def test_the_training_images_are_not_rotated(make: Callable[..., ControlsDataModule]) -> None:
    data = make()
    used = sum(len(data.split[name]) for name in ("train", "val", "test"))
    assert data.backbone.passes["encoder"] == used + len(data.split["test"])
