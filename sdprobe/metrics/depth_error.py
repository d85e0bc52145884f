"""DepthError: how far predicted depth is off, per token group, with intervals over photographs."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torchmetrics import Metric

from sdprobe.metrics.gains import metric_gains
from sdprobe.metrics.intervals import Ends, positive_interval, ratio_pseudovalues, share_interval, with_ends

KINDS = ("rmse", "abs_rel", "delta1", "rmse_per_image")
NEAREST = 1e-3  # a linear map may predict depth below zero, of which no ratio can be taken
RATIO = 1.25


def errors(predicted: Float[Tensor, " n"], target: Float[Tensor, " n"]) -> Float[Tensor, "n 3"]:
    """Per token, in float64: squared error; |ŷ − y| / y; whether max(ŷ / y, y / ŷ) < 1.25.

    The last two raise predictions to at least 0.001. ``target`` is positive.
    """
    predicted, target = predicted.double(), target.double()
    positive = predicted.clamp_min(NEAREST)
    near = torch.maximum(positive / target, target / positive) < RATIO
    return torch.stack([(predicted - target).square(), (positive - target).abs() / target, near.double()], dim=1)


class DepthError(Metric):
    """Root mean squared error (in the unit of depth), mean relative error and share of tokens within a ratio of 1.25.

    ``rmse`` is the root over all tokens; ``rmse_per_image`` the mean over images of each image's root, as NYU's tables average
    [Eigen et al. (2014), arXiv:1406.2283]. States are sums per photograph and token group, and over the grid, never tokens.
    Tokens whose target is NaN are left out.

    Args:
        height, width: of the grid.
        groups: names of the token groups whose masks :meth:`update` receives; ``all`` is always there.
        photos: number of photographs; photo indices lie below it.
    """

    full_state_update = False
    sums: Tensor
    count: Tensor
    image_sums: Tensor
    image_count: Tensor
    map_sum: Tensor
    map_count: Tensor

    def __init__(self, height: int, width: int, groups: Sequence[str], photos: int) -> None:
        super().__init__()
        self.groups = ("all", *groups)
        zeros = {
            "sums": (photos, len(self.groups), 3),
            "count": (photos, len(self.groups)),
            "image_sums": (photos, len(self.groups)),
            "image_count": (photos, len(self.groups)),
            "map_sum": (height, width),
            "map_count": (height, width),
        }
        for name, shape in zeros.items():
            self.add_state(name, torch.zeros(shape, dtype=torch.float64), dist_reduce_fx="sum")

    def update(
        self,
        predicted: Float[Tensor, " n"],
        target: Float[Tensor, " n"],
        where: Int[Tensor, "n 2"],
        masks: dict[str, Bool[Tensor, " n"]],
        photo: Int[Tensor, " n"],
        image: Int[Tensor, " n"],
    ) -> None:
        """Add all tokens of some images: predicted and true depth, (row, col), group masks, photograph and image of each."""
        known = target.isfinite()
        number, first = _numbered(image)
        for i, group in enumerate(self.groups):
            chosen = known if group == "all" else known & masks[group]
            values = errors(predicted[chosen], target[chosen])
            self.sums[:, i].index_add_(0, photo[chosen], values)
            self.count[:, i].index_add_(0, photo[chosen], torch.ones_like(values[:, 0]))
            squares, tokens = torch.zeros(2, len(first), dtype=torch.float64, device=image.device)
            squares.index_add_(0, number[chosen], values[:, 0])
            tokens.index_add_(0, number[chosen], torch.ones_like(values[:, 0]))
            self.image_sums[:, i].index_add_(0, photo[first], (squares / tokens.clamp(min=1)).sqrt())
            self.image_count[:, i].index_add_(0, photo[first], (tokens > 0).double())
        row, col = where[known].unbind(1)
        cell = row * self.map_sum.shape[1] + col
        off = (predicted[known].double() - target[known].double()).abs()
        self.map_sum.view(-1).index_add_(0, cell, off)
        self.map_count.view(-1).index_add_(0, cell, torch.ones_like(off))

    def pseudovalues(self) -> dict[str, Float[np.ndarray, " photos"]]:
        """``<kind>/<group>`` → what every photograph contributes, see :mod:`~.intervals`; several processes call this
        together. Groups without tokens have no key."""
        with self.sync_context():
            values = self._values()
        present = [i for i in range(len(self.groups)) if np.isfinite(values[:, i]).any()]
        return {f"{kind}/{self.groups[i]}": values[:, i, k] for i in present for k, kind in enumerate(KINDS)}

    def compute(self) -> dict[str, float]:
        """``<kind>/<group>`` with ``/ci_low``, ``/ci_high`` and ``/n`` (tokens); groups without tokens have no key."""
        values, count = self._values(), self.count.sum(0).tolist()
        found: dict[str, float] = {}
        for k, kind in enumerate(KINDS):
            low, high = _interval(kind, values[:, :, k], self.count.cpu().numpy())
            for i, group in enumerate(self.groups):
                if count[i]:
                    key = f"{kind}/{group}"
                    found |= with_ends(key, np.nanmean(values[:, i, k]), low[i], high[i]) | {f"{key}/n": int(count[i])}
        return found

    def gain(self, other: "DepthError") -> dict[str, float]:
        """``<kind>/<group>`` of this probe minus another's on the same tokens, see :func:`~.metric_gains`."""
        return metric_gains(self, other)

    def _values(self) -> Float[np.ndarray, "photos groups kinds"]:
        """Pseudo-values of every kind. A root has those of θ + (mean square − θ²) / (2 θ)."""
        sums, count = self.sums.cpu().numpy(), self.count.cpu().numpy()[..., None]
        means = ratio_pseudovalues(sums, np.broadcast_to(count, sums.shape))
        by_image = ratio_pseudovalues(self.image_sums.cpu().numpy(), self.image_count.cpu().numpy())
        with np.errstate(invalid="ignore", divide="ignore"):
            mean = sums[..., 0].sum(0) / count[..., 0].sum(0)
            root = np.sqrt(mean) + (means[..., 0] - mean) / np.where(mean > 0, 2 * np.sqrt(mean), 1)
        return np.stack([root, means[..., 1], means[..., 2], by_image], axis=-1)

    def maps(self) -> dict[str, Float[np.ndarray, "_h _w"]]:
        """``error``: mean of |ŷ − y| over the grid, NaN where no token with a depth was seen.

        All processes call this together.
        """
        with self.sync_context(), np.errstate(invalid="ignore"):
            return {"error": self.map_sum.cpu().numpy() / self.map_count.cpu().numpy()}


def _interval(kind: str, values: Float[np.ndarray, "photos k"], count: Float[np.ndarray, "photos k"]) -> Ends:
    return share_interval(values, count) if kind == "delta1" else positive_interval(values, count)


def _numbered(image: Int[Tensor, " n"]) -> tuple[Int[Tensor, " n"], Int[Tensor, " _k"]]:
    """(number of every token's image among those that are here, the first token of each)."""
    images, number = image.unique(return_inverse=True)
    first = torch.full_like(images, len(image)).scatter_reduce(0, number, torch.arange(len(image), device=image.device), "amin")
    return number, first
