"""Means over keypoints of pairs, and intervals over resampled pictures.

Pairs share pictures, so pictures are resampled, within each category: a pair counts as often as the product of its two
pictures' draws. This is conservative where pairs differ more than pictures do.

Reference: Owen (2007), The pigeonhole bootstrap, arXiv 0712.1111.
"""

from collections.abc import Iterator
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

from metrics.gains import two_sided
from tokens.keypoints import Keypoints

RESAMPLES = 2000
FEWEST = 5  # pictures that tell anything about how pictures differ
CHUNK = 250  # resamples at a time: bounds memory


class PairMeans:
    """Means of per-keypoint values over pairs, with 95 % intervals.

    Args:
        points: whose ``pair``, ``category``, ``source`` and ``target`` say what belongs together.
        seed: of the resampling.
    """

    def __init__(self, points: Keypoints, seed: int = 0) -> None:
        first = torch.ones_like(points.pair, dtype=torch.bool)
        first[1:] = points.pair[1:] != points.pair[:-1]
        self.pair = torch.cumsum(first, 0) - 1
        self.category = points.category[first]
        self.pictures = torch.stack([points.source[first], points.target[first]], 1)
        self.seed = seed

    def means(self, average: str, value: Float[Tensor, "n m"], counted: Float[Tensor, "n m"]) -> Float[Tensor, " m"]:
        """m means of ``value`` over the keypoints where ``counted`` is 1; NaN where there is none.

        - ``point``: over all keypoints.
        - ``image``: over pairs, of each pair's mean.
        - ``macro``: over categories, of the mean over the category's keypoints.
        - ``pair``: the same, categories weighted by their pairs.
        """
        sums, counts = self._per_pair(average, value, counted)
        everyone = torch.ones(1, len(self.category), dtype=torch.float64, device=sums.device)
        return self._mean(average, sums, counts, everyone)[0]

    def intervals(
        self, average: str, value: Float[Tensor, "n m"], counted: Float[Tensor, "n m"]
    ) -> tuple[Float[Tensor, " m"], Float[Tensor, " m"]]:
        """2.5 and 97.5 percentiles of :meth:`means` over resampled pictures.

        NaN where fewer than FEWEST pictures count, or fewer than half of the resamples have a value.
        """
        return self.tested(average, value, counted)[:2]

    def tested(
        self, average: str, value: Float[Tensor, "n m"], counted: Float[Tensor, "n m"]
    ) -> tuple[Float[Tensor, " m"], Float[Tensor, " m"], Float[Tensor, " m"]]:
        """:meth:`intervals`, and the p-value of a mean of 0, see :func:`~metrics.gains.two_sided`; NaN in the same places."""
        sums, counts = self._per_pair(average, value, counted)
        drawn = torch.cat([self._mean(average, sums, counts, weights) for weights in self._weights()])
        bounds = torch.nanquantile(drawn, drawn.new_tensor([0.025, 0.975]), dim=0)
        bounds[:, (drawn.isnan().double().mean(0) > 0.5) | (self._counted_pictures(counts) < FEWEST)] = torch.nan
        p = torch.from_numpy(two_sided(drawn.cpu().numpy())).to(bounds).masked_fill(bounds[0].isnan(), torch.nan)
        return bounds[0], bounds[1], p

    def _counted_pictures(self, counts: Float[Tensor, "p m"]) -> Int[Tensor, " m"]:
        """Distinct pictures of the pairs that count."""
        index, sizes = self._places()
        seen = torch.zeros(sum(sizes), counts.shape[1], dtype=torch.float64, device=counts.device)
        for side in (0, 1):
            seen.index_add_(0, index[:, side], (counts > 0).double())
        return (seen > 0).sum(0)

    def _per_pair(self, average: str, value: Tensor, counted: Tensor) -> tuple[Float[Tensor, "p m"], Float[Tensor, "p m"]]:
        pairs = len(self.category)
        zeros = torch.zeros(pairs, value.shape[1], dtype=torch.float64, device=value.device)
        counts = zeros.index_add(0, self.pair, counted.double())
        sums = zeros.index_add(0, self.pair, (value.masked_fill(counted == 0, 0.0) * counted).double())
        if average != "image":
            return sums, counts
        return torch.where(counts > 0, sums / counts, 0.0), (counts > 0).double()

    def _mean(self, average: str, sums: Tensor, counts: Tensor, weights: Float[Tensor, "b p"]) -> Float[Tensor, "b m"]:
        if average in ("point", "image"):
            return (weights @ sums) / (weights @ counts)
        members = [(self.category == c).nonzero()[:, 0] for c in self.category.unique()]
        each = torch.stack([(weights[:, i] @ sums[i]) / (weights[:, i] @ counts[i]) for i in members])  # (K, b, m)
        share = torch.stack([weights[:, i].sum(1) for i in members])[:, :, None].expand_as(each)
        share = torch.where(each.isnan(), 0.0, torch.ones_like(each) if average == "macro" else share)
        return (each.nan_to_num() * share).sum(0) / share.sum(0)

    def _weights(self) -> Iterator[Float[Tensor, "b p"]]:
        """How often every pair counts in each resample, in chunks; the draw depends on the pictures' numbers alone."""
        for start in range(0, RESAMPLES, CHUNK):
            yield self._drawn[start : start + CHUNK].double()

    @cached_property
    def _drawn(self) -> Float[Tensor, "b p"]:
        """All weights in single precision, which holds these whole numbers exactly: 100 MB for 12,000 pairs."""
        generator = torch.Generator().manual_seed(self.seed)
        index, counts = self._places()
        draws = torch.cat([_multinomial(RESAMPLES, count, generator) for count in counts], 1).to(index.device)
        return torch.cat([part[:, index].prod(2).float() for part in draws.split(CHUNK)])

    def _places(self) -> tuple[Int[Tensor, "p 2"], list[int]]:
        """Both pictures of every pair, numbered category by category; pictures per category."""
        keys = torch.stack([self.category.repeat_interleave(2), self.pictures.flatten()], 1)
        distinct, index = keys.unique(dim=0, return_inverse=True)
        return index.view(-1, 2), distinct[:, 0].unique(return_counts=True)[1].tolist()


def _multinomial(rows: int, count: int, generator: torch.Generator) -> Float[Tensor, "{rows} {count}"]:
    """How often each of ``count`` items is among ``count`` draws with replacement."""
    drawn = torch.randint(count, (rows, count), generator=generator)
    return torch.zeros(rows, count, dtype=torch.float64).scatter_add_(1, drawn, torch.ones(rows, count, dtype=torch.float64))
