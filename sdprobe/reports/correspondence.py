"""Tables and figures of a correspondence run."""

import math

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.table import Table

from sdprobe.reports.curves import BLUE, DARK, ORANGE, Grid, curve, grids, heading, layers_figure, mitigated, name_layers
from sdprobe.reports.numbers import (
    add_columns,
    captioned,
    ends,
    half,
    intervals,
    percent,
    random_header,
    random_weights,
    run_table,
    tested,
)
from sdprobe.reports.report import Drawing, Report, Task, mapped, pictured, several_layers
from sdprobe.reports.run import Run
from sdprobe.tokens.keys import GROUPS, MASKED, select

MAIN = "pck_ours_point_0.10"
ALPHAS = ("0.05", "0.10", "0.15")
PUBLISHED = [
    ("dift", "image"), ("dift", "point"), ("sd_dino", "macro"), ("sd_dino", "pair"), ("geoaware", "image"),
    ("geoaware_refined", "image"), ("loos_thesis", "point"), ("ours_refined", "point"), ("ours_refined", "image"),
    ("ours_refined", "macro"), ("ours", "point"), ("ours", "image"), ("ours", "macro"), ("ours_img", "point"),
    ("ours_img", "image"), ("ours_img", "macro"),
]  # fmt: skip
PUBLISHED_ALPHAS = ("0.01", *ALPHAS)
MEANS = {"point": "keypoints", "image": "pairs", "macro": "categories", "pair": "categories by pairs"}
WAYS = {
    "test": "tested", "zero_shot": "zero-shot", "random_weights": "random weights",
    "random_weights_zero_shot": "random weights, zero-shot", "shuffled_labels": "shuffled pairs",
    "same_position": "same position", "random_point": "random point",
}  # fmt: skip
COLOURS = {"test": BLUE, "zero_shot": "#5fa8d3", "random_weights": ORANGE, "same_position": DARK}
GAINS = {
    "gain_over_zero_shot": "gain over zero-shot", "gain_over_random_weights": "gain over random weights",
    "gain_over_same_position": "gain over same position",
}  # fmt: skip
HARMS = (("harm", "harm of {}"), ("harm_random", "  of as many random"))
DISPLACEMENTS = ("near", "middle", "far")
# metric, group, what the table calls it
COSTS = [
    (MAIN, "all", "all keypoints"),
    *((MAIN, f"displacement_{name}", f"displacement {name}") for name in DISPLACEMENTS),
    *((MAIN, f"edge_{name}", f"target's edge {name}") for name in DISPLACEMENTS),
    *((MAIN, f"source_{name}", f"source {name}") for name in GROUPS),
    *((MAIN, f"target_{name}", f"target {name}") for name in GROUPS),
    *((MAIN, f"predicted_{name}", f"matched {name}") for name in GROUPS),
    ("copy_share", "all", "copies, of wrong matches"),
    ("copy_share_expected", "all", "  expected by chance"),
    ("copy_excess", "all", "  excess"),
    *(("attraction", name, f"attraction {name}") for name in MASKED),
    *((metric, name, text.format(name)) for name in MASKED for metric, text in HARMS),
]
SAME = "all equal"  # in place of an interval of width 0
VERDICTS = {1: ("right", "#2ca02c"), 0: ("wrong", "#d62728"), 2: ("wrong: at the source's position", "#ffbf00")}
CAPTION = (
    "PCK in percent, per keypoint, target's box, token centres (docs/methods.md, section 17).\n"
    "Gains are paired by keypoint, in points, with their interval."
)
PROTOCOL_CAPTION = (
    "α of: the longer side that α is a share of, of the target's box, of the box around its keypoints, or of its image;\n"
    "sd_dino and geoaware take the image on PF-PASCAL, the box elsewhere.\n"
    "dift: raw tokens, over enlarged grids. refined: between tokens."
)
FEW_OF_CATEGORY = "few also stands where a category has fewer than 3 pictures."
COST_CAPTION = (
    "displacement: of the target point from the source point, in sides of the input (below .15, to .35, above).\n"
    "edge: of the target point from the input's edge (below 1/16, to 3/16, above).\n"
    "copies: wrong matches at the source's own position, and how many would be at other pairs' source positions.\n"
    "attraction: share of wrong matches on the group, less the group's share of the grid.\n"
    "harm: PCK gained by masking the group, and by masking as many random interior tokens; of keypoints whose true token\n"
    "neither masks.\n"
    "keypoints, pictures: how many a number is a mean of, and how many its ± rests on.\n"
    f"{SAME}: every picture gives the same number, which says nothing of how pictures differ."
)


def pck_table(run: Run) -> Table:
    """Rows per layer and way of matching."""
    shown = run_table(f"Semantic correspondence: {run.setting}, {tested(run)}", run, spaced=True)
    add_columns(shown, "layer", "matching", left=True)
    add_columns(shown, *(f"@{alpha}" for alpha in ALPHAS), "± @0.10")
    ways = WAYS | {way: WAYS[way].replace("random weights", random_weights(run)) for way in WAYS if way.startswith("random_w")}
    for layer in run.layers:
        for way, text in ways.items():
            where = "baseline" if way in ("same_position", "random_point") else layer
            values = [run.value(way, where, f"pck_ours_point_{alpha}") for alpha in ALPHAS]
            if values[0] is not None:
                cells = [percent(value) for value in values]
                name, style = (layer, "") if way == "test" else ("", "dim")
                shown.add_row(name, text, *cells, _half(run, way, where, MAIN), style=style)
        for what, text in GAINS.items():
            if (value := run.value(what, layer, MAIN)) is not None:
                shown.add_row("", text, "", percent(value), "", ends(run, what, layer, MAIN, percent))
        shown.add_section()
    return captioned(shown, run, CAPTION, intervals(run), sep="\n")


def cost_table(run: Run) -> Table:
    """PCK of every stratum, then copies, attraction and harm; of more than three layers where matching is best."""
    shown = run_table(f"Matches by place and token group (percent, @0.10){_chosen(run)}", run, spaced=True)
    add_columns(shown, "layer", "group", left=True)
    add_columns(shown, "tested", "±", "zero-\nshot", random_header(run), "same\nplace", "key-\npoints", "pic-\ntures")
    sampled = {key: str(int(np.isfinite(values).sum())) for key, values in run.pseudovalues().items()}
    for layer in shown_layers(run):
        first = layer
        for metric, group, text in COSTS:
            value = run.value("test", layer, metric, group)
            if value is None:
                continue
            nulls = [percent(run.value(way, layer, metric, group)) for way in ("zero_shot", "random_weights")]
            same = percent(run.value("same_position", "baseline", metric, group))
            n = run.value("test", layer, metric, group, "n")
            counts = f"{n:.0f}" if n else "", sampled.get(f"test/{layer}/{metric}/{group}", "–")
            within = _half(run, "test", layer, metric, group)
            shown.add_row(first, text, percent(value), within, *nulls, same, *counts)
            first = ""
        shown.add_section()
    return captioned(shown, run, COST_CAPTION, sep="\n")


def protocol_table(run: Run) -> Table:
    """Every published way of counting the same matches; dift counts its own, over enlarged grids, zero-shot."""
    raw = "zero_shot" if select(run.metrics, condition="zero_shot") else "test"
    table = run_table(f"The same matches as papers count them (percent){_chosen(run)}", run, spaced=True)
    add_columns(table, "layer", "protocol", "α of", "mean over", left=True)
    add_columns(table, *(f"@{alpha}" for alpha in PUBLISHED_ALPHAS), "± @0.10")
    for layer in shown_layers(run):
        first = layer
        for protocol, average in PUBLISHED:
            way = raw if protocol == "dift" else "test"
            values = [run.value(way, layer, f"pck_{protocol}_{average}_{alpha}") for alpha in PUBLISHED_ALPHAS]
            if values[-1] is None:
                continue
            within = _half(run, way, layer, f"pck_{protocol}_{average}_0.10")
            table.add_row(first, protocol, reach(run, protocol), MEANS[average], *map(percent, values), within)
            first = ""
        table.add_section()
    return captioned(table, run, PROTOCOL_CAPTION, f"{intervals(run)} {FEW_OF_CATEGORY}", sep="\n")


def reach(run: Run, protocol: str) -> str:
    """What α is a share of, by its longer side: the target's ``box``, the box around its ``keypoints``, or the ``image``."""
    follows = protocol.startswith(("sd_dino", "geoaware")) and run.meta.get("image_reach", False)
    if protocol == "ours_img" or follows:
        return "image"
    return "keypoints" if run.meta.get("target_box") == "keypoints" else "box"


def shown_layers(run: Run) -> list[str]:
    """All layers, or of more than three the one where matching is best."""
    return run.layers if len(run.layers) <= 3 else [matching_best_at(run)]


def _chosen(run: Run) -> str:
    """Why a table or figure shows one layer of many."""
    if len(run.layers) <= 3:
        return ""
    plain = ", without mitigation" if run.labels else ""
    return f", at {matching_best_at(run)}{plain}" + (", where matching is best" if len(run.bases) > 1 else "")


def matching_best_at(run: Run) -> str:
    """The layer with the highest PCK, without mitigation where mitigations are compared."""
    return max(run.bases, key=lambda layer: run.value("test", layer, MAIN) or 0.0)


def over_layers(run: Run) -> Figure:
    """PCK@0.10 of every layer: all keypoints above, also behind mitigations; by displacement below."""
    figure, axes = layers_figure(run, 2, height=7)
    for way, label in (("test", WAYS["test"]), ("zero_shot", WAYS["zero_shot"]), ("random_weights", random_weights(run))):
        curve(axes[0], run, way, MAIN, scale=100, marker="o", color=COLOURS[way], label=label)
    mitigated(axes[0], run, MAIN, scale=100)
    same = run.value("same_position", "baseline", MAIN)
    axes[0].axhline(100 * (same or 0), color=COLOURS["same_position"], ls=":", label=WAYS["same_position"])
    axes[0].set_title("all keypoints", loc="left", fontsize=10)
    for name, colour in zip(DISPLACEMENTS, ("#08519c", "#3182bd", "#9ecae1"), strict=True):
        group = f"displacement_{name}"
        curve(axes[1], run, "test", MAIN, group, scale=100, marker="o", color=colour, label=f"tested, {name}")
        same = run.value("same_position", "baseline", MAIN, group)
        if same:
            axes[1].axhline(100 * same, color=colour, ls=":", label=f"same position, {name}")
    plain = ", without mitigation" if run.labels else ""
    axes[1].set_title(f"by displacement of source and target{plain}", loc="left", fontsize=10)
    for axis in axes:
        axis.set(ylabel="PCK@0.10, %", ylim=(0, None))
        axis.grid(axis="y", alpha=0.3)
        axis.legend(frameon=False, fontsize=8, ncols=2)
    name_layers(axes[1], run)
    heading(figure, "Semantic correspondence", run, bands=True)
    return figure


def over_offset(run: Run) -> Figure:
    """Share of matches that are wrong, over the offset from source point to matched point; grey where there is none."""
    panels = []
    for layer in run.layers:
        counts, wrong = run.maps[f"{layer}/offset_counts"], run.maps[f"{layer}/offset_errors"]
        rate = np.where(counts > 0, wrong / counts.clip(1), np.nan)
        panels.append(Grid(f"{layer}  {percent(run.value('test', layer, MAIN))} %", rate, "x, sides", "y, sides"))
    title, sides = "Errors over the offset from source to match", (-1, 1, 1, -1)
    figure = grids(run, title, panels, "share of wrong matches", vmin=0, vmax=1, cmap="magma", extent=sides)
    for axis in figure.axes[: len(panels)]:
        axis.set_facecolor("#dddddd")
        axis.axhline(0, color="white", lw=0.4)
        axis.axvline(0, color="white", lw=0.4)
    return figure


def drawn_matches(run: Run) -> Figure:
    """Pairs side by side where matching is best: right matches, wrong ones, and wrong ones at the source's own position."""
    layer = matching_best_at(run)
    pictures, table = run.maps["pictures"], run.maps[f"{layer}/matches"]
    count = len(pictures) // 2
    columns = min(2, count)
    lines = math.ceil(count / columns)
    figure, axes = plt.subplots(lines, columns, figsize=(6.2 * columns, 3.2 * lines + 0.6), squeeze=False, layout="constrained")
    for number, panel in enumerate(axes.flat):
        panel.set_axis_off()
        if number < count:
            _pair(panel, pictures[2 * number], pictures[2 * number + 1], table[table[:, 0] == number])
    handles = [plt.Line2D([], [], color=colour, label=text) for text, colour in VERDICTS.values()]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False)
    why = ", where matching is best" if len(run.bases) > 1 else ""
    heading(figure, f"Matches at {layer}{why} (cross: where the part is)", run)
    return figure


def _pair(panel: Axes, source: np.ndarray, target: np.ndarray, matches: np.ndarray) -> None:
    side = source.shape[0]
    gap = np.full((side, side // 16, 3), 255, np.uint8)
    panel.imshow(np.concatenate([source, gap, target], 1))
    for _, x, y, true_x, true_y, found_x, found_y, verdict in matches * np.array([1, *[side] * 6, 1]):
        colour = VERDICTS[int(verdict)][1]
        right = side + side // 16
        panel.plot([x, right + found_x], [y, found_y], color=colour, lw=0.9, marker="o", ms=2.5)
        panel.plot(right + true_x, true_y, "+", color="white", ms=6, mew=2.2)
        panel.plot(right + true_x, true_y, "+", color=colour, ms=5, mew=1.0)
    panel.set(xlim=(0, 2 * side + side // 16), ylim=(side, 0))


def _half(run: Run, what: str, layer: str, metric: str, group: str = "all") -> str:
    _, low, high = run.estimate(what, layer, metric, group)
    return SAME if low is not None and low == high else half(run, what, layer, metric, group, percent)


REPORT = Report(
    tables=(pck_table, cost_table, protocol_table),
    drawings={
        "pck_over_layers": Drawing(over_layers, several_layers),
        "errors_over_offset": Drawing(over_offset, mapped("offset_errors")),
        "matches": Drawing(drawn_matches, lambda run: mapped("offset_errors")(run) and pictured(run)),
    },
    task=Task("correspondence", MAIN, "PCK@0.10, %", "matching best at", scale=100.0),
)
