"""Table and figure of a content run."""

from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from rich.table import Table

from sdprobe.reports.curves import curve, heading, mitigated, name_layers
from sdprobe.reports.numbers import (
    FEW,
    SPARSE,
    by_group,
    captioned,
    half,
    intervals,
    number,
    over_seeds,
    random_weights,
    run_table,
    tested,
)
from sdprobe.reports.run import Run
from sdprobe.tokens.keys import GROUPS

KIND = "content_r2"
STYLES = {
    "test": ("-", "#0b6e99", "this network"),
    "random_weights": ("-", "#d9730d", ""),  # its label names the seeds
    "shuffled_labels": ("--", "#9b9a97", "shuffled labels"),
    "chance": (":", "#37352f", "knowing the position only"),
}
NULLS = ("random_weights", "shuffled_labels")
CAPTION = (
    "R² of the clean latent under a token, its mean at that position removed: 1 is all of it, 0 what the position alone tells, "
    "below 0 is worse."
)
GAINED = "over none: a mitigation's R² minus that of the layer without it, ± the longer arm of the paired interval."


def content_table(run: Run) -> Table:
    """A row per layer: R² for every token group, beside the nulls and, for mitigations, the gain over none."""
    compared = any(run.value("gain_over_none", layer, KIND) is not None for layer in run.layers)
    shown = run_table(f"Linear content probe: {run.setting}, {tested(run)}", run)
    shown.add_column("layer", no_wrap=not compared, overflow="fold")  # names of variants are long
    for header in ("all", "±", *(group.replace("_", "\n") for group in GROUPS), *["over none"] * compared):
        shown.add_column(header, no_wrap=True, justify="right")
    ends = ["±"] * over_seeds(run)
    for header in (random_weights(run).replace(" ", "\n", 2), *ends, "shuf-\nfled"):
        shown.add_column(header, no_wrap=True, justify="right", style="dim")
    for layer in run.layers:
        groups = by_group(run, "test", layer, KIND)
        nulls = [number(run.value(null, layer, KIND)) for null in NULLS]
        nulls[1:1] = [half(run, "random_weights", layer, KIND) for _ in ends]
        own = half(run, "test", layer, KIND)
        shown.add_row(layer, groups[0], own, *groups[1:], *([_gain(run, layer)] * compared), *nulls)
    return captioned(shown, run, CAPTION, intervals(run), GAINED * compared)


def content_figures(run: Run) -> dict[str, Figure]:
    """Every figure that the run has data for, by file name."""
    return {"content_over_layers": over_layers(run)} if len(run.bases) > 1 else {}


def over_layers(run: Run) -> Figure:
    """R² of every layer beside mitigations, random weights and shuffled labels; 0 is what a token's position tells."""
    figure, axis = plt.subplots(figsize=(max(6, 0.32 * len(run.bases) + 2), 4.5), layout="constrained")
    for what, (style, colour, label) in STYLES.items():
        curve(
            axis, run, what, KIND, band=what in ("test", "random_weights"), ls=style, marker="o" if what == "test" else None,
            color=colour, label=label or random_weights(run),
        )  # fmt: skip
    mitigated(axis, run, KIND)
    axis.set(ylim=(None, 1.02), ylabel="R² of the clean latent under a token")
    name_layers(axis, run)
    axis.grid(axis="y", alpha=0.3)
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    heading(figure, "Linear content probe", run, bands=True)
    return figure


def _gain(run: Run, layer: str) -> str:
    value = run.value("gain_over_none", layer, KIND)
    if value is None:
        return ""
    within = half(run, "gain_over_none", layer, KIND)
    return f"{'' if value < 0 else '+'}{number(value)}{', ' if within in (FEW, SPARSE) else ' ± '}{within}"
