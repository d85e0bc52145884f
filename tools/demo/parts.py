"""Part maps: additional labels for the denoiser, so that its features become semantic within hours instead of weeks.

Aligning a denoiser's features with semantics speeds up its training: Yu et al. (2025), REPA, arXiv 2410.06940, who align with a
pretrained encoder. Scenes have exact part masks, which stand in for one here.
"""

from functools import cache
from hashlib import sha256
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from sdprobe.scenes import CATEGORIES
from sdprobe.scenes.composition import BUILDERS, SHAPE, Composition, stream
from sdprobe.scenes.painting import VERSION as SCENES
from sdprobe.scenes.truth import cover
from sdprobe.utilities.io import read_tensors, write_tensors
from tools.demo.portraits import KINDS, VERSION


@cache
def names() -> tuple[str, ...]:
    """``background``, ``occluder``, then ``<category>/<part>`` of every part that 64 objects of each category have."""
    parts = {
        f"{category}/{part.name}"
        for category in CATEGORIES
        for number in range(64)
        for part in BUILDERS[category](stream(0, number, SHAPE)).parts
    }
    return "background", "occluder", *sorted(parts)


def part_map(composition: Composition, side: int) -> UInt8[Tensor, "{side} {side}"]:
    """Number of the frontmost part at every cell of a canvas of `side` × `side` cells."""
    numbers = {name: number for number, name in enumerate(names())}
    table, depth = np.zeros((side, side), np.uint8), np.zeros((side, side), np.float32)
    for k in composition.back_to_front():
        layer = composition.objects[k]
        for part, pixels in cover(layer, side, depth):
            table[pixels] = numbers.get(f"{layer.figure.category}/{part}", 1)
    return torch.from_numpy(table)


class PartMaps(Dataset[Tensor]):
    """Part maps of the pictures of a kind, `side` cells a side."""

    def __init__(self, kind: str, seed: int, count: int, side: int) -> None:
        self.compose, self.seed, self.count, self.side = KINDS[kind], seed, count, side

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> UInt8[Tensor, "s s"]:
        return part_map(self.compose(self.seed, index), self.side)


def part_maps(kind: str, seed: int, count: int, side: int, work: Path) -> UInt8[Tensor, "n {side} {side}"]:
    """Of the first `count` pictures of a kind; a file that an earlier call left in `work` is read back."""
    key = sha256(f"{SCENES}:{VERSION}:{kind}:{seed}:{count}:{side}".encode()).hexdigest()[:12]
    path = work / "latents" / f"parts-{kind}-{side}-{key}.safetensors"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        maps = torch.stack(list(DataLoader(PartMaps(kind, seed, count, side), batch_size=None, num_workers=2)))
        write_tensors(path, {"parts": maps})
    return read_tensors(path)[0]["parts"]
