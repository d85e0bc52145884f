"""The table a run ends with: every layer's accuracies per token group beside what a probe reads out of nothing."""

from typing import Any

from rich.console import Console
from rich.table import Table

from reports.content import content_table
from reports.correspondence import correspondence_tables
from reports.depth import depth_table
from reports.numbers import by_group, captioned, half, intervals, number, over_seeds, random_weights, run_table, tested
from reports.run import Run
from reports.statistics import statistics_table
from reports.study import study_table
from tokens.keys import GROUPS, Key, select

METRICS = ("axis_accuracy", "cell_accuracy", "binned_accuracy")
CAPTION = (
    "shuffled: axis accuracy of a probe trained on shuffled labels; read a group's accuracy beside it, since even a constant "
    "guess scores one half on corner rows."
)


def position_table(run: Run) -> Table:
    """Rows per layer: three accuracies, and axis accuracy of the shuffled-label control for every token group."""
    shown = run_table(f"Linear position probe: {run.setting}, {tested(run)}", run)
    for header in ("layer", "accuracy", "all", "±", *(group.replace("_", "\n") for group in GROUPS)):
        shown.add_column(header, no_wrap=True, justify="left" if header in ("layer", "accuracy") else "right")
    ends = ["±"] * over_seeds(run)
    for header in ("chance", random_weights(run).replace(" ", "\n", 2), *ends):
        shown.add_column(header, no_wrap=True, justify="right", style="dim")
    for layer in run.layers:
        for metric in METRICS:
            groups = by_group(run, "test", layer, metric)
            nulls = [number(run.value(null, layer, metric)) for null in ("chance", "random_weights")]
            nulls += [half(run, "random_weights", layer, metric) for _ in ends]
            name = layer if metric == METRICS[0] else ""
            own = half(run, "test", layer, metric)
            shown.add_row(name, metric.removesuffix("_accuracy"), groups[0], own, *groups[1:], *nulls)
        shuffled = by_group(run, "shuffled_labels", layer, METRICS[0])
        shown.add_row("", "shuffled", shuffled[0], "", *shuffled[1:], style="dim")
        if run.value("test", layer, "r2") is not None:
            shown.add_row("", "R²", *by_group(run, "test", layer, "r2", ["all"]), half(run, "test", layer, "r2"))
        shown.add_section()
    return captioned(shown, run, intervals(run), CAPTION)


def show(run: Run, console: Console) -> None:
    """Print the table; where output is no terminal it is wide enough for every cell."""
    if not console.is_terminal:
        console.width = max(console.width, 110)
    if run.kind == "correspondence":
        for each in correspondence_tables(run):
            console.print(each)
        return
    tables = {"statistics": statistics_table, "depth": depth_table, "content": content_table}
    console.print(tables.get(run.kind, position_table)(run))
    if run.kind == "study":
        console.print(study_table(run))


def rows(run: Run) -> tuple[list[str], list[list[Any]]]:
    """Columns and rows of the same table with plain numbers: one row per layer, for wandb."""
    keys = sorted({(key.condition, key.quantity) for key in map(Key.parse, select(run.metrics, statistic=""))})
    columns = ["layer", *("/".join(key) for key in keys)]
    return columns, [[layer, *(run.metrics.get(f"{what}/{layer}/{rest}") for what, rest in keys)] for layer in run.layers]
