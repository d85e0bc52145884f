"""A limit draws photographs, spread over folders, by a seed of its own, and the run says which."""

import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datamodules.images.folder import FolderImages
from datamodules.images.nyu import NYUDepth
from datamodules.images.scenes import Scenes
from datamodules.images.spair import SPairImages
from datamodules.images.views import FlipBalanced, RandomCrops
from tests.datamodules.pair_trees import add_spair, save_picture

CLASSES = ("ant", "bee", "cow", "dog")


@pytest.fixture(scope="module")
def classes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder sorted by class, with 10, 10, 2 and 10 photographs."""
    root = tmp_path_factory.mktemp("classes")
    for name in CLASSES:
        for number in range(2 if name == "cow" else 10):
            pixels = np.random.default_rng([number, ord(name[0])]).integers(0, 256, (64, 64, 3), dtype=np.uint8)
            (root / name).mkdir(exist_ok=True)
            Image.fromarray(pixels).save(root / name / f"{number:02}.png")
    return root


def names(images: object) -> list[str]:
    return [images.name(i) for i in range(len(images))]  # type: ignore[arg-type, attr-defined]


def test_a_folder_sorted_by_class_gives_all_classes(classes: Path) -> None:
    images = FolderImages(str(classes), size=64, limit=8)
    assert Counter(name.split("/")[0] for name in names(images)) == dict.fromkeys(CLASSES, 2)
    assert names(images) == sorted(names(images)) != names(FolderImages(str(classes), size=64, limit=8, seed=1))
    assert images.drawn == {"seed": 0, "of": 32, "photographs": names(images)}
    assert FolderImages(str(classes), size=64).drawn is None


def test_a_limit_counts_photographs_not_crops_and_takes_one_of_exact_copies(classes: Path, tmp_path: Path) -> None:
    images = FolderImages(str(classes), size=64, limit=8, crops=3)
    assert len(images) == 24 and len({images.photo(i) for i in range(24)}) == 8
    assert {name.split("#")[0] for name in names(images)} == set(names(FolderImages(str(classes), size=64, limit=8)))
    first = (classes / "ant" / "00.png").read_bytes()
    for number in range(9):
        (tmp_path / f"{number}.png").write_bytes(first)
    save_picture(tmp_path / "other.png")
    assert len(FolderImages(str(tmp_path), size=64, limit=5)) == 2


def test_photographs_that_are_folders_are_drawn_whole(classes: Path) -> None:
    images = FolderImages(str(classes), size=64, limit=2, photograph="folder")
    drawn = {images.photo(i) for i in range(len(images))}
    assert len(drawn) == 2 and set(names(images)) == {
        f"{name}/{path.name}" for name in drawn for path in (classes / name).iterdir()
    }
    assert images.drawn == {"seed": 0, "of": 4, "photographs": sorted(drawn)}


def test_one_more_file_replaces_at_most_one(classes: Path, tmp_path: Path) -> None:
    before = set(names(FolderImages(str(classes), size=64, limit=12)))
    shutil.copytree(classes, tmp_path / "more")
    save_picture(tmp_path / "more" / "ant" / "new.png")
    after = set(names(FolderImages(str(tmp_path / "more"), size=64, limit=12)))
    assert len(after) == 12 and len(before - after) <= 1


@pytest.mark.parametrize("make", [lambda images: FlipBalanced(images, 64, 16), lambda images: RandomCrops(images, 64, 4)])
def test_views_of_photographs_are_of_all_folders_and_those_of_scenes_of_the_first(make, classes: Path) -> None:
    images = make(FolderImages(str(classes), size=64))
    assert {images.name(i).split("/")[0] for i in range(len(images))} == set(CLASSES)
    assert images[len(images) - 1]["id"] == images.name(len(images) - 1)
    scenes = make(Scenes(64, 10))
    assert {scenes.photo(i) for i in range(len(scenes))} == {Scenes(64, 10).photo(i) for i in range(len(scenes.chosen))}


def test_pairs_with_depth_are_spread_over_scenes(tmp_path: Path) -> None:
    for scene, count in {"attic_0001a": 5, "attic_0001b": 5, "bath_0001": 9, "cellar_0001": 1}.items():
        for number in range(count):
            save_picture(tmp_path / scene / f"rgb_{number:05}.png")
            Image.fromarray(np.full((40, 60), 1000, np.uint16)).save(tmp_path / scene / f"sync_depth_{number:05}.png")
    images = NYUDepth(str(tmp_path), size=64, limit=7)
    assert Counter(images.photo(i) for i in range(7)) == {"attic_0001": 3, "bath_0001": 3, "cellar_0001": 1}
    assert images.drawn == {"seed": 0, "of": 20, "photographs": names(images)}


def test_pairs_of_a_category_are_drawn(tmp_path: Path) -> None:
    for number in range(12):
        add_spair(tmp_path, source=f"a{number:02}", target=f"b{number:02}")
    draws = [SPairImages(str(tmp_path), size=64, pairs_per_category=3, seed=seed) for seed in (0, 0, 1)]
    shown = [[images.name(pair.source) for pair in images.pairs("test")] for images in draws]
    assert shown[0] == shown[1] == sorted(shown[0]) != shown[2] and len(shown[0]) == 3
    assert draws[0].drawn is not None and len(draws[0].drawn["pairs"]["test"]) == 3
    everything = [pair.source for pair in SPairImages(str(tmp_path), size=64).pairs("test")]
    assert len(everything) == 12, "the dataset's order without a limit"
