"""Table and figures of an anomaly-statistics run."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from rich.table import Table

from sdprobe.reports import style
from sdprobe.reports.curves import STYLES, Grid, curve, grids, heading, layers_figure, mitigated, own
from sdprobe.reports.numbers import (
    add_columns,
    captioned,
    energy_cells,
    energy_header,
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
from sdprobe.reports.run import PICTURED, Run, of_layer
from sdprobe.tokens.keys import GROUPS, PARTITION

MARK: dict[str, Any] = {  # a token on a picture: white with a dark rim, visible on any picture
    "marker": "s", "facecolors": "none", "edgecolors": "white", "linewidths": 1.0,
    "path_effects": [withStroke(linewidth=2.6, foreground=style.DARK)],
}  # fmt: skip
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
    shown = run_table(f"Anomaly statistics: {run.heading}, {tested(run)}", run)
    add_columns(shown, "layer", left=True)
    add_columns(shown, "r_pos", "r_cor", "corner\npairs", "r_norm", "credibility", "±")
    add_columns(shown, *energy_header(run), "random\nweights", dim=True)
    add_columns(shown, *["±"] * over_seeds(run), "corner\ncosine", "interior\ncosine", "corner\nnorm", "high\nnorm %")
    for layer in run.layers:
        risks = {name: number(run.value("test", layer, name)) for name in ("r_pos", "r_cor", "r_norm")}
        score = f"[bold]{number(run.value('test', layer, 'credibility'))}[/bold]"
        cosines = [number(run.value("test", layer, "similarity_centred", group)) for group in ("corner", "interior")]
        share = run.value("test", layer, "high_norm_share")
        shown.add_row(
            layer, risks["r_pos"], risks["r_cor"], _pairs(run, layer), risks["r_norm"], score,
            half(run, "test", layer, "credibility", few=FEW), *energy_cells(run, layer, "credibility"),
            *random_cells(run, layer, "credibility", FEW), *cosines,
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
    figure, axes = layers_figure(run, 2, 6.5, least=8.5, beside=4.0)
    weights = random_weights(run)
    curve(axes[0], run, "test", "credibility", label=own(run), **STYLES["test"])
    curve(axes[0], run, "random_weights", "credibility", label=weights, **STYLES["random_weights"])
    mitigated(axes[0], run, "credibility")
    axes[0].set(ylim=(0, 1.03), ylabel="credibility (descriptive)")
    for index, (name, text) in enumerate((("r_pos", "position"), ("r_cor", "corners"), ("r_norm", "norms"))):
        kind = style.series(index)
        curve(axes[1], run, "test", name, label=text, **kind)
        curve(axes[1], run, "random_weights", name, label=f"{text}, {weights}", **(kind | {"ls": ":", "mfc": "white"}))
    axes[1].set(ylim=(-0.05, 1.03), ylabel="risk")
    return _finished(figure, axes, run, "Credibility and its risks", several=axes[1:])


def similarity_over_layers(run: Run) -> Figure:
    """Mean pairwise cosine within token groups. Top: raw. Bottom: centred. Dashed: cropped images."""
    figure, axes = layers_figure(run, 2, 6.5, least=8.5, beside=4.0)
    for axis, metric, title in (
        (axes[0], "similarity", "raw tokens"),
        (axes[1], "similarity_centred", "after subtracting the mean token"),
    ):
        for index, group in enumerate(PARTITION):
            kind = style.series(index)
            curve(axis, run, "test", metric, group, label=group, **kind)
            cropped = kind | {"ls": "--", "mfc": "white"}
            curve(axis, run, "test", f"cropped_{metric}", group, label=f"{group}, image cropped", **cropped)
        label = "same content as the cropped corners, in the whole image"
        curve(axis, run, "test", metric, "corner_content", label=label, **(style.series(len(PARTITION)) | {"ls": ":"}))
        axis.set(ylabel="mean cosine within group")
        axis.set_title(title, loc="left", fontsize=style.NORMAL)
    return _finished(figure, axes, run, "Similarity of tokens within groups", several=axes)


def norms_over_layers(run: Run) -> Figure:
    """Top: relative norm of every token group. Bottom: share of high-norm tokens and of their energy."""
    figure, axes = layers_figure(run, 2, 6.5, least=8.5, beside=4.0)
    for index, group in enumerate(GROUPS):
        curve(axes[0], run, "test", "relative_norm", group, label=group.replace("_", "-"), **style.series(index))
    axes[0].set(ylabel="norm / mean norm of the image")
    named = {"high_norm_share": "share of tokens detected as high-norm", "high_norm_energy": "their share of energy"}
    for index, (name, text) in enumerate(named.items()):
        curve(axes[1], run, "test", name, label=text, **style.series(index))
    axes[1].set(ylabel="share")
    style.least_span(axes[1], low=0)
    return _finished(figure, axes, run, "Norms of tokens by group", several=axes)


def cka_matrix(run: Run) -> Figure:
    """Debiased linear CKA between layers, and the part of it that shared positions explain."""
    titles = {"cka": "same positions of the same images", "cka_positions": "same positions of different images"}
    shown = {name: title for name, title in titles.items() if name in run.maps}  # older runs have only the first
    names = max(style.measured(layer, style.SMALL) for layer in run.bases)
    side = min(max(3.6, 0.16 * len(run.bases)), (style.INCHES - names - 1.2) / len(shown))
    figure, axes = style.panels(1, len(shown), side * len(shown) + names + 1.2, side + names + 1.3, sharey=True)
    size = style.SMALL if len(run.bases) < 30 else 7
    for axis, (name, title) in zip(axes.flat, shown.items(), strict=True):
        image = axis.imshow(run.maps[name], vmin=0, vmax=1, cmap="magma")
        axis.set_title(title, loc="left", fontsize=style.NORMAL)
        axis.set_xticks(range(len(run.bases)), run.axis, rotation=90, fontsize=size)
    axes[0, 0].set_yticks(range(len(run.bases)), run.axis, fontsize=size)
    figure.colorbar(image, ax=list(axes.flat), shrink=0.7, aspect=30, label="debiased linear CKA")
    heading(figure, "Similarity of layers", run)
    style.write_cells(list(axes.flat))
    return figure


def norm_maps(run: Run) -> Figure:
    """Mean token norm over images at every position, relative to the layer's mean."""
    tables = {layer: run.maps[f"{layer}/norm"] for layer in run.pictured}
    panels = [Grid(of_layer(layer), table / table.mean()) for layer, table in tables.items()]
    bar, title = "norm / mean norm of the layer", "Token norm over the grid, mean over images"
    return grids(run, title, panels, bar, cells=True, vmin=0.5, vmax=1.5, cmap="RdBu_r")


def similarity_sheet(
    picture: np.ndarray, maps: dict[str, np.ndarray], token: tuple[int, int], side: int, *title: str
) -> Figure:  # fmt: skip
    """The picture with the token marked, and per layer the cosine of every token with the marked one, −1 to 1."""
    figure, panels = style.sheet(["picture", *map(of_layer, maps)], widest=2.2)
    for panel in panels:
        panel.set_axis_off()
    panels[0].imshow(picture, extent=(0, side, side, 0))
    panels[0].scatter([token[1] + 0.5], [token[0] + 0.5], s=40, **MARK)
    for table, panel in zip(maps.values(), panels[1:], strict=True):
        shown = panel.imshow(table, vmin=-1, vmax=1, cmap="RdBu_r")
    figure.colorbar(shown, ax=panels, shrink=0.6, aspect=30, label="cosine with the marked token")
    style.title(figure, *title)
    return figure


def similarity(run: Run) -> Figure:
    """Similarity of one token of the first image in every layer."""
    row, col, side = run.maps["token"].tolist()
    maps = {layer: run.maps[f"{layer}/similarity"] for layer in run.pictured if f"{layer}/similarity" in run.maps}
    title = f"Cosine of token {row},{col} ({side} × {side} grid) with all tokens of its image, without the mean token"
    figure = similarity_sheet(run.maps["pictures"][0], maps, (row, col), side)
    heading(figure, title, run, layers=list(maps))
    return figure


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
        panel.scatter(columns + 0.5, rows + 0.5, s=14, **MARK)
        panel.set(xlim=(0, mask.shape[1]), ylim=(mask.shape[0], 0))
        panel.set_xlabel(f"{len(rows)}", fontsize=7, labelpad=1)

    return _by_image(run, show, "High-norm tokens (robust z > 5); their number is below each panel")


def _by_image(run: Run, show: Callable[[Axes, str, int], None], title: str) -> Figure:
    pictures = run.maps["pictures"]
    layers = [layer for layer in _pictured(run) if f"{layer}/components" in run.maps]
    lines = len(pictures)
    side = min(1.9, style.INCHES / (len(layers) + 1), (style.INCHES - 1) / lines - 0.15)
    figure, axes = style.panels(lines, len(layers) + 1, max(6.0, side * (len(layers) + 1)), (side + 0.15) * lines + 0.8)
    for image, row in enumerate(axes):
        row[0].imshow(pictures[image])
        for layer, panel in zip(layers, row[1:], strict=True):
            show(panel, layer, image)
            if image == 0:
                panel.set_title(style.wrapped(of_layer(layer), side, style.SMALL), fontsize=style.SMALL)
        for panel in row:
            panel.set_xticks([])
            panel.set_yticks([])
    heading(figure, title, run, layers=layers)
    return figure


def _pictured(run: Run) -> list[str]:
    """The layers of pictures: of many, the outputs of stages, at most twelve."""
    stages = [name for name in run.bases if "_res_" not in name and "_attn_" not in name and "sample" not in name]
    return run.showing(stages).pictured if len(run.bases) > PICTURED >= len(stages) > 0 and not run.chosen else run.pictured


def _finished(figure: Figure, axes: Sequence[Axes], run: Run, title: str, several: Sequence[Axes]) -> Figure:
    """Add legends, layer names and title; the panels ``several`` show several numbers and no mitigations."""
    for axis in axes:
        style.least_span(axis)
        style.beside(axis, "without mitigation" if run.labels and axis in several else "")
    style.name_layers(axes[-1], run.axis)
    heading(figure, title, run, bands=True)
    return figure


REPORT = Report(
    tables=(statistics_table,),
    drawings={
        "credibility": Drawing(credibility_over_layers, several_layers, over_layers=True),
        "similarity_over_layers": Drawing(similarity_over_layers, several_layers, over_layers=True),
        "norms_over_layers": Drawing(norms_over_layers, several_layers, over_layers=True),
        "cka": Drawing(cka_matrix, lambda run: several_layers(run) and "cka" in run.maps, over_layers=True),
        "norm_maps": Drawing(norm_maps, mapped("norm")),
        "principal_components": Drawing(principal_components, pictured),
        "high_norm_tokens": Drawing(high_norm_tokens, pictured),
        "similarity": Drawing(similarity, pictured),
    },
)
