"""Keypoints of image pairs: their table, and the tokens under them. Data path steps 6 and 7.

Several layers can be concatenated to one: their unit tokens side by side, on the finest of their grids.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import interpolate, normalize

from datamodules.images.pairs import Pair, PairSource, Point
from sdprobe.tokens.batch import GridBatch, Keypoints
from sdprobe.tokens.geometry import at_grid, flatten, tokens_at
from sdprobe.tokens.keypoints import SourceTokens
from sdprobe.tokens.keys import base_of, by_timestep, variant
from sdprobe.utilities.rng import keyed_generator

CONCATENATED = "concatenated"
Shape = tuple[int, int, int]


class KeypointTokens:
    """Tokens under the points of images.

    Args:
        images: a pair source.
        slots: item → point → its number among the item's distinct points, which is the order of its tokens.
        seed: seed of the background tokens.
        background: number of background tokens per image.
    """

    def __init__(self, images: PairSource, slots: Mapping[int, Mapping[Point, int]], seed: int, background: int) -> None:
        self.images, self.slots, self.seed, self.background = images, slots, seed, background

    def under(self, index: int, height: int, width: int) -> Int[Tensor, " k"]:
        """Return the row-major index of the token under each of the item's points, on a grid of this height and width."""
        position = tokens_at(self._to_input(index, self._points(index)), self.images.size / height, height, width)
        return position[:, 0] * width + position[:, 1]

    def for_training(self, batch: GridBatch, k: int, index: int) -> dict[str, Float[Tensor, "_n _c"]]:
        """Return layer → tokens of item ``index``, number ``k`` of a batch: those under its points, then ``background`` random
        ones, which lie under no point where the grid has any such token."""
        tokens = {}
        for layer, grid in batch.grids.items():
            _, height, width = grid[k].shape
            under = self.under(index, height, width)
            free = torch.ones(height * width, dtype=torch.bool)
            free[under] = False
            candidates = free.nonzero()[:, 0] if free.any() else torch.arange(height * width)
            generator = keyed_generator("background", self.seed, self.images.name(index), base_of(layer))
            draws = -(-self.background // len(candidates))
            order = torch.cat([torch.randperm(len(candidates), generator=generator) for _ in range(draws)])
            chosen = torch.cat([under, candidates[order[: self.background]]])
            tokens[layer] = flatten(grid[k : k + 1])[0][chosen.to(grid.device)]
        return tokens

    def for_matching(self, batch: GridBatch, k: int, index: int) -> dict[str, SourceTokens]:
        """Return layer → tokens under the points of item ``index``, number ``k`` of a batch."""
        points = self._points(index)
        spots, centres = self._to_input(index, points), self._to_input(index, points.floor() + 0.5)
        sources = {}
        for layer, grid in batch.grids.items():
            masks = {group: mask[k] for group, mask in batch.masks[layer].items()}
            sources[layer] = SourceTokens.under(spots, centres, grid[k], masks, self.images.size)
        return sources

    def _points(self, index: int) -> Float[Tensor, "k 2"]:
        return torch.tensor(list(self.slots[index]), dtype=torch.float64)

    def _to_input(self, index: int, points: Float[Tensor, "k 2"]) -> Float[Tensor, "k 2"]:
        """Points in pixels of the network's input, from points in pixels of the original picture."""
        return self.images.placement(index).to_input(points)


def slots_of(pairs: Iterable[Pair]) -> dict[int, dict[Point, int]]:
    """Item → its distinct points, numbered in the order in which they first occur."""
    slots: dict[int, dict[Point, int]] = {}
    for pair in pairs:
        for index, points in ((pair.source, pair.source_points), (pair.target, pair.target_points)):
            known = slots.setdefault(index, {})
            for point in points:
                known.setdefault(point, len(known))
    return slots


def keypoint_table(pairs: Sequence[Pair], images: PairSource, slots: dict[int, dict[Point, int]]) -> Keypoints:
    """A row per keypoint of every pair; categories are numbered in alphabetical order."""
    numbers = {name: number for number, name in enumerate(sorted({pair.category for pair in pairs}))}
    ends = [(pair.source, pair.target) for pair in pairs]
    placements = {index: images.placement(index) for index in dict.fromkeys(index for both in ends for index in both)}
    counts = torch.tensor([len(pair.ids) for pair in pairs])

    def repeated(rows: list[tuple[float, ...]]) -> Float[Tensor, "n _k"]:
        """Float64 rows of pairs, repeated for each of their keypoints; as Python numbers every keypoint would take 1 KB."""
        return torch.tensor(rows, dtype=torch.float64).repeat_interleave(counts, 0)

    whole = repeated([(n, numbers[pair.category], *ends[n]) for n, pair in enumerate(pairs)]).long()
    spots = [(pair, *both) for pair in pairs for both in zip(pair.source_points, pair.target_points, strict=True)]
    slot = torch.tensor([(slots[pair.source][a], slots[pair.target][b]) for pair, a, b in spots])
    points = torch.tensor([(*a, *b) for _, a, b in spots], dtype=torch.float64)
    around = repeated([(*pair.target_box, *images.picture_size(pair.target)) for pair in pairs])
    frames = repeated(
        [tuple(x for index in both for x in (*placements[index].scale, *placements[index].offset)) for both in ends]
    )
    columns = [
        *whole.unbind(1), *slot.unbind(1), *points.split(2, 1), *around.split([4, 2], 1), *frames.split(2, 1),
    ]  # fmt: skip
    names = [field.name for field in fields(Keypoints)][: len(columns)]
    return Keypoints(
        **dict(zip(names, columns, strict=True)),
        size=images.size,
        image_reach=images.image_reach,
        squashed=images.resize == "squash",
    )


def concatenated_shapes(shapes: Mapping[str, Shape]) -> dict[str, Shape]:
    """(C, h, w) of the concatenated layers of each noise level: the sum of their channels, the finest grid.

    >>> concatenated_shapes({"mid": (4, 8, 8), "up_1": (2, 32, 32)})
    {'concatenated': (6, 32, 32)}
    """
    found = {}
    for level, names in by_timestep(shapes).items():
        _, height, width = max((shapes[name] for name in names), key=lambda shape: shape[1])
        found[variant(CONCATENATED, timestep=level)] = sum(shapes[name][0] for name in names), height, width
    return found


def concatenated(batch: GridBatch) -> GridBatch:
    """The same images with the concatenated layers of each noise level: tokens of norm 1, coarser grids enlarged bilinearly
    (align_corners=False).

    Token groups are those of the finest grid. A token has a high norm if it has one in any layer.
    """
    grids, masks = {}, {}
    for level, names in by_timestep(batch.grids).items():
        finest = max(names, key=lambda name: batch.grids[name].shape[2])
        side, dtype = batch.grids[finest].shape[2:], batch.grids[finest].dtype
        unit = [normalize(batch.grids[name].float(), dim=1) for name in names]
        larger = [grid if grid.shape[2:] == side else interpolate(grid, side, mode="bilinear") for grid in unit]
        high = torch.stack([at_grid(batch.masks[name]["high_norm"], *side) for name in names]).any(0)
        together = variant(CONCATENATED, timestep=level)
        grids[together] = torch.cat(larger, 1).to(dtype)
        masks[together] = batch.masks[finest] | {"high_norm": high}
    return GridBatch(grids, masks, batch.image, batch.photo)
