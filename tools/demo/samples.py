"""Share of samples of the demo model that show the requested category, by a classifier trained on other images:
`python -m tools.demo.samples DIR`.
"""

import argparse
import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import StableDiffusionPipeline
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader

from datamodules.images.scenes import Scenes
from sdprobe.scenes import CATEGORIES
from sdprobe.scenes.composition import main_category
from sdprobe.utilities import progress
from sdprobe.utilities.io import replacing, write_file

SIDE = 96  # input size of the classifier in pixels
SIDE_DRAWN, STEPS, GUIDANCE = 256, 20, 3.0  # pixels of a sample, steps and guidance of the sampler
PROMPT = "a photo of a {}"


def network() -> nn.Sequential:
    """Four strided stages, global maximum, linear: pictures of any size → categories."""
    widths, layers = (3, 32, 64, 128, 192), []
    for before, after in pairwise(widths):
        layers += [nn.Conv2d(before, after, 3, 2, 1), nn.BatchNorm2d(after), nn.ReLU()]
        layers += [nn.Conv2d(after, after, 3, 1, 1), nn.BatchNorm2d(after), nn.ReLU()]
    return nn.Sequential(
        *layers, nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Dropout(0.2), nn.Linear(widths[-1], len(CATEGORIES))
    )


def labelled(seed: int, count: int) -> tuple[Float[Tensor, "n 3 s s"], Int[Tensor, " n"]]:
    """Rendered scenes in [0, 1] and the index of their main object's category."""
    scenes = Scenes(128, count, seed)
    images = torch.stack([item["image"] for item in DataLoader(scenes, batch_size=None, num_workers=2)])
    labels = torch.tensor([CATEGORIES.index(main_category(seed, index)) for index in range(count)])
    return shrunk(images), labels


def shrunk(images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n 3 s s"]:
    """The classifier's input size."""
    return F.interpolate(images, size=(SIDE, SIDE), mode="area")


def train_classifier(seed: int = 20001, count: int = 6000, epochs: int = 14) -> tuple[nn.Sequential, float]:
    """(A classifier of rendered scenes, its accuracy on scenes of another seed.)"""
    torch.manual_seed(seed)
    model = network().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    images, labels = labelled(seed, count)
    optimiser = torch.optim.AdamW(model.parameters(), 2e-3, weight_decay=0.02)
    steps = epochs * (count // 64)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 2e-3, total_steps=steps)
    for _ in range(epochs):
        order = torch.randperm(count)
        for start in range(0, count - 63, 64):
            chosen = order[start : start + 64]
            picked = images[chosen].flip(-1) if start // 64 % 2 else images[chosen]
            loss = F.cross_entropy(
                model(picked.contiguous(memory_format=torch.channels_last)), labels[chosen], label_smoothing=0.05
            )
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
    model.eval()
    held_images, held_labels = labelled(seed + 1, 800)
    return model, (named(model, held_images) == held_labels).float().mean().item()


@torch.no_grad()
def named(model: nn.Module, images: Float[Tensor, "n 3 s s"]) -> Int[Tensor, " n"]:
    """Index of the category of each picture."""
    return torch.cat([model(part).argmax(1) for part in images.split(64)])


def drawn(
    pipe: StableDiffusionPipeline, category: str, count: int, seed: int, steps: int, guidance: float, side: int
) -> list[Image.Image]:
    """`count` samples of "a photo of a <category>"."""
    pipe.set_progress_bar_config(disable=True)
    images: list[Image.Image] = []
    for first in range(0, count, 5):
        generators = [torch.Generator().manual_seed(seed + i) for i in range(first, min(first + 5, count))]
        images += pipe(
            [PROMPT.format(category)] * len(generators), num_inference_steps=steps, guidance_scale=guidance,
            generator=generators, height=side, width=side,
        ).images  # fmt: skip
    return images


def pixels(images: list[Image.Image]) -> Float[Tensor, "n 3 h w"]:
    """Pictures as (n, 3, h, w) in [0, 1]."""
    return torch.stack([torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255 for image in images])


def sheet(rows: dict[str, list[Image.Image]], path: Path, side: int = 128) -> None:
    """One row of small pictures per category."""
    width = max(len(images) for images in rows.values())
    page = Image.new("RGB", (width * side, len(rows) * side), "white")
    for row, images in enumerate(rows.values()):
        for column, image in enumerate(images):
            page.paste(image.resize((side, side), Image.Resampling.LANCZOS), (column * side, row * side))
    with replacing(path) as file:
        page.save(file, "JPEG")


def measure(model_folder: Path, folder: Path, count: int) -> dict[str, Any]:
    """Draw ``each`` samples of every category, save a sheet, and let a classifier of rendered scenes name them.

    Returns:
        Share of samples named as asked, mean and per category, their number, and the classifier's accuracy on scenes.
    """
    model, scene_accuracy = train_classifier()
    pipe = StableDiffusionPipeline.from_pretrained(model_folder, safety_checker=None)
    rows, right = {}, {}
    for number, category in enumerate(progress.track(CATEGORIES, "draw samples")):
        rows[category] = drawn(pipe, category, count, 1000 * number, STEPS, GUIDANCE, SIDE_DRAWN)
        right[category] = (named(model, shrunk(pixels(rows[category]))) == number).float().mean().item()
    sheet({category: images[:8] for category, images in rows.items()}, folder / "samples.jpg")
    share = sum(right.values()) / len(right)
    return {"share": share, "each": right, "count": count * len(right), "scenes": scene_accuracy}


def main(arguments: Sequence[str] | None = None) -> None:
    """Write samples.json and samples.jpg into a folder."""
    parser = argparse.ArgumentParser(prog="python -m tools.demo.samples", description=main.__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", type=Path, default=Path("assets/demo"))
    parser.add_argument("--each", type=int, default=25, help="samples per category")
    options = parser.parse_args(arguments)
    options.folder.mkdir(parents=True, exist_ok=True)
    measured = measure(options.model, options.folder, options.each)
    write_file(options.folder / "samples.json", json.dumps(measured, indent=1))


if __name__ == "__main__":
    main()
