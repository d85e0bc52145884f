"""Table and figures of a depth run."""

import math

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from rich import box
from rich.table import Table

from reports.run import Run

METRICS = {"rmse": "RMSE", "abs_rel": "relative", "delta1": "δ < 1.25"}
GROUPS = ("all", "corner", "border", "interior", "high_norm")
NULLS = {"position_only": "position only", "constant": "constant", "shuffled_labels": "shuffled"}
STYLES = {
    "test": ("-", "#0b6e99", "this network"),
    "random_weights": ("-", "#d9730d", "random weights"),
    "position_only": ("--", "#448361", "position only"),
    "constant": (":", "#37352f", "constant"),
}
CAPTION = (
    "RMSE in the unit of depth (metres, or scene units), relative: mean of |error| / depth; less is better. δ < 1.25: share of "
    "tokens within that ratio; more is better. ±: half of the 95 % interval over photographs. Below, the RMSE of knowing only "
    "a token's position (mean training depth there), of one constant (mean training depth), of a probe trained on shuffled "
    "depths."
)


def depth_table(run: Run) -> Table:
    """Rows per layer: three errors, and the RMSE of what knows no activation, for every token group."""
    state = "" if run.meta["complete"] else "  INCOMPLETE"
    table = Table(
        title=f"Linear depth probe: {run.setting}, {run.meta['images']['test']} test images{state}",
        caption=CAPTION, title_justify="left", caption_justify="left", box=box.SIMPLE_HEAD, padding=0, show_edge=False,
    )  # fmt: skip
    for header in ("layer", "error", "all", "±", "corner", "border", "interior", "high\nnorm"):
        table.add_column(header, no_wrap=True, justify="left" if header in ("layer", "error") else "right")
    table.add_column("random\nweights", no_wrap=True, justify="right", style="dim")
    for layer in run.layers:
        for metric, text in METRICS.items():
            groups = [f"[bold]{_number(run.value('test', layer, metric, group))}[/bold]" for group in GROUPS]
            name = layer if metric == "rmse" else ""
            random = _number(run.value("random_weights", layer, metric))
            table.add_row(name, text, groups[0], _half(run, layer, metric), *groups[1:], random)
        for null, text in NULLS.items():
            values = [_number(run.value(null, layer, "rmse", group)) for group in GROUPS]
            table.add_row("", text, values[0], "", *values[1:], style="dim")
        table.add_section()
    return table


def depth_figures(run: Run) -> dict[str, Figure]:
    """Every figure that the run has data for, by file name."""
    figures: dict[str, Figure] = {}
    if len(run.layers) > 1:
        figures["depth_error_over_layers"] = over_layers(run)
    if all(f"{layer}/error" in run.maps for layer in run.layers):  # an interrupted run has no maps
        figures["depth_error_over_grid"] = over_grid(run)
    return figures


def over_layers(run: Run) -> Figure:
    """RMSE of every layer beside random weights, position only and a constant."""
    count = len(run.layers)
    figure, axis = plt.subplots(figsize=(max(6, 0.32 * count + 2), 4.5), layout="constrained")
    for what, (style, colour, label) in STYLES.items():
        values = [run.value(what, layer, "rmse") for layer in run.layers]
        if all(value is None for value in values):
            continue
        y = np.array([np.nan if value is None else value for value in values])
        axis.plot(y, style, marker="o" if what == "test" else None, ms=3.5, color=colour, label=label)
        ends = [[run.value(what, layer, "rmse", end=end) for layer in run.layers] for end in ("ci_low", "ci_high")]
        if what == "test" and all(value is not None for end in ends for value in end):
            axis.fill_between(range(count), *np.array(ends, dtype=float), color=colour, alpha=0.2, lw=0)
    axis.set(ylim=(0, None), ylabel="RMSE of depth")
    axis.set_xticks(range(count), run.layers, rotation=90 if count > 12 else 30, ha="center" if count > 12 else "right")
    axis.grid(axis="y", alpha=0.3)
    figure.legend(loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    figure.suptitle(f"Linear depth probe, {run.setting}", fontsize=11)
    return figure


def over_grid(run: Run) -> Figure:
    """Mean absolute error at every grid position, one panel per layer, one colour scale from 0."""
    count = len(run.layers)
    columns = min(count, 8 if count > 8 else math.ceil(math.sqrt(count)))
    lines = math.ceil(count / columns)
    side = 4.2 if count <= 2 else 1.9
    size = (side * columns + 1.2, (side + 0.25) * lines + 0.6)
    figure, axes = plt.subplots(lines, columns, figsize=size, squeeze=False, layout="constrained")
    tables = {layer: run.maps[f"{layer}/error"] for layer in run.layers}
    most = max((float(np.nanmax(table)) for table in tables.values() if np.isfinite(table).any()), default=1.0)
    for panel in axes.flat:
        panel.set_axis_off()
    for panel, (layer, table) in zip(axes.flat, tables.items(), strict=False):
        image = panel.imshow(table, vmin=0, vmax=most, cmap="magma")
        panel.set_title(f"{layer}  RMSE {_number(run.value('test', layer, 'rmse'))}", fontsize=8 if count > 1 else 11)
    figure.colorbar(image, ax=axes, shrink=0.8, aspect=30, label="mean absolute error of depth")
    figure.suptitle(f"Where depth is read badly, {run.setting}", fontsize=11)
    return figure


def _half(run: Run, layer: str, metric: str) -> str:
    low, high = (run.value("test", layer, metric, end=end) for end in ("ci_low", "ci_high"))
    return "" if low is None or high is None else _number((high - low) / 2)


def _number(value: float | None) -> str:
    """Three decimals without the leading zero; a dash where nothing was measured."""
    return "–" if value is None else f"{value:.3f}".removeprefix("0") if value < 1 else f"{value:.3f}"
