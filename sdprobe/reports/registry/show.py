"""``show RUN`` and ``diff A B``: settings, origin and main numbers of one run, or of two side by side."""

import re
from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

from rich.console import Console
from rich.text import Text

from sdprobe.metrics.gains import paired_gains
from sdprobe.reports.filters import overrides, settings_of
from sdprobe.reports.numbers import MISSING, bare_table, tested
from sdprobe.reports.printing import print_tables
from sdprobe.reports.registry.best import units_id
from sdprobe.reports.registry.entries import Entry, when
from sdprobe.reports.registry.listing import with_interval
from sdprobe.reports.run import Run
from sdprobe.reports.tasks import LOWER, tracked_of
from sdprobe.reports.tracked import chosen, null_of
from sdprobe.tokens.keys import ENDS, Key, label_of, place_of
from sdprobe.utilities.errors import InputError
from sdprobe.utilities.foreign import shown

# no settings, or those that differ in every run and change no number
PLACES = ("run_dir", "resume", "hydra.run.dir", "hydra.sweep.dir", "dataset_fingerprint", "test_fingerprint")
SPEED = ("logger", "cache_dir", "device", "activation_budget", "trainer", "datamodule.num_workers", "datamodule.batch_size")
MOST = 12  # layers for which all metrics are compared
# what meta says of a run's origin, in the order of show; the rest of meta is measured or derived
ORIGIN = (
    "model", "weights", "precision", "dataset_fingerprint", "images", "git_commit", "version", "packages", "hardware",
    "devices", "config_hash", "command",
)  # fmt: skip
# results and costs, and what settings already say
DERIVED = (
    "command", "config_hash", "settings_hash", "latents", "passes", "seconds", "peak_memory_gib", "complete", "layers",
    "shapes", "published_names", "resident_images", "train_steps", "timestep", "seed", "probe", "prompt", "mitigations",
    "twins", "control", "noise_level", "choices",
)  # fmt: skip


class Difference(NamedTuple):
    """A number of two runs, and the second minus the first with its interval, if that is known."""

    key: Key
    value: float
    other: float
    change: float
    low: float | None
    high: float | None


def run_of(entry: Entry) -> Run:
    """The run of a folder.

    Raises:
        InputError: it has no readable result.
    """
    if entry.run is None:
        raise InputError(
            f"Expected '{shown(str(entry.folder))}' to have a result, but it is {entry.state}: {entry.reason}. Repeat the run."
        )
    return entry.run


def record(entry: Entry) -> dict[str, Any]:
    """What ``show --json`` says of a run.

    ``set`` has what was typed on the command line, ``numbers`` layer → metric → value, interval and null.
    """
    found = {"folder": str(entry.folder), "state": entry.state, "reason": entry.reason, "set": _typed(entry)}
    settings = {name: values[0] if len(values) == 1 else list(values) for name, values in entry.settings.items()}
    numbers = _numbers(entry.run) if entry.run else {}
    return found | {"settings": settings, "meta": entry.run.meta if entry.run else {}, "numbers": numbers}


def show_run(entry: Entry, console: Console) -> None:
    """Print a run: what was set, where it comes from, its main numbers."""
    say = partial(console.print, markup=False, highlight=False)
    say(f"{shown(str(entry.folder))}: {entry.state}, {when(entry.changed)}{f' ({entry.reason})' * bool(entry.reason)}")
    typed = ", ".join(f"{shown(name)}={shown(value)}" for name, value in _typed(entry).items())
    say(f"Set for this run: {typed or 'nothing'}")
    if entry.run is None:
        return
    run, meta = entry.run, entry.run.meta
    compared = f" Mitigations compared: {shown(', '.join(run.labels))}." * bool(run.labels)
    say(f"Network: {shown(run.setting)}.{compared} Tested on {tested(run)}.")
    origin = {name: meta[name] for name in ORIGIN if meta.get(name) not in (None, "", {}, [])}
    table = bare_table("", spaced=True)
    table.add_column("origin", no_wrap=True)
    table.add_column("", overflow="fold")
    for name, value in origin.items():
        table.add_row(name, Text(shown(_text(value))))
    console.print(table)
    metrics = _measured(run)
    if not metrics:
        return
    numbers = bare_table("", spaced=True)
    numbers.add_column("layer", no_wrap=True)
    for metric in metrics:
        numbers.add_column(f"{metric}\n[95 %]", no_wrap=True, justify="right")
    numbers.add_column("null", justify="right")
    best, how = chosen(run)
    several = len(run.layers) > 1
    nulls = {layer: null_of(run, layer, metrics[0]) for layer in run.layers}
    for layer in run.layers:
        cells = [with_interval(*run.estimate("test", layer, metric)) for metric in metrics]
        texts = (layer, *cells, with_interval(nulls[layer][1]))
        numbers.add_row(*(Text(shown(text)) for text in texts), style="bold" if layer == best and several else "")
    print_tables([numbers], console)
    kinds = ", ".join(sorted({str(kind) for kind, _ in nulls.values() if kind}))
    notes = [f"Bold: {how}."] * several + [f"null: {kinds} of {metrics[0]}."] * bool(kinds)
    say(" ".join([*notes, f"All tables and figures: python -m sdprobe.reports {shown(str(entry.folder))}"]), style="dim")


def differences(a: Entry, b: Entry) -> dict[str, dict[str, tuple[str, str]]]:
    """What was ``set`` differently, which other ``settings`` differ because of it, and which ``meta``: name → both values."""
    mine, theirs = a.settings, b.settings
    # a setting that refers to another one in both runs says nothing new
    own = [settings_of(each.folder, each.run.meta if each.run else {}, references=False) for each in (a, b)]
    names = [name for name in dict.fromkeys((*own[0], *own[1])) if name not in PLACES]
    # options of a mitigation that only one has follow from it
    names = [name for name in names if not name.startswith("mitigation.") or (name in mine and name in theirs)]
    both = {name: (_value(mine, name), _value(theirs, name)) for name in names if mine.get(name) != theirs.get(name)}
    typed = [overrides(each.folder) for each in (a, b)]
    asked = {name for name in both if typed[0].get(name) != typed[1].get(name)}
    first = sorted(asked or both, key=lambda name: (name.startswith(SPEED), list(both).index(name)))
    meta = [each.run.meta if each.run else {} for each in (a, b)]
    every = [name for name in dict.fromkeys((*meta[0], *meta[1])) if name not in DERIVED]
    kept = [name for name in every if all(meta) and meta[0].get(name) != meta[1].get(name)]
    return {
        "set": {name: both[name] for name in first},
        "settings": {name: value for name, value in both.items() if name not in first},
        "meta": {name: _apart(meta[0].get(name), meta[1].get(name)) for name in kept},
    }


def number_differences(first: Entry, second: Entry) -> tuple[list[Difference], bool]:
    """Every main number that both have, and whether any is paired by unit; of many layers the first metric only."""
    a, b = run_of(first), run_of(second)
    metrics = tracked_of(a.kind)[: None if len(a.layers) <= MOST else 1]
    layers = [(layer, name) for layer in a.layers if (name := _counterpart(layer, a, b)) is not None]
    pairs = [(Key("test", layer, metric), Key("test", name, metric)) for layer, name in layers for metric in metrics]
    pairs = [(key, other) for key, other in pairs if str(key) in a.metrics and str(other) in b.metrics]
    gains: dict[str, float] = {}
    if units_id(a) is not None and units_id(a) == units_id(b):
        for key, other in pairs:
            mine, theirs = first.pseudovalues(key), second.pseudovalues(other)
            if mine is not None and theirs is not None and mine.shape == theirs.shape:
                gains |= paired_gains({str(key): theirs}, {str(key): mine})
    rows = []
    for key, other in pairs:
        value, second_value = a.metrics[str(key)], b.metrics[str(other)]
        ends = (gains.get(f"{key}/{end}") for end in ENDS)
        rows.append(Difference(key, value, second_value, second_value - value, *ends))
    return rows, bool(gains)


def _counterpart(layer: str, a: Run, b: Run) -> str | None:
    """The layer of another run with the same name; of a run at other noise levels, that at the same level."""
    if layer in b.layers:
        return layer
    place = place_of(layer, a.meta["timestep"]), label_of(layer)
    return next((other for other in b.layers if (place_of(other, b.meta["timestep"]), label_of(other)) == place), None)


def show_difference(a: Entry, b: Entry, console: Console) -> None:
    """Print what was set differently, what followed, and the differences of the main numbers."""
    say = partial(console.print, markup=False, highlight=False)
    found = differences(a, b)
    say(f"A: {shown(str(a.folder))}\nB: {shown(str(b.folder))}")
    titles = {"set": "Set differently", "settings": "Other settings that differ", "meta": "Measured with"}
    for part, title in titles.items():
        if found[part]:
            say(f"{title}:")
            for name, (mine, theirs) in found[part].items():
                say(Text(f"  {shown(name)}: {shown(mine)} → {shown(theirs)}"))
        elif part == "set":
            say("No setting differs.")
    for name, entry in (("A", a), ("B", b)):
        if entry.state != "finished":
            say(f"{name} is {entry.state}: {entry.reason}")
    if a.run is None or b.run is None:
        return
    rows, paired = number_differences(a, b)
    if not rows:
        say("No main number is in both.")
        return
    table = bare_table("", spaced=True)
    table.add_column("layer", no_wrap=True)
    table.add_column("metric", no_wrap=True)
    for head in ("A", "B"):
        table.add_column(head, justify="right")
    table.add_column("B − A [95 %]" if paired else "B − A")
    for row in rows:
        change = with_interval(row.change, row.low, row.high, sign=True)
        texts = (row.key.layer, row.key.metric, with_interval(row.value), with_interval(row.other), change)
        table.add_row(*(Text(shown(text)) for text in texts))
    console.print(table)
    lower = sorted({row.key.metric for row in rows} & set(LOWER))
    notes = [f"Lower is better: {', '.join(lower)}."] * bool(lower)
    notes.append(
        "Intervals are of paired differences over the same test units, each by itself; none where fewer than 6 differ."
        if paired
        else "No intervals: the runs were tested on different units, or hold no sums per unit."
    )
    say(" ".join(notes), style="dim")


def _typed(entry: Entry) -> dict[str, str]:
    return {name: value for name, value in overrides(entry.folder).items() if name not in PLACES}


def _measured(run: Run) -> list[str]:
    """The metrics over layers that a run has."""
    return [name for name in tracked_of(run.kind) if any(run.value("test", layer, name) is not None for layer in run.layers)]


def _numbers(run: Run) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for layer in run.layers:
        for metric in tracked_of(run.kind):
            value, low, high = run.estimate("test", layer, metric)
            if value is not None:
                null_is, null = null_of(run, layer, metric)
                number = {"value": value, "low": low, "high": high, "null_is": null_is, "null": null}
                found.setdefault(layer, {})[metric] = number
    return found


def _value(settings: Mapping[str, tuple[str, ...]], name: str) -> str:
    values = settings.get(name, (MISSING,))
    return ", ".join(values[:4]) + ", …" * (len(values) > 4)


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_text(each)}" for name, each in value.items())
    return re.sub(r"^([0-9a-f]{12})[0-9a-f]{4,}$", r"\1…", str(value))


def _apart(mine: Any, theirs: Any) -> tuple[str, str]:
    """Two values as text; of dictionaries only what differs."""
    if isinstance(mine, dict) and isinstance(theirs, dict):
        names = [name for name in dict.fromkeys((*mine, *theirs)) if mine.get(name) != theirs.get(name)]
        mine, theirs = ({name: each.get(name, MISSING) for name in names} for each in (mine, theirs))
    return _text(mine), _text(theirs)
