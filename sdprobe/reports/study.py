"""`experiment=loos2025` compared with the published study: a figure of three panels, a table, a CSV of differences."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.table import Table

from sdprobe.reports import position, statistics, style
from sdprobe.reports.curves import layers_figure
from sdprobe.reports.numbers import add_columns, bare_table, number, unmeasured
from sdprobe.reports.report import Drawing, Report
from sdprobe.reports.run import Run
from sdprobe.tokens.keys import PARTITION
from sdprobe.utilities.io import write_rows

PUBLISHED = Path(__file__).with_name("loos2025.json")
MODELS = {"stable-diffusion-v1": "sd15", "stable-diffusion-2-1": "sd21", "sd-turbo": "sd_turbo"}
NAMES = {"sd15": "SD-1.5", "sd21": "SD-2.1", "sd_turbo": "SD-Turbo"}
RESOLUTIONS = (8, 16, 32, 64)
CAPTION = (
    "paper: published value. accuracy: mean of row and column accuracy in 8 bins. contrast: mean cosine within the group, "
    "image cropped before extraction minus grid cropped after it. anomaly norm: relative norm at {}. The table above has "
    "intervals of the accuracies; the other numbers have none. loos2025.csv has all numbers, in both counting conventions."
)
Entry = dict[str, Any]  # published values of one layer


def published(run: Run) -> tuple[str, dict[str, Entry]]:
    """(published model, its values by published layer name): the run's own model, or SD-1.5 if it was not published."""
    model = next((key for part, key in MODELS.items() if part in str(run.meta["model"])), "sd15")
    return model, {entry["layer"]: entry for entry in json.loads(PUBLISHED.read_text())["models"][model]}


def accuracy_at(run: Run, layer: str, bins: int) -> float | None:
    """Mean of row and column accuracy after floor(index · bins / side); more bins than the side change nothing."""
    rates = []
    for axis in ("rows", "cols"):
        table = run.maps.get(f"{layer}/{axis}")
        if table is None:
            return None
        coarse = np.arange(len(table)) * min(bins, len(table)) // len(table)
        rates.append(table[coarse[:, None] == coarse[None]].sum() / max(table.sum(), 1))
    return float(np.mean(rates))


def contrast(run: Run, layer: str, group: str) -> float | None:
    """Similarity of a group in images cropped before extraction, minus that in grids cropped after extraction."""
    values = [run.value("test", layer, f"similarity_{kind}", group) for kind in ("cropped", "reprcropped")]
    return None if values[0] is None or values[1] is None else values[0] - values[1]


def published_contrast(entry: Entry | None, group: str) -> float | None:
    """The same contrast of the published values, corrected to the token counts of the cropped grid."""
    values = [_at(entry, kind, _corrected(group)) for kind in ("cropped", "reprcropped")]
    return None if values[0] is None or values[1] is None else values[0] - values[1]


def quantities(run: Run, layer: str, entry: Entry | None) -> dict[str, tuple[float | None, float | None]]:
    """Name → (measured, published). Border and interior come in both conventions."""
    found = {
        f"accuracy_{bins}": (accuracy_at(run, layer, bins), _at(entry, "accuracy", i)) for i, bins in enumerate(RESOLUTIONS)
    }
    for kind in ("cropped", "reprcropped"):
        for group in PARTITION:
            own = run.value("test", layer, f"similarity_{kind}", group)
            found[f"{kind}_{group}"] = own, _at(entry, kind, _corrected(group))
            if group != "corner":
                own = run.value("test", layer, f"similarity_{kind}_published", group)
                found[f"{kind}_{group}_uncropped_counts"] = own, _at(entry, kind, group)
    found["relative_norm_anomaly"] = run.value("test", layer, "relative_norm", "anomaly"), _at(entry, "relative_norm_mean")
    return found


def _corrected(group: str) -> str:
    return group if group == "corner" else f"{group}_corrected"


def _at(entry: Entry | None, *path: Any) -> float | None:
    """A published value; None if the layer has none."""
    value: Any = entry
    for step in path:
        value = None if value is None else value[step]
    return value


def over_layers(run: Run) -> Figure:
    """Position accuracy at four resolutions; crop contrast of corners and borders; norm of anomalies."""
    model, reference = published(run)
    entries = {layer: reference.get(run.meta["published_names"][layer]) for layer in run.layers}
    numbers = [quantities(run, layer, entry) for layer, entry in entries.items()]
    figure, axes = layers_figure(run, 3, height=9.5, least=8.0)
    for index, bins in enumerate(RESOLUTIONS):
        ends = [run.estimate("test", layer, "binned_accuracy")[1:] if bins == 8 else (None, None) for layer in run.layers]
        _pairs(axes[0], [each[f"accuracy_{bins}"] for each in numbers], index, f"{bins} × {bins}", ends)
    axes[0].set(ylabel="position accuracy", ylim=(0, 1.03))
    for index, group in enumerate(("corner", "border")):
        contrasts = [(contrast(run, layer, group), published_contrast(entry, group)) for layer, entry in entries.items()]
        _pairs(axes[1], contrasts, index, group)
    axes[1].set(ylabel="mean cosine within group,\nimage cropped − grid cropped")
    norms = [each["relative_norm_anomaly"] for each in numbers]
    _pairs(axes[2], norms, 0, f"at {anomalies(run)}")
    axes[2].set(ylabel="relative norm")
    here = _found(run, any(own for own, _ in norms))
    axes[2].set_title(f"anomalies of this run: {here}; published: labelled by hand", loc="left", fontsize=style.NORMAL)
    for axis in axes:
        style.least_span(axis)
        style.beside(axis)
    style.name_layers(axes[2], run.axis)
    raw = unmeasured(run).rstrip(".") if run.chain else ""
    style.title(
        figure, f"Filled: {run.heading}. Hollow: published values of {NAMES[model]} (Loos & Linhardt 2025)",
        "95 % intervals: of the accuracy in 8 × 8 bins; the other numbers have none", raw,
    )  # fmt: skip
    return figure


def anomalies(run: Run) -> str:
    """The tokens whose relative norm is reported."""
    return "hand-labelled tokens" if run.meta.get("labels") else "high-norm tokens of up_1"


def _found(run: Run, some: bool) -> str:
    """How anomalies were found, and whether any were found."""
    if run.meta.get("labels"):
        return "hand labels" if some else "hand labels, none on these images"
    if "up_1" not in run.layers:
        return "not searched, because up_1 was not measured"
    how = "detected (robust z > 5 in up_1), not labelled by hand"
    return how if some else f"{how}, none found"


def _pairs(
    axis: Axes, pairs: Sequence[tuple[float | None, float | None]], index: int, label: str, ends: Sequence[Any] = ()
) -> None:  # fmt: skip
    own, theirs = np.array(pairs, dtype=float).T  # None becomes NaN
    kind = style.series(index)
    style.curve(axis, own, *np.array(ends, dtype=float).reshape(-1, 2).T, label=label, **kind)
    style.curve(axis, theirs, **(kind | {"ls": "none"}), mfc="none", ms=5, alpha=0.8)


def study_table(run: Run) -> Table:
    """Measured and published values per layer."""
    model, reference = published(run)
    title = f"Comparison with Loos & Linhardt (2025): {run.heading}, against published {NAMES[model]}"
    table = bare_table(title, CAPTION.format(anomalies(run)))
    add_columns(table, "layer", left=True)
    for name in ("accuracy\n8 bins", "corner\ncontrast", "border\ncontrast", "anomaly\nnorm"):
        add_columns(table, name)
        add_columns(table, "paper", dim=True)
    for layer in run.layers:
        entry = reference.get(run.meta["published_names"][layer])
        numbers = quantities(run, layer, entry)
        contrasts = [(contrast(run, layer, group), published_contrast(entry, group)) for group in ("corner", "border")]
        pairs = [numbers["accuracy_8"], *contrasts, numbers["relative_norm_anomaly"]]
        table.add_row(layer, *(number(value) for pair in pairs for value in pair))
    return table


def write_differences(run: Run, path: Path) -> None:
    """CSV with a row per layer and quantity: measured, published, difference."""
    _, reference = published(run)
    rows = [["layer", "published_name", "quantity", "measured", "published", "difference"]]
    for layer in run.layers:
        name = run.meta["published_names"][layer]
        for quantity, (own, theirs) in quantities(run, layer, reference.get(name)).items():
            gap = None if own is None or theirs is None else own - theirs
            rows.append([layer, name, quantity, *("" if v is None else f"{v:.4f}" for v in (own, theirs, gap))])
    write_rows(path, rows)


REPORT = Report(
    tables=(position.position_table, study_table),
    drawings={
        "loos2025": Drawing(over_layers, lambda run: True, over_layers=True),
        **position.REPORT.drawings,
        "norm_maps": statistics.REPORT.drawings["norm_maps"],
    },
    written={"loos2025.csv": write_differences},
)
