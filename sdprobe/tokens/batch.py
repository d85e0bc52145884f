"""The objects that packages exchange: frozen dataclasses with ``.to()``.

A stream yields ``GridBatch`` (whole activation grids). Sampling and mixing turn it into ``TokenBatch`` (input of a probe),
and pairing into ``KeypointBatch`` (for training) and ``MatchBatch`` (for testing). Layers are keys, so one backbone pass
feeds the heads of all layers. ``Keypoints`` has one row per keypoint of a pair, with all that is known about it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, TypeVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sdprobe.tokens.geometry import Placement

Batch = TypeVar("Batch", bound="_Movable")


def _move(value: Any, device: torch.device | str, non_blocking: bool) -> Any:
    if isinstance(value, dict):
        return {key: _move(item, device, non_blocking) for key, item in value.items()}
    return value if isinstance(value, str) else value.to(device, non_blocking=non_blocking)


class _Movable:
    def to(self: Batch, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """A copy on another device. Every tensor moves, and nothing else changes."""
        moved = {f.name: _move(getattr(self, f.name), device, non_blocking) for f in fields(self)}  # type: ignore[arg-type]
        return type(self)(**moved)


@dataclass(frozen=True)
class GridBatch(_Movable):
    """Activation grids of B images.

    grids: layer → (B, C, h, w), any float dtype. masks: layer → token group → (B, h, w) bool. image: (B,) index of the
    image in its dataset. photo: (B,) index of the photograph it shows; crops of one photograph share it.
    """

    grids: dict[str, Float[Tensor, "b _c _h _w"]]
    masks: dict[str, dict[str, Bool[Tensor, "b _h _w"]]]
    image: Int[Tensor, " b"]
    photo: Int[Tensor, " b"]

    def select(self, which: Sequence[int]) -> "GridBatch":
        """The images at these indices of the batch. Returns the batch itself if these are all of them, in order."""
        if list(which) == list(range(len(self.image))):
            return self
        index = torch.tensor(which, dtype=torch.long, device=self.image.device)
        return GridBatch(
            grids={layer: grid[index] for layer, grid in self.grids.items()},
            masks={layer: {name: mask[index] for name, mask in masks.items()} for layer, masks in self.masks.items()},
            image=self.image[index],
            photo=self.photo[index],
        )


def joined(batches: Sequence[GridBatch]) -> GridBatch:
    """Several batches of the same layers, concatenated."""
    first = batches[0]
    if len(batches) == 1:
        return first
    return GridBatch(
        grids={layer: torch.cat([batch.grids[layer] for batch in batches]) for layer in first.grids},
        masks={
            layer: {group: torch.cat([batch.masks[layer][group] for batch in batches]) for group in masks}
            for layer, masks in first.masks.items()
        },
        image=torch.cat([batch.image for batch in batches]),
        photo=torch.cat([batch.photo for batch in batches]),
    )


@dataclass(frozen=True)
class EditedBatch(_Movable):
    """What B images give in one pass of the network with an edit of one layer, and without it.

    condition: ``test``, or the control that the edit is; empty for a pass without an edit. layer: name of the edited layer with
    its noise level and mitigation; without an edit the suffix of the noise level alone. grids: later layer → (B, C, h, w) with
    the edit. predictions: ``edited``, ``plain`` and ``target`` → (B, 4, h, w); empty where only later layers are read. photo:
    (B,) index of the photograph that an image shows.
    """

    condition: str
    layer: str
    grids: dict[str, Float[Tensor, "b _c _h _w"]]
    predictions: dict[str, Float[Tensor, "b c h w"]]
    photo: Int[Tensor, " b"]


@dataclass(frozen=True)
class TokenBatch(_Movable):
    """Tokens of several layers, ready for the heads. A layer without tokens in this step is absent.

    tokens: layer → (N, C). positions: layer → (N, 2) long (row, col). masks: layer → token group → (N,) bool. image, photo:
    layer → (N,) index of the image that a token comes from, and of the photograph it shows. targets: layer → (N, V) float, the
    targets of a regression; empty if the data have none. N may differ between layers.
    """

    tokens: dict[str, Float[Tensor, "_n _c"]]
    positions: dict[str, Int[Tensor, "_n 2"]]
    masks: dict[str, dict[str, Bool[Tensor, " _n"]]]
    image: dict[str, Int[Tensor, " _n"]]
    photo: dict[str, Int[Tensor, " _n"]]
    targets: dict[str, Float[Tensor, "_n _v"]] = field(default_factory=dict)

    def select(self, index: Mapping[str, Int[Tensor, " _k"]]) -> "TokenBatch":
        """The tokens of some layers at some indices."""

        def picked(values: dict[str, Tensor]) -> dict[str, Tensor]:
            return {layer: values[layer][pick] for layer, pick in index.items() if layer in values}

        masks = {layer: {group: mask[pick] for group, mask in self.masks[layer].items()} for layer, pick in index.items()}
        return TokenBatch(
            picked(self.tokens), picked(self.positions), masks, picked(self.image), picked(self.photo), picked(self.targets)
        )


def concatenated(pieces: Sequence[TokenBatch]) -> TokenBatch:
    """All tokens of several batches with the same layers, in order."""

    def joined(name: str) -> dict[str, Tensor]:
        return {layer: torch.cat([getattr(piece, name)[layer] for piece in pieces]) for layer in getattr(pieces[0], name)}

    masks = {
        layer: {group: torch.cat([piece.masks[layer][group] for piece in pieces]) for group in groups}
        for layer, groups in pieces[0].masks.items()
    }
    return TokenBatch(joined("tokens"), joined("positions"), masks, joined("image"), joined("photo"), joined("targets"))


@dataclass(frozen=True)
class KeypointBatch(_Movable):
    """Tokens under N corresponding keypoints of several pairs, and M other tokens of the target pictures.

    source, target: layer → (N, C). background: layer → (M, C). target_token: layer → (N,) long, equal if two keypoints have
    the same target token. label: (N,) long, equal if two keypoints are the same part of the same category.
    """

    source: dict[str, Float[Tensor, "n _c"]]
    target: dict[str, Float[Tensor, "n _c"]]
    background: dict[str, Float[Tensor, "_m _c"]]
    target_token: dict[str, Int[Tensor, " n"]]
    label: Int[Tensor, " n"]


@dataclass(frozen=True)
class MatchBatch(_Movable):
    """N keypoints to be matched in one target picture.

    source: layer → (N, C) tokens under the source points. sampled: layer → (N, C) source grids sampled bilinearly at the
    centre of the source points' pixels. target: layer → (C, h, w). source_masks: layer → token group → (N,) bool.
    target_masks: layer → token group → (h, w) bool. row: (N,) row of each keypoint in
    :class:`~sdprobe.tokens.batch.Keypoints`.
    """

    source: dict[str, Float[Tensor, "n _c"]]
    sampled: dict[str, Float[Tensor, "n _c"]]
    target: dict[str, Float[Tensor, "_c _h _w"]]
    source_masks: dict[str, dict[str, Bool[Tensor, " n"]]]
    target_masks: dict[str, dict[str, Bool[Tensor, "_h _w"]]]
    row: Int[Tensor, " n"]


@dataclass(frozen=True)
class Keypoints:
    """N keypoints of P pairs, in the order of the pairs. Points are (x, y), boxes (x0, y0, x1, y1).

    pair: number of the pair. category: number of its category. source, target: item indices in the image source.
    source_slot, target_slot: index among the points of its picture. source_point, target_point, target_box: in pixels of the
    original pictures. target_size: (width, height) of the target's original. source_scale, source_offset, target_scale,
    target_offset: see :class:`~.Placement`. size: side of the network's input in pixels. image_reach: whether in this
    data set sd_dino and geoaware take α relative to the image instead of the target's box. squashed: whether the input changes
    the aspect ratio of the pictures.
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
        """The tensors, which have one row per keypoint."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if isinstance(value, Tensor)}
