"""Corresponding points of picture pairs, checked → a table of keypoints, and what is matched in each target picture."""

from collections import defaultdict
from collections.abc import Iterator
from numbers import Integral
from typing import Any

import torch
from torch import Tensor

from sdprobe.estimators.grids import ImageGrids, numbers_of, texts
from sdprobe.tokens.batch import Keypoints, MatchBatch
from sdprobe.tokens.keypoints import SourceTokens
from sdprobe.utilities import expect
from sdprobe.utilities.errors import InputError


def keypoints(
    pairs: int, points_a: Any, points_b: Any, size: int, boxes: Any, pictures_a: Any, pictures_b: Any, categories: Any
) -> Keypoints:
    """A row per point of every pair. The originals are the pictures as the network got them."""
    ends = [_points("points_a", points_a, pairs, size), _points("points_b", points_b, pairs, size)]
    counts = torch.tensor([len(each) for each in ends[0]])
    if unlike := [k for k in range(pairs) if len(ends[0][k]) != len(ends[1][k])]:
        raise InputError(
            f"Expected points_b to have a partner for every point of points_a, but pair {unlike[0]} has "
            f"{len(ends[0][unlike[0]])} and {len(ends[1][unlike[0]])} points. Correct it."
        )
    expect.at_least("points in points_a", int(counts.sum()), 2)
    around = torch.tensor([[0.0, 0.0, size, size]], dtype=torch.float64).expand(pairs, 4)
    if boxes is not None:
        around = numbers_of("boxes_b", boxes).double()
        if around.shape != (pairs, 4) or not around.isfinite().all() or not (around[:, 2:] > around[:, :2]).all():
            raise InputError(
                f"Expected boxes_b to be (x0, y0, x1, y1) for each of {pairs} pairs, with x1 > x0 and y1 > y0, but got "
                f"{tuple(around.shape)} or other numbers. Correct it."
            )
    kinds = texts("categories", categories, pairs, [""] * pairs, "pair")
    ranks = {name: rank for rank, name in enumerate(sorted(set(kinds)))}
    given = [_pictures("pictures_a", pictures_a, pairs), _pictures("pictures_b", pictures_b, pairs)]
    names = dict.fromkeys([name for both in given for name in both])
    numbered = all(isinstance(name, int) for name in names)
    number = {name: name if numbered else rank for rank, name in enumerate(names)}
    columns = [range(pairs), [ranks[kind] for kind in kinds], *([number[name] for name in both] for both in given)]
    pair, category, source, target = (torch.tensor(list(column)).repeat_interleave(counts) for column in columns)
    rows, none = int(counts.sum()), torch.zeros_like(pair)
    scale, offset = torch.ones(rows, 2, dtype=torch.float64), torch.zeros(rows, 2, dtype=torch.float64)
    return Keypoints(
        pair, category, source, target, none, none, torch.cat(ends[0]), torch.cat(ends[1]),
        around.repeat_interleave(counts, 0), scale * size, scale, offset, scale, offset, size,
    )  # fmt: skip


def _points(argument: str, given: Any, pairs: int, size: int) -> list[Tensor]:
    """Points (K, 2) of every pair, in float64."""
    if not hasattr(given, "__len__") or len(given) != pairs:
        found = f"{len(given)}" if hasattr(given, "__len__") else type(given).__name__
        raise InputError(
            f"Expected {argument} to have points for each of {pairs} pairs, but got {found}. Give one array per pair."
        )
    points = [
        torch.empty(0, 2).double() if _is_empty(each) else numbers_of(f"{argument}[{pair}]", each).double()
        for pair, each in enumerate(given)
    ]
    for pair, each in enumerate(points):
        if each.ndim != 2 or each.shape[1] != 2 or not ((each >= 0) & (each <= size)).all():  # also false for NaN
            raise InputError(
                f"Expected {argument} to be points (x, y) from 0 to {size} pixels, an array (K, 2) per pair, but pair {pair} "
                f"has the shape {tuple(each.shape)} or points outside. Leave out points that are not visible."
            )
    return points


def _is_empty(points: Any) -> bool:
    """Whether a pair has no point that is visible in both pictures."""
    return hasattr(points, "__len__") and not isinstance(points, str) and len(points) == 0


def _pictures(argument: str, given: Any, pairs: int) -> list[Any]:
    """Numbers or names of pictures."""
    if given is None:
        return [f"{argument} {k}" for k in range(pairs)]
    names = texts(argument, given, pairs, [], "pair")
    values = given.tolist() if hasattr(given, "tolist") else given
    whole = all(isinstance(value, Integral) and not isinstance(value, bool) for value in values)
    return [*map(int, values)] if whole else names


def matches_of(sources: ImageGrids, targets: ImageGrids, points: Keypoints) -> Iterator[MatchBatch]:
    """Every target picture of a category, with the points that are sought in it."""
    wanted: dict[tuple[int, int], list[int]] = defaultdict(list)
    for row, (category, target) in enumerate(zip(points.category.tolist(), points.target.tolist(), strict=True)):
        wanted[category, target].append(row)
    spots, centres = points.source_input, points.source_point.floor() + 0.5
    for rows in wanted.values():
        index = torch.tensor(rows, device=points.pair.device)
        pairs = list(dict.fromkeys(points.pair[index].tolist()))
        goal, pieces = targets.batch(pairs[:1]), []
        for k in pairs:
            own, picture = index[points.pair[index] == k], sources.batch([k])
            pieces.append(
                {
                    layer: SourceTokens.under(
                        spots[own],
                        centres[own],
                        grid[0],
                        {group: mask[0] for group, mask in picture.masks[layer].items()},
                        points.size,
                    )
                    for layer, grid in picture.grids.items()
                }
            )
        tokens = {layer: SourceTokens.joined([piece[layer] for piece in pieces]) for layer in sources.grids}
        yield MatchBatch(
            source={layer: each.tokens for layer, each in tokens.items()},
            sampled={layer: each.sampled for layer, each in tokens.items()},
            target={layer: grid[0] for layer, grid in goal.grids.items()},
            source_masks={layer: each.masks for layer, each in tokens.items()},
            target_masks={layer: {name: mask[0] for name, mask in masks.items()} for layer, masks in goal.masks.items()},
            row=index,
        )
