"""ContentDataModule: every token's clean latent, whatever the token went through, and means over training images alone."""

import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from datamodules.images.folder import FolderImages
from datamodules.images.scenes import Scenes
from datamodules.targets import ContentDataModule, latent_means
from sdprobe.backbones import FrozenSD
from sdprobe.mitigations import Canvas, PaddingSwap
from sdprobe.tokens.batch import TokenBatch
from sdprobe.utilities.errors import InputError

LAYERS = ("conv_in", "mid")  # 1 and 8 × 8 cells of a latent per token


@pytest.fixture(scope="module")
def make(sd: FrozenSD, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., ContentDataModule]:
    """A function of images and options that makes a data module; latents are shared."""
    cache = str(tmp_path_factory.mktemp("content"))

    def module(images, **options) -> ContentDataModule:
        return ContentDataModule(images, sd, block=LAYERS, cache_dir=cache, batch_size=4, **options)

    return module


@pytest.mark.parametrize(("size", "side"), [(16, 16), (16, 8), (16, 2), (24, 3)])
def test_cell_means_are_those_of_a_loop_over_cells(size: int, side: int) -> None:
    latent = torch.randn(4, size, size, generator=torch.Generator().manual_seed(0))
    table, cell = latent_means(latent, side), size // side
    assert table.shape == (side, side, 4)
    for row in range(side):
        for col in range(side):
            part = latent[:, row * cell : (row + 1) * cell, col * cell : (col + 1) * cell]
            np.testing.assert_allclose(table[row, col], part.double().mean((1, 2)), atol=1e-6)


def check(data: ContentDataModule, batch: TokenBatch, allowed: list[int]) -> None:
    """Content of every token of a batch is the mean of its cell in the clean latent of the item that the batch names."""
    for layer in batch.tokens:
        side = data.shapes[layer][1]
        cell = data.images.size // 8 // side
        items, positions = batch.image[layer], batch.positions[layer]
        assert set(items.tolist()) <= set(allowed)
        means = {item: data.store[item].reshape(4, side, cell, side, cell).mean((2, 4)) for item in set(items.tolist())}
        expected = [means[item][:, row, col] for item, (row, col) in zip(items.tolist(), positions.tolist(), strict=True)]
        torch.testing.assert_close(batch.targets[layer], torch.stack(expected), atol=1e-5, rtol=1e-5)


def test_every_token_has_the_clean_latent_of_its_cell(make) -> None:
    data = make(Scenes(size=128, limit=15), timestep=600)
    data.prepare_data()
    data.prepare_data()
    for batch in data.test_dataloader():
        check(data, batch, data.split["test"])
    for batch in data.val_dataloader():
        check(data, batch, data.split["val"])
    assert data.seconds["content"] > 0
    data.release()
    assert not data._tables


def test_training_targets_are_those_of_training_images_alone(make) -> None:
    data = make(Scenes(size=128, limit=15))
    data.prepare_data()
    training = torch.stack([latent_means(data.store[i], 2) for i in data.split["train"]])
    assert torch.equal(data.training_targets("mid"), training)
    assert data.training_targets("conv_in").shape == (len(training), 16, 16, 4)


def test_mitigations_change_tokens_and_never_their_content(make) -> None:
    images = Scenes(size=128, limit=12)
    plain = make(images)
    compared = make(images, mitigation={"canvas": Canvas(64), "padding_swap": PaddingSwap("reflect")}, compare=True)
    for data in (plain, compared):
        data.prepare_data()
        data.setup("test")
    assert set(compared.shapes) == {f"{layer}{end}" for layer in LAYERS for end in ("", "__canvas", "__padding_swap")}
    batch = next(iter(compared.test_dataloader()))
    check(compared, batch, compared.split["test"])
    for name in ("mid__canvas", "mid__padding_swap"):
        assert not torch.equal(batch.tokens[name], batch.tokens["mid"])
        assert torch.equal(compared.training_targets(name), plain.training_targets("mid"))
        assert torch.equal(batch.targets[name], batch.targets["mid"]), "variants are compared on the same targets"


def test_crops_have_their_own_content_and_share_a_photograph(save_photos, tmp_path: Path, make) -> None:
    data = make(FolderImages(str(save_photos(tmp_path / "photos", 10)), size=128, crops=2))
    data.prepare_data()
    for batch in data.test_dataloader():
        check(data, batch, data.split["test"])
        items = batch.image["mid"]
        names = [data.images.photo(int(item)) for item in items]
        assert batch.photo["mid"].tolist() == [data.stream.photos[name] for name in names]
        assert len(items.unique()) == 2 * len(batch.photo["mid"].unique())


def test_images_that_cannot_be_decoded_are_skipped(save_photos, tmp_path: Path, make, caplog) -> None:
    images = FolderImages(str(save_photos(tmp_path / "photos", 15)), size=128, on_error="skip")
    wanted = {name: list(part) for name, part in make(images).split.items()}
    damaged = [wanted["train"][0], wanted["test"][0]]
    data = make(images)
    for index in damaged:
        (tmp_path / "photos" / images.name(index)).write_bytes(b"no picture")
    with caplog.at_level(logging.WARNING):
        data.prepare_data()
    assert "Skipped 2 images" in caplog.text
    assert data.split["test"] == wanted["test"][1:] and data.split["train"] == wanted["train"][1:]
    assert data.training_targets("mid").isfinite().all()
    for batch in data.test_dataloader():
        check(data, batch, data.split["test"])


def test_training_images_without_any_difference_are_refused(save_photos, tmp_path: Path, make) -> None:
    images = FolderImages(str(save_photos(tmp_path / "photos", 10, first=200)), size=128, on_error="skip")
    data = make(images)
    for index in data.split["train"][1:]:
        (tmp_path / "photos" / images.name(index)).write_bytes(b"no picture")
    with pytest.raises(InputError, match="Expected training images that differ, but got only equal ones \(1\)"):
        data.prepare_data()
