"""PairMeans: means and what pictures contribute to them agree with slow loops, whatever pictures and pairs are called."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from sdprobe.metrics.pair_means import PairMeans
from sdprobe.tokens.batch import Keypoints

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
    """Masks of keypoints: all, none, without one category, and others that also leave out whole pairs."""
    generator = np.random.default_rng(seed)
    masks = generator.random((len(rows), columns)) < 0.4
    for m in range(columns):
        dropped = {pair for pair, *_ in rows if generator.random() < 0.3}
        masks[:, m] &= np.array([pair not in dropped for pair, *_ in rows])
    masks[:, 0], masks[:, 1] = True, False
    masks[:, 2] = [category != rows[0][1] for _, category, _, _ in rows]
    return torch.from_numpy(masks).double()


# --- the definitions -------------------------------------------------------------------------------------------------


def mean(values: list[float], weights: list[float] | None = None) -> float:
    shares = weights or [1.0] * len(values)
    return sum(v * w for v, w in zip(values, shares, strict=True)) / sum(shares) if values else math.nan


def reference(average: str, rows: list[Row], value: list[float], counted: list[float]) -> float:
    """A mean of one column."""
    members = [i for i, chosen in enumerate(counted) if chosen]
    if average == "point":
        return mean([value[i] for i in members])
    if average == "image":
        pairs = dict.fromkeys(rows[i][0] for i in members)
        return mean([mean([value[i] for i in members if rows[i][0] == pair]) for pair in pairs])
    means, shares = [], []
    for category in sorted({rows[i][1] for i in members}):
        means.append(mean([value[i] for i in members if rows[i][1] == category]))
        shares.append(float(len({row[0] for row in rows if row[1] == category})))
    return mean(means, shares if average == "pair" else None)


def deviations(average: str, rows: list[Row], value: list[float], counted: list[float]) -> dict[int, float]:
    """By how much every pair that counts moves the mean."""
    members = [i for i, chosen in enumerate(counted) if chosen]
    of = {pair: [i for i in members if rows[i][0] == pair] for pair in dict.fromkeys(rows[i][0] for i in members)}
    whole = reference(average, rows, value, counted)
    if average == "point":
        return {pair: sum(value[i] - whole for i in mine) / len(members) for pair, mine in of.items()}
    if average == "image":
        return {pair: (mean([value[i] for i in mine]) - whole) / len(of) for pair, mine in of.items()}
    categories = {rows[i][1] for i in members}
    size = {c: float(len({row[0] for row in rows if row[1] == c})) if average == "pair" else 1.0 for c in categories}
    found = {}
    for pair, mine in of.items():
        category = rows[mine[0]][1]
        inside = [i for i in members if rows[i][1] == category]
        own = mean([value[i] for i in inside])
        found[pair] = size[category] / sum(size.values()) * sum(value[i] - own for i in mine) / len(inside)
    return found


def contributions(average: str, rows: list[Row], value: list[float], counted: list[float]) -> dict[tuple[int, int], float]:
    """(category, picture) → its pseudo-value, by the definition: θ + n · f · Σ over its pairs of their deviation."""
    moved = deviations(average, rows, value, counted)
    ends = {pair: ((category, source), (category, target)) for pair, category, source, target in rows}
    pictures = sorted({picture for pair in moved for picture in ends[pair]})
    apart = average in ("macro", "pair")
    found = {}
    for picture in pictures:
        near = [other for other in pictures if other[0] == picture[0] or not apart]
        if len(near) < 3:
            return {}
        factor = (len(near) - 1) / (len(near) - 2) * (math.sqrt(len(near) / (len(near) - 1)) if apart else 1)
        total = sum(deviation for pair, deviation in moved.items() for end in ends[pair] if end == picture)
        found[picture] = reference(average, rows, value, counted) + len(pictures) * factor * total
    return found


# --- agreement -------------------------------------------------------------------------------------------------------

cases = given(st.integers(1, 12), st.integers(1, 4), st.integers(1, 6), st.integers(0, 10**6))


@cases
@settings(max_examples=30)
def test_means_agree_with_a_loop(pairs: int, categories: int, pictures: int, seed: int) -> None:
    rows = random_rows(pairs, categories, pictures, seed)
    value, counted = randn(len(rows), 6, seed=seed), strata(rows, 6, seed)
    for average in AVERAGES:
        found = PairMeans(keypoints(rows)).means(average, value, counted)
        expected = [reference(average, rows, value[:, m].tolist(), counted[:, m].tolist()) for m in range(6)]
        assert found.tolist() == pytest.approx(expected, abs=1e-12, nan_ok=True), average
        assert found[1].isnan(), "nobody has a mean"


@cases
@settings(max_examples=30)
def test_contributions_agree_with_a_loop_and_their_mean_is_the_mean(
    pairs: int, categories: int, pictures: int, seed: int
) -> None:
    rows = random_rows(pairs, categories, pictures, seed)
    value, counted = randn(len(rows), 4, seed=seed), strata(rows, 4, seed)
    everyone = sorted({(row[1], row[end]) for row in rows for end in (2, 3)})
    for average, m in itertools.product(AVERAGES, range(4)):
        found = PairMeans(keypoints(rows)).pseudovalues(average, value, counted)[:, m]
        expected = contributions(average, rows, value[:, m].tolist(), counted[:, m].tolist())
        assert found.tolist() == pytest.approx([expected.get(p, math.nan) for p in everyone], abs=1e-9, nan_ok=True), average
        if expected:
            whole = PairMeans(keypoints(rows)).means(average, value, counted)[m].item()
            assert np.nanmean(found) == pytest.approx(whole, abs=1e-9)


# --- laws ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("average", AVERAGES)
@pytest.mark.parametrize("seed", range(4))
def test_names_and_the_order_of_pairs_and_other_columns_change_nothing(average: str, seed: int) -> None:
    rows = random_rows(25, 3, 7, seed=seed)
    value, counted = randn(len(rows), 4), strata(rows, 4, seed=seed)
    pairs = PairMeans(keypoints(rows))
    means, straight = pairs.means(average, value, counted), pairs.pseudovalues(average, value, counted)
    # rows are numbered anew, categories and pictures renamed, sources and targets swapped
    order = sorted(range(len(rows)), key=lambda i: (rows[i][0] * 7919 % 31, i))
    renamed = [(rows[i][0] + 5, 8 - 2 * rows[i][1], 90 - rows[i][3], 90 - rows[i][2]) for i in order]
    other = PairMeans(keypoints(renamed))
    torch.testing.assert_close(other.means(average, value[order], counted[order]), means, equal_nan=True)
    backward = other.pseudovalues(average, value[order], counted[order])
    np.testing.assert_allclose(backward[::-1], straight, atol=1e-9)  # both names fall where the old ones rose
    np.testing.assert_allclose(pairs.pseudovalues(average, value[:, 3:], counted[:, 3:])[:, 0], straight[:, 3], atol=1e-12)


def test_values_that_do_not_count_may_be_anything() -> None:
    rows = random_rows(20, 3, 6, seed=5)
    value, counted = randn(len(rows), 4), strata(rows, 4, seed=5)
    wild = value.masked_fill(counted == 0, math.nan)
    pairs = PairMeans(keypoints(rows))
    for average in AVERAGES:
        assert torch.equal(pairs.means(average, wild, counted).isnan(), counted.sum(0) == 0)
        np.testing.assert_array_equal(pairs.pseudovalues(average, wild, counted), pairs.pseudovalues(average, value, counted))


def test_pictures_are_those_of_pairs_that_count() -> None:
    rows = [(pair, pair % 2, pair // 2, pair // 2 + 1) for pair in range(40)]  # two chains of 21 pictures
    counted = torch.zeros(40, 3, dtype=torch.float64)
    counted[:, 0] = 1
    counted[[0, 8, 16], 1] = 1  # three pairs of the first category, six pictures
    counted[[0, 1, 8, 9], 2] = 1  # two pairs of each, four pictures
    pairs = PairMeans(keypoints(rows))
    for average in AVERAGES:
        found = pairs.pseudovalues(average, randn(40, 3), counted)
        assert np.isfinite(found).sum(0).tolist() == [42, 6, 8]
        assert np.flatnonzero(np.isfinite(found[:, 1])).tolist() == [0, 1, 4, 5, 8, 9]
    event = counted * (torch.arange(40) % 16 == 0).double()[:, None]
    assert pairs.touched(event).tolist() == [6, 4, 2]
    assert pairs.touched(event > 0).tolist() == [6, 4, 2]
    assert pairs.touched(0 * event).tolist() == [0, 0, 0]


@pytest.mark.parametrize("pairs", [3, 30])
def test_pairs_without_shared_pictures_have_twice_the_variance_they_need(pairs: int) -> None:
    rows = [(pair, 0, 2 * pair, 2 * pair + 1) for pair in range(pairs)]
    value = randn(pairs, 1)
    found = PairMeans(keypoints(rows)).pseudovalues("image", value, torch.ones_like(value))[:, 0]
    ratio = stats.sem(found) ** 2 / stats.sem(value[:, 0].numpy()) ** 2
    assert ratio == pytest.approx((2 * pairs - 1) / (pairs - 1)), "2 but for few pictures: that is what is wide"


def test_pairs_that_share_pictures_have_the_variance_of_pictures() -> None:
    rows = [(i, 0, source, target) for i, (source, target) in enumerate(itertools.permutations(range(24), 2))]
    spread = []
    for seed in range(40):
        effect = randn(24, 1, seed=seed)[:, 0]
        value = torch.stack([effect[source] + effect[target] for _, _, source, target in rows])[:, None]
        found = PairMeans(keypoints(rows)).pseudovalues("point", value, torch.ones_like(value))[:, 0]
        spread.append(stats.sem(found) ** 2)
    # the mean of all pairs is twice that of pictures, whose variance is 1/24
    assert np.mean(spread) == pytest.approx(4 / 24, rel=0.15)
