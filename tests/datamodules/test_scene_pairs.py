"""Laws of pairs of scenes: points are ground truth that both scenes show, and a displaced object is all that differs."""

from collections import Counter
from itertools import permutations

import numpy as np
import pytest
import torch

from datamodules.images.scenes import Scenes
from datamodules.images.source import ImageSource
from sdprobe.scenes import CATEGORIES, Scene, ScenePair, scene_pairs
from sdprobe.scenes.composition import compose
from sdprobe.scenes.pairs import MIN_SHARED, view
from sdprobe.utilities.errors import InputError
from tests import displaced
from tests.displaced import GRID, STRATA, DisplacedScenes, displacement

SIZE = 128
EDGES = {"near": (0, 0.15), "middle": (0.15, 0.35), "far": (0.35, np.inf)}  # as reports stratify


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


@pytest.fixture(scope="module", params=list(STRATA))
def displacing(request: pytest.FixtureRequest) -> DisplacedScenes:
    return DisplacedScenes(size=SIZE, limit=12, seed=5, stratum=request.param)


@pytest.fixture(scope="module")
def couples(displacing: DisplacedScenes) -> list[tuple[Scene, Scene]]:
    return [(displacing.scene(2 * k), displacing.scene(2 * k + 1)) for k in range(displacing.limit)]


def test_all_keypoints_move_by_one_vector_of_the_stratum(
    displacing: DisplacedScenes, couples: list[tuple[Scene, Scene]]
) -> None:
    low, high = EDGES[displacing.stratum]
    for k, (source, target) in enumerate(couples):
        a, b = source.objects[0], target.objects[0]
        vector = np.array(displacement(displacing.seed, k, displacing.stratum))
        for name, where in a.keypoints.items():
            assert np.subtract(b.keypoints[name], where) == pytest.approx(vector * SIZE, abs=1e-9)
        assert np.subtract(b.extent, a.extent) == pytest.approx(np.tile(vector * SIZE, 2), abs=1e-9)
        assert low < np.hypot(*vector) < high
        assert np.array_equal(vector * GRID, np.round(vector * GRID)), "whole pixels at every size"
        assert (a.flipped, a.depth, a.thickness, a.category) == (b.flipped, b.depth, b.thickness, b.category)


def test_pixels_away_from_the_object_and_its_shadow_stay(couples: list[tuple[Scene, Scene]]) -> None:
    changed_share = []
    for source, target in couples:
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


def test_masks_and_depth_change_only_where_the_object_was_or_is(couples: list[tuple[Scene, Scene]]) -> None:
    for source, target in couples:
        elsewhere = (source.object_mask != 1) & (target.object_mask != 1)
        assert np.array_equal(source.object_mask[elsewhere], target.object_mask[elsewhere])
        assert np.array_equal(source.part_mask[elsewhere], target.part_mask[elsewhere])
        assert np.array_equal(source.depth[elsewhere], target.depth[elsewhere])
        assert (source.background, source.light, source.part_names) == (target.background, target.light, target.part_names)
        for a, b in zip(source.objects[1:], target.objects[1:], strict=True):
            assert (a.category, a.extent, a.keypoints, a.depth) == (b.category, b.extent, b.keypoints, b.depth)


def test_the_object_itself_looks_the_same_elsewhere(displacing: DisplacedScenes, couples: list[tuple[Scene, Scene]]) -> None:
    compared = 0
    for k, (source, target) in enumerate(couples):
        if len(source.objects) > 1:
            continue  # companions in front hide it and cast shadows on it
        dx, dy = (round(SIZE * share) for share in displacement(displacing.seed, k, displacing.stratum))
        rows, columns = np.nonzero(source.object_mask == 1)
        inside = (rows + dy >= 0) & (rows + dy < SIZE) & (columns + dx >= 0) & (columns + dx < SIZE)
        rows, columns = rows[inside], columns[inside]
        assert (target.object_mask[rows + dy, columns + dx] == 1).mean() > 0.97
        there = target.image[rows + dy, columns + dx].astype(int)
        assert np.abs(there - source.image[rows, columns]).mean() < 4, "grey levels of 255"
        compared += 1
    assert compared >= 3


def test_most_keypoints_stay_in_sight(displacing: DisplacedScenes, couples: list[tuple[Scene, Scene]]) -> None:
    for source, target in couples:
        assert len(mutual(source, target)) >= 0.75 * sum(source.objects[0].visible.values())
    for pair in displacing.pairs():
        assert_ground_truth(pair, displacing.scene(pair.source), displacing.scene(pair.target))
        length = np.hypot(*displacement(displacing.seed, pair.source // 2, displacing.stratum))
        assert pair.target == pair.source + 1 and pair.displacements == pytest.approx([length] * len(pair.names))


def test_where_too_little_can_stay_in_sight_the_most_does(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = [displacement(7, k, "far") for k in range(6)]
    monkeypatch.setattr(displaced, "KEPT", 2.0)  # more than all
    for k, usual in enumerate(wanted):
        composition = compose(7, k)
        most = displacement.__wrapped__(7, k, "far")
        kept = [
            len(view(composition, 1).seen.keys() & view(displaced.displaced(composition, vector), 1).seen.keys())
            for vector in (usual, most)
        ]
        assert kept[1] >= kept[0] and 0.35 < np.hypot(*most) < 0.6


def test_directions_vary() -> None:
    vectors = np.array([displacement(0, k, "middle") for k in range(60)])
    counts = Counter((x > 0, y > 0) for x, y in vectors)
    assert len(counts) == 4 and min(counts.values()) >= 5
    assert np.ptp(np.hypot(*vectors.T)) > 0.1


def test_displaced_scenes_are_an_image_source(displacing: DisplacedScenes) -> None:
    assert isinstance(displacing, ImageSource) and len(displacing) == 24
    plain = Scenes(size=SIZE, limit=12, seed=5)
    for k in (0, 9):
        still, moves = displacing[2 * k], displacing[2 * k + 1]
        assert still["id"] == plain.name(k) and moves["id"] == f"scenes-5-{k}-{displacing.stratum}"
        assert torch.equal(still["image"], plain[k]["image"]) and not torch.equal(still["image"], moves["image"])
        pixels = (moves["image"].permute(1, 2, 0) * 255).round().numpy()
        assert np.array_equal(pixels, displacing.scene(2 * k + 1).image)
        assert displacing.content_key(2 * k) == plain.content_key(k)
        assert displacing.photo(2 * k) == displacing.photo(2 * k + 1) == plain.photo(k)
    assert len({displacing.content_key(index) for index in range(24)}) == 24
    assert displacing.name(-1) == displacing.name(23)
    with pytest.raises(IndexError, match=r"images\.limit"):
        displacing[24]


def test_displacements_do_not_depend_on_size_or_limit() -> None:
    small, large = DisplacedScenes(64, 2, 3), DisplacedScenes(320, 5, 3)
    for index in range(4):
        a, b = small.scene(index).objects[0], large.scene(index).objects[0]
        assert np.allclose(5 * np.array(a.extent), b.extent) and a.visible == b.visible


def test_an_unknown_stratum_names_the_known_ones() -> None:
    with pytest.raises(InputError, match="Expected stratum to be one of near, middle, far, but got 'wide'"):
        DisplacedScenes(stratum="wide")
