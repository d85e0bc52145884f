"""`python -m tools.demo.card`: write the demo model's card after training. Measured values come from `make results`."""

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

TEXT = Path(__file__).with_name("card.md")
BLOCK = re.compile(r"<!-- results:(\w+) -->.*?<!-- /results -->", re.S)
WEIGHTS = (
    "unet/diffusion_pytorch_model.safetensors",
    "vae/diffusion_pytorch_model.safetensors",
    "text_encoder/model.safetensors",
)


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
    config = OmegaConf.load(CONFIG)
    parser.add_argument("--folder", type=Path, default=Path(config.folder))
    parser.add_argument("--work", type=Path, default=Path(config.work), help="training state, for the loss curve")
    options = parser.parse_args(arguments)
    loss_curve(options.work, options.folder / "loss.png")
    write(options.folder)


def write(folder: Path) -> None:
    """Front matter with the weights' digests, then tools/demo/card.md with the measured blocks of the old card."""
    front = {
        "license": "apache-2.0",
        "library_name": "diffusers",
        "pipeline_tag": "text-to-image",
        "sha256": {name: digest(folder / name) for name in WEIGHTS},
    }
    size = sum(path.stat().st_size for path in folder.rglob("*.safetensors")) / 1e6
    text = TEXT.read_text().format(size=size, side=SIDE_DRAWN, steps=STEPS, guidance=f"{GUIDANCE:g}", recipe=CONFIG.read_text())
    card = folder / "README.md"
    old = {match[1]: match[0] for match in BLOCK.finditer(card.read_text())} if card.is_file() else {}
    text = BLOCK.sub(lambda match: old.get(match[1], match[0]), text)
    write_file(card, f"---\n{yaml.safe_dump(front, sort_keys=False)}---\n\n{text}")


if __name__ == "__main__":
    main()
