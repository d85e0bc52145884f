"""images=pf_pascal and images=pf_willow: the tables and annotations of Proposal Flow are read as they are."""

import logging
import pickle
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from datamodules.images import proposal_flow
from datamodules.images.pairs import RESIZES, PairFiles, PairSource
from datamodules.images.proposal_flow import PFPascalImages, PFWillowImages
from sdprobe.utilities.errors import InputError
from tests.datamodules.pair_trees import (
    ALPHABET,
    BOX,
    SIZE,
    SOURCE,
    TARGET,
    add_pascal,
    add_willow,
    annotate_pascal,
    append,
    blob,
    save_picture,
)

NAN = (float("nan"), float("nan"))
EXTENT = (14.0, 8.0, 41.75, 33.5)  # of TARGET


def pascal(root: Path, **options: Any) -> PFPascalImages:
    return PFPascalImages(str(root), **{"size": 64} | options)


def willow(root: Path, **options: Any) -> PFWillowImages:
    return PFWillowImages(str(root), **{"size": 64} | options)


def sources(images: PairFiles, split: str = "test") -> list[str]:
    return [images.name(pair.source) for pair in images.pairs(split)]


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    """PF-PASCAL with two test pairs, one to validate and one to train on."""
    root = tmp_path / "PF-dataset-PASCAL"
    add_pascal(root, "test", "dog", "d", "c")
    add_pascal(root, "test", "cat", "a", "b")
    add_pascal(root, "val", "cat", "e", "f")
    add_pascal(root, "trn", "dog", "g", "h", points=None)
    annotate_pascal(root, "dog", "g", [SOURCE[0], NAN, SOURCE[1], (1, 1)])
    annotate_pascal(root, "dog", "h", [TARGET[0], (2, 2), TARGET[1], NAN])
    return root


@pytest.fixture
def ducks(tmp_path: Path) -> Path:
    """PF-WILLOW with three pairs."""
    root = tmp_path / "PF-dataset"
    add_willow(root, "duck(S)", "z", "y")
    add_willow(root, "car(S)", "a", "b")
    add_willow(root, "car(S)", "b", "a")
    return root


# --- PF-PASCAL -------------------------------------------------------------------------------------------------------


def test_pascal_pairs_come_in_the_order_of_their_tables(voc: Path) -> None:
    images = pascal(voc)
    assert isinstance(images, PairSource)
    assert sources(images) == ["JPEGImages/d.jpg", "JPEGImages/a.jpg"]
    assert [pair.category for pair in images.pairs("test")] == ["dog", "cat"]
    assert [len(images.pairs(split)) for split in ("train", "val", "test")] == [1, 1, 2]
    assert len(images) == 8


def test_pascal_points_and_positional_ids(voc: Path) -> None:
    pair = pascal(voc).pairs("test")[1]
    assert pair.source_points == tuple(map(tuple, SOURCE)), "floats keep their fraction"
    assert pair.target_points == tuple(map(tuple, TARGET))
    assert all(type(edge) is float for point in pair.source_points for edge in point)
    assert pair.ids == ("0", "1")
    assert pair.target_box == EXTENT, "no annotation: the extent of the target's keypoints"


def test_pascal_box_and_part_numbers_come_from_annotations(voc: Path) -> None:
    annotate_pascal(voc, "cat", "a", [NAN, SOURCE[0], (5, 5), SOURCE[1]])
    annotate_pascal(voc, "cat", "b", [(3, 3), TARGET[0], NAN, TARGET[1]])
    pair = pascal(voc).pairs("test")[1]
    assert (pair.ids, pair.target_box) == (("1", "3"), tuple(map(float, BOX)))
    assert pair.source_points == tuple(map(tuple, SOURCE))


def test_pascal_annotations_of_other_keypoints_do_not_number_those_of_the_table(voc: Path) -> None:
    annotate_pascal(voc, "cat", "a", [NAN, SOURCE[1], SOURCE[0]])
    annotate_pascal(voc, "cat", "b", [NAN, TARGET[1], TARGET[0]])
    pair = pascal(voc).pairs("test")[1]
    assert pair.ids == ("0", "1")


def test_pascal_annotation_without_a_box_gives_the_extent_of_its_keypoints(voc: Path) -> None:
    annotate_pascal(voc, "cat", "b", [TARGET[0], NAN, TARGET[1]], box=None)
    assert pascal(voc).pairs("test")[1].target_box == EXTENT


def test_pascal_training_pairs_take_mutual_keypoints_of_annotations(voc: Path) -> None:
    pair = pascal(voc).pairs("train")[0]
    assert pair.ids == ("0", "2")
    assert pair.source_points == tuple(map(tuple, SOURCE))
    assert pair.target_points == tuple(map(tuple, TARGET))
    assert pair.target_box == tuple(map(float, BOX))


def test_pascal_rows_to_be_flipped_are_left_out(voc: Path) -> None:
    add_pascal(voc, "trn", "dog", "g", "h", points=None, flip=1)
    images = pascal(voc)
    assert len(images.pairs("train")) == 1
    assert not images.dropped


def test_pascal_training_table_is_optional_and_the_others_are_missed(voc: Path) -> None:
    for split in ("trn", "val"):
        (voc / f"{split}_pairs_pf_pascal.csv").unlink()
    images = pascal(voc)
    assert len(images.pairs("train")) == 0
    with pytest.raises(InputError, match=r"val_pairs_pf_pascal\.csv to list the val pairs of PF-PASCAL, .*Put it there"):
        images.pairs("val")


def test_pascal_keypoints_that_are_not_numbers_are_absent(tmp_path: Path) -> None:
    add_pascal(tmp_path, points=([NAN, *SOURCE], [(1, 1), *TARGET]))
    pair = pascal(tmp_path).pairs("test")[0]
    assert (pair.ids, pair.source_points) == (("1", "2"), tuple(map(tuple, SOURCE)))


@pytest.mark.parametrize(
    ("change", "reason", "message"),
    [
        ({"class": 21}, "unknown category", "the class in row 1 of .* a number from 1 to 20, but got '21'"),
        ({"class": "cat"}, "unknown category", "got 'cat'"),
        ({"XA": "10;200"}, "keypoint outside the picture", r"JPEGImages/x\.jpg, 60×40 pixels, but got \(200, 20.25\)"),
        ({"XA": "10"}, "unreadable annotation", "row 1 of .*test_pairs_pf_pascal.csv to have keypoints"),
        ({"YB": "8;abc"}, "unreadable annotation", "could not convert string to float: 'abc'"),
        ({"XA": "10;20;30", "YA": "10;20;30"}, "unreadable annotation", "3 source keypoints for 2 of the target"),
        (dict.fromkeys(("XA", "YA", "XB", "YB"), ""), "no mutual keypoints", "keypoints that both show"),
        ({"XB": "5;5", "YB": "9;9"}, "empty box", "target's box of row 1"),
        ({"target_image": "PF-dataset-PASCAL/JPEGImages/gone.jpg"}, "missing image", r"JPEGImages/gone\.jpg"),
    ],
)
def test_pascal_rows_that_cannot_be_used(tmp_path: Path, change: dict[str, Any], reason: str, message: str) -> None:
    add_pascal(tmp_path, "test", "cat", "x", "y", **change)
    add_pascal(tmp_path, "test", "dog", "a", "b")
    refused(pascal, tmp_path, reason, message, left=["JPEGImages/a.jpg"])


@pytest.mark.parametrize("content", [b"", b"not a mat file" * 40, None])
def test_pascal_annotations_that_cannot_be_read_are_named(tmp_path: Path, content: bytes | None) -> None:
    add_pascal(tmp_path, "test", "cat", "x", "y")
    add_pascal(tmp_path, "test", "dog", "a", "b")
    annotate_pascal(tmp_path, "cat", "y", TARGET if content else [(1, 2, 3)])
    if content is not None:
        (tmp_path / "Annotations/cat/y.mat").write_bytes(content)
    refused(pascal, tmp_path, "unreadable annotation", r"cat/y\.mat to hold kps", left=["JPEGImages/a.jpg"])


def test_pascal_training_pairs_need_annotations(voc: Path) -> None:
    (voc / "Annotations/dog/h.mat").unlink()
    with pytest.raises(InputError, match=r"row 1 of .*trn_pairs_pf_pascal\.csv to have keypoints, .*no file in Annotations"):
        pascal(voc)
    assert pascal(voc, on_error="skip").dropped == {"unreadable annotation": 1}


# --- PF-WILLOW -------------------------------------------------------------------------------------------------------


def test_willow_pairs_come_in_the_order_of_the_table_and_are_for_testing(ducks: Path) -> None:
    images = willow(ducks)
    assert isinstance(images, PairSource)
    assert sources(images) == ["duck(S)/z.png", "car(S)/a.png", "car(S)/b.png"]
    assert [pair.category for pair in images.pairs("test")] == ["duck(S)", "car(S)", "car(S)"]
    assert not images.pairs("train")
    assert not images.pairs("val")
    assert [images.photo(i) for i in range(len(images))] == ["z.png", "y.png", "a.png", "b.png"]


def test_willow_padding_is_no_keypoint_and_does_not_stretch_the_box(ducks: Path) -> None:
    pair = willow(ducks).pairs("test")[0]
    assert pair.target_box == EXTENT, "a box from the corner would be (0, 0, 41.75, 33.5)"
    assert pair.ids == ("0", "1")
    assert pair.source_points == tuple(map(tuple, SOURCE))


def test_willow_keypoints_on_an_edge_are_no_padding(tmp_path: Path) -> None:
    add_willow(tmp_path, points=([(0, 5), *SOURCE], [(7, 0), *TARGET]))
    pair = willow(tmp_path).pairs("test")[0]
    assert pair.ids == ("0", "1", "2")
    assert pair.target_box == (7.0, 0.0, 41.75, 33.5)


def test_willow_keypoints_that_one_picture_lacks_are_left_out(tmp_path: Path) -> None:
    add_willow(tmp_path, points=([SOURCE[0], (0, 0), SOURCE[1]], [TARGET[0], (50, 39), TARGET[1]]))
    pair = willow(tmp_path).pairs("test")[0]
    assert pair.ids == ("0", "2")
    assert pair.target_box == (14.0, 8.0, 50.0, 39.0), "the extent of all of the target's keypoints"


@pytest.mark.parametrize(
    ("change", "reason", "message"),
    [
        ({"imageB": "PF-dataset/car(S)/gone.png"}, "missing image", r"car\(S\)/gone\.png"),
        ({"imageA": "x.png"}, "unknown category", "imageA in row 1 of .*, but got 'x.png'"),
        ({"XA2": 99.5}, "keypoint outside the picture", r"car\(S\)/x\.png, 60×40 pixels, but got \(99.5, 20.25\)"),
        ({"YB1": ""}, "unreadable annotation", "row 1 of .*test_pairs_pf.csv to hold numbers"),
        ({"XA1": 0, "YA1": 0, "XA2": 0, "YA2": 0}, "no mutual keypoints", "keypoints that both show"),
        ({"XB2": 14, "YB2": 8}, "empty box", "target's box of row 1"),
    ],
)
def test_willow_rows_that_cannot_be_used(tmp_path: Path, change: dict[str, Any], reason: str, message: str) -> None:
    add_willow(tmp_path, "car(S)", "x", "y", **change)
    add_willow(tmp_path, "duck(S)", "a", "b")
    refused(willow, tmp_path, reason, message, left=["duck(S)/a.png"])


def test_willow_has_one_table(ducks: Path) -> None:
    shutil.copy(ducks / "test_pairs_pf.csv", ducks / "test_pairs.csv")
    with pytest.raises(InputError, match=r"one table test_pairs\*\.csv, but got test_pairs\.csv and test_pairs_pf\.csv"):
        willow(ducks)
    (ducks / "test_pairs_pf.csv").unlink()
    assert len(willow(ducks).pairs("test")) == 3


# --- both ------------------------------------------------------------------------------------------------------------

BOTH = pytest.mark.parametrize(
    ("add", "read"), [pytest.param(add_pascal, pascal, id="pascal"), pytest.param(add_willow, willow, id="willow")]
)
Read = Callable[..., PairFiles]


def refused(read: Read, root: Path, reason: str, message: str, left: list[str]) -> None:
    """The one bad pair of a tree is raised, or left out and counted."""
    with pytest.raises(InputError, match=message) as caught:
        read(root)
    assert re.fullmatch(r"Expected .*, but .*\. Correct or remove it, or use images\.on_error=skip\.", str(caught.value), re.S)
    images = read(root, on_error="skip")
    assert images.dropped == {reason: 1}
    assert sources(images) == left
    assert len(images) == 2


@given(
    width=st.integers(40, 110), height=st.integers(40, 110), share=st.tuples(st.floats(0, 1), st.floats(0, 1)),
    resize=st.sampled_from(RESIZES),
)  # fmt: skip
@settings(max_examples=10)
@BOTH
def test_a_dot_at_a_keypoint_is_where_the_placement_says(
    tmp_path_factory: pytest.TempPathFactory,
    add: Callable[..., None], read: Read, width: int, height: int, share: tuple[float, float], resize: str,
) -> None:  # fmt: skip
    root = tmp_path_factory.mktemp("dots")
    x, y = (9 + part * (side - 18) for part, side in zip(share, (width, height), strict=True))
    for name in ("JPEGImages/a.jpg", "car(S)/a.png"):
        save_picture(root / name, pixels=blob(width, height, x, y))
    add(root, points=([(x, y), (15, 15)], TARGET))
    images = read(root, resize=resize)
    pair = images.pairs("test")[0]
    assert images.picture_size(pair.source) == (width, height)
    light = images[pair.source]["image"].mean(0).double()
    light = torch.where(light > 0.2, light, 0.0)
    middle = torch.arange(64) + 0.5
    found = torch.stack([(light.sum(0) * middle).sum(), (light.sum(1) * middle).sum()]) / light.sum()
    point = torch.tensor(pair.source_points[:1], dtype=torch.float64)
    assert torch.allclose(found, images.placement(pair.source).to_input(point)[0], atol=0.35)


@BOTH
def test_categories_and_pairs_per_category(tmp_path: Path, add: Callable[..., None], read: Read) -> None:
    first, second = ("cat", "dog") if add is add_pascal else ("car(S)", "duck(S)")
    for category, source in ((first, "a"), (second, "b"), (first, "c")):
        add(tmp_path, category=category, source=source, target="t")
    assert len(read(tmp_path).pairs("test")) == 3
    assert [pair.category for pair in read(tmp_path, categories=[first]).pairs("test")] == [first] * 2
    assert [pair.category for pair in read(tmp_path, pairs_per_category=1).pairs("test")] == [first, second]
    with pytest.raises(InputError, match=rf"some of {re.escape(first)}, {re.escape(second)}, but got 'zebra'"):
        read(tmp_path, categories=["zebra"])


@BOTH
@pytest.mark.parametrize("on_error", ["raise", "skip"])
@pytest.mark.parametrize("path", ["PF/../../../secret.png", "/etc/passwd", "/x.png", ".."])
def test_a_path_out_of_the_root_is_never_skipped(
    tmp_path: Path, add: Callable[..., None], read: Read, path: str, on_error: str
) -> None:
    root = tmp_path / "root"
    add(root)
    add(root, **({"source_image": path, "class": 0} if add is add_pascal else {"imageA": path}))
    with pytest.raises(InputError, match=r"Expected every path in the dataset to stay below .*, which leads out of it"):
        read(root, on_error=on_error)


@BOTH
def test_a_link_out_of_the_root_is_refused(tmp_path: Path, add: Callable[..., None], read: Read) -> None:
    root = tmp_path / "root"
    add(root)
    picture = next(file for file in root.rglob("a.*") if file.suffix != ".csv")
    picture.rename(tmp_path / "outside")
    picture.symlink_to(tmp_path / "outside")
    with pytest.raises(InputError, match="which leads out of it"):
        read(root, on_error="skip")


@BOTH
def test_a_root_above_or_below_names_the_right_one(tmp_path: Path, add: Callable[..., None], read: Read) -> None:
    root = tmp_path / "tree"
    add(root)
    below = next(child for child in root.iterdir() if child.is_dir())
    for wrong in (tmp_path, below):
        with pytest.raises(InputError, match=rf"to be the folder of PF-.*Use images\.root={root}\."):
            read(wrong)


@BOTH
def test_a_root_without_its_table_says_where_to_put_it(tmp_path: Path, add: Callable[..., None], read: Read) -> None:
    add(tmp_path)
    for file in tmp_path.glob("*.csv"):
        file.unlink()
    with pytest.raises(InputError, match=rf"has no test_pairs.*\. Put test_pairs.*csv into {tmp_path}\."):
        read(tmp_path)


@BOTH
def test_a_table_of_something_else_is_refused(tmp_path: Path, add: Callable[..., None], read: Read) -> None:
    add(tmp_path)
    file = next(tmp_path.glob("*.csv"))
    file.unlink()
    append(file, {"x": 1})
    with pytest.raises(InputError, match=rf"Expected {file} to have columns .*, but it lacks"):
        read(tmp_path)
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match=rf"Expected {file} to be a CSV, but it cannot be read"):
        read(tmp_path)


@BOTH
def test_a_source_can_be_sent_to_workers(tmp_path: Path, add: Callable[..., None], read: Read) -> None:
    add(tmp_path)
    images = read(tmp_path)
    copy = pickle.loads(pickle.dumps(images))
    assert copy.pairs("test") == images.pairs("test")
    assert copy.picture_size(0) == SIZE
    assert torch.equal(copy[0]["image"], images[0]["image"])


# --- published counts ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "add", "read", "categories", "published"),
    [
        pytest.param("PASCAL_PAIRS", add_pascal, pascal, ALPHABET, "299", id="pascal"),
        pytest.param("WILLOW_PAIRS", add_willow, willow, sorted(proposal_flow.WILLOW_CATEGORIES), "900", id="willow"),
    ],
)
def test_all_categories_with_another_count_are_reported(
    tmp_path: Path, name: str, add: Callable[..., None], read: Read, categories: list[str], published: str,
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    for category in categories[1:]:
        add(tmp_path, category=category)
    read(tmp_path)
    assert not caplog.records, "smaller trees are silent"
    add(tmp_path, category=categories[0])
    read(tmp_path)
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert caplog.text.strip().endswith(f"is not the published one: test {len(categories)} (published {published}).")
    caplog.clear()
    monkeypatch.setattr(proposal_flow, name, len(categories))
    read(tmp_path)
    assert not caplog.records
