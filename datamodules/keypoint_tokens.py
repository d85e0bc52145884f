"""KeypointTokens: what of the grids of an image lies under its keypoints. Data path step 7."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from datamodules.images.pairs import PairSource, Point
from tokens.batch import GridBatch
from tokens.geometry import flatten, sampled_at, tokens_at
from tokens.keyed import keyed_generator
from tokens.keys import base_of


@dataclass(frozen=True)
class SourceTokens:
    """Of points of one layer: the tokens they lie on, the grid read at their pixels' centres, the tokens' groups."""

    tokens: Float[Tensor, "n _c"]
    sampled: Float[Tensor, "n _c"]
    masks: dict[str, Bool[Tensor, " n"]]

    def at(self, index: Int[Tensor, " k"]) -> "SourceTokens":
        """Those of some points."""
        masks = {name: mask[index] for name, mask in self.masks.items()}
        return SourceTokens(self.tokens[index], self.sampled[index], masks)

    @classmethod
    def joined(cls, pieces: Sequence["SourceTokens"]) -> "SourceTokens":
        """Those of several images, one after the other."""
        masks = {name: torch.cat([piece.masks[name] for piece in pieces]) for name in pieces[0].masks}
        return cls(torch.cat([piece.tokens for piece in pieces]), torch.cat([piece.sampled for piece in pieces]), masks)


class KeypointTokens:
    """Tokens under the points of images.

    Args:
        images: a pair source.
        slots: item → point → its place among the item's distinct points, the order in which its tokens are given.
        seed: of background tokens.
        background: number of background tokens of an image.
    """

    def __init__(self, images: PairSource, slots: Mapping[int, Mapping[Point, int]], seed: int, background: int) -> None:
        self.images, self.slots, self.seed, self.background = images, slots, seed, background

    def under(self, index: int, height: int, width: int) -> Int[Tensor, " k"]:
        """Row-major index of the token under each of the item's points, on a grid of this height and width."""
        place = tokens_at(self._to_input(index, self._points(index)), self.images.size / height, height, width)
        return place[:, 0] * width + place[:, 1]

    def for_training(self, batch: GridBatch, k: int, index: int) -> dict[str, Float[Tensor, "_n _c"]]:
        """Layer → of item ``index``, number ``k`` of a batch, the tokens under its points, then ``background`` random
        ones, where possible under no point."""
        found = {}
        for layer, grid in batch.grids.items():
            _, height, width = grid[k].shape
            under = self.under(index, height, width)
            free = torch.ones(height * width, dtype=torch.bool)
            free[under] = False
            places = free.nonzero()[:, 0] if free.any() else torch.arange(height * width)
            generator = keyed_generator("background", self.seed, self.images.name(index), base_of(layer))
            draws = -(-self.background // len(places))
            order = torch.cat([torch.randperm(len(places), generator=generator) for _ in range(draws)])
            chosen = torch.cat([under, places[order[: self.background]]])
            found[layer] = flatten(grid[k : k + 1])[0][chosen.to(grid.device)]
        return found

    def for_matching(self, batch: GridBatch, k: int, index: int) -> dict[str, SourceTokens]:
        """Layer → what is known of the tokens under the points of item ``index``, number ``k`` of a batch."""
        found = {}
        centres = self._to_input(index, self._points(index).floor() + 0.5)
        for layer, grid in batch.grids.items():
            _, height, width = grid[k].shape
            under = self.under(index, height, width).to(grid.device)
            sampled = sampled_at(grid[k].float(), centres.to(grid.device, torch.float32), self.images.size / height)
            masks = {group: mask[k].flatten()[under] for group, mask in batch.masks[layer].items()}
            found[layer] = SourceTokens(flatten(grid[k : k + 1])[0][under], sampled.to(grid.dtype), masks)
        return found

    def _points(self, index: int) -> Float[Tensor, "k 2"]:
        return torch.tensor(list(self.slots[index]), dtype=torch.float64)

    def _to_input(self, index: int, points: Float[Tensor, "k 2"]) -> Float[Tensor, "k 2"]:
        """In pixels of the network's input."""
        return self.images.placement(index).to_input(points)
