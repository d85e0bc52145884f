"""``best METRIC``: the layers of all runs by one number, and those that cannot be told from the best.

Runs are ranked together if they measure the same: one probe, protocol, data set and baseline. They may differ in network,
layer, timestep, mitigation, prompt and seed.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from functools import partial
from math import inf
from typing import Any

import numpy as np
from rich.console import Console
from rich.text import Text

from sdprobe.metrics.gains import simultaneous_quantile, surely_worse
from sdprobe.metrics.intervals import FEWEST
from sdprobe.reports.filters import DIGITS, parsed
from sdprobe.reports.numbers import MISSING, bare_table
from sdprobe.reports.registry.entries import Entry, read_run
from sdprobe.reports.registry.listing import with_interval
from sdprobe.reports.run import Run
from sdprobe.reports.tasks import LOWER, main_task
from sdprobe.reports.tracked import null_of
from sdprobe.tokens.keys import CONDITIONS, OVER_NONE, Key, base_of, label_of, timestep_of
from sdprobe.utilities.errors import InputError
from sdprobe.utilities.foreign import shown

# what must agree → settings of it, or the sections that hold them
AGREE = {
    "probe": ("probe",),
    "data set": ("images", "images.", "datamodule.labels"),
    "protocol": (
        "protocol", "probe.", "datamodule.", "trainer.max_epochs", "backbone.noise", "backbone.padding", "backbone.position",
        "backbone.text", "backbone.vae_input", "backbone.posterior", "backbone.scale_again",
    ),
    "baseline": ("control", "twins", "backbone.weights"),
}  # fmt: skip
FREE = (
    "images.seed", "probe.seed", "probe.pictured", "datamodule.block", "datamodule.timestep", "datamodule.seed",
    "datamodule.prompt", "datamodule.batch_size", "datamodule.activation_budget", "datamodule.cache_dir",
    "datamodule.num_workers", "datamodule.compare", "datamodule.token_batch", "datamodule.mixing_images",
)  # fmt: skip
READ = 50  # runs whose sums per photograph are read, those with the best numbers
SHOWN = 20  # rows of the table; --json has all


@dataclass(frozen=True)
class Cell:
    """One number: a layer of a run. ``told``: whether it is told from the best; None where it cannot be compared in pairs."""

    entry: Entry
    layer: str
    value: float
    low: float | None
    high: float | None
    null_is: str | None
    null: float | None
    told: bool | None = None

    def __str__(self) -> str:
        return f"{shown(self.layer)} of {self.entry.name}"

    @property
    def run(self) -> Run:
        """The run that has it."""
        assert self.entry.run is not None
        return self.entry.run

    @property
    def half(self) -> float:
        """Half-width of its interval, the longer side; infinite without one."""
        return inf if self.low is None or self.high is None else max(self.value - self.low, self.high - self.value)

    def pseudovalues(self, metric: "Metric") -> np.ndarray | None:
        """See :meth:`~sdprobe.reports.registry.entries.Entry.pseudovalues`."""
        return self.entry.pseudovalues(Key(metric.condition, self.layer, metric.metric, metric.where))

    def record(self, rank: int) -> dict[str, Any]:
        """What ``best --json`` says of it."""
        meta = self.run.meta
        timestep, mitigation = timestep_of(self.layer), label_of(self.layer) or self.run.chain or "none"
        return {
            "rank": rank, "folder": str(self.entry.folder), "name": self.entry.name, "model": meta["model"],
            "layer": base_of(self.layer), "timestep": meta["timestep"] if timestep is None else timestep,
            "mitigation": mitigation, "seed": meta.get("seed"), "value": self.value, "low": self.low, "high": self.high,
            "null_is": self.null_is, "null": self.null, "told_from_best": self.told,
        }  # fmt: skip


@dataclass(frozen=True)
class Metric:
    """What is ranked: a number of ``metrics.json`` without its layer."""

    condition: str
    metric: str
    where: str

    @classmethod
    def parse(cls, text: str) -> "Metric":
        """``[condition/]metric[/where]``; ``test`` and ``all`` may be left out."""
        parts = text.split("/")
        condition = parts.pop(0) if parts[0] in CONDITIONS else "test"
        if len(parts) not in (1, 2) or "" in parts:
            raise InputError(
                f"Expected a metric such as binned_accuracy, binned_accuracy/corner or {OVER_NONE}/binned_accuracy, "
                f"but got '{shown(text)}'. Correct it."
            )
        return cls(condition, parts[0], parts[1] if len(parts) == 2 else "all")

    @property
    def quantity(self) -> str:
        """``<metric>/<where>``."""
        return f"{self.metric}/{self.where}"

    @property
    def highest(self) -> bool:
        """Whether the highest number is the best."""
        return self.metric not in LOWER

    def __str__(self) -> str:
        around = [self.condition] * (self.condition != "test"), [self.where] * (self.where != "all")
        return "/".join([*around[0], self.metric, *around[1]])


def rank(entries: Sequence[Entry], metric: Metric, filters: Sequence[str], highest: bool) -> list[Cell]:
    """Every layer that has the number, the best first.

    Args:
        entries: runs, read with the metric.
        metric: what is ranked.
        filters: of these runs; ``block=`` and ``timestep=`` also choose among their layers and noise levels.
        highest: whether the highest number is the best.

    Raises:
        InputError: no run has the number, or the runs do not measure the same.
    """
    chosen = {
        name: {each for own, value in map(parsed, filters) if own == name for each in value.strip("[]").split(",")}
        for name in ("block", "timestep")
    }

    def wanted(layer: str) -> bool:
        level = timestep_of(layer)
        of_level = level is None or not chosen["timestep"] or str(level) in chosen["timestep"]
        return of_level and (not chosen["block"] or base_of(layer) in chosen["block"])

    cells = []
    for entry in entries:
        if entry.run is None or entry.state != "finished":
            continue
        layers = [layer for layer in entry.run.layers if wanted(layer)] or entry.run.layers
        for layer in layers:
            value, low, high = entry.run.estimate(metric.condition, layer, metric.metric, metric.where)
            if value is not None:
                main = metric.condition == "test" and metric.where == "all"
                null = null_of(entry.run, layer, metric.metric) if main else (None, None)
                cells.append(Cell(entry, layer, value, low, high, *null))
    if not cells:
        raise InputError(_absent(entries, metric))
    require_same(list({id(cell.entry): cell.entry for cell in cells}.values()))
    _require_one_null(cells, metric)
    sign = 1 if highest else -1
    ordered = sorted(cells, key=lambda cell: -sign * cell.value)
    for entry in dict.fromkeys(cell.entry for cell in ordered[:SHOWN]):
        read_whole(entry)
    return [ordered[0], *_compared(ordered, metric, sign)]


def read_whole(entry: Entry) -> None:
    """Read the whole ``metrics.json`` of a run that is shown, since many are listed by a few of their lines.

    Raises:
        InputError: it is not what the run wrote.
    """
    try:
        read_run(entry.folder)
    except InputError as error:
        raise InputError(
            f"Expected the runs that are ranked first to be intact, but got {entry.name}: {error}. Repeat it, or delete it."
        ) from error


def require_same(entries: Sequence[Entry]) -> None:
    """Refuse runs that do not measure the same.

    Raises:
        InputError: it names the first setting in which they differ, and the filter that resolves it.
    """
    alike: dict[Any, list[Entry]] = {}  # runs whose settings agree but for layers, timestep and seed
    for entry in entries:
        meta = entry.run.meta if entry.run else {}
        known = meta.get("settings_hash") and (meta["settings_hash"], meta.get("twins"), meta.get("control"))
        alike.setdefault(str(known or entry.folder), []).append(entry)
    firsts = {first: group for group in alike.values() if (first := group[0])}
    for what, names in AGREE.items():
        sections = tuple(name for name in names if name.endswith("."))
        known = {name for entry in firsts for name in entry.settings if name in names or name.startswith(sections or "\0")}
        for name in sorted(known - set(FREE), key=lambda name: (_place(name, names), name)):
            having = [(first, group) for first, group in firsts.items() if name in first.settings]
            _require_one(what, name, [(entry, first.setting(name)) for first, group in having for entry in group])
    for seed in {_recorded(entry, "seed") for entry in entries}:
        seeded = [entry for entry in entries if _recorded(entry, "seed") == seed]
        newer = all(_recorded(entry, "test_fingerprint") for entry in seeded)
        name = "test_fingerprint" if newer else "dataset_fingerprint"
        _require_one("data set", name, [(entry, value[:DIGITS]) for entry in seeded if (value := _recorded(entry, name))])


def _place(name: str, names: Sequence[str]) -> int:
    """The first of these names and sections that a setting belongs to."""
    return next(i for i, other in enumerate(names) if name == other or (other.endswith(".") and name.startswith(other)))


def _recorded(entry: Entry, name: str) -> str:
    value = entry.run.meta.get(name) if entry.run else None
    return "" if value is None else str(value)


def _require_one(what: str, name: str, values: Sequence[tuple[Entry, str]]) -> None:
    groups: dict[str, list[str]] = {}
    for entry, value in values:
        groups.setdefault(value, []).append(entry.name)
    if len(groups) > 1:
        most = max(groups, key=lambda value: len(groups[value]))
        such = {value: f"{len(runs)} run{'s' * (len(runs) > 1)}, such as {runs[0]}" for value, runs in groups.items()}
        there = ", ".join(f"'{shown(value)}' ({runs})" for value, runs in list(such.items())[:4])
        raise InputError(
            f"Expected runs of one {what}, but got {name} {there}{', …' * (len(groups) > 4)}. "
            f"Add --where {name}={shown(most)}, or another of them."
        )


def _require_one_null(cells: Sequence[Cell], metric: Metric) -> None:
    """Layers whose chance level differs cannot be ranked by an accuracy."""
    levels = {round(cell.null, 9): cell for cell in cells if cell.null is not None and cell.null_is == "chance"}
    if len(levels) > 1:
        (low, one), *_, (high, other) = sorted(levels.items())
        raise InputError(
            f"Expected one chance level of {metric}, but got {low:.3g} at {one.layer} and {high:.3g} at {other.layer}. Rank "
            f"binned_accuracy, which has one, or choose a layer: --where block={base_of(other.layer)}."
        )


def _absent(entries: Sequence[Entry], metric: Metric) -> str:
    """The sentence for a metric that no run has."""
    finished = [entry for entry in entries if entry.run is not None and entry.state == "finished"]
    if not finished:
        return f"Expected finished runs, but got {len(entries)} runs of which none is finished. ls says in what state they are."
    there: set[str] = set()
    for entry in finished:
        try:
            there |= {f"{key.condition}/{key.quantity}" for key in map(Key.parse, read_run(entry.folder).metrics)}
        except InputError:
            continue
    short = sorted({name.removeprefix("test/").removesuffix("/all") for name in there if name.startswith("test/")})
    first = sorted({main_task(entry.run.kind).metric for entry in finished if entry.run} & set(short))
    main = [*first, *(name for name in short if "/" not in name and name not in first)]
    near = [name for name in main if str(metric) in name][:1]
    near = near or get_close_matches(str(metric), [*short, *sorted(there)], n=1, cutoff=0.5)
    fix = f"Use {near[0]}." if near else "Use one of these."
    listed = ", ".join(main[:15]) + ", …" * (len(main) > 15)
    expected = f"Expected a metric that one of these {len(finished)} runs has, but got '{shown(metric)}'."
    return f"{expected} They have {shown(listed, longest=400)}. {shown(fix)}"


def _compared(ordered: Sequence[Cell], metric: Metric, sign: int) -> list[Cell]:
    """The cells after the first, each compared with it.

    Files are read of the first :data:`READ` runs. Beyond them a cell counts as worse if its interval is so far from that of the
    best that reading could not change this: a standard error of differences is at most the sum of both. Half-widths count
    twice, because those of shares are not t · se.
    """
    best, others = ordered[0], len(ordered) - 1
    units, own = units_id(best.run), best.pseudovalues(metric)
    count = 0 if own is None else int(np.isfinite(own).sum())
    if own is None or units is None or count < FEWEST:
        return list(ordered[1:])
    factor = 2 * simultaneous_quantile(count, others) / simultaneous_quantile(count, 1)
    opened, compared = {best.entry.folder}, []
    for cell in ordered[1:]:
        told = None
        if units_id(cell.run) == units:
            if best.half + cell.half < abs(best.value - cell.value) / factor:
                told = True
            elif len(opened | {cell.entry.folder}) <= READ:
                opened.add(cell.entry.folder)
                values = cell.pseudovalues(metric)
                if values is not None and values.shape == own.shape and (np.isfinite(values) == np.isfinite(own)).all():
                    told = surely_worse(sign * values, sign * own, others)
        compared.append(cell if told is None else replace(cell, told=told))
    return compared


def units_id(run: Run) -> tuple[Any, ...] | None:
    """What identifies the test units of a run; None if it does not say. Older runs have no digest of the test units alone."""
    meta = run.meta
    if "test_fingerprint" in meta:
        return (meta["test_fingerprint"],)
    whole = meta.get("dataset_fingerprint")
    return None if whole is None else (whole, tuple(sorted(meta["images"].items())), meta.get("seed"))


def show_best(cells: Sequence[Cell], metric: Metric, highest: bool, left_out: int, console: Console) -> None:
    """Print the best, what cannot be told from it, and the first rows."""
    records = [cell.record(number) for number, cell in enumerate(cells[:SHOWN], 1)]
    best, others = cells[0], len(cells) - 1
    runs = len({str(cell.entry.folder) for cell in cells})
    end = "highest" if highest else "lowest"
    say = partial(console.print, markup=False, highlight=False)
    number = with_interval(best.value, best.low, best.high)
    say(f"{end} {metric} of {_many(len(cells), 'layer')} in {_many(runs, 'run')}: {best}, {number}")
    equal = [str(cell) for cell in cells if cell.told is False]
    unknown = sum(cell.told is None for cell in cells[1:])
    compared = others - unknown
    if compared:
        named = ", ".join(equal[:8]) + f" and {len(equal) - 8} more" * (len(equal) > 8)
        say(f"Not told from it: {named or 'none'}; {compared - len(equal)} of {compared} compared are worse.")
    if unknown:
        late = f", or of runs after the best {READ}" * (runs > READ)
        say(f"Not compared: {unknown} with other photographs, without stored sums per photograph{late}.")
    table = bare_table("", spaced=True)
    columns = ("rank", "run", "layer", "timestep", "mitigation", "seed")
    used = [name for name in columns if name in ("rank", "run", "layer") or len({str(record[name]) for record in records}) > 1]
    models = len({record["model"] for record in records}) > 1
    heads = [*used, *["model"] * models, f"{metric}\n[95 %]", "null", "against the best"]
    for head in heads:
        table.add_column(head, justify="right" if head in ("rank", "timestep", "seed", "null") else "left", overflow="fold")
    for record, cell in zip(records, cells, strict=False):
        told = {True: "worse", False: "not told apart", None: "not compared"}[cell.told] if cell is not best else "best"
        null = MISSING if cell.null is None else with_interval(cell.null)
        texts = [str(record["name" if name == "run" else name]) for name in used]
        texts += [str(record["model"]).rpartition("/")[2]] * models
        table.add_row(*(Text(shown(text)) for text in (*texts, with_interval(cell.value, cell.low, cell.high), null, told)))
    console.print(table)
    notes = [f"{len(cells) - SHOWN} more rows: --json has all."] * (len(cells) > SHOWN)
    nulls = sorted({cell.null_is for cell in cells if cell.null_is})
    notes += [f"null: {', '.join(nulls)}."] * bool(nulls)
    notes += [f"Left out: {_many(left_out, 'run')} not finished or without {metric}."] * (left_out > 0)
    notes += [
        "The best was chosen on the test photographs that are printed, so its number is slightly too good. Worse: the "
        f"interval of the paired difference excludes 0 at level 1 - .05 / {others}. The truly best is called worse in at most "
        "5 % of experiments."
    ] * bool(compared)
    for note in notes:
        console.print(Text(note, style="dim"))


def _many(count: int, what: str) -> str:
    return f"{count} {what}{'s' * (count != 1)}"
