"""TokenNorms: which groups and which places have long tokens."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torchmetrics import Metric

from sdprobe.metrics.folds import FOLDS, Estimate, folds_of, leave_one_out, ratio, with_intervals
from sdprobe.metrics.group_similarity import require_side
from sdprobe.metrics.layer_tokens import TINY, LayerTokens
from sdprobe.metrics.position_variance import position_share


def relative_norms(norm: Float[Tensor, "b p"], member: Bool[Tensor, "b g p"]) -> Float[Tensor, "b g"]:
    """Mean token norm of a group / mean token norm of the same image; 1 is usual.

    NaN for a group without tokens, and for an image in which every token is 0.
    """
    chosen = member.double()
    group = torch.einsum("bgp,bp->bg", chosen, norm) / chosen.sum(-1)
    return group / norm.mean(-1, keepdim=True)


class TokenNorms(Metric):
    """Relative norm of token groups, mean norm map, and how far position fixes the norm.

    ``relative_norm/<group>`` (≥ 0, 1 where a group is like the rest): :func:`relative_norms` averaged over the images that
    have such tokens. ``norm_icc/all`` (≤ 1, about 0 where position does not matter): share of the variance of log‖x‖ that
    position explains, two-way with images as the other factor, absolute agreement, unclipped: :func:`position_share` of one
    channel. A norm of 0 is taken as the smallest normal float32, as the detection of high-norm tokens takes it.

    Images arrive in one order and form 20 folds of consecutive ones for the intervals; let crops of one photograph follow one
    another, so that few are split. On several devices ``images`` is the number that one device sees.

    Args:
        height, width: of the grid.
        groups: names of the token groups whose masks the tokens carry.
        images: number of images that will arrive.
        folds: number of groups of images.

    Raises:
        InputError: if the grid is smaller than 4×4, or more images arrive than ``images``.

    References:
        Shrout & Fleiss (1979), Psychological Bulletin 86, ICC(2,1); McGraw & Wong (1996), Psychological Methods 1, ICC(A,1).
    """

    full_state_update = False
    ratio: Tensor
    number: Tensor
    norm_map: Tensor
    log_map: Tensor
    log_squares: Tensor
    count: Tensor
    seen: Tensor

    def __init__(self, height: int, width: int, groups: Sequence[str], images: int, folds: int = FOLDS) -> None:
        super().__init__()
        require_side(height, width)
        self.groups, self.images, self.folds = tuple(groups), images, folds
        shapes = {
            "ratio": (folds, len(self.groups)),
            "number": (folds, len(self.groups)),
            "norm_map": (height, width),
            "log_map": (folds, height, width),
            "log_squares": (folds, 2),  # Σ ℓ², Σ_n (Σ_p ℓ)²
            "count": (folds,),
        }
        for name, shape in shapes.items():
            self.add_state(name, torch.zeros(shape, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("seen", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, layer: LayerTokens) -> None:
        """Add the next images, with a mask for every group."""
        fold = folds_of(int(self.seen), len(layer), self.images, self.folds, layer.norms.device, layer.rank)
        ratio = relative_norms(layer.norms, torch.stack([layer.masks[group] for group in self.groups], dim=1))
        self.ratio.index_add_(0, fold, ratio.nan_to_num())
        self.number.index_add_(0, fold, ratio.isfinite().double())
        self.norm_map += layer.norms.sum(0).view_as(self.norm_map)
        log = layer.norms.clamp_min(TINY).log()
        self.log_map.index_add_(0, fold, log.unflatten(1, (layer.height, layer.width)))
        self.log_squares.index_add_(0, fold, torch.stack([log.square().sum(1), log.sum(1).square()], dim=1))
        self.count.index_add_(0, fold, torch.ones_like(log[:, 0]))
        self.seen += len(layer)

    def _icc(self) -> Estimate:
        sums = (leave_one_out(state) for state in (self.log_map, self.log_squares, self.count))
        without = [position_share(table[None], squares, int(count)) for table, squares, count in zip(*sums, strict=True)]
        whole = position_share(self.log_map.sum(0)[None], self.log_squares.sum(0), images=int(self.seen))
        return whole, torch.stack(without)

    def estimates(self) -> dict[str, Estimate]:
        """``relative_norm/<group>`` and ``norm_icc/all`` of all images and without one fold each; of this device's images."""
        norms = {f"relative_norm/{group}": ratio(self.ratio[:, i], self.number[:, i]) for i, group in enumerate(self.groups)}
        return norms | {"norm_icc/all": self._icc()}

    def compute(self) -> dict[str, float]:
        """Relative norms and ``/n`` (images that have such tokens), ``norm_icc/all``; intervals from 40 images on."""
        measured = with_intervals(self.estimates(), self.seen)
        number = {f"relative_norm/{group}": int(self.number[:, i].sum()) for i, group in enumerate(self.groups)}
        return measured | {f"{key}/n": count for key, count in number.items() if key in measured}

    def maps(self) -> dict[str, Float[np.ndarray, "_h _w"]]:
        """``norm``: mean token norm over images, in the activations' units; NaN before any image; of this device's images."""
        with np.errstate(invalid="ignore"):
            return {"norm": self.norm_map.cpu().numpy() / int(self.seen)}
