"""Are the features semantic? Zero-shot matching of keypoints between held-out scenes, layer by layer."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from backbones import FrozenSD
from datamodules.images.scenes import Scenes
from datamodules.images.scenes.pairs import ScenePair
from tokens.geometry import centres, positions, tokens_at

ALPHA = 0.10


def nearest(
    source: Float[Tensor, "c h w"], target: Float[Tensor, "c h w"], points: Float[Tensor, "k 2"], size: int
) -> Float[Tensor, "k 2"]:
    """Centre (x, y) in pixels of the target token with the highest cosine to the source token under each point."""
    _, height, width = source.shape
    rows, cols = tokens_at(points, size / height, height, width).unbind(1)
    wanted = F.normalize(source[:, rows, cols].float(), dim=0)
    best = (wanted.T @ F.normalize(target.float(), dim=0).flatten(1)).argmax(1)
    return centres(positions(height, width)[best], size / height)


def hits(predicted: Float[Tensor, "k 2"], true: Float[Tensor, "k 2"], box: Sequence[float]) -> Float[Tensor, " k"]:
    """1 where the error is at most ALPHA times the longer side of the target's box."""
    reach = ALPHA * max(box[2] - box[0], box[3] - box[1])
    return ((predicted - true).norm(dim=1) <= reach).double()


def pck(
    backbone: FrozenSD, scenes: Scenes, pairs: Sequence[ScenePair], layers: Sequence[str], timestep: int
) -> dict[str, float]:
    """PCK@0.1 of the target's box per point, in percent: every layer, and the same-position baseline."""
    totals = dict.fromkeys([*layers, "same_position"], 0.0)
    count = 0
    grids: dict[int, dict[str, Tensor]] = {}
    for pair in pairs:
        for index in (pair.source, pair.target):
            if index not in grids:
                item = scenes[index]
                found = backbone.activations(item["image"][None], layers, timestep, ids=[item["id"]])
                grids[index] = {layer: grid[0].cpu() for layer, grid in found.items()}
        source, target = torch.tensor(pair.source_points), torch.tensor(pair.target_points)
        box = scenes.scene(pair.target).objects[0].bbox
        count += len(source)
        totals["same_position"] += hits(source, target, box).sum().item()
        for layer in layers:
            guess = nearest(grids[pair.source][layer], grids[pair.target][layer], source, scenes.size)
            totals[layer] += hits(guess, target, box).sum().item()
    return {name: 100 * total / count for name, total in totals.items()}
