"""Pairs → the table of their keypoints. Beside step 7 of the data path."""

from collections.abc import Iterable, Sequence
from dataclasses import fields

import torch
from jaxtyping import Float
from torch import Tensor

from datamodules.images.pairs import Pair, PairSource, Point
from tokens.keypoints import Keypoints


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
    """One row per keypoint of every pair; categories are numbered in alphabetical order."""
    numbers = {name: number for number, name in enumerate(sorted({pair.category for pair in pairs}))}
    ends = [(pair.source, pair.target) for pair in pairs]
    places = {index: images.placement(index) for index in dict.fromkeys(index for both in ends for index in both)}
    counts = torch.tensor([len(pair.ids) for pair in pairs])

    def repeated(rows: list[tuple[float, ...]]) -> Float[Tensor, "n _k"]:
        """Float64 rows of pairs, once for each of their keypoints; Python numbers of every keypoint would take 1 KB each."""
        return torch.tensor(rows, dtype=torch.float64).repeat_interleave(counts, 0)

    whole = repeated([(n, numbers[pair.category], *ends[n]) for n, pair in enumerate(pairs)]).long()
    spots = [(pair, *both) for pair in pairs for both in zip(pair.source_points, pair.target_points, strict=True)]
    slot = torch.tensor([(slots[pair.source][a], slots[pair.target][b]) for pair, a, b in spots])
    points = torch.tensor([(*a, *b) for _, a, b in spots], dtype=torch.float64)
    around = repeated([(*pair.target_box, *images.picture_size(pair.target)) for pair in pairs])
    frames = repeated([tuple(x for index in both for x in (*places[index].scale, *places[index].offset)) for both in ends])
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
