"""FlipAttribution: whether a decoded position comes from the network or from photographic composition. Uses rotated images."""

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from sdprobe.metrics.grid_accuracy import correct
from sdprobe.metrics.intervals import mean_interval, ratio_pseudovalues, with_ends
from sdprobe.metrics.sums import SumMetric

BINNED = 2  # column of correct()


def mirrored(position: Int[Tensor, "n 2"], height: int, width: int) -> Int[Tensor, "n 2"]:
    """Where a token's content lies after a rotation by 180°: (h − 1 − row, w − 1 − col).

    >>> mirrored(torch.tensor([[0, 1]]), 4, 4).tolist()
    [[3, 2]]
    """
    return torch.tensor([height - 1, width - 1], device=position.device) - position


class FlipAttribution(SumMetric):
    """A probe trained on upright images, tested on them and on the same images rotated by 180°.

    On rotated images, the binned accuracy is a_net against the network's coordinate, and a_cnt against the coordinate that the
    content had upright. On upright images it is a⁰, and m⁰ against the mirrored coordinate. Then

        A = (a_net − a_cnt) / (a⁰ − m⁰)        1: position comes from the network; −1: from the composition of photographs
        S = (a_net + a_cnt) / (a⁰ + m⁰)        the share that survives rotation

    Intervals are over photographs, upright and rotated together. Nothing is reported if the interval of a⁰ − m⁰ contains 0,
    because then there is no effect to attribute, or if fewer than 6 photographs were tested.

    Args:
        height, width: of the grid.
        photos: number of photographs; photo indices are below it.
    """

    right: Tensor
    count: Tensor

    def __init__(self, height: int, width: int, photos: int) -> None:
        super().__init__()
        self.height, self.width = height, width
        # (upright, rotated) × (own, mirrored coordinate)
        self.add_sums(right=(photos, 2, 2), count=(photos, 2))

    def update(
        self, predicted: Int[Tensor, "n 2"], target: Int[Tensor, "n 2"], photo: Int[Tensor, " n"], rotated: bool
    ) -> None:
        """Add tokens: predicted and network (row, col), and the photograph each comes from."""
        for k, wanted in enumerate((target, mirrored(target, self.height, self.width))):
            right = correct(predicted, wanted, self.height, self.width)[:, BINNED]
            self.right[:, int(rotated), k].index_add_(0, photo, right)
        self.count[:, int(rotated)].index_add_(0, photo, torch.ones_like(right))

    def compute(self) -> dict[str, float]:
        """``flip_attribution/all``, ``flip_surviving/all`` with ``/ci_low`` and ``/ci_high``; nothing without an effect."""
        right, count = self.right.cpu().numpy(), self.count.cpu().numpy()
        seen = (count > 0).all(1)
        if not seen.any():
            return {}
        # per photograph, relative to its number of upright tokens, so that both sets have the same weight
        right = right[seen] * (count[seen, :1] / count[seen])[..., None]
        differences, sums = right[..., 0] - right[..., 1], right.sum(-1)
        low, _ = mean_interval(ratio_pseudovalues(differences[:, 0], count[seen, 0]))
        if not low > 0:
            return {}
        values: dict[str, float] = {}
        for name, parts in (("flip_attribution", differences), ("flip_surviving", sums)):
            values |= _ratio(f"{name}/all", parts[:, 1], parts[:, 0])
        return values


def _ratio(key: str, above: Float[np.ndarray, " photos"], below: Float[np.ndarray, " photos"]) -> dict[str, float]:
    """Σ above / Σ below, whose denominators may be negative for single photographs."""
    value = above.sum() / below.sum()
    return with_ends(key, value, *mean_interval(value + (above - value * below) / below.mean()))
