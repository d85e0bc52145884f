"""Runs of every probe, whose numbers all differ, so that a number in the wrong cell shows."""

import io
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from rich.console import Console
from rich.table import Table

from sdprobe.reports.correspondence import ALPHAS, COSTS, PUBLISHED, PUBLISHED_ALPHAS
from sdprobe.reports.printing import print_tables
from sdprobe.reports.run import Run
from sdprobe.tokens.keys import GROUPS, PARTITION, Key, label_of

LAYERS = {"conv_in": "conv_in", "mid": "mid_block.resnets[1]", "up_1": "up_blocks[1].upsamplers[0]"}  # their published names
SIDE = 8


def by_group(*metrics: str) -> list[str]:
    return [f"{metric}/{group}" for metric in metrics for group in ("all", *GROUPS)]


ACCURACIES = by_group("axis_accuracy", "cell_accuracy", "binned_accuracy")
SIMILARITIES = [f"similarity_{kind}{end}" for kind in ("cropped", "reprcropped") for end in ("", "_published")]
PCK = [f"pck_ours_point_{alpha}/all" for alpha in ALPHAS]
# probe → condition → what it measures
MEASURED: dict[str, dict[str, Sequence[str]]] = {
    "position": {
        "test": [*ACCURACIES, "r2/all"], "shuffled_labels": ACCURACIES, "random_weights": ACCURACIES, "chance": ACCURACIES,
    },
    "study": {
        "test": [*ACCURACIES, *(f"{name}/{group}" for name in SIMILARITIES for group in PARTITION), "relative_norm/anomaly"],
        "chance": ACCURACIES,
    },
    "statistics": {
        "test": [
            *(f"{name}/all" for name in ("r_pos", "r_cor", "r_cor_within", "r_cor_across", "r_norm", "credibility")),
            *(f"{kind}similarity{end}/{g}" for kind in ("", "cropped_") for end in ("", "_centred") for g in PARTITION),
            *by_group("relative_norm"), "high_norm_share/all", "high_norm_energy/all", "similarity/corner_content",
            "similarity_centred/corner_content",
        ],
        "random_weights": ["credibility/all", "r_pos/all", "r_cor/all", "r_norm/all"],
    },
    "depth": {
        what: by_group("rmse", "rmse_per_image", "abs_rel", "delta1")
        for what in ("test", "random_weights", "position_only", "constant", "shuffled_labels")
    },
    "content": {
        what: by_group("content_r2") for what in ("test", "random_weights", "shuffled_labels", "chance", "gain_over_none")
    },
    "equivariance": {
        what: [
            *(f"{name}/{where}" for name in ("equivariance", "equivariance_psnr") for where in ("all", "margin_1", "margin_2")),
            "r_pos/all",
        ]
        for what in ("test", "random_weights", "gain_over_none")
    },
    "correspondence": {
        "test": [
            *PCK, *(f"pck_{protocol}_{mean}_{alpha}/all" for protocol, mean in PUBLISHED for alpha in PUBLISHED_ALPHAS),
            *(f"{metric}/{group}" for metric, group, _ in COSTS),
        ],
        "zero_shot": [*PCK, *(f"pck_dift_{mean}_{alpha}/all" for mean in ("image", "point") for alpha in PUBLISHED_ALPHAS)],
        **dict.fromkeys(("random_weights", "shuffled_labels", "same_position", "random_point"), PCK),
        **{f"gain_over_{what}": [PCK[1]] for what in ("zero_shot", "random_weights", "same_position")},
    },
}  # fmt: skip
KINDS = tuple(MEASURED)


def fabricated(kind: str, layers: Sequence[str] = tuple(LAYERS), units: int = 12, seeds: int = 3, **meta: Any) -> Run:
    """A run of a probe, tested on so many units and random networks; intervals are there where these are enough."""
    metrics: dict[str, float] = {}
    for what, quantities in MEASURED[kind].items():
        names = ["baseline"] if what in ("same_position", "random_point") else layers
        enough = units >= 6 and (what in ("test", "gain_over_none") or (seeds >= 3 and "random_weights" in what))
        for key in (f"{what}/{layer}/{quantity}" for layer in names for quantity in quantities):
            if what == "gain_over_none" and not label_of(Key.parse(key).layer):
                continue
            value, low, high = np.random.default_rng(list(key.encode())).random(3).round(4).tolist()
            metrics[key] = value
            if enough:
                metrics |= {f"{key}/ci_low": value - low / 10, f"{key}/ci_high": value + high / 10}
            if "random_weights" in what:
                metrics[f"{key}/seeds"] = seeds
    known = {
        "layers": list(layers), "published_names": {layer: LAYERS.get(layer, layer) for layer in layers}, "probe": kind,
        "model": "some/model", "weights": "stored", "timestep": 50, "images": {"test": units}, "pairs": {"test": 2 * units},
        "complete": True, "schema": 2, "shapes": {layer: [64, SIDE, SIDE] for layer in layers},
    }  # fmt: skip
    if kind not in ("statistics", "correspondence"):
        known["photographs"] = {"test": units}
    return Run(metrics, known | meta, maps_of(kind, layers))


def maps_of(kind: str, layers: Sequence[str]) -> dict[str, np.ndarray]:
    """What a run of a probe draws besides its numbers."""
    generator = np.random.default_rng(0)
    tables = {
        "position": ("accuracy", "rows", "cols"), "study": ("accuracy", "rows", "cols", "norm"), "depth": ("error",),
        "statistics": ("norm", "similarity"), "content": (), "equivariance": (), "correspondence": ("offset_errors",),
    }[kind]  # fmt: skip
    maps = {f"{layer}/{name}": generator.random((SIDE, SIDE)) for layer in layers for name in tables}
    if kind == "statistics":
        plain = sum(not label_of(layer) for layer in layers)
        maps |= {name: generator.random((plain, plain)) for name in ("cka", "cka_positions")}
        maps |= {f"{layer}/components": generator.integers(0, 255, (2, SIDE, SIDE, 3), dtype=np.uint8) for layer in layers}
        maps |= {f"{layer}/high_norm": generator.random((2, SIDE, SIDE)) < 0.1 for layer in layers} | {
            "token": np.array([12, 17, 32])
        }
    if kind == "correspondence":
        maps |= {f"{layer}/offset_counts": generator.integers(0, 4, (SIDE, SIDE)).astype(float) for layer in layers}
        maps |= {f"{layer}/matches": np.c_[np.repeat([0, 1], 3), generator.random((6, 6)), [0, 1, 2] * 2] for layer in layers}
    if kind in ("statistics", "correspondence"):
        maps["pictures"] = generator.integers(0, 255, (4 if kind == "correspondence" else 2, 32, 32, 3), dtype=np.uint8)
    return maps


def behind(kind: str, *labels: str, layers: Sequence[str] = ("conv_in", "mid"), **options: Any) -> Run:
    """A run that compares mitigations."""
    return fabricated(
        kind, [name for layer in layers for name in (layer, *(f"{layer}__{label}" for label in labels))], **options
    )


def without(run: Run, text: str) -> Run:
    """The run without the metrics and maps whose key holds a text."""
    metrics, maps = ({key: value for key, value in part.items() if text not in key} for part in (run.metrics, run.maps))
    return Run(metrics, run.meta, maps, run.folder)


def stored(run: Run, folder: Path) -> Run:
    """The run as it is read back from its folder."""
    folder.mkdir(exist_ok=True)
    (folder / "metrics.json").write_text(json.dumps(run.metrics | {"meta": run.meta}))
    if run.maps:
        np.savez(folder / "maps.npz", **run.maps)  # type: ignore[arg-type]  # its stub takes a table for its option
    return Run.read(folder)


def configured(folder: Path, images: str = "scenes", limit: int | None = 160, splits: str = "default", **settings: Any) -> Path:
    """The files of ``.hydra/`` in a run folder: the settings that name data sets, and these, with __ in place of dots."""
    tree: dict[str, Any] = {"images": {"limit": limit, "seed": 0}, "datamodule": {"splits": splits}}
    for name, value in settings.items():
        *sections, last = name.split("__")
        node = tree
        for section in sections:
            node = node.setdefault(section, {})
        node[last] = value
    (folder / ".hydra").mkdir(parents=True, exist_ok=True)
    (folder / ".hydra" / "config.yaml").write_text(yaml.safe_dump(tree))
    choices = f"hydra:\n  runtime:\n    choices:\n      images: {images}\n"
    (folder / ".hydra" / "hydra.yaml").write_text(choices)
    return folder


def printed(show: Callable[[Console], None] | Iterable[Table], width: int = 110) -> str:
    """What a function, or these tables, print where output is no terminal."""
    out = io.StringIO()
    console = Console(file=out, width=width)
    if callable(show):
        show(console)
    else:
        print_tables(show, console)
    return out.getvalue()


def curves(axis: Axes) -> dict[str, list[float]]:
    """Label → the values drawn under it: curves, points, and the levels that references of few layers are."""
    levels = {
        str(each.get_label()): [float(segment[0][1]) for segment in each.get_segments()]
        for each in axis.collections if isinstance(each, LineCollection)
    }  # fmt: skip
    return levels | {str(line.get_label()): np.asarray(line.get_ydata(), dtype=float).tolist() for line in axis.get_lines()}
