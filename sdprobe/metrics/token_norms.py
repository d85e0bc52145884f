"""TokenNorms: which groups and which positions have tokens of large norm."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sdprobe.metrics.folds import FOLDS, Estimate, FoldMeans, leave_one_out
from sdprobe.metrics.group_similarity import require_side
from sdprobe.metrics.layer_tokens import TINY, LayerTokens
from sdprobe.metrics.position_variance import position_share


def relative_norms(norm: Float[Tensor, "b p"], member: Bool[Tensor, "b g p"]) -> Float[Tensor, "b g"]:
    """Mean token norm of a group / mean token norm of the same image.

    NaN for a group without tokens, and for an image in which every token is 0.
    """
    chosen = member.double()
    group = torch.einsum("bgp,bp->bg", chosen, norm) / chosen.sum(-1)
    return group / norm.mean(-1, keepdim=True)


class TokenNorms(FoldMeans):
    """Relative norm of token groups, mean norm map, and how far position determines the norm.

    ``relative_norm/<group>`` (≥ 0, 1 if a group is like the rest): :func:`relative_norms` averaged over the images that
    have such tokens. ``norm_icc/all`` (≤ 1, about 0 if position does not matter): share of the variance of log‖x‖ that
    position explains, two-way with images as the other factor, absolute agreement, unclipped: :func:`position_share` of one
    channel. A norm of 0 counts as the smallest normal float32, as in the detection of high-norm tokens.

    Args:
        height, width: of the grid.
        groups: names of the token groups whose masks the tokens carry.
        images, folds: see :class:`~.FoldMetric`.

    Raises:
        InputError: the grid is smaller than 4×4, or more images arrive than ``images``.

    References:
        Shrout & Fleiss (1979), Psychological Bulletin 86, ICC(2,1); McGraw & Wong (1996), Psychological Methods 1, ICC(A,1).
    """

    ratio: Tensor
    number: Tensor
    norm_map: Tensor
    log_map: Tensor
    log_squares: Tensor
    count: Tensor

    def __init__(self, height: int, width: int, groups: Sequence[str], images: int, folds: int = FOLDS) -> None:
        require_side(height, width)
        # log_squares: Σ ℓ², Σ_n (Σ_p ℓ)²
        groups = tuple(groups)
        shapes = {"log_map": (height, width), "log_squares": (2,), "count": ()}
        super().__init__(images, folds, ratio=(len(groups),), number=(len(groups),), **shapes)
        self.add_sums(norm_map=(height, width))
        self.groups = groups

    def update(self, layer: LayerTokens) -> None:
        """Add the next images, with a mask for every group."""
        ratio = relative_norms(layer.norms, torch.stack([layer.masks[group] for group in self.groups], dim=1))
        log = layer.norms.clamp_min(TINY).log()
        self._add(
            layer.rank,
            ratio=ratio.nan_to_num(),
            number=ratio.isfinite().double(),
            log_map=log.unflatten(1, (layer.height, layer.width)),
            log_squares=torch.stack([log.square().sum(1), log.sum(1).square()], dim=1),
            count=torch.ones_like(log[:, 0]),
        )
        self.norm_map += layer.norms.sum(0).view_as(self.norm_map)

    def _means(self) -> dict[str, tuple[Tensor, Tensor]]:
        return {f"relative_norm/{group}": (self.ratio[:, i], self.number[:, i]) for i, group in enumerate(self.groups)}

    def estimates(self) -> dict[str, Estimate]:
        """``relative_norm/<group>`` and ``norm_icc/all`` of all images and without each fold, of the images on this device."""
        return super().estimates() | {"norm_icc/all": self._icc()}

    def _icc(self) -> Estimate:
        sums = (leave_one_out(state) for state in (self.log_map, self.log_squares, self.count))
        without = [position_share(table[None], squares, int(count)) for table, squares, count in zip(*sums, strict=True)]
        whole = position_share(self.log_map.sum(0)[None], self.log_squares.sum(0), images=int(self.seen))
        return whole, torch.stack(without)

    def maps(self) -> dict[str, Float[np.ndarray, "_h _w"]]:
        """``norm``: mean token norm over the images on this device, in the activations' units; NaN before the first image."""
        with np.errstate(invalid="ignore"):
            return {"norm": self.norm_map.cpu().numpy() / int(self.seen)}
