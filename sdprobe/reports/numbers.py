"""Number formats that all tables share: values, intervals, sample sizes, and marks for too small samples."""

import math
import re
from collections.abc import Callable, Sequence

from rich import box
from rich.markup import escape
from rich.table import Table

from sdprobe.metrics.intervals import FEWEST, FEWEST_SEEDS
from sdprobe.reports.run import Run
from sdprobe.tokens.keys import ENERGY, GROUPS, select

MISSING = "–"  # replaces a number that was not measured
FEW = f"n < {FEWEST}"  # replaces an interval: too few units were tested
SPARSE = "few"  # replaces an interval: too few units contribute to the number, or differ in it
MARK = "†"  # follows the number of a group that has no interval
GROUPS_OF_IMAGES = 20
EQUAL = "random energy: as much energy removed from each image as the mitigation removes, along random directions."
SHORT = 4  # a caption names at most so many mitigations
LOPSIDED = 2  # an interval whose longer side is so many times the shorter one is given by its ends


def number(value: float | None, digits: int = 3, sign: bool = False) -> str:
    """Without the leading zero; ``sign`` adds a plus to non-negative numbers; a dash if nothing was measured."""
    if value is None or math.isnan(value):
        return MISSING
    return re.sub(r"^([+-]?)0\.", r"\1.", f"{value:{'+' * sign}.{digits}f}")


def percent(value: float | None) -> str:
    """A share in percent with one decimal; a dash if nothing was measured."""
    return MISSING if value is None else f"{100 * value:.1f}"


def with_ends(value: float, low: float = math.nan, high: float = math.nan, sign: bool = False) -> str:
    """Two decimals with a minus sign (U+2212), and the interval in brackets if there is one.

    >>> with_ends(-0.5, -0.75, 0.25), with_ends(0.5, sign=True)
    ('−.50 [−.75, .25]', '+.50')
    """
    ends = "" if math.isnan(low) else f" [{number(low, 2)}, {number(high, 2)}]"
    return f"{number(value, 2, sign)}{ends}".replace("-", "−")


def six_digits(value: object) -> object:
    """A value for a CSV file: floats with six digits, an empty cell for NaN."""
    return value if not isinstance(value, float) else "" if math.isnan(value) else f"{value:.6g}"


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; its second row must be the dashes.

    >>> markdown([["a", "b"], ["---", "---"], ["1", "2"]])
    '| a | b |\\n| --- | --- |\\n| 1 | 2 |\\n'
    """
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def half(
    run: Run,
    condition: str,
    layer: str,
    metric: str,
    group: str = "all",
    write: Callable[[float], str] = number,
    few: str = FEW,
) -> str:
    """Half-width of a number's interval; both ends if one side is much longer; the reason if there is no interval, which is
    ``few`` for too few units; empty if the number was not measured."""
    value, low, high = run.estimate(condition, layer, metric, group)
    if value is None:
        return ""
    return lacking(run, condition, few) if low is None or high is None else within(value, low, high, write)


def within(value: float, low: float, high: float, write: Callable[[float], str] = number) -> str:
    """Half-width of an interval (its longer side), or ``[low, high]`` if one side is more than twice as long as the other.

    >>> within(0.5, 0.4, 0.61), within(0.001, 0.0, 0.365)
    ('.110', '[.000, .365]')
    """
    short, long = sorted((value - low, high - value))
    return f"[{write(low)}, {write(high)}]" if long > LOPSIDED * short else write(long)


def ends(run: Run, condition: str, layer: str, metric: str, write: Callable[[float], str]) -> str:
    """Both ends of a number's interval, or the reason why it has none."""
    _, low, high = run.estimate(condition, layer, metric)
    return lacking(run, condition) if low is None or high is None else f"{write(low)} to {write(high)}"


def lacking(run: Run, condition: str, few: str = FEW) -> str:
    """Why a number has no interval."""
    if "random_weights" in condition and _seeds(run) < FEWEST_SEEDS:
        return seeds(run)
    count, _ = units(run)
    return SPARSE if few == FEW and count is not None and count >= FEWEST else few


def by_group(run: Run, condition: str, layer: str, metric: str) -> list[str]:
    """A number over all tokens, its half-width unless it is a baseline, and the number of every token group.

    Numbers of the measured network are bold. A group's number is marked if it has too few units for an interval.
    """
    own = condition == "test"
    cells = []
    for group in ("all", *GROUPS):
        value, low, _ = run.estimate(condition, layer, metric, group)
        text = f"[bold]{number(value)}[/bold]" if own else number(value)
        cells.append(text + MARK * (group != "all" and value is not None and low is None))
    return [cells[0], half(run, condition, layer, metric) if own else "", *cells[1:]]


def units(run: Run) -> tuple[int | None, str]:
    """(number, name) of the units that intervals of a run are computed from; None if an old run does not record it."""
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
    """A sentence on the intervals of a run: how many units they are computed from, or that these are too few."""
    count, name = units(run)
    if count is not None and count < FEWEST:
        return f"Only {count} {name}: there are no intervals below {FEWEST}, and values near 0 or 1 are unreliable."
    over = f"{'' if count is None else f'{count} '}{name}"
    return f"±: half-width (longer side) of the 95 % interval over {over}; ends if a side is more than twice the other."


def seeds(run: Run) -> str:
    """Number of random networks in the mean of ``random_weights``: ``one seed``, ``3 seeds``; empty if there is none."""
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
    """Whether numbers of random weights have intervals, which cover networks and units."""
    return bool(select(run.metrics, condition="random_weights", statistic="ci_low"))


def random_header(run: Run) -> str:
    """``random weights, one seed``, broken into three lines."""
    return random_weights(run).replace(" ", "\n", 2)


def random_cells(run: Run, layer: str, metric: str, few: str = FEW) -> list[str]:
    """A number of random weights, and its half-width if any such number of the run has one."""
    cells = [number(run.value("random_weights", layer, metric))]
    return cells + [half(run, "random_weights", layer, metric, few=few)] * over_seeds(run)


def energy_header(run: Run) -> list[str]:
    """Heading of the column of controls of equal energy; none if the run has no such controls."""
    return ["random\nenergy"] * bool(select(run.metrics, condition=ENERGY))


def energy_cells(run: Run, layer: str, metric: str) -> list[str]:
    """A number of the control of equal energy; a dash for a layer without one; nothing without such controls."""
    return [number(run.value(ENERGY, layer, metric)) for _ in energy_header(run)]


def unmeasured(run: Run) -> str:
    """A sentence on what a run with mitigations did not measure; empty for other runs."""
    if inside := run.meta.get("inside"):
        return f"Mitigations edit {inside} while the network runs; all layers are read from that pass."
    if run.chain:
        both = "datamodule.compare=true measures both" if " → " not in run.chain else "mitigation=none measures it"
        return f"raw: not measured; {both}."
    if len(run.labels) < 2 or run.kind == "role":  # which measures the chain, too
        return ""
    chain = f"the chain {' → '.join(run.labels)}" if len(run.labels) <= SHORT else "the chain of all"
    return f"Each mitigation is applied alone. To measure {chain}, leave datamodule.compare out."


def bare_table(title: str, caption: str = "", spaced: bool = False) -> Table:
    """An empty table; columns are two spaces apart if ``spaced``, else one."""
    return Table(
        title=escape(title), caption=escape(caption) or None, title_justify="left", caption_justify="left", box=box.SIMPLE_HEAD,
        padding=(0, int(spaced), 0, 0), show_edge=False,
    )  # fmt: skip


def run_table(title: str, run: Run, spaced: bool = False) -> Table:
    """An empty table of a run; the title says if the run is incomplete."""
    return bare_table(title + ("" if run.meta["complete"] else "  INCOMPLETE"), spaced=spaced)


def add_columns(table: Table, *headers: str, left: bool = False, dim: bool = False) -> None:
    """Add columns: text aligned ``left``, which wraps if nothing else helps, and numbers aligned right, which never wrap."""
    for header in headers:
        table.add_column(
            header, no_wrap=not left, overflow="fold", justify="left" if left else "right", style="dim" if dim else ""
        )


def probe_table(
    run: Run,
    title: str,
    names: Sequence[str],
    more: Sequence[str] = (),
    before: Sequence[str] = (),
    after: Sequence[str] = (),
) -> Table:
    """An empty table of a linear probe.

    Its columns are ``names`` (text), those of :func:`by_group`, ``more`` numbers, and dimmed baselines: ``before``,
    :func:`energy_cells`, :func:`random_cells`, ``after``.
    """
    table = run_table(f"{title}: {run.heading}, {tested(run)}", run)
    add_columns(table, *names, left=True)
    add_columns(table, "all", "±", *(group.replace("_", "\n") for group in GROUPS), *more)
    add_columns(table, *before, *energy_header(run), random_header(run), *["±"] * over_seeds(run), *after, dim=True)
    return table


def captioned(shown: Table, run: Run, *sentences: str, sep: str = " ") -> Table:
    """The table with its caption: these sentences, the meaning of its marks, what a comparison did not measure."""
    cells = [str(cell) for column in shown.columns for cell in column.cells]
    marks = [MARK] * any(MARK in cell for cell in cells) + [SPARSE] * any(cell.endswith(SPARSE) for cell in cells)
    _, name = units(run)
    why = f"fewer than {FEWEST} {name} contribute to it or differ in it, or few contribute most of it."
    note = f"{', '.join(marks)}: the number has no interval, because {why}" if marks else ""
    texts = [*cells, *(str(column.header).replace("\n", " ") for column in shown.columns)]
    energy = EQUAL if "random energy" in texts else ""
    shown.caption = escape(sep.join(filter(None, (*sentences, energy, note, unmeasured(run)))))
    return shown
