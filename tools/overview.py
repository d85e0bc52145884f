"""The figure of the front page, two scenes with position maps and corner maps: ``python -m tools.overview DIR``."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from jaxtyping import Float, Int
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from torch import Tensor

from datamodules.images.scenes import Scenes
from sdprobe import FrozenSD
from sdprobe.estimators.closed_form import Moments
from sdprobe.tokens.groups import token_similarity
from sdprobe.utilities.io import write_figure

LAYER = "up_0"
SEED, FITTED, SHOWN = 30003, 64, 2  # scenes: the probe is fitted on the first 64, the next two are shown


def main(arguments: Sequence[str] | None = None) -> None:
    """Write overview.png."""
    parser = argparse.ArgumentParser(prog="python -m tools.overview", description=__doc__)
    parser.add_argument("folder", type=Path, metavar="DIR")
    folder = parser.parse_args(arguments).folder
    folder.mkdir(parents=True, exist_ok=True)
    figure = overview()
    write_figure(folder / "overview.png", figure, dpi=140)
    plt.close(figure)


def overview() -> Figure:
    """Picture, position map and corner map of each shown scene, and the colours of the true positions."""
    scenes = Scenes(limit=FITTED + SHOWN, seed=SEED)
    pictures: list[np.ndarray] = []
    grids: list[Tensor] = []
    backbone = FrozenSD.from_pretrained("demo")
    for first in range(0, len(scenes), 6):
        images = torch.stack([scenes.picture(index) for index in range(first, first + 6)])
        grids.append(backbone.activations(images, LAYER, seed=first)[LAYER].float().cpu())
        pictures.extend(images.permute(0, 2, 3, 1).numpy())
    tokens = torch.cat(grids)
    predicted = positions(tokens[:FITTED], tokens[FITTED:])
    side = tokens.shape[-1]
    figure, axes = plt.subplots(1, 3 * SHOWN + 1, figsize=(11, 2.3), layout="constrained")
    for number in range(SHOWN):
        panels = axes[3 * number : 3 * number + 3]
        show(panels[0], pictures[FITTED + number], "scene")
        show(panels[1], colours(predicted[number], side), "position read\nfrom each token")
        cosine = token_similarity(tokens[FITTED + number], (0, 0), side, centred=True)
        drawn = show(panels[2], cosine.numpy(), "similarity to the\ntop-left token", cmap="RdBu_r", vmin=-1, vmax=1)
    figure.colorbar(drawn, ax=axes[-2], shrink=0.8, label="cosine")
    show(axes[-1], colours(grid(side), side), "colours of the\ntrue positions")
    return figure


def positions(fitted: Float[Tensor, "n c h w"], shown: Float[Tensor, "m c h w"]) -> Int[Tensor, "m h w 2"]:
    """(row, column) that linear discriminants, fitted on the first scenes, predict for every token of the shown ones."""
    _, channels, height, width = fitted.shape
    moments = Moments(channels, (height, width), 1, fitted.device)
    for scene in fitted:
        moments.update(scene.flatten(1).T, grid(height, width).reshape(-1, 1, 2))
    weight, bias = moments.discriminants(0)
    logits = torch.einsum("kc,mchw->mhwk", weight, shown.double()) + bias
    return torch.stack([part.argmax(-1) for part in logits.split((height, width), -1)], -1)


def grid(height: int, width: int | None = None) -> Int[Tensor, "h w 2"]:
    """The (row, column) of every token."""
    rows, columns = torch.arange(height), torch.arange(width or height)
    return torch.stack(torch.meshgrid(rows, columns, indexing="ij"), -1)


def colours(positions: Int[Tensor, "h w 2"], side: int) -> np.ndarray:
    """(h, w, 3): a colour per position; blue above, red below, and green grows to the right."""
    row, column = (positions / (side - 1)).unbind(-1)
    return torch.stack([row, column, 1 - row], -1).numpy()


def show(panel: Axes, picture: np.ndarray, title: str, **options: Any) -> AxesImage:
    """A picture without ticks."""
    panel.set_title(title, fontsize=9)
    panel.set_xticks([])
    panel.set_yticks([])
    return panel.imshow(picture, **options)


if __name__ == "__main__":
    main()
