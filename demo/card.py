"""Write the demo model's card from two runs on it and from samples: `python -m demo.card`; demo/card.md has the commands."""

import argparse
import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import torch
import yaml
from diffusers import StableDiffusionPipeline
from matplotlib import pyplot as plt
from omegaconf import OmegaConf
from rich.progress import track

from backbones.integrity import digest
from datamodules.images.scenes import CATEGORIES
from demo import samples
from demo.train import CONFIG

TEXT = Path(__file__).with_name("card.md")
WEIGHTS = (
    "unet/diffusion_pytorch_model.safetensors",
    "vae/diffusion_pytorch_model.safetensors",
    "text_encoder/model.safetensors",
)


def measure_samples(folder: Path, each: int, side: int, steps: int, guidance: float) -> dict[str, Any]:
    """Draw samples of every category, save a sheet, and let a classifier of rendered scenes name them."""
    model, scene_accuracy = samples.train_classifier()
    pipe = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None, torch_dtype=torch.float32)
    rows, right = {}, {}
    for number, category in enumerate(track(CATEGORIES, "drawing samples")):
        rows[category] = samples.drawn(pipe, category, each, 1000 * number, steps, guidance, side)
        names = samples.named(model, samples.shrunk(samples.pixels(rows[category])))
        right[category] = (names == number).float().mean().item()
    samples.sheet({category: images[:8] for category, images in rows.items()}, folder / "samples.jpg")
    share = sum(right.values()) / len(right)
    return {
        "share": share,
        "each": right,
        "count": each * len(right),
        "scenes": scene_accuracy,
        "side": side,
        "steps": steps,
        "guidance": guidance,
    }


def matching_table(run: Path) -> str:
    """Markdown: zero-shot PCK@0.1 of every layer of a correspondence run, in percent, beside random weights."""
    values, layers = measured(run)
    key = "pck_ours_point_0.10/all"
    lines = ["| layer | trained | random weights | difference, 95 % interval |", "|---|---|---|---|"]
    for layer in layers:
        test, random = (100 * values[f"{what}/{layer}/{key}"] for what in ("test", "random_weights"))
        gain, low, high = (100 * values[f"gain_over_random_weights/{layer}/{key}{end}"] for end in ("", "/ci_low", "/ci_high"))
        lines.append(f"| {layer} | {test:.1f} | {random:.1f} | {gain:.1f} ({low:.1f} to {high:.1f}) |")
    return "\n".join([*lines, f"| same position | {100 * values[f'same_position/baseline/{key}']:.1f} | | |"])


def position_table(run: Path) -> str:
    """Markdown: binned accuracy of every layer of a position run, beside the network with random weights."""
    values, layers = measured(run)
    lines = ["| layer | trained | random weights | chance |", "|---|---|---|---|"]
    for layer in layers:
        cells = [f"{values[f'{what}/{layer}/binned_accuracy/all']:.2f}" for what in ("test", "random_weights", "chance")]
        lines.append(f"| {layer} | {' | '.join(cells)} |")
    return "\n".join(lines)


def measured(run: Path) -> tuple[dict[str, float], list[str]]:
    """Metrics and layers of a run folder."""
    metrics = json.loads((run / "metrics.json").read_text())
    meta = metrics.pop("meta")
    return metrics, meta["layers"]


def loss_curve(work: Path, path: Path) -> None:
    """Training loss over samples, one colour per stage."""
    with (work / "diffusion.csv").open() as file:
        rows = [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]
    figure, axes = plt.subplots(1, 2, figsize=(9, 3), layout="constrained")
    for axis, name, text in zip(
        axes, ("loss", "parts"), ("squared error of the velocity", "cross-entropy of the parts"), strict=True
    ):
        for stage in sorted({row["stage"] for row in rows}):
            part = [row for row in rows if row["stage"] == stage]
            axis.plot([row["step"] for row in part], [row[name] for row in part], lw=0.8, label=f"stage {int(stage) + 1}")
        axis.set(xlabel="step", ylabel=text)
    axes[0].legend(frameon=False)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(prog="python -m demo.card", description=main.__doc__)
    config = OmegaConf.load(CONFIG)
    parser.add_argument("--folder", type=Path, default=Path(config.folder))
    parser.add_argument("--work", type=Path, default=Path(config.work), help="training state, for the loss curve")
    parser.add_argument("--samples", type=int, default=25, help="per category")
    parser.add_argument("--side", type=int, default=256, help="of the samples, in pixels")
    parser.add_argument("--steps", type=int, default=20, help="of the sampler")
    parser.add_argument("--guidance", type=float, default=3.0)
    parser.add_argument("--matching", type=Path, required=True, help="run folder of the first command in demo/card.md")
    parser.add_argument("--position", type=Path, required=True, help="run folder of the second")
    options = parser.parse_args(arguments)
    loss_curve(options.work, options.folder / "loss.png")
    tables = {"matching": matching_table(options.matching), "position": position_table(options.position)}
    drawn = measure_samples(options.folder, options.samples, options.side, options.steps, options.guidance)
    write(options.folder, drawn, tables)


def write(folder: Path, drawn: dict[str, Any], tables: dict[str, str]) -> None:
    """Fill in the card: front matter with the weights' digests, then demo/card.md with the numbers."""
    front = {
        "license": "apache-2.0",
        "library_name": "diffusers",
        "pipeline_tag": "text-to-image",
        "sha256": {name: digest(folder / name) for name in WEIGHTS},
    }
    size = sum(path.stat().st_size for path in folder.rglob("*.safetensors")) / 1e6
    each = ", ".join(f"{name} {100 * value:.0f}" for name, value in drawn["each"].items())
    text = TEXT.read_text().format(
        size=size, share=100 * drawn["share"], count=drawn["count"], scenes=100 * drawn["scenes"], side=drawn["side"],
        steps=drawn["steps"], guidance=drawn["guidance"], each=each, **tables, recipe=OmegaConf.to_yaml(OmegaConf.load(CONFIG)),
    )  # fmt: skip
    (folder / "README.md").write_text(f"---\n{yaml.safe_dump(front, sort_keys=False)}---\n\n{text}")


if __name__ == "__main__":
    main()
