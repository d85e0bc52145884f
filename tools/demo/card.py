"""`python -m tools.demo.card [--recipe dit]`: write a demo model's card after training. `make results` fills in its numbers."""

import argparse
import csv
import re
from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import yaml
from matplotlib import pyplot as plt
from omegaconf import OmegaConf

from sdprobe.backbones.cards import digest
from sdprobe.utilities.io import write_figure, write_file
from tools.demo.samples import GUIDANCE, SIDE_DRAWN, STEPS
from tools.demo.train import CONFIG

TEXTS = {CONFIG.stem: "card.md", "dit": "card_dit.md"}
BLOCK = re.compile(r"<!-- results:(\w+) -->.*?<!-- /results -->", re.S)


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
    write_figure(path, figure, dpi=110)
    plt.close(figure)


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the card of a trained folder; it keeps the measured numbers of the old card until ``make results`` renews them."""
    parser = argparse.ArgumentParser(prog="python -m tools.demo.card", description=main.__doc__)
    parser.add_argument("--recipe", default=CONFIG.stem, choices=sorted(TEXTS), help="the demo model's, or the transformer's")
    parser.add_argument("--folder", type=Path, help="of the trained model; default: that of the recipe")
    parser.add_argument("--work", type=Path, help="training state, for the loss curve; default: that of the recipe")
    options = parser.parse_args(arguments)
    config = OmegaConf.load(CONFIG.with_stem(options.recipe))
    folder = options.folder or Path(config.folder)
    loss_curve(options.work or Path(config.work), folder / "loss.png")
    write(folder, options.recipe)


def write(folder: Path, recipe: str = CONFIG.stem) -> None:
    """Front matter with the weights' digests, then the recipe's text with the measured blocks of the old card."""
    weights = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.safetensors"))
    path = CONFIG.with_stem(recipe)
    front = {
        "license": "apache-2.0",
        "library_name": "diffusers",
        "pipeline_tag": "text-to-image",
        "sha256": {name: digest(folder / name) for name in weights},
    }
    size = sum(path.stat().st_size for path in folder.rglob("*.safetensors")) / 1e6
    shape = OmegaConf.select(OmegaConf.load(path), "dit") or {}
    text = (
        CONFIG.with_name(TEXTS[recipe])
        .read_text()
        .format(size=size, side=SIDE_DRAWN, steps=STEPS, guidance=f"{GUIDANCE:g}", recipe=path.read_text(), **shape)
    )
    card = folder / "README.md"
    old = {match[1]: match[0] for match in BLOCK.finditer(card.read_text())} if card.is_file() else {}
    text = BLOCK.sub(lambda match: old.get(match[1], match[0]), text)
    write_file(card, f"---\n{yaml.safe_dump(front, sort_keys=False)}---\n\n{text}")


if __name__ == "__main__":
    main()
