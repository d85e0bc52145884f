"""images=spair: a tree in SPair-71k's layout is read as it is, and what cannot be is named."""

import json
import logging
import pickle
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from datamodules.images import spair
from datamodules.images.pairs import RESIZES, BadPair, PairSource
from datamodules.images.spair import SPairImages
from sdprobe.scenes.spair_export import export
from sdprobe.utilities.errors import InputError
from tests.datamodules.pair_trees import BOX, SIZE, SOURCE, TARGET, add_spair, blob, save_picture


def read(root: Path, **options: Any) -> SPairImages:
    return SPairImages(str(root), **{"size": 64} | options)


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
    assert isinstance(images, PairSource)
    assert [(images.name(p.source), images.name(p.target)) for p in images.pairs("test")] == [
        ("dog/c.jpg", "dog/a.jpg"), ("cat/b.jpg", "cat/a.jpg"), ("cat/a.jpg", "cat/b.jpg"),
    ]  # fmt: skip
    layout = tree / "Layout" / "large" / "test.txt"
    layout.write_text("".join(f"{line}\r\n" for line in reversed(layout.read_text().splitlines())))
    again = read(tree)
    assert [again.name(p.source) for p in again.pairs("test")] == ["cat/a.jpg", "cat/b.jpg", "dog/c.jpg"]
    assert [len(images.pairs(split)) for split in ("train", "val", "test")] == [1, 1, 3]


def test_a_pair_holds_what_its_annotation_says(tree: Path) -> None:
    pair = read(tree).pairs("test")[1]
    assert (pair.category, pair.ids, pair.target_box) == ("cat", ("3", "12"), tuple(BOX))
    assert pair.source_points == tuple(map(tuple, SOURCE)), "floats keep their fraction"
    assert pair.target_points == tuple(map(tuple, TARGET))
    numbers = [*pair.target_box, *(edge for point in pair.source_points + pair.target_points for edge in point)]
    assert all(type(number) is float for number in numbers)


def test_ids_are_strings_whatever_the_file_has(tmp_path: Path) -> None:
    add_spair(tmp_path, kps_ids=[3, 12])
    assert read(tmp_path).pairs("test")[0].ids == ("3", "12")


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


def test_only_pictures_of_kept_pairs_are_items(tree: Path) -> None:
    save_picture(tree / "JPEGImages" / "cat" / "unpaired.jpg")
    assert len(read(tree)) == 8
    few = read(tree, categories=["cat"], pairs_per_category=1)
    assert [few.name(i) for i in range(len(few))] == ["cat/b.jpg", "cat/a.jpg"]
    assert [len(few.pairs(split)) for split in ("train", "val", "test")] == [0, 0, 1]


def test_pairs_per_category_counts_in_every_split_and_category(tree: Path) -> None:
    images = read(tree, pairs_per_category=1)
    assert [(p.category, images.name(p.source)) for p in images.pairs("test")] == [("dog", "dog/c.jpg"), ("cat", "cat/b.jpg")]
    assert [len(images.pairs(split)) for split in ("train", "val")] == [1, 1]


def test_a_source_can_be_sent_to_workers(tree: Path) -> None:
    images = read(tree)
    copy = pickle.loads(pickle.dumps(images))
    assert copy.pairs("test") == images.pairs("test")
    assert torch.equal(copy[0]["image"], images[0]["image"])


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
        ({"1": [1, 2]}, "no mutual keypoints", "keypoints that both show"),
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


# --- pictures --------------------------------------------------------------------------------------------------------


@given(
    width=st.integers(40, 110), height=st.integers(40, 110), share=st.tuples(st.floats(0, 1), st.floats(0, 1)),
    resize=st.sampled_from(RESIZES), size=st.sampled_from([64, 128]),
)  # fmt: skip
@settings(max_examples=25)
def test_a_dot_at_a_keypoint_is_where_the_placement_says(
    tmp_path_factory: pytest.TempPathFactory, width: int, height: int, share: tuple[float, float], resize: str, size: int
) -> None:
    root = tmp_path_factory.mktemp("dots")
    x, y = (9 + part * (side - 18) for part, side in zip(share, (width, height), strict=True))
    save_picture(root / "JPEGImages/cat/a.jpg", pixels=blob(width, height, x, y))
    add_spair(root, src_kps=[[x, y]], trg_kps=[[20, 20]], kps_ids=["0"], src_imsize=[width, height, 3])
    images = read(root, size=size, resize=resize)
    pair = images.pairs("test")[0]
    assert images.picture_size(pair.source) == (width, height)
    light = images[pair.source]["image"].mean(0).double()
    light = torch.where(light > 0.2, light, 0.0)
    middle = torch.arange(size) + 0.5
    found = torch.stack([(light.sum(0) * middle).sum(), (light.sum(1) * middle).sum()]) / light.sum()
    place = images.placement(pair.source)
    wanted = place.to_input(torch.tensor(pair.source_points, dtype=torch.float64))[0]
    assert torch.allclose(found, wanted, atol=0.35), (found, wanted)
    assert torch.allclose(place.to_original(wanted[None])[0], torch.tensor([x, y], dtype=torch.float64))


def test_padding_is_black_or_the_border_and_a_squash_has_none(tmp_path: Path) -> None:
    save_picture(tmp_path / "JPEGImages/cat/a.jpg", pixels=np.full((40, 60, 3), 200, np.uint8))
    add_spair(tmp_path)
    corners = {resize: read(tmp_path, resize=resize)[0]["image"][:, 0, 0] for resize in RESIZES}
    assert torch.equal(corners["pad"], torch.zeros(3))
    assert torch.allclose(corners["replicate"], torch.tensor(200 / 255), atol=0.02)
    assert torch.allclose(corners["squash"], torch.tensor(200 / 255), atol=0.02)


def test_a_squash_scales_the_axes_apart(tree: Path) -> None:
    assert read(tree, resize="squash").placement(0).scale == (64 / SIZE[0], 64 / SIZE[1])
    assert read(tree).placement(0).offset == (0.0, 10.0)


def test_exif_orientation_does_not_move_pixels_away_from_keypoints(tree: Path) -> None:
    file = tree / "JPEGImages/cat/a.jpg"
    plain = read(tree)
    index = [plain.name(i) for i in range(len(plain))].index("cat/a.jpg")
    before = plain[index]["image"]
    stored = np.asarray(Image.open(file))
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(stored).save(file, exif=exif, quality=95, subsampling=0)
    turned = read(tree)
    assert turned.picture_size(index) == SIZE
    assert torch.allclose(turned[index]["image"], before, atol=0.1)


def test_grey_pictures_have_three_channels(tmp_path: Path) -> None:
    file = tmp_path / "JPEGImages/cat/a.jpg"
    file.parent.mkdir(parents=True)
    Image.new("L", SIZE, 100).save(file)
    add_spair(tmp_path)
    assert read(tmp_path)[0]["image"].shape == (3, 64, 64)


def test_content_keys_tell_bytes_size_and_resize_apart(tree: Path, tmp_path: Path) -> None:
    key = read(tree).content_key(0)
    shutil.copytree(tree, tmp_path / "elsewhere")
    assert read(tmp_path / "elsewhere").content_key(0) == key
    others = {read(tree, resize="squash").content_key(0), read(tree, size=128).content_key(0), read(tree).content_key(1)}
    assert len(others | {key}) == 4


def test_a_truncated_picture_is_named_when_it_is_needed(tree: Path) -> None:
    file = tree / "JPEGImages/dog/t.jpg"
    file.write_bytes(file.read_bytes()[:-400])
    with pytest.raises(InputError, match=r"Expected .*dog/t\.jpg to be an intact image.*on_error=skip"):
        read(tree)[0]


# --- pairs that cannot be used ---------------------------------------------------------------------------------------

BAD: dict[str, tuple[dict[str, Any], str, str]] = {
    "no picture": ({"trg_imname": "gone.jpg"}, "missing image", r"cat/gone\.jpg to be an image of pair 000001-x-y:cat"),
    "far point": ({"src_kps": [[10, 12], [62, 20]]}, "keypoint outside the picture", r"cat/x\.jpg, 60×40 pixels, .*\(62, 20\)"),
    "negative": ({"trg_kps": [[10, -3], [9, 9]]}, "keypoint outside the picture", r"cat/y\.jpg, .*\(10, -3\)"),
    "NaN point": ({"trg_kps": [[float("nan"), 3], [9, 9]]}, "keypoint outside the picture", r"\(nan, 3\)"),
    "no points": ({"src_kps": [], "trg_kps": [], "kps_ids": []}, "no mutual keypoints", "keypoints that both show"),
    "empty box": ({"trg_bndbox": [10, 10, 10, 10]}, "empty box", "target's box .*to have a size"),
    "box inside out": ({"trg_bndbox": [30, 10, 10, 20]}, "empty box", "target's box"),
    "NaN box": ({"trg_bndbox": [0, 0, 10, float("nan")]}, "empty box", "target's box"),
    "unequal": ({"src_kps": [[1, 1]]}, "unreadable annotation", r"x-y:cat\.json .*1 keypoints for 2 kps_ids"),
    "null point": ({"src_kps": [[1, 1], None]}, "unreadable annotation", r"x-y:cat\.json to annotate a pair"),
    "huge point": ({"src_kps": [[1, 1], [10**400, 1]]}, "unreadable annotation", r"x-y:cat\.json"),
    "three edges": ({"trg_bndbox": [1, 2, 3]}, "unreadable annotation", r"x-y:cat\.json"),
    "no name": ({"src_imname": None}, "unreadable annotation", r"x-y:cat\.json"),
}


def refused(root: Path, reason: str, message: str) -> None:
    """The one bad pair of a tree is raised, or left out and counted."""
    with pytest.raises(InputError, match=message) as caught:
        read(root)
    assert re.fullmatch(r"Expected .*, but .*\. Correct or remove it, or use images\.on_error=skip\.", str(caught.value))
    images = read(root, on_error="skip")
    assert images.dropped == {reason: 1}
    assert [images.name(p.source) for p in images.pairs("test")] == ["dog/a.jpg"]
    assert len(images) == 2


@pytest.mark.parametrize(("change", "reason", "message"), BAD.values(), ids=BAD)
def test_what_a_record_gets_wrong_is_named_or_counted(
    tmp_path: Path, change: dict[str, Any], reason: str, message: str, caplog: pytest.LogCaptureFixture
) -> None:
    add_spair(tmp_path, "test", "cat", "x", "y", **change)
    add_spair(tmp_path, "test", "dog", "a", "b")
    refused(tmp_path, reason, message)
    assert [record.getMessage() for record in caplog.records] == [f"Left out 1 of 2 pairs of {tmp_path}: 1 {reason}."]


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"{", "cannot be read"), (b"\xff\xfe\x00", "cannot be read"), (b"[1]", "a list"), (b"{}", "no key")],
)
def test_an_unreadable_annotation_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    add_spair(tmp_path, "test", "cat", "x", "y").write_bytes(content)
    add_spair(tmp_path, "test", "dog", "a", "b")
    refused(tmp_path, "unreadable annotation", rf"000001-x-y:cat\.json to annotate a pair, .*{message}")


def test_an_annotation_whose_colon_was_replaced_is_missed(tmp_path: Path) -> None:
    file = add_spair(tmp_path, "test", "cat", "x", "y")
    file.rename(file.with_name(file.name.replace(":", "_")))
    add_spair(tmp_path, "test", "dog", "a", "b")
    refused(tmp_path, "missing annotation", r"x-y:cat\.json to annotate what Layout/large lists, .*hold ':'")


def test_no_picture_at_all_is_unreadable(tmp_path: Path) -> None:
    add_spair(tmp_path, "test", "cat", "x", "y")
    (tmp_path / "JPEGImages/cat/y.jpg").write_text("this is no picture")
    add_spair(tmp_path, "test", "dog", "a", "b")
    refused(tmp_path, "unreadable image", r"cat/y\.jpg to be an intact image")


@pytest.mark.parametrize("line", ["000002-x-y:zebra", "000002-x-y"])
def test_a_category_without_pictures_is_unknown(tmp_path: Path, line: str) -> None:
    add_spair(tmp_path, "test", "dog", "a", "b")
    with (tmp_path / "Layout/large/test.txt").open("a") as layout:
        layout.write(f"{line}\n\n")
    refused(tmp_path, "unknown category", rf"the category of pair {line} to be a folder")


def test_a_keypoint_on_the_far_edge_is_inside(tmp_path: Path) -> None:
    add_spair(tmp_path, src_kps=[[0, 0], [60, 40]])
    assert read(tmp_path).pairs("test")[0].source_points[1] == (60.0, 40.0)


def test_a_box_around_points_in_a_line_has_a_size(tmp_path: Path) -> None:
    add_spair(tmp_path, trg_bndbox=[10, 5, 10, 30])
    assert read(tmp_path).pairs("test")[0].target_box == (10.0, 5.0, 10.0, 30.0)


def test_nothing_usable_is_an_error_even_where_pairs_are_skipped(tmp_path: Path) -> None:
    add_spair(tmp_path, trg_imname="gone.jpg")
    with pytest.raises(InputError, match=r"to hold usable pairs, but got 1 that cannot be used \(1 missing image\)\. Check"):
        read(tmp_path, on_error="skip")
    (tmp_path / "Layout/large/test.txt").write_text("")
    with pytest.raises(InputError, match="to hold usable pairs, but got none"):
        read(tmp_path)


def test_the_limit_counts_usable_pairs(tmp_path: Path) -> None:
    add_spair(tmp_path, "test", "cat", "x", "y", trg_bndbox=[1, 1, 1, 1])
    add_spair(tmp_path, "test", "cat", "a", "b")
    images = read(tmp_path, on_error="skip", pairs_per_category=1)
    assert [images.name(p.source) for p in images.pairs("test")] == ["cat/a.jpg"]


def test_bad_pairs_survive_other_processes() -> None:
    error = BadPair("empty box", "Expected a box, but got none.")
    copy = pickle.loads(pickle.dumps(error))
    assert (str(copy), copy.reason) == (str(error), "empty box")


# --- paths out of the root -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("on_error", ["raise", "skip"])
@pytest.mark.parametrize("name", ["../../../secret.jpg", "/etc/hostname", "../dog/../../../x.jpg", "a\0b.jpg"])
def test_a_path_out_of_the_root_is_never_skipped(tree: Path, name: str, on_error: str) -> None:
    add_spair(tree, "test", "cat", "b", "a", trg_imname=name)
    with pytest.raises(InputError, match=r"Expected every path in the dataset to stay below .*which leads out of it"):
        read(tree, on_error=on_error)


@pytest.mark.parametrize("on_error", ["raise", "skip"])
@pytest.mark.parametrize("line", ["../../../000009-a-b:cat", "000009-a-b:../../../../x"])
def test_a_line_of_the_layout_out_of_the_root_is_never_skipped(tree: Path, line: str, on_error: str) -> None:
    (tree / "Layout/large/test.txt").write_text(f"{line}\n")
    with pytest.raises(InputError, match="leads out of it"):
        read(tree, on_error=on_error)


def test_a_link_out_of_the_root_is_refused_and_one_to_the_root_is_not(tree: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tree)
    assert len(read(tmp_path / "link")) == 8
    picture = tree / "JPEGImages/cat/a.jpg"
    picture.rename(tmp_path / "outside.jpg")
    picture.symlink_to(tmp_path / "outside.jpg")
    with pytest.raises(InputError, match=r"cat/a\.jpg', which leads out of it"):
        read(tree, on_error="skip")


# --- the root, splits and options ------------------------------------------------------------------------------------


def test_a_missing_split_is_named_when_it_is_asked_for(tree: Path) -> None:
    (tree / "Layout/large/trn.txt").unlink()
    images = read(tree)
    assert len(images.pairs("test")) == 3
    with pytest.raises(InputError, match=r"Layout/large/trn\.txt to list the train pairs of SPair-71k, .*Put it there"):
        images.pairs("train")


def test_an_unknown_split_is_refused(tree: Path) -> None:
    with pytest.raises(InputError, match="split to be one of train, val, test, but got 'trn'"):
        read(tree).pairs("trn")


@pytest.mark.parametrize("place", ["..", "JPEGImages", "JPEGImages/cat", "Layout/large"])
def test_a_root_above_or_below_names_the_right_one(tree: Path, place: str) -> None:
    with pytest.raises(InputError, match=rf"images\.root to be the folder of SPair-71k .*Use images\.root={tree}\."):
        read(tree / place)


def test_a_root_that_lacks_a_part_says_where_to_put_it(tree: Path) -> None:
    shutil.rmtree(tree / "Layout")
    with pytest.raises(InputError, match=rf"which has no Layout/large\. Put Layout/large into {tree}\."):
        read(tree)


def test_a_root_that_is_no_folder_is_refused(tree: Path) -> None:
    with pytest.raises(InputError, match=r"got '/no/such/place', which does not exist\. Check the path"):
        SPairImages("/no/such/place", size=64)
    with pytest.raises(InputError, match="a file"):
        read(tree / "Layout/large/test.txt")


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"size": 100}, r"images\.size to be a positive multiple of 64"),
        ({"resize": "crop"}, r"images\.resize to be one of pad, replicate, squash, but got 'crop'"),
        ({"keypoints": "both"}, r"images\.keypoints to be one of pair, image, but got 'both'"),
        ({"on_error": "ignore"}, r"images\.on_error"),
        ({"pairs_per_category": 0}, r"images\.pairs_per_category to be at least 1, but got 0"),
        ({"categories": ["cat", "zebra"]}, r"images\.categories to be null or some of cat, dog, but got 'zebra'"),
        ({"categories": []}, r"images\.categories .*but got none"),
    ],
)
def test_unusable_options_are_refused(tree: Path, option: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        read(tree, **option)


# --- published counts ------------------------------------------------------------------------------------------------


@pytest.fixture
def full(tmp_path: Path) -> Path:
    """One test pair of each of the eighteen categories."""
    for category in spair.TEST_PAIRS:
        add_spair(tmp_path, "test", category)
    return tmp_path


def test_published_counts_add_up() -> None:
    assert len(spair.TEST_PAIRS) == 18
    assert sum(spair.TEST_PAIRS.values()) == spair.PAIRS["test"]


def test_a_tree_of_all_categories_with_other_counts_is_reported(full: Path, caplog: pytest.LogCaptureFixture) -> None:
    read(full)
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert caplog.records[0].getMessage().endswith("is not the published one: test 18 (published 12,234).")


def test_counts_by_category_and_keypoint_are_compared(
    full: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(spair.PAIRS, "test", 18)
    monkeypatch.setattr(spair, "TEST_PAIRS", dict.fromkeys(spair.TEST_PAIRS, 1))
    monkeypatch.setattr(spair, "TEST_KEYPOINTS", 36)
    read(full)
    assert not caplog.records
    monkeypatch.setitem(spair.TEST_PAIRS, "cow", 2)
    monkeypatch.setattr(spair, "TEST_KEYPOINTS", 37)
    read(full)
    assert caplog.records[0].getMessage().endswith("one: cow 1 (published 2), test keypoints 36 (published 37).")
    caplog.clear()
    monkeypatch.setitem(spair.PAIRS, "test", 19)
    add_spair(full, "test", "zebra")
    read(full)
    assert "zebra" not in caplog.text, "what was never published is no difference"
    caplog.clear()
    read(full, categories=["cat"])
    assert "keypoints" not in caplog.records[0].getMessage()


def test_pictures_of_another_size_than_stated_are_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    add_spair(tmp_path, "test", src_imsize=[600, 400, 3])
    read(tmp_path)
    assert "do not have the size their pairs state, so that keypoints may be off: 1, such as cat/a.jpg" in caplog.text


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
