"""Tokens under keypoints of a picture. Data path step 6."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sdprobe.tokens.geometry import flatten, sampled_at, tokens_at


@dataclass(frozen=True)
class SourceTokens:
    """One layer under n points: the tokens, the grid sampled at the centres of the points' pixels, the token groups."""

    tokens: Float[Tensor, "n _c"]
    sampled: Float[Tensor, "n _c"]
    masks: dict[str, Bool[Tensor, " n"]]

    @classmethod
    def under(
        cls,
        points: Float[Tensor, "n 2"],
        centres: Float[Tensor, "n 2"],
        grid: Float[Tensor, "c h w"],
        masks: Mapping[str, Bool[Tensor, "h w"]],
        size: int,
    ) -> "SourceTokens":
        """The tokens of a picture under points (x, y), and under the centres of their pixels.

        Args:
            points: in pixels of the network's input.
            centres: of the pixels of the original picture that contain the points, in pixels of the network's input.
            grid: of the picture.
            masks: token group → its tokens.
            size: side of the network's input in pixels.
        """
        _, height, width = grid.shape
        position = tokens_at(points, size / height, height, width)
        index = (position[:, 0] * width + position[:, 1]).to(grid.device)
        sampled = sampled_at(grid.float(), centres.to(grid.device, torch.float32), size / height)
        inside = {group: mask.flatten()[index] for group, mask in masks.items()}
        return cls(flatten(grid[None])[0][index], sampled.to(grid.dtype), inside)

    def at(self, index: Int[Tensor, " k"]) -> "SourceTokens":
        """Return the tokens of k of the points."""
        masks = {name: mask[index] for name, mask in self.masks.items()}
        return SourceTokens(self.tokens[index], self.sampled[index], masks)

    @classmethod
    def joined(cls, pieces: Sequence["SourceTokens"]) -> "SourceTokens":
        """Return the tokens of several images, concatenated."""
        masks = {name: torch.cat([piece.masks[name] for piece in pieces]) for name in pieces[0].masks}
        return cls(torch.cat([piece.tokens for piece in pieces]), torch.cat([piece.sampled for piece in pieces]), masks)
