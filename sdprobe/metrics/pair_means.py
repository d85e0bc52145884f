"""Means over keypoints of pairs, and the contribution of every picture to them.

Pairs share pictures, so the sampled units are pictures, and a pair belongs to both of its pictures. Pairs that share a picture
may depend on each other, in either role. With target pictures alone as units, tests reject far too often if source pictures
matter, too. Where pairs differ more than pictures do, intervals are too wide.

References:
    Fafchamps & Gubert (2007), Journal of Development Economics 83; Aronow, Samii & Assenova (2015), Political Analysis 23
    (variance of means over pairs). The factor for few pictures is our own choice.
"""

from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from sdprobe.tokens.batch import Keypoints


class PairMeans:
    """Means of per-keypoint values over pairs, and their pseudo-values over pictures.

    Args:
        points: their ``pair``, ``category``, ``source`` and ``target`` define which keypoints belong together.
    """

    def __init__(self, points: Keypoints) -> None:
        first = torch.ones_like(points.pair, dtype=torch.bool)
        first[1:] = points.pair[1:] != points.pair[:-1]
        self.pair = torch.cumsum(first, 0) - 1
        self.category = points.category[first]
        self.pictures = torch.stack([points.source[first], points.target[first]], 1)

    def means(self, average: str, value: Float[Tensor, "n m"], counted: Float[Tensor, "n m"]) -> Float[Tensor, " m"]:
        """m means of ``value`` over the keypoints where ``counted`` is 1; NaN if there is none.

        - ``point``: over all keypoints.
        - ``image``: over pairs, of the mean of each pair.
        - ``macro``: over categories, of the mean over the category's keypoints.
        - ``pair``: as ``macro``, with categories weighted by their number of pairs.
        """
        return self._terms(average, value, counted)[0]

    def pseudovalues(
        self, average: str, value: Float[Tensor, "n m"], counted: Float[Tensor, "n m"]
    ) -> Float[np.ndarray, "_pictures m"]:
        """Contribution of every picture to :meth:`means`, see :mod:`~.intervals`; NaN if none of its pairs counts.

        θ + n · f · Σ over the picture's pairs of the pair's deviation, with n pictures. Their mean is θ, and their squares
        around it add up to the variance of a mean over pairs that share pictures. f corrects for deviations from estimated
        means: it is (n − 1)/(n − 2); for ``macro`` and ``pair`` it is that of the picture's category times √(n/(n − 1)). All
        are NaN if there are fewer than 3 pictures, or for ``macro`` and ``pair``, fewer than 3 in a category.
        """
        mean, terms = self._terms(average, value, counted)
        zeros = torch.zeros(len(self._group), value.shape[1], dtype=torch.float64, device=terms.device)
        total, seen = zeros.clone(), zeros.clone()
        for side in (0, 1):
            total.index_add_(0, self._place[:, side], terms)
            seen.index_add_(0, self._place[:, side], (self._per_pair(counted) > 0).double())
        present = seen > 0
        apart = average in ("macro", "pair")
        group = self._group if apart else torch.zeros_like(self._group)
        size = zeros[: int(group.max()) + 1].index_add(0, group, present.double())
        factor = (size - 1) / (size - 2).clamp(min=1) * ((size / (size - 1).clamp(min=1)).sqrt() if apart else 1)
        few = ((size > 0) & (size < 3)).any(0)
        scaled = mean + total * present.sum(0) * factor[group]
        return scaled.masked_fill(~present | few, torch.nan).cpu().numpy()

    def touched(self, event: Shaped[Tensor, "n m"]) -> Int[Tensor, " m"]:
        """Number of pictures that have a keypoint where ``event`` is not 0."""
        pairs = (self._per_pair(event) > 0).double()
        seen = torch.zeros(len(self._group), event.shape[1], dtype=torch.float64, device=pairs.device)
        for side in (0, 1):
            seen.index_add_(0, self._place[:, side], pairs)
        return (seen > 0).sum(0)

    def _terms(
        self, average: str, value: Float[Tensor, "n m"], counted: Float[Tensor, "n m"]
    ) -> tuple[Float[Tensor, " m"], Float[Tensor, "p m"]]:
        """The means θ, and how much each pair changes them; these changes sum to 0 over pairs."""
        counts = self._per_pair(counted)
        sums = self._per_pair(value.masked_fill(counted == 0, 0.0) * counted)
        if average == "image":
            sums, counts = torch.where(counts > 0, sums / counts, 0.0), (counts > 0).double()
        if average in ("point", "image"):
            mean = sums.sum(0) / counts.sum(0)
            return mean, (sums - mean * counts) / counts.sum(0)
        members = [self.category == c for c in self.category.unique()]
        totals = torch.stack([counts[i].sum(0) for i in members])
        category_means = torch.stack([sums[i].sum(0) for i in members]) / totals
        size = torch.stack([i.sum() if average == "pair" else torch.ones_like(i.sum()) for i in members]).double()[:, None]
        share = torch.where(totals > 0, size, 0.0)
        share = share / share.sum(0)
        mean = (category_means.nan_to_num() * share).sum(0)
        terms = torch.zeros_like(sums)
        for k, i in enumerate(members):
            terms[i] = share[k] * (sums[i] - category_means[k].nan_to_num() * counts[i]) / totals[k].clamp(min=1)
        return mean.masked_fill(~(totals > 0).any(0), torch.nan), terms

    def _per_pair(self, value: Shaped[Tensor, "n m"]) -> Float[Tensor, "p m"]:
        zeros = torch.zeros(len(self.category), value.shape[1], dtype=torch.float64, device=value.device)
        return zeros.index_add(0, self.pair, value.double())

    @cached_property
    def _distinct(self) -> tuple[Int[Tensor, "_pictures 2"], Int[Tensor, " _sides"]]:
        """(category, picture) of every picture, category by category; the index of each picture of the pairs."""
        keys = torch.stack([self.category.repeat_interleave(2), self.pictures.flatten()], 1)
        distinct, index = keys.unique(dim=0, return_inverse=True)
        return distinct, index

    @property
    def _place(self) -> Int[Tensor, "p 2"]:
        """Both pictures of every pair."""
        return self._distinct[1].view(-1, 2)

    @property
    def _group(self) -> Int[Tensor, " _pictures"]:
        """The category of every picture, numbered from 0."""
        return self._distinct[0][:, 0].unique(return_inverse=True)[1]
