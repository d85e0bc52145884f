"""Measure the demo model and write its card: `python -m demo.card`. Takes about half an hour on two cores."""

import argparse
import csv
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

from backbones import FrozenSD
from backbones.integrity import digest
from datamodules.images.scenes import CATEGORIES, Scenes
from datamodules.images.scenes.pairs import scene_pairs
from demo import samples
from demo.matching import pck
from demo.train import CONFIG

HELD_OUT = 30001  # seed of scenes that neither training nor classifier saw
TEXT = Path(__file__).with_name("card.md")
WEIGHTS = (
    "unet/diffusion_pytorch_model.safetensors",
    "vae/diffusion_pytorch_model.safetensors",
    "text_encoder/model.safetensors",
)


def measure_samples(folder: Path, each: int, steps: int, guidance: float) -> dict[str, Any]:
    """Draw samples of every category, save a sheet, and let a classifier of rendered scenes name them."""
    model, scene_accuracy = samples.train_classifier()
    pipe = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None, torch_dtype=torch.float32)
    rows, right = {}, {}
    for number, category in enumerate(track(CATEGORIES, "drawing samples")):
        rows[category] = samples.drawn(pipe, category, each, 1000 * number, steps, guidance, side=512)
        names = samples.named(model, samples.shrunk(samples.pixels(rows[category])))
        right[category] = (names == number).float().mean().item()
    samples.sheet({category: images[:8] for category, images in rows.items()}, folder / "samples.jpg")
    share = sum(right.values()) / len(right)
    return {
        "share": share,
        "each": right,
        "count": each * len(right),
        "scenes": scene_accuracy,
        "steps": steps,
        "guidance": guidance,
    }


def measure_matching(folder: Path, pairs: int, timesteps: Sequence[int]) -> dict[int, dict[str, dict[str, float]]]:
    """PCK@0.1 per layer of the model and of the same network with random weights, at every timestep."""
    scenes = Scenes(512, 160, HELD_OUT)
    chosen = scene_pairs(scenes, pairs, seed=0)
    found: dict[int, dict[str, dict[str, float]]] = {}
    for timestep in timesteps:
        found[timestep] = {}
        for weights in ("stored", "random"):
            backbone = FrozenSD.from_pretrained(str(folder), weights=weights, weights_seed=1, device="cpu")
            layers = backbone.unet.resolve("stages")
            found[timestep][weights] = pck(backbone, scenes, chosen, layers, timestep)
    return found


def loss_curve(work: Path, path: Path) -> None:
    """Training loss over samples, one colour per stage."""
    with (work / "diffusion.csv").open() as file:
        rows = [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]
    figure, axis = plt.subplots(figsize=(7, 3), layout="constrained")
    for stage in sorted({row["stage"] for row in rows}):
        part = [row for row in rows if row["stage"] == stage]
        axis.plot([row["step"] for row in part], [row["loss"] for row in part], lw=0.8, label=f"stage {int(stage) + 1}")
    axis.set(xlabel="step", ylabel="squared error of the velocity")
    axis.legend(frameon=False)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(prog="python -m demo.card", description=main.__doc__)
    config = OmegaConf.load(CONFIG)
    parser.add_argument("--folder", type=Path, default=Path(config.folder))
    parser.add_argument("--work", type=Path, default=Path(config.work), help="training state, for the loss curve")
    parser.add_argument("--samples", type=int, default=25, help="per category")
    parser.add_argument("--steps", type=int, default=20, help="of the sampler")
    parser.add_argument("--guidance", type=float, default=3.0)
    parser.add_argument("--pairs", type=int, default=320)
    parser.add_argument("--timesteps", type=int, nargs="+", default=[50, 261])
    options = parser.parse_args(arguments)
    loss_curve(options.work, options.folder / "loss.png")
    matching = measure_matching(options.folder, options.pairs, options.timesteps)
    drawn = measure_samples(options.folder, options.samples, options.steps, options.guidance)
    write(options.folder, drawn, matching, options.pairs)


def write(folder: Path, drawn: dict[str, Any], matching: dict[int, dict[str, dict[str, float]]], pairs: int) -> None:
    """Fill in the card: front matter with the weights' digests, then demo/card.md with the numbers."""
    front = {
        "license": "apache-2.0",
        "library_name": "diffusers",
        "pipeline_tag": "text-to-image",
        "sha256": {name: digest(folder / name) for name in WEIGHTS},
    }
    size = sum(path.stat().st_size for path in folder.rglob("*.safetensors")) / 1e6
    text = TEXT.read_text().format(
        size=size, share=100 * drawn["share"], count=drawn["count"], scenes=100 * drawn["scenes"], steps=drawn["steps"],
        guidance=drawn["guidance"], each=", ".join(f"{name} {100 * value:.0f}" for name, value in drawn["each"].items()),
        pairs=pairs, matching=matching_table(matching), recipe=OmegaConf.to_yaml(OmegaConf.load(CONFIG)),
    )  # fmt: skip
    (folder / "README.md").write_text(f"---\n{yaml.safe_dump(front, sort_keys=False)}---\n\n{text}")


def matching_table(matching: dict[int, dict[str, dict[str, float]]]) -> str:
    """Markdown: a row per layer, for every timestep trained and random weights."""
    layers = next(iter(matching.values()))["stored"]
    head = [f"t = {t}, {kind}" for t in matching for kind in ("trained", "random weights")]
    lines = [f"| layer | {' | '.join(head)} |", "|" + "---|" * (len(head) + 1)]
    for layer in layers:
        cells = [f"{matching[t][kind][layer]:.1f}" for t in matching for kind in ("stored", "random")]
        lines.append(f"| {layer} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
