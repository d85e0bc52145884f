"""Table and figure of a content run."""

import re
from typing import Any

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich import box
from rich.table import Table

from reports.run import Run, label_of, variant

KIND = "content_r2"
GROUPS = ("all", "corner", "border", "interior", "high_norm")
NULLS = {"random_weights": "random\nweights", "shuffled_labels": "shuf-\nfled"}
STYLES = {
    "test": ("-", "#0b6e99", "this network"),
    "random_weights": ("-", "#d9730d", "random weights"),
    "shuffled_labels": ("--", "#9b9a97", "shuffled labels"),
    "chance": (":", "#37352f", "knowing the position only"),
}
CAPTION = (
    "R² of the clean latent under a token, its mean at that position removed: 1 is all of it, 0 what the position alone tells, "
    "below 0 is worse. ±: half of the 95 % interval over photographs."
)
GAINED = " over none: a mitigation's R² minus that of the layer without it, ± half of the paired interval."


def content_table(run: Run) -> Table:
    """A row per layer: R² for every token group, beside the nulls and, for mitigations, the gain over none."""
    state = "" if run.meta["complete"] else "  INCOMPLETE"
    compared = any(run.value("gain_over_none", layer, KIND) is not None for layer in run.layers)
    table = Table(
        title=f"Linear content probe: {run.setting}, {run.meta['images']['test']} test images{state}",
        caption=CAPTION + GAINED * compared,
        title_justify="left", caption_justify="left", box=box.SIMPLE_HEAD, padding=0, show_edge=False,
    )  # fmt: skip
    table.add_column("layer", no_wrap=not compared, overflow="fold")  # names of variants are long
    for header in ("all", "±", "corner", "border", "interior", "high\nnorm"):
        table.add_column(header, no_wrap=True, justify="right")
    if compared:
        table.add_column("over none", no_wrap=True, justify="right")
    for header in NULLS.values():
        table.add_column(header, no_wrap=True, justify="right", style="dim")
    for layer in run.layers:
        groups = [f"[bold]{_number(run.value('test', layer, KIND, group))}[/bold]" for group in GROUPS]
        nulls = [_number(run.value(null, layer, KIND)) for null in NULLS]
        table.add_row(layer, groups[0], _half(run, layer), *groups[1:], *([_gain(run, layer)] * compared), *nulls)
    return table


def content_figures(run: Run) -> dict[str, Figure]:
    """Every figure that the run has data for, by file name."""
    return {"content_over_layers": over_layers(run)} if len(run.bases) > 1 else {}


def over_layers(run: Run) -> Figure:
    """R² of every layer beside mitigations, random weights and shuffled labels; 0 is what a token's position tells."""
    layers = run.bases
    count = len(layers)
    figure, axis = plt.subplots(figsize=(max(6, 0.32 * count + 2), 4.5), layout="constrained")
    for what, (style, colour, label) in STYLES.items():
        _curve(axis, run, what, layers, style, marker="o" if what == "test" else None, color=colour, label=label)
    for label in dict.fromkeys(filter(None, map(label_of, run.layers))):
        _curve(axis, run, "test", [variant(layer, label) for layer in layers], "-", lw=1, label=label)
    ends = [[run.value("test", layer, KIND, end=end) for layer in layers] for end in ("ci_low", "ci_high")]
    if all(value is not None for end in ends for value in end):
        axis.fill_between(range(count), *np.array(ends, dtype=float), color=STYLES["test"][1], alpha=0.2, lw=0)
    axis.set(ylim=(None, 1.02), ylabel="R² of the clean latent under a token")
    axis.set_xticks(range(count), layers, rotation=90 if count > 12 else 30, ha="center" if count > 12 else "right")
    axis.grid(axis="y", alpha=0.3)
    figure.legend(loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    figure.suptitle(f"Linear content probe, {run.setting}", fontsize=11)
    return figure


def _curve(axis: Axes, run: Run, what: str, layers: list[str], style: str, **options: Any) -> None:
    values = [run.value(what, layer, KIND) for layer in layers]
    if any(value is not None for value in values):
        axis.plot([np.nan if value is None else value for value in values], style, ms=3.5, **options)


def _half(run: Run, layer: str, what: str = "test") -> str:
    low, high = (run.value(what, layer, KIND, end=end) for end in ("ci_low", "ci_high"))
    return "" if low is None or high is None else _number((high - low) / 2)


def _gain(run: Run, layer: str) -> str:
    value = run.value("gain_over_none", layer, KIND)
    sign = "" if value is None or value < 0 else "+"
    half = _half(run, layer, "gain_over_none")  # none from few photographs
    return "" if value is None else f"{sign}{_number(value)}" + (f" ± {half}" if half else "")


def _number(value: float | None) -> str:
    """Three decimals without the leading zero; a dash where nothing was measured."""
    return "–" if value is None else re.sub(r"^(-?)0\.", r"\1.", f"{value:.3f}")
