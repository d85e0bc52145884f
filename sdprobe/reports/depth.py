"""Table and figures of a depth run."""

import numpy as np
from matplotlib.figure import Figure
from rich.table import Table

from sdprobe.reports.curves import Grid, beside_baselines, grids
from sdprobe.reports.numbers import by_group, captioned, energy_cells, intervals, number, probe_table, random_cells
from sdprobe.reports.report import Drawing, Report, mapped, several_layers
from sdprobe.reports.run import Run, of_layer

METRICS = {"rmse": "RMSE", "rmse_per_image": "RMSE per image", "abs_rel": "AbsRel", "delta1": "δ < 1.25"}
NULLS = {"position_only": "position only", "constant": "constant", "shuffled_labels": "shuffled"}
CAPTION = (
    "RMSE: over all tokens, in the unit of depth (metres or scene units). RMSE per image: mean over images, as in tables on "
    "NYU. AbsRel: mean of |error| / depth. Lower is better for these three. δ < 1.25: share of tokens whose ratio of predicted "
    "to true depth, or its inverse, is below 1.25; higher is better."
)
NULL_CAPTION = (
    "Baselines (RMSE). position only: mean training depth at the token's position. constant: mean training depth. shuffled: a "
    "probe trained on shuffled depths."
)


def depth_table(run: Run) -> Table:
    """Per layer: four error measures, and the RMSE of baselines that read no activation, for every token group."""
    shown = probe_table(run, "Linear depth probe", ("layer", "error"))
    for layer in run.layers:
        for metric, text in METRICS.items():
            if run.value("test", layer, metric) is None and metric == "rmse_per_image":  # runs of an older version
                continue
            name = layer if metric == "rmse" else ""
            nulls = [*energy_cells(run, layer, metric), *random_cells(run, layer, metric)]
            shown.add_row(name, text, *by_group(run, "test", layer, metric), *nulls)
        for null, text in NULLS.items():
            shown.add_row("", text, *by_group(run, null, layer, "rmse"), style="dim")
        shown.add_section()
    return captioned(shown, run, CAPTION, intervals(run), NULL_CAPTION)


def over_layers(run: Run) -> Figure:
    """RMSE of every layer, compared with mitigations, random weights, position only and a constant."""
    baselines = ("random_weights", "position_only", "constant")
    return beside_baselines(
        run, "Linear depth probe", {"rmse": ""}, baselines, height=4.2, ylim=(0, None), ylabel="RMSE of depth"
    )


def over_grid(run: Run) -> Figure:
    """Mean absolute error at every grid position, one panel per layer, one colour scale from 0."""
    errors = {layer: run.maps[f"{layer}/error"] for layer in run.pictured}
    most = max((float(np.nanmax(error)) for error in errors.values() if np.isfinite(error).any()), default=1.0)
    panels = [
        Grid(f"{of_layer(layer)}  RMSE {number(run.value('test', layer, 'rmse'))}", error) for layer, error in errors.items()
    ]
    bar = "mean absolute error of depth"
    return grids(run, "Depth error over the grid", panels, bar, cells=True, vmin=0, vmax=most, cmap="magma")


REPORT = Report(
    tables=(depth_table,),
    drawings={
        "depth_error_over_layers": Drawing(over_layers, several_layers, over_layers=True),
        "depth_error_over_grid": Drawing(over_grid, mapped("error")),
    },
)
