"""images=folder: what a viewer shows is what the encoder gets, whatever the file's format, size and orientation."""

import io
import logging
import os
import random
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from datamodules.images.folder import FolderImages
from sdprobe.utilities.errors import InputError
from sdprobe.utilities.pictures import centre_box

ORIENTATION = 0x0112
# where the stored rows and columns of an upright picture go, from the table in the EXIF 2.3 standard, section 4.6.4
STORED = {
    1: lambda u: u,
    2: lambda u: u[:, ::-1],
    3: lambda u: u[::-1, ::-1],
    4: lambda u: u[::-1],
    5: lambda u: u.swapaxes(0, 1),  # row 0 is the left side, column 0 the top
    6: lambda u: u[:, ::-1].swapaxes(0, 1),  # row 0 is the right side, column 0 the top
    7: lambda u: u[::-1, ::-1].swapaxes(0, 1),  # row 0 is the right side, column 0 the bottom
    8: lambda u: u[::-1].swapaxes(0, 1),  # row 0 is the left side, column 0 the bottom
}


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def pixels(root: Path, index: int = 0, size: int = 64) -> np.ndarray:
    """(size, size, 3) grey levels of an item."""
    image = FolderImages(str(root), size=size)[index]["image"]
    assert image.shape == (3, size, size)
    assert image.dtype == torch.float32
    assert image.min() >= 0
    assert image.max() <= 1
    return (image.permute(1, 2, 0) * 255).numpy()


# --- decoding --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("orientation", STORED)
def test_every_exif_orientation_is_shown_upright(tmp_path: Path, orientation: int) -> None:
    upright = noise(64, 96)
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    stored = np.ascontiguousarray(STORED[orientation](upright))
    Image.fromarray(stored).save(tmp_path / "a.png", exif=exif)
    assert np.allclose(pixels(tmp_path), upright[:, 16:80], atol=1e-3)


@given(width=st.integers(1, 5000), height=st.integers(1, 5000))
@settings(deadline=None)
def test_the_centre_box_is_square_inside_and_centred(width: int, height: int) -> None:
    left, top, side = centre_box(width, height)
    assert side == min(width, height)
    assert 0 <= left <= width - side and 0 <= top <= height - side
    assert abs(width - side - 2 * left) <= 1 and abs(height - side - 2 * top) <= 1


def test_resizing_keeps_colours_and_directions(tmp_path: Path) -> None:
    quadrants = np.zeros((200, 200, 3), np.uint8)
    quadrants[:100, :100], quadrants[:100, 100:], quadrants[100:, :100] = (255, 0, 0), (0, 255, 0), (0, 0, 255)
    Image.fromarray(quadrants).save(tmp_path / "a.png")
    shown = pixels(tmp_path, size=128)
    for row, col, colour in ((20, 20, (255, 0, 0)), (20, 108, (0, 255, 0)), (108, 20, (0, 0, 255))):
        assert np.array_equal(shown[row, col].round(), colour)


GREY = noise(64, 64)[..., :1]
DEEP = np.linspace(0, 65535, 64 * 64).reshape(64, 64).astype(np.uint16)
HALVES = np.array([[[10, 200, 30]], [[250, 5, 99]]], np.uint8).repeat(64, 1).repeat(32, 0)
CORNER = np.zeros((64, 64, 3), np.uint8)
CORNER[:32, :32] = (255, 0, 0)
CLEAR = np.repeat(np.array([[[200, 0, 0, 255]], [[0, 0, 0, 0]], [[0, 0, 0, 128]], [[9, 9, 9, 255]]], np.uint8), 16, 0).repeat(
    64, 1
)
ON_WHITE = np.repeat(np.array([[[200, 0, 0]], [[255, 255, 255]], [[127, 127, 127]], [[9, 9, 9]]]), 16, 0).repeat(64, 1)
TURNED = Image.Exif()
TURNED[ORIENTATION] = 6
JPEG = {"exif": TURNED, "quality": 100, "subsampling": 0}
# what is stored how, what is shown, and by how many grey levels a pixel may differ
MODES: dict[str, tuple[str, Image.Image, dict[str, Any], Any, float]] = {
    "turned JPEG": (
        "JPG",
        Image.fromarray(np.ascontiguousarray(STORED[6](CORNER))),
        {"exif": TURNED, "quality": 100},
        CORNER,
        80,
    ),
    "grey": ("png", Image.fromarray(GREY[..., 0]), {}, GREY, 1e-3),
    "16-bit PNG": ("png", Image.fromarray(DEEP), {}, DEEP[..., None] / 257, 1.01),
    "16-bit TIFF": ("tif", Image.fromarray(DEEP), {}, DEEP[..., None] / 257, 1.01),
    "palette": ("png", Image.fromarray(HALVES).quantize(2), {}, HALVES, 4),
    "transparent colours": ("png", Image.fromarray(CLEAR), {}, ON_WHITE, 1),
    "transparent grey": ("png", Image.new("LA", (64, 64), (0, 0)), {}, np.float64(255), 1e-3),
    "transparent palette": ("png", Image.new("P", (64, 64), 0), {"transparency": 0}, np.float64(255), 1e-3),
    "CMYK TIFF": ("tif", Image.new("CMYK", (64, 64), (0, 255, 255, 0)), {}, np.array([255, 0, 0]), 15),
    "CMYK JPEG": ("jpg", Image.new("CMYK", (64, 64), (0, 255, 255, 0)), {}, np.array([255, 0, 0]), 15),
}


@pytest.mark.parametrize("mode", MODES)
def test_what_a_viewer_shows_is_what_is_read(tmp_path: Path, mode: str) -> None:
    ending, picture, options, shown, tolerance = MODES[mode]
    picture.save(tmp_path / f"a.{ending}", **options)
    assert np.abs(pixels(tmp_path) - shown).max() <= tolerance


RANGES = {
    "floating-point": (
        np.linspace(0, 1, 64 * 64).reshape(64, 64).astype(np.float32),
        "floating-point pixels have no standard range",
    ),
    "8 bits in 32": (DEEP.astype(np.int32) // 257, "32-bit pixels have no standard range; save it with 8 or 16 bits"),
    "31 bits in 32": (DEEP.astype(np.int32) * 2**15, "32-bit pixels have no standard range"),
    "12 bits in 16": (DEEP // 16, "its 16-bit pixels reach 4095 of 65535, as those of 12 bits do; scale them so that white is"),
    "8 bits in 16": (DEEP // 257, "its 16-bit pixels reach 255 of 65535"),
}


@pytest.mark.parametrize(("values", "message"), RANGES.values(), ids=RANGES)
def test_pixels_whose_range_is_not_known_are_refused(tmp_path: Path, values: np.ndarray, message: str) -> None:
    Image.fromarray(values).save(tmp_path / "a.tif")
    with pytest.raises(InputError, match=f"a.tif to be an intact image, but it cannot be decoded .{message}"):
        pixels(tmp_path)


def test_a_16_bit_pgm_and_a_black_16_bit_picture_have_their_range(tmp_path: Path) -> None:
    (tmp_path / "a.pgm").write_bytes(b"P5 64 64 4095\n" + (DEEP // 16).astype(">u2").tobytes())  # the header states 12 bits
    assert np.abs(pixels(tmp_path) - DEEP[..., None] / 257).max() <= 1.01
    (tmp_path / "a.pgm").unlink()
    Image.fromarray(0 * DEEP).save(tmp_path / "a.png")
    assert not pixels(tmp_path).any()


# --- which files, in which order -------------------------------------------------------------------------------------


def test_nested_folders_are_searched_and_other_files_ignored(tmp_path: Path) -> None:
    for i, name in enumerate(("b.png", "a/z.jpg", "a/b/c/deep.webp", "c.JPEG")):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise(70, 64, seed=i)).save(tmp_path / name)
    for name in ("notes.txt", "a/labels.json", "table.csv", "archive.zip", "no_ending", ".DS_Store"):
        (tmp_path / name).write_text("not a picture")
    (tmp_path / "folder.png").mkdir()
    images = FolderImages(str(tmp_path), size=64)
    names = [images.name(i) for i in range(len(images))]
    assert set(names) == {"b.png", "a/z.jpg", "a/b/c/deep.webp", "c.JPEG"}
    assert [images[i]["id"] for i in range(len(images))] == names
    assert [images.photo(i) for i in range(len(images))] == names


@pytest.mark.parametrize("name", ["features.h5", "clip.mpg"])
def test_data_files_that_pil_only_identifies_are_ignored(tmp_path: Path, name: str) -> None:
    Image.fromarray(noise(64, 64)).save(tmp_path / "a.png")
    (tmp_path / name).write_bytes(
        b"\x89HDF\r\n\x1a\n" + bytes(100) if name.endswith("h5") else b"\x00\x00\x01\xb3" + bytes(100)
    )
    images = FolderImages(str(tmp_path), size=64)
    assert [images.name(i) for i in range(len(images))] == ["a.png"]


def test_the_order_is_that_of_paths_whatever_the_order_of_creation(tmp_path: Path) -> None:
    names = ["c.png", "a/2.png", "b.png", "a/1.png", "a.png"]
    orders = []
    for run, created in enumerate((names, names[::-1])):
        root = tmp_path / str(run)
        for name in created:
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(noise(64, 64)).save(root / name)
        images = FolderImages(str(root), size=64)
        orders.append([images.name(i) for i in range(len(images))])
    assert orders[0] == orders[1] == [p.as_posix() for p in sorted(map(Path, names))]


def test_crops_of_a_photograph_share_it(tmp_path: Path) -> None:
    for i, name in enumerate("abcd"):
        Image.fromarray(noise(64, 64, seed=i)).save(tmp_path / f"{name}.png")
    crops = FolderImages(str(tmp_path), size=64, crops=3)
    assert [crops.photo(i) for i in range(len(crops))] == [f"{name}.png" for name in "abcd" for _ in range(3)]


def test_dotted_paths_and_symlinks_name_files_below_the_root(tmp_path: Path) -> None:
    root, elsewhere = tmp_path / "root", tmp_path / "elsewhere"
    for folder in (root, elsewhere):
        folder.mkdir()
        Image.fromarray(noise(64, 64, seed=len(folder.name))).save(folder / "a.png")
    os.symlink(elsewhere / "a.png", root / "link.png")
    os.symlink(root, root / "loop")
    os.symlink(elsewhere / "gone.png", root / "dangling.png")
    images = FolderImages(str(root / ".." / "root"), size=64)
    names = [images.name(i) for i in range(len(images))]
    assert "a.png" in names
    assert "link.png" in names
    assert "dangling.png" not in names
    assert not any(name.startswith("/") or ".." in name for name in names)
    assert len(names) == len(set(names))
    linked = images[names.index("link.png")]["image"]
    assert torch.equal(linked, FolderImages(str(elsewhere), size=64)[0]["image"])
    assert images.content_key(names.index("link.png")) == FolderImages(str(elsewhere), size=64).content_key(0)


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    """Three pictures on another disk."""
    (tmp_path / "disk" / "b").mkdir(parents=True)
    for i, name in enumerate(("b/0.png", "1.png", "2.png")):
        Image.fromarray(noise(64, 64, seed=i)).save(tmp_path / "disk" / name)
    return tmp_path / "disk"


def test_linked_folders_are_searched_once(elsewhere: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "z").mkdir(parents=True)
    Image.fromarray(noise(64, 64, seed=9)).save(root / "z" / "own.png")
    for link, target in {"a": root / "z", "loop": root, "more": elsewhere, "again": elsewhere, "part": elsewhere / "b"}.items():
        os.symlink(target, root / link)
    images = FolderImages(str(root), size=64)
    names = [images.name(i) for i in range(len(images))]
    assert names == ["again/1.png", "again/2.png", "again/b/0.png", "z/own.png"]
    assert all(images[i]["id"] == names[i] for i in range(4))


def test_what_systems_leave_beside_pictures_is_left_out_and_counted(
    elsewhere: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (elsewhere / "._1.png").write_bytes(b"\x00\x05\x16\x07\x00\x02\x00\x00Mac OS X        " + bytes(60))
    for folder in ("@eaDir/1.png", ".thumbnails", "__MACOSX"):
        (elsewhere / folder).mkdir(parents=True)
        Image.fromarray(noise(64, 64, seed=7)).save(elsewhere / folder / "thumb.jpg")
    os.symlink(elsewhere / "gone.png", elsewhere / "dangling.png")
    (elsewhere / "phone.heic").write_bytes(b"ftypheic")
    (elsewhere / "notes.txt").write_text("no picture")
    with caplog.at_level(logging.WARNING):
        images = FolderImages(str(elsewhere), size=64)
    assert [images.name(i) for i in range(len(images))] == ["1.png", "2.png", "b/0.png"]
    assert f"left out below {elsewhere} (hidden, of a system, broken links, other formats): 6, such as" in caplog.text
    (tmp_path / ".hidden").mkdir()
    shutil.copy(elsewhere / "1.png", tmp_path / ".hidden" / "1.jfif")
    caplog.clear()
    assert len(FolderImages(str(tmp_path / ".hidden"), size=64)) == 1, "the root itself may be hidden"
    assert not caplog.records


def test_a_folder_that_cannot_be_read_is_named(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.scandir

    def scandir(path: str) -> Any:
        if Path(path).name in ("b", "lost+found"):
            raise PermissionError(13, "Permission denied", path)
        return real(path)

    (elsewhere / "lost+found").mkdir()
    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(InputError, match=rf"to be readable, but {elsewhere}/b is not .Permission denied.\. Change its perm"):
        FolderImages(str(elsewhere), size=64)
    (elsewhere / "b" / "0.png").unlink()
    (elsewhere / "b").rmdir()
    assert len(FolderImages(str(elsewhere), size=64)) == 2, "a folder of the system does not matter"


# --- crops -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ramps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures whose red counts columns and whose green counts rows, so that a crop tells where it was cut."""
    root = tmp_path_factory.mktemp("ramps")
    for name, (width, height) in {"wide": (250, 130), "tall": (90, 220)}.items():
        x, y = np.meshgrid(np.arange(width), np.arange(height))
        Image.fromarray(np.stack([x, y, 0 * x], axis=2).astype(np.uint8)).save(root / f"{name}.png")
    return root


def test_crops_are_squares_of_half_to_all_of_the_short_side_inside_the_picture(ramps: Path) -> None:
    images = FolderImages(str(ramps), size=64, crops=20)
    sides = []
    for i in range(len(images)):
        width, height = (250, 130) if images.photo(i) == "wide.png" else (90, 220)
        red, green, _ = (images[i]["image"] * 255).numpy()
        side, other = (red[32, 55] - red[32, 8]) * 64 / 47, (green[55, 32] - green[8, 32]) * 64 / 47
        assert side == pytest.approx(other, abs=4), "a square"
        short = min(width, height)
        assert 0.5 * short - 4 < side < short + 4
        assert red.min() >= 0
        assert red.max() < width
        assert green.min() >= 0
        assert green.max() < height
        assert red[32, 32] - side / 2 > -4
        assert red[32, 32] + side / 2 < width + 4
        sides.append(side / short)
    assert min(sides) < 0.6
    assert max(sides) > 0.9


def test_crops_are_deterministic_and_keyed_by_seed_and_name_alone(ramps: Path, tmp_path: Path) -> None:
    first = FolderImages(str(ramps), size=64, crops=3)
    again = FolderImages(str(ramps), size=64, crops=3)
    other = FolderImages(str(ramps), size=64, crops=3, seed=1)
    for i in reversed(range(6)):
        assert torch.equal(first[i]["image"], again[i]["image"])
        assert not torch.equal(first[i]["image"], other[i]["image"])
    assert not torch.equal(first[0]["image"], first[1]["image"])
    shutil.copytree(ramps, tmp_path / "more")
    Image.fromarray(noise(64, 64)).save(tmp_path / "more" / "aaa.png")
    more = FolderImages(str(tmp_path / "more"), size=64, crops=3)
    assert torch.equal(more[3]["image"], first[0]["image"]), "a new file does not move the crops of others"


@given(width=st.integers(1, 40), height=st.integers(1, 40))
@example(1, 1)
@settings(max_examples=15, deadline=None)
def test_pictures_of_any_size_can_be_cropped(tmp_path_factory: pytest.TempPathFactory, width: int, height: int) -> None:
    root = tmp_path_factory.mktemp("small")
    Image.new("RGB", (width, height), "red").save(root / "a.png")
    images = FolderImages(str(root), size=64, crops=2)
    assert images[1]["image"].shape == (3, 64, 64)


# --- identity of content ---------------------------------------------------------------------------------------------


def test_content_keys_name_bytes_and_size_but_not_the_file(tmp_path: Path) -> None:
    for name, seed in {"a": 0, "b": 0, "c": 1}.items():
        Image.fromarray(noise(64, 64, seed)).save(tmp_path / f"{name}.png")
    images = FolderImages(str(tmp_path), size=64)
    assert images.content_key(0) == images.content_key(1), "a copy is the same content"
    assert images.content_key(0) != images.content_key(2)
    assert images.content_key(0) == FolderImages(str(tmp_path), size=64, limit=1, seed=7).content_key(0)
    Image.fromarray(noise(64, 64, 5)).save(tmp_path / "a.png")
    assert FolderImages(str(tmp_path), size=64).content_key(0) != images.content_key(0), "new bytes, new key"


def test_content_keys_of_crops_differ_where_pixels_do(ramps: Path) -> None:
    sources = [FolderImages(str(ramps), size=64, crops=crops, seed=seed) for crops, seed in ((1, 0), (3, 0), (3, 1))]
    by_key: dict[str, bytes] = {}
    for source in sources:
        for i in range(len(source)):
            image = source[i]["image"].numpy().tobytes()
            assert by_key.setdefault(source.content_key(i), image) == image, "one key, one picture"
    assert len(by_key) == 2 + 6 + 6


# --- what cannot be used ---------------------------------------------------------------------------------------------


def test_files_that_are_no_pictures_are_named(tmp_path: Path) -> None:
    (tmp_path / "text.jpg").write_text("this is a text file")
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "header.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"garbage" * 10)
    images = FolderImages(str(tmp_path), size=64)
    assert len(images) == 3
    for i in range(3):
        with pytest.raises(InputError, match=rf"Expected .*{images.name(i)} to be an intact image.*on_error=skip"):
            images[i]


def test_copies_of_a_photograph_under_other_names_stay_together(tmp_path: Path) -> None:
    for i, name in enumerate("abc"):
        Image.fromarray(noise(64, 64, seed=i)).save(tmp_path / f"{name}.png")
    (tmp_path / "z-copy.png").write_bytes((tmp_path / "b.png").read_bytes())
    images = FolderImages(str(tmp_path), size=64)
    assert [images.photo(i) for i in range(4)] == ["a.png", "b.png", "c.png", "b.png"]
    assert [images.name(i) for i in range(4)] == ["a.png", "b.png", "c.png", "z-copy.png"]


def test_a_folder_can_be_one_photograph_in_many_sizes(tmp_path: Path) -> None:
    for i, name in enumerate(("lake/1.png", "lake/2.png", "hill/1.png")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(noise(64, 64, seed=i)).save(tmp_path / name)
    images = FolderImages(str(tmp_path), size=64, photograph="folder")
    assert [images.photo(i) for i in range(3)] == ["hill", "lake", "lake"]


def test_options_of_folders_alone_are_checked(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"images\.crops to be at least 1, but got 0"):
        FolderImages(str(tmp_path), size=64, crops=0)
    with pytest.raises(InputError, match=r"images\.photograph to be one of file, folder, but got 'album'"):
        FolderImages(str(tmp_path), size=64, photograph="album")


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "AVIF", "TIFF", "BMP", "GIF", "PPM", "JPEG2000"])
def test_a_damaged_picture_is_told_or_read_whatever_its_decoder_raises(kind: str, tmp_path: Path) -> None:
    draw, file = random.Random(0), io.BytesIO()
    Image.effect_noise((64, 64), 60).convert("RGB").save(file, kind)
    for number in range(60):
        content = bytearray(file.getvalue())
        if number % 3 == 0:
            content = content[: draw.randrange(1, len(content))]
        for _ in range(draw.randrange(1, 8)):
            content[draw.randrange(min(len(content), (100, 10**6)[number % 2]))] = draw.randrange(256)
        (tmp_path / "a.png").write_bytes(content)
        with suppress(InputError):
            FolderImages(str(tmp_path), size=64)[0]


def test_a_name_that_is_not_text_is_named(tmp_path: Path) -> None:
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    os.rename(tmp_path / "a.png", os.fsencode(tmp_path) + b"/\xff.png")
    with pytest.raises(InputError, match="Expected names of files in UTF-8"):
        FolderImages(str(tmp_path), size=64)
