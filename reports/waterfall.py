"""The figure of ``experiment=controls``: position accuracy built up source by source, and what each contrast says."""

import re
from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np

matplotlib.use("Agg")  # no display on a cluster
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from reports.controls import (
    CIRCULAR,
    CONTRASTS,
    PERIODIC,
    SEEDS,
    Estimate,
    Side,
    contrast,
    difference,
    layers_of,
    mean_accuracy,
    tested,
    tested_photographs,
)
from reports.run import Run

NULL, PADDED, UNTRAINED, TRAINED = tested(*CIRCULAR), tested(*PERIODIC), tested(*SEEDS), tested("trained")
# the accuracy reached, what was added to reach it, and from where
STEPS: tuple[tuple[str, Side, Side], ...] = (
    ("untrained,\nno\nborder", NULL, ()),
    ("+ zero\npadding", PADDED, NULL),
    ("+ natural\nimages", UNTRAINED, PADDED),
    ("+ learned\nweights", TRAINED, UNTRAINED),
)
UP, DOWN, TOTAL, GREY = "#0b6e99", "#d9730d", "#37352f", "#9b9a97"


def controls_figures(groups: Mapping[str, dict[str, Run]]) -> dict[str, Figure]:
    """:func:`controls_figure` of every group by file name: ``controls``, or ``controls_<title>`` where there are several."""
    names = {title: re.sub(r"[^A-Za-z0-9.]+", "_", title).strip("_") for title in groups}
    alone = len(groups) == 1
    return {
        "controls" if alone else f"controls_{names[title]}": controls_figure(title, known) for title, known in groups.items()
    }


def controls_figure(title: str, known: dict[str, Run]) -> Figure:
    """Per layer, left: a waterfall from chance to the trained network; right: every contrast with its interval."""
    layers = layers_of(known)
    names = [name for name in CONTRASTS if any(contrast(known, name, layer) for layer in layers)]
    height = max(2.8, 0.17 * len(names) + 0.6)
    figure, axes = plt.subplots(
        max(1, len(layers)), 2, figsize=(12.5, height * max(1, len(layers)) + 0.8), squeeze=False, layout="constrained",
        gridspec_kw={"width_ratios": (1, 1.1)},
    )  # fmt: skip
    for row in axes[1:]:
        row[1].sharex(axes[0][1])
    for (left, right), layer in zip(axes, layers, strict=False):
        _waterfall(left, known, layer)
        _forest(right, known, layer, names)
    axes[-1][1].set_xlabel("difference in position accuracy\n95 % interval; grey: it includes 0; hollow: no interval")
    figure.suptitle(f"Where position comes from: {title}\n{tested_photographs(known)} test photographs", fontsize=12)
    return figure


def _waterfall(axis: Axes, runs: dict[str, Run], layer: str) -> None:
    chance = next(iter(runs.values())).value("chance", layer, "binned_accuracy") or 0.0
    base, place, ticks = chance, 0, ["chance"]
    axis.bar(place, chance, color=GREY, width=0.6)
    for label, upper, lower in STEPS:
        level = mean_accuracy(runs, layer, upper)
        step = difference(runs, layer, upper, lower) if lower else level
        if level is None or step is None:  # without a cell in between, its share would go to the next source
            break
        place += 1
        _step(axis, place, base, level.value, step)
        base = level.value
        ticks.append(label)
    if (total := mean_accuracy(runs, layer, TRAINED)) is not None:
        place += 1
        axis.bar(place, total.value, color=TOTAL, width=0.6)
        axis.errorbar(place, total.value, [[total.value - total.low], [total.high - total.value]], color="black", capsize=3)
        axis.text(place, np.nanmax([total.value, total.high]) + 0.02, f"{total.value:.2f}", ha="center", fontsize=9)
        ticks.append("this\nnetwork")
    axis.axhline(chance, color=GREY, linewidth=1, linestyle=":")
    axis.set(ylim=(0, 1.12), ylabel="position accuracy (8 bins)")
    axis.set_xticks(range(len(ticks)), ticks, fontsize=8)
    axis.set_title(layer, loc="left", fontsize=11, fontweight="bold")
    axis.spines[["top", "right"]].set_visible(False)


def _step(axis: Axes, place: int, base: float, level: float, step: Estimate) -> None:
    """A bar from one level to the next; the whisker is the step's own interval."""
    change = level - base
    axis.plot([place - 1.3, place + 0.3], [base, base], color=GREY, linewidth=0.8)
    axis.bar(place, change, bottom=base, color=UP if change >= 0 else DOWN, width=0.6)
    axis.errorbar(place, level, [[step.value - step.low], [step.high - step.value]], color="black", capsize=3, linewidth=1)
    top = np.nanmax([base, level, level + step.high - step.value])
    axis.text(place, top + 0.02, f"{change:+.2f}".replace("0.", "."), ha="center", fontsize=9)


def _named(name: str, runs: dict[str, Run], layer: str) -> str:
    """A contrast and what it is, also where it rests on one random network."""
    found = contrast(runs, name, layer)
    return f"{name}: {CONTRASTS[name][0]}" + (" (one seed)" if found and found.seeds == 1 else "")


def _forest(axis: Axes, runs: dict[str, Run], layer: str, names: Sequence[str]) -> None:
    for place, name in enumerate(names):
        found = contrast(runs, name, layer)
        if found is None:
            continue
        sure = found.low > 0 or found.high < 0
        colour = GREY if not sure else UP if found.value > 0 else DOWN
        axis.plot([found.low, found.high], [place, place], color=colour, linewidth=2, solid_capstyle="butt")
        face = "none" if np.isnan(found.low) else colour
        axis.plot(found.value, place, "o", color=colour, markerfacecolor=face, markersize=5)
    axis.axvline(0, color="black", linewidth=0.8)
    axis.set_yticks(range(len(names)), [_named(name, runs, layer) for name in names], fontsize=7.5)
    axis.set_ylim(len(names) - 0.5, -0.5)
    axis.grid(axis="x", alpha=0.3)
    axis.spines[["top", "right", "left"]].set_visible(False)
    axis.tick_params(axis="y", length=0)
