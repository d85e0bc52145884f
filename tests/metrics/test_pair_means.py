"""PairMeans: means and resampled pictures agree with slow loops, and intervals cover what they say they cover."""

import itertools
import math
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import metrics.pair_means
from metrics.pair_means import FEWEST, PairMeans
from tokens.keypoints import Keypoints

AVERAGES = ("point", "image", "macro", "pair")
Row = tuple[int, int, int, int]  # pair, category, source, target


def keypoints(rows: list[Row]) -> Keypoints:
    whole, n = torch.tensor(rows), len(rows)
    points, frames = torch.zeros(n, 2, dtype=torch.float64), torch.ones(n, 2, dtype=torch.float64)
    return Keypoints(
        *whole.unbind(1), whole[:, 0], whole[:, 0], points, points, torch.zeros(n, 4, dtype=torch.float64), frames,
        frames, points, frames, points, size=1,
    )  # fmt: skip


def random_rows(pairs: int, categories: int, pictures: int, seed: int) -> list[Row]:
    """Pairs of 1 to 5 keypoints; categories share picture numbers, and a picture may be paired with itself."""
    generator = np.random.default_rng(seed)
    rows: list[Row] = []
    for pair in range(pairs):
        category, source, target = generator.integers((categories, pictures, pictures)).tolist()
        rows += [(2 * pair, category, source, target)] * int(generator.integers(1, 6))
    return rows


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def strata(rows: list[Row], columns: int, seed: int) -> Tensor:
    """Masks of keypoints; the first is everyone, the second nobody, the third lacks a category, others whole pairs too."""
    generator = np.random.default_rng(seed)
    masks = generator.random((len(rows), columns)) < 0.4
    for m in range(columns):
        dropped = {pair for pair, *_ in rows if generator.random() < 0.3}
        masks[:, m] &= np.array([pair not in dropped for pair, *_ in rows])
    masks[:, 0], masks[:, 1] = True, False
    masks[:, 2] = [category != rows[0][1] for _, category, _, _ in rows]
    return torch.from_numpy(masks).double()


# --- the definitions -------------------------------------------------------------------------------------------------


def mean(values: list[float], weights: list[float]) -> float:
    total = sum(weights)
    return sum(v * w for v, w in zip(values, weights, strict=True)) / total if total else math.nan


def reference(average: str, rows: list[Row], value: list[float], counted: list[float], weight: dict[int, float]) -> float:
    """A mean of one column where pairs count ``weight`` times."""
    members = [i for i, chosen in enumerate(counted) if chosen]
    if average == "point":
        return mean([value[i] for i in members], [weight[rows[i][0]] for i in members])
    if average == "image":
        mine = {pair: [value[i] for i in members if rows[i][0] == pair] for pair in dict.fromkeys(rows[i][0] for i in members)}
        return mean([sum(values) / len(values) for values in mine.values()], [weight[pair] for pair in mine])
    means, shares = [], []
    for category in sorted({row[1] for row in rows}):
        inside = [i for i in members if rows[i][1] == category]
        found = mean([value[i] for i in inside], [weight[rows[i][0]] for i in inside])
        if not math.isnan(found):
            means.append(found)
            shares.append(sum(weight[pair] for pair in {row[0] for row in rows if row[1] == category}))
    return mean(means, shares if average == "pair" else [1.0] * len(means))


def resampled(rows: list[Row], resamples: int, seed: int) -> list[dict[int, float]]:
    """Weights of pairs by resample: pictures of every category are drawn with replacement, as often as there are."""
    generator = torch.Generator().manual_seed(seed)
    tallies: list[dict[tuple[int, int], int]] = [{} for _ in range(resamples)]
    for category in sorted({row[1] for row in rows}):
        pictures = sorted({row[end] for row in rows if row[1] == category for end in (2, 3)})
        drawn = torch.randint(len(pictures), (resamples, len(pictures)), generator=generator)
        for tally, draws in zip(tallies, drawn.tolist(), strict=True):
            found = Counter(draws)
            tally.update({(category, picture): found[k] for k, picture in enumerate(pictures)})
    return [{pair: float(tally[c, s] * tally[c, t]) for pair, c, s, t in rows} for tally in tallies]


# --- agreement -------------------------------------------------------------------------------------------------------


@given(st.integers(1, 12), st.integers(1, 4), st.integers(1, 6), st.integers(0, 10**6))
@settings(max_examples=40)
def test_means_agree_with_a_loop(pairs: int, categories: int, pictures: int, seed: int) -> None:
    rows = random_rows(pairs, categories, pictures, seed)
    value, counted = randn(len(rows), 6, seed=seed), strata(rows, 6, seed)
    once = {row[0]: 1.0 for row in rows}
    for average in AVERAGES:
        found = PairMeans(keypoints(rows)).means(average, value, counted)
        expected = [reference(average, rows, value[:, m].tolist(), counted[:, m].tolist(), once) for m in range(6)]
        assert found.tolist() == pytest.approx(expected, abs=1e-12, nan_ok=True), average
        assert found[1].isnan(), "nobody has a mean"


def pictures_counted(rows: list[Row], counted: list[float]) -> int:
    """Distinct pictures of the pairs that count; a picture of two categories is drawn for each, and so is two."""
    return len({(row[1], row[end]) for row, chosen in zip(rows, counted, strict=True) if chosen for end in (2, 3)})


@given(st.integers(1, 12), st.integers(1, 3), st.integers(2, 6), st.sampled_from([0, FEWEST]), st.integers(0, 10**6))
@settings(max_examples=30)
def test_intervals_agree_with_a_loop_over_the_same_draws(
    pairs: int, categories: int, pictures: int, fewest: int, seed: int
) -> None:
    rows = random_rows(pairs, categories, pictures, seed)
    value, counted = randn(len(rows), 4, seed=seed), strata(rows, 4, seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metrics.pair_means, "RESAMPLES", 41)
        patch.setattr(metrics.pair_means, "CHUNK", 8)
        patch.setattr(metrics.pair_means, "FEWEST", fewest)  # none: then only what resamples have decides
        shared = PairMeans(keypoints(rows), seed=3)  # draws once, for all averages
        found = {average: shared.intervals(average, value, counted) for average in AVERAGES}
    for average, m in itertools.product(AVERAGES, range(4)):
        columns = value[:, m].tolist(), counted[:, m].tolist()
        drawn = np.array([reference(average, rows, *columns, weight) for weight in resampled(rows, 41, seed=3)])
        known = drawn[~np.isnan(drawn)]
        told = 2 * len(known) >= 41 and pictures_counted(rows, columns[1]) >= fewest
        expected = np.quantile(known, [0.025, 0.975]).tolist() if told else [math.nan, math.nan]
        assert [bound[m].item() for bound in found[average]] == pytest.approx(expected, abs=1e-12, nan_ok=True), average


# --- laws ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("average", AVERAGES)
def test_equal_values_have_an_interval_without_width(average: str) -> None:
    rows = random_rows(30, 3, 8, seed=0)
    value = torch.full((len(rows), 3), 0.37, dtype=torch.float64)
    low, high = PairMeans(keypoints(rows)).intervals(average, value, strata(rows, 3, seed=0))
    for bound in (low, high):
        assert bound.tolist() == pytest.approx([0.37, math.nan, 0.37], abs=1e-12, nan_ok=True)


@pytest.mark.parametrize("average", AVERAGES)
def test_a_difference_of_two_methods_is_paired(average: str) -> None:
    rows = random_rows(40, 3, 8, seed=1)
    pairs = PairMeans(keypoints(rows))
    one = randn(len(rows), 1)
    columns = torch.cat([one, one + 0.05, torch.full_like(one, 0.05)], 1)  # better by 0.05 everywhere
    everyone = torch.ones_like(columns)
    means = pairs.means(average, columns, everyone)
    low, high = pairs.intervals(average, columns, everyone)
    assert (means[1] - means[0]).item() == pytest.approx(means[2].item()) == pytest.approx(0.05)
    for bound in (low, high):
        assert (bound[1] - bound[0]).item() == pytest.approx(0.05, abs=1e-12)
        assert bound[2].item() == pytest.approx(0.05, abs=1e-12)
    assert (high[0] - low[0]).item() > 0.1, "though each of them is uncertain"


@pytest.mark.parametrize("average", AVERAGES)
def test_the_order_of_pairs_and_the_columns_beside_a_column_change_nothing(average: str) -> None:
    rows = random_rows(25, 3, 7, seed=2)
    value, counted = randn(len(rows), 4), strata(rows, 4, seed=2)
    straight = torch.stack(PairMeans(keypoints(rows)).intervals(average, value, counted))
    order = sorted(range(len(rows)), key=lambda i: (rows[i][0] * 7919 % 31, i))
    backward = PairMeans(keypoints([rows[i] for i in order]))
    torch.testing.assert_close(torch.stack(backward.intervals(average, value[order], counted[order])), straight, equal_nan=True)
    alone = PairMeans(keypoints(rows)).intervals(average, value[:, 3:], counted[:, 3:])
    torch.testing.assert_close(torch.stack(alone)[:, 0], straight[:, 3], equal_nan=True)


def test_only_its_seed_moves_an_interval() -> None:
    rows = random_rows(25, 3, 7, seed=3)
    value = randn(len(rows), 1)
    bounds = [
        PairMeans(keypoints(rows), seed).intervals("point", value, torch.ones_like(value))[0].item() for seed in (0, 0, 1)
    ]
    assert bounds[0] == bounds[1] != bounds[2]


def test_one_category_has_the_same_mean_by_point_category_and_pair() -> None:
    rows = random_rows(25, 1, 7, seed=4)
    value = randn(len(rows), 1)
    point, macro, pair = (
        PairMeans(keypoints(rows)).means(average, value, torch.ones_like(value)).item()
        for average in ("point", "macro", "pair")
    )
    assert point == pytest.approx(macro) == pytest.approx(pair)


def test_means_differ_where_their_definitions_do() -> None:
    # category 0: a pair of one keypoint, 1, and a pair of three, 0; category 1: a pair of two, 0 and 1
    rows = [(0, 0, 0, 1), *[(1, 0, 1, 2)] * 3, *[(2, 1, 0, 1)] * 2]
    value = torch.tensor([[1.0], [0], [0], [0], [0], [1]], dtype=torch.float64)
    found = {average: PairMeans(keypoints(rows)).means(average, value, torch.ones_like(value)).item() for average in AVERAGES}
    assert found == pytest.approx({"point": 2 / 6, "image": 1.5 / 3, "macro": (1 / 4 + 1 / 2) / 2, "pair": (2 / 4 + 1 / 2) / 3})


def test_values_that_do_not_count_may_be_anything() -> None:
    rows = random_rows(20, 3, 6, seed=5)
    value, counted = randn(len(rows), 4), strata(rows, 4, seed=5)
    wild = value.masked_fill(counted == 0, math.nan)
    pairs = PairMeans(keypoints(rows))
    for average in AVERAGES:
        assert torch.equal(pairs.means(average, wild, counted).isnan(), counted.sum(0) == 0)
        torch.testing.assert_close(
            torch.stack(pairs.intervals(average, wild, counted)),
            torch.stack(pairs.intervals(average, value, counted)),
            equal_nan=True,
        )


def test_a_stratum_that_few_pictures_have_uses_the_resamples_that_have_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics.pair_means, "FEWEST", 0)
    rows = [(pair, 0, pair, pair + 1) for pair in range(20)]
    counted = torch.zeros(20, 2, dtype=torch.float64)
    counted[[3, 10, 17], 0] = 1  # drawn in about 78 % of resamples
    counted[3, 1] = 1  # drawn in about 40 %
    low, high = PairMeans(keypoints(rows)).intervals("point", randn(20, 2), counted)
    assert low[0] < high[0]
    assert low[1].isnan() and high[1].isnan()


@pytest.mark.parametrize("average", AVERAGES)
def test_fewer_than_five_pictures_have_no_interval_and_five_have_one(average: str) -> None:
    ordered = list(itertools.permutations(range(8), 2))
    rows = [(pair, 0, *ends) for pair, ends in enumerate(ordered) for _ in range(3)]
    among = [all(end < few for end in ends) for few in (2, 3, 4, 5, 6) for ends in ordered]
    counted = torch.tensor(among).double().view(5, -1).T.repeat_interleave(3, 0)
    value, pairs = randn(len(rows), 5), PairMeans(keypoints(rows))
    low, high = pairs.intervals(average, value, counted)
    assert low.isnan().tolist() == high.isnan().tolist() == [True, True, True, False, False]
    assert (low < high).tolist() == [False, False, False, True, True]
    assert pairs.means(average, value, counted).isfinite().all(), "means need no more than a keypoint"


def test_pictures_are_counted_once_whichever_end_they_are_and_of_all_categories() -> None:
    cases = {
        "four, as sources and as targets": ([(0, 0, 1), (0, 1, 0), (0, 2, 3), (0, 3, 2)], False),
        "four, with themselves": ([(0, k, k) for k in range(4)], False),
        "five, with themselves": ([(0, k, k) for k in range(5)], True),
        "one source and four targets": ([(0, 9, k) for k in range(4)], True),
        "two of a category and two of another": ([(0, 0, 1), (1, 2, 3)], False),
        "two of a category and three of another": ([(0, 0, 1), (1, 2, 3), (1, 3, 4)], True),
    }
    for name, (pairs, told) in cases.items():
        rows = [(number, *pair) for number, pair in enumerate(pairs)]
        value = randn(len(rows), 1)
        low, _ = PairMeans(keypoints(rows)).intervals("point", value, torch.ones_like(value))
        assert low.isfinite().item() == told, name


def test_a_picture_of_two_categories_is_drawn_for_each() -> None:
    rows = [(pair, pair % 2, pair // 2, pair // 2 + 1) for pair in range(40)]
    value = randn(20, 1).repeat_interleave(2, 0)  # the second category repeats the first
    value[1::2] *= -1
    low, high = PairMeans(keypoints(rows)).intervals("macro", value, torch.ones_like(value))
    assert low.item() < -0.1 and high.item() > 0.1, "drawn together they would cancel"


# --- coverage --------------------------------------------------------------------------------------------------------

DIFFERENCE = 0.05
DATA_SETS = 400


def design(seed: int) -> list[Row]:
    """Pairs as datasets draw them: 6 categories of 20 pictures, 120 ordered pairs each, 2 to 10 keypoints."""
    generator = np.random.default_rng(seed)
    rows: list[Row] = []
    for category in range(6):
        ordered = list(itertools.permutations(range(20), 2))
        for number, chosen in enumerate(generator.choice(len(ordered), 120, replace=False)):
            rows += [(120 * category + number, category, *ordered[chosen])] * int(generator.integers(2, 11))
    return rows


def simulated(rows: list[Row], picture: float, pair: float, alike: bool, seed: int) -> Tensor:
    """Hits of one method minus another's in many data sets: (n, DATA_SETS), of mean DIFFERENCE.

    Chances to hit scatter by ± ``picture`` with the source and with the target, by ± ``pair`` with the pair: in both methods
    together and, as much, in each alone. With ``alike`` a picture is as hard a source as a target. What is easy for one method
    is easy for the other.
    """
    generator, table = np.random.default_rng(seed), np.array(rows)
    source, target = (table[:, 1] * 100 + table[:, end] for end in (2, 3))

    def effect(spread: float, count: int) -> np.ndarray:
        return generator.uniform(-spread, spread, (count, DATA_SETS))

    def scatter() -> np.ndarray:
        asked = effect(picture, 1000)
        found = asked if alike else effect(picture, 1000)
        return asked[source] + found[target] + effect(pair, 1000)[table[:, 0]]

    both, ease = scatter(), generator.random((len(rows), DATA_SETS))
    chances = [level + both + scatter() for level in (0.5 + DIFFERENCE, 0.5)]
    assert all(((chance > 0) & (chance < 1)).all() for chance in chances), "no chance is cut, so that the difference is exact"
    return torch.from_numpy((ease < chances[0]).astype(float) - (ease < chances[1]))


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    return design(0)


@pytest.mark.parametrize(
    ("picture", "pair", "alike"),
    [(0.1, 0.02, True), (0.1, 0.02, False), (0.04, 0.12, True), (0.0, 0.0, True)],
    ids=["pictures", "sources and targets", "pairs", "neither"],
)
def test_intervals_of_a_difference_cover_it_and_are_not_absurdly_wide(
    rows: list[Row], picture: float, pair: float, alike: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics.pair_means, "RESAMPLES", 500)
    monkeypatch.setattr(metrics.pair_means, "CHUNK", 100)
    value, pairs = simulated(rows, picture, pair, alike, seed=1), PairMeans(keypoints(rows))
    for average in AVERAGES:
        means = pairs.means(average, value, torch.ones_like(value))
        low, high = pairs.intervals(average, value, torch.ones_like(value))
        covered = ((low <= DIFFERENCE) & (high >= DIFFERENCE)).double().mean().item()
        width = ((high - low).mean() / (2 * 1.96 * means.std())).item()
        assert means.mean().item() == pytest.approx(DIFFERENCE, abs=4 * means.std().item() / DATA_SETS**0.5)
        assert covered >= 0.90
        assert 0.85 < width < 1.1 * math.sqrt(3), "1 would be exact; √3 is what it costs if only keypoints scatter"


def test_treating_keypoints_as_independent_would_not_cover(rows: list[Row]) -> None:
    value = simulated(rows, picture=0.1, pair=0.02, alike=True, seed=2)
    spread = 1.96 * value.std(0) / len(value) ** 0.5
    covered = ((value.mean(0) - DIFFERENCE).abs() <= spread).double().mean().item()
    assert covered < 0.6, "the control: pictures, not keypoints, are what is sampled"
