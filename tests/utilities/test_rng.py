"""Random streams depend on their key and on nothing else."""

from collections import Counter

import pytest
import torch

from sdprobe.utilities.rng import drawing_order, keyed_generator


def draw(*key: object, count: int = 64) -> torch.Tensor:
    return torch.randn(count, generator=keyed_generator(*key))


def test_the_stream_of_a_key_never_changes() -> None:
    # cached posteriors and published numbers depend on it: a change here invalidates both
    generator = keyed_generator("noise", 0, "cat.jpg", 0)
    assert generator.initial_seed() == 4946449270997390642
    assert torch.randn(4, generator=generator).tolist() == pytest.approx([1.004955, 0.630986, 0.652811, 1.135035], abs=1e-6)


@pytest.mark.parametrize("other", [("noise", 1, "a", 0), ("noise", 0, "b", 0), ("noise", 0, "a", 1), ("roll", 0, "a", 0)])
def test_every_part_of_a_key_matters(other: tuple[object, ...]) -> None:
    assert not torch.equal(draw("noise", 0, "a", 0), draw(*other))


def test_parts_are_separate_and_ordered() -> None:
    assert not torch.equal(draw("ab", "c"), draw("a", "bc"))
    assert not torch.equal(draw("abc"), draw("ab", "c"))
    assert not torch.equal(draw(1, 2), draw(2, 1))
    assert not torch.equal(draw(1, 12), draw(11, 2))


def test_streams_of_neighbouring_keys_are_uncorrelated() -> None:
    streams = torch.stack([draw("noise", 0, str(i), count=512) for i in range(100)])
    correlations = torch.corrcoef(streams)[torch.triu(torch.ones(100, 100), diagonal=1) > 0]
    assert correlations.abs().max() < 5 / 512**0.5
    assert correlations.square().mean().item() == pytest.approx(1 / 512, rel=0.15)


def test_the_global_generator_has_no_say_and_keeps_its_state() -> None:
    torch.manual_seed(1)
    first, state = draw("x"), torch.get_rng_state()
    torch.manual_seed(2)
    assert torch.equal(draw("x"), first)
    torch.manual_seed(1)
    assert torch.equal(torch.get_rng_state(), state)


FOLDERS = {"cat": 40, "dog": 5, "": 7, "dog/old": 1, "owl": 30}
NAMES = [f"{folder}/{number:03}.png".lstrip("/") for folder, count in FOLDERS.items() for number in range(count)]


def drawn(names: list[str], count: int, seed: int = 0) -> set[str]:
    return {names[index] for index in drawing_order(names, seed)[:count]}


@pytest.mark.parametrize("count", [1, 4, 5, 12, 23, 60, 83])
def test_a_draw_is_spread_over_folders_as_evenly_as_they_allow(count: int) -> None:
    taken = Counter(name.rpartition("/")[0] for name in drawn(NAMES, count))
    assert taken.total() == count
    for folder, size in FOLDERS.items():
        assert taken[folder] == size or taken[folder] >= max(taken.values()) - 1


def test_a_larger_draw_contains_a_smaller_one_and_the_order_of_names_does_not_matter() -> None:
    assert drawn(NAMES, 10) < drawn(NAMES, 11) and sorted(drawing_order(NAMES, 0)) == list(range(len(NAMES)))
    assert drawn(NAMES, 10) == drawn(NAMES[::-1], 10) != drawn(NAMES, 10, seed=1)


@pytest.mark.parametrize("more", ["cat/new.png", "dog/new.png", "new/new.png", "new.png"])
@pytest.mark.parametrize("count", [10, 30, 70])
def test_one_more_name_replaces_at_most_one(more: str, count: int) -> None:
    assert len(drawn(NAMES, count) - drawn([*NAMES, more], count)) <= 1


def test_names_of_a_folder_are_equally_likely() -> None:
    names = [f"{number}" for number in range(10)]
    counts = Counter(name for seed in range(2000) for name in drawn(names, 3, seed))
    assert all(520 < counts[name] < 680 for name in names)  # 600 expected, standard deviation 20
