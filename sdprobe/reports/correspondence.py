"""Tables and figures of a correspondence run."""

import math
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from rich.table import Table

from sdprobe.reports import style
from sdprobe.reports.curves import STYLES, Grid, curve, grids, heading, layers_figure, mitigated, own
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
from sdprobe.reports.report import Drawing, Report, mapped, pictured, several_layers
from sdprobe.reports.run import Run, of_layer
from sdprobe.reports.tasks import TASKS
from sdprobe.tokens.keys import ENERGY, GROUPS, MASKED, select

MAIN = TASKS["correspondence"].metric
ALPHAS = ("0.05", "0.10", "0.15")
PUBLISHED = [
    ("dift", "image"), ("dift", "point"), ("sd_dino", "macro"), ("sd_dino", "pair"), ("geoaware", "image"),
    ("geoaware_refined", "image"), ("loos_thesis", "point"), ("ours_refined", "point"), ("ours_refined", "image"),
    ("ours_refined", "macro"), ("ours", "point"), ("ours", "image"), ("ours", "macro"), ("ours_img", "point"),
    ("ours_img", "image"), ("ours_img", "macro"),
]  # fmt: skip
PUBLISHED_ALPHAS = ("0.01", *ALPHAS)
MEANS = {"point": "keypoints", "image": "pairs", "macro": "categories", "pair": "weighted categories"}
MATCHINGS = {
    "test": "trained head", ENERGY: "random energy", "zero_shot": "zero-shot", "random_weights": "random weights",
    "random_weights_zero_shot": "random weights, zero-shot", "shuffled_labels": "shuffled pairs",
    "same_position": "same position", "random_point": "random point",
}  # fmt: skip
CURVES = {"test": STYLES["test"], "zero_shot": style.series(5), "random_weights": STYLES["random_weights"]}
GAINS = {
    "gain_over_zero_shot": "gain over zero-shot", "gain_over_random_weights": "gain over random weights",
    "gain_over_same_position": "gain over same position",
}  # fmt: skip
HARMS = (("harm", "harm of {}"), ("harm_random", "  masking random tokens"))
DISPLACEMENTS = ("near", "middle", "far")
# metric, group, name in the table
COSTS = [
    (MAIN, "all", "all keypoints"),
    *((MAIN, f"displacement_{name}", f"displacement {name}") for name in DISPLACEMENTS),
    *((MAIN, f"edge_{name}", f"edge distance {name}") for name in DISPLACEMENTS),
    *((MAIN, f"source_{name}", f"source {name}") for name in GROUPS),
    *((MAIN, f"target_{name}", f"target {name}") for name in GROUPS),
    *((MAIN, f"predicted_{name}", f"matched {name}") for name in GROUPS),
    ("copy_share", "all", "position copies"),
    ("copy_share_expected", "all", "  expected by chance"),
    ("copy_excess", "all", "  excess"),
    *(("attraction", name, f"attraction {name}") for name in MASKED),
    *((metric, name, text.format(name)) for name in MASKED for metric, text in HARMS),
]
SAME = "all equal"  # replaces an interval of width 0
VERDICTS: dict[int, tuple[str, dict[str, Any]]] = {  # label and line of a match
    1: ("correct", {"color": style.SKY, "ls": "-", "lw": 1.8}),
    0: ("wrong", {"color": style.ORANGE, "ls": "--", "lw": 1.1, "alpha": 0.9}),
    2: ("wrong, at the source's position", {"color": style.PURPLE, "ls": ":", "lw": 1.4, "alpha": 0.9}),
}
CAPTION = (
    "PCK: percentage of keypoints with an error of at most α × the longer side of the target's box (docs/methods.md, section "
    "17).\n"
    "gain: difference in percentage points, paired by keypoint, with its 95 % interval."
)
PROTOCOL_CAPTION = (
    "α of: α is multiplied with the longer side of the target's box, of the box around its keypoints, or of its image.\n"
    "sd_dino and geoaware use the image on PF-PASCAL and the box on other data.\n"
    "dift: raw tokens, grids upsampled to pixels. refined: positions between tokens. weighted categories: by number of pairs."
)
FEW_OF_CATEGORY = "few: also if a category has fewer than 3 pictures."
COST_CAPTION = (
    "displacement: distance of target point and source point, in sides of the input: near < .15, middle < .35, far.\n"
    "edge distance: of the target point to the input's edge, in sides: near < 1/16, middle < 3/16, far.\n"
    "source, target, matched: token group of the source token, of the token under the target point, of the matched token.\n"
    "position copies: share of wrong matches that lie at the source's position; expected by chance: at source "
    "positions of other pairs.\n"
    "attraction: share of wrong matches on the group minus the group's share of the grid.\n"
    "harm: PCK gained by masking the group; below, by masking as many random interior tokens. Keypoints whose true "
    "token is masked do not count.\n"
    "keypoints: sample of the number. pictures: sample of its interval.\n"
    f"{SAME}: every picture has the same value, so the spread between pictures is unknown."
)


def pck_table(run: Run) -> Table:
    """PCK per layer and matching method, and gains over the baselines."""
    shown = run_table(f"Semantic correspondence: {run.heading}, {tested(run)}", run, spaced=True)
    add_columns(shown, "layer", "matching", left=True)
    add_columns(shown, *(f"PCK\n@{alpha}" for alpha in ALPHAS), "±\n@0.10")
    names = matchings(run)
    for layer in run.layers:
        for condition, text in names.items():
            row = "baseline" if condition in ("same_position", "random_point") else layer
            values = [run.value(condition, row, f"pck_ours_point_{alpha}") for alpha in ALPHAS]
            if values[0] is not None:
                cells = [percent(value) for value in values]
                name, style = (layer, "") if condition == "test" else ("", "dim")
                shown.add_row(name, text, *cells, _half(run, condition, row, MAIN), style=style)
        for condition, text in GAINS.items():
            if (value := run.value(condition, layer, MAIN)) is not None:
                shown.add_row("", text, "", percent(value), "", ends(run, condition, layer, MAIN, percent))
        shown.add_section()
    return captioned(shown, run, CAPTION, intervals(run), sep="\n")


def matchings(run: Run) -> dict[str, str]:
    """Condition → name of the matching method. Without a trained head, ``test`` is zero-shot."""
    names = {condition: text.replace("random weights", random_weights(run)) for condition, text in MATCHINGS.items()}
    return names if has_head(run) else names | {"test": MATCHINGS["zero_shot"]}


def has_head(run: Run) -> bool:
    """Whether ``test`` matches after a trained linear map; then ``zero_shot`` is measured, too."""
    return bool(select(run.metrics, condition="zero_shot"))


def cost_table(run: Run) -> Table:
    """PCK by stratum, position copies, attraction and harm; of more than three layers only the one with the highest PCK."""
    shown = run_table(f"PCK@0.10 and errors by keypoint group (percent){_chosen(run)}", run, spaced=True)
    add_columns(shown, "layer", "group", left=True)
    others = ["zero_shot"] * has_head(run) + ["random_weights"]
    add_columns(shown, *["trained\nhead", "±"] * has_head(run), "zero-shot", *["±"] * (not has_head(run)))
    add_columns(shown, random_header(run), "same\nposition", "keypoints", "pictures")
    sampled = {key: str(int(np.isfinite(values).sum())) for key, values in run.pseudovalues().items()}
    for layer in shown_layers(run):
        first = layer
        for metric, group, text in COSTS:
            value = run.value("test", layer, metric, group)
            if value is None:
                continue
            baselines = [percent(run.value(name, layer, metric, group)) for name in others]
            same = percent(run.value("same_position", "baseline", metric, group))
            n = run.value("test", layer, metric, group, "n")
            counts = f"{n:.0f}" if n else "", sampled.get(f"test/{layer}/{metric}/{group}", "–")
            within = _half(run, "test", layer, metric, group)
            shown.add_row(first, text, percent(value), within, *baselines, same, *counts)
            first = ""
        shown.add_section()
    return captioned(shown, run, COST_CAPTION, sep="\n")


def protocol_table(run: Run) -> Table:
    """PCK of the same matches by every published protocol; only ``dift`` has other matches: zero-shot, on upsampled grids."""
    raw = "zero_shot" if has_head(run) else "test"
    table = run_table(f"PCK of the same matches by published protocol (percent){_chosen(run)}", run, spaced=True)
    add_columns(table, "layer", "protocol", "α of", "mean over", left=True)
    add_columns(table, *(f"PCK\n@{alpha}" for alpha in PUBLISHED_ALPHAS), "±\n@0.10")
    for layer in shown_layers(run):
        first = layer
        for protocol, average in PUBLISHED:
            condition = raw if protocol == "dift" else "test"
            values = [run.value(condition, layer, f"pck_{protocol}_{average}_{alpha}") for alpha in PUBLISHED_ALPHAS]
            if values[-1] is None:
                continue
            within = _half(run, condition, layer, f"pck_{protocol}_{average}_0.10")
            table.add_row(first, protocol, reference(run, protocol), MEANS[average], *map(percent, values), within)
            first = ""
        table.add_section()
    return captioned(table, run, PROTOCOL_CAPTION, f"{intervals(run)} {FEW_OF_CATEGORY}", sep="\n")


def reference(run: Run, protocol: str) -> str:
    """What α is multiplied with, by its longer side: the target's ``box``, the box of its ``keypoints``, or the ``image``."""
    of_image = protocol.startswith(("sd_dino", "geoaware")) and run.meta.get("image_reach", False)
    if protocol == "ours_img" or of_image:
        return "image"
    return "keypoints" if run.meta.get("target_box") == "keypoints" else "box"


def shown_layers(run: Run) -> list[str]:
    """All layers, or of more than three only the one with the highest PCK."""
    return run.layers if len(run.layers) <= 3 else [matching_best_at(run)]


def _chosen(run: Run) -> str:
    """Title suffix that says which layer is shown, if a table shows one of many."""
    if len(run.layers) <= 3:
        return ""
    plain = ", without mitigation" if run.labels else ""
    return f", at {matching_best_at(run)}{plain}" + (" (highest PCK)" if len(run.bases) > 1 else "")


def matching_best_at(run: Run) -> str:
    """The layer with the highest PCK without mitigation."""
    return max(run.bases, key=lambda layer: run.value("test", layer, MAIN) or 0.0)


def over_layers(run: Run) -> Figure:
    """PCK@0.10 of every layer. Top: all keypoints, also with mitigations. Bottom: by displacement."""
    figure, axes = layers_figure(run, 2, height=6.5, least=8.5, beside=4.0)
    names = matchings(run)
    for condition, kind in CURVES.items():
        label = own(run, names[condition]) if condition == "test" else names[condition]
        curve(axes[0], run, condition, MAIN, scale=100, label=label, **kind)
    mitigated(axes[0], run, MAIN, scale=100)
    if (same := run.value("same_position", "baseline", MAIN)) is not None:
        axes[0].axhline(100 * same, color=style.DARK, ls=":", label=names["same_position"])
    axes[0].set_title("all keypoints", loc="left", fontsize=style.NORMAL)
    for index, name in enumerate(DISPLACEMENTS):
        group, kind = f"displacement_{name}", style.series(index)
        curve(axes[1], run, "test", MAIN, group, scale=100, label=f"{names['test']}, {name}", **kind)
        if (same := run.value("same_position", "baseline", MAIN, group)) is not None:
            axes[1].axhline(100 * same, color=kind["color"], ls=":", label=f"same position, {name}")
    plain = ", without mitigation" if run.labels else ""
    title = f"by displacement between source and target point{plain}"
    axes[1].set_title(title, loc="left", fontsize=style.NORMAL)
    for axis in axes:
        axis.set(ylabel="PCK@0.10, %", ylim=(0, None))
        style.least_span(axis, 10, low=0)
        style.beside(axis)
    style.name_layers(axes[1], run.axis)
    heading(figure, "Semantic correspondence", run, bands=True)
    return figure


def over_offset(run: Run) -> Figure:
    """Share of wrong matches over the offset from source point to matched point; grey: no matches."""
    panels = []
    for layer in run.pictured:
        counts, wrong = run.maps[f"{layer}/offset_counts"], run.maps[f"{layer}/offset_errors"]
        rate = np.where(counts > 0, wrong / counts.clip(1), np.nan)
        name = f"{of_layer(layer)}  {percent(run.value('test', layer, MAIN))} %"
        panels.append(Grid(name, rate, "x offset, sides", "y offset, sides"))
    title, sides = "PCK@0.10, and errors by offset from source point to match (grey: no matches)", (-1, 1, 1, -1)
    colours = matplotlib.colormaps["magma"].with_extremes(bad="#dddddd")
    figure = grids(run, title, panels, "share of wrong matches", vmin=0, vmax=1, cmap=colours, extent=sides)
    for axis in figure.axes[: len(panels)]:
        axis.axhline(0, color="white", lw=0.4)
        axis.axvline(0, color="white", lw=0.4)
    return figure


def drawn_matches(run: Run) -> Figure:
    """Pairs side by side at the layer with the highest PCK: correct and wrong matches, and those at the source's position."""
    layer = matching_best_at(run)
    pictures, table = run.maps["pictures"], run.maps[f"{layer}/matches"]
    count = len(pictures) // 2
    columns = min(2, count)
    lines = math.ceil(count / columns)
    width = min(6.2, 2 * ((style.INCHES - 1) / lines - 0.2))
    figure, axes = style.panels(lines, columns, max(6.2, width * columns), (width / 2 + 0.2) * lines + 1)
    for number, panel in enumerate(axes.flat):
        panel.set_axis_off()
        if number < count:
            _pair(panel, pictures[2 * number], pictures[2 * number + 1], table[table[:, 0] == number])
    handles = [Line2D([], [], **kind) for _, kind in VERDICTS.values()]
    style.legend(figure, handles, [text for text, _ in VERDICTS.values()])
    why = " (highest PCK)" if len(run.bases) > 1 else ""
    heading(figure, f"Matches at {layer}{why}, crosses mark true positions", run)
    return figure


def _pair(panel: Axes, source: np.ndarray, target: np.ndarray, matches: np.ndarray) -> None:
    side = source.shape[0]
    gap = np.full((side, side // 16, 3), 255, np.uint8)
    panel.imshow(np.concatenate([source, gap, target], 1))
    right = side + side // 16
    scaled = matches * np.array([1, *[side] * 6, 1])
    # correct matches last, on top of the others, which are thin
    for _, x, y, true_x, true_y, found_x, found_y, verdict in sorted(scaled, key=lambda match: match[-1] == 1):
        _, kind = VERDICTS[int(verdict)]
        rim: dict[str, Any] = (
            {"path_effects": [withStroke(linewidth=kind["lw"] + 1.2, foreground=style.DARK)]} if verdict == 1 else {}
        )
        panel.plot([x, right + found_x], [y, found_y], marker="o", ms=3, clip_on=False, **kind, **rim)
        panel.plot(right + true_x, true_y, "+", color="white", ms=6, mew=2.2, clip_on=False)
        panel.plot(right + true_x, true_y, "+", color=kind["color"], ms=5, mew=1.0, clip_on=False)
    panel.set(xlim=(0, right + side), ylim=(side, 0))
    panel.set_title(f"{(matches[:, -1] == 1).sum()} of {len(matches)} correct", fontsize=style.NORMAL)


def _half(run: Run, condition: str, layer: str, metric: str, group: str = "all") -> str:
    _, low, high = run.estimate(condition, layer, metric, group)
    return SAME if low is not None and low == high else half(run, condition, layer, metric, group, percent)


REPORT = Report(
    tables=(pck_table, cost_table, protocol_table),
    drawings={
        "pck_over_layers": Drawing(over_layers, several_layers, over_layers=True),
        "errors_over_offset": Drawing(over_offset, mapped("offset_errors")),
        "matches": Drawing(drawn_matches, lambda run: mapped("offset_errors")(run) and pictured(run)),
    },
)
