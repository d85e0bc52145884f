"""The study of Loos & Linhardt (2025), by the published procedure and as one run of sdprobe: position, groups, norms.

As published (arXiv 2504.07008 and its repository): ``sdhelper`` extracts all layers once for the position probes, then for
every layer once more from the pictures and once from cropped ones for the similarities, and all layers again for the norms;
one linear head after the other is trained on every token; similarities are those of all pairs of tokens.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning
import torch
from jaxtyping import Float
from PIL.Image import Image
from torch import Tensor, nn

from datamodules.study import StudyDataModule
from probes import StudyProbe
from sdprobe.backbones import FrozenSD
from sdprobe.tokens.geometry import border_groups, positions
from tools.benchmarks.rivals import TIMESTEP, Sdhelper
from tools.benchmarks.shaped import Pictures

EPOCHS, TOKENS, TRAINING_SHARE = 5, 512, 0.8


@dataclass
class Findings:
    """Of every layer: position accuracy, similarity of corners without the outer ring, mean norm map; seconds it took."""

    accuracy: dict[str, float]
    corners: dict[str, float]
    norms: dict[str, Tensor]
    seconds: float


def published(rival: Sdhelper, pictures: Sequence[Image], names: dict[str, str], every: int) -> Findings:
    """The published procedure, layer by layer; ``names`` maps our layer → theirs.

    Similarities are measured in every ``every``-th layer, and their time is multiplied, because each layer needs its own
    extractions.
    """
    started = time.perf_counter()
    found = rival.extract(pictures, list(names.values()))
    accuracy = {layer: _position(torch.cat([one[name] for one in found])) for layer, name in names.items()}
    found = rival.extract(pictures, list(names.values()))
    norms = {layer: torch.stack([one[name][0].norm(dim=0) for one in found]).mean(0) for layer, name in names.items()}
    del found
    seconds = time.perf_counter() - started
    started = time.perf_counter()
    chosen = dict(list(names.items())[::every])
    corners = {layer: _similarity(rival, pictures, name) for layer, name in chosen.items()}
    seconds += (time.perf_counter() - started) * len(names) / len(chosen)
    return Findings(accuracy, corners, norms, seconds)


def in_one_run(sd: FrozenSD, pictures: Pictures, solver: str, folder: Path) -> Findings:
    """``experiment=loos2025`` on the same pictures, nothing cached."""
    started = time.perf_counter()
    data = StudyDataModule(
        pictures, sd, "loos2025", timestep=TIMESTEP, splits="loos2025", sampling="all", cache_dir=str(folder)
    )
    probe = StudyProbe(data.shapes, data.photos, data, solver=solver, learning_rate=1e-3)
    trainer = lightning.Trainer(
        accelerator=sd.device.type, devices=1, max_epochs=EPOCHS, num_sanity_val_steps=0, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(probe, datamodule=data)
    trainer.test(probe, datamodule=data, verbose=False)
    results, maps = probe.results, probe.maps()
    return Findings(
        accuracy={layer: results[f"test/{layer}/axis_accuracy/all"] for layer in data.layers},
        corners={layer: results[f"test/{layer}/similarity_reprcropped/corner"] for layer in data.layers},
        norms={layer: torch.from_numpy(maps[f"{layer}/norm"]) for layer in data.layers},
        seconds=time.perf_counter() - started,
    )


def _position(grids: Float[Tensor, "n c h w"]) -> float:
    """Accuracy over rows and columns of a linear head trained on every token of the first pictures."""
    images, channels, height, width = grids.shape
    tokens = grids.permute(0, 2, 3, 1).flatten(0, 2)
    position = positions(height, width).repeat(images, 1)
    first = int(images * TRAINING_SHARE) * height * width
    torch.manual_seed(0)
    head = nn.Linear(channels, height + width)
    optimiser = torch.optim.Adam(head.parameters(), lr=1e-3)
    for _ in range(EPOCHS):
        for picked in torch.randperm(first).split(TOKENS):
            rows, columns = head(tokens[picked]).split([height, width], dim=1)
            loss = nn.functional.cross_entropy(rows, position[picked, 0]) + nn.functional.cross_entropy(
                columns, position[picked, 1]
            )
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    with torch.no_grad():
        rows, columns = head(tokens[first:]).split([height, width], dim=1)
        right = torch.stack([rows.argmax(1), columns.argmax(1)], dim=1) == position[first:]
    return right.double().mean().item()


def _similarity(rival: Sdhelper, pictures: Sequence[Image], name: str) -> float:
    """Mean cosine of different corner tokens without the outer ring; like the study, it averages all groups of both views."""
    whole = rival.extract(pictures, [name])
    side = pictures[0].width
    token = side // whole[0][name].shape[-1]
    cropped = rival.extract([picture.crop((token, token, side - token, side - token)) for picture in pictures], [name])
    ring = [_group_means(one, inner=1) for one in whole]
    for one in cropped:
        _group_means(one, inner=0)
    return torch.stack(ring).mean().item()


def _group_means(found: Any, inner: int) -> Tensor:
    """Similarity of the corners; like the study, it also computes all token pairs and the means of other groups."""
    maps = found.cosine_similarity(found)
    end = maps.shape[0] - inner
    maps = maps[inner:end, inner:end, inner:end, inner:end]
    groups = border_groups(*maps.shape[:2])
    means = {}
    for one, first in groups.items():
        for other, second in groups.items():
            pairs = maps[first][:, second]
            same = float(first.sum()) if one == other else 0.0  # the cosine of a token with itself is 1
            means[one, other] = (pairs.sum() - same) / (pairs.numel() - same)
    return means["corner", "corner"]
