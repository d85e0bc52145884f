"""Laws of the procedural dataset: determinism, exact ground truth, independence of appearance, coverage."""

import subprocess
import sys
from collections import Counter
from hashlib import sha256
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from datamodules.images.scenes import Scenes
from sdprobe.scenes import CATEGORIES, Scene
from sdprobe.scenes.composition import compose, main_category
from sdprobe.scenes.figure import Figure, Part, mark, mirror_name, one, tilted
from sdprobe.scenes.shapes import capsule, contains, ellipse
from sdprobe.utilities.errors import InputError

ROOT = Path(__file__).parents[2]
SIZE = 128
COUNT = 64


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    dataset = Scenes(size=SIZE, limit=COUNT, seed=11)
    return [dataset.scene(index) for index in range(COUNT)]


# --- the dataset's surface -------------------------------------------------------------------------------------------


def test_a_negative_seed_is_refused() -> None:
    with pytest.raises(InputError, match="Expected seed to be at least 0, but got -1"):
        Scenes(seed=-1)


def test_keys_name_the_pixels() -> None:
    base = Scenes(size=64, limit=9, seed=0)
    others = [Scenes(size=64, limit=9, seed=1), Scenes(size=128, limit=9, seed=0)]
    keys = {dataset.content_key(index) for dataset in (base, *others) for index in range(9)}
    assert len(keys) == 27
    assert base.content_key(4) == Scenes(size=64, limit=20, seed=0).content_key(4), "the limit does not change pixels"
    assert len({base.photo(index) for index in range(9)}) == 9
    assert base.photo(3) == base[3]["id"]


# --- determinism -----------------------------------------------------------------------------------------------------


@given(seed=st.integers(0, 2**40), indices=st.lists(st.integers(0, 50), min_size=2, max_size=3))
@settings(max_examples=8, deadline=None)
def test_pixels_depend_on_seed_and_index_alone(seed: int, indices: list[int]) -> None:
    first, second = Scenes(size=64, limit=51, seed=seed), Scenes(size=64, limit=70, seed=seed)
    forward = {index: first[index]["image"] for index in indices}
    np.random.seed(0)  # a global generator has no say
    for index in reversed(indices):
        assert torch.equal(second[index]["image"], forward[index])
        assert np.array_equal((forward[index].permute(1, 2, 0) * 255).round().numpy(), first.scene(index).image)


def test_another_process_draws_the_same_pixels() -> None:
    program = (
        "from hashlib import sha256; from datamodules.images.scenes import Scenes; d = Scenes(64, 12, 3);"
        "print(sha256(d[7]['image'].numpy().tobytes()).hexdigest(), d.content_key(7))"
    )
    command = [sys.executable, "-c", program]
    there = subprocess.run(command, cwd=ROOT, env={"PYTHONHASHSEED": "7"}, capture_output=True, text=True, check=True)
    dataset = Scenes(64, 12, 3)
    image = dataset[7]["image"]
    assert isinstance(image, torch.Tensor)
    here = sha256(image.numpy().tobytes()).hexdigest()
    assert there.stdout.split() == [here, dataset.content_key(7)]


def test_seeds_and_indices_give_different_scenes() -> None:
    images = [Scenes(64, 8, seed)[index]["image"] for seed in (0, 1) for index in range(8)]
    assert len({image.numpy().tobytes() for image in images}) == 16


# --- the same scene at every size ------------------------------------------------------------------------------------


@pytest.mark.parametrize("index", range(8))
def test_size_scales_keypoints_exactly_and_changes_nothing_else(index: int) -> None:
    small, large = (Scenes(size, 8, 2).scene(index) for size in (64, 320))
    for a, b in zip(small.objects, large.objects, strict=True):
        assert a.category == b.category and a.visible == b.visible and a.flipped == b.flipped
        assert np.allclose(5 * np.array(a.extent), b.extent)
        for name, where in a.keypoints.items():
            assert np.allclose(5 * np.array(where), b.keypoints[name], rtol=1e-12)
    shrunk = large.image.reshape(64, 5, 64, 5, 3).mean((1, 3))
    assert np.abs(shrunk - small.image).mean() < 8, "grey levels of 255"
    assert (large.object_mask[2::5, 2::5] == small.object_mask).mean() > 0.97


# --- ground truth ----------------------------------------------------------------------------------------------------


def test_visible_keypoints_lie_on_their_object(scenes: list[Scene]) -> None:
    seen = 0
    for scene in scenes:
        for k, thing in enumerate(scene.objects):
            for name, (x, y) in thing.keypoints.items():
                if thing.visible[name]:
                    seen += 1
                    assert 0 <= x < SIZE and 0 <= y < SIZE
                    reach = 1 if k == 0 else 2  # companions are small: their limbs may be thinner than a pixel
                    rows = slice(max(0, int(y) - reach), int(y) + reach + 1)
                    near = scene.object_mask[rows, max(0, int(x) - reach) : int(x) + reach + 1]
                    assert (near == k + 1).any(), f"{scene.category} {name}"
    assert seen > 5 * COUNT


def test_keypoints_off_the_canvas_or_behind_a_nearer_object_are_not_visible(scenes: list[Scene]) -> None:
    outside = covered = 0
    for scene in scenes:
        for k, thing in enumerate(scene.objects):
            for name, (x, y) in thing.keypoints.items():
                if not (0 <= x < SIZE and 0 <= y < SIZE):
                    outside += 1
                    assert not thing.visible[name]
                    continue
                near = scene.object_mask[max(0, int(y) - 1) : int(y) + 2, max(0, int(x) - 1) : int(x) + 2]
                if (near > 0).all() and (near != k + 1).all():
                    covered += 1
                    assert not thing.visible[name]
    assert outside > 20 and covered > 10, "both must occur for the test to mean anything"


def test_boxes_are_tight(scenes: list[Scene]) -> None:
    for scene in scenes:
        for k, thing in enumerate(scene.objects):
            rows, columns = np.nonzero(scene.object_mask == k + 1)
            if rows.size:
                assert thing.bbox == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
                assert thing.extent[0] < thing.bbox[0] + 2 and thing.bbox[2] - 2 < thing.extent[2]
            else:
                assert thing.bbox == (0, 0, 0, 0)


def test_masks_and_depth_agree(scenes: list[Scene]) -> None:
    for scene in scenes:
        assert np.array_equal(scene.part_mask > 0, scene.object_mask > 0)
        assert np.isfinite(scene.depth).all() and scene.depth.dtype == np.float32
        assert (scene.depth[scene.object_mask == 0] >= 7.9).all()
        for k, thing in enumerate(scene.objects):
            inside = scene.object_mask == k + 1
            assert (
                (scene.depth[inside] <= thing.depth + 1e-5) & (scene.depth[inside] > thing.depth - thing.thickness - 1e-5)
            ).all()
            names = {scene.part_names[value] for value in np.unique(scene.part_mask[inside])}
            assert all(name.startswith(thing.category + "/") for name in names)


def test_objects_occupy_disjoint_depths_so_that_the_nearer_wins(scenes: list[Scene]) -> None:
    overlaps = 0
    for scene in scenes:
        ordered = sorted(scene.objects, key=lambda thing: thing.depth)
        for nearer, farther in pairwise(ordered):
            if nearer.depth >= farther.depth - farther.thickness:
                a, b = np.array(nearer.extent), np.array(farther.extent)
                overlaps += bool((a[:2] < b[2:]).all() and (b[:2] < a[2:]).all())
    assert overlaps == 0


def test_main_object_owns_its_outline_except_where_nearer_objects_cover_it(scenes: list[Scene]) -> None:
    for index in range(10):
        composition, scene = compose(11, index), scenes[index]
        main = composition.objects[0]
        step = 12
        for y in range(step // 2, SIZE, step):
            for x in range(step // 2, SIZE, step):
                where = ((x + 0.5) / SIZE, (y + 0.5) / SIZE)
                inside = [
                    any(contains(part.shape, np.array(where) + shift) for part in main.figure.parts)
                    for shift in np.array(((0, 0), (0.012, 0), (-0.012, 0), (0, 0.012), (0, -0.012)))
                ]
                owner = scene.object_mask[y, x]
                if all(inside) and owner != 1:
                    assert owner > 0 and scene.objects[owner - 1].depth < main.depth
                if not any(inside):
                    assert owner != 1


def test_keypoint_names_are_fixed_per_category_and_follow_meaning(scenes: list[Scene]) -> None:
    names: dict[str, set[frozenset[str]]] = {}
    for scene in scenes:
        names.setdefault(scene.category, set()).add(frozenset(scene.objects[0].keypoints))
    assert set(names) == set(CATEGORIES)
    assert all(len(variants) == 1 and 6 <= len(next(iter(variants))) <= 14 for variants in names.values())
    for scene in scenes:
        main = scene.objects[0]
        point = {name: np.array(where) for name, where in main.keypoints.items()}
        if scene.category == "quadruped":
            assert (point["nose"][0] < point["tail_root"][0]) == main.flipped
        if scene.category == "vehicle":
            assert (point["headlight"][0] < point["taillight"][0]) == main.flipped
        if scene.category == "face":
            assert point["right_eye"][0] < point["left_eye"][0], "a person's right eye is on the left, flipped or not"


def test_reflection_exchanges_left_and_right() -> None:
    eye, nose = ellipse((-0.4, 0), 0.1, 0.1), ellipse((0.1, 0.3), 0.1, 0.1)
    parts = (Part("right_eye", one(eye)), Part("nose", one(nose)))
    figure = Figure("face", parts, {"right_eye": mark((-0.4, 0), "right_eye"), "nose": mark((0.1, 0.3), "nose")})
    mirrored = tilted(figure, 0.0, flipped=True)
    assert np.allclose(mirrored.landmarks["left_eye"].point, (0.4, 0))
    assert np.allclose(mirrored.landmarks["nose"].point, (-0.1, 0.3))
    assert mirrored.parts[0].name == "left_eye" and mirrored.landmarks["left_eye"].on == ("left_eye",)
    assert mirror_name("lefty") == "lefty"


@given(st.floats(-2, 2), st.floats(-2, 2), st.floats(0.05, 1), st.floats(0.05, 1))
@settings(max_examples=60, deadline=None)
def test_a_capsule_holds_both_its_ends(x: float, y: float, rp: float, rq: float) -> None:
    ring = capsule((0, 0), (x, y), rp, rq)
    inside_p, inside_q = 0.9 * rp * np.array((0.3, -0.6)), np.array((x, y)) + 0.9 * rq * np.array((-0.4, 0.5))
    assert contains((ring,), inside_p) and contains((ring,), inside_q)
    assert not contains((ring,), (6.0, 6.0))


# --- what the benchmark promises -------------------------------------------------------------------------------------


def test_categories_are_equally_frequent() -> None:
    counts = Counter(main_category(4, index) for index in range(80))
    assert counts == dict.fromkeys(CATEGORIES, 10) and len(CATEGORIES) >= 6
    orders = {tuple(main_category(4, 8 * block + k) for k in range(8)) for block in range(10)}
    assert len(orders) > 5, "the order is not a fixed cycle"


def test_main_objects_cover_the_canvas_and_touch_its_border() -> None:
    extents = np.array([compose(1, index).objects[0].figure.extent for index in range(240)])
    centres, sides = (extents[:, :2] + extents[:, 2:]) / 2, (extents[:, 2:] - extents[:, :2]).max(1)
    counts, _, _ = np.histogram2d(*centres.T, bins=4, range=((0, 1), (0, 1)))
    assert (counts >= 4).all(), "every sixteenth of the canvas, corners included"
    assert np.abs(centres.mean(0) - 0.5).max() < 0.05
    crossing = ((extents[:, :2] < 0) | (extents[:, 2:] > 1)).any(1).mean()
    assert 0.2 < crossing < 0.8
    assert sides.min() >= 0.3 and sides.max() <= 0.9


@pytest.fixture(scope="module")
def mean_colours() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean colour of each main object at 64 px, its category and its centre."""
    count = 240
    dataset = Scenes(64, count, 21)
    records = [dataset.scene(index) for index in range(count)]
    colours = np.array([scene.image[scene.object_mask == 1].mean(0) for scene in records])
    labels = np.array([CATEGORIES.index(scene.category) for scene in records])
    boxes = np.array([scene.objects[0].extent for scene in records])
    return colours, labels, (boxes[:, :2] + boxes[:, 2:]) / 2


def test_mean_colour_tells_neither_category_nor_position(mean_colours: tuple[np.ndarray, ...]) -> None:
    colours, labels, centres = mean_colours
    features = np.c_[colours / 255, (colours / 255) ** 2, np.ones(len(colours))]
    half = len(labels) // 2
    onehot = np.eye(len(CATEGORIES))[labels]
    weights = np.linalg.lstsq(features[:half], onehot[:half], rcond=None)[0]
    accuracy = ((features[half:] @ weights).argmax(1) == labels[half:]).mean()
    chance = 1 / len(CATEGORIES)
    assert accuracy < chance + 3 * np.sqrt(chance * (1 - chance) / half)
    correlations = np.corrcoef(np.c_[colours, centres].T)[:3, 3:]
    assert np.abs(correlations).max() < 3.5 / np.sqrt(len(labels))


def test_the_same_test_finds_colour_that_does_tell(mean_colours: tuple[np.ndarray, ...]) -> None:
    colours, labels, _ = mean_colours
    planted = colours / 255 + 0.5 * np.eye(len(CATEGORIES))[labels][:, :3]
    features = np.c_[planted, planted**2, np.ones(len(planted))]
    weights = np.linalg.lstsq(features[:120], np.eye(len(CATEGORIES))[labels[:120]], rcond=None)[0]
    assert ((features[120:] @ weights).argmax(1) == labels[120:]).mean() > 0.3


def test_backgrounds_and_company_vary(scenes: list[Scene]) -> None:
    assert len({scene.background for scene in scenes}) >= 6
    sizes = Counter(len(scene.objects) for scene in scenes)
    assert sizes[1] >= 10 and sum(sizes.values()) - sizes[1] >= 10
    assert any(thing.category == "occluder" for scene in scenes for thing in scene.objects)
    assert {scene.objects[0].flipped for scene in scenes} == {True, False}
    for scene in scenes:
        assert (scene.object_mask == 1).mean() > 0.01, "the main object is always in sight"
