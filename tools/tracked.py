"""Charts of docs/wandb.md, drawn from the files of offline wandb runs: ``python -m tools.tracked DIR``."""

import argparse
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from sdprobe.reports.style import BLUE, GREEN, ORANGE
from sdprobe.runs.record import ROOT
from sdprobe.utilities.io import write_figure
from tools.offline import Offline, parts

METRIC = "binned_accuracy"
COMMON = ("probe=position", "probe.solver=closed_form", "images.limit=80", "twins=0", "logger=wandb")
TIMESTEPS = (1, 50, 261, 500, 900)
RUNS = {
    "trained": ("block=all", "twins=1"),
    "untrained": ("block=all", "backbone.weights=random"),
    # 32 fit images are too few for the additive basis on 64 × 64 tokens
    "position_mean": (
        "block=[down_1,down_2,mid,up_0,up_1]",
        "mitigation=position_mean",
        "mitigation.position_mean.basis=cosine",
    ),
    "padding_swap": ("block=[down_1,down_2,mid,up_0,up_1]", "mitigation=padding_swap"),
    **{f"t{timestep}": ("block=mid", f"timestep={timestep}") for timestep in TIMESTEPS},
}
COLOURS = (BLUE, ORANGE, GREEN)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure the runs that a folder lacks and write wandb.png."""
    parser = argparse.ArgumentParser(prog="python -m tools.tracked", description=__doc__)
    parser.add_argument("folder", type=Path, metavar="DIR")
    folder = parser.parse_args(arguments).folder.resolve()
    for name, overrides in RUNS.items():
        if not (folder / name / "maps.npz").is_file():
            command = [sys.executable, "train.py", *COMMON, *overrides, f"hydra.run.dir={folder / name}"]
            subprocess.run(command, cwd=ROOT, env=os.environ | {"WANDB_MODE": "offline"}, check=True)
    drawn = charts({name: Offline.read(parts(folder / name)[-1]) for name in RUNS})
    write_figure(folder / "wandb.png", drawn, dpi=110)
    plt.close(drawn)


def charts(read: Mapping[str, Offline]) -> Figure:
    """A chart per question of docs/wandb.md."""
    figure, axes = plt.subplots(2, 2, figsize=(11, 6.4), layout="constrained")
    chart = f"layers/{METRIC}"
    _over_layers(axes[0, 0], f"Checkpoints: {chart}", {read[name].run["display_name"]: (read[name], METRIC) for name in
                                                       ("trained", "untrained")})  # fmt: skip
    mitigated = {read[name].run["display_name"]: (read[name], METRIC) for name in ("trained", "position_mean", "padding_swap")}
    _over_layers(axes[0, 1], f"Mitigations: {chart}", mitigated)
    nulls = {"value": METRIC, "random_weights": f"{METRIC}/random_weights", "chance": f"{METRIC}/chance"}
    of_one = {f"{chart}{'' if label == 'value' else f'/{label}'}": (read["trained"], key) for label, key in nulls.items()}
    _over_layers(axes[1, 0], f"One layer among all: {chart} of one run", of_one)
    scatter = axes[1, 1]
    levels = [read[f"t{timestep}"] for timestep in TIMESTEPS]
    scatter.plot([each.config["timestep"] for each in levels], [each.summary["value"] for each in levels], "o", color=BLUE)
    scatter.set(title="Noise levels: value over timestep, a point per run", xlabel="timestep", ylabel=METRIC, ylim=(0, 1.02))
    scatter.grid(alpha=0.3)
    return figure


def _over_layers(axis: plt.Axes, title: str, curves: Mapping[str, tuple[Offline, str]]) -> None:
    for (label, (run, key)), colour in zip(curves.items(), COLOURS, strict=False):
        rows = [row for row in run.layers if key in row]
        axis.plot([row["depth"] for row in rows], [row[key] for row in rows], "-o", ms=3, lw=1.3, color=colour, label=label)
    axis.set(title=title, xlabel="layers/depth", ylabel=METRIC, ylim=(0, 1.02))
    axis.grid(alpha=0.3)
    axis.legend(frameon=False, fontsize=8)


if __name__ == "__main__":
    main()
