"""Table and figure of a content run."""

from matplotlib.figure import Figure
from rich.table import Table

from sdprobe.reports.curves import LABELS, beside_baselines
from sdprobe.reports.numbers import (
    FEW,
    SPARSE,
    by_group,
    captioned,
    energy_cells,
    half,
    intervals,
    number,
    probe_table,
    random_cells,
)
from sdprobe.reports.report import Drawing, Report, several_layers
from sdprobe.reports.run import Run

KIND = "content_r2"
CAPTION = (
    "R² of the clean latent under a token, after its mean at that position is subtracted. 1: perfect. 0: no better than "
    "knowing the position only. Below 0: worse."
)
GAINED = "gain: R² with the mitigation minus R² of the layer without it, ± half-width of the paired interval."


def content_table(run: Run) -> Table:
    """A row per layer: R² for every token group, the gain over no mitigation if the run compares, and baselines."""
    compared = any(run.value("gain_over_none", layer, KIND) is not None for layer in run.layers)
    shown = probe_table(run, "Linear content probe", ["layer"], more=["gain"] * compared, after=["shuffled\nlabels"])
    for layer in run.layers:
        nulls = [
            *energy_cells(run, layer, KIND),
            *random_cells(run, layer, KIND),
            number(run.value("shuffled_labels", layer, KIND)),
        ]
        shown.add_row(layer, *by_group(run, "test", layer, KIND), *[_gain(run, layer)] * compared, *nulls)
    return captioned(shown, run, CAPTION, intervals(run), GAINED * compared)


def over_layers(run: Run) -> Figure:
    """R² of every layer, compared with mitigations, random weights and shuffled labels; 0 is knowing the position only."""
    return beside_baselines(
        run,
        "Linear content probe",
        {KIND: ""},
        ("random_weights", "shuffled_labels", "chance"),
        height=4.2,
        labels=LABELS | {"chance": "knowing the position only"},
        ylim=(None, 1.02),
        ylabel="R² of the clean latent under a token",
    )


def _gain(run: Run, layer: str) -> str:
    value = run.value("gain_over_none", layer, KIND)
    if value is None:
        return ""
    within = half(run, "gain_over_none", layer, KIND)
    between = ", " if within in (FEW, SPARSE) else " " if within.startswith("[") else " ± "
    return f"{number(value, sign=True)}{between}{within}"


REPORT = Report(
    tables=(content_table,),
    drawings={"content_over_layers": Drawing(over_layers, several_layers, over_layers=True)},
)
