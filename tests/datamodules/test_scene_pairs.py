"""Laws of pairs of scenes: points are ground truth that both scenes show, and a displaced object is all that differs."""

from collections import Counter
from dataclasses import replace
from itertools import permutations
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from datamodules.images.scenes import Scenes
from sdprobe.scenes import CATEGORIES, Scene, ScenePair, scene_pairs
from sdprobe.scenes.composition import compose
from sdprobe.scenes.figure import moved
from sdprobe.scenes.pairs import MIN_SHARED
from sdprobe.scenes.truth import render
from sdprobe.utilities.errors import InputError

SIZE = 128


def mutual(a: Scene, b: Scene) -> list[str]:
    """Reference: keypoints of both main objects that are visible in both."""
    return [name for name in sorted(a.objects[0].keypoints) if a.objects[0].visible[name] and b.objects[0].visible[name]]


def assert_ground_truth(pair: ScenePair, a: Scene, b: Scene) -> None:
    assert pair.category == a.category == b.category and pair.size == len(a.image)
    assert list(pair.names) == mutual(a, b) and len(pair.names) >= MIN_SHARED
    assert pair.source_points == tuple(a.objects[0].keypoints[name] for name in pair.names)
    assert pair.target_points == tuple(b.objects[0].keypoints[name] for name in pair.names)
    everything = sorted(a.objects[0].keypoints)
    assert [everything[int(slot)] for slot in pair.kps_ids] == list(pair.names)


# --- two scenes of one category --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def dataset() -> Scenes:
    return Scenes(size=SIZE, limit=32, seed=6)


@pytest.fixture(scope="module")
def drawn(dataset: Scenes) -> list[Scene]:
    return [dataset.scene(index) for index in range(len(dataset))]


def test_pairs_show_ground_truth_that_is_visible_in_both(dataset: Scenes, drawn: list[Scene]) -> None:
    for pair in scene_pairs(dataset, 60, seed=1):
        assert pair.source != pair.target
        assert_ground_truth(pair, drawn[pair.source], drawn[pair.target])


def test_all_pairs_are_found_once_and_one_more_is_refused(dataset: Scenes, drawn: list[Scene]) -> None:
    expected = {
        (s, t)
        for s, t in permutations(range(len(drawn)), 2)
        if drawn[s].category == drawn[t].category and len(mutual(drawn[s], drawn[t])) >= MIN_SHARED
    }
    pairs = scene_pairs(dataset, len(expected))
    assert len(pairs) == len(expected) and {(pair.source, pair.target) for pair in pairs} == expected
    with pytest.raises(InputError, match=f"at most {len(expected)}, .* but got {len(expected) + 1}. Raise images.limit"):
        scene_pairs(dataset, len(expected) + 1)


def test_some_pair_is_left_out_because_too_little_is_shared(drawn: list[Scene]) -> None:
    shared = [len(mutual(a, b)) for a, b in permutations(drawn, 2) if a.category == b.category]
    assert min(shared) < MIN_SHARED < max(shared), "or the tests above say nothing about the limit"


def test_pairs_depend_on_their_arguments_alone_and_a_longer_list_begins_with_the_shorter(dataset: Scenes) -> None:
    pairs = scene_pairs(dataset, 40, seed=2)
    assert pairs == scene_pairs(Scenes(size=SIZE, limit=32, seed=6), 40, seed=2)
    assert pairs[:13] == scene_pairs(dataset, 13, seed=2)
    assert pairs != scene_pairs(dataset, 40, seed=3)
    larger = scene_pairs(Scenes(size=2 * SIZE, limit=32, seed=6), 40, seed=2)
    assert [(pair.source, pair.target, pair.names) for pair in larger] == [(p.source, p.target, p.names) for p in pairs]
    assert np.allclose(larger[0].source_points, 2 * np.array(pairs[0].source_points))


def test_categories_take_turns(dataset: Scenes) -> None:
    assert Counter(pair.category for pair in scene_pairs(dataset, 40)) == dict.fromkeys(CATEGORIES, 5)


def test_displacements_are_shares_of_the_side() -> None:
    points = ((10.0, 20.0), (0.0, 0.0), (64.0, 64.0)), ((13.0, 16.0), (0.0, 0.0), (0.0, 64.0))
    pair = ScenePair(0, 1, "bird", ("a", "b", "c"), ("0", "1", "2"), *points, size=100)
    assert pair.displacements == pytest.approx((0.05, 0, 0.64))


@pytest.mark.parametrize("count", [0, -1])
def test_no_pairs_cannot_be_asked_for(dataset: Scenes, count: int) -> None:
    with pytest.raises(InputError, match=f"Expected count to be at least 1, but got {count}"):
        scene_pairs(dataset, count)


def test_scenes_without_a_partner_have_no_pairs() -> None:
    with pytest.raises(InputError, match="at most 0"):
        scene_pairs(Scenes(size=64, limit=8), 1)  # one scene of each category
    with pytest.raises(InputError, match="Expected seed to be at least 0"):
        scene_pairs(Scenes(size=64, limit=16), 1, seed=-1)


# --- one scene, its main object moved --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def couples() -> list[tuple[Scene, Scene, NDArray[np.float64]]]:
    """Scenes, the same with their main object moved by whole pixels to the middle, and by how much, in pixels."""
    found = []
    for k in range(24):
        before = compose(5, k)
        main = before.objects[0]
        x0, y0, x1, y1 = main.figure.extent
        vector = np.round(64 * (np.array((0.45, 0.55)) - np.array((x0 + x1, y0 + y1)) / 2)) / 64
        after = replace(before, objects=(replace(main, figure=moved(main.figure, 1.0, vector)), *before.objects[1:]))
        found.append((render(before, SIZE), render(after, SIZE), vector * SIZE))
    return [couple for couple in found if np.hypot(*couple[2]) > 0.1 * SIZE]


def test_keypoints_and_extents_move_with_the_object_and_nothing_else_changes(couples: list[Any]) -> None:
    for source, target, vector in couples:
        a, b = source.objects[0], target.objects[0]
        for name, where in a.keypoints.items():
            assert np.subtract(b.keypoints[name], where) == pytest.approx(vector, abs=1e-9)
        assert np.subtract(b.extent, a.extent) == pytest.approx(np.tile(vector, 2), abs=1e-9)
        assert (a.flipped, a.depth, a.thickness, a.category) == (b.flipped, b.depth, b.thickness, b.category)
        assert (source.background, source.light, source.part_names) == (target.background, target.light, target.part_names)
        elsewhere = (source.object_mask != 1) & (target.object_mask != 1)
        for ground_truth in ("object_mask", "part_mask", "depth"):
            assert np.array_equal(getattr(source, ground_truth)[elsewhere], getattr(target, ground_truth)[elsewhere])
        for c, d in zip(source.objects[1:], target.objects[1:], strict=True):
            assert (c.category, c.extent, c.keypoints, c.depth) == (d.category, d.extent, d.keypoints, d.depth)


def test_pixels_away_from_the_object_and_its_shadow_stay(couples: list[Any]) -> None:
    changed_share = []
    for source, target, _ in couples:
        near = np.zeros((SIZE, SIZE), bool)
        for scene in (source, target):
            x0, y0, x1, y1 = scene.objects[0].extent
            reach = 0.05 * max(x1 - x0, y1 - y0) + 0.006 * SIZE
            margin = 2.1 * reach + 4 * SIZE / 96  # offset and blur of the shadow, and the grid it is drawn on
            rows = slice(max(0, int(y0 - margin)), max(0, int(y1 + margin) + 1))
            near[rows, max(0, int(x0 - margin)) : max(0, int(x1 + margin) + 1)] = True
        changed = (source.image != target.image).any(axis=2)
        assert not (changed & ~near).any()
        changed_share.append((changed.mean(), near.mean()))
    assert min(share for share, _ in changed_share) > 0.005, "something did move"
    assert min(share for _, share in changed_share) < 0.7, "or there is no background to compare"


def test_the_object_itself_looks_the_same_elsewhere(couples: list[Any]) -> None:
    alone = [couple for couple in couples if len(couple[0].objects) == 1]  # companions hide it and cast shadows on it
    assert len(alone) >= 3
    for source, target, vector in alone:
        dx, dy = vector.astype(int)
        rows, columns = np.nonzero(source.object_mask == 1)
        inside = (rows + dy >= 0) & (rows + dy < SIZE) & (columns + dx >= 0) & (columns + dx < SIZE)
        rows, columns = rows[inside], columns[inside]
        assert (target.object_mask[rows + dy, columns + dx] == 1).mean() > 0.97
        there = target.image[rows + dy, columns + dx].astype(int)
        assert np.abs(there - source.image[rows, columns]).mean() < 4, "grey levels of 255"
