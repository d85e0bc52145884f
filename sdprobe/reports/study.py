"""The published study beside a run of `experiment=loos2025`: three panels, and a table of differences per layer."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from rich import box
from rich.table import Table

from sdprobe.reports.run import Run
from sdprobe.tokens.keys import PARTITION
from sdprobe.utilities.io import write_rows

PUBLISHED = Path(__file__).with_name("loos2025.json")
MODELS = {"stable-diffusion-v1": "sd15", "stable-diffusion-2-1": "sd21", "sd-turbo": "sd_turbo"}
NAMES = {"sd15": "SD-1.5", "sd21": "SD-2.1", "sd_turbo": "SD-Turbo"}
RESOLUTIONS = (8, 16, 32, 64)
COLOURS = ("#0b6e99", "#448361", "#d9730d", "#9b9a97")
Entry = dict[str, Any]


def published(run: Run) -> tuple[str, dict[str, Entry]]:
    """(the published model that is shown, its values by published layer name): the run's own, SD-1.5's for others."""
    model = next((key for part, key in MODELS.items() if part in str(run.meta["model"])), "sd15")
    return model, {entry["layer"]: entry for entry in json.loads(PUBLISHED.read_text())["models"][model]}


def accuracy_at(run: Run, layer: str, bins: int) -> float | None:
    """Mean of row and column accuracy after floor(index · bins / side); bins above the side change nothing."""
    rates = []
    for axis in ("rows", "cols"):
        table = run.maps.get(f"{layer}/{axis}")
        if table is None:
            return None
        coarse = np.arange(len(table)) * min(bins, len(table)) // len(table)
        rates.append(table[coarse[:, None] == coarse[None]].sum() / max(table.sum(), 1))
    return float(np.mean(rates))


def contrast(run: Run, layer: str, group: str) -> float | None:
    """Similarity of a group in images cropped before extraction minus in grids cropped after it."""
    values = [run.value("test", layer, f"similarity_{kind}", group) for kind in ("cropped", "reprcropped")]
    return None if values[0] is None or values[1] is None else values[0] - values[1]


def published_contrast(entry: Entry, group: str, corrected: bool) -> float:
    """The same of the published values; `corrected` divides by the token counts of the cropped grid."""
    name = f"{group}_corrected" if corrected and group != "corner" else group
    return float(entry["cropped"][name] - entry["reprcropped"][name])


def study_figures(run: Run) -> dict[str, Figure]:
    """`loos2025`: position accuracy at four resolutions; crop contrast of corners and borders; norm at anomalies."""
    model, reference = published(run)
    known = [reference.get(run.meta["published_names"][layer]) for layer in run.layers]
    width = max(8.0, 0.3 * len(run.layers) + 2)
    figure, axes = plt.subplots(3, 1, figsize=(width, 11), sharex=True, layout="constrained")
    for i, (bins, colour) in enumerate(zip(RESOLUTIONS, COLOURS, strict=True)):
        own: list[float | None] = [accuracy_at(run, layer, bins) for layer in run.layers]
        _pair(axes[0], own, [e["accuracy"][i] if e else None for e in known], colour, f"{bins} × {bins}")
    axes[0].set(ylabel="position accuracy", ylim=(0, 1.02))
    for group, colour in (("corner", COLOURS[0]), ("border", COLOURS[1])):
        own = [contrast(run, layer, group) for layer in run.layers]
        _pair(axes[1], own, [published_contrast(e, group, corrected=True) if e else None for e in known], colour, group)
    axes[1].set(ylabel="mean cosine within group,\nimage cropped − grid cropped")
    own = [run.value("test", layer, "relative_norm", "anomaly") for layer in run.layers]
    _pair(axes[2], own, [e["relative_norm_mean"] if e else None for e in known], COLOURS[2], f"at {anomalies(run)}")
    axes[2].set(ylabel="relative norm")
    axes[2].set_title(f"here: {_found(run, any(own))}; published: labelled by hand", loc="left", fontsize=9)
    for axis in axes:
        axis.grid(axis="y", alpha=0.3)
        axis.legend(frameon=False, fontsize=8, ncols=4)
    axes[2].set_xticks(range(len(run.layers)), run.layers, rotation=90, fontsize=8)
    figure.suptitle(f"Lines: {run.setting}. Dots: {NAMES[model]} as published (Loos & Linhardt 2025)", fontsize=11)
    return {"loos2025": figure}


def anomalies(run: Run) -> str:
    """Which tokens the relative norm of anomalies is measured at."""
    return "hand-labelled tokens" if run.meta.get("labels") else "high-norm tokens of up_1"


def _found(run: Run, some: bool) -> str:
    """How anomalies were found, and whether there were any."""
    if run.meta.get("labels"):
        return "hand labels" if some else "hand labels, none on these images"
    if "up_1" not in run.layers:
        return "up_1 was not measured, so none were looked for"
    how = "detected (robust z > 5 in up_1), not labelled by hand"
    return how if some else f"{how}, none found here"


def _pair(axis: Any, own: list[float | None], reference: list[float | None], colour: str, label: str) -> None:
    axis.plot([np.nan if v is None else v for v in own], "-", color=colour, label=label, lw=1.5)
    axis.plot([np.nan if v is None else v for v in reference], "o", color=colour, ms=3, alpha=0.6)


def study_table(run: Run) -> Table:
    """Measured beside published, per layer."""
    model, reference = published(run)
    table = Table(
        title=f"The study: {run.setting}, beside {NAMES[model]} as published", title_justify="left", box=box.SIMPLE_HEAD,
        padding=0, show_edge=False,
        caption="contrast: mean cosine within group, image cropped before extraction minus grid cropped after it. anomaly "
        f"norm: relative norm at {anomalies(run)}. No interval here; those of the accuracies stand in the table above. All of "
        "it, in both counting conventions: loos2025.csv.",
        caption_justify="left",
    )  # fmt: skip
    table.add_column("layer", no_wrap=True)
    for name in ("accuracy\n8 bins", "corner\ncontrast", "border\ncontrast", "anomaly\nnorm"):
        table.add_column(name, justify="right", no_wrap=True)
        table.add_column("publ.", justify="right", no_wrap=True, style="dim")
    for layer in run.layers:
        entry = reference.get(run.meta["published_names"][layer])
        pairs: list[tuple[float | None, float | None]] = [(accuracy_at(run, layer, 8), entry["accuracy"][0] if entry else None)]
        for group in ("corner", "border"):
            theirs = published_contrast(entry, group, corrected=True) if entry else None
            pairs.append((contrast(run, layer, group), theirs))
        pairs.append((run.value("test", layer, "relative_norm", "anomaly"), entry["relative_norm_mean"] if entry else None))
        table.add_row(layer, *("–" if value is None else f"{value:.3f}" for pair in pairs for value in pair))
    return table


def write_differences(run: Run, path: Path) -> None:
    """CSV with a row per layer and quantity: measured, published, difference."""
    _, reference = published(run)
    rows = [["layer", "published_name", "quantity", "measured", "published", "difference"]]
    for layer in run.layers:
        name = run.meta["published_names"][layer]
        entry = reference.get(name)
        for quantity, (own, theirs) in quantities(run, layer).items():
            value = theirs(entry) if entry else None
            gap = None if own is None or value is None else own - value
            rows.append([layer, name, quantity, *("" if v is None else f"{v:.4f}" for v in (own, value, gap))])
    write_rows(path, rows)


def quantities(run: Run, layer: str) -> dict[str, tuple[float | None, Callable[[Entry], float]]]:
    """Name → (measured value, how to read the published one). Border and interior come in both conventions."""
    found: dict[str, tuple[float | None, Callable[[Entry], float]]] = {}
    for i, bins in enumerate(RESOLUTIONS):
        found[f"accuracy_{bins}"] = (accuracy_at(run, layer, bins), lambda e, i=i: e["accuracy"][i])  # type: ignore[misc]
    for kind in ("cropped", "reprcropped"):
        for group in PARTITION:
            key = group if group == "corner" else f"{group}_corrected"
            own = run.value("test", layer, f"similarity_{kind}", group)
            found[f"{kind}_{group}"] = (own, lambda e, kind=kind, key=key: e[kind][key])  # type: ignore[misc]
            if group != "corner":
                own = run.value("test", layer, f"similarity_{kind}_published", group)
                name = f"{kind}_{group}_uncropped_counts"
                found[name] = (own, lambda e, kind=kind, group=group: e[kind][group])  # type: ignore[misc]
    own = run.value("test", layer, "relative_norm", "anomaly")
    found["relative_norm_anomaly"] = (own, lambda e: e["relative_norm_mean"])
    return found
