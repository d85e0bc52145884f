"""Folds: statistics keep their sums in 20 disjoint runs of consecutive images, so that one fold can be left out at a time.

Intervals are the jackknife's: a statistic need not be linear in the images, only smooth.

References:
    Efron & Tibshirani (1993), An Introduction to the Bootstrap, chapter 11.
"""

from collections.abc import Mapping

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from sdprobe.metrics.intervals import jackknife_pseudovalues, mean_interval, with_ends
from sdprobe.utilities import expect
from sdprobe.utilities.errors import InputError

FOLDS = 20
PER_FOLD = 2  # images at least

Estimate = tuple[Float[Tensor, ""], Float[Tensor, " folds"]]  # from all images, and without one fold each


def folds_of(
    first: int,
    batch: int,
    images: int,
    folds: int = FOLDS,
    device: torch.device | str = "cpu",
    rank: Int[Tensor, " batch"] | None = None,
) -> Int[Tensor, " batch"]:
    """Fold ⌊k · folds / images⌋ of the images number k = first … first + batch − 1; sizes differ by at most one.

    ``rank`` gives the numbers k where images arrive out of order.

    Raises:
        InputError: if more images arrive than ``images``.
    """
    if first + batch > images:
        raise InputError(
            f"Expected images to be the number of images that arrive, but got {images} and at least {first + batch} came. "
            "Give the statistic the length of the stream."
        )
    number = torch.arange(first, first + batch, device=device) if rank is None else rank.to(device)
    return number * folds // images


def leave_one_out(sums: Shaped[Tensor, "folds *k"]) -> Shaped[Tensor, "folds *k"]:
    """Sums over all folds but one each."""
    return sums.sum(0) - sums


def ratio(total: Float[Tensor, " folds"], number: Float[Tensor, " folds"]) -> Estimate:
    """Σ total / Σ number over all folds, and without one each."""
    return total.sum() / number.sum(), leave_one_out(total) / leave_one_out(number)


def pseudovalues(estimate: Estimate) -> Float[np.ndarray, " folds"]:
    """What every fold contributes to an estimate, see :func:`~sdprobe.metrics.intervals.jackknife_pseudovalues`."""
    value, without = (part.detach().double().cpu().numpy() for part in estimate)
    return jackknife_pseudovalues(float(value), without)


def with_interval(
    key: str, estimate: Estimate, images: Int[Tensor, ""] | int, bounds: tuple[float, float] = (-np.inf, np.inf)
) -> dict[str, float]:
    """``key`` with ``/ci_low`` and ``/ci_high``, clipped to ``bounds``; the ends from two images per fold on (40).

    Nothing where the value is not finite.
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
    """Refuse too few images for an interval.

    Raises:
        InputError: if there are fewer than two for each fold.
    """
    expect.at_least(f"images for an interval over {folds} groups of images", images, PER_FOLD * folds)
