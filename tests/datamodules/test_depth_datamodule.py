"""DepthDataModule: the depth of every token, of scenes and of pairs of files, and frames of one scene in one split."""

import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from datamodules.images.folder import FolderImages
from datamodules.images.nyu import NYUDepth
from datamodules.images.scenes import SceneDepth, Scenes
from datamodules.targets import DepthDataModule, DepthSource, depth_means
from sdprobe.backbones import FrozenSD
from sdprobe.tokens.batch import TokenBatch
from sdprobe.utilities.errors import InputError

LAYERS = ("conv_in", "mid")  # 8 and 64 pixels per token


@given(st.sampled_from([1, 2, 4, 8]), st.sampled_from([1, 2, 3]), st.integers(0, 10**6), st.floats(0, 1))
@settings(deadline=None, max_examples=40)
def test_cell_means_are_those_of_a_loop_over_pixels(side: int, pixels: int, seed: int, missing: float) -> None:
    generator = np.random.default_rng(seed)
    size = side * pixels
    depth = generator.uniform(0.1, 10, (size, size)).astype(np.float32)
    gaps = generator.random((size, size)) < missing
    depth[gaps] = generator.choice(np.array([0, -1, np.nan, np.inf], np.float32), gaps.sum())
    table = depth_means(torch.from_numpy(depth), side)
    assert table.dtype == torch.float32
    for row in range(side):
        for col in range(side):
            cell = [float(depth[y, x]) for y in range(size) for x in range(size) if (y // pixels, x // pixels) == (row, col)]
            known = [value for value in cell if 0 < value < np.inf]
            expected = sum(known) / len(known) if known else np.nan
            np.testing.assert_allclose(table[row, col].item(), expected, rtol=1e-6)


def test_scenes_with_depth_are_the_scenes_and_share_their_latents() -> None:
    plain, deep = Scenes(size=64, limit=3, seed=5), SceneDepth(size=64, limit=3, seed=5)
    assert isinstance(deep, DepthSource) and not isinstance(plain, DepthSource)
    for index in range(3):
        assert torch.equal(plain[index]["image"], deep[index]["image"])
        for method in ("name", "photo", "content_key"):
            assert getattr(plain, method)(index) == getattr(deep, method)(index)
        assert np.array_equal(deep.depth(index).numpy(), plain.scene(index).depth)
        assert 0 < deep.depth(index).min() <= deep.depth(index).max() <= 10


@pytest.fixture(scope="module")
def make(sd: FrozenSD, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., DepthDataModule]:
    """A function of images and options that makes a data module; latents are shared."""
    cache = str(tmp_path_factory.mktemp("depth"))

    def module(images, **options) -> DepthDataModule:
        return DepthDataModule(images, sd, block=LAYERS, cache_dir=cache, batch_size=4, **options)

    return module


def check(data: DepthDataModule, batch: TokenBatch, allowed: list[int]) -> None:
    """Depth of every token of a batch is the mean of its cell in the item that the batch names, one of those allowed."""
    depths = {item: data.source.depth(item) for item in allowed}
    for layer in LAYERS:
        side = data.shapes[layer][1]
        pixels = data.images.size // side
        found = batch.targets[layer][:, 0]
        assert found.dtype == torch.float32
        for item, (row, col), depth in zip(batch.image[layer].tolist(), batch.positions[layer].tolist(), found, strict=True):
            cell = depths[item][row * pixels : (row + 1) * pixels, col * pixels : (col + 1) * pixels]
            known = cell[cell > 0]
            expected = known.double().mean().item() if len(known) else np.nan
            np.testing.assert_allclose(depth.item(), expected, rtol=1e-6)


def test_every_token_has_the_depth_of_its_cell(make) -> None:
    data = make(SceneDepth(size=128, limit=15))
    data.prepare_data()
    for batch in data.test_dataloader():
        check(data, batch, data.split["test"])
    for batch in data.val_dataloader():
        check(data, batch, data.split["val"])
    assert data.training_targets("mid").shape == (len(data.split["train"]), 2, 2, 1)
    first = data.images.depth(data.split["train"][0])
    assert data.training_targets("mid")[0, 1, 0].item() == pytest.approx(first[64:, :64].mean().item(), rel=1e-5)
    assert data.seconds["depth"] > 0


def test_depth_is_read_once_and_only_of_images_that_are_used(make) -> None:
    reads: list[int] = []

    class Counting(SceneDepth):
        def depth(self, index: int) -> torch.Tensor:
            reads.append(index)
            return super().depth(index)

    data = make(Counting(size=64, limit=15))
    data.prepare_data()
    data.prepare_data()
    list(data.test_dataloader())
    assert sorted(reads) == sorted(data.split["train"] + data.split["val"] + data.split["test"])
    data.release()
    assert not data._tables


def test_images_without_depth_are_refused_before_any_is_encoded(make, save_photos, tmp_path: Path) -> None:
    data = make(FolderImages(str(save_photos(tmp_path / "photos", 12)), size=128))
    with pytest.raises(InputError, match="Expected images with depth, images=scene_depth or images=nyu, but got FolderImages"):
        data.prepare_data()
    assert data.store.encoded == 0


def save_pairs(root: Path, scenes: list[str], frames: int = 2, width: int = 80, height: int = 60) -> Path:
    """Pairs of files in the distributed layout: depth in millimetres, larger to the right, a missing row at the top."""
    for number, scene in enumerate(scenes):
        (root / scene).mkdir(parents=True, exist_ok=True)
        for frame in range(frames):
            pixels = np.random.default_rng([number, frame]).integers(0, 256, (6, 8, 3), dtype=np.uint8)
            picture = Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)
            picture.save(root / scene / f"rgb_{frame:05d}.{'jpg' if frame % 2 == 0 else 'png'}")
            depth = np.tile(1000 + 100 * number + 10 * np.arange(width, dtype=np.uint16), (height, 1))
            depth[: height // 2, : width // 4] = 0
            Image.fromarray(depth).save(root / scene / f"sync_depth_{frame:05d}.png")
    return root


SCENES = [f"kitchen_{number:04d}" for number in range(10)] + ["bedroom_0001a", "bedroom_0001b"]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return save_pairs(tmp_path / "nyu", [f"sync/{scene}" for scene in SCENES])


def test_pairs_are_found_cropped_and_in_metres(root: Path) -> None:
    images = NYUDepth(str(root), size=64)
    assert isinstance(images, DepthSource)
    assert len(images) == 24
    assert images.name(0) == "sync/bedroom_0001a/rgb_00000.jpg"
    first = [images.name(i) for i in range(24)].index("sync/kitchen_0000/rgb_00000.jpg")
    with Image.open(root / images.name(first)) as picture:
        square = picture.crop((10, 0, 70, 60)).resize((64, 64), Image.Resampling.LANCZOS)
    # cropping first and cropping while resizing differ at the edges of the crop
    assert (images[first]["image"] - torch.from_numpy(np.array(square)).permute(2, 0, 1) / 255).abs().mean() < 0.01
    depth = images.depth(first)
    column = np.floor((np.arange(64) + 0.5) * 60 / 64) + 10  # nearest pixel of the centred 60 × 60
    np.testing.assert_allclose(depth[40].numpy(), (1000 + 10 * column) / 1000, rtol=1e-6)
    assert (depth[:30, :10] == 0).all()
    assert depth.shape == (64, 64)


def test_frames_of_a_scene_stay_in_one_split_and_keep_their_own_depth(root: Path, make) -> None:
    data = make(NYUDepth(str(root), size=128))
    data.prepare_data()
    assert data.photos == 11, "two lettered parts are one scene"
    split = {name: {data.images.photo(i) for i in part} for name, part in data.split.items()}
    assert sum(map(len, split.values())) == 11
    assert sum(len(part) for part in data.split.values()) == 24
    for batch in data.test_dataloader():
        check(data, batch, data.split["test"])
        items = batch.image["mid"]
        assert set(items.tolist()) <= set(data.split["test"])
        names = [data.images.photo(int(item)) for item in items]
        assert batch.photo["mid"].tolist() == [data.stream.photos[name] for name in names]
    for batch in data.val_dataloader():
        check(data, batch, data.split["val"])
    assert data.training_targets("conv_in").isnan().any(), "cells without any depth"
    assert data.describe()["photographs"]["test"] == len(split["test"])


def test_a_limit_takes_pairs_of_all_scenes(root: Path) -> None:
    images = NYUDepth(str(root), size=64, limit=11)
    assert len(images) == 11
    assert len({images.photo(i) for i in range(11)}) == 10
    assert len(NYUDepth(str(root), size=64, limit=99)) == 24


def test_keys_follow_the_files(root: Path, make) -> None:
    images = NYUDepth(str(root), size=128)
    data = make(images)
    index = data.split["test"][0]
    photograph, file = images.items[index]
    folder = FolderImages(str(photograph.parent), size=128)
    same = [folder.name(i) for i in range(len(folder))].index(photograph.name)
    assert images.content_key(index) == folder.content_key(same), "latents are shared with images=folder"
    depth, pixels, fingerprint = images.depth_key(index), images.content_key(index), data.describe()["dataset_fingerprint"]
    Image.fromarray(np.full((60, 80), 777, np.uint16)).save(file)
    again = NYUDepth(str(root), size=128)
    assert again.depth_key(index) != depth
    assert again.content_key(index) == pixels
    assert make(again).describe()["dataset_fingerprint"] != fingerprint
    assert make(again).describe()["test_fingerprint"] != data.describe()["test_fingerprint"]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda file: file.write_bytes(b"no picture"), r"Expected .*sync_depth_00001.png to be an intact image"),
        (lambda file: Image.new("L", (80, 60)).save(file), r"a 16-bit PNG of 80×60 pixels.*but got mode L and 80×60"),
        (lambda file: Image.fromarray(np.ones((30, 40), np.uint16)).save(file), r"but got mode I;16 and 40×30"),
    ],
)
def test_damaged_depth_is_named_or_skipped(root: Path, make, caplog, damage, message: str) -> None:
    images = NYUDepth(str(root), size=128)
    used = make(images).split["test"]
    file = next(images.items[i][1] for i in used if images.items[i][1].stem.endswith("1"))
    damage(file)
    with pytest.raises(InputError, match=message):
        make(images).prepare_data()
    data = make(NYUDepth(str(root), size=128, on_error="skip"))
    with caplog.at_level(logging.WARNING):
        data.prepare_data()
    assert "Skipped 1 images whose depth cannot be decoded" in caplog.text
    assert len(data.split["test"]) == len(used) - 1
    assert len(data.describe()["skipped"]) == 1


def test_a_split_without_any_depth_is_refused(root: Path, make) -> None:
    for file in root.rglob("sync_depth_*.png"):
        Image.fromarray(np.zeros((60, 80), np.uint16)).save(file)
    with pytest.raises(InputError, match="Expected depth for the train split, but none of its images has any"):
        make(NYUDepth(str(root), size=128)).prepare_data()


def test_folders_that_hold_no_pairs_are_refused(root: Path, save_photos, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="to be a folder, but got"):
        NYUDepth(str(tmp_path / "nowhere"))
    with pytest.raises(InputError, match=r"to hold pairs rgb_00000\.jpg and sync_depth_00000\.png"):
        NYUDepth(str(save_photos(tmp_path / "photos", 3)))
    (root / "sync" / "kitchen_0003" / "sync_depth_00001.png").unlink()
    with pytest.raises(InputError, match=r"sync_depth_\*\.png beside it, but got 1 without, such as .*_0003/rgb_00001\.png"):
        NYUDepth(str(root))
    assert len(NYUDepth(str(root), on_error="skip")) == 23
