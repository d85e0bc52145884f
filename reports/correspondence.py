"""Tables and figures of a correspondence run."""

import math

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich import box
from rich.table import Table

from reports.run import Run

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
GROUPS = ("corner", "border", "interior", "high_norm")
MASKED = ("corner", "border", "high_norm")
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
VERDICTS = {1: ("right", "#2ca02c"), 0: ("wrong", "#d62728"), 2: ("wrong: at the source's position", "#ffbf00")}
CAPTION = (
    "PCK in percent, per keypoint, target's box, token centres (docs/methods.md, section 17). ±: half of the 95 % interval\n"
    "over pictures. Gains are paired by keypoint, in points, with their interval."
)
PROTOCOL_CAPTION = (
    "α of: the longer side that α is a share of, of the target's box, of the box around its keypoints, or of its image;\n"
    "sd_dino and geoaware take the image on PF-PASCAL, the box elsewhere.\n"
    "dift: raw tokens, over enlarged grids. refined: between tokens."
)
COST_CAPTION = (
    "displacement: of the target point from the source point, in sides of the input (below .15, to .35, above).\n"
    "edge: of the target point from the input's edge (below 1/16, to 3/16, above).\n"
    "copies: wrong matches at the source's own position, and how many would be at other pairs' source positions.\n"
    "attraction: share of wrong matches on the group, less the group's share of the grid.\n"
    "harm: PCK gained by masking the group, and by masking as many random interior tokens; of keypoints whose true token\n"
    "neither masks."
)


def correspondence_tables(run: Run) -> list[Table]:
    """PCK of every layer beside its nulls; what anomalies cost; every published way of counting."""
    return [pck_table(run), cost_table(run), protocol_table(run)]


def pck_table(run: Run) -> Table:
    """Rows per layer and way of matching."""
    state = "" if run.meta["complete"] else "  INCOMPLETE"
    pairs = run.meta["pairs"]["test"]
    table = _table(f"Semantic correspondence: {run.setting}, {pairs} test pairs{state}", CAPTION)
    for header in ("layer", "matching", *(f"@{alpha}" for alpha in ALPHAS), "± @0.10"):
        table.add_column(header, no_wrap=True, justify="left" if header in ("layer", "matching") else "right")
    for layer in run.layers:
        for way, text in WAYS.items():
            where = "baseline" if way in ("same_position", "random_point") else layer
            values = [run.value(way, where, f"pck_ours_point_{alpha}") for alpha in ALPHAS]
            if values[0] is not None:
                cells = [_percent(value) for value in values]
                half = _half(run, way, where, MAIN, "all")
                table.add_row(layer if way == "test" else "", text, *cells, half, style="" if way == "test" else "dim")
        for what, text in GAINS.items():
            if (value := run.value(what, layer, MAIN)) is not None:
                ends = [_percent(run.value(what, layer, MAIN, end=end)) for end in ("ci_low", "ci_high")]
                table.add_row("", text, "", _percent(value), "", f"{ends[0]} to {ends[1]}")
        table.add_section()
    return table


def cost_table(run: Run) -> Table:
    """PCK of every stratum, then copies, attraction and harm; of at most three layers, else of the best."""
    table = _table("What position, corners and high-norm tokens cost (percent, @0.10)", COST_CAPTION)
    for header in ("layer", "group", "tested", "±", "zero-\nshot", "random\nweights", "same\nplace", "n"):
        table.add_column(header, no_wrap=True, justify="left" if header in ("layer", "group") else "right")
    for layer in shown_layers(run):
        first = layer
        for metric, group, text in COSTS:
            value = run.value("test", layer, metric, group)
            if value is None:
                continue
            nulls = [_percent(run.value(way, layer, metric, group)) for way in ("zero_shot", "random_weights")]
            same = _percent(run.value("same_position", "baseline", metric, group))
            n = run.value("test", layer, metric, group, "n")
            half = _half(run, "test", layer, metric, group)
            table.add_row(first, text, _percent(value), half, *nulls, same, f"{n:.0f}" if n else "")
            first = ""
        table.add_section()
    return table


def protocol_table(run: Run) -> Table:
    """Every published way of counting the same matches; dift counts its own, over enlarged grids, zero-shot."""
    raw = "zero_shot" if any(key.startswith("zero_shot/") for key in run.metrics) else "test"
    table = _table("The same matches as papers count them (percent)", PROTOCOL_CAPTION)
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
            half = _half(run, way, layer, f"pck_{protocol}_{average}_0.10", "all")
            table.add_row(first, protocol, reach(run, protocol), MEANS[average], *map(_percent, values), half)
            first = ""
        table.add_section()
    return table


def reach(run: Run, protocol: str) -> str:
    """What α is a share of, by its longer side: the target's ``box``, the box around its ``keypoints``, or the ``image``."""
    follows = protocol.startswith(("sd_dino", "geoaware")) and run.meta.get("image_reach", False)
    if protocol == "ours_img" or follows:
        return "image"
    return "keypoints" if run.meta.get("target_box") == "keypoints" else "box"


def shown_layers(run: Run) -> list[str]:
    """All layers, or the best of more than three."""
    return run.layers if len(run.layers) <= 3 else [best_layer(run)]


def correspondence_figures(run: Run) -> dict[str, Figure]:
    """Every figure that the run has data for, by file name."""
    figures: dict[str, Figure] = {}
    if len(run.layers) > 1:
        figures["pck_over_layers"] = over_layers(run)
    if all(f"{layer}/offset_errors" in run.maps for layer in run.layers):  # an interrupted run has no maps
        figures["errors_over_offset"] = over_offset(run)
        if "pictures" in run.maps:
            figures["matches"] = drawn_matches(run, best_layer(run))
    return figures


def best_layer(run: Run) -> str:
    """The layer with the highest PCK."""
    return max(run.layers, key=lambda layer: run.value("test", layer, MAIN) or 0.0)


def over_layers(run: Run) -> Figure:
    """PCK@0.10 of every layer: all keypoints above, by displacement below."""
    count = len(run.layers)
    figure, axes = plt.subplots(2, 1, figsize=(max(6, 0.32 * count + 2), 7), sharex=True, layout="constrained")
    for way in ("test", "zero_shot", "random_weights"):
        _curve(axes[0], run, way, "all", COLOURS[way], WAYS[way])
    same = run.value("same_position", "baseline", MAIN)
    axes[0].axhline(100 * (same or 0), color=COLOURS["same_position"], ls=":", label=WAYS["same_position"])
    axes[0].set_title("all keypoints", loc="left", fontsize=10)
    for name, colour in zip(DISPLACEMENTS, ("#08519c", "#3182bd", "#9ecae1"), strict=True):
        _curve(axes[1], run, "test", f"displacement_{name}", colour, f"tested, {name}")
        same = run.value("same_position", "baseline", MAIN, f"displacement_{name}")
        if same:
            axes[1].axhline(100 * same, color=colour, ls=":", label=f"same position, {name}")
    axes[1].set_title("by displacement of source and target", loc="left", fontsize=10)
    for axis in axes:
        axis.set(ylabel="PCK@0.10, %", ylim=(0, None))
        axis.grid(axis="y", alpha=0.3)
        axis.legend(frameon=False, fontsize=8, ncols=2)
    axes[1].set_xticks(range(count), run.layers, rotation=90 if count > 12 else 30, ha="center" if count > 12 else "right")
    figure.suptitle(f"Semantic correspondence, {run.setting}", fontsize=11)
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
        panel.set_title(f"{layer}  {_percent(run.value('test', layer, MAIN))} %", fontsize=11 if len(layers) == 1 else 8)
        panel.set(xlabel="x, sides", ylabel="y, sides") if len(layers) == 1 else panel.set_axis_off()
    for panel in list(axes.flat)[len(layers) :]:
        panel.remove()
    figure.colorbar(image, ax=list(axes.flat)[: len(layers)], shrink=0.8, aspect=30, label="share of wrong matches")
    figure.suptitle(f"Errors over the offset from source to match, {run.setting}", fontsize=11)
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
    figure.suptitle(f"Matches at {layer} (cross: where the part is), {run.setting}", fontsize=11)
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


def _curve(axis: Axes, run: Run, way: str, group: str, colour: str, label: str) -> None:
    values = [run.value(way, layer, MAIN, group) for layer in run.layers]
    if all(value is None for value in values):
        return
    x, y = np.arange(len(values)), 100 * np.array([np.nan if value is None else value for value in values])
    axis.plot(x, y, marker="o", ms=3.5, color=colour, label=label)
    ends = [[run.value(way, layer, MAIN, group, end) for layer in run.layers] for end in ("ci_low", "ci_high")]
    low, high = (100 * np.array([np.nan if value is None else value for value in end]) for end in ends)
    axis.fill_between(x, low, high, color=colour, alpha=0.15, lw=0)


def _table(title: str, caption: str) -> Table:
    return Table(
        title=title, caption=caption, title_justify="left", caption_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0),
        show_edge=False,
    )  # fmt: skip


def _half(run: Run, what: str, layer: str, metric: str, group: str) -> str:
    low, high = (run.value(what, layer, metric, group, end) for end in ("ci_low", "ci_high"))
    return "" if low is None or high is None else _percent((high - low) / 2)


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f}"
