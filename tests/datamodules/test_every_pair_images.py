"""What every source of pairs on disk does: order, choice of pairs, placement, pairs that cannot be used, paths and roots."""

import logging
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
from datamodules.images.folder import FolderImages
from datamodules.images.pairs import BadPair, PairSource
from datamodules.images.proposal_flow import PASCAL_CATEGORIES, WILLOW_CATEGORIES
from sdprobe.utilities.errors import InputError
from sdprobe.utilities.settings import RESIZES
from tests.datamodules.pair_trees import PASCAL, SIZE, SOURCE, SPAIR, TARGET, WILLOW, Format, add_spair, blob, save_picture
from tests.datamodules.test_folder_images import MODES, RANGES

FORMATS = {"spair": SPAIR, "pf_pascal": PASCAL, "pf_willow": WILLOW}
every_format = pytest.mark.parametrize("layout", FORMATS.values(), ids=FORMATS)


# --- which pairs and pictures ----------------------------------------------------------------------------------------


@every_format
def test_pairs_and_pictures_come_in_the_order_of_their_list(layout: Format, tmp_path: Path) -> None:
    first, second = layout.categories
    for category, source, target in ((second, "z", "y"), (first, "a", "b"), (first, "b", "a")):
        layout.add(tmp_path, category=category, source=source, target=target, points=(SOURCE, TARGET))
    save_picture(layout.picture(tmp_path, "unpaired"))
    images = layout.read(tmp_path)
    assert isinstance(images, PairSource)
    assert [Path(images.name(i)).stem for i in range(len(images))] == ["z", "y", "a", "b"]
    assert [images.photo(i) for i in range(4)] == [Path(images.name(i)).name for i in range(4)]
    assert [(p.category, p.source, p.target) for p in images.pairs("test")] == [(second, 0, 1), (first, 2, 3), (first, 3, 2)]
    pair = images.pairs("test")[0]
    assert (pair.source_points, pair.target_points) == (tuple(map(tuple, SOURCE)), tuple(map(tuple, TARGET)))
    assert pair.ids == ("0", "1"), "strings"
    numbers = [*pair.target_box, *(edge for point in pair.source_points + pair.target_points for edge in point)]
    assert all(type(number) is float for number in numbers), "floats keep their fraction"


@every_format
def test_categories_and_pairs_per_category(layout: Format, tmp_path: Path) -> None:
    first, second = layout.categories
    layout.add(tmp_path, category=first, source="x", target="t", points=([(99, 20)], [(5, 5)]))
    for category, source in ((first, "a"), (second, "b"), (first, "c")):
        layout.add(tmp_path, category=category, source=source, target="t")

    def shown(**options: Any) -> list[str]:
        images = layout.read(tmp_path, on_error="skip", **options)
        return [Path(images.name(pair.source)).stem for pair in images.pairs("test")]

    assert shown() == ["a", "b", "c"]
    assert shown(categories=[first]) == ["a", "c"] and shown(categories=second) == ["b"]
    drawn = {tuple(shown(pairs_per_category=1, seed=seed)) for seed in range(8)}
    assert drawn == {("a", "b"), ("b", "c")}, "one of each category, in the dataset's order; usable pairs count"
    assert len(layout.read(tmp_path, categories=[second])) == 2, "pairs that were not chosen are not read"
    refusals = {
        rf"images\.categories to be null or some of {re.escape(first)}, {re.escape(second)}, but got 'zebra'": {
            "categories": [first, "zebra"]
        },
        r"images\.categories .*but got none": {"categories": []},
        r"images\.pairs_per_category to be at least 1, but got 0\. Use null for all": {"pairs_per_category": 0},
        r"images\.resize to be one of pad, replicate, squash, but got 'crop'": {"resize": "crop"},
    }
    for message, option in refusals.items():
        with pytest.raises(InputError, match=message):
            shown(**option)


@every_format
def test_splits(layout: Format, tmp_path: Path) -> None:
    layout.add(tmp_path)
    images = layout.read(tmp_path)
    with pytest.raises(InputError, match="split to be one of train, val, test, but got 'trn'"):
        images.pairs("trn")
    if layout is WILLOW:
        assert not images.pairs("train") and not images.pairs("val"), "for testing only"
        return
    with pytest.raises(InputError, match=r"val.* to list the val pairs of .*, but it is missing\. Put it there"):
        images.pairs("val")


# --- pictures --------------------------------------------------------------------------------------------------------


@given(
    width=st.integers(40, 110), height=st.integers(40, 110), share=st.tuples(st.floats(0, 1), st.floats(0, 1)),
    resize=st.sampled_from(RESIZES), size=st.sampled_from([64, 128]),
)  # fmt: skip
@settings(max_examples=12)
@every_format
def test_a_dot_at_a_keypoint_is_where_the_placement_says(
    tmp_path_factory: pytest.TempPathFactory, layout: Format,
    width: int, height: int, share: tuple[float, float], resize: str, size: int,
) -> None:  # fmt: skip
    root = tmp_path_factory.mktemp("dots")
    x, y = (9 + part * (side - 18) for part, side in zip(share, (width, height), strict=True))
    save_picture(layout.picture(root, "a"), pixels=blob(width, height, x, y))
    layout.add(root, category=layout.categories[0], points=([(x, y), (15, 15)], TARGET))
    images = layout.read(root, size=size, resize=resize)
    pair = images.pairs("test")[0]
    assert images.picture_size(pair.source) == (width, height)
    light = images[pair.source]["image"].mean(0).double()
    light = torch.where(light > 0.2, light, 0.0)
    middle = torch.arange(size) + 0.5
    found = torch.stack([(light.sum(0) * middle).sum(), (light.sum(1) * middle).sum()]) / light.sum()
    place, point = images.placement(pair.source), torch.tensor(pair.source_points[:1], dtype=torch.float64)
    assert torch.allclose(found, place.to_input(point)[0], atol=0.35)
    assert torch.allclose(place.to_original(place.to_input(point)), point)


def test_padding_is_black_or_the_border_and_a_squash_has_none(tmp_path: Path) -> None:
    save_picture(SPAIR.picture(tmp_path, "a"), pixels=np.full((40, 60, 3), 200, np.uint8))
    add_spair(tmp_path)
    images = {resize: SPAIR.read(tmp_path, resize=resize) for resize in RESIZES}
    corners = {resize: source[0]["image"][:, 0, 0] for resize, source in images.items()}
    assert torch.equal(corners["pad"], torch.zeros(3))
    for resize in ("replicate", "squash"):
        assert torch.allclose(corners[resize], torch.tensor(200 / 255), atol=0.02)
    assert images["squash"].placement(0).scale == (64 / SIZE[0], 64 / SIZE[1])
    assert images["pad"].placement(0).offset == (0.0, 10.0)
    assert len({source.content_key(0) for source in images.values()}) == 3


def test_exif_orientation_does_not_move_pixels_away_from_keypoints(tmp_path: Path) -> None:
    add_spair(tmp_path)
    before, file = SPAIR.read(tmp_path)[0]["image"], SPAIR.picture(tmp_path, "a")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.asarray(Image.open(file))).save(file, exif=exif, quality=95, subsampling=0)
    turned = SPAIR.read(tmp_path)
    assert turned.picture_size(0) == SIZE
    assert torch.allclose(turned[0]["image"], before, atol=0.1)


def test_grey_pictures_have_three_channels(tmp_path: Path) -> None:
    file = SPAIR.picture(tmp_path, "a")
    file.parent.mkdir(parents=True)
    Image.new("L", SIZE, 100).save(file)
    add_spair(tmp_path)
    assert SPAIR.read(tmp_path)[0]["image"].shape == (3, 64, 64)


@every_format
@pytest.mark.parametrize("mode", sorted(MODES.keys() - {"turned JPEG"}))
def test_pixels_are_those_of_a_folder_of_pictures(layout: Format, mode: str, tmp_path: Path) -> None:
    """16 bits, transparency, palettes and inks come out alike in all sources."""
    _, picture, options, _, _ = MODES[mode]
    layout.add(tmp_path / "pairs")
    kind = {"png": "PNG", "tif": "TIFF"}.get(MODES[mode][0], "JPEG")
    picture.save(layout.picture(tmp_path / "pairs", "a"), kind, **options)
    (tmp_path / "photos").mkdir()
    picture.save(tmp_path / "photos" / "a.png", kind, **options)
    pairs = layout.read(tmp_path / "pairs")
    assert torch.equal(pairs[0]["image"], FolderImages(str(tmp_path / "photos"), size=64)[0]["image"])


@every_format
@pytest.mark.parametrize("kind", ["floating-point", "8 bits in 32"])
def test_pictures_without_a_known_range_are_named_or_counted(layout: Format, kind: str, tmp_path: Path) -> None:
    layout.add(tmp_path, source="x", target="y")
    layout.add(tmp_path)
    Image.fromarray(RANGES[kind][0]).save(layout.picture(tmp_path, "x"), "TIFF")
    layout.refused(tmp_path, "unreadable image", "to be an intact image, but it cannot be decoded .*have no standard range")


# --- pairs that cannot be used ---------------------------------------------------------------------------------------

POINTS: dict[str, tuple[list[Any], list[Any], str, str]] = {
    "far": ([SOURCE[0], (99.5, 20.25)], TARGET, "keypoint outside the picture", r"x\.\w+, 60×40 pixels, .*\(99\.5, 20\.25\)"),
    "negative": (SOURCE, [(10, -3), (9, 9)], "keypoint outside the picture", r"y\.\w+, 60×40 pixels, .*\(10, -3\)"),
    "none": ([], [], "no mutual keypoints", "keypoints that both pictures show, but got none"),
}


@every_format
@pytest.mark.parametrize(("source", "target", "reason", "message"), POINTS.values(), ids=POINTS)
def test_keypoints_that_cannot_be_are_named_or_counted(
    layout: Format, tmp_path: Path, source: list[Any], target: list[Any], reason: str, message: str,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    layout.add(tmp_path, source="x", target="y", points=(source, target))
    layout.add(tmp_path, source="a", target="b")
    layout.refused(tmp_path, reason, message)
    assert [record.getMessage() for record in caplog.records] == [f"Left out 1 of 2 pairs of {tmp_path}: 1 {reason}."]


@every_format
def test_pictures_that_are_missing_or_none_are_named_or_counted(layout: Format, tmp_path: Path) -> None:
    layout.add(tmp_path, source="x", target="y")
    layout.add(tmp_path, source="a", target="b")
    file = layout.picture(tmp_path, "y")
    file.write_text("this is no picture")
    layout.refused(tmp_path, "unreadable image", rf"{re.escape(str(file))} to be an intact image")
    file.unlink()
    layout.refused(tmp_path, "missing image", rf"{re.escape(str(file))} to be an image of (pair 000001-x-y:cat|row 1 of)")


@every_format
def test_keypoints_on_the_far_edge_are_inside_and_a_box_may_be_a_line(layout: Format, tmp_path: Path) -> None:
    line = [(7, 2), (7, 30)]
    layout.add(tmp_path, points=([(60, 40), (61, 41)], line), **({"trg_bndbox": [7, 2, 7, 30]} if layout is SPAIR else {}))
    pair = layout.read(tmp_path).pairs("test")[0]
    assert pair.source_points == ((60.0, 40.0), (61.0, 41.0)) and pair.target_box == (7.0, 2.0, 7.0, 30.0)


@every_format
def test_nothing_usable_is_an_error_even_where_pairs_are_skipped(layout: Format, tmp_path: Path) -> None:
    layout.add(tmp_path)
    layout.picture(tmp_path, "b").unlink()
    with pytest.raises(InputError, match=r"to hold usable pairs, but got 1 that cannot be used \(1 missing image\)\. Check"):
        layout.read(tmp_path, on_error="skip")
    file = tmp_path / layout.lists
    file.write_text("".join(file.read_text().splitlines(keepends=True)[: 0 if layout is SPAIR else 1]))
    with pytest.raises(InputError, match="to hold usable pairs, but got none"):
        layout.read(tmp_path)


def test_bad_pairs_survive_other_processes() -> None:
    error = BadPair("empty box", "Expected a box, but got none.")
    made, arguments = error.__reduce__()[:2]
    assert (str(made(*arguments)), made(*arguments).reason) == (str(error), "empty box")


# --- paths and roots -------------------------------------------------------------------------------------------------


@every_format
@pytest.mark.parametrize("on_error", ["raise", "skip"])
@pytest.mark.parametrize("path", ["../../../secret.png", "PF/../../../x.png", "/etc/passwd", "/x.png", "a\0b.jpg"])
def test_a_path_out_of_the_root_is_never_skipped(layout: Format, tmp_path: Path, path: str, on_error: str) -> None:
    root = tmp_path / "root"
    layout.add(root)
    layout.add(root, **{layout.path: path})
    with pytest.raises(InputError, match=r"Expected every path in the dataset to stay below .*, which leads out of it"):
        layout.read(root, on_error=on_error)


@every_format
def test_a_link_out_of_the_root_is_refused_and_one_to_the_root_is_not(layout: Format, tmp_path: Path) -> None:
    root = tmp_path / "root"
    layout.add(root)
    (tmp_path / "link").symlink_to(root)
    assert len(layout.read(tmp_path / "link")) == 2
    layout.picture(root, "a").rename(tmp_path / "outside")
    layout.picture(root, "a").symlink_to(tmp_path / "outside")
    with pytest.raises(InputError, match="which leads out of it"):
        layout.read(root, on_error="skip")


@every_format
def test_a_root_above_or_below_names_the_right_one(layout: Format, tmp_path: Path) -> None:
    root = tmp_path / "tree"
    layout.add(root)
    folders = [folder for folder in root.glob("*/") if folder.is_dir()] + [*root.glob("Layout/large")]
    for wrong in (tmp_path, *folders):
        with pytest.raises(InputError, match=rf"to be the folder of .*Use images\.root={root}\."):
            layout.read(wrong)


@every_format
def test_a_root_without_its_list_says_where_to_put_it(layout: Format, tmp_path: Path) -> None:
    layout.add(tmp_path)
    part = tmp_path / layout.lists
    shutil.rmtree(part.parent) if layout is SPAIR else part.unlink()
    with pytest.raises(
        InputError, match=rf"has no (Layout/large|test_pairs.*)\. Put (Layout/large|test_pairs.*) into {tmp_path}\."
    ):
        layout.read(tmp_path)


# --- published counts ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layout", "categories", "published"),
    [(SPAIR, [*spair.TEST_PAIRS], "12,234"), (PASCAL, PASCAL_CATEGORIES, "299"), (WILLOW, WILLOW_CATEGORIES, "900")],
    ids=FORMATS,
)
def test_all_categories_with_another_count_are_reported(
    layout: Format, categories: list[str], published: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for category in categories[1:]:
        layout.add(tmp_path, category=category)
    layout.read(tmp_path)
    assert not caplog.records, "smaller trees are silent"
    layout.add(tmp_path, category=categories[0])
    layout.read(tmp_path)
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert caplog.text.strip().endswith(f"is not the published one: test {len(categories)} (published {published}).")
