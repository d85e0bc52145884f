"""Pairs → the table of their keypoints. Beside step 7 of the data path."""

from collections.abc import Iterable, Sequence
from dataclasses import fields

import torch

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
    places = {index: images.placement(index) for pair in pairs for index in (pair.source, pair.target)}
    rows = [
        (
            (number, numbers[pair.category], pair.source, pair.target, slots[pair.source][a], slots[pair.target][b]),
            (*a, *b, *pair.target_box, *images.picture_size(pair.target)),
            (
                *places[pair.source].scale,
                *places[pair.source].offset,
                *places[pair.target].scale,
                *places[pair.target].offset,
            ),
        )
        for number, pair in enumerate(pairs)
        for a, b in zip(pair.source_points, pair.target_points, strict=True)
    ]
    whole = torch.tensor([row[0] for row in rows])
    points = torch.tensor([row[1] for row in rows], dtype=torch.float64)
    frames = torch.tensor([row[2] for row in rows], dtype=torch.float64)
    columns = [*whole.unbind(1), *points.split([2, 2, 4, 2], 1), *frames.split(2, 1)]
    names = [field.name for field in fields(Keypoints) if field.name != "size"]
    return Keypoints(**dict(zip(names, columns, strict=True)), size=images.size)
