"""CornerSimilarity: how alike each corner is to the same corner of other images, whatever they show."""

import torch
from jaxtyping import Float
from torch import Tensor
from torchmetrics import Metric

from sdprobe.metrics.folds import FOLDS, Estimate, folds_of, leave_one_out, with_interval
from sdprobe.metrics.layer_tokens import LayerTokens, inverse_norms

CORNERS = 4


class CornerSimilarity(Metric):
    """Mean centred cosine of the same corner in two different images, averaged over the 4 corners.

    With unit tokens t of one corner in N images, Σ_{n≠m} cos = ‖Σ_n t_n‖² − N, so pairs are never formed:
    (‖Σ_n t_n‖² − N) / (N (N − 1)), in [−1, 1], 0 where corners of different images have nothing in common. It sees corners that
    are one vector each in every image, also where the four differ. A token of norm 0 has no cosine and is left out; NaN where
    no corner has two tokens.

    Images form folds of consecutive ones, as in :class:`~.GroupSimilarity`; the sums of each fold are
    kept, for the value without it.

    Args:
        channels: C.
        images: number of images that will arrive.
        folds: number of groups of images.

    Raises:
        InputError: if more images arrive than ``images``.
    """

    full_state_update = False
    total: Tensor
    number: Tensor
    seen: Tensor

    def __init__(self, channels: int, images: int, folds: int = FOLDS) -> None:
        super().__init__()
        self.images, self.folds = images, folds
        self.add_state("total", torch.zeros(folds, CORNERS, channels, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("number", torch.zeros(folds, CORNERS, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("seen", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, layer: LayerTokens, group: str) -> None:
        """Add the next images; ``group`` names a mask of 4 tokens, the same in every image."""
        mask = layer.masks[group]
        assert (mask.sum(1) == CORNERS).all(), f"{group} is not {CORNERS} tokens in every image"
        fold = folds_of(int(self.seen), len(layer), self.images, self.folds, mask.device, layer.rank)
        shape = (len(layer), CORNERS, layer.centred.shape[2])
        inverse = inverse_norms(layer.centred_norms[mask]).view(shape[:2])
        unit = layer.centred[mask].view(shape) * inverse.unsqueeze(2)
        self.total.index_add_(0, fold, unit.double())
        self.number.index_add_(0, fold, (inverse > 0).double())
        self.seen += len(layer)

    def estimate(self) -> Estimate:
        """Over all images, and over all but those of one fold, for every fold."""
        without = _mean_cosine(leave_one_out(self.total), leave_one_out(self.number))
        return _mean_cosine(self.total.sum(0), self.number.sum(0)), without

    def compute(self) -> dict[str, float]:
        """``similarity_across/corner`` with its interval from 40 images on; nothing where no corner has two tokens."""
        return with_interval("similarity_across/corner", self.estimate(), self.seen, (-1, 1))


def _mean_cosine(total: Float[Tensor, "*n 4 c"], number: Float[Tensor, "*n 4"]) -> Float[Tensor, "*n"]:
    """Over the pairs of each corner, then over the corners that have pairs."""
    pairs = number * (number - 1)
    cosine = (total.square().sum(-1) - number) / torch.where(pairs > 0, pairs, torch.nan)
    return cosine.nanmean(-1)
