"""split_by_photo: a partition that photographs never straddle, and that does not depend on anything it should not."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sdprobe.tokens.splits import DEFAULT_SHARES, split_by_photo
from sdprobe.utilities.errors import InputError

photo_lists = st.lists(st.integers(0, 60), min_size=10, max_size=150).map(lambda numbers: [f"p{n}.jpg" for n in numbers])
usable = photo_lists.filter(lambda photos: len(set(photos)) >= 10)
protocols = st.sampled_from(["default", "loos2025"])
seeds = st.integers(0, 5)


def by_name(photos: list[str], split: dict[str, list[int]]) -> dict[str, str]:
    return {photos[i]: name for name, part in split.items() for i in part}


@given(usable, protocols, seeds)
@settings(deadline=None)
def test_the_splits_are_a_partition(photos: list[str], protocol: str, seed: int) -> None:
    split = split_by_photo(photos, protocol, seed)
    assert sorted(i for part in split.values() for i in part) == list(range(len(photos)))
    assert set(split) == {"fit", "train", "val", "test"}


@given(usable, protocols, seeds)
@settings(deadline=None)
def test_a_photograph_never_straddles_two_splits(photos: list[str], protocol: str, seed: int) -> None:
    where: dict[str, set[str]] = {}
    for name, part in split_by_photo(photos, protocol, seed).items():
        for i in part:
            where.setdefault(photos[i], set()).add(name)
    assert all(len(names) == 1 for names in where.values())


@given(usable, seeds, st.randoms(use_true_random=False))
@settings(deadline=None)
def test_default_does_not_depend_on_the_order_of_files(photos: list[str], seed: int, shuffler: random.Random) -> None:
    permuted = photos.copy()
    shuffler.shuffle(permuted)
    assert by_name(photos, split_by_photo(photos, seed=seed)) == by_name(permuted, split_by_photo(permuted, seed=seed))


@given(usable, seeds, st.integers(2, 4))
@settings(deadline=None)
def test_more_crops_of_the_same_photographs_change_nothing(photos: list[str], seed: int, crops: int) -> None:
    repeated = [photo for photo in photos for _ in range(crops)]
    assert by_name(photos, split_by_photo(photos, seed=seed)) == by_name(repeated, split_by_photo(repeated, seed=seed))


@given(st.integers(10, 400), seeds)
@settings(deadline=None)
def test_default_shares_are_40_32_8_20_and_nothing_is_empty(count: int, seed: int) -> None:
    split = split_by_photo([str(i) for i in range(count)], seed=seed)
    for name, share in DEFAULT_SHARES.items():
        assert abs(len(split[name]) - share * count) <= 1
        assert split[name]
    assert DEFAULT_SHARES == {"fit": 0.4, "train": 0.32, "val": 0.08, "test": 0.2}


@given(usable, seeds)
@settings(deadline=None)
def test_loos2025_trains_on_the_first_80_percent_and_tests_on_the_rest(photos: list[str], seed: int) -> None:
    split = split_by_photo(photos, "loos2025", seed)
    distinct = list(dict.fromkeys(photos))
    trained = list(dict.fromkeys(photos[i] for i in split["train"]))
    assert trained == distinct[: len(trained)]
    assert abs(len(trained) - 0.8 * len(distinct)) <= 0.5
    assert split["fit"] == split["val"] == []
    assert split_by_photo(photos, "loos2025", seed + 1) == split, "no draw"


def test_seeds_give_different_splits_and_equal_seeds_equal_ones() -> None:
    photos = [str(i) for i in range(100)]
    assert split_by_photo(photos, seed=0) == split_by_photo(photos, seed=0)
    assert split_by_photo(photos, seed=0) != split_by_photo(photos, seed=1)


def test_default_is_not_a_cut_of_the_sorted_names() -> None:
    photos = [f"{i:03d}" for i in range(200)]
    test = split_by_photo(photos)["test"]
    assert min(test) < 40
    assert max(test) > 160


@pytest.mark.parametrize("photos", [[], ["a"] * 50, [str(i) for i in range(9)]])
def test_too_few_photographs_are_counted_in_the_message(photos: list[str]) -> None:
    with pytest.raises(InputError, match=rf"at least 10 distinct photographs to split, but got {len(set(photos))}\..*limit"):
        split_by_photo(photos)


def test_an_unknown_protocol_is_refused() -> None:
    with pytest.raises(InputError, match="splits to be one of default, loos2025, but got 'random'"):
        split_by_photo([str(i) for i in range(20)], "random")
