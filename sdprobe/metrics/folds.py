"""Folds: sums of a statistic in 20 disjoint groups of consecutive images, so that each fold can be left out.

Intervals are those of the jackknife. A statistic must be smooth in the images, but need not be linear. :class:`FoldMetric` is
the base class of such statistics.

References:
    Efron & Tibshirani (1993), An Introduction to the Bootstrap, chapter 11.
"""

from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from sdprobe.metrics.intervals import jackknife_pseudovalues, mean_interval, with_ends
from sdprobe.metrics.sums import SumMetric
from sdprobe.utilities import expect
from sdprobe.utilities.errors import InputError

FOLDS = 20
PER_FOLD = 2  # images at least

Estimate = tuple[Float[Tensor, ""], Float[Tensor, " folds"]]  # from all images, and without each fold


def folds_of(
    first: int,
    batch: int,
    images: int,
    folds: int = FOLDS,
    device: torch.device | str = "cpu",
    rank: Int[Tensor, " batch"] | None = None,
) -> Int[Tensor, " batch"]:
    """Fold ⌊k · folds / images⌋ of the images number k = first … first + batch − 1. Sizes differ by at most one.

    ``rank`` gives the numbers k if images arrive out of order.

    Raises:
        InputError: more images arrive than ``images``.
    """
    if first + batch > images:
        raise InputError(
            f"Expected images to be the number of images that arrive, but got {images}, and at least {first + batch} arrived. "
            "Give the statistic the length of the stream."
        )
    number = torch.arange(first, first + batch, device=device) if rank is None else rank.to(device)
    return number * folds // images


def leave_one_out(sums: Shaped[Tensor, "folds *k"]) -> Shaped[Tensor, "folds *k"]:
    """Sums over all folds except each one in turn."""
    return sums.sum(0) - sums


def ratio(total: Float[Tensor, " folds"], number: Float[Tensor, " folds"]) -> Estimate:
    """Σ total / Σ number over all folds, and without each fold."""
    return total.sum() / number.sum(), leave_one_out(total) / leave_one_out(number)


def estimates_of(values: Callable[..., dict[str, Tensor]], *sums: Shaped[Tensor, "folds ..."]) -> dict[str, Estimate]:
    """A function of sums: its values over all folds, and without each fold (then its sums have a leading axis)."""
    whole, without = values(*(state.sum(0) for state in sums)), values(*(leave_one_out(state) for state in sums))
    return {key: (whole[key], without[key]) for key in whole}


def pseudovalues(estimate: Estimate) -> Float[np.ndarray, " folds"]:
    """Contribution of every fold to an estimate, see :func:`~sdprobe.metrics.intervals.jackknife_pseudovalues`."""
    value, without = (part.detach().double().cpu().numpy() for part in estimate)
    return jackknife_pseudovalues(float(value), without)


def with_interval(
    key: str, estimate: Estimate, images: Int[Tensor, ""] | int, bounds: tuple[float, float] = (-np.inf, np.inf)
) -> dict[str, float]:
    """``key`` with ``/ci_low`` and ``/ci_high``, clipped to ``bounds``. Ends need two images per fold (40 images).

    Empty where the value is not finite.
    """
    value, without = estimate
    low, high = mean_interval(pseudovalues(estimate)) if images >= PER_FOLD * len(without) else (np.nan, np.nan)
    return with_ends(key, value.item(), np.clip(low, *bounds).item(), np.clip(high, *bounds).item())


def with_intervals(
    estimates: Mapping[str, Estimate], images: Int[Tensor, ""] | int, bounds: tuple[float, float] = (-np.inf, np.inf)
) -> dict[str, float]:
    """:func:`with_interval` of every estimate."""
    report: dict[str, float] = {}
    for key, estimate in estimates.items():
        report |= with_interval(key, estimate, images, bounds)
    return report


def require_images(images: int, folds: int = FOLDS) -> None:
    """Check that there are enough images for an interval.

    Raises:
        InputError: there are fewer than two for each fold.
    """
    expect.at_least(f"images for an interval over {folds} groups of images", images, PER_FOLD * folds)


class FoldMetric(SumMetric):
    """A statistic of images, with sums for every fold.

    Images arrive in one order, and folds are groups of consecutive images. Let crops of one photograph follow one another, so
    that few photographs are split between folds. On several devices ``images`` is the number that one device sees.

    Args:
        images: number of images that will arrive.
        folds: number of groups of images.
        shapes: sums that are stored per fold, by name.

    Raises:
        InputError: in ``update``, if more images arrive than ``images``.
    """

    bounds: ClassVar[tuple[float, float]] = (-np.inf, np.inf)  # smallest and largest possible value
    seen: Tensor

    def __init__(self, images: int, folds: int, **shapes: tuple[int, ...]) -> None:
        super().__init__()
        self.images, self.folds = images, folds
        self.add_sums(**{name: (folds, *shape) for name, shape in shapes.items()})
        self.add_sums(torch.int64, seen=())

    def _next_folds(
        self, batch: int, device: torch.device | str = "cpu", rank: Int[Tensor, " batch"] | None = None
    ) -> Int[Tensor, " batch"]:
        """Folds of the next images, see :func:`folds_of`; they count as seen."""
        fold = folds_of(int(self.seen), batch, self.images, self.folds, device, rank)
        self.seen += batch
        return fold

    def _add(self, rank: Int[Tensor, " b"] | None = None, **values: Float[Tensor, "b ..."]) -> None:
        """Add values of the next images to the sums of their folds."""
        first = next(iter(values.values()))
        fold = self._next_folds(len(first), first.device, rank)
        for name, value in values.items():
            getattr(self, name).index_add_(0, fold, value)

    @abstractmethod
    def estimates(self) -> dict[str, Estimate]:
        """Every value of all images and without each fold, of the images on this device; NaN where undefined."""

    def compute(self) -> dict[str, float]:
        """The values that are defined. ``/ci_low`` and ``/ci_high`` need two images per fold (40 images)."""
        return with_intervals(self.estimates(), self.seen, self.bounds)


class FoldMeans(FoldMetric):
    """A statistic that consists of means over images."""

    @abstractmethod
    def _means(self) -> dict[str, tuple[Float[Tensor, " folds"], Float[Tensor, " folds"]]]:
        """Key → sums and counts of the averaged values, per fold."""

    def estimates(self) -> dict[str, Estimate]:
        """The means of all images and without each fold, of the images on this device; NaN where nothing is averaged."""
        return {key: ratio(total, number) for key, (total, number) in self._means().items()}

    def compute(self) -> dict[str, float]:
        """The values, their intervals (from 40 images on), and ``/n``: the number of averaged values."""
        report = super().compute()
        return report | {f"{key}/n": int(number.sum()) for key, (_, number) in self._means().items() if key in report}
