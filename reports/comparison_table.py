"""One table of many runs: a row per run and layer (CSV, Markdown), a row per run at the layer of its question (terminal)."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from reports.conditions import checkpoints, fingerprint, mitigation
from reports.numbers import lacking, seeds, units
from reports.run import Run
from tokens.io import write_file, write_rows

POSITION = "binned_accuracy"


@dataclass(frozen=True)
class Task:
    """What a probe is compared by, and the question that singles out a layer: the ``highest`` number answers it, or the lowest.

    ``scale`` turns a share into percent.
    """

    metric: str
    label: str
    question: str
    highest: bool = True
    scale: float = 1.0


TASKS = {
    "position": Task(POSITION, "position accuracy, 8 bins", "position most readable at"),
    "study": Task(POSITION, "position accuracy, 8 bins", "position most readable at"),
    "correspondence": Task("pck_ours_point_0.10", "PCK@0.10, %", "matching best at", scale=100.0),
    "depth": Task("rmse", "depth RMSE", "depth read best at", highest=False),
    "statistics": Task("credibility", "credibility", "credibility highest at (descriptive)"),
}
COLUMNS: dict[str, Callable[[Run], Any]] = {
    "run": lambda run: run.folder.as_posix(),
    "probe": lambda run: run.kind,
    "model": lambda run: run.meta["model"],
    "weights": lambda run: run.meta["weights"],
    "timestep": lambda run: run.meta["timestep"],
    "seed": lambda run: run.meta.get("seed"),
    "test_images": lambda run: run.meta["images"].get("test"),
    "noise": lambda run: run.meta.get("noise"),
    "mitigation": mitigation,
    "padding": lambda run: run.meta.get("padding"),
    "control": lambda run: run.meta.get("control"),
    "image_size": lambda run: run.meta.get("image_size"),
    "dataset_fingerprint": fingerprint,
    "config_hash": lambda run: run.meta.get("config_hash"),
}
HIDDEN = ("run", "model", "weights", "config_hash")  # the terminal has a short name of the first three, no room for the last
NOTE = (
    "A layer is chosen on the test images that its number is shown for, so the number is a little too extreme. n < 6, few: too "
    "few units for an interval.\nrandom weights: the same layer; an interval from 3 seeds on, over seeds and units."
)
RIGHT = ("timestep", "seed", "test\nimages", "image\nsize", "value")
ENDS = ("", "ci_low", "ci_high")
NUMBERS = (
    "value", "ci_low", "ci_high", "random_weights", "random_weights_ci_low", "random_weights_ci_high", "random_weights_seeds",
)  # fmt: skip


def value_of(run: Run, layer: str) -> float | None:
    """A run's main number at a layer, in the task's unit; None where it was not measured."""
    task = TASKS.get(run.kind)
    value = run.value("test", layer, task.metric) if task else None
    return None if value is None or task is None else task.scale * value


def layer_asked_for(run: Run) -> str | None:
    """The layer that answers the question of the run's task; None where a run has no number."""
    values = {layer: value for layer in run.bases if (value := value_of(run, layer)) is not None}
    if not values:
        return None
    return (max if TASKS[run.kind].highest else min)(values, key=lambda layer: values[layer])


def rows(runs: list[Run]) -> list[dict[str, Any]]:
    """A row per run and layer: what was measured, its main number with interval, the same with random weights."""
    return [row for run in runs for row in _rows(run)]


def _rows(run: Run) -> list[dict[str, Any]]:
    task = TASKS.get(run.kind)
    if task is None:
        return []
    found = []
    for layer in run.bases:
        numbers = [run.value("test", layer, task.metric, end=end) for end in ENDS]
        numbers += [run.value("random_weights", layer, task.metric, end=end) for end in (*ENDS, "seeds")]
        found.append(
            {name: read(run) for name, read in COLUMNS.items()}
            | {"layer": layer, "metric": task.metric, "units": sampled(run)}
            | dict(zip(NUMBERS, numbers, strict=True))
        )
    return found


def write_tables(runs: list[Run], folder: Path) -> list[Path]:
    """``runs.csv`` and ``runs.md``, every row; numbers as in metrics.json."""
    header = [*COLUMNS, "layer", "metric", "units", *NUMBERS]
    table = [[_text(row[name]) for name in header] for row in rows(runs)]
    paths = [folder / "runs.csv", folder / "runs.md"]
    write_rows(paths[0], [header, *table])
    lines = [header, ["---"] * len(header), *([cell.replace("|", r"\|") for cell in row] for row in table)]
    write_file(paths[1], "".join(f"| {' | '.join(line)} |\n" for line in lines))
    return paths


def question_table(runs: list[Run]) -> Table:
    """A row per run: what tells it from the others, the layer that its question points to, the number there with its interval
    and what this rests on, and random weights beside.

    What all runs share has no column: the caption names it.
    """
    named = checkpoints(runs)
    told = {"model": [named[id(run)] for run in runs]}
    told |= {name: [_text(read(run)) for run in runs] for name, read in COLUMNS.items() if name not in HIDDEN}
    varying = {name: texts for name, texts in told.items() if len(set(texts)) > 1}
    shared = [f"{name.replace('_', ' ')} {texts[0]}" for name, texts in told.items() if name not in varying and any(texts)]
    table = Table(
        title=f"{len(runs)} runs, each at the layer that answers its question (all layers: runs.csv, runs.md)",
        caption="\n".join([*([f"All runs: {', '.join(shared)}."] if shared else []), NOTE]),
        title_justify="left", caption_justify="left", box=box.SIMPLE_HEAD, padding=0, show_edge=False,
    )  # fmt: skip
    headers = [name.replace("_", "\n") for name in varying]
    for header in ("run", *headers, "metric", "question", "layer", "value", "95 % interval", "over", "random\nweights"):
        table.add_column(header, overflow="fold", justify="right" if header in RIGHT else "left")
    for i, run in enumerate(runs):
        table.add_row(_short(run.folder), *(texts[i] or "–" for texts in varying.values()), *_answer(run))
    return table


def _answer(run: Run) -> tuple[str, ...]:
    """Metric, question, layer, its number, the interval and its units, the number with random weights, as shown."""
    layer, task = layer_asked_for(run), TASKS.get(run.kind)
    if layer is None or task is None:
        return "–", "–", "–", "–", "", "", ""
    interval, random = (_interval(run, what, layer, task) for what in ("test", "random_weights"))
    value = run.value("random_weights", layer, task.metric)
    parts = [] if value is None else [_number(task.scale * value), random, seeds(run)]
    beside = ", ".join(filter(None, parts)) or "–"
    return (
        task.label,
        task.question,
        layer,
        _number(value_of(run, layer)),
        interval or lacking(run, "test"),
        sampled(run),
        beside,
    )


def sampled(run: Run) -> str:
    """What a run's intervals rest on: ``12 photographs``."""
    count, name = units(run)
    return "" if count is None else f"{count} {name.removeprefix('test ')}"


def _interval(run: Run, what: str, layer: str, task: Task) -> str:
    low, high = (run.value(what, layer, task.metric, end=end) for end in ("ci_low", "ci_high"))
    return "" if low is None or high is None else f"{_number(task.scale * low)} to {_number(task.scale * high)}"


def _short(folder: Path) -> str:
    return "/".join(folder.parts[-2:])


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"


def _text(value: Any) -> str:
    return "" if value is None else str(value)
