"""How every table writes its numbers: intervals, what these rest on, a caution where too little stands behind them."""

import re
from collections.abc import Callable, Sequence

from rich import box
from rich.table import Table

from sdprobe.metrics.intervals import FEWEST, FEWEST_SEEDS
from sdprobe.reports.run import Run
from sdprobe.tokens.keys import GROUPS, select

FEW = f"n < {FEWEST}"  # in place of an interval: so many units were tested
SPARSE = "few"  # the same: so few of them carry the number, or differ in it
MARK = "†"  # behind a number
GROUPS_OF_IMAGES = 20
SHORT = 4  # mitigations that a sentence still names


def number(value: float | None, digits: int = 3) -> str:
    """Without the leading zero; a dash where nothing was measured."""
    return "–" if value is None else re.sub(r"^(-?)0\.", r"\1.", f"{value:.{digits}f}")


def percent(value: float | None) -> str:
    """A share in percent, one decimal; a dash where nothing was measured."""
    return "–" if value is None else f"{100 * value:.1f}"


def half(
    run: Run, what: str, layer: str, metric: str, group: str = "all", write: Callable[[float], str] = number, few: str = FEW
) -> str:
    """The longer arm of a number's interval; where it has none, that units (``few``) or random networks are too few; nothing
    without the number."""
    value, low, high = (run.value(what, layer, metric, group, end) for end in ("", "ci_low", "ci_high"))
    if value is None:
        return ""
    return lacking(run, what, few) if low is None or high is None else write(max(value - low, high - value))


def lacking(run: Run, what: str, few: str = FEW) -> str:
    """Why a number has no interval."""
    if "random_weights" in what and _seeds(run) < FEWEST_SEEDS:
        return seeds(run)
    count, _ = units(run)
    return SPARSE if few == FEW and count is not None and count >= FEWEST else few


def by_group(run: Run, what: str, layer: str, metric: str, groups: Sequence[str] = ("all", *GROUPS)) -> list[str]:
    """A number for every token group, measured ones bold; marked where too few units stand behind it for an interval.

    ``all`` has no mark: its interval stands beside it.
    """
    cells = []
    for group in groups:
        value = run.value(what, layer, metric, group)
        text = f"[bold]{number(value)}[/bold]" if what == "test" else number(value)
        few = group != "all" and value is not None and run.value(what, layer, metric, group, "ci_low") is None
        cells.append(text + MARK * few)
    return cells


def units(run: Run) -> tuple[int | None, str]:
    """(number, name) of what the intervals of a run rest on; None where an old run does not tell."""
    if run.kind == "statistics":
        return GROUPS_OF_IMAGES, "groups of images"
    if run.kind == "correspondence":
        return run.meta["images"].get("test"), "test pictures"
    if "photographs" in run.meta:
        return run.meta["photographs"].get("test"), "test photographs"
    return run.meta["images"].get("test"), "test images"


def tested(run: Run) -> str:
    """What a run was tested on, for titles: ``12 test photographs``, ``24 test images of 12 photographs``, …"""
    count, name = units(run)
    images = run.meta["images"].get("test")
    if run.kind == "statistics":
        return f"{images} images in {count} groups"
    if run.kind == "correspondence":
        return f"{run.meta['pairs']['test']} test pairs of {images} pictures"
    return f"{count} {name}" if images == count else f"{images} test images of {count} photographs"


def intervals(run: Run, shown: str = "±: the longer arm of the 95 % interval") -> str:
    """The sentence on a run's intervals: over how many units, or that these are too few."""
    count, name = units(run)
    if count is not None and count < FEWEST:
        return f"Only {count} {name}: no intervals below {FEWEST}, and values near 0 or 1 say little."
    return f"{shown} over {'' if count is None else f'{count} '}{name}."


def seeds(run: Run) -> str:
    """How many random networks stand behind the numbers of ``random_weights``: ``one seed``, ``3 seeds``; empty without."""
    count = _seeds(run)
    return "" if not count else "one seed" if count == 1 else f"{count} seeds"


def _seeds(run: Run) -> int:
    found = select(run.metrics, condition="random_weights")
    counts = map(int, select(found, statistic="seeds").values())
    return max(counts, default=int(run.meta.get("twins") or 0)) if found else 0


def random_weights(run: Run) -> str:
    """``random weights, one seed``."""
    return ", ".join(filter(None, ("random weights", seeds(run))))


def over_seeds(run: Run) -> bool:
    """Whether numbers with random weights have intervals, over networks and units."""
    return bool(select(run.metrics, condition="random_weights", statistic="ci_low"))


def alone(run: Run) -> str:
    """What a run that compares several mitigations did not measure; empty for any other."""
    if len(run.labels) < 2:
        return ""
    chain = f"the chain {' → '.join(run.labels)}" if len(run.labels) <= SHORT else "the chain of all"
    return f"Each mitigation is applied alone; {chain} is measured without datamodule.compare."


def run_table(title: str, run: Run, padding: tuple[int, int, int, int] = (0, 0, 0, 0)) -> Table:
    """An empty table of a run; the title says where the run is incomplete."""
    state = "" if run.meta["complete"] else "  INCOMPLETE"
    return Table(
        title=title + state, title_justify="left", caption_justify="left", box=box.SIMPLE_HEAD, padding=padding, show_edge=False
    )


def captioned(shown: Table, run: Run, *sentences: str, sep: str = " ") -> Table:
    """The table with its caption: these sentences, what a mark in it means, what a comparison did not measure."""
    cells = [str(cell) for column in shown.columns for cell in column.cells]
    marks = [MARK] * any(MARK in cell for cell in cells) + [SPARSE] * any(cell.endswith(SPARSE) for cell in cells)
    _, name = units(run)
    why = f"fewer than {FEWEST} {name} carry the number or differ in it, or few hold most of it: no interval."
    note = f"{', '.join(marks)}: {why}" if marks else ""
    shown.caption = sep.join(filter(None, (*sentences, note, alone(run))))
    return shown
