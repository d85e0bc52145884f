"""images=hub: rows of a stored dataset, and sentences for what is not there."""

import io
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset, DatasetDict, Features, Image, Value
from PIL import Image as Pictures

from datamodules.images.hub import HubImages
from sdprobe.utilities.errors import InputError


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No test may wait for a network, nor write outside its folder."""
    import datasets
    import huggingface_hub

    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    datasets.disable_progress_bars()


def picture(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (64, 96, 3), dtype=np.uint8)


def encoded(seed: int) -> bytes:
    buffer = io.BytesIO()
    Pictures.fromarray(picture(seed)).save(buffer, "png")
    return buffer.getvalue()


def table(cells: list[Any]) -> Dataset:
    features = Features({"image": Image(), "label": Value("int64")})
    return Dataset.from_dict({"image": cells, "label": list(range(len(cells)))}, features=features)


@pytest.fixture
def stored(tmp_path: Path) -> str:
    """Four rows as ``save_to_disk`` writes them."""
    table([{"bytes": encoded(i), "path": None} for i in range(4)]).save_to_disk(tmp_path / "rows")
    return str(tmp_path / "rows")


def test_rows_are_centre_cropped_pictures_with_names(stored: str) -> None:
    images = HubImages(stored, size=64)
    assert len(images) == 4
    for i in range(4):
        item = images[i]
        assert torch.allclose(item["image"].permute(1, 2, 0) * 255, torch.tensor(picture(i)[:, 16:80]).float(), atol=1e-3)
        assert item["id"] == images.name(i) == images.photo(i)
    assert len({images.name(i) for i in range(4)}) == 4


def test_a_split_of_a_dataset_dict_is_chosen(tmp_path: Path) -> None:
    parts = {name: table([{"bytes": encoded(seed), "path": None}]) for name, seed in {"train": 1, "test": 2}.items()}
    DatasetDict(parts).save_to_disk(tmp_path / "parts")
    train, test = (HubImages(str(tmp_path / "parts"), split=name, size=64) for name in ("train", "test"))
    assert not torch.equal(train[0]["image"], test[0]["image"])
    assert train.name(0) != test.name(0)
    with pytest.raises(InputError, match=r"images\.split to be one of train, test, but got 'validation'"):
        HubImages(str(tmp_path / "parts"), split="validation", size=64)


@pytest.mark.parametrize("place", ["train.parquet", "data/train-00000-of-00001.parquet"])
def test_a_downloaded_repository_is_read_as_the_hub_message_promises(tmp_path: Path, place: str) -> None:
    file = tmp_path / "repository" / place
    file.parent.mkdir(parents=True)
    table([{"bytes": encoded(i), "path": None} for i in range(3)]).to_parquet(file)
    (tmp_path / "repository" / "README.md").write_text("# a dataset\n")
    images = HubImages(str(tmp_path / "repository"), size=64)
    assert len(images) == 3
    assert images[2]["image"].shape == (3, 64, 64)


def test_pictures_stored_as_paths_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(encoded(3))
    table([str(tmp_path / "a.png")]).save_to_disk(tmp_path / "rows")
    image = HubImages(str(tmp_path / "rows"), size=64)[0]["image"]
    assert torch.allclose(image.permute(1, 2, 0) * 255, torch.tensor(picture(3)[:, 16:80]).float(), atol=1e-3)


def test_content_keys_name_bytes(tmp_path: Path) -> None:
    table([{"bytes": encoded(i), "path": None} for i in (0, 1, 0)]).save_to_disk(tmp_path / "rows")
    images = HubImages(str(tmp_path / "rows"), size=64)
    assert images.content_key(0) == images.content_key(2) != images.content_key(1)


def test_a_wrong_column_lists_those_that_exist(stored: str) -> None:
    with pytest.raises(InputError, match=r"images\.column .*image, label.*but got 'picture'"):
        HubImages(stored, column="picture", size=64)


def test_a_column_without_images_is_refused(stored: str) -> None:
    with pytest.raises(InputError, match=r"images\.column .*label"):
        HubImages(stored, column="label", size=64)


@pytest.mark.parametrize("damage", ["cut", "text", "null"])
def test_a_corrupt_row_is_named(tmp_path: Path, damage: str) -> None:
    bad = {"cut": {"bytes": encoded(0)[:3000], "path": None}, "text": {"bytes": b"no image", "path": None}, "null": None}
    table([{"bytes": encoded(0), "path": None}, bad[damage]]).save_to_disk(tmp_path / "rows")
    images = HubImages(str(tmp_path / "rows"), size=64)
    images[0]
    with pytest.raises(InputError, match=r"Expected .*rows/train#1 to be an intact image.*on_error=skip"):
        images[1]
    assert isinstance(images.content_key(1), str), "an undecodable row still has an identity, so that it can be skipped"


def test_a_wrong_split_of_a_downloaded_repository_is_not_blamed_on_the_network(tmp_path: Path) -> None:
    (tmp_path / "repository").mkdir()
    table([{"bytes": encoded(0), "path": None}]).to_parquet(tmp_path / "repository" / "train.parquet")
    with pytest.raises(InputError, match=r"split 'validation'.*train") as caught:
        HubImages(str(tmp_path / "repository"), split="validation", size=64)
    assert "hf download" not in str(caught.value)


def test_a_folder_of_pictures_is_sent_to_images_folder(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(encoded(0))
    with pytest.raises(InputError, match="images=folder"):
        HubImages(str(tmp_path), size=64)


def test_an_unreachable_hub_says_how_to_bring_the_data() -> None:
    started = time.monotonic()
    with pytest.raises(InputError, match=r"nobody/nothing.*hf download nobody/nothing .*images\.path=DIR"):
        HubImages("nobody/nothing", size=64)
    assert time.monotonic() - started < 10, "no waiting for a network"
