"""Image pairs whose tokens are known, served the way the data module serves them."""

from collections.abc import Iterator, Sequence

import lightning
import numpy as np
import torch
from torch import Tensor

from datamodules.images.pairs import Pair
from datamodules.images.scenes import ScenePairs
from datamodules.keypoints import keypoint_table, slots_of
from datamodules.loaders import Loader
from sdprobe.tokens.batch import KeypointBatch, Keypoints, MatchBatch
from sdprobe.tokens.geometry import sampled_at, tokens_at
from sdprobe.tokens.groups import token_groups

SIZE = 128


def planted_pairs(images: int, parts: int, seed: int, pairs: int = 0) -> tuple[list[Pair], Tensor]:
    """Pairs of distinct images (all ordered ones, or so many) and the (images, parts, 2) points (x, y) of their parts."""
    generator = torch.Generator().manual_seed(seed)
    points = 4 + torch.rand(images, parts, 2, generator=generator, dtype=torch.float64) * (SIZE - 8)
    chosen = [(a, b) for a in range(images) for b in range(images) if a != b][: pairs or None]
    ids = tuple(map(str, range(parts)))

    def spots(index: int) -> tuple[tuple[float, float], ...]:
        return tuple((x, y) for x, y in points[index].tolist())

    box = (0.0, 0.0, float(SIZE), float(SIZE))
    return [Pair(a, b, "thing", ids, spots(a), spots(b), box) for a, b in chosen], points


class PlantedPairs(lightning.LightningDataModule):
    """Grids (images, C, h, w) of several layers; ``train`` and ``val`` pairs give keypoint tokens, ``test`` pairs matches."""

    kind = "pairs"

    def __init__(self, grids: dict[str, Tensor], pairs: dict[str, Sequence[Pair]]) -> None:
        super().__init__()
        self.grids, self.parts = grids, pairs
        self.shapes = {layer: tuple(grid.shape[1:]) for layer, grid in grids.items()}
        self.slots = slots_of(pair for part in pairs.values() for pair in part)
        self.table = keypoint_table(pairs["test"], ScenePairs(SIZE, 48), self.slots)  # square pictures

    def keypoints(self) -> Keypoints:
        return self.table

    def keypoint_names(self) -> dict[str, np.ndarray]:
        return {}

    def train_dataloader(self) -> "Loader[KeypointBatch] | list[KeypointBatch]":
        return self._steps("train", 1)

    def val_dataloader(self) -> "Loader[KeypointBatch] | list[KeypointBatch]":
        return self._steps("val", 1)

    def test_dataloader(self) -> "Loader[MatchBatch]":
        targets = sorted({pair.target for pair in self.parts["test"]})
        return Loader(lambda: map(self._match, targets), len(targets))

    def _steps(self, name: str, repeats: int) -> "Loader[KeypointBatch] | list[KeypointBatch]":
        pairs = self.parts.get(name, [])
        if not pairs:
            return []

        def make() -> Iterator[KeypointBatch]:
            for _ in range(repeats):
                for start in range(0, len(pairs), 8):
                    yield self._keypoints(pairs[start : start + 8])

        return Loader(make, repeats * -(-len(pairs) // 8))

    def _under(self, layer: str, index: int, points: Sequence[tuple[float, float]]) -> Tensor:
        grid = self.grids[layer][index]
        place = tokens_at(torch.tensor(points), SIZE / grid.shape[1], *grid.shape[1:])
        return grid[:, place[:, 0], place[:, 1]].T

    def _keypoints(self, pairs: Sequence[Pair]) -> KeypointBatch:
        source, target, background = {}, {}, {}
        for layer, grid in self.grids.items():
            source[layer] = torch.cat([self._under(layer, pair.source, pair.source_points) for pair in pairs])
            target[layer] = torch.cat([self._under(layer, pair.target, pair.target_points) for pair in pairs])
            background[layer] = torch.cat([grid[pair.target].flatten(1).T[::5] for pair in pairs])
        places = {layer: torch.arange(len(tokens)) for layer, tokens in source.items()}  # none shared
        return KeypointBatch(source, target, background, places, torch.tensor([int(n) for pair in pairs for n in pair.ids]))

    def _match(self, target: int) -> MatchBatch:
        table = self.table
        rows = (table.target == target).nonzero()[:, 0]
        source, sampled, inside, goal, around = {}, {}, {}, {}, {}
        for layer, grid in self.grids.items():
            side = grid.shape[2]
            masks = token_groups(grid)
            under, smooth, groups = [], [], []
            for row in rows:
                index, point = int(table.source[row]), table.source_point[row][None]
                r, c = tokens_at(point, SIZE / side, side, side)[0].tolist()
                under.append(grid[index, :, r, c])
                smooth.append(sampled_at(grid[index], (point.floor() + 0.5).float(), SIZE / side)[0])
                groups.append({name: mask[index, r, c] for name, mask in masks.items()})
            source[layer], sampled[layer] = torch.stack(under), torch.stack(smooth)
            inside[layer] = {name: torch.stack([group[name] for group in groups]) for name in masks}
            goal[layer], around[layer] = grid[target], {name: mask[target] for name, mask in masks.items()}
        return MatchBatch(source, sampled, goal, inside, around, rows)
