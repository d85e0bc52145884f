"""Several layers as one: their unit tokens side by side, on the finest of their grids. Data path step 6."""

import torch
from torch.nn.functional import interpolate, normalize

from tokens.batch import GridBatch
from tokens.geometry import at_grid

CONCATENATED = "concatenated"
Shape = tuple[int, int, int]


def concatenated_shape(shapes: dict[str, Shape]) -> Shape:
    """(C, h, w) of the layers' concatenation: all their channels, the finest grid.

    >>> concatenated_shape({"mid": (4, 8, 8), "up_1": (2, 32, 32)})
    (6, 32, 32)
    """
    _, height, width = max(shapes.values(), key=lambda shape: shape[1])
    return sum(channels for channels, _, _ in shapes.values()), height, width


def concatenated(batch: GridBatch) -> GridBatch:
    """The same images with one layer: tokens of norm 1, coarser grids enlarged bilinearly (align_corners=False).

    Groups are those of the finest grid; a token is of high norm where it is in any layer.
    """
    finest = max(batch.grids, key=lambda layer: batch.grids[layer].shape[2])
    side = batch.grids[finest].shape[2:]
    unit = [normalize(grid.float(), dim=1) for grid in batch.grids.values()]
    larger = [grid if grid.shape[2:] == side else interpolate(grid, side, mode="bilinear") for grid in unit]
    high = torch.stack([at_grid(masks["high_norm"], *side) for masks in batch.masks.values()]).any(0)
    masks = batch.masks[finest] | {"high_norm": high}
    dtype = batch.grids[finest].dtype
    return GridBatch({CONCATENATED: torch.cat(larger, 1).to(dtype)}, {CONCATENATED: masks}, batch.image, batch.photo)
