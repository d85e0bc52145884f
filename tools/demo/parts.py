"""Part maps: additional labels for the denoiser, so that its features become semantic within hours instead of weeks.

Aligning a denoiser's features with semantics speeds up its training: Yu et al. (2025), REPA, arXiv 2410.06940, who align with a
pretrained encoder. Scenes have exact part masks, which stand in for one here.
"""

from functools import cache

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from sdprobe.scenes import CATEGORIES
from sdprobe.scenes.composition import BUILDERS, SHAPE, Composition, stream
from sdprobe.scenes.truth import cover


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
