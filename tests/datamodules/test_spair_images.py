"""images=spair: a tree in SPair-71k's layout is read as it is, and what cannot be is named."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from datamodules.images import spair
from sdprobe.scenes.spair_export import export
from sdprobe.utilities.errors import InputError
from tests.datamodules.pair_trees import BOX, SOURCE, SPAIR, TARGET, add_spair

read = SPAIR.read


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Three test pairs and one each to train and validate on; the image a lies in two categories."""
    root = tmp_path / "SPair-71k"
    add_spair(root, "trn", "dog", "t", "u")
    add_spair(root, "val", "dog", "v", "w")
    add_spair(root, "test", "dog", "c", "a")
    add_spair(root, "test", "cat", "b", "a")
    add_spair(root, "test", "cat", "a", "b")
    return root


# --- what is read ----------------------------------------------------------------------------------------------------


def test_pairs_come_in_the_order_of_the_layout(tree: Path) -> None:
    images = read(tree)
    assert [(images.name(p.source), images.name(p.target)) for p in images.pairs("test")] == [
        ("dog/c.jpg", "dog/a.jpg"), ("cat/b.jpg", "cat/a.jpg"), ("cat/a.jpg", "cat/b.jpg"),
    ]  # fmt: skip
    layout = tree / "Layout" / "large" / "test.txt"
    layout.write_text("\ufeff" + "".join(f"{line}\r\n" for line in reversed(layout.read_text().splitlines())))
    again = read(tree)
    assert [again.name(p.source) for p in again.pairs("test")] == ["cat/a.jpg", "cat/b.jpg", "dog/c.jpg"]
    assert [len(images.pairs(split)) for split in ("train", "val", "test")] == [1, 1, 3]


def test_a_pair_holds_what_its_annotation_says(tree: Path) -> None:
    pair = read(tree).pairs("test")[1]
    assert (pair.category, pair.ids, pair.target_box) == ("cat", ("3", "12"), tuple(BOX))
    assert (pair.source_points, pair.target_points) == (tuple(map(tuple, SOURCE)), tuple(map(tuple, TARGET)))


def test_ids_are_strings_whatever_the_file_has(tmp_path: Path) -> None:
    add_spair(tmp_path, kps_ids=[3, 12])
    assert read(tmp_path).pairs("test")[0].ids == ("3", "12")


def test_options_of_this_format_alone_are_checked(tree: Path) -> None:
    with pytest.raises(InputError, match=r"images\.keypoints to be one of pair, image, but got 'both'"):
        read(tree, keypoints="both")
    (tree / "Layout/large/trn.txt").unlink()
    with pytest.raises(InputError, match=r"Layout/large/trn\.txt to list the train pairs of SPair-71k, .*Put it there"):
        read(tree).pairs("train")


def test_an_image_of_two_categories_is_two_items_and_one_photograph(tree: Path) -> None:
    images = read(tree)
    names = [images.name(i) for i in range(len(images))]
    assert len(names) == len(set(names)) == 8
    cat, dog = names.index("cat/a.jpg"), names.index("dog/a.jpg")
    assert images.photo(cat) == images.photo(dog) == "a.jpg"
    assert images.content_key(cat) != images.content_key(dog), "the files differ here"
    shutil.copy(tree / "JPEGImages/cat/a.jpg", tree / "JPEGImages/dog/a.jpg")
    again = read(tree)
    assert again.content_key(cat) == again.content_key(dog)
    assert again[cat]["id"] == "cat/a.jpg"


def test_pairs_per_category_counts_in_every_split_and_category(tree: Path) -> None:
    images = read(tree, pairs_per_category=1)
    assert [(p.category, images.name(p.source)) for p in images.pairs("test")] == [("dog", "dog/c.jpg"), ("cat", "cat/b.jpg")]
    assert [len(images.pairs(split)) for split in ("train", "val")] == [1, 1]


# --- keypoints of ImageAnnotation ------------------------------------------------------------------------------------


def mark(root: Path, name: str, kps: Any) -> Path:
    file = root / "ImageAnnotation" / "cat" / f"{name}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({"kps": kps}))
    return file


def test_keypoints_of_the_pictures_are_those_that_both_have_by_their_id(tmp_path: Path) -> None:
    add_spair(tmp_path)
    mark(tmp_path, "a", {"0": [1, 2], "3": None, "4": [5.5, 6], "10": [7, 8], "12": [9, 10]})
    mark(tmp_path, "b", {"12": [11, 12], "10": [13, 14.25], "4": None, "3": [1, 1], "0": [15, 16]})
    [pair] = read(tmp_path, keypoints="image").pairs("test")
    assert pair.ids == ("0", "10", "12")
    assert pair.source_points == ((1.0, 2.0), (7.0, 8.0), (9.0, 10.0))
    assert pair.target_points == ((15.0, 16.0), (13.0, 14.25), (11.0, 12.0))
    assert pair.target_box == tuple(BOX), "the rest is the pair's"
    assert read(tmp_path).pairs("test")[0].ids == ("3", "12")


@pytest.mark.parametrize(
    ("kps", "reason", "message"),
    [
        (None, "unreadable annotation", r"ImageAnnotation/cat/y\.json"),
        ({"0": [1, 2, 3]}, "unreadable annotation", r"ImageAnnotation/cat/y\.json"),
        ({"1": [1, 2]}, "no mutual keypoints", "keypoints that both pictures show"),
        ("gone", "missing annotation", r"ImageAnnotation/cat/y\.json .*but it is missing"),
    ],
)
def test_pictures_whose_keypoints_cannot_be_read_are_named_or_counted(
    tmp_path: Path, kps: Any, reason: str, message: str
) -> None:
    for ends in ("xy", "ab"):
        add_spair(tmp_path, "test", "cat", *ends)
        for name in ends:
            mark(tmp_path, name, {"0": [3, 4]})
    file = mark(tmp_path, "y", kps)
    if kps == "gone":
        file.unlink()
    with pytest.raises(InputError, match=message):
        read(tmp_path, keypoints="image")
    images = read(tmp_path, keypoints="image", on_error="skip")
    assert images.dropped == {reason: 1}
    assert [images.name(pair.source) for pair in images.pairs("test")] == ["cat/a.jpg"]


# --- pairs that cannot be used ---------------------------------------------------------------------------------------

BAD: dict[str, tuple[dict[str, Any], str, str]] = {
    "NaN point": ({"trg_kps": [[float("nan"), 3], [9, 9]]}, "keypoint outside the picture", r"\(nan, 3\)"),
    "empty box": ({"trg_bndbox": [10, 10, 10, 10]}, "empty box", "target's box .*to have a size"),
    "box inside out": ({"trg_bndbox": [30, 10, 10, 20]}, "empty box", "target's box"),
    "NaN box": ({"trg_bndbox": [0, 0, 10, float("nan")]}, "empty box", "target's box"),
    "unequal": ({"src_kps": [[1, 1]]}, "unreadable annotation", r"x-y:cat\.json .*1 keypoints for 2 kps_ids"),
    "null point": ({"src_kps": [[1, 1], None]}, "unreadable annotation", r"x-y:cat\.json to annotate a pair"),
    "huge point": ({"src_kps": [[1, 1], [10**400, 1]]}, "unreadable annotation", r"x-y:cat\.json"),
    "three edges": ({"trg_bndbox": [1, 2, 3]}, "unreadable annotation", r"x-y:cat\.json"),
    "no name": ({"src_imname": None}, "unreadable annotation", r"x-y:cat\.json"),
}


@pytest.mark.parametrize(("change", "reason", "message"), BAD.values(), ids=BAD)
def test_what_a_record_gets_wrong_is_named_or_counted(
    tmp_path: Path, change: dict[str, Any], reason: str, message: str
) -> None:
    add_spair(tmp_path, "test", "cat", "x", "y", **change)
    add_spair(tmp_path, "test", "dog", "a", "b")
    SPAIR.refused(tmp_path, reason, message)


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"{", "cannot be read"), (b"\xff\xfe\x00", "cannot be read"), (b"[1]", "a list"), (b"{}", "no key")],
)
def test_an_unreadable_annotation_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    add_spair(tmp_path, "test", "cat", "x", "y").write_bytes(content)
    add_spair(tmp_path, "test", "dog", "a", "b")
    SPAIR.refused(tmp_path, "unreadable annotation", rf"000001-x-y:cat\.json to annotate a pair, .*{message}")


def test_an_annotation_whose_colon_was_replaced_is_missed(tmp_path: Path) -> None:
    file = add_spair(tmp_path, "test", "cat", "x", "y")
    file.rename(file.with_name(file.name.replace(":", "_")))
    add_spair(tmp_path, "test", "dog", "a", "b")
    SPAIR.refused(tmp_path, "missing annotation", r"x-y:cat\.json to be the annotation of a pair, .*replaced the ':'")


@pytest.mark.parametrize("line", ["000002-x-y:zebra", "000002-x-y"])
def test_a_category_without_pictures_is_unknown(tmp_path: Path, line: str) -> None:
    add_spair(tmp_path, "test", "dog", "a", "b")
    with (tmp_path / "Layout/large/test.txt").open("a") as layout:
        layout.write(f"{line}\n\n")
    SPAIR.refused(tmp_path, "unknown category", rf"the category of pair {line} to be a folder")


# --- paths out of the root -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("on_error", ["raise", "skip"])
@pytest.mark.parametrize("line", ["../../../000009-a-b:cat", "000009-a-b:../../../../x"])
def test_a_line_of_the_layout_out_of_the_root_is_never_skipped(tree: Path, line: str, on_error: str) -> None:
    (tree / "Layout/large/test.txt").write_text(f"{line}\n")
    with pytest.raises(InputError, match="leads out of it"):
        read(tree, on_error=on_error)


# --- published counts ------------------------------------------------------------------------------------------------


def test_published_counts_add_up() -> None:
    assert len(spair.TEST_PAIRS) == 18
    assert sum(spair.TEST_PAIRS.values()) == spair.PAIRS["test"]


def test_counts_by_category_and_keypoint_are_compared(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    for category in spair.TEST_PAIRS:
        add_spair(tmp_path, "test", category)
    monkeypatch.setitem(spair.PAIRS, "test", 18)
    monkeypatch.setattr(spair, "TEST_PAIRS", dict.fromkeys(spair.TEST_PAIRS, 1))
    monkeypatch.setattr(spair, "TEST_KEYPOINTS", 36)
    read(tmp_path)
    assert not caplog.records
    monkeypatch.setitem(spair.TEST_PAIRS, "cow", 2)
    monkeypatch.setattr(spair, "TEST_KEYPOINTS", 37)
    read(tmp_path)
    assert caplog.records[0].getMessage().endswith("one: cow 1 (published 2), test keypoints 36 (published 37).")
    caplog.clear()
    monkeypatch.setitem(spair.PAIRS, "test", 19)
    add_spair(tmp_path, "test", "zebra")
    read(tmp_path)
    assert "zebra" not in caplog.text, "what was never published is no difference"
    caplog.clear()
    read(tmp_path, categories=["cat"])
    assert "keypoints" not in caplog.records[0].getMessage()


def test_pictures_of_another_size_than_stated_are_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    add_spair(tmp_path, "test", src_imsize=[600, 400, 3])
    read(tmp_path)
    assert f"1 pictures of {tmp_path} do not have the size that their pairs state, such as cat/a.jpg" in caplog.text


# --- exported scenes -------------------------------------------------------------------------------------------------


def test_an_exported_tree_is_read_back(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = tmp_path / "scenes"
    counts = export(root, images_per_category=6, size=64)
    images = read(root)
    for split, folder in {"train": "trn", "val": "val", "test": "test"}.items():
        pairs = images.pairs(split)
        assert len(pairs) == counts[folder]
        for pair, line in zip(pairs, (root / "Layout/large" / f"{folder}.txt").read_text().split(), strict=True):
            record = json.loads((root / "PairAnnotation" / folder / f"{line}.json").read_text())
            assert [list(point) for point in pair.source_points] == record["src_kps"]
            assert [list(point) for point in pair.target_points] == record["trg_kps"]
            assert list(pair.target_box) == record["trg_bndbox"]
            assert list(pair.ids) == record["kps_ids"]
            assert images.name(pair.source) == f"{record['category']}/{record['src_imname']}"
            assert images.name(pair.target) == f"{record['category']}/{record['trg_imname']}"
    shown = {(pair.source, pair.target) for split in ("train", "val", "test") for pair in images.pairs(split)}
    assert {index for pair in shown for index in pair} == set(range(len(images)))
    stored = np.asarray(Image.open(root / "JPEGImages" / images.name(0)))
    assert np.array_equal((images[0]["image"].permute(1, 2, 0) * 255).round().numpy().astype(np.uint8), stored)
    marked = read(root, keypoints="image")
    for pair, other in zip(images.pairs("test"), marked.pairs("test"), strict=True):
        corresponding = [zip(p.ids, p.source_points, p.target_points, strict=True) for p in (pair, other)]
        assert sorted(corresponding[0]) == sorted(corresponding[1]), "pictures' own keypoints are the pairs', in some order"
    assert not images.dropped
    assert not [record for record in caplog.records if record.name.startswith("datamodules")], "smaller trees are silent"
