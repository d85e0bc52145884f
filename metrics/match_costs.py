"""What position, corners and high-norm tokens cost a match: strata, position copies, attraction, harm.

All of them look at one way of matching in one layer, counted as ``ours`` at one α, by keypoint; :class:`PairMeans` averages.
"""

from collections.abc import Iterator

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from metrics.matches import GROUPS, MASKED
from tokens.keypoints import Keypoints

DISPLACEMENTS = {"near": (0.0, 0.15), "middle": (0.15, 0.35), "far": (0.35, 2.0)}  # shares of the input's side
EDGES = {"near": (-1.0, 1 / 16), "middle": (1 / 16, 3 / 16), "far": (3 / 16, 1.0)}  # of the target point to the input's edge
SWAPS = 32  # other pairs' source points that stand in for a keypoint's own


Strata = Iterator[tuple[str, Bool[Tensor, " n"]]]


def places(points: Keypoints) -> Strata:
    """``all``; by displacement of source and target; by distance of the target point from the edge."""
    yield "all", torch.ones_like(points.pair, dtype=torch.bool)
    moved = points.displacement
    for name, (low, high) in DISPLACEMENTS.items():
        yield f"displacement_{name}", (moved >= low) & (moved < high)
    target = points.target_input
    edge = torch.minimum(target, points.size - target).amin(1) / points.size
    for name, (low, high) in EDGES.items():
        yield f"edge_{name}", (edge >= low) & (edge < high)


def groups(matches: dict[str, Tensor], way: int) -> Strata:
    """By the token group of the source, of the true target and of the matched token."""
    for g, group in enumerate(GROUPS):
        yield f"source_{group}", matches["source_in"][g] > 0
        yield f"target_{group}", matches["target_in"][g] > 0
        yield f"predicted_{group}", matches["landed_in"][way, g] > 0


def copies(
    points: Keypoints, predicted: Float[Tensor, "n 2"], wrong: Bool[Tensor, " n"], alpha: float, seed: int
) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
    """Per keypoint: whether a wrong match lies within α · box of the *source* point; how often it would of other pairs' points.

    Distances are in the network's input, where a position code lives. The second is the mean over SWAPS source points of wrong
    keypoints of other pairs; 0 where a match is right.
    """
    box = (points.target_box.view(-1, 2, 2) * points.target_scale[:, None]).flatten(1)
    reach = alpha * (box[:, 2:] - box[:, :2]).amax(1)
    own = ((predicted - points.source_input).norm(dim=1) <= reach) & wrong
    index = wrong.nonzero()[:, 0]
    expected = torch.zeros(len(points), dtype=torch.float64, device=index.device)
    if len(index) < 2:
        return own.double(), expected
    generator = torch.Generator().manual_seed(seed)
    other = index[torch.randint(len(index), (len(index), SWAPS), generator=generator).to(index.device)]
    usable = points.pair[other] != points.pair[index][:, None]
    away = (points.source_input[other] - predicted[index][:, None]).norm(dim=2) <= reach[index][:, None]
    expected[index] = (away & usable).double().sum(1) / usable.double().sum(1).clamp_min(1)
    return own.double(), expected


def attraction(matches: dict[str, Tensor], way: int, group: str) -> Float[Tensor, " n"]:
    """Per keypoint: 1 if the match lies on the group, minus the group's share of the target grid."""
    g = GROUPS.index(group)
    return matches["landed_in"][way, g].double() - matches["share"][g]


def masked_cells(matches: dict[str, Tensor], way: int, group: str, random: bool) -> Int[Tensor, " n"]:
    """Matches with the group masked, or as many random interior tokens."""
    return matches["without_random" if random else "without"][way, MASKED.index(group)]
