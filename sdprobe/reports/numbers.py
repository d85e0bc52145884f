"""How every table writes its numbers: intervals, what these rest on, a caution where too little stands behind them."""

import math
import re
from collections.abc import Callable, Sequence

from rich import box
from rich.table import Table

from sdprobe.metrics.intervals import FEWEST, FEWEST_SEEDS
from sdprobe.reports.run import Run
from sdprobe.tokens.keys import GROUPS, select

MISSING = "–"  # in place of a number that was not measured
FEW = f"n < {FEWEST}"  # in place of an interval: so many units were tested
SPARSE = "few"  # the same: so few of them carry the number, or differ in it
MARK = "†"  # behind a number
GROUPS_OF_IMAGES = 20
SHORT = 4  # mitigations that a sentence still names


def number(value: float | None, digits: int = 3, sign: bool = False) -> str:
    """Without the leading zero, with ``sign`` with a plus before what is not negative; a dash where nothing was measured."""
    if value is None or math.isnan(value):
        return MISSING
    return re.sub(r"^([+-]?)0\.", r"\1.", f"{value:{'+' * sign}.{digits}f}")


def percent(value: float | None) -> str:
    """A share in percent, one decimal; a dash where nothing was measured."""
    return MISSING if value is None else f"{100 * value:.1f}"


def with_ends(value: float, low: float = math.nan, high: float = math.nan, sign: bool = False) -> str:
    """Two decimals with a true minus, and the interval in brackets if there is one.

    >>> with_ends(-0.5, -0.75, 0.25), with_ends(0.5, sign=True)
    ('−.50 [−.75, .25]', '+.50')
    """
    ends = "" if math.isnan(low) else f" [{number(low, 2)}, {number(high, 2)}]"
    return f"{number(value, 2, sign)}{ends}".replace("-", "−")


def six_digits(value: object) -> object:
    """A value as CSV files hold it: floats with six digits; nothing in place of NaN."""
    return value if not isinstance(value, float) else "" if math.isnan(value) else f"{value:.6g}"


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """A table of Markdown; the second row is that of dashes.

    >>> markdown([["a", "b"], ["---", "---"], ["1", "2"]])
    '| a | b |\\n| --- | --- |\\n| 1 | 2 |\\n'
    """
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def half(
    run: Run, what: str, layer: str, metric: str, group: str = "all", write: Callable[[float], str] = number, few: str = FEW
) -> str:
    """The longer arm of a number's interval; where it has none, that units (``few``) or random networks are too few; nothing
    without the number."""
    value, low, high = run.estimate(what, layer, metric, group)
    if value is None:
        return ""
    return lacking(run, what, few) if low is None or high is None else write(max(value - low, high - value))


def ends(run: Run, what: str, layer: str, metric: str, write: Callable[[float], str]) -> str:
    """Both ends of a number's interval, or why it has none."""
    _, low, high = run.estimate(what, layer, metric)
    return lacking(run, what) if low is None or high is None else f"{write(low)} to {write(high)}"


def lacking(run: Run, what: str, few: str = FEW) -> str:
    """Why a number has no interval."""
    if "random_weights" in what and _seeds(run) < FEWEST_SEEDS:
        return seeds(run)
    count, _ = units(run)
    return SPARSE if few == FEW and count is not None and count >= FEWEST else few


def by_group(run: Run, what: str, layer: str, metric: str) -> list[str]:
    """A number over all tokens, its half width if it was measured and is no null, and the number of every token group.

    Measured ones are bold. A group's number is marked where too few units stand behind it for an interval.
    """
    own = what == "test"
    cells = []
    for group in ("all", *GROUPS):
        value, low, _ = run.estimate(what, layer, metric, group)
        text = f"[bold]{number(value)}[/bold]" if own else number(value)
        cells.append(text + MARK * (group != "all" and value is not None and low is None))
    return [cells[0], half(run, what, layer, metric) if own else "", *cells[1:]]


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


def intervals(run: Run) -> str:
    """The sentence on a run's intervals: over how many units, or that these are too few."""
    count, name = units(run)
    if count is not None and count < FEWEST:
        return f"Only {count} {name}: no intervals below {FEWEST}, and values near 0 or 1 say little."
    return f"±: the longer arm of the 95 % interval over {'' if count is None else f'{count} '}{name}."


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


def random_header(run: Run) -> str:
    """``random weights, one seed``, on three lines."""
    return random_weights(run).replace(" ", "\n", 2)


def random_cells(run: Run, layer: str, metric: str, few: str = FEW) -> list[str]:
    """A number with random weights, and its half width if any of the run has one."""
    cells = [number(run.value("random_weights", layer, metric))]
    return cells + [half(run, "random_weights", layer, metric, few=few)] * over_seeds(run)


def alone(run: Run) -> str:
    """What a run that compares several mitigations did not measure; empty for any other."""
    if len(run.labels) < 2:
        return ""
    chain = f"the chain {' → '.join(run.labels)}" if len(run.labels) <= SHORT else "the chain of all"
    return f"Each mitigation is applied alone; {chain} is measured without datamodule.compare."


def bare_table(title: str, caption: str = "", spaced: bool = False) -> Table:
    """An empty table, its columns two blanks apart if ``spaced`` and one if not."""
    return Table(
        title=title, caption=caption or None, title_justify="left", caption_justify="left", box=box.SIMPLE_HEAD,
        padding=(0, int(spaced), 0, 0), show_edge=False,
    )  # fmt: skip


def run_table(title: str, run: Run, spaced: bool = False) -> Table:
    """An empty table of a run; the title says where the run is incomplete."""
    return bare_table(title + ("" if run.meta["complete"] else "  INCOMPLETE"), spaced=spaced)


def add_columns(table: Table, *headers: str, left: bool = False, dim: bool = False) -> None:
    """Columns that are never folded: texts on the ``left``, numbers on the right."""
    for header in headers:
        table.add_column(header, no_wrap=True, justify="left" if left else "right", style="dim" if dim else "")


def probe_table(
    run: Run,
    title: str,
    names: Sequence[str],
    more: Sequence[str] = (),
    before: Sequence[str] = (),
    after: Sequence[str] = (),
) -> Table:
    """An empty table of a linear probe. Its columns: texts (``names``), :func:`by_group`, ``more`` numbers, and dimmed those of
    baselines, with :func:`random_cells` in between."""
    table = run_table(f"{title}: {run.setting}, {tested(run)}", run)
    add_columns(table, *names, left=True)
    add_columns(table, "all", "±", *(group.replace("_", "\n") for group in GROUPS), *more)
    add_columns(table, *before, random_header(run), *["±"] * over_seeds(run), *after, dim=True)
    return table


def captioned(shown: Table, run: Run, *sentences: str, sep: str = " ") -> Table:
    """The table with its caption: these sentences, what a mark in it means, what a comparison did not measure."""
    cells = [str(cell) for column in shown.columns for cell in column.cells]
    marks = [MARK] * any(MARK in cell for cell in cells) + [SPARSE] * any(cell.endswith(SPARSE) for cell in cells)
    _, name = units(run)
    why = f"fewer than {FEWEST} {name} carry the number or differ in it, or few hold most of it: no interval."
    note = f"{', '.join(marks)}: {why}" if marks else ""
    shown.caption = sep.join(filter(None, (*sentences, note, alone(run))))
    return shown
