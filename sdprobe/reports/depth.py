"""Table and figures of a depth run."""

import math

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from rich.table import Table

from sdprobe.reports.curves import curve, heading, mitigated, name_layers
from sdprobe.reports.numbers import by_group, captioned, half, intervals, number, over_seeds, random_weights, run_table, tested
from sdprobe.reports.run import Run
from sdprobe.tokens.keys import GROUPS

METRICS = {"rmse": "RMSE", "rmse_per_image": "RMSE per image", "abs_rel": "relative", "delta1": "δ < 1.25"}
NULLS = {"position_only": "position only", "constant": "constant", "shuffled_labels": "shuffled"}
STYLES = {
    "test": ("-", "#0b6e99", "this network"),
    "random_weights": ("-", "#d9730d", ""),  # its label names the seeds
    "position_only": ("--", "#448361", "position only"),
    "constant": (":", "#37352f", "constant"),
}
CAPTION = (
    "RMSE in the unit of depth (metres, or scene units), over all tokens; RMSE per image: its mean over images, as NYU tables "
    "average; relative: mean of |error| / depth; less is better. δ < 1.25: share of tokens within that ratio; more is better."
)
NULL_CAPTION = (
    "Below, the RMSE of knowing only a token's position (mean training depth there), of one constant (mean training depth), of "
    "a probe trained on shuffled depths."
)


def depth_table(run: Run) -> Table:
    """Rows per layer: four errors, and the RMSE of what knows no activation, for every token group."""
    shown = run_table(f"Linear depth probe: {run.setting}, {tested(run)}", run)
    for header in ("layer", "error", "all", "±", *(group.replace("_", "\n") for group in GROUPS)):
        shown.add_column(header, no_wrap=True, justify="left" if header in ("layer", "error") else "right")
    ends = ["±"] * over_seeds(run)
    for header in (random_weights(run).replace(" ", "\n", 2), *ends):
        shown.add_column(header, no_wrap=True, justify="right", style="dim")
    for layer in run.layers:
        for metric, text in METRICS.items():
            if run.value("test", layer, metric) is None and metric == "rmse_per_image":  # runs of an older version
                continue
            groups = by_group(run, "test", layer, metric)
            nulls = [number(run.value("random_weights", layer, metric))]
            nulls += [half(run, "random_weights", layer, metric) for _ in ends]
            name = layer if metric == "rmse" else ""
            shown.add_row(name, text, groups[0], half(run, "test", layer, metric), *groups[1:], *nulls)
        for null, text in NULLS.items():
            values = by_group(run, null, layer, "rmse")
            shown.add_row("", text, values[0], "", *values[1:], style="dim")
        shown.add_section()
    return captioned(shown, run, CAPTION, intervals(run), NULL_CAPTION)


def depth_figures(run: Run) -> dict[str, Figure]:
    """Every figure that the run has data for, by file name."""
    figures: dict[str, Figure] = {}
    if len(run.bases) > 1:
        figures["depth_error_over_layers"] = over_layers(run)
    if all(f"{layer}/error" in run.maps for layer in run.layers):  # an interrupted run has no maps
        figures["depth_error_over_grid"] = over_grid(run)
    return figures


def over_layers(run: Run) -> Figure:
    """RMSE of every layer beside mitigations, random weights, position only and a constant."""
    figure, axis = plt.subplots(figsize=(max(6, 0.32 * len(run.bases) + 2), 4.5), layout="constrained")
    for what, (style, colour, label) in STYLES.items():
        curve(
            axis, run, what, "rmse", band=what in ("test", "random_weights"), ls=style, marker="o" if what == "test" else None,
            color=colour, label=label or random_weights(run),
        )  # fmt: skip
    mitigated(axis, run, "rmse")
    axis.set(ylim=(0, None), ylabel="RMSE of depth")
    name_layers(axis, run)
    axis.grid(axis="y", alpha=0.3)
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    heading(figure, "Linear depth probe", run, bands=True)
    return figure


def over_grid(run: Run) -> Figure:
    """Mean absolute error at every grid position, one panel per layer, one colour scale from 0."""
    count = len(run.layers)
    columns = min(count, 8 if count > 8 else math.ceil(math.sqrt(count)))
    lines = math.ceil(count / columns)
    side = 4.2 if count <= 2 else 1.9
    size = (side * columns + 1.2, (side + 0.25) * lines + 0.6)
    figure, axes = plt.subplots(lines, columns, figsize=size, squeeze=False, layout="constrained")
    errors = {layer: run.maps[f"{layer}/error"] for layer in run.layers}
    most = max((float(np.nanmax(error)) for error in errors.values() if np.isfinite(error).any()), default=1.0)
    for panel in axes.flat:
        panel.set_axis_off()
    for panel, (layer, error) in zip(axes.flat, errors.items(), strict=False):
        image = panel.imshow(error, vmin=0, vmax=most, cmap="magma")
        panel.set_title(f"{layer}  RMSE {number(run.value('test', layer, 'rmse'))}", fontsize=8 if count > 1 else 11)
    figure.colorbar(image, ax=axes, shrink=0.8, aspect=30, label="mean absolute error of depth")
    heading(figure, "Depth error over the grid", run)
    return figure
