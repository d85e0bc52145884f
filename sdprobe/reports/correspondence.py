"""Tables and figures of a correspondence run."""

import math

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.table import Table

from sdprobe.reports.curves import curve, heading, mitigated, name_layers
from sdprobe.reports.numbers import captioned, half, intervals, lacking, percent, random_weights, run_table, tested
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
COLOURS = {"test": "#0b6e99", "zero_shot": "#5fa8d3", "random_weights": "#d9730d", "same_position": "#37352f"}
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
PADDING = (0, 1, 0, 0)
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


def correspondence_tables(run: Run) -> list[Table]:
    """PCK of every layer beside its nulls; what anomalies cost; every published way of counting."""
    return [pck_table(run), cost_table(run), protocol_table(run)]


def pck_table(run: Run) -> Table:
    """Rows per layer and way of matching."""
    shown = run_table(f"Semantic correspondence: {run.setting}, {tested(run)}", run, PADDING)
    for header in ("layer", "matching", *(f"@{alpha}" for alpha in ALPHAS), "± @0.10"):
        shown.add_column(header, no_wrap=True, justify="left" if header in ("layer", "matching") else "right")
    ways = WAYS | {way: WAYS[way].replace("random weights", random_weights(run)) for way in WAYS if way.startswith("random_w")}
    for layer in run.layers:
        for way, text in ways.items():
            where = "baseline" if way in ("same_position", "random_point") else layer
            values = [run.value(way, where, f"pck_ours_point_{alpha}") for alpha in ALPHAS]
            if values[0] is not None:
                cells = [percent(value) for value in values]
                within = _half(run, way, where, MAIN, "all")
                shown.add_row(layer if way == "test" else "", text, *cells, within, style="" if way == "test" else "dim")
        for what, text in GAINS.items():
            if (value := run.value(what, layer, MAIN)) is not None:
                shown.add_row("", text, "", percent(value), "", _ends(run, what, layer))
        shown.add_section()
    return captioned(shown, run, CAPTION, intervals(run), sep="\n")


def cost_table(run: Run) -> Table:
    """PCK of every stratum, then copies, attraction and harm; of more than three layers where matching is best."""
    shown = run_table(f"Matches by place and token group (percent, @0.10){_chosen(run)}", run, PADDING)
    weights = random_weights(run).replace(" ", "\n", 2)
    for header in ("layer", "group", "tested", "±", "zero-\nshot", weights, "same\nplace", "key-\npoints", "pic-\ntures"):
        shown.add_column(header, no_wrap=True, justify="left" if header in ("layer", "group") else "right")
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
    table = run_table(f"The same matches as papers count them (percent){_chosen(run)}", run, PADDING)
    words = ("layer", "protocol", "α of", "mean over")
    for header in (*words, *(f"@{alpha}" for alpha in PUBLISHED_ALPHAS), "± @0.10"):
        table.add_column(header, no_wrap=True, justify="left" if header in words else "right")
    for layer in shown_layers(run):
        first = layer
        for protocol, average in PUBLISHED:
            way = raw if protocol == "dift" else "test"
            values = [run.value(way, layer, f"pck_{protocol}_{average}_{alpha}") for alpha in PUBLISHED_ALPHAS]
            if values[-1] is None:
                continue
            within = _half(run, way, layer, f"pck_{protocol}_{average}_0.10", "all")
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


def correspondence_figures(run: Run) -> dict[str, Figure]:
    """Every figure that the run has data for, by file name."""
    figures: dict[str, Figure] = {}
    if len(run.bases) > 1:
        figures["pck_over_layers"] = over_layers(run)
    if all(f"{layer}/offset_errors" in run.maps for layer in run.layers):  # an interrupted run has no maps
        figures["errors_over_offset"] = over_offset(run)
        if "pictures" in run.maps:
            figures["matches"] = drawn_matches(run, matching_best_at(run))
    return figures


def matching_best_at(run: Run) -> str:
    """The layer with the highest PCK, without mitigation where mitigations are compared."""
    return max(run.bases, key=lambda layer: run.value("test", layer, MAIN) or 0.0)


def over_layers(run: Run) -> Figure:
    """PCK@0.10 of every layer: all keypoints above, also behind mitigations; by displacement below."""
    figure, axes = plt.subplots(2, 1, figsize=(max(6, 0.32 * len(run.bases) + 2), 7), sharex=True, layout="constrained")
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
    layers = run.layers
    columns = min(len(layers), 8 if len(layers) > 8 else max(1, math.ceil(math.sqrt(len(layers)))))
    lines = math.ceil(len(layers) / columns)
    side = 4.2 if len(layers) <= 2 else 1.9
    size = (side * columns + 1.2, (side + 0.25) * lines + 0.6)
    figure, axes = plt.subplots(lines, columns, figsize=size, squeeze=False, layout="constrained")
    for layer, panel in zip(layers, axes.flat, strict=False):
        counts, wrong = run.maps[f"{layer}/offset_counts"], run.maps[f"{layer}/offset_errors"]
        rate = np.where(counts > 0, wrong / counts.clip(1), np.nan)
        panel.set_facecolor("#dddddd")
        image = panel.imshow(rate, vmin=0, vmax=1, cmap="magma", extent=(-1, 1, 1, -1))
        panel.axhline(0, color="white", lw=0.4)
        panel.axvline(0, color="white", lw=0.4)
        panel.set_title(f"{layer}  {percent(run.value('test', layer, MAIN))} %", fontsize=11 if len(layers) == 1 else 8)
        panel.set(xlabel="x, sides", ylabel="y, sides") if len(layers) == 1 else panel.set_axis_off()
    for panel in list(axes.flat)[len(layers) :]:
        panel.remove()
    figure.colorbar(image, ax=list(axes.flat)[: len(layers)], shrink=0.8, aspect=30, label="share of wrong matches")
    heading(figure, "Errors over the offset from source to match", run)
    return figure


def drawn_matches(run: Run, layer: str) -> Figure:
    """Pairs side by side: right matches, wrong ones, and wrong ones at the source's own position."""
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


def _half(run: Run, what: str, layer: str, metric: str, group: str) -> str:
    low, high = (run.value(what, layer, metric, group, end) for end in ("ci_low", "ci_high"))
    return SAME if low is not None and low == high else half(run, what, layer, metric, group, percent)


def _ends(run: Run, what: str, layer: str) -> str:
    """Both ends of a gain's interval, or why it has none."""
    low, high = (run.value(what, layer, MAIN, end=end) for end in ("ci_low", "ci_high"))
    return lacking(run, what) if low is None or high is None else f"{percent(low)} to {percent(high)}"
