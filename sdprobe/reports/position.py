"""Table and figures of a position run: accuracy over layers and over the grid, predicted against true position."""

from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from rich.table import Table

from sdprobe.reports.curves import Grid, beside_baselines, grids
from sdprobe.reports.numbers import by_group, captioned, energy_cells, intervals, number, probe_table, random_cells
from sdprobe.reports.report import Drawing, Report, mapped, several_layers
from sdprobe.reports.run import Run, of_layer

METRICS = ("axis_accuracy", "cell_accuracy", "binned_accuracy")
CAPTION = (
    "axis: mean of row and column accuracy. cell: row and column both correct. binned: axis accuracy in 8 bins per axis, "
    "comparable between layers. shuffled: axis accuracy of a probe trained on shuffled labels; compare a group with it, "
    "since a constant guess already scores .5 on corners."
)


def position_table(run: Run) -> Table:
    """Per layer: three accuracies, and the axis accuracy of the shuffled-label control, for every token group."""
    shown = probe_table(run, "Linear position probe", ("layer", "accuracy"), before=["chance"])
    for layer in run.layers:
        for metric in METRICS:
            name = layer if metric == METRICS[0] else ""
            chance = number(run.value("chance", layer, metric))
            nulls = [chance, *energy_cells(run, layer, metric), *random_cells(run, layer, metric)]
            shown.add_row(name, metric.removesuffix("_accuracy"), *by_group(run, "test", layer, metric), *nulls)
        shown.add_row("", "shuffled", *by_group(run, "shuffled_labels", layer, METRICS[0]), style="dim")
        if run.value("test", layer, "r2") is not None:
            shown.add_row("", "R²", *by_group(run, "test", layer, "r2")[:2])
        shown.add_section()
    return captioned(shown, run, intervals(run), CAPTION)


def over_layers(run: Run) -> Figure:
    """Top: accuracy in 8 bins per axis, comparable between layers. Bottom: accuracy at each layer's own grid."""
    panels = {
        "binned_accuracy": "8 bins per axis: comparable between layers",
        "axis_accuracy": "each layer's own grid: chance level differs between layers",
    }
    baselines = ("random_weights", "shuffled_labels", "chance")
    return beside_baselines(
        run, "Linear position probe", panels, baselines, height=6.5, ylim=(0, 1.03), ylabel="position accuracy"
    )


def over_grid(run: Run) -> Figure:
    """Axis accuracy at every grid position, one panel per layer, one colour scale from 0 to 1."""
    panels = []
    for layer in run.pictured:
        values = [run.value(condition, layer, "axis_accuracy") for condition in ("test", "chance")]
        own, chance = (number(value, 2) for value in values)
        panels.append(Grid(f"{of_layer(layer)}  {own} (chance {chance})", run.maps[f"{layer}/accuracy"], "column", "row"))
    return grids(run, "Axis accuracy over the grid", panels, "axis accuracy", cells=True, vmin=0, vmax=1, cmap="viridis")


def confusion(run: Run) -> Figure:
    """Confusion matrices of rows and of columns, side by side."""
    panels = []
    for layer in run.pictured:
        for axis in ("rows", "cols"):
            table = run.maps[f"{layer}/{axis}"]
            shares = table / table.sum(1, keepdims=True).clip(1)
            panels.append(Grid(f"{of_layer(layer)} {axis}", shares, f"predicted {axis[:-1]}", f"true {axis[:-1]}"))
    title = "Predicted against true position"
    return grids(run, title, panels, "share of tokens", beside=2, cells=True, norm=PowerNorm(0.5, 0, 1), cmap="magma")


REPORT = Report(
    tables=(position_table,),
    drawings={
        "accuracy_over_layers": Drawing(over_layers, several_layers, over_layers=True),
        "accuracy_over_grid": Drawing(over_grid, mapped("accuracy")),
        "predicted_against_true": Drawing(confusion, mapped("rows")),
    },
)
