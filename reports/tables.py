"""The table a run ends with: every layer's accuracies per token group beside what a probe reads out of nothing."""

import re
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from reports.content import content_table
from reports.correspondence import correspondence_tables
from reports.depth import depth_table
from reports.run import Run
from reports.statistics import statistics_table
from reports.study import study_table

METRICS = ("axis_accuracy", "cell_accuracy", "binned_accuracy")
GROUPS = ("all", "corner", "border", "interior", "high_norm")
NULLS = ("chance", "random_weights")
CAPTION = (
    "±: half of the 95 % interval over photographs. shuffled: axis accuracy of a probe trained on shuffled labels; read a "
    "group's accuracy beside it, since even a constant guess scores one half on corner rows."
)


def position_table(run: Run) -> Table:
    """Rows per layer: three accuracies, and axis accuracy of the shuffled-label control for every token group."""
    state = "" if run.meta["complete"] else "  INCOMPLETE"
    table = Table(
        title=f"Linear position probe: {run.setting}, {run.meta['images']['test']} test images{state}",
        caption=CAPTION,
        title_justify="left",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        padding=0,
        show_edge=False,
    )
    for header in ("layer", "accuracy", "all", "±", "corner", "border", "interior", "high\nnorm"):
        table.add_column(header, no_wrap=True, justify="left" if header in ("layer", "accuracy") else "right")
    for header in ("chance", "random\nweights"):
        table.add_column(header, no_wrap=True, justify="right", style="dim")
    for layer in run.layers:
        for metric in METRICS:
            groups = [_bold(run.value("test", layer, metric, group)) for group in GROUPS]
            nulls = [_number(run.value(null, layer, metric)) for null in NULLS]
            name = layer if metric == METRICS[0] else ""
            table.add_row(name, metric.removesuffix("_accuracy"), groups[0], _half(run, layer, metric), *groups[1:], *nulls)
        shuffled = [_number(run.value("shuffled_labels", layer, METRICS[0], group)) for group in GROUPS]
        table.add_row("", "shuffled", shuffled[0], "", *shuffled[1:], style="dim")
        if (r2 := run.value("test", layer, "r2")) is not None:
            table.add_row("", "R²", _bold(r2), _half(run, layer, "r2"))
        table.add_section()
    return table


def show(run: Run, console: Console) -> None:
    """Print the table; where output is no terminal it is wide enough for every cell."""
    if not console.is_terminal:
        console.width = max(console.width, 110)
    if run.kind == "correspondence":
        for each in correspondence_tables(run):
            console.print(each)
        return
    table = {"statistics": statistics_table, "depth": depth_table, "content": content_table}.get(run.kind, position_table)(run)
    console.print(table)
    if run.kind == "study":
        console.print(study_table(run))


def rows(run: Run) -> tuple[list[str], list[list[Any]]]:
    """Columns and rows of the same table with plain numbers: one row per layer, for wandb."""
    keys = sorted({tuple(key.split("/", 2)[::2]) for key in run.metrics if key.count("/") == 3})
    columns = ["layer", *("/".join(key) for key in keys)]
    return columns, [[layer, *(run.metrics.get(f"{what}/{layer}/{rest}") for what, rest in keys)] for layer in run.layers]


def _half(run: Run, layer: str, metric: str) -> str:
    low, high = (run.value("test", layer, metric, end=end) for end in ("ci_low", "ci_high"))
    return "" if low is None or high is None else _number((high - low) / 2)


def _bold(value: float | None) -> str:
    return f"[bold]{_number(value)}[/bold]"


def _number(value: float | None) -> str:
    """Three decimals without the leading zero; a dash where nothing was measured."""
    return "–" if value is None else re.sub(r"^(-?)0\.", r"\1.", f"{value:.3f}")
