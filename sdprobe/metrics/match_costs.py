"""Effect of position, corners and high-norm tokens on matches: strata, position copies, attraction, harm.

All functions take the matches of one condition in one layer, by keypoint, counted by the protocol ``ours`` at one α.
:class:`PairMeans` averages them.
"""

from collections.abc import Iterator

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sdprobe.tokens.batch import Keypoints
from sdprobe.tokens.keys import GROUPS, MASKED

DISPLACEMENTS = {"near": (0.0, 0.15), "middle": (0.15, 0.35), "far": (0.35, 2.0)}  # relative to the side of the input
EDGES = {"near": (-1.0, 1 / 16), "middle": (1 / 16, 3 / 16), "far": (3 / 16, 1.0)}  # of the target point to the input's edge
SWAPS = 32  # source points of other pairs that replace the source point of a keypoint


Strata = Iterator[tuple[str, Bool[Tensor, " n"]]]


def location_strata(points: Keypoints) -> Strata:
    """``all``; by displacement between source and target; by distance of the target point from the edge."""
    yield "all", torch.ones_like(points.pair, dtype=torch.bool)
    moved = points.displacement
    for name, (low, high) in DISPLACEMENTS.items():
        yield f"displacement_{name}", (moved >= low) & (moved < high)
    target = points.target_input
    edge = torch.minimum(target, points.size - target).amin(1) / points.size
    for name, (low, high) in EDGES.items():
        yield f"edge_{name}", (edge >= low) & (edge < high)


def group_strata(matches: dict[str, Tensor], condition: int) -> Strata:
    """By the token group of the source, of the true target and of the matched token."""
    for g, group in enumerate(GROUPS):
        yield f"source_{group}", matches["source_in"][g] > 0
        yield f"target_{group}", matches["target_in"][g] > 0
        yield f"predicted_{group}", matches["landed_in"][condition, g] > 0


def near_source(
    points: Keypoints, predicted: Float[Tensor, "n 2"], wrong: Bool[Tensor, " n"], alpha: float
) -> Bool[Tensor, " n"]:
    """Wrong matches within α · box of the *source* point, measured in the network's input, where a position code acts."""
    return ((predicted - points.source_input).norm(dim=1) <= _threshold(points, alpha)) & wrong


def copies(
    points: Keypoints, predicted: Float[Tensor, "n 2"], wrong: Bool[Tensor, " n"], alpha: float, seed: int
) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"], Bool[Tensor, " n"]]:
    """Per keypoint: :func:`near_source`; how often the match would be near source points of other pairs; whether both count.

    The second is the mean over up to SWAPS source points of wrong keypoints of other pairs. A wrong match is never near the
    target point. So source points within twice the threshold of it are left out, its own and others; otherwise a blind guess
    would seem to avoid the source.
    """
    threshold, index = _threshold(points, alpha), wrong.nonzero()[:, 0]
    own, expected = near_source(points, predicted, wrong, alpha).double(), torch.zeros_like(threshold)
    counted = torch.zeros_like(wrong)
    if len(index) < 2:
        return own, expected, counted
    generator = torch.Generator().manual_seed(seed)
    other = index[torch.randint(len(index), (len(index), SWAPS), generator=generator).to(index.device)]
    theirs, limit = points.source_input[other], threshold[index][:, None]
    apart = (theirs - points.target_input[index][:, None]).norm(dim=2) > 2 * limit
    usable = (points.pair[other] != points.pair[index][:, None]) & apart
    near = ((theirs - predicted[index][:, None]).norm(dim=2) <= limit) & usable
    expected[index] = near.double().sum(1) / usable.double().sum(1).clamp_min(1)
    own_apart = (points.source_input - points.target_input).norm(dim=1) > 2 * threshold
    counted[index] = usable.any(1) & own_apart[index]
    return own, expected, counted


def _threshold(points: Keypoints, alpha: float) -> Float[Tensor, " n"]:
    """α times the longer side of the target's box, in the network's input."""
    box = points.target_box.view(-1, 2, 2) * points.target_scale[:, None]
    return alpha * (box[:, 1] - box[:, 0]).amax(1)


def attraction(matches: dict[str, Tensor], condition: int, group: str) -> Float[Tensor, " n"]:
    """Per keypoint: 1 if the match lies on the group, minus the group's share of the target grid."""
    g = GROUPS.index(group)
    return matches["landed_in"][condition, g].double() - matches["share"][g]


def masked_cells(matches: dict[str, Tensor], condition: int, group: str, random: bool) -> Int[Tensor, " n"]:
    """Matches with the group masked, or with as many random interior tokens masked."""
    return matches["without_random" if random else "without"][condition, MASKED.index(group)]
