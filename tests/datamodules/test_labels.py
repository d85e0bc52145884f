"""Labels: what a file says becomes masks, on every grid, and a file that says it wrongly is refused in one sentence."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from datamodules.images.folder import FolderImages
from datamodules.labels import Labels
from datamodules.latents import LatentCache, LatentStore
from datamodules.stream import ActivationStream, Pass
from sdprobe.backbones import FrozenSD
from sdprobe.utilities.errors import InputError

COUNT = 4
SIDE = 8  # of the grids that 128-pixel images have: 16, 8, 4, 2
HEADER = "image,row,col\n"


@pytest.fixture(scope="module")
def images(save_photos: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> FolderImages:
    return FolderImages(str(save_photos(tmp_path_factory.mktemp("photos"), COUNT)), size=128)


def saved(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def archived(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.savez(stream, array)
    return stream.getvalue()


@pytest.fixture
def labels(images: FolderImages, tmp_path: Path) -> Callable[..., Labels]:
    """Labels from the contents of a CSV file (text or bytes), or of an .npy file (bytes or an array)."""

    def read(content: str | bytes | np.ndarray, ending: str = ".csv", side: int = SIDE) -> Labels:
        ending = ".npy" if isinstance(content, np.ndarray) else ending
        file = tmp_path / f"labels{ending}"
        content = saved(content) if isinstance(content, np.ndarray) else content
        file.write_bytes(content.encode() if isinstance(content, str) else content)
        return Labels(str(file), side, images)

    return read


# --- CSV -------------------------------------------------------------------------------------------------------------


def test_a_csv_names_images_by_id_or_index(labels: Callable[..., Labels]) -> None:
    found = labels(HEADER + "p002.png,0,7\n2,3,4\n0,7,0\np002.png,0,7\n")
    assert found.tokens == {2: {(0, 7), (3, 4)}, 0: {(7, 0)}}


@pytest.mark.parametrize(
    "content",
    [
        "\ufeffimage,row,col\np001.png,2,5\n",  # a spreadsheet's byte-order mark
        "image, row, col\np001.png, 2, 5\n",
        " Image ,ROW,Col\r\n p001.png ,2 , 5\r\n",
        "col,image,row,remark\n5,p001.png,2,bright\n",
        '\nimage,row,col\n\n"p001.png",2,5\n,,\n\n',
        'image,row,col\n "p001.png", "2", 5',
        "image;row;col\np001.png;2;5\n",
        "image\trow\tcol\np001.png\t2\t5\n",
        "image,row,col\np001.png,2,5\n".encode("utf-16"),
    ],
)
def test_a_csv_may_be_written_in_many_ways(labels: Callable[..., Labels], content: str | bytes) -> None:
    assert labels(content).tokens == {1: {(2, 5)}}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", r"first line of .*labels\.csv to be the header image,row,col, but got an empty file\. Add it"),
        ("\n \n", "header image,row,col, but got an empty file"),
        ("p001.png,2,5\n", r"header image,row,col, but got 'p001\.png,2,5'\. Add it"),
        ("image|row|col\np001.png|2|5\n", "but got 'image.row.col'. Add it; separate columns by commas"),
        ("image row col\n", "separate columns by commas"),
        ("image;row;col\np001.png;2,5;5\n", "whole numbers, but got '2.5' and '5'"),
        ("image,col\np001.png,2\n", "header image,row,col, but got 'image,col'"),
        ("image,row,row,col\np001.png,2,2,5\n", "but got 'image,row,row,col'"),
        (HEADER, "label at least one token, but it labels none. Use datamodule.labels=null"),
        (HEADER + "p001.png,2\n", "line 2 of .* to fill the columns image,row,col, but got 'p001.png,2'. Complete the line"),
        (HEADER + "p001.png,2,5\n\np001.png,,5\n", "line 4 of .* but got 'p001.png,,5'"),
        (HEADER + ",2,5\n", "line 2 of .* but got ',2,5'"),
        (HEADER + "a,b.png,2,5\n", "line 2 of .* quote an id that has one"),
        (HEADER + "p001.png;2;5\n", "line 2 of .* separate columns by commas"),
        (
            HEADER + "p0O1.png,2,5\n",
            r"line 2 of .* name an image, but got 'p0O1\.png'\. Use its id, such as 'p000\.png'",
        ),
        (HEADER + "/photos/p001.png,2,5\n", "name an image, but got '/photos/p001.png'"),
        (HEADER + "-1,2,5\n", "name an image, but got '-1'. .* or its index, 0 to 3; images.limit leaves out"),
        (HEADER + "p001.png,2,5\n9,2,5\n", r"images 0 to 3, but got 9 in line 3\. Raise images\.limit"),
        (HEADER + "p001.png,two,5\n", "row and col in line 2 of .* whole numbers, but got 'two' and '5'"),
        (HEADER + "p001.png,2,5.0\n", "whole numbers, but got '2' and '5.0'"),
        (HEADER + "p001.png,nan,5\n", "whole numbers, but got 'nan' and '5'"),
        (HEADER + "p001.png,2,8\n", "inside a 8×8 grid, but .* has row 2, column 8 in line 2. Set datamodule.labels_side"),
        (HEADER + "p001.png,-1,5\n", "inside a 8×8 grid, but .* has row -1, column 5 in line 2"),
        ("image,row,col\np001.png,2,5\n".encode("utf-16-le"), "but got"),  # no mark says what it is
        ("image,row,col\nü.png,2,5\n".encode("latin-1"), "CSV file in UTF-8, but it cannot be read .*Save it as CSV"),
        (b"\x89PNG\r\n\x1a\n\xff", "CSV file in UTF-8, but it cannot be read"),
        (HEADER + "x" * 200_000, "CSV file in UTF-8, but it cannot be read .*field larger"),
    ],
)
def test_a_wrong_csv_is_refused_with_what_to_mend(labels: Callable[..., Labels], content: str | bytes, message: str) -> None:
    with pytest.raises(InputError, match=f"^Expected .*{message}") as caught:
        labels(content)
    assert "\n" not in str(caught.value)


# --- .npy ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.int64, np.uint8, np.float32])
def test_a_published_row_is_an_image_a_column_and_a_row_of_a_patch(labels: Callable[..., Labels], dtype: type) -> None:
    found = labels(np.array([[3, 5, 0], [0, 6, 7]], dtype=dtype))
    assert found.tokens == {3: {(0, 4), (0, 5), (1, 4), (1, 5)}, 0: {(6, 6), (6, 7), (7, 6), (7, 7)}}, "column before row"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "array of numbers saved by numpy.save, but it cannot be read"),
        (saved(np.zeros((2, 3)))[:-8], "array of numbers saved by numpy.save, but it cannot be read"),
        (b"image,row,col\n1,2,5\n", "array of numbers saved by numpy.save, but it cannot be read"),
        (b"PK\x03\x04 no archive", "array of numbers saved by numpy.save, but it cannot be read"),
        (saved(np.array([[0, 1, None]], dtype=object)), "array of numbers saved by numpy.save, but it cannot be read .*Object"),
        (archived(np.zeros((1, 3))), r"one array, but got an archive of several \(npz\)"),
        (saved(np.zeros(3)), r"rows \(image, col, row\), but got the shape \(3,\)"),
        (saved(np.zeros((3, 2))), r"rows \(image, col, row\), but got the shape \(3, 2\)"),
        (saved(np.zeros((0, 3))), "label at least one token, but it labels none"),
        (saved(np.array([["0", "1", "2"]])), "whole numbers, but got the dtype <U1"),
        (saved(np.zeros((1, 3), dtype=bool)), "whole numbers, but got the dtype bool"),
        (saved(np.array([[0, 1, 2], [0, np.nan, 2]])), r"whole numbers from 0 on, but got \[0\.0, nan, 2\.0\] in entry 1"),
        (saved(np.array([[0, np.inf, 2]])), "whole numbers from 0 on, but got"),
        (saved(np.array([[0, 1.5, 2]])), "whole numbers from 0 on, but got"),
        (saved(np.array([[0, -1, 2]])), "whole numbers from 0 on, but got"),
        (saved(np.array([[4, 1, 2]])), r"images 0 to 3, but got 4 in entry 0\. Raise images\.limit"),
        (saved(np.array([[0, 1, 2], [1, 8, 3]])), "inside a 8×8 grid, but .* has row 2, column 8 in entry 1"),
    ],
)
def test_a_wrong_array_is_refused_with_what_to_mend(labels: Callable[..., Labels], content: bytes, message: str) -> None:
    with pytest.raises(InputError, match=f"^Expected .*{message}") as caught:
        labels(content, ".npy")
    assert "\n" not in str(caught.value)


# --- files and grids -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", [0, -8, 3, 32])
def test_a_grid_that_the_images_do_not_have_is_refused(labels: Callable[..., Labels], side: int) -> None:
    with pytest.raises(InputError, match=rf"128-pixel images have \(16, 8, 4, 2 tokens a side\), but got labels_side={side}\."):
        labels(HEADER + "0,0,0\n", side=side)


def test_a_file_is_found_from_the_home_folder(images: FolderImages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "labels.csv").write_text(HEADER + "1,2,5\n")
    assert Labels("~/labels.csv", SIDE, images).tokens == {1: {(2, 5)}}
    for path in ("~/others.csv", str(tmp_path)):
        with pytest.raises(InputError, match=f"labels in {path}, but there is no such file. Check datamodule.labels"):
            Labels(path, SIDE, images)


def test_the_digest_tells_files_apart(labels: Callable[..., Labels]) -> None:
    one, same, other = (labels(HEADER + line).digest for line in ("0,0,0\n", "0,0,0\n", "0,0,1\n"))
    assert one == same != other


# --- masks -----------------------------------------------------------------------------------------------------------


def slow_mask(places: list[tuple[int, int, int]], image: int, side: int) -> torch.Tensor:
    """A token is labelled where its square and that of a labelled token of this image share some area."""
    mask = torch.zeros(side, side, dtype=torch.bool)
    for row in range(side):
        for col in range(side):
            for other, r, c in places:
                down = row * SIDE < (r + 1) * side and r * side < (row + 1) * SIDE
                across = col * SIDE < (c + 1) * side and c * side < (col + 1) * SIDE
                mask[row, col] |= other == image and down and across
    return mask


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("published", [False, True])
def test_masks_are_the_places_of_the_file_on_any_grid(labels: Callable[..., Labels], seed: int, published: bool) -> None:
    drawn = np.random.default_rng(seed).integers(0, (COUNT, SIDE, SIDE), (5, 3)).tolist()
    if published:
        found = labels(np.array([(image, col, row) for image, row, col in drawn]))
        places = [(i, row - row % 2 + a, col - col % 2 + b) for i, row, col in drawn for a in (0, 1) for b in (0, 1)]
    else:
        found = labels(HEADER + "".join(f"{image},{row},{col}\n" for image, row, col in drawn))
        places = [(image, row, col) for image, row, col in drawn]
    for side in (2, 4, 8, 16):
        order = [3, 0, 2]
        expected = torch.stack([slow_mask(places, image, side) for image in order])
        assert torch.equal(found.masks(order, side, side), expected), side


def test_labels_reach_the_masks_of_every_layer(
    labels: Callable[..., Labels], images: FolderImages, sd: FrozenSD, tmp_path: Path
) -> None:
    marks = labels(HEADER + "p003.png,0,7\np003.png,5,2\n1,6,6\n")
    store = LatentStore(images, sd.encoder, LatentCache(tmp_path / "cache"), 0, 8, 0)
    store.prepare(range(COUNT))
    stream = ActivationStream(sd, store, Pass(("conv_in", "down_0", "mid"), (50,)), batch_size=3, labels=marks)
    seen = set()
    for batch in stream([3, 1, 0, 2]):
        for layer, grid in batch.grids.items():
            expected = [slow_mask([(3, 0, 7), (3, 5, 2), (1, 6, 6)], i, grid.shape[2]) for i in batch.image.tolist()]
            assert torch.equal(batch.masks[layer]["labelled"], torch.stack(expected)), layer
            seen.add(grid.shape[2])
    assert seen == {16, 8, 2}
