"""Table and figures of an anomaly-statistics run."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.table import Table

from sdprobe.reports.curves import BLUE, COLUMNS, GREEN, GREY, ORANGE, curve, heading, mitigated, name_layers
from sdprobe.reports.numbers import (
    add_columns,
    captioned,
    half,
    intervals,
    number,
    over_seeds,
    random_cells,
    random_weights,
    run_table,
    tested,
)
from sdprobe.reports.report import Drawing, Report, mapped, pictured, several_layers
from sdprobe.reports.run import Run
from sdprobe.reports.tasks import TASKS
from sdprobe.tokens.keys import GROUPS, PARTITION

OWN: dict[str, Any] = {"marker": "o", "ms": 3, "lw": 1.4}
CAPTION = (
    "r_pos: share of variance that position explains. r_cor: similarity of corners beyond that of their content, for the kind "
    "of corner pairs that gives more: within (different corners of one image) or across (the same corner of different images). "
    "r_norm: energy concentrated in few tokens or channels. credibility: ((1-r_pos)(1-r_cor)(1-r_norm))^(1/3), a descriptive "
    "score of this project. It has not been shown to predict how a downstream task degrades."
)
MORE = (
    "cosine: mean pairwise cosine within the group, after the mean token is subtracted. corner norm: mean norm of corners "
    "divided by the mean norm of the image. high norm %: tokens with robust z > 5."
)
FEW = "n < 40"  # images


def statistics_table(run: Run) -> Table:
    """A row per layer: risks, credibility, credibility of random weights, similarities, norms."""
    shown = run_table(f"Anomaly statistics: {run.setting}, {tested(run)}", run)
    add_columns(shown, "layer", left=True)
    add_columns(shown, "r_pos", "r_cor", "corner\npairs", "r_norm", "credi-\nbility", "±")
    add_columns(shown, "random\nweights", dim=True)
    add_columns(shown, *["±"] * over_seeds(run), "corner\ncosine", "interior\ncosine", "corner\nnorm", "high\nnorm %")
    for layer in run.layers:
        risks = {name: number(run.value("test", layer, name)) for name in ("r_pos", "r_cor", "r_norm")}
        score = f"[bold]{number(run.value('test', layer, 'credibility'))}[/bold]"
        cosines = [number(run.value("test", layer, "similarity_centred", group)) for group in ("corner", "interior")]
        share = run.value("test", layer, "high_norm_share")
        shown.add_row(
            layer, risks["r_pos"], risks["r_cor"], _pairs(run, layer), risks["r_norm"], score,
            half(run, "test", layer, "credibility", few=FEW), *random_cells(run, layer, "credibility", FEW), *cosines,
            number(run.value("test", layer, "relative_norm", "corner"), 2), number(None if share is None else 100 * share, 2),
        )  # fmt: skip
    weights = random_weights(run)
    return captioned(
        shown, run, intervals(run), CAPTION, f"{weights}: credibility of the random-weights baseline." if weights else "", MORE
    )


def _pairs(run: Run, layer: str) -> str:
    """The kind of corner pairs that gives r_cor; a dash if neither is above 0 or the run does not record it."""
    kinds = {kind: run.value("test", layer, f"r_cor_{kind}") or 0.0 for kind in ("within", "across")}
    return max(kinds, key=lambda kind: kinds[kind]) if any(kinds.values()) else "–"


def credibility_over_layers(run: Run) -> Figure:
    """Top: credibility, also with mitigations. Bottom: its three risks. Each is compared with random weights."""
    figure, axes = plt.subplots(2, 1, figsize=(_width(run), 6.5), sharex=True, layout="constrained")
    weights = random_weights(run)
    curve(axes[0], run, "test", "credibility", color=BLUE, label="this network", **OWN)
    curve(axes[0], run, "random_weights", "credibility", color=ORANGE, label=weights, lw=1.4)
    mitigated(axes[0], run, "credibility")
    axes[0].set(ylim=(0, 1.02), ylabel="credibility (descriptive)")
    for name, colour, text in (("r_pos", BLUE, "position"), ("r_cor", GREEN, "corners"), ("r_norm", ORANGE, "norms")):
        curve(axes[1], run, "test", name, color=colour, label=text, **OWN)
        curve(axes[1], run, "random_weights", name, color=colour, label=f"{text}, {weights}", ls=":", lw=1.4)
    axes[1].set(ylim=(-0.05, 1.02), ylabel="risk")
    return _finished(figure, axes, run, "Credibility and its risks", several=axes[1:])


def similarity_over_layers(run: Run) -> Figure:
    """Mean pairwise cosine within token groups. Top: raw. Bottom: centred. Dashed: cropped images."""
    figure, axes = plt.subplots(2, 1, figsize=(_width(run), 6.5), sharex=True, layout="constrained")
    for axis, metric, title in (
        (axes[0], "similarity", "raw tokens"),
        (axes[1], "similarity_centred", "after subtracting the mean token"),
    ):
        for group, colour in zip(PARTITION, (BLUE, GREEN, GREY), strict=True):
            curve(axis, run, "test", metric, group, color=colour, label=group, **OWN)
            label = f"{group}, image cropped"
            curve(axis, run, "test", f"cropped_{metric}", group, band=False, color=colour, label=label, ls="--", lw=1.4)
        label = "same content as the cropped corners, in the whole image"
        curve(axis, run, "test", metric, "corner_content", band=False, color=ORANGE, label=label, ls=":", lw=1.4)
        axis.set(ylabel="mean cosine within group")
        axis.set_title(title, loc="left", fontsize=10)
    return _finished(figure, axes, run, "Similarity of tokens within groups", several=axes)


def norms_over_layers(run: Run) -> Figure:
    """Top: relative norm of every token group. Bottom: share of high-norm tokens and of their energy."""
    figure, axes = plt.subplots(2, 1, figsize=(_width(run), 6.5), sharex=True, layout="constrained")
    for group, colour in zip(GROUPS, (BLUE, GREEN, GREY, ORANGE), strict=True):
        curve(axes[0], run, "test", "relative_norm", group, color=colour, label=group.replace("_", "-"), **OWN)
    axes[0].set(ylabel="norm / mean norm of the image")
    curve(axes[1], run, "test", "high_norm_share", color=ORANGE, label="share of tokens detected as high-norm", **OWN)
    curve(axes[1], run, "test", "high_norm_energy", color=BLUE, label="their share of energy", **OWN)
    axes[1].set(ylabel="share")
    return _finished(figure, axes, run, "Norms of tokens by group", several=axes)


def cka_matrix(run: Run) -> Figure:
    """Debiased linear CKA between layers, and the part of it that shared positions explain."""
    titles = {"cka": "same positions of the same images", "cka_positions": "same positions of different images"}
    shown = {name: title for name, title in titles.items() if name in run.maps}  # older runs have only the first
    side = max(4.5, 0.16 * len(run.bases) + 2)
    size = (side * len(shown) + 1, side + 0.3)
    figure, axes = plt.subplots(1, len(shown), figsize=size, sharey=True, squeeze=False, layout="constrained")
    for axis, (name, title) in zip(axes.flat, shown.items(), strict=True):
        image = axis.imshow(run.maps[name], vmin=0, vmax=1, cmap="magma")
        axis.set_title(title, loc="left", fontsize=9)
        axis.set_xticks(range(len(run.bases)), run.bases, rotation=90, fontsize=7)
    axes[0, 0].set_yticks(range(len(run.bases)), run.bases, fontsize=7)
    figure.colorbar(image, ax=list(axes.flat), shrink=0.8, label="debiased linear CKA")
    heading(figure, "Similarity of layers", run)
    return figure


def norm_maps(run: Run) -> Figure:
    """Mean token norm over images at every position, relative to the layer's mean."""
    figure, panels = _sheet(len(run.layers))
    for layer, panel in zip(run.layers, panels, strict=True):
        table = run.maps[f"{layer}/norm"]
        image = panel.imshow(table / table.mean(), vmin=0.5, vmax=1.5, cmap="RdBu_r")
        panel.set_title(layer, fontsize=8)
    figure.colorbar(image, ax=panels, shrink=0.6, aspect=30, label="norm / mean norm of the layer")
    heading(figure, "Token norm over the grid, mean over images", run)
    return figure


def similarity_sheet(picture: np.ndarray, maps: dict[str, np.ndarray], token: tuple[int, int], side: int, title: str) -> Figure:
    """The picture with the token marked, and per layer the cosine of every token with the marked one, −1 to 1."""
    figure, panels = _sheet(len(maps) + 1)
    panels[0].imshow(picture, extent=(0, side, side, 0))
    panels[0].scatter([token[1] + 0.5], [token[0] + 0.5], s=40, marker="s", facecolors="none", edgecolors="#ff0050")
    for (layer, table), panel in zip(maps.items(), panels[1:], strict=True):
        shown = panel.imshow(table, vmin=-1, vmax=1, cmap="RdBu_r")
        panel.set_title(layer, fontsize=8)
    figure.colorbar(shown, ax=panels, shrink=0.6, aspect=30, label="cosine with the marked token")
    figure.suptitle(title, fontsize=10)
    return figure


def similarity(run: Run) -> Figure:
    """Similarity of one token of the first image in every layer."""
    row, col, side = run.maps["token"].tolist()
    maps = {layer: run.maps[f"{layer}/similarity"] for layer in run.bases}
    title = f"Cosine of one token with all tokens of its image, after subtracting the mean token; {run.setting}"
    return similarity_sheet(run.maps["pictures"][0], maps, (row, col), side, title)


def principal_components(run: Run) -> Figure:
    """First three principal components as RGB: a row per image, a column per stage."""

    def show(panel: Axes, layer: str, image: int) -> None:
        panel.imshow(run.maps[f"{layer}/components"][image], interpolation="nearest")

    return _by_image(run, show, "First three principal components of tokens as RGB")


def high_norm_tokens(run: Run) -> Figure:
    """Detected high-norm tokens, drawn on the images: a row per image, a column per stage."""

    def show(panel: Axes, layer: str, image: int) -> None:
        mask = run.maps[f"{layer}/high_norm"][image]
        picture = run.maps["pictures"][image]
        panel.imshow(picture, extent=(0, mask.shape[1], mask.shape[0], 0))
        rows, columns = np.nonzero(mask)
        panel.scatter(columns + 0.5, rows + 0.5, s=14, marker="s", facecolors="none", edgecolors="#ff0050", linewidths=0.9)
        panel.set(xlim=(0, mask.shape[1]), ylim=(mask.shape[0], 0))
        panel.set_xlabel(f"{len(rows)}", fontsize=7, labelpad=1)

    return _by_image(run, show, "High-norm tokens (robust z > 5); their number is below each panel")


def _by_image(run: Run, show: Callable[[Axes, str, int], None], title: str) -> Figure:
    pictures, layers = run.maps["pictures"], _stages(run.bases)
    size = (1.25 * (len(layers) + 1), 1.4 * len(pictures) + 0.6)
    figure, axes = plt.subplots(len(pictures), len(layers) + 1, figsize=size, squeeze=False, layout="constrained")
    for image, row in enumerate(axes):
        row[0].imshow(pictures[image])
        for layer, panel in zip(layers, row[1:], strict=True):
            show(panel, layer, image)
            if image == 0:
                panel.set_title(layer, fontsize=8)
        for panel in row:
            panel.set_xticks([])
            panel.set_yticks([])
    figure.suptitle(f"{title}; {run.setting}", fontsize=10)
    return figure


def _stages(layers: Sequence[str]) -> list[str]:
    """Outputs of stages if there are many layers, else all layers."""
    stages = [name for name in layers if "_res_" not in name and "_attn_" not in name and "sample" not in name]
    return stages if len(layers) > 12 and stages else list(layers)


def _finished(figure: Figure, axes: Sequence[Axes], run: Run, title: str, several: Sequence[Axes]) -> Figure:
    """Add grid lines, legends, layer names and title; the panels ``several`` show several numbers and no mitigations."""
    for axis in axes:
        axis.grid(axis="y", alpha=0.3)
        if axis.get_legend_handles_labels()[0]:
            named = "without mitigation" if run.labels and axis in several else None
            axis.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0), title=named, title_fontsize=8)
    name_layers(axes[-1], run)
    heading(figure, title, run, bands=True)
    return figure


def _sheet(count: int) -> tuple[Figure, list[Axes]]:
    columns = min(count, COLUMNS)
    lines = math.ceil(count / columns)
    figure, axes = plt.subplots(
        lines, columns, figsize=(1.7 * columns + 1, 1.9 * lines + 0.6), squeeze=False, layout="constrained"
    )
    for panel in axes.flat:
        panel.set_axis_off()
    return figure, list(axes.flat)[:count]


def _width(run: Run) -> float:
    return max(8.5, 0.3 * len(run.bases) + 4)


REPORT = Report(
    tables=(statistics_table,),
    drawings={
        "credibility": Drawing(credibility_over_layers, several_layers),
        "similarity_over_layers": Drawing(similarity_over_layers, several_layers),
        "norms_over_layers": Drawing(norms_over_layers, several_layers),
        "cka": Drawing(cka_matrix, lambda run: several_layers(run) and "cka" in run.maps),
        "norm_maps": Drawing(norm_maps, mapped("norm")),
        "principal_components": Drawing(principal_components, pictured),
        "high_norm_tokens": Drawing(high_norm_tokens, pictured),
        "similarity": Drawing(similarity, pictured),
    },
    task=TASKS["statistics"],
)
