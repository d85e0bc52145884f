"""images=pf_pascal and images=pf_willow: the tables and annotations of Proposal Flow are read as they are."""

import csv
import io
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sdprobe.utilities.errors import InputError
from tests.datamodules.pair_trees import (
    BOX,
    PASCAL,
    SOURCE,
    TARGET,
    WILLOW,
    Format,
    add_pascal,
    add_willow,
    annotate_pascal,
    append,
)

pascal, willow = PASCAL.read, WILLOW.read
NAN = (float("nan"), float("nan"))
EXTENT = (14.0, 8.0, 41.75, 33.5)  # of TARGET


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


# --- PF-PASCAL -------------------------------------------------------------------------------------------------------


def test_pascal_points_and_positional_ids(voc: Path) -> None:
    pair = pascal(voc).pairs("test")[1]
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
    assert [len(pascal(voc).pairs(split)) for split in ("val", "test")] == [1, 2]
    (voc / "Annotations/dog/h.mat").unlink()
    with pytest.raises(InputError, match=r"row 1 of .*trn_pairs_pf_pascal\.csv to have keypoints, .*no file in Annotations"):
        pascal(voc)
    assert pascal(voc, on_error="skip").dropped == {"unreadable annotation": 1}


def test_pascal_rows_to_be_flipped_are_left_out(voc: Path) -> None:
    add_pascal(voc, "trn", "dog", "g", "h", points=None, flip=1)
    images = pascal(voc)
    assert len(images.pairs("train")) == 1
    assert not images.dropped


def test_pascal_training_table_is_optional(voc: Path) -> None:
    (voc / "trn_pairs_pf_pascal.csv").unlink()
    assert len(pascal(voc).pairs("train")) == 0


def test_pascal_keypoints_that_are_not_numbers_are_absent(tmp_path: Path) -> None:
    add_pascal(tmp_path, points=([NAN, *SOURCE], [(1, 1), *TARGET]))
    pair = pascal(tmp_path).pairs("test")[0]
    assert (pair.ids, pair.source_points) == (("1", "2"), tuple(map(tuple, SOURCE)))


@pytest.mark.parametrize(
    ("change", "reason", "message"),
    [
        ({"class": 21}, "unknown category", "Expected class in row 1 of .* a number from 1 to 20, but got '21'"),
        ({"class": "cat"}, "unknown category", "got 'cat'"),
        ({"XA": "10"}, "unreadable annotation", "row 1 of .*test_pairs_pf_pascal.csv to have keypoints"),
        ({"YB": "8;abc"}, "unreadable annotation", "could not convert string to float: 'abc'"),
        ({"XA": "10;20;30", "YA": "10;20;30"}, "unreadable annotation", "3 source keypoints for 2 of the target"),
        ({"XB": "5;5", "YB": "9;9"}, "empty box", "target's box of row 1"),
    ],
)
def test_pascal_rows_that_cannot_be_used(tmp_path: Path, change: dict[str, Any], reason: str, message: str) -> None:
    add_pascal(tmp_path, "test", "cat", "x", "y", **change)
    add_pascal(tmp_path, "test", "dog", "a", "b")
    PASCAL.refused(tmp_path, reason, message)


@pytest.mark.parametrize("content", [b"", b"not a mat file" * 40, None])
def test_pascal_annotations_that_cannot_be_read_are_named(tmp_path: Path, content: bytes | None) -> None:
    add_pascal(tmp_path, "test", "cat", "x", "y")
    add_pascal(tmp_path, "test", "dog", "a", "b")
    annotate_pascal(tmp_path, "cat", "y", TARGET if content else [(1, 2, 3)])
    if content is not None:
        (tmp_path / "Annotations/cat/y.mat").write_bytes(content)
    PASCAL.refused(tmp_path, "unreadable annotation", r"cat/y\.mat to hold kps")


# --- PF-WILLOW -------------------------------------------------------------------------------------------------------


def test_willow_padding_is_no_keypoint_and_does_not_stretch_the_box(tmp_path: Path) -> None:
    add_willow(tmp_path)
    pair = willow(tmp_path).pairs("test")[0]
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
        ({"imageA": "x.png"}, "unknown category", "imageA in row 1 of .*, but got 'x.png'"),
        ({"YB1": ""}, "unreadable annotation", "row 1 of .*test_pairs_pf.csv to have keypoints"),
        ({"XB2": 14, "YB2": 8}, "empty box", "target's box of row 1"),
    ],
)
def test_willow_rows_that_cannot_be_used(tmp_path: Path, change: dict[str, Any], reason: str, message: str) -> None:
    add_willow(tmp_path, "car(S)", "x", "y", **change)
    add_willow(tmp_path, "duck(S)", "a", "b")
    WILLOW.refused(tmp_path, reason, message)


def test_willow_has_one_table(tmp_path: Path) -> None:
    add_willow(tmp_path)
    shutil.copy(tmp_path / "test_pairs_pf.csv", tmp_path / "test_pairs.csv")
    with pytest.raises(InputError, match=r"one table test_pairs\*\.csv, but got test_pairs\.csv and test_pairs_pf\.csv"):
        willow(tmp_path)
    (tmp_path / "test_pairs_pf.csv").unlink()
    assert len(willow(tmp_path).pairs("test")) == 1


# --- both ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", [PASCAL, WILLOW], ids=["pascal", "willow"])
def test_a_table_of_something_else_is_refused(tmp_path: Path, layout: Format) -> None:
    layout.add(tmp_path)
    file = tmp_path / layout.lists
    file.unlink()
    append(file, {"x": 1})
    with pytest.raises(InputError, match=rf"Expected {file} to have columns .*, but it lacks"):
        layout.read(tmp_path)
    file.write_bytes(b"\xff\xfe\x00")
    fix = r"Separate its columns by commas and save it in UTF-8, or get the file again\."
    with pytest.raises(InputError, match=rf"Expected {file} to be a CSV file in UTF-8, but it cannot be read .*{fix}"):
        layout.read(tmp_path)


def by_tabs(text: str) -> str:
    return text.replace(",", "\t")


def by_semicolons(text: str) -> str:
    """As spreadsheets save a table where the comma is the decimal sign; cells with semicolons are quoted."""
    rows = csv.reader(io.StringIO(text))
    out = io.StringIO()
    csv.writer(out, delimiter=";").writerows([[re.sub(r"(\d)\.(\d)", r"\1,\2", cell) for cell in row] for row in rows])
    return out.getvalue()


DIALECTS: dict[str, Callable[[str], bytes]] = {
    "tabs": lambda text: by_tabs(text).encode(),
    "semicolons and decimal commas": lambda text: by_semicolons(text).encode(),
    "byte-order mark": lambda text: text.encode("utf-8-sig"),
    "UTF-16": lambda text: by_tabs(text).encode("utf-16"),
    "UTF-16, big-endian": lambda text: b"\xfe\xff" + text.encode("utf-16-be"),
    "spaces": lambda text: text.replace(",", " , ").encode(),
    "capitals": lambda text: (text.partition("\n")[0].upper() + "\n" + text.partition("\n")[2]).encode(),
    "backslashes": lambda text: re.sub(r"/(?=[\w.]+(?:jpg|png))", r"\\", text).encode(),
    "bars": lambda text: text.replace(";", "|").encode(),
}


@pytest.mark.parametrize("layout", [PASCAL, WILLOW], ids=["pascal", "willow"])
@pytest.mark.parametrize("dialect", DIALECTS)
def test_tables_that_spreadsheets_saved_are_read(tmp_path: Path, layout: Format, dialect: str) -> None:
    layout.add(tmp_path)
    file = tmp_path / layout.lists
    [expected] = layout.read(tmp_path).pairs("test")
    assert any(not x.is_integer() for x, _ in expected.source_points)
    content = DIALECTS[dialect](file.read_text())
    assert content != file.read_bytes() or dialect == "bars", "PF-WILLOW has no lists in cells"
    file.write_bytes(content)
    assert layout.read(tmp_path).pairs("test") == (expected,)


def test_pascal_tables_may_have_the_name_that_other_authors_give_them(voc: Path) -> None:
    (voc / "test_pairs_pf_pascal.csv").rename(voc / "test_pairs.csv")
    assert len(PASCAL.read(voc).pairs("test"))


@pytest.mark.parametrize("layout", [PASCAL, WILLOW], ids=["pascal", "willow"])
def test_cells_that_no_column_names_are_refused(tmp_path: Path, layout: Format) -> None:
    """An unquoted list of coordinates in a file with semicolons would otherwise shift those behind it."""
    layout.add(tmp_path)
    file = tmp_path / layout.lists
    header, row = file.read_text().splitlines()
    file.write_text(f"{header}\n{row},3\n")
    with pytest.raises(InputError, match=rf"rows of {file} to have \d+ cells, .* Quote cells that contain the separator"):
        layout.read(tmp_path)
    file.write_text(f"{header},{header.split(',')[0].upper()}\n{row},a\n")
    with pytest.raises(InputError, match=r"to have one column \w+, but got 2\. Remove the others"):
        layout.read(tmp_path)


def test_tables_may_be_written_by_a_spreadsheet_and_rows_may_be_short(tmp_path: Path) -> None:
    add_willow(tmp_path, source="x", target="y")
    add_willow(tmp_path)
    file = tmp_path / WILLOW.lists
    header, first, second = file.read_text().splitlines()
    spaced = ", ".join(second.split(","))
    file.write_text(f"\ufeff{header},remark\r\n\r\n{first.rpartition(',')[0]}\r\n{spaced},3\r\n")
    WILLOW.refused(tmp_path, "unreadable annotation", "row 1 of .*could not convert string to float: ''")
