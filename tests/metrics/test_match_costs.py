"""What a match costs agrees with loops, finds planted copies and attractors, and finds none where none are."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sdprobe.estimators.matching import best, random_mask
from sdprobe.metrics.correspondence import MAIN, Correspondence
from sdprobe.metrics.match_costs import (
    DISPLACEMENTS,
    EDGES,
    SWAPS,
    attraction,
    copies,
    group_strata,
    location_strata,
    masked_cells,
    near_source,
)
from sdprobe.metrics.matches import Matches, offset_table
from sdprobe.tokens.batch import Keypoints
from sdprobe.tokens.geometry import border_groups, centres, tokens_at
from sdprobe.tokens.keys import GROUPS, MASKED
from sdprobe.utilities.errors import InputError

SIZE, SIDE = 256, 16
WAY = "test"


def table(
    n: int,
    per_pair: int = 5,
    seed: int = 0,
    scale: tuple[float, float] = (1.0, 1.0),
    spread: float = 1.0,
    moved: float | None = None,
    boxes: tuple[float, float] = (0.25, 1.0),
) -> Keypoints:
    """Keypoints anywhere in the input (``spread`` sides wide); targets are ``scale`` times larger.

    Boxes are ``boxes`` sides wide and high. A target point is ``moved`` sides from its source point, or anywhere too.
    """
    generator = np.random.default_rng(seed)
    pair = torch.arange(n) // per_pair
    points = [double((generator.uniform(-0.5, 0.5, (n, 2)) * spread + 0.5) * SIZE) for _ in range(2)]
    if moved is not None:
        angle = generator.uniform(0, 2 * math.pi, n)
        points[1] = points[0] + moved * SIZE * double(np.stack([np.cos(angle), np.sin(angle)], 1))
    scales, ones, zeros = (double([frame] * n) for frame in (scale, (1.0, 1.0), (0.0, 0.0)))
    corner, extent = generator.uniform(0, SIZE / 4, (n, 2)), generator.uniform(boxes[0] * SIZE, boxes[1] * SIZE, (n, 2))
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

Swaps = dict[int, list[int]]  # wrong keypoint → keypoints whose source points stand in for its own


def reaches(points: Keypoints, alpha: float) -> list[float]:
    """α times the longer side of the target's box in the network's input."""
    found = []
    for (x0, y0, x1, y1), (across, down) in zip(points.target_box.tolist(), points.target_scale.tolist(), strict=True):
        found.append(alpha * max((x1 - x0) * across, (y1 - y0) * down))
    return found


def missed(points: Keypoints, predicted: Tensor, alpha: float) -> Tensor:
    """Wrong matches: those out of reach of the target point."""
    return (predicted - points.target_input).norm(dim=1) > double(reaches(points, alpha))


def every_swap(wrong: Tensor) -> Swaps:
    index: list[int] = wrong.nonzero()[:, 0].tolist()
    return dict.fromkeys(index, index)


def drawn_swaps(wrong: Tensor, seed: int) -> Swaps:
    """Those that are drawn; none where a wrong match is alone."""
    index = wrong.nonzero()[:, 0].tolist()
    if len(index) < 2:
        return {i: [] for i in index}
    drawn = torch.randint(len(index), (len(index), SWAPS), generator=torch.Generator().manual_seed(seed)).tolist()
    return {i: [index[k] for k in draws] for i, draws in zip(index, drawn, strict=True)}


def usable_swaps(points: Keypoints, swaps: Swaps, alpha: float) -> Swaps:
    """Of other pairs, and where a wrong match may be all around: more than twice the reach from the target point."""
    source, target, pair = points.source_input.tolist(), points.target_input.tolist(), points.pair.tolist()
    reach = reaches(points, alpha)
    return {
        i: [k for k in chosen if pair[k] != pair[i] and math.dist(source[k], target[i]) > 2 * reach[i]]
        for i, chosen in swaps.items()
    }


def reference_copies(
    points: Keypoints, predicted: Tensor, swaps: Swaps, alpha: float
) -> tuple[list[float], list[float], list[bool]]:
    """Copies, their expectation over the usable of these swaps, and whether both count."""
    n, reach, usable = len(points), reaches(points, alpha), usable_swaps(points, swaps, alpha)
    source, target, matched = points.source_input.tolist(), points.target_input.tolist(), predicted.tolist()
    own, expected, counted = [0.0] * n, [0.0] * n, [False] * n
    for i, others in usable.items():
        near = [math.dist(source[k], matched[i]) <= reach[i] for k in others]
        own[i] = float(math.dist(source[i], matched[i]) <= reach[i])
        expected[i] = sum(near) / len(near) if near else 0.0
        counted[i] = bool(near) and math.dist(source[i], target[i]) > 2 * reach[i]
    return own, expected, counted


@given(
    st.integers(1, 40),
    st.integers(1, 10),
    st.sampled_from([0.05, 0.1, 0.3]),
    st.sampled_from([None, 0.03, 0.08, 0.2]),
    st.integers(0, 10**6),
)
@settings(max_examples=50)
def test_copies_agree_with_a_loop(n: int, per_pair: int, alpha: float, moved: float | None, seed: int) -> None:
    points = table(n, per_pair, seed, scale=(0.5, 2.0), moved=moved)
    predicted, wrong = uniform(n, seed + 1), flags(n, 0.7, seed)
    predicted[::3] = points.source_input[::3] + 5
    predicted[1::3] = points.source_input.roll(7, 0)[1::3] - 5
    own, expected, counted = copies(points, predicted, wrong, alpha, seed)
    loop = reference_copies(points, predicted, drawn_swaps(wrong, seed), alpha)
    assert own.tolist() == near_source(points, predicted, wrong, alpha).double().tolist() == loop[0]
    assert expected.tolist() == pytest.approx(loop[1])
    assert counted.tolist() == loop[2]


def test_drawn_swaps_stand_for_all_of_them() -> None:
    points = table(400)
    predicted = uniform(400, 1)
    wrong = missed(points, predicted, 0.2)
    _, expected, counted = copies(points, predicted, wrong, 0.2, seed=0)
    everyone, every_counted = (torch.tensor(loop) for loop in reference_copies(points, predicted, every_swap(wrong), 0.2)[1:])
    assert torch.equal(counted, every_counted), "where there are many swaps, only a keypoint's own source point decides"
    assert 0.2 < counted.double().mean() < 0.8
    usable = usable_swaps(points, drawn_swaps(wrong, seed=0), 0.2)
    draws = double([len(usable.get(i, [])) for i in range(400)])
    noise = (everyone * (1 - everyone) / draws)[counted].sum().sqrt() / counted.sum()
    assert abs((expected - everyone)[counted].mean()) < 4 * noise
    assert torch.corrcoef(torch.stack([expected, everyone])[:, counted])[0, 1] > 0.6


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_planted_copies_are_found_and_their_excess_is_their_share(share: float) -> None:
    n = 3000
    points, copied = table(n), flags(n, share, 3)
    predicted = torch.where(copied[:, None], points.source_input + 1, uniform(n, 4))
    wrong = missed(points, predicted, 0.1)
    own, expected, counted = copies(points, predicted, wrong, 0.1, seed=0)
    assert (own[copied & wrong] == 1).all()
    assert counted.sum() > n / 2
    planted, chance = copied[counted].double().mean().item(), expected[counted].mean().item()
    assert planted == pytest.approx(share, abs=0.05)
    excess = (own - expected)[counted].mean().item()
    assert excess == pytest.approx(planted * (1 - chance), abs=4 * 0.25 / math.sqrt(counted.sum().item()))


@pytest.mark.parametrize("attracted", [False, True])
def test_predictions_that_do_not_look_at_the_source_have_no_excess(attracted: bool) -> None:
    n = 4000
    points = table(n, spread=0.4)  # objects are in the middle, so that any central prediction is often near the source
    predicted = double([[SIZE / 2, SIZE / 2]] * n) if attracted else uniform(n, 5) * 0.4 + 0.3 * SIZE
    own, expected, counted = copies(points, predicted, missed(points, predicted, 0.1), 0.1, seed=0)
    own, expected = own[counted], expected[counted]
    assert len(own) > 1000
    assert own.mean() > 0.05, "the control: there are copies"
    assert abs((own - expected).mean().item()) < 4 * (own - expected).std().item() / math.sqrt(len(own))


@pytest.mark.parametrize(("moved", "boxes"), [(None, (0.1, 0.8)), (0.04, (0.05, 0.4)), (0.08, (0.1, 0.8)), (0.12, (0.2, 1.0))])
def test_a_blind_guess_has_no_excess_however_near_source_and_target_are(
    moved: float | None, boxes: tuple[float, float]
) -> None:
    """Guesses are uniform in a square that holds every disc around a source or target point, so that chance is known."""
    n, spread = 40_000, 0.2
    square = spread + 2 * (moved or 0) + 2 * 0.1 * boxes[1]
    points = table(n, spread=spread, moved=moved, boxes=boxes)
    predicted = (uniform(n, 5) - SIZE / 2) * square + SIZE / 2
    wrong = missed(points, predicted, 0.1)
    own, expected, counted = copies(points, predicted, wrong, 0.1, seed=0)
    disc = math.pi * double(reaches(points, 0.1)) ** 2
    chance = disc / ((square * SIZE) ** 2 - disc)  # of a guess that is out of the target's reach

    def errors(difference: Tensor) -> float:
        """The mean, in standard errors."""
        return difference.mean().item() / (difference.std().item() / math.sqrt(len(difference)))

    assert own[counted].sum() > 25
    assert abs(errors((own - expected)[counted])) < 4
    assert abs(errors((own - chance)[counted])) < 4
    assert abs(errors((expected - chance)[counted])) < 4
    assert errors((own - chance)[wrong]) < -5, "the control: were every source point to count, guesses would seem to avoid it"


# --- strata ----------------------------------------------------------------------------------------------------------


@given(st.integers(1, 60), st.floats(0.1, 1.3), st.integers(0, 10**6))
@settings(max_examples=40)
def test_displacements_and_edges_each_hold_every_keypoint_once(n: int, spread: float, seed: int) -> None:
    points = table(n, seed=seed, scale=(0.7, 1.9), spread=spread)
    strata = dict(location_strata(points))
    assert strata["all"].all()
    for kind, names in (("displacement", DISPLACEMENTS), ("edge", EDGES)):
        assert (sum(strata[f"{kind}_{name}"].int() for name in names) == 1).all()
    for i, ((x, y), (u, v)) in enumerate(zip(points.source_input.tolist(), points.target_input.tolist(), strict=True)):
        moved, edge = math.hypot(u - x, v - y) / SIZE, min(u, v, SIZE - u, SIZE - v) / SIZE
        expected = {f"displacement_{'near' if moved < 0.15 else 'middle' if moved < 0.35 else 'far'}"}
        expected |= {f"edge_{'near' if edge < 1 / 16 else 'middle' if edge < 3 / 16 else 'far'}", "all"}
        assert {name for name, members in strata.items() if members[i]} == expected


def equal(masks: dict[str, Tensor]) -> dict[str, Tensor]:
    """Random masks of equal size, which is all that matches ask of them."""
    return {group: masks[group].flatten() for group in MASKED}


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
            equal(target),
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
    strata = dict(group_strata(matches.compute(), 0))
    for end in ("target", "predicted"):
        assert (sum(strata[f"{end}_{group}"].int() for group in ("corner", "border", "interior")) == 1).all()
    for i, cell in enumerate(matches.compute()["cell"][0].tolist()):
        for group in GROUPS:
            assert bool(strata[f"predicted_{group}"][i]) == bool(masks[group][i].flatten()[cell])


def test_columns_and_masked_cells_are_what_was_matched() -> None:
    matches, _ = matched(30, ("test", "zero_shot"))
    state, columns = matches.compute(), matches.columns()
    for w, way in enumerate(matches.conditions):
        assert columns[f"{way}/cell"].tolist() == state["cell"][w].tolist()
        for g, group in enumerate(MASKED):
            for name, random in (("without", False), ("without_random", True)):
                expected = state[name][w, g].tolist()
                assert masked_cells(state, w, group, random).tolist() == expected == columns[f"{way}/{name}_{group}"].tolist()


def test_keypoints_that_were_never_matched_are_in_no_group() -> None:
    empty = Matches(SIDE, (WAY,), rows=7)
    strata = dict(group_strata({name: getattr(empty, name) for name in ("source_in", "target_in", "landed_in")}, 0))
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
    matches.update(torch.arange(n), {WAY: found}, {WAY: without}, {WAY: random}, true, inside, masks, equal(masks))
    values = Correspondence(points).costs(matches, WAY)
    reference = Correspondence(points).correct(matches, WAY).double().mean().item()
    for g, group in enumerate(GROUPS):
        assert torch.equal(matches.compute()["target_in"][g] > 0, inside[group]), "where the truth is, not the match"
    assert values[f"{MAIN}/all"] == pytest.approx(reference)
    elsewhere = int((~inside["high_norm"]).sum())
    assert values["harm/high_norm/n"] == values["harm_random/high_norm/n"] == elsewhere, "true tokens are not masked"
    assert values["harm/high_norm"] == pytest.approx((1 - reference) * n / elsewhere), "all are right without the attractor"
    assert values["harm/high_norm"] == pytest.approx(share, abs=0.06)
    assert values["harm/corner"] == values["harm_random/high_norm"] == values["harm_random/corner"] == 0
    if share:
        assert values["harm/high_norm/ci_low"] <= values["harm/high_norm"] <= values["harm/high_norm/ci_high"]
    if share:
        assert values["attraction/high_norm"] == pytest.approx(1 - 1 / SIDE**2), "every wrong match is on it"
        assert values["attraction/corner"] == pytest.approx(-4 / SIDE**2)
        assert values[f"{MAIN}/predicted_high_norm"] < 0.1
    else:
        assert reference == 1
        assert "attraction/high_norm" not in values, "no match is wrong"


def masked_world(attracted: float) -> tuple[Keypoints, Matches, Tensor]:
    """Matches by real masks: every keypoint is most alike its true token, or (so many) a high-norm token elsewhere.

    Also returns which keypoints the high-norm tokens take.
    """
    n, side = 2000, SIDE * SIDE
    points, taken = whole_boxes(table(n)), flags(n, attracted, 7)
    place = tokens_at(points.target_input, SIZE / SIDE, SIDE, SIDE)
    true = place[:, 0] * SIDE + place[:, 1]
    matches = Matches(SIDE, (WAY,), n)
    for number, rows in enumerate(torch.arange(n).split(20)):
        generator = torch.Generator().manual_seed(number)
        masks = border_groups(SIDE, SIDE) | {"high_norm": torch.rand(SIDE, SIDE, generator=generator) < 0.05}
        similarity = torch.rand(len(rows), side, generator=generator)
        similarity[torch.arange(len(rows)), true[rows]] = 2
        similarity += 3 * taken[rows, None] * masks["high_norm"].flatten()
        other = {group: random_mask(masks, group, number, group) for group in MASKED}
        matches.update(
            rows,
            {WAY: best(similarity)},
            {WAY: {group: best(similarity, masks[group].flatten()) for group in MASKED}},
            {WAY: {group: best(similarity, other[group]) for group in MASKED}},
            true[rows],
            {group: mask.flatten()[true[rows]] for group, mask in masks.items()},
            masks,
            other,
        )
    return points, matches, taken


def test_without_any_anomaly_masking_costs_nothing() -> None:
    points, matches, _ = masked_world(0.0)
    values = Correspondence(points).costs(matches, WAY)
    assert values[f"{MAIN}/all"] == 1
    for group in MASKED:
        for name in ("harm", "harm_random"):
            assert values[f"{name}/{group}"] == 0
            assert f"{name}/{group}/ci_low" not in values, "where no picture changes, nothing says how rare changes are"
            assert values[f"{name}/{group}/n"] > 1000
    state = matches.compute()
    for random in (False, True):
        cell = matches.positions(masked_cells(state, 0, "border", random))
        missed_by = (cell * torch.tensor([SIDE, 1])).sum(1) != state["cell"][0]
        assert missed_by.double().mean() > 0.1, "the control: were every keypoint to count, either mask would seem to cost"


def test_a_group_that_takes_matches_is_blamed_and_as_many_random_tokens_are_not() -> None:
    points, matches, taken = masked_world(0.3)
    reported = Correspondence(points)
    values, counted = reported.costs(matches, WAY), matches.compute()["comparable"][MASKED.index("high_norm")] > 0
    lost = (taken & ~reported.correct(matches, WAY))[counted].double().mean().item()
    assert lost > 0.2
    assert values["harm/high_norm"] == pytest.approx(lost)
    assert values["harm/high_norm/ci_low"] > 0.15
    assert values["harm_random/high_norm"] == 0
    assert values["harm/border"] == pytest.approx(values["harm_random/border"], abs=0.05), "which takes none of its own"


def test_masking_what_matches_rest_on_does_harm_of_the_other_sign() -> None:
    n = 50
    points = whole_boxes(table(n))
    place = tokens_at(points.target_input, SIZE / SIDE, SIDE, SIDE)
    true = place[:, 0] * SIDE + place[:, 1]
    far = (true + SIDE * SIDE // 2) % (SIDE * SIDE)
    matches, masks = Matches(SIDE, (WAY,), n), border_groups(SIDE, SIDE) | {"high_norm": torch.zeros(SIDE, SIDE) > 0}
    inside = {group: mask.flatten()[true] for group, mask in masks.items()}
    matches.update(
        torch.arange(n),
        {WAY: true},
        {WAY: dict.fromkeys(MASKED, far)},
        {WAY: dict.fromkeys(MASKED, true)},
        true,
        inside,
        masks,
        equal(masks),
    )
    values = Correspondence(points).costs(matches, WAY)
    assert values["harm/corner"] == values["harm/border"] == -1
    assert values["harm_random/corner"] == 0
    assert not any("high_norm" in key for key in values), "a group that no picture has"


# --- what is reported ------------------------------------------------------------------------------------------------


def test_copies_are_reported_where_they_count() -> None:
    n = 600
    points = table(n, moved=0.15, spread=0.6)
    matches, _ = matched(n)
    matches.cell[0, ::2] = (tokens_at(points.source_input, SIZE / SIDE, SIDE, SIDE) @ torch.tensor([SIDE, 1]))[::2].int()
    reported = Correspondence(points, seed=4)
    values, wrong = reported.costs(matches, WAY), ~reported.correct(matches, WAY)
    predicted = centres(matches.positions(matches.cell[0]), SIZE / SIDE).double()
    own, expected, counted = (double(loop) for loop in reference_copies(points, predicted, drawn_swaps(wrong, 4), 0.1))
    assert 0 < counted.sum() < wrong.sum()
    for name, column in (("share", own), ("share_expected", expected), ("excess", own - expected)):
        assert values[f"copy_{name}/all"] == pytest.approx(column[counted > 0].mean().item())
        assert values[f"copy_{name}/all/n"] == counted.sum()
    assert values["copy_excess/all/ci_low"] > 0.2
    _, verdicts = reported.verdicts(matches, WAY)
    near = near_source(points, predicted, wrong, 0.1)
    assert torch.equal(verdicts == 2, near) and (near & (counted == 0)).any(), "pictures show all that are near the source"
    assert torch.equal(verdicts == 1, ~wrong)


def test_without_copies_that_count_none_are_reported() -> None:
    points = whole_boxes(table(100, moved=0.15, spread=0.6))
    reported = Correspondence(points).costs(matched(100)[0], WAY)
    assert f"{MAIN}/all" in reported
    assert not any(key.startswith("copy_") for key in reported)


def test_hits_are_of_keypoints_that_were_all_matched() -> None:
    points, (matches, _) = table(50), matched(50)
    reported = Correspondence(points)
    assert reported.correct(matches, WAY).shape == (50,)
    matches.cell[0, [3, 40]] = -1
    for report in (reported.correct, reported.costs, reported.verdicts):
        with pytest.raises(InputError, match=r"2 of 50 were not.*limit_test_batches"):
            report(matches, WAY)
    matches.reset()
    with pytest.raises(InputError, match="50 of 50"), pytest.warns(UserWarning, match="before the ``update``"):
        reported.correct(matches, WAY)


def test_a_way_that_was_not_matched_is_missed_only_where_it_is_asked_for() -> None:
    matches, _ = matched(20, ("test", "zero_shot"))
    matches.cell[1, 7] = -1
    reported = Correspondence(table(20))
    assert reported.correct(matches, "test").shape == (20,)
    with pytest.raises(InputError, match="1 of 20"):
        reported.correct(matches, "zero_shot")


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


@pytest.mark.parametrize("changed", [0, 1, 2, 3, 12])
def test_a_gain_has_an_interval_where_six_pictures_change(changed: int) -> None:
    points = table(60)  # 12 pairs of two pictures of their own
    right = flags(60, 0.5, 1)
    found = Correspondence(points).gain(right ^ (points.pair < changed), right)
    differences = (right ^ (points.pair < changed)).double() - right.double()
    assert found[f"{MAIN}/all"] == pytest.approx(differences.mean().item()) and found[f"{MAIN}/all/n"] == 60
    assert (f"{MAIN}/all/ci_low" in found) == (f"{MAIN}/all/ci_high" in found) == (2 * changed >= 6)
    if 2 * changed >= 6:
        assert found[f"{MAIN}/all/ci_low"] <= found[f"{MAIN}/all"] <= found[f"{MAIN}/all/ci_high"]


@pytest.mark.parametrize("lost", [False, True])
def test_gains_over_networks_are_means_over_them_with_an_interval_from_three_on(lost: bool) -> None:
    points, right = table(60), flags(60, 0.5, 1)
    others = [flags(60, 0.4, seed) for seed in range(2, 5)]
    found = Correspondence(points).gain_over_seeds(right, others[: 2 if lost else 3])
    alone = [Correspondence(points).gain(right, other) for other in others[: 2 if lost else 3]]
    for key in (key for key in alone[0] if key.count("/") == 1):
        assert found[key] == pytest.approx(np.mean([each[key] for each in alone]), abs=1e-9)
        assert found[f"{key}/seeds"] == len(alone)
    assert (f"{MAIN}/all/ci_low" in found) == (not lost)


@pytest.mark.parametrize(("drawn", "reported"), [(4, True), (3, False)])
def test_harm_is_reported_where_the_random_mask_is_as_large_as_the_group(drawn: int, reported: bool) -> None:
    n, masks = 40, border_groups(SIDE, SIDE) | {"high_norm": torch.zeros(SIDE, SIDE, dtype=torch.bool)}
    points, matches = table(n), Matches(SIDE, (WAY,), n)
    cell, other = torch.zeros(n, dtype=torch.long), torch.zeros(SIDE * SIDE, dtype=torch.bool)
    other[SIDE + 1 : SIDE + 1 + drawn] = True
    found = {WAY: dict.fromkeys(MASKED, cell)}
    inside = {group: torch.zeros(n, dtype=torch.bool) for group in GROUPS}
    true = cell + SIDE * SIDE // 2 + 8
    matches.update(torch.arange(n), {WAY: cell}, found, found, true, inside, masks, equal(masks) | {"corner": other})
    assert ("harm/corner" in Correspondence(points).costs(matches, WAY)) == reported
