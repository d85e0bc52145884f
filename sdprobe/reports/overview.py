"""The tables of several runs: every run in one row, comparable runs together, and all layers as CSV."""

import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from sdprobe.reports.comparison import Group, selected_layer
from sdprobe.reports.grouping import Condition, conditions, curves, data, fingerprint, measurement, named
from sdprobe.reports.numbers import MISSING, bare_table, lacking, number, seeds, units
from sdprobe.reports.run import Run
from sdprobe.reports.tasks import TASKS, Task
from sdprobe.reports.tracked import OUTPUTS
from sdprobe.tokens.keys import ENDS
from sdprobe.utilities.errors import LONGEST
from sdprobe.utilities.foreign import shown
from sdprobe.utilities.io import write_rows

WIDTH = 80  # characters of a table
RUN = 18  # characters of a run's folder in a line
SHARED = ("backbone", "backbone.weights", "mitigation", "timestep", "prompt", "probe.solver")  # that captions say
NUMBERS = ("value", *ENDS, "random_weights", *(f"random_weights_{end}" for end in (*ENDS, "seeds")))
RECORDED = ("model", "weights", "timestep", "seed", "control", "image_size", "noise", "padding", "precision", "config_hash")
LAYER = "layer (val of 3): of 3 layers the best one on validation images; outputs such as conv_out are not among them."
CHOSEN = (
    "layer (test of 3): the best one on the test images themselves; its value is too good on average: confirm it on others."
)
RANDOM = "random: networks with random weights, mean and number of seeds (s)."
RAW = "raw: the same measurement without mitigation, where the folder has it."
INTERVAL = "[…]: 95 % interval; n < 6, few: too few units for one."


def overview(groups: Sequence[Group], runs: Sequence[Run], skipped: Mapping[Path, str], folder: Path) -> list[Table]:
    """Every run: a table per group of runs that may be compared, then the runs without a main number, then those skipped."""
    shown = {id(run) for group in groups for run in group.runs}
    others = [run for run in runs if id(run) not in shown]
    results = len([run for run in runs if run.level is None]) + len({run.folder for run in runs if run.level is not None})
    count = f"{results} run{'s' * (results != 1)} with a result"
    head = f"{count}, {len(skipped)} without" if skipped else count
    tables = [paragraph(f"{head}. Runs in one table may be compared. All settings and layers: runs.csv.")]
    tables += [_group_table(group, folder) for group in groups]
    if others:
        table = _table("No main number", ("run", "what it is"))
        for run in others:
            table.add_row(_name(run.folder, folder), Text(f"probe={run.kind}: " + named(conditions(run), SHARED)))
        tables.append(table)
    if skipped:
        table = _table("Without a result", ("run", "reason"))
        for path, reason in skipped.items():
            table.add_row(_name(path, folder), Text(reason))
        tables.append(table)
    notes = [INTERVAL] * bool(groups)
    images = {selected_layer(run)[1] for group in groups for run in group.runs}
    notes += [LAYER] * ("val" in images) + [CHOSEN] * ("test" in images)
    notes += [RANDOM] * any(_random(group.task, run) for group in groups for run in group.runs)
    notes += [RAW] * any(run.chain for group in groups for run in group.runs)
    return [*tables, paragraph(""), *map(paragraph, notes)]


def paragraph(text: str) -> Table:
    """A sentence, as wide as the tables."""
    table = Table(box=None, show_header=False, width=WIDTH, padding=0)
    table.add_row(Text(text))
    return table


def _table(title: str, headers: Sequence[str], caption: str = "") -> Table:
    table = bare_table("", spaced=False)
    table.title = Text("\n" + textwrap.fill(title, WIDTH), style="bold not italic")
    table.caption = Text(textwrap.fill(caption, WIDTH)) if caption else None
    table.width = WIDTH
    for header in headers:
        text = header in ("run", "settings", "layer", "reason", "what it is")
        table.add_column(header, justify="left" if text else "right", overflow="fold", no_wrap=header == "value")
    return table


def _group_table(group: Group, folder: Path) -> Table:
    """A row per run: the settings in which these runs differ, the layer, its number with interval, random weights."""
    known = curves(group.runs, _settings)
    labels = {id(run): _label(condition, run) for condition in known for run in condition.runs}
    several, mitigated = any(labels.values()), any(run.chain for run in group.runs)
    random = any(_random(group.task, run) for run in group.runs)
    headers = ["run", *["settings"] * several, "layer", "value", "95 % interval", *["raw"] * mitigated, *["random"] * random]
    shared = named(known[0].known, [name for name in SHARED if name not in known[0].names])
    table = _table(f"{group.task.label}: {group.title}", headers, f"All: {shared}." if shared else "")
    for condition in known:
        for run in condition.runs:
            layer, images = selected_layer(run)
            count = len([each for each in run.bases if each not in OUTPUTS])
            found = group.points([run])[layer]
            row: list[Text | str] = [_name(run.folder, folder), *[Text(labels[id(run)])] * several]
            row += [Text(f"{layer} ({images} of {count})" if images else layer), _written(group.task, found.value)]
            row += [_ends(group.task, run, found.low, found.high)]
            row += [_raw(group, condition, layer)] * mitigated + [_random(group.task, run, layer)] * random
            table.add_row(*row)
    return table


def _label(condition: Condition, run: Run) -> str:
    """The settings that differ, and the mitigations that a run compares."""
    compared = f"compares {', '.join(run.labels)}" if run.labels else ""
    return ", ".join(filter(None, (named(condition.known, condition.names), compared)))


def _settings(run: Run) -> dict[str, str]:
    """What tells the rows of one table apart: conditions and the seed."""
    return conditions(run) | {"seed": "" if run.meta.get("seed") is None else str(run.meta["seed"])}


def _name(path: Path, folder: Path) -> Text:
    """The folder of a run, from the folder of the report on."""
    inside = path.relative_to(folder) if path.is_relative_to(folder) else path
    text = shown(inside.as_posix() if inside.parts else path.name, LONGEST)
    return Text(text if len(text) <= RUN else f"…{text[1 - RUN :]}")


def _written(task: Task, value: float) -> str:
    if math.isnan(value):
        return MISSING
    return f"{value:.1f}" if task.scale != 1 else number(value) if abs(value) < 10 else f"{value:.4g}"


def _ends(task: Task, run: Run, low: float, high: float) -> str:
    return lacking(run, "test") if math.isnan(low) else f"[{_written(task, low)}, {_written(task, high)}]"


def _raw(group: Group, condition: Condition, layer: str) -> str:
    """The number of the same measurement without mitigation."""
    if not condition.known.get("mitigation"):
        return ""
    plain = {name: value for name, value in condition.known.items() if not name.startswith("mitigation")}
    for other in curves(group.runs, _settings):
        same = {name: value for name, value in other.known.items() if not name.startswith("mitigation")}
        if not other.known.get("mitigation") and same == plain and (found := group.points(other.runs).get(layer)):
            return _written(group.task, found.value)
    return MISSING


def _random(task: Task, run: Run, layer: str | None = None) -> str:
    """The number of random weights at a layer (or at any), and how many networks it is a mean of."""
    for name in [layer] if layer else run.bases:
        value = run.value("random_weights", name, task.metric)
        if value is not None:
            return f"{_written(task, task.scale * value)}, {seeds(run).split()[0].replace('one', '1')} s"
    return ""


def write_csv(runs: Sequence[Run], path: Path) -> None:
    """Write a row per run and layer: settings, main number with interval, the same for random weights."""
    write_rows(path, [[*COLUMNS, *NUMBERS], *(_texts(row) for run in runs for row in rows(run))])


COLUMNS = (
    "run", "probe", "compared_with", "images", "test_images", "dataset_fingerprint", "mitigation", *RECORDED, "settings",
    "layer", "metric", "units",
)  # fmt: skip


def rows(run: Run) -> Iterable[dict[str, Any]]:
    """A row per layer; one without numbers for a run without a main number."""
    task = TASKS.get(run.kind)
    known = {
        "run": shown(run.folder.as_posix(), LONGEST), "probe": run.kind, "compared_with": " ".join(run.labels),
        "images": data(run),
        "test_images": run.meta["images"].get("test"), "dataset_fingerprint": fingerprint(run), "mitigation": run.chain,
    }  # fmt: skip
    known |= {name: run.meta.get(name) for name in RECORDED}
    known["settings"] = " ".join(
        f"{name}={value}" for name, value in sorted((measurement(run) | conditions(run)).items()) if value
    )
    if task is None:
        yield known
        return
    count, name = units(run)
    for layer in run.bases:
        found = [*run.estimate("test", layer, task.metric), *run.estimate("random_weights", layer, task.metric)]
        found.append(run.value("random_weights", layer, task.metric, end="seeds"))
        sampled = "" if count is None else f"{count} {name.removeprefix('test ')}"
        yield known | {"layer": layer, "metric": task.metric, "units": sampled} | dict(zip(NUMBERS, found, strict=True))


def _texts(row: Mapping[str, Any]) -> list[str]:
    return ["" if row.get(name) is None else str(row[name]) for name in (*COLUMNS, *NUMBERS)]
