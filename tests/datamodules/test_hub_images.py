"""images=hub: rows of stored data sets and of a hub on the loopback address, and sentences for what is not there."""

import io
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from datasets import Dataset, DatasetDict, Features, Image, Value
from PIL import Image as Pictures

from datamodules.images.hub import HubImages
from sdprobe.utilities.errors import InputError
from sdprobe.utilities.pictures import square
from sdprobe.utilities.rng import draw_below
from tests.hub_server import Hub


@pytest.fixture(autouse=True)
def served(hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Hub:
    """No test may ask another hub, nor write outside its folder."""
    monkeypatch.setattr(datasets.config, "HF_ENDPOINT", hub.url)
    monkeypatch.setattr(datasets.config, "HUB_DATASETS_URL", hub.url + "/datasets/{repo_id}/resolve/{revision}/{path}")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf" / "datasets")
    monkeypatch.setattr(datasets.config, "DOWNLOADED_DATASETS_PATH", tmp_path / "hf" / "downloads")
    return hub


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


def test_a_row_cannot_name_a_file_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "rows").mkdir()
    for name in ("secret.png", "rows/own.png"):
        (tmp_path / name).write_bytes(encoded(3))
    cells = [{"bytes": None, "path": path} for path in (str(tmp_path / "secret.png"), "../secret.png", "own.png")]
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    pq.write_table(pa.table({"image": pa.array(cells, kind)}), tmp_path / "rows/a.parquet")
    images = HubImages(str(tmp_path / "rows"), size=64)
    for index in (0, 1):
        with pytest.raises(InputError, match="to name a file of its folder, but got"):
            images[index]
    assert images[2]["image"].shape == (3, 64, 64)


@pytest.mark.parametrize("place", ["https://example.org/a.parquet", "hf://datasets/a/b/c.parquet", "zip://a::http://b/c.zip"])
def test_the_card_of_a_folder_makes_no_request(place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("socket.getaddrinfo", lambda *_, **__: pytest.fail("a request"))
    table([{"bytes": encoded(1), "path": None}]).to_parquet(tmp_path / "a.parquet")
    entries = {"configs": [{"config_name": "default", "data_files": [{"split": "train", "path": place}]}]}
    for name, text in {"README.md": "---\n{}---\n", ".huggingface.yaml": "{}"}.items():
        (tmp_path / name).write_text(text.format(yaml.safe_dump(entries)))
        with pytest.raises(InputError, match="to name files of its folder, but got"):
            HubImages(str(tmp_path), size=64)
        (tmp_path / name).unlink()


@pytest.mark.parametrize("name", ["a.parquet", "state.json", "data-00000-of-00001.arrow"])
def test_a_pipe_in_a_folder_of_rows_is_not_waited_for(name: str, stored: str) -> None:
    (Path(stored) / name).unlink(missing_ok=True)
    os.mkfifo(Path(stored) / name)
    with pytest.raises(InputError, match="is a pipe"):
        HubImages(stored, size=64)


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


@pytest.mark.parametrize("limit", [None, 2])
def test_an_unreachable_hub_says_how_to_bring_the_data(hub: Hub, limit: int | None) -> None:
    hub.close()
    with pytest.raises(InputError) as caught:
        HubImages("nobody/nothing", size=64, limit=limit)
    assert re.match(
        r"Expected to download nobody/nothing from .*, but it cannot be reached \(.*refused\)\. Try again\.", str(caught.value)
    )
    assert str(caught.value).endswith(
        'run `hf download nobody/nothing --repo-type dataset --include "README.md" --include "*.parquet" --local-dir DIR`, '
        "copy DIR here and use images.path=DIR."
    )


# --- tables of other tools -------------------------------------------------------------------------------------------

STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


@pytest.mark.parametrize("cells", [pa.array([{"bytes": encoded(3), "path": None}], STRUCT), pa.array([encoded(3)])])
def test_parquet_without_types_of_datasets_is_read(tmp_path: Path, cells: pa.Array) -> None:
    pq.write_table(pa.table({"image": cells}), tmp_path / "train.parquet")
    assert torch.equal(HubImages(str(tmp_path), size=64)[0]["image"], pixels(3))


def test_copies_of_a_picture_stay_together(tmp_path: Path) -> None:
    table([{"bytes": encoded(i % 3), "path": None} for i in range(9)]).save_to_disk(tmp_path / "rows")
    images = HubImages(str(tmp_path / "rows"), size=64)
    assert [images.photo(i) for i in range(9)] == ["train#0", "train#1", "train#2"] * 3


def test_a_file_is_sent_to_its_folder(tmp_path: Path) -> None:
    table([{"bytes": encoded(0), "path": None}]).to_parquet(tmp_path / "train.parquet")
    with pytest.raises(
        InputError, match=rf"dataset folder, but got '.*train\.parquet', a file\. Use images\.path={tmp_path}\."
    ):
        HubImages(str(tmp_path / "train.parquet"), size=64)


# --- the hub ---------------------------------------------------------------------------------------------------------


def pixels(seed: int) -> torch.Tensor:
    return square(Pictures.fromarray(picture(seed)), 64)


def shards(lengths: list[int], split: str = "train", first: int = 0, group: int = 100) -> dict[str, bytes]:
    """Parquet files as ``push_to_hub`` names them; the picture in a row is drawn by the number of the row."""
    files = {}
    for k, length in enumerate(lengths):
        cells = pa.array([{"bytes": encoded(first + i), "path": None} for i in range(length)], STRUCT)
        content = io.BytesIO()
        columns = {"image": cells, "label": pa.array(range(length)), "large": pa.array([bytes(5000)] * length)}
        pq.write_table(pa.table(columns), content, row_group_size=group, compression="none", use_dictionary=False)
        files[f"data/{split}-{k:05}-of-{len(lengths):05}.parquet"] = content.getvalue()
        first += length
    return files


def card(**splits: int) -> dict[str, bytes]:
    """A card as ``push_to_hub`` writes it."""
    kinds = {"image": "image", "label": "int64", "large": "binary"}
    info = {
        "features": [{"name": name, "dtype": kind} for name, kind in kinds.items()],
        "splits": [{"name": name, "num_bytes": 1, "num_examples": count} for name, count in splits.items()],
    }
    files = [{"split": name, "path": f"data/{name}-*"} for name in splits]
    front = {"dataset_info": info, "configs": [{"config_name": "default", "data_files": files}]}
    return {"README.md": f"---\n{yaml.safe_dump(front)}---\n".encode()}


def rows(images: HubImages) -> list[int]:
    """Numbers of the rows, by the names; each has its picture."""
    numbers = [int(images.name(i).removeprefix("train#")) for i in range(len(images))]
    assert all(torch.equal(images[i]["image"], pixels(number)) for i, number in enumerate(numbers))
    return numbers


def test_a_split_is_fetched_alone_and_a_second_run_makes_no_request(hub: Hub) -> None:
    train, test = shards([3, 3]), shards([2], "test")
    hub.add("me/pictures", card(train=6, test=2) | train | test, "datasets")
    assert rows(HubImages("me/pictures", size=64)) == list(range(6))
    assert hub.fetched() == {"README.md", *train}
    hub.forget()
    assert rows(HubImages("me/pictures", size=64)) == list(range(6))
    assert hub.requests == []
    assert len(HubImages("me/pictures", size=64, split="train[2:]+test")) == 6 and hub.fetched() == set(test)


LENGTHS = {"even, as datasets writes them": [5, 5, 4, 4, 4, 4], "uneven": [1, 9, 2, 8, 1, 5]}


@pytest.mark.parametrize("stated", [True, False])
@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
def test_a_limit_reads_the_shards_that_hold_its_rows(hub: Hub, lengths: list[int], stated: bool) -> None:
    files = shards(lengths, group=1)
    hub.add("me/pictures", files | (card(train=26) if stated else {}), "datasets")
    numbers = rows(HubImages("me/pictures", size=64, limit=3))
    assert numbers == sorted(draw_below(26, 3, 0, "train"))
    ends = np.cumsum(lengths)
    held = {list(files)[np.searchsorted(ends, number, side="right")] for number in numbers}
    assert len(held) < len(files)
    if stated and lengths == LENGTHS["even, as datasets writes them"]:
        assert hub.fetched() - {"README.md"} == held
    hub.forget()
    assert rows(HubImages("me/pictures", size=64, limit=3)) == numbers and hub.requests == []


def test_only_row_groups_and_the_column_of_images_are_read(hub: Hub) -> None:
    files = shards([40], group=1)
    hub.add("me/pictures", card(train=40) | files, "datasets")
    HubImages("me/pictures", size=64, limit=2)
    [content] = files.values()
    # the end of a file, of 64 KiB, is read for its footer
    assert sum(hub.sent.values()) < 2**16 + 2 * 1.1 * len(encoded(0)) + 5000 < len(content) / 4


def test_draws_depend_on_the_seed_and_larger_ones_contain_smaller_ones(hub: Hub) -> None:
    hub.add("me/pictures", card(train=30) | shards([10, 10, 10]), "datasets")
    drawn = {
        (limit, seed): rows(HubImages("me/pictures", size=64, limit=limit, seed=seed)) for limit in (4, 8) for seed in (0, 1)
    }
    assert set(drawn[4, 0]) < set(drawn[8, 0]) and drawn[4, 0] != drawn[4, 1]
    recorded = HubImages("me/pictures", size=64, limit=4, seed=1).drawn
    assert recorded == {"seed": 1, "photographs": [f"train#{number}" for number in drawn[4, 1]]}
    assert rows(HubImages("me/pictures", size=64, limit=99)) == list(range(30))


def test_rows_of_a_folder_and_of_the_hub_are_drawn_alike(hub: Hub, tmp_path: Path) -> None:
    files = card(train=12) | shards([6, 6])
    hub.add("me/pictures", files, "datasets")
    for name, content in files.items():
        (tmp_path / "copy" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "copy" / name).write_bytes(content)
    assert rows(HubImages("me/pictures", size=64, limit=4)) == rows(HubImages(str(tmp_path / "copy"), size=64, limit=4))


def test_files_in_the_cache_are_not_asked_for_again(hub: Hub) -> None:
    hub.add("me/pictures", card(train=12) | shards([6, 6]), "datasets")
    HubImages("me/pictures", size=64)
    hub.forget()
    rows(HubImages("me/pictures", size=64, limit=4))
    assert hub.fetched() == set()


def test_repositories_of_picture_files_are_read(hub: Hub) -> None:
    hub.add("me/files", {f"train/{kind}/{k}.png": encoded(k) for k in range(6) for kind in ("a",)}, "datasets")
    assert rows(HubImages("me/files", size=64)) == list(range(6))
    assert len(HubImages("me/files", size=64, limit=2)) == 2


def test_a_draw_leaves_two_lines(hub: Hub, caplog: pytest.LogCaptureFixture) -> None:
    hub.add("me/pictures", card(train=30) | shards([10, 10, 10]), "datasets")
    with caplog.at_level("INFO", "sdprobe"):
        HubImages("me/pictures", size=64, limit=2)
    first, last = (record.message for record in caplog.records if record.name.startswith("sdprobe"))
    assert re.fullmatch(
        r"Downloading me/pictures: 2 rows from [12] of 3 files, \d+\.\d kB, to .*/sdprobe/me___pictures/\w{40}", first
    )
    assert re.fullmatch(r"download me/pictures, \d+\.\d kB \(.* s\)", last)


REFUSALS: list[tuple[dict[str, Any], str]] = [
    ({"split": "validation"}, "Expected images.split to be one of train, test, but got 'validation'. Use train."),
    ({"split": "val", "limit": 2}, "Expected images.split to be one of train, test, but got 'val'. Use train."),
    ({"column": "picture"}, "Expected images.column to be one of image, label, large, but got 'picture'. Use image."),
    (
        {"revision": "v2"},
        "Expected images.revision to be a branch, tag or commit of me/pictures, but got 'v2', which it does not have. "
        "Use one of main.",
    ),
    (
        {"name": "small"},
        "Expected images.name to be one of default, the configurations of me/pictures, but got 'small'. "
        "Use images.name=default, for example.",
    ),
    (
        {"path": "me/pictrues"},
        "Expected images.path to be a dataset repository on the Hugging Face hub, but got 'me/pictrues', which does not exist "
        "there or is private. Correct the name, or log in with `hf auth login`.",
    ),
    (
        {"path": "them/gated"},
        "Expected them/gated to be open to you, but its licence has to be accepted first. Accept it at "
        "HUB/datasets/them/gated, then log in with `hf auth login`.",
    ),
    (
        {"path": "me/text"},
        "Expected me/text to hold files that the datasets library reads, but got none. Choose another data set.",
    ),
    (
        {"path": "pictures"},
        "Expected images.path to be owner/name on the Hugging Face hub or a dataset folder, but got 'pictures', which does not "
        "exist. Check the path.",
    ),
]


def test_refusals_of_the_hub_have_a_sentence_each(hub: Hub) -> None:
    hub.add("me/pictures", card(train=3, test=3) | shards([3]) | shards([3], "test"), "datasets")
    hub.add("them/gated", card(train=3) | shards([3]), "datasets", gated=True)
    hub.add("me/text", {"code.rs": b""}, "datasets")
    for options, message in REFUSALS:
        with pytest.raises(InputError) as caught:
            HubImages(**{"path": "me/pictures", "size": 64, **options})
        assert str(caught.value) == message.replace("HUB", hub.url)
    assert not any(name.endswith(".parquet") for name in hub.fetched()), "they are found before anything is downloaded"


@pytest.mark.slow
def test_the_command_in_the_message_brings_what_loads(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    closed = Hub()
    closed.close()
    with monkeypatch.context() as patch:
        patch.setattr(huggingface_hub.constants, "ENDPOINT", closed.url)
        with pytest.raises(InputError) as caught:
            HubImages("me/pictures", size=64)
    [command] = re.findall(r"`(hf download .*?)`", str(caught.value))
    hub.add("me/pictures", card(train=6) | shards([3, 3]) | {"data/train.csv": b"a,b", "model.bin": bytes(9)}, "datasets")
    words = shlex.split(command.replace("DIR", str(tmp_path / "brought")))
    subprocess.run([str(Path(sys.executable).parent / words[0]), *words[1:]], check=True, capture_output=True, timeout=120)
    assert rows(HubImages(str(tmp_path / "brought"), size=64)) == list(range(6))
    assert hub.fetched() == {"README.md", *shards([3, 3])}


def test_several_configurations_are_named_and_one_is_picked(hub: Hub, tmp_path: Path) -> None:
    files = {f"{name}/train.parquet": next(iter(shards([count]).values())) for name, count in (("small", 2), ("large", 4))}
    configs = [{"config_name": name, "data_files": f"{name}/*.parquet"} for name in ("small", "large")]
    files["README.md"] = f"---\n{yaml.safe_dump({'configs': configs})}---\n".encode()
    hub.add("me/several", files, "datasets")
    for name, content in files.items():
        (tmp_path / "several" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "several" / name).write_bytes(content)
    for path in ("me/several", str(tmp_path / "several")):
        with pytest.raises(InputError) as caught:
            HubImages(path, size=64)
        assert str(caught.value) == (
            f"Expected images.name to be one of small, large, the configurations of {path}, but got None. "
            "Use images.name=small, for example."
        )
        assert [len(HubImages(path, size=64, name=name)) for name in ("small", "large")] == [2, 4]
        assert len(HubImages(path, size=64, name="large", limit=3)) == 3


def test_offline_and_absent_from_the_cache(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add("me/pictures", card(train=3) | shards([3]), "datasets")
    HubImages("me/pictures", size=64, limit=2)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    assert len(HubImages("me/pictures", size=64, limit=2)) == 2
    for path in ("me/pictures", "me/others"):
        with pytest.raises(
            InputError, match=rf"Expected the cache .* to hold {path}, because HF_HUB_OFFLINE is set, but files are"
        ):
            HubImages(path, size=64)
