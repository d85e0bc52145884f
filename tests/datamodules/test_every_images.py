"""What every image source does: items, names and keys, limits, pickling, and one sentence for what cannot be used."""

import io
import pickle
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from datamodules.images.folder import FolderImages
from datamodules.images.hub import HubImages
from datamodules.images.nyu import NYUDepth
from datamodules.images.proposal_flow import PFPascalImages, PFWillowImages
from datamodules.images.scenes import SceneDepth, ScenePairs, Scenes
from datamodules.images.source import ImageSource
from datamodules.images.spair import SPairImages
from datamodules.images.texture import Constants, LatentTextures, Textures
from datamodules.images.views import Cropped, FlipBalanced, RandomCrops, Viewed, rotated
from sdprobe.tokens.views import View
from sdprobe.utilities.errors import InputError
from tests.datamodules.pair_trees import add_pascal, add_spair, add_willow, save_picture

Make = Callable[..., ImageSource]
COUNT = 4  # photographs in every tree, at least


def encoded(seed: int) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (64, 96, 3), dtype=np.uint8)).save(stream, "png")
    return stream.getvalue()


def save_hub(root: Path) -> None:
    features = datasets.Features({"image": datasets.Image()})
    cells = [{"bytes": encoded(i), "path": None} for i in range(COUNT)]
    datasets.disable_progress_bars()
    datasets.Dataset.from_dict({"image": cells}, features=features).save_to_disk(root)


def save_folder(root: Path) -> None:
    for i in range(COUNT):
        save_picture(root / "ab"[i % 2] / f"{'x' * (i + 1)}.png")


def save_nyu(root: Path) -> None:
    for i in range(COUNT):
        save_picture(root / f"kitchen_000{i}" / "rgb_00000.png")
        Image.fromarray(np.full((40, 60), 1000 + i, np.uint16)).save(root / f"kitchen_000{i}" / "sync_depth_00000.png")


def save_pairs(add: Callable[..., Any]) -> Callable[[Path], None]:
    def save(root: Path) -> None:
        add(root, source="a", target="b")
        add(root, source="c", target="d")

    return save


# how a tree is written, and the source that reads it
STORED: dict[str, tuple[Callable[[Path], None], Callable[..., Any]]] = {
    "folder": (save_folder, FolderImages),
    "random crops": (save_folder, lambda root, **options: FolderImages(root, crops=2, **options)),
    "hub": (save_hub, HubImages),
    "nyu": (save_nyu, NYUDepth),
    "spair": (save_pairs(add_spair), SPairImages),
    "pf_pascal": (save_pairs(add_pascal), PFPascalImages),
    "pf_willow": (save_pairs(add_willow), PFWillowImages),
}
DRAWN: dict[str, Make] = {
    "scenes": lambda limit=4, **options: Scenes(limit=limit, **options),
    "scene_depth": lambda limit=4, **options: SceneDepth(limit=limit, **options),
    "scene_pairs": lambda limit=48, **options: ScenePairs(limit=limit, **options),
    "texture": lambda limit=4, **options: Textures(limit=limit, **options),
    "window": lambda limit=4, **options: Textures(limit=limit, periodic=False, **options),
    "latents": lambda limit=4, **options: LatentTextures(limit=limit, **options),
    "constant": lambda limit=4, **options: Constants(limit=limit, **options),
    "flipped": lambda size, **options: FlipBalanced(Scenes(size, 2), size, **options),
    "crops": lambda size, **options: RandomCrops(Scenes(size, 2), size, crops=2, **options),
}
WRAPPED: dict[str, Make] = {
    "rotated": lambda size: rotated(Scenes(size, 4)),
    "rotated latents": lambda size: rotated(LatentTextures(size, 4)),
    "cropped": lambda size: Cropped(Textures(size + 64, 4), 32),
    "shown": lambda size: Viewed(Textures(size, 4), View(shift=(3, -5), flip=True)),
    "windows": lambda size: Viewed(FlipBalanced(Scenes(size, 1), size), View(window=(2, 5), larger=64)),
}
LIMITED = ["folder", "random crops", "hub", "nyu", *sorted(DRAWN.keys() - {"scene_pairs"})]
WITH_ROOT = sorted(STORED.keys() - {"hub"})


def maker(name: str, root: Path) -> Make:
    """The source of this name; what it reads is written below ``root``."""
    if name not in STORED:
        return (DRAWN | WRAPPED)[name]
    save, read = STORED[name]
    save(root)
    return lambda **options: read(str(root), **options)


@pytest.fixture(params=[*STORED, *DRAWN, *WRAPPED])
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Make:
    return maker(request.param, tmp_path / "tree")


def test_items_are_square_pictures_under_names_of_their_own(make: Make) -> None:
    images = make(size=64)
    assert isinstance(images, ImageSource) and images.size == 64 and images.on_error == "raise"
    names = [images.name(i) for i in range(len(images))]
    assert len(set(names)) == len(names) >= COUNT
    for i in range(COUNT):
        item = images[i]
        assert item["id"] == names[i]
        assert item["image"].shape == (3, 64, 64) and item["image"].dtype == torch.float32
        assert item["image"].min() >= 0 and item["image"].max() <= 1
        assert isinstance(images.photo(i), str)


def test_one_key_is_one_picture(make: Make) -> None:
    by_key: dict[str, bytes] = {}
    for images in (make(size=64), make(size=128), make(size=64)):
        for i in range(COUNT):
            pixels = images[i]["image"].numpy().tobytes()
            assert by_key.setdefault(images.content_key(i), pixels) == pixels
    assert len(by_key) == len(set(by_key.values())) == 2 * COUNT


@pytest.mark.parametrize("name", STORED)
def test_names_and_keys_do_not_depend_on_where_files_lie(name: str, tmp_path: Path) -> None:
    images = maker(name, tmp_path / "tree")(size=64)
    shutil.copytree(tmp_path / "tree", tmp_path / "deep" / "elsewhere")
    moved = STORED[name][1](str(tmp_path / "deep" / ".." / "deep" / "elsewhere"), size=64)
    for method in ("name", "photo", "content_key"):
        assert [getattr(moved, method)(i) for i in range(COUNT)] == [getattr(images, method)(i) for i in range(COUNT)]


def test_a_source_can_be_sent_to_workers_and_iterated(make: Make) -> None:
    images = make(size=64)
    copy = pickle.loads(pickle.dumps(images))
    assert torch.equal(copy[1]["image"], images[1]["image"]) and copy.content_key(1) == images.content_key(1)
    assert len(list(copy)) == len(images)


@pytest.mark.parametrize("name", LIMITED)
def test_a_limit_leaves_items_out_and_changes_none(name: str, tmp_path: Path) -> None:
    make = maker(name, tmp_path / "tree")
    whole, part = make(size=64, limit=4), make(size=64, limit=3)
    keys = [[images.content_key(i) for i in range(len(images))] for images in (whole, part)]
    assert len({part.photo(i) for i in range(len(part))}) == (1 if name == "flipped" else 2 if name == "crops" else 3)
    assert [key for key in keys[0] if key in keys[1]] == keys[1], "in the same order"
    assert name in STORED or keys[1] == keys[0][:3], "rendered pictures are the first ones, which published numbers are of"
    assert len(make(size=64, limit=99)) == (len(make(size=64)) if name in (*STORED, "flipped", "crops") else 99)


# --- what cannot be used ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*STORED, *DRAWN])
@pytest.mark.parametrize(("size", "fix"), [(100, "64 or 128"), (500, "448 or 512"), (0, "64"), (-64, "64")])
def test_a_wrong_size_says_which_would_do(name: str, size: int, fix: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=rf"Expected images\.size to be a positive multiple of 64, but got {size}\. Use {fix}"):
        maker(name, tmp_path / "tree")(size=size)


@pytest.mark.parametrize("name", [*LIMITED, "scene_pairs"])
@pytest.mark.parametrize("limit", [0, -5])
def test_a_limit_below_one_is_refused(name: str, limit: int, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=rf"Expected images\.limit to be at least \d+, but got {limit}\. Use "):
        maker(name, tmp_path / "tree")(size=64, limit=limit)


@pytest.mark.parametrize("name", STORED)
def test_an_unknown_way_to_treat_errors_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"Expected images\.on_error to be one of raise, skip, but got 'ignore'\. Use raise\."):
        maker(name, tmp_path / "tree")(size=64, on_error="ignore")


@pytest.mark.parametrize("name", WITH_ROOT)
def test_a_root_that_is_no_folder_or_holds_nothing_is_named(name: str, tmp_path: Path) -> None:
    read = STORED[name][1]
    with pytest.raises(InputError, match=r"Expected images\.root to be .*folder.* '/no/such/place', which does not exist\."):
        read("/no/such/place")
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(InputError, match=rf"Expected images\.root to be .*folder.* '{tmp_path}/notes\.txt', a file\. Unpack"):
        read(str(tmp_path / "notes.txt"))
    with pytest.raises(InputError, match=rf"Expected images\.root to .*'{tmp_path}'.* has no"):
        read(str(tmp_path))


@pytest.mark.parametrize("name", WITH_ROOT)
def test_a_truncated_picture_is_named_when_it_is_needed(name: str, tmp_path: Path) -> None:
    make = maker(name, tmp_path / "tree")
    file = min(file for ending in ("jpg", "png") for file in tmp_path.rglob(f"*.{ending}") if "depth" not in file.name)
    file.write_bytes(file.read_bytes()[:-400])
    for on_error in ("raise", "skip"):
        images = make(size=64, on_error=on_error)
        index = next(i for i in range(len(images)) if images.name(i).partition("#")[0].endswith(file.name))
        with pytest.raises(
            InputError, match=rf"Expected {re.escape(str(file))} to be an intact image, but .* or use images\.on_error=skip\."
        ):
            images[index]
        assert isinstance(images.content_key(index), str), "it still has an identity, so that it can be skipped"
