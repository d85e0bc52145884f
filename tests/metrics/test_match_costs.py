"""What a match costs agrees with loops, finds planted copies and attractors, and finds none where none are."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from metrics.correspondence import MAIN, Correspondence
from metrics.match_costs import DISPLACEMENTS, EDGES, SWAPS, attraction, copies, groups, masked_cells, places
from metrics.matches import GROUPS, MASKED, Matches, offset_table
from tokens.geometry import border_groups, tokens_at
from tokens.keypoints import Keypoints

SIZE, SIDE = 256, 16
WAY = "test"


def table(n: int, per_pair: int = 5, seed: int = 0, scale: tuple[float, float] = (1.0, 1.0), spread: float = 1.0) -> Keypoints:
    """Keypoints anywhere in the input (``spread`` sides wide), boxes of random sides; targets are ``scale`` times larger."""
    generator = np.random.default_rng(seed)
    pair = torch.arange(n) // per_pair
    points = [double((generator.uniform(-0.5, 0.5, (n, 2)) * spread + 0.5) * SIZE) for _ in range(2)]
    scales, ones, zeros = (double([frame] * n) for frame in (scale, (1.0, 1.0), (0.0, 0.0)))
    corner, extent = generator.uniform(0, SIZE / 4, (n, 2)), generator.uniform(SIZE / 4, SIZE, (n, 2))
    return Keypoints(
        pair=pair,
        category=pair % 3,
        source=2 * pair,
        target=2 * pair + 1,
        source_slot=0 * pair,
        target_slot=0 * pair,
        source_point=points[0],
        target_point=points[1] / scales,
        target_box=double(np.concatenate([corner, corner + extent], 1)) / scales.repeat(1, 2),
        target_size=SIZE / scales,
        source_scale=ones,
        source_offset=zeros,
        target_scale=scales,
        target_offset=zeros,
        size=SIZE,
    )


def double(values: object) -> Tensor:
    return torch.tensor(np.array(values), dtype=torch.float64)


def uniform(n: int, seed: int) -> Tensor:
    return double(np.random.default_rng(seed).uniform(0, SIZE, (n, 2)))


def flags(n: int, share: float, seed: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).random(n) < share)


# --- position copies -------------------------------------------------------------------------------------------------


def reaches(points: Keypoints, alpha: float) -> list[float]:
    """α times the longer side of the target's box in the network's input."""
    found = []
    for (x0, y0, x1, y1), (across, down) in zip(points.target_box.tolist(), points.target_scale.tolist(), strict=True):
        found.append(alpha * max((x1 - x0) * across, (y1 - y0) * down))
    return found


def reference_copies(points: Keypoints, predicted: Tensor, wrong: Tensor, alpha: float) -> tuple[list[float], list[float]]:
    """Copies, and their expectation over the source points of all wrong keypoints of other pairs."""
    own, expected, reach = [], [], reaches(points, alpha)
    source, matched, pair = points.source_input.tolist(), predicted.tolist(), points.pair.tolist()
    for i in range(len(points)):
        near = [math.dist(source[k], matched[i]) <= reach[i] for k in range(len(points)) if wrong[k] and pair[k] != pair[i]]
        own.append(float(bool(wrong[i]) and math.dist(source[i], matched[i]) <= reach[i]))
        expected.append(sum(near) / len(near) if wrong[i] and near else 0.0)
    return own, expected


def drawn_expectation(points: Keypoints, predicted: Tensor, wrong: Tensor, alpha: float, seed: int) -> list[float]:
    """The same over the source points that are drawn."""
    index, reach = wrong.nonzero()[:, 0].tolist(), reaches(points, alpha)
    drawn = torch.randint(len(index), (len(index), SWAPS), generator=torch.Generator().manual_seed(seed)).tolist()
    expected = [0.0] * len(points)
    for i, draws in zip(index, drawn, strict=True):
        others = [index[k] for k in draws if points.pair[index[k]] != points.pair[i]]
        near = [math.dist(points.source_input[k].tolist(), predicted[i].tolist()) <= reach[i] for k in others]
        expected[i] = sum(near) / len(near) if near else 0.0
    return expected


@given(st.integers(2, 40), st.integers(1, 10), st.sampled_from([0.05, 0.1, 0.3]), st.integers(0, 10**6))
@settings(max_examples=25)
def test_copies_agree_with_a_loop(n: int, per_pair: int, alpha: float, seed: int) -> None:
    points = table(n, per_pair, seed, scale=(0.5, 2.0))
    predicted, wrong = uniform(n, seed + 1), flags(n, 0.7, seed)
    predicted[::3] = points.source_input[::3] + 5
    own, expected = copies(points, predicted, wrong, alpha, seed)
    assert own.tolist() == reference_copies(points, predicted, wrong, alpha)[0]
    if wrong.sum() > 1:
        assert expected.tolist() == pytest.approx(drawn_expectation(points, predicted, wrong, alpha, seed))


def test_drawn_swaps_stand_for_all_of_them() -> None:
    points = table(400)
    predicted, wrong = uniform(400, 1), flags(400, 0.8, 2)
    _, expected = copies(points, predicted, wrong, 0.2, seed=0)
    everyone = double(reference_copies(points, predicted, wrong, 0.2)[1])
    noise = (everyone * (1 - everyone) / SWAPS)[wrong].sum().sqrt() / wrong.sum()
    assert abs((expected - everyone)[wrong].mean()) < 4 * noise
    assert torch.corrcoef(torch.stack([expected, everyone]))[0, 1] > 0.6


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_planted_copies_are_found_and_their_excess_is_their_share(share: float) -> None:
    n = 3000
    points, copied, wrong = table(n), flags(n, share, 3), torch.ones(n, dtype=torch.bool)
    predicted = torch.where(copied[:, None], points.source_input + 1, uniform(n, 4))
    own, expected = copies(points, predicted, wrong, 0.1, seed=0)
    assert (own[copied] == 1).all()
    chance = expected.mean()
    assert (own - expected).mean().item() == pytest.approx(share * (1 - chance.item()), abs=4 * 0.25 / math.sqrt(n))


@pytest.mark.parametrize("attracted", [False, True])
def test_predictions_that_do_not_look_at_the_source_have_no_excess(attracted: bool) -> None:
    n = 4000
    points = table(n, spread=0.4)  # objects are in the middle, so that any central prediction is often near the source
    predicted = double([[SIZE / 2, SIZE / 2]] * n) if attracted else uniform(n, 5) * 0.4 + 0.3 * SIZE
    own, expected = copies(points, predicted, torch.ones(n, dtype=torch.bool), 0.1, seed=0)
    assert own.mean() > 0.05, "the control: there are copies"
    assert abs((own - expected).mean().item()) < 4 * (own - expected).std().item() / math.sqrt(n)


def test_right_matches_are_no_copies() -> None:
    points, wrong = table(50), flags(50, 0.5, 6)
    own, expected = copies(points, points.source_input, wrong, 0.1, seed=0)
    assert torch.equal(own, wrong.double())
    assert (expected[~wrong] == 0).all()


def test_swaps_are_of_other_pairs_only() -> None:
    points = table(40, per_pair=20)
    places_of_pairs = torch.where((points.pair == 0)[:, None], 10.0, 200.0).double().expand(-1, 2)
    points = Keypoints(**(vars(points) | {"source_point": places_of_pairs}))
    wrong = torch.ones(40, dtype=torch.bool)
    assert (copies(points, places_of_pairs, wrong, 0.1, seed=0)[1] == 0).all()
    assert (copies(points, 210.0 - places_of_pairs, wrong, 0.1, seed=0)[1] == 1).all()


# --- strata ----------------------------------------------------------------------------------------------------------


@given(st.integers(1, 60), st.floats(0.1, 1.3), st.integers(0, 10**6))
@settings(max_examples=40)
def test_displacements_and_edges_each_hold_every_keypoint_once(n: int, spread: float, seed: int) -> None:
    points = table(n, seed=seed, scale=(0.7, 1.9), spread=spread)
    strata = dict(places(points))
    assert strata["all"].all()
    for kind, names in (("displacement", DISPLACEMENTS), ("edge", EDGES)):
        assert (sum(strata[f"{kind}_{name}"].int() for name in names) == 1).all()
    for i, ((x, y), (u, v)) in enumerate(zip(points.source_input.tolist(), points.target_input.tolist(), strict=True)):
        moved, edge = math.hypot(u - x, v - y) / SIZE, min(u, v, SIZE - u, SIZE - v) / SIZE
        expected = {f"displacement_{'near' if moved < 0.15 else 'middle' if moved < 0.35 else 'far'}"}
        expected |= {f"edge_{'near' if edge < 1 / 16 else 'middle' if edge < 3 / 16 else 'far'}", "all"}
        assert {name for name, members in strata.items() if members[i]} == expected


def matched(n: int, ways: tuple[str, ...] = (WAY,), seed: int = 0) -> tuple[Matches, dict[str, Tensor]]:
    """Random matches of keypoints in ``n`` // 10 target pictures with high-norm tokens of their own, and those masks."""
    generator, matches = torch.Generator().manual_seed(seed), Matches(SIDE, ways, n)

    def cells(k: int) -> Tensor:
        return torch.randint(SIDE * SIDE, (k,), generator=generator)

    masks: dict[str, list[Tensor]] = {group: [] for group in GROUPS}
    for rows in torch.randperm(n, generator=generator).split(10):
        k = len(rows)
        target = border_groups(SIDE, SIDE) | {"high_norm": torch.rand(SIDE, SIDE, generator=generator) < 0.05}
        matches.update(
            rows,
            {way: cells(k) for way in ways},
            {way: {group: cells(k) for group in MASKED} for way in ways},
            {way: {group: cells(k) for group in MASKED} for way in ways},
            cells(k),
            {group: torch.rand(k, generator=generator) < 0.3 for group in GROUPS},
            target,
        )
        for group in GROUPS:
            masks[group] += [target[group]] * k
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed)).argsort()  # masks by row of the table
    return matches, {group: torch.stack(values)[order] for group, values in masks.items()}


def test_attraction_agrees_with_a_loop() -> None:
    matches, masks = matched(60, ("test", "zero_shot"))
    state = matches.compute()
    for w in range(2):
        for group in GROUPS:
            expected = []
            for i in range(60):
                row, col = divmod(int(state["cell"][w, i]), SIDE)
                grid = masks[group][i].tolist()
                expected.append(grid[row][col] - sum(map(sum, grid)) / SIDE**2)
            assert attraction(state, w, group).tolist() == pytest.approx(expected, abs=1e-12)


def test_matches_at_random_are_not_attracted_and_matches_that_are_drawn_in_are() -> None:
    n = 3000
    matches, masks = matched(n)
    for group in ("border", "high_norm"):
        found = attraction(matches.compute(), 0, group)
        assert abs(found.mean().item()) < 4 * found.std().item() / math.sqrt(n)
    corner = masks["corner"].flatten(1)
    drawn = matches.compute() | {"landed_in": torch.ones_like(matches.landed_in)}
    assert attraction(drawn, 0, "corner").mean().item() == pytest.approx(1 - corner.double().mean().item())


def test_corner_border_and_interior_hold_every_match_once() -> None:
    matches, masks = matched(50)
    strata = dict(groups(matches.compute(), 0))
    for end in ("target", "predicted"):
        assert (sum(strata[f"{end}_{group}"].int() for group in ("corner", "border", "interior")) == 1).all()
    for i, cell in enumerate(matches.compute()["cell"][0].tolist()):
        for group in GROUPS:
            assert bool(strata[f"predicted_{group}"][i]) == bool(masks[group][i].flatten()[cell])


def test_columns_and_masked_cells_are_what_was_matched() -> None:
    matches, _ = matched(30, ("test", "zero_shot"))
    state, columns = matches.compute(), matches.columns()
    for w, way in enumerate(matches.ways):
        assert columns[f"{way}/cell"].tolist() == state["cell"][w].tolist()
        for g, group in enumerate(MASKED):
            for name, random in (("without", False), ("without_random", True)):
                expected = state[name][w, g].tolist()
                assert masked_cells(state, w, group, random).tolist() == expected == columns[f"{way}/{name}_{group}"].tolist()


def test_keypoints_that_were_never_matched_are_in_no_group() -> None:
    empty = Matches(SIDE, (WAY,), rows=7)
    strata = dict(groups({name: getattr(empty, name) for name in ("source_in", "target_in", "landed_in")}, 0))
    assert not any(members.any() for members in strata.values())
    assert not any(column.any() for name, column in empty.columns().items() if "_in_" in name)


# --- harm ------------------------------------------------------------------------------------------------------------


def whole_boxes(points: Keypoints) -> Keypoints:
    """Boxes as large as the picture, so that every match with the true token is right."""
    return Keypoints(**(vars(points) | {"target_box": double([[0, 0, SIZE, SIZE]] * len(points))}))


@pytest.mark.parametrize("share", [0.0, 0.3])
def test_harm_is_the_share_of_keypoints_that_an_attractor_takes(share: float) -> None:
    n = 1000
    points, taken = whole_boxes(table(n)), flags(n, share, 7)
    place = tokens_at(points.target_input, SIZE / SIDE, SIDE, SIDE)
    true = place[:, 0] * SIDE + place[:, 1]
    high = torch.zeros(SIDE, SIDE, dtype=torch.bool)
    high[5, 5] = True
    found = torch.where(taken, 5 * SIDE + 5, true)
    matches = Matches(SIDE, (WAY,), n)
    without = {"corner": found, "border": found, "high_norm": true}
    masks = border_groups(SIDE, SIDE) | {"high_norm": high}
    inside = {group: mask.flatten()[true] for group, mask in masks.items()}
    random = dict.fromkeys(MASKED, found)
    matches.update(torch.arange(n), {WAY: found}, {WAY: without}, {WAY: random}, true, inside, masks)
    values = Correspondence(points).costs(matches, WAY)
    reference = Correspondence(points).hits(matches, WAY).double().mean().item()
    for g, group in enumerate(GROUPS):
        assert torch.equal(matches.compute()["target_in"][g] > 0, inside[group]), "where the truth is, not the match"
    assert values[f"{MAIN}/all"] == pytest.approx(reference)
    assert values["harm/high_norm"] == pytest.approx(1 - reference), "all are right without the attractor"
    assert values["harm/high_norm"] == pytest.approx(share, abs=0.06)
    assert values["harm/corner"] == values["harm_random/high_norm"] == values["harm_random/corner"] == 0
    assert values["harm/high_norm/ci_low"] <= values["harm/high_norm"] <= values["harm/high_norm/ci_high"]
    if share:
        assert values["attraction/high_norm"] == pytest.approx(1 - 1 / SIDE**2), "every wrong match is on it"
        assert values["attraction/corner"] == pytest.approx(-4 / SIDE**2)
        assert values[f"{MAIN}/predicted_high_norm"] < 0.1
    else:
        assert reference == 1
        assert "attraction/high_norm" not in values, "no match is wrong"


def test_masking_what_matches_rest_on_does_harm_of_the_other_sign() -> None:
    n = 50
    points = whole_boxes(table(n))
    place = tokens_at(points.target_input, SIZE / SIDE, SIDE, SIDE)
    true = place[:, 0] * SIDE + place[:, 1]
    far = (true + SIDE * SIDE // 2) % (SIDE * SIDE)
    matches, masks = Matches(SIDE, (WAY,), n), border_groups(SIDE, SIDE) | {"high_norm": torch.zeros(SIDE, SIDE) > 0}
    inside = {group: mask.flatten()[true] for group, mask in masks.items()}
    matches.update(
        torch.arange(n), {WAY: true}, {WAY: dict.fromkeys(MASKED, far)}, {WAY: dict.fromkeys(MASKED, true)}, true, inside, masks
    )
    values = Correspondence(points).costs(matches, WAY)
    assert values["harm/corner"] == values["harm/border"] == -1
    assert values["harm_random/corner"] == 0
    assert not any("high_norm" in key for key in values), "a group that no picture has"


# --- offsets ---------------------------------------------------------------------------------------------------------


@given(st.integers(0, 60), st.sampled_from([3, 8, 33]), st.integers(0, 10**6))
@settings(max_examples=40)
def test_the_table_of_offsets_agrees_with_a_loop(n: int, cells: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    predicted, source = (double(generator.integers(-20, SIZE + 20, (n, 2)).reshape(n, 2)) for _ in range(2))
    wrong = flags(n, 0.5, seed)
    expected = np.zeros((2, cells, cells))
    for (x, y), (u, v), bad in zip(predicted.tolist(), source.tolist(), wrong.tolist(), strict=True):
        col, row = (math.floor((offset / SIZE + 1) * cells / 2) for offset in (x - u, y - v))
        col, row = (min(max(place, 0), cells - 1) for place in (col, row))
        expected[0, row, col] += 1
        expected[1, row, col] += bad
    counts, errors = offset_table(predicted, source, wrong, SIZE, cells)
    np.testing.assert_array_equal(counts.numpy(), expected[0])
    np.testing.assert_array_equal(errors.numpy(), expected[1])


def test_no_offset_is_the_middle_and_right_of_the_source_is_right_of_it() -> None:
    source = double([[100.0, 100.0]])
    for shift, (row, col) in (((0, 0), (16, 16)), ((64, 0), (16, 20)), ((0, -64), (12, 16)), ((-300, 900), (32, 0))):
        counts, _ = offset_table(source + double([shift]), source, torch.tensor([True]), SIZE)
        assert counts[row, col] == counts.sum() == 1
