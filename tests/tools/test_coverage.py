"""Intervals cover and tests reject as often as they say, at the n where they are printed.

The default suite simulates a few worlds; the slow test all of them, with the data sets behind the table of docs/methods.md.
"""

import pytest
from scipy import stats

from tools.coverage import LEVELS, POWER, Level, table

WANTED = {0.95: 0.93, 0.05: 0.06}  # nominal → least coverage, most rejections
QUICK = ["random weights and gains over them, 3 seeds", "accuracy, PCK, δ < 1.25", "corner risk", "any star, 23 mitigations"]
QUICK.append("the best of several layers is not called worse")
SURE = 1e-4  # that a level which holds fails by chance


def short_of(level: Level, n: int, repeats: int) -> dict[str, float]:
    """Worlds whose simulated level is further from the wanted one than chance explains."""
    wanted = WANTED[level.nominal]
    found = {}
    for world, share in level.simulated(n, repeats).items():
        count = round(share * repeats)
        tail = stats.binom.cdf(count, repeats, wanted) if level.nominal > 0.5 else stats.binom.sf(count - 1, repeats, wanted)
        if tail < SURE:
            found[world] = share
    return found


@pytest.mark.parametrize("level", [level for level in LEVELS if level.what in QUICK], ids=lambda level: level.what)
def test_levels_hold_in_a_few_data_sets(level: Level) -> None:
    assert not short_of(level, level.sizes[0], 150)


@pytest.mark.slow
@pytest.mark.parametrize("level", LEVELS, ids=lambda level: level.what)
def test_levels_hold(level: Level) -> None:
    for n in level.sizes:
        assert not short_of(level, n, 2000), n


def test_a_test_that_rejected_too_often_would_be_found() -> None:
    never, always = (Level("planted", 0.05, (8,), {"": lambda generator, n, said=said: said}) for said in (False, True))
    assert short_of(always, 8, 50) and not short_of(never, 8, 50)
    missing = Level("planted", 0.95, (8,), {"": lambda generator, n: bool(generator.random() < 0.74)})
    assert short_of(missing, 8, 300), "as five seeds did whose interval was over photographs only"


def test_stars_are_won_where_the_effect_is_there() -> None:
    assert POWER.simulated(16, 60)["correlation .5"] > 0.8
    assert POWER.simulated(8, 60)["correlation .5"] > 0.2


def test_the_table_has_a_row_for_every_level() -> None:
    rows = table(repeats=1).splitlines()
    assert sum(row.startswith("| ") for row in rows) == 1 + len(LEVELS) + 3
