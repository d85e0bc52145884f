"""The choice among cells: a planted peak is in its set, a peak of noise is not reported too high."""

import numpy as np
import pytest

from sdprobe.metrics.choice import choose
from sdprobe.metrics.intervals import mean_interval, share_interval
from sdprobe.utilities.errors import InputError

CELLS, REPEATS = 15, 200


def _accuracies(generator: np.random.Generator, means: np.ndarray, units: int) -> np.ndarray:
    """Shares of 64 tokens of each photograph, in cells that share the difficulty of the photograph."""
    easy = generator.normal(0, 0.08, units)
    own = generator.normal(0, 0.05, (len(means), units))
    return generator.binomial(64, np.clip(means[:, None] + easy + own, 0.01, 0.99)) / 64


@pytest.mark.parametrize("units", [10, 13, 32])
def test_the_set_holds_a_planted_peak_in_95_percent_of_experiments(units: int) -> None:
    generator = np.random.default_rng(units)
    means = np.full(CELLS, 0.55)
    means[4] = 0.6
    held, sizes = 0, []
    for _ in range(REPEATS):
        table = _accuracies(generator, means, units)
        choice = choose({f"cell_{i}": row for i, row in enumerate(table)})
        chosen = {choice.chosen, *choice.equal}
        held += "cell_4" in chosen
        sizes.append(len(chosen))
    assert held >= 0.95 * REPEATS
    if units == 32:
        assert np.mean(sizes) < CELLS  # a set of everything would hold the peak, too


@pytest.mark.parametrize("units", [10, 13, 32])
def test_a_peak_of_noise_is_not_reported_above_its_true_value_by_more_than_its_interval(units: int) -> None:
    """All cells are equal. The chosen one looks too good on validation, not on test."""
    generator = np.random.default_rng(units + 1)
    means = np.full(CELLS, 0.55)
    covered, optimism = 0, []
    for _ in range(REPEATS):
        validation, test = _accuracies(generator, means, units), _accuracies(generator, means, units)
        best = int(choose({str(i): row for i, row in enumerate(validation)}).chosen)
        low, _ = share_interval(test[best])
        covered += low <= 0.55
        optimism.append((validation[best].mean() - 0.55, test[best].mean() - 0.55))
    on_validation, on_test = map(np.array, zip(*optimism, strict=True))
    assert covered >= 0.93 * REPEATS
    assert mean_interval(on_validation)[0] > 0  # what is corrected exists
    assert abs(on_test.mean()) < 4 * on_test.std() / np.sqrt(REPEATS)


def test_cells_without_a_number_on_some_photograph_are_named() -> None:
    scores = {"a": np.linspace(0, 1, 12), "b": np.linspace(0, 1, 12) + 1, "c": np.append(np.linspace(5, 6, 11), np.nan)}
    choice = choose(scores)
    assert (choice.chosen, choice.equal, choice.units, choice.left_out) == ("b", (), 12, ("c",))


def test_ties_go_to_the_first_cell() -> None:
    scores = {name: np.linspace(0, 1, 12) for name in "abc"}
    assert choose(scores).chosen == "a" and choose(scores).equal == ("b", "c")


@pytest.mark.parametrize("scores", [{}, {"a": np.ones(9)}, {"a": np.append(np.ones(9), np.nan)}])
def test_fewer_than_ten_photographs_are_refused(scores: dict[str, np.ndarray]) -> None:
    with pytest.raises(InputError, match="at least 10 validation photographs to choose by, but got"):
        choose(scores)
