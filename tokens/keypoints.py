"""Keypoints: what is known of every keypoint that is carried from a source to a target picture, one row each."""

from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tokens.geometry import Placement


@dataclass(frozen=True)
class Keypoints:
    """N keypoints of P pairs, in the order of the pairs; points are (x, y), boxes (x0, y0, x1, y1).

    pair: number of the pair. category: number of its category. source, target: item indices in the image source.
    source_slot, target_slot: which of its picture's points it is. source_point, target_point, target_box: in pixels of the
    original pictures. target_size: (width, height) of the target's original. source_scale, source_offset, target_scale,
    target_offset: see :class:`~tokens.geometry.Placement`. size: side of the network's input in pixels. image_reach: in this
    data set sd_dino and geoaware take α as a share of the image, not of the target's box. squashed: the input gives up the
    pictures' aspect ratio.
    """

    pair: Int[Tensor, " n"]
    category: Int[Tensor, " n"]
    source: Int[Tensor, " n"]
    target: Int[Tensor, " n"]
    source_slot: Int[Tensor, " n"]
    target_slot: Int[Tensor, " n"]
    source_point: Float[Tensor, "n 2"]
    target_point: Float[Tensor, "n 2"]
    target_box: Float[Tensor, "n 4"]
    target_size: Float[Tensor, "n 2"]
    source_scale: Float[Tensor, "n 2"]
    source_offset: Float[Tensor, "n 2"]
    target_scale: Float[Tensor, "n 2"]
    target_offset: Float[Tensor, "n 2"]
    size: int
    image_reach: bool = False
    squashed: bool = False

    def __len__(self) -> int:
        return len(self.pair)

    @property
    def source_input(self) -> Float[Tensor, "n 2"]:
        """Source points in pixels of the network's input."""
        return self.source_point * self.source_scale + self.source_offset

    @property
    def target_input(self) -> Float[Tensor, "n 2"]:
        """Target points in pixels of the network's input."""
        return self.target_point * self.target_scale + self.target_offset

    @property
    def displacement(self) -> Float[Tensor, " n"]:
        """Distance of source and target point in the network's input, as a share of its side."""
        return (self.target_input - self.source_input).norm(dim=1) / self.size

    def target_placement(self, row: int) -> Placement:
        """Where the target picture of a row lies in the network's input."""
        scale, offset = self.target_scale[row].tolist(), self.target_offset[row].tolist()
        return Placement((scale[0], scale[1]), (offset[0], offset[1]))

    def to(self, device: torch.device | str) -> "Keypoints":
        """A copy on another device."""
        return replace(self, **{name: column.to(device) for name, column in self._columns().items()})

    def select(self, rows: Tensor) -> "Keypoints":
        """These rows."""
        return replace(self, **{name: column[rows] for name, column in self._columns().items()})

    def _columns(self) -> dict[str, Any]:
        """What is said of each keypoint, not of all: the tensors."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if isinstance(value, Tensor)}
