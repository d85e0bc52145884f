"""``ls``: a row per run. A column in which all runs agree is said once, above the table."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from rich.console import Console
from rich.text import Text

from sdprobe.reports.numbers import MISSING, bare_table, number, units
from sdprobe.reports.registry.entries import Entry
from sdprobe.reports.run import Run
from sdprobe.reports.tasks import main_task
from sdprobe.reports.tracked import chosen, null_of
from sdprobe.tokens.keys import base_of
from sdprobe.utilities.foreign import shown

NAMED = 3  # of more layers their number is shown
RIGHT = ("n", "timestep")
HEADERS = {
    "name": "run", "state": "state", "probe": "probe", "backbone": "backbone", "layers": "layers", "timestep": "t",
    "mitigation": "mitigation", "n": "n", "value": "number [95 %]", "at": "at", "when": "when",
}  # fmt: skip
LEAST = ("when", "n", "backbone", "layers")  # columns that a narrow terminal does without, in this order
WRAPPED = ("name", "layers", "mitigation", "at")  # columns that a narrow terminal continues in the next line
LEAST_WIDTH = 7  # characters of these, at least; their headings stay whole
SHARED = ("state", "probe", "backbone", "layers", "timestep", "mitigation", "n", "at")  # left out where all runs agree


def main_numbers(meta: dict[str, Any]) -> list[str]:
    """Which numbers :func:`row` needs."""
    return [f"{main_task(str(meta.get('probe', 'position'))).metric}/all"]


def row(entry: Entry) -> dict[str, Any]:
    """What ``ls --json`` says of a run; None where it is unknown or was not measured.

    ``value``, ``low`` and ``high`` are those of ``metric`` at ``layer``, the best on validation images, see
    :func:`~sdprobe.reports.tracked.chosen`; ``null`` is that of the condition ``null_is``.
    """
    run = entry.run
    found: dict[str, Any] = {
        "folder": str(entry.folder), "name": entry.name, "state": entry.state, "reason": entry.reason,
        "when": datetime.fromtimestamp(entry.changed).astimezone().isoformat(timespec="seconds"),
    }  # fmt: skip
    names = ("probe", "backbone", "layers", "timestep", "seed", "mitigation", "n", "metric", "layer", "value", "low", "high")
    found |= dict.fromkeys((*names, "null_is", "null"))
    if run is None:
        known = {name: entry.setting(name) for name in ("probe", "backbone", "timestep", "seed", "mitigation")}
        layers = list(entry.settings.get("block", ()))
        return found | {name: value or None for name, value in known.items()} | {"layers": layers}
    meta = run.meta
    found |= {
        "probe": run.kind, "backbone": str(meta["model"]).rstrip("/").rpartition("/")[2], "layers": run.network_layers,
        "timestep": meta["timestep"], "seed": meta.get("seed"), "mitigation": mitigation_of(run), "n": units(run)[0],
    }  # fmt: skip
    metric = main_task(run.kind).metric
    layer, _ = chosen(run)
    if layer is not None:
        value, low, high = run.estimate("test", layer, metric)
        null_is, null = null_of(run, layer, metric)
        numbers = {"value": value, "low": low, "high": high, "null_is": null_is, "null": null}
        found |= {"metric": metric, "layer": layer} | numbers
    return found


def mitigation_of(run: Run) -> str:
    """The mitigations of a run: those that it compares, or the chain that all layers have, or ``none``."""
    return f"compares {', '.join(run.labels)}" if run.labels else run.chain or "none"


def show_list(entries: Sequence[Entry], console: Console) -> None:
    """Print the table of :func:`row`."""
    rows = [row(entry) for entry in entries]
    cells = [_cells(each) for each in rows]
    agreed = {name: cells[0][name] for name in SHARED if len(rows) > 1 and len({each[name] for each in cells}) == 1}
    states = {state: sum(each["state"] == state for each in rows) for state in dict.fromkeys(each["state"] for each in rows)}
    title = f"{len(rows)} run{'s' * (len(rows) != 1)}: " + ", ".join(f"{count} {state}" for state, count in states.items())
    common = ", ".join(f"{name} {value}" for name, value in agreed.items() if value not in ("", MISSING) and name != "state")
    columns = [name for name in HEADERS if name not in agreed]
    for name in LEAST:
        if console.is_terminal and sum(_width(name, cells) for name in columns) > console.width:
            columns = [other for other in columns if other != name]
    table = bare_table("", spaced=True)
    for name in columns:
        if name in WRAPPED:
            least = min(_width(name, cells) - 2, max(LEAST_WIDTH, len(HEADERS[name])))
            table.add_column(HEADERS[name], overflow="fold", min_width=least)
        else:
            table.add_column(HEADERS[name], justify="right" if name in RIGHT else "left", no_wrap=True)
    for each in cells:
        table.add_row(*(Text(shown(each[name])) for name in columns))
    console.width = console.width if console.is_terminal else max(console.width, sum(_width(name, cells) for name in columns))
    console.print(Text(title + (f". All: {shown(common)}" if common else "")))
    console.print(table)
    reasons: dict[str, list[str]] = {}
    for each in rows:
        reasons.setdefault(each["reason"], []).append(each["name"])
    for reason, names in reasons.items():
        if reason:
            console.print(Text(f"{', '.join(names[:5])}{' and others' * (len(names) > 5)}: {reason}"))
    if any(each["value"] is not None for each in rows):
        kinds = dict.fromkeys(each["probe"] for each in rows if each["value"] is not None)
        labels = "; ".join(f"{main_task(kind).label.removesuffix(', %')} ({shown(kind)})" for kind in kinds)
        at = "at: the layer, the best on validation images where the run has some; outputs such as conv_out are not chosen."
        note = f"number: {labels}. {at}"
        console.print(Text(note, style="dim"))


def _width(name: str, cells: Sequence[dict[str, str]]) -> int:
    return 2 + max(len(HEADERS[name]), *(len(each[name]) for each in cells))


def _cells(each: dict[str, Any]) -> dict[str, str]:
    """A row as texts."""
    texts = {name: MISSING if each.get(name) is None else str(each[name]) for name in HEADERS}
    texts["when"] = each["when"][5:16].replace("T", " ")
    if isinstance(each["timestep"], list):
        texts["timestep"] = ", ".join(map(str, each["timestep"]))
    texts["layers"] = compact(list(dict.fromkeys(map(base_of, each["layers"] or []))))  # t has the noise levels
    texts["at"] = each["layer"] or MISSING
    texts["value"] = with_interval(each["value"], each["low"], each["high"])
    return texts


def compact(layers: Sequence[str]) -> str:
    """Names of up to three layers; of more their number.

    >>> compact(["mid", "up_1"]), compact(["conv_in", "down_0", "mid", "conv_out"])
    ('mid, up_1', '4 layers')
    """
    return ", ".join(layers) if len(layers) <= NAMED else f"{len(layers)} layers"


def with_interval(value: float | None, low: float | None = None, high: float | None = None, sign: bool = False) -> str:
    """A number with three decimals and its interval, if it has one.

    >>> with_interval(0.5, 0.25, 0.75), with_interval(-0.5), with_interval(None)
    ('.500 [.250, .750]', '−.500', '–')
    """
    ends = "" if low is None or high is None else f" [{number(low)}, {number(high)}]"
    return f"{number(value, sign=sign)}{ends}".replace("-", "−")
