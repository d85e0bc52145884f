"""CornerSimilarity: how similar each corner is to the same corner of other images, independent of what they show."""

import torch
from jaxtyping import Float
from torch import Tensor

from sdprobe.metrics.folds import FOLDS, Estimate, FoldMetric, estimates_of
from sdprobe.metrics.layer_tokens import LayerTokens, inverse_norms

CORNERS = 4


class CornerSimilarity(FoldMetric):
    """Mean centred cosine of the same corner in two different images, averaged over the 4 corners.

    With unit tokens t of one corner in N images, Σ_{n≠m} cos = ‖Σ_n t_n‖² − N, so pairs are never formed: (‖Σ_n t_n‖² − N) /
    (N (N − 1)), in [−1, 1]. It is 0 where corners of different images have nothing in common. It also detects corners that are
    one vector each in every image while the four differ. A token of norm 0 has no cosine and is left out. The value is NaN if
    no corner has two tokens.

    Args:
        channels: C.
        images, folds: see :class:`~.FoldMetric`.
    """

    bounds = (-1, 1)
    total: Tensor
    number: Tensor

    def __init__(self, channels: int, images: int, folds: int = FOLDS) -> None:
        super().__init__(images, folds, total=(CORNERS, channels), number=(CORNERS,))

    def update(self, layer: LayerTokens, group: str) -> None:
        """Add the next images; ``group`` names a mask of 4 tokens, the same in every image."""
        mask = layer.masks[group]
        assert (mask.sum(1) == CORNERS).all(), f"{group} is not {CORNERS} tokens in every image"
        shape = (len(layer), CORNERS, layer.centred.shape[2])
        inverse = inverse_norms(layer.centred_norms[mask]).view(shape[:2])
        unit = layer.centred[mask].view(shape) * inverse.unsqueeze(2)
        self._add(layer.rank, total=unit.double(), number=(inverse > 0).double())

    def estimates(self) -> dict[str, Estimate]:
        """``similarity_across/corner`` of all images and without each fold, of the images on this device."""
        return estimates_of(self._values, self.total, self.number)

    @staticmethod
    def _values(total: Float[Tensor, "*n 4 c"], number: Float[Tensor, "*n 4"]) -> dict[str, Tensor]:
        """Average over the pairs of each corner, then over the corners that have pairs."""
        pairs = number * (number - 1)
        cosine = (total.square().sum(-1) - number) / torch.where(pairs > 0, pairs, torch.nan)
        return {"similarity_across/corner": cosine.nanmean(-1)}
