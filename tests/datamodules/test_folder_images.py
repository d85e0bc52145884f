"""images=folder: what a viewer shows is what the encoder gets, whatever the file's format, size and orientation."""

import os
import shutil
from pathlib import Path

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


def test_exif_orientation_of_a_jpeg_is_obeyed(tmp_path: Path) -> None:
    upright = np.zeros((64, 64, 3), np.uint8)
    upright[:32, :32] = (255, 0, 0)
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    Image.fromarray(np.ascontiguousarray(STORED[6](upright))).save(tmp_path / "a.JPG", exif=exif, quality=95)
    shown = pixels(tmp_path)
    assert shown[8:24, 8:24, 0].min() > 200
    assert shown[40:, :].max() < 60
    assert shown[:, 40:].max() < 60


@pytest.mark.parametrize("shape", [(64, 64), (64, 200), (200, 64), (97, 65)])
def test_the_largest_centred_square_is_kept(tmp_path: Path, shape: tuple[int, int]) -> None:
    picture = np.zeros((*shape, 3), np.uint8)
    left, top, side = centre_box(shape[1], shape[0])
    picture[top : top + side, left : left + side] = 255
    Image.fromarray(picture).save(tmp_path / "a.png")
    assert pixels(tmp_path).min() == 255, "nothing from outside the square"
    assert side == min(shape)
    assert abs(2 * left + side - shape[1]) <= 1
    assert abs(2 * top + side - shape[0]) <= 1


@given(width=st.integers(1, 5000), height=st.integers(1, 5000))
@settings(deadline=None)
def test_the_centre_box_is_square_inside_and_centred(width: int, height: int) -> None:
    left, top, side = centre_box(width, height)
    assert side == min(width, height)
    assert 0 <= left <= width - side
    assert 0 <= top <= height - side
    assert abs(width - side - 2 * left) <= 1
    assert abs(height - side - 2 * top) <= 1


def test_resizing_keeps_colours_and_directions(tmp_path: Path) -> None:
    quadrants = np.zeros((200, 200, 3), np.uint8)
    quadrants[:100, :100], quadrants[:100, 100:], quadrants[100:, :100] = (255, 0, 0), (0, 255, 0), (0, 0, 255)
    Image.fromarray(quadrants).save(tmp_path / "a.png")
    shown = pixels(tmp_path, size=128)
    assert np.array_equal(shown[20, 20].round(), (255, 0, 0))
    assert np.array_equal(shown[20, 108].round(), (0, 255, 0))
    assert np.array_equal(shown[108, 20].round(), (0, 0, 255))


def test_grey_pictures_have_three_equal_channels(tmp_path: Path) -> None:
    grey = noise(64, 64)[..., 0]
    Image.fromarray(grey).save(tmp_path / "a.png")
    assert np.allclose(pixels(tmp_path), grey[..., None], atol=1e-3)


@pytest.mark.parametrize("ending", ["png", "tif"])
def test_sixteen_bit_grey_is_scaled_not_clipped(tmp_path: Path, ending: str) -> None:
    grey = np.linspace(0, 65535, 64 * 64).reshape(64, 64).astype(np.uint16)
    Image.fromarray(grey).save(tmp_path / f"a.{ending}")
    assert np.abs(pixels(tmp_path) - grey[..., None] / 65535 * 255).max() <= 1.01


def test_palettes_are_looked_up(tmp_path: Path) -> None:
    picture = np.zeros((64, 64, 3), np.uint8)
    picture[:, :32], picture[:, 32:] = (10, 200, 30), (250, 5, 99)
    Image.fromarray(picture).quantize(2).save(tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as stored:
        assert stored.mode == "P"
    assert np.abs(pixels(tmp_path) - picture).max() <= 4


def test_transparent_pixels_stand_on_white(tmp_path: Path) -> None:
    rgba = np.zeros((64, 64, 4), np.uint8)
    rgba[:32] = (200, 0, 0, 255)
    rgba[32:48] = (0, 0, 0, 0)
    rgba[48:] = (0, 0, 0, 128)
    Image.fromarray(rgba).save(tmp_path / "a.png")
    shown = pixels(tmp_path)
    assert np.array_equal(shown[10, 10].round(), (200, 0, 0))
    assert np.array_equal(shown[40, 10].round(), (255, 255, 255))
    assert np.abs(shown[60, 10] - 127).max() <= 1


@pytest.mark.parametrize("mode", ["LA", "P"])
def test_transparency_of_grey_and_palette_pictures_stands_on_white(tmp_path: Path, mode: str) -> None:
    picture = Image.new("L", (64, 64), 0)
    if mode == "LA":
        picture.putalpha(Image.new("L", (64, 64), 0))
        picture.save(tmp_path / "a.png")
    else:
        picture.convert("P").save(tmp_path / "a.png", transparency=0)
    assert pixels(tmp_path).min() == 255


@pytest.mark.parametrize("ending", ["tif", "jpg"])
def test_cmyk_is_converted(tmp_path: Path, ending: str) -> None:
    Image.new("CMYK", (64, 64), (0, 255, 255, 0)).save(tmp_path / f"a.{ending}")
    red, green, blue = pixels(tmp_path)[32, 32]
    assert red > 240
    assert max(green, blue) < 15


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


def test_limit_takes_the_first_items(tmp_path: Path) -> None:
    for i, name in enumerate("abcd"):
        Image.fromarray(noise(64, 64, seed=i)).save(tmp_path / f"{name}.png")
    images = FolderImages(str(tmp_path), size=64, limit=2)
    assert [images.name(i) for i in range(len(images))] == ["a.png", "b.png"]
    assert len(FolderImages(str(tmp_path), size=64, limit=99)) == 4
    crops = FolderImages(str(tmp_path), size=64, limit=5, crops=3)
    assert [crops.photo(i) for i in range(len(crops))] == ["a.png"] * 3 + ["b.png"] * 2


def test_iteration_ends(tmp_path: Path) -> None:
    Image.fromarray(noise(64, 64)).save(tmp_path / "a.png")
    assert len(list(FolderImages(str(tmp_path), size=64))) == 1  # type: ignore[call-overload]


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


def test_crops_of_a_photograph_share_it_and_have_names_of_their_own(ramps: Path) -> None:
    images = FolderImages(str(ramps), size=64, crops=3)
    assert [images.photo(i) for i in range(6)] == ["tall.png"] * 3 + ["wide.png"] * 3
    assert len({images.name(i) for i in range(6)}) == 6
    assert [images[i]["id"] for i in range(6)] == [images.name(i) for i in range(6)]


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
    assert images.content_key(0) != FolderImages(str(tmp_path), size=128).content_key(0)
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


def test_damaged_files_are_named(tmp_path: Path) -> None:
    Image.fromarray(noise(300, 300)).save(tmp_path / "cut.jpg", quality=95)
    whole = (tmp_path / "cut.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.jpg").write_text("this is a text file")
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "header.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"garbage" * 10)
    images = FolderImages(str(tmp_path), size=64)
    assert len(images) == 4
    for i in range(4):
        with pytest.raises(InputError, match=rf"Expected .*{images.name(i)} to be an intact image.*on_error=skip"):
            images[i]


def test_a_missing_root_is_named() -> None:
    with pytest.raises(InputError, match=r"images\.root .*/no/such/place"):
        FolderImages("/no/such/place", size=64)


def test_a_root_that_is_a_file_is_refused(tmp_path: Path) -> None:
    Image.fromarray(noise(64, 64)).save(tmp_path / "a.png")
    with pytest.raises(InputError, match=r"images\.root to be a folder"):
        FolderImages(str(tmp_path / "a.png"), size=64)


def test_a_root_without_images_is_named(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(InputError, match=r"images\.root to hold images.*has none"):
        FolderImages(str(tmp_path), size=64)


@pytest.mark.parametrize(("size", "fix"), [(100, "64 or 128"), (500, "448 or 512"), (8, "64"), (0, "64"), (-64, "64")])
def test_a_wrong_size_says_which_would_do(tmp_path: Path, size: int, fix: str) -> None:
    with pytest.raises(InputError, match=rf"Expected images\.size to be a positive multiple of 64, but got {size}\. Use {fix}"):
        FolderImages(str(tmp_path), size=size)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"limit": 0}, r"images\.limit to be at least 1, but got 0"),
        ({"limit": -5}, r"images\.limit .*-5"),
        ({"on_error": "ignore"}, r"images\.on_error to be one of raise, skip, but got 'ignore'"),
        ({"crops": 0}, r"images\.crops to be at least 1, but got 0"),
    ],
)
def test_unusable_options_are_refused(tmp_path: Path, option: dict[str, int], message: str) -> None:
    Image.fromarray(noise(64, 64)).save(tmp_path / "a.png")
    with pytest.raises(InputError, match=message):
        FolderImages(str(tmp_path), size=64, **option)  # type: ignore[arg-type]


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
    with pytest.raises(InputError, match=r"images\.photograph to be one of file, folder, but got 'album'"):
        FolderImages(str(tmp_path), size=64, photograph="album")
