"""DepthError: error of predicted depth per token group, with intervals over photographs."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sdprobe.metrics.clusters import ClusterMetric, column_means
from sdprobe.metrics.intervals import positive_interval, ratio_pseudovalues, share_interval

KINDS = ("rmse", "abs_rel", "delta1", "rmse_per_image")
NEAREST = 1e-3  # a linear map may predict depth below zero, for which ratios have no meaning
RATIO = 1.25


def errors(predicted: Float[Tensor, " n"], target: Float[Tensor, " n"]) -> Float[Tensor, "n 3"]:
    """Per token, in float64: squared error; |ŷ − y| / y; whether max(ŷ / y, y / ŷ) < 1.25.

    The last two raise predictions to at least 0.001. ``target`` is positive.
    """
    predicted, target = predicted.double(), target.double()
    positive = predicted.clamp_min(NEAREST)
    near = torch.maximum(positive / target, target / positive) < RATIO
    return torch.stack([(predicted - target).square(), (positive - target).abs() / target, near.double()], dim=1)


class DepthError(ClusterMetric):
    """Root mean squared error (in the unit of depth), mean relative error, and share of tokens within a ratio of 1.25.

    ``rmse`` is the root over all tokens. ``rmse_per_image`` is the mean over images of the root of each image, the average in
    the tables of NYU [Eigen et al. (2014), arXiv:1406.2283]. Tokens whose target is NaN are left out.

    Args:
        height, width: of the grid.
        groups, photos: see :class:`ClusterMetric`.
    """

    kinds = KINDS
    sums: Tensor
    image_sums: Tensor
    image_count: Tensor
    map_sum: Tensor
    map_count: Tensor

    def __init__(self, height: int, width: int, groups: Sequence[str], photos: int) -> None:
        super().__init__(groups, photos, sums=(3,), image_sums=(), image_count=())
        self.add_sums(map_sum=(height, width), map_count=(height, width))

    def update(
        self,
        predicted: Float[Tensor, " n"],
        target: Float[Tensor, " n"],
        positions: Int[Tensor, "n 2"],
        masks: dict[str, Bool[Tensor, " n"]],
        photo: Int[Tensor, " n"],
        image: Int[Tensor, " n"],
    ) -> None:
        """Add all tokens of some images: predicted and true depth, (row, col), group masks, photograph and image of each."""
        known = target.isfinite()
        predicted, target, positions, photo, image = (values[known] for values in (predicted, target, positions, photo, image))
        masks = {group: mask[known] for group, mask in masks.items()}
        values = errors(predicted, target)
        self._add(photo, masks, sums=values)
        number, first = _numbered(image)
        for i, group in enumerate(self.groups):
            members = slice(None) if group == "all" else masks[group]
            squares, tokens = torch.zeros(2, len(first), dtype=torch.float64, device=image.device)
            squares.index_add_(0, number[members], values[members, 0])
            tokens.index_add_(0, number[members], torch.ones_like(values[members, 0]))
            self.image_sums[:, i].index_add_(0, photo[first], (squares / tokens.clamp(min=1)).sqrt())
            self.image_count[:, i].index_add_(0, photo[first], (tokens > 0).double())
        cell, off = positions[:, 0] * self.map_sum.shape[1] + positions[:, 1], (predicted.double() - target.double()).abs()
        self.map_sum.view(-1).index_add_(0, cell, off)
        self.map_count.view(-1).index_add_(0, cell, torch.ones_like(off))

    def _pseudovalues(self) -> Float[np.ndarray, "photos groups kinds"]:
        """Those of a root are θ + (mean square − θ²) / (2 θ)."""
        sums, count = self.sums.cpu().numpy(), self.count.cpu().numpy()[..., None]
        means = ratio_pseudovalues(sums, np.broadcast_to(count, sums.shape))
        by_image = ratio_pseudovalues(self.image_sums.cpu().numpy(), self.image_count.cpu().numpy())
        with np.errstate(invalid="ignore", divide="ignore"):
            mean = sums[..., 0].sum(0) / count[..., 0].sum(0)
            root = np.sqrt(mean) + (means[..., 0] - mean) / np.where(mean > 0, 2 * np.sqrt(mean), 1)
        return np.stack([root, means[..., 1], means[..., 2], by_image], axis=-1)

    def _intervals(self, values: Float[np.ndarray, "photos groups kinds"]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        count = self.count.cpu().numpy()
        intervals = [share_interval if kind == "delta1" else positive_interval for kind in KINDS]
        ends = [interval(values[..., k], count) for k, interval in enumerate(intervals)]
        return column_means(values), *np.stack(ends, axis=-1)

    def maps(self) -> dict[str, Float[np.ndarray, "_h _w"]]:
        """``error``: mean of |ŷ − y| over the grid, NaN where no token with a depth was seen.

        All processes call this together.
        """
        with self.sync_context(should_sync=self.sync_on_compute), np.errstate(invalid="ignore"):
            return {"error": self.map_sum.cpu().numpy() / self.map_count.cpu().numpy()}


def _numbered(image: Int[Tensor, " n"]) -> tuple[Int[Tensor, " n"], Int[Tensor, " _k"]]:
    """(index of the image of every token among the images present, first token of each image)."""
    images, number = image.unique(return_inverse=True)
    first = torch.full_like(images, len(image)).scatter_reduce(0, number, torch.arange(len(image), device=image.device), "amin")
    return number, first
