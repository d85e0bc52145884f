"""How far a layer's tokens can be trusted: risks by position, corner and norm, and intervals over folds of images.

The risks are pure functions of what the other statistics measure. A *fold* is one of 20 disjoint runs of consecutive
images; every statistic keeps its sums per fold, so that a number made of several of them gets an interval as well.
"""

import math

import torch
from jaxtyping import Float, Int
from scipy import stats
from torch import Tensor

from metrics.intervals import LEVEL
from tokens.errors import InputError

FOLDS = 20
PER_FOLD = 2  # images at least


def above_chance(share: Float[Tensor, "*n"], chance: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """(share − chance) / (1 − chance): 0 at chance, 1 at its most, below 0 under chance; 0 where chance leaves no room."""
    room = 1 - chance
    return torch.where(room == 0, 0 * share, (share - chance) / room.where(room != 0, 1))


def corner_risk(inner: Float[Tensor, "*n"], outer: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """r_cor = clip((c_in − c_out) / (1 − c_out), 0, 1): what corners share because they are corners.

    Args:
        inner: c_in, mean centred cosine between different corner tokens of cropped images.
        outer: c_out, the same of the tokens of the full images that show the same content.
    """
    return above_chance(inner, outer).clamp(0, 1)


def token_risk(energy: Float[Tensor, "*n"], share: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """r_tok = max(0, (E_out − f_out) / (1 − f_out)): energy share of high-norm tokens beyond their count share."""
    return above_chance(energy, share).clamp(min=0)


def channel_risk(energy: Float[Tensor, "*n"], top: int, channels: int) -> Float[Tensor, "*n"]:
    """r_chn = max(0, (S_k − k/C) / (1 − k/C)): energy share of the top k channels beyond their count share."""
    return above_chance(energy, torch.full_like(energy, top / channels)).clamp(min=0)


def norm_risk(token: Float[Tensor, "*n"], channel: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """r_norm = 1 − (1 − r_tok)(1 − r_chn): dominated by few tokens or by few channels."""
    return 1 - (1 - token) * (1 - channel)


def credibility(position: Float[Tensor, "*n"], corner: Float[Tensor, "*n"], norm: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """Cred = Π(1 − r)^{1/3} over r_pos, r_cor, r_norm: 1 trusts the tokens, 0 does not.

    r_pos is the share of variance that position explains; it is reported as measured, which may be slightly negative,
    and clipped to [0, 1] here only.

    >>> credibility(torch.tensor(-0.01), torch.tensor(0.0), torch.tensor(0.0)).item()
    1.0
    """
    trust = [1 - risk.clamp(0, 1) for risk in (position, corner, norm)]
    return (trust[0] * trust[1] * trust[2]) ** (1 / 3)


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


def interval(per_fold: Float[Tensor, " folds"]) -> tuple[float, float]:
    """Ends of mean ± t · sd / √folds over fold estimates, at 95 %; folds that are NaN are left out.

    NaN where fewer than two folds are left. The centre is the mean of the fold estimates: for a statistic that is not
    linear in the images it may lie beside the estimate from all images.
    """
    values = per_fold[per_fold.isfinite()].double()
    if len(values) < 2:
        return math.nan, math.nan
    reach = stats.t.ppf((1 + LEVEL) / 2, len(values) - 1) * values.std().item() / math.sqrt(len(values))
    centre = values.mean().item()
    return centre - float(reach), centre + float(reach)


def with_interval(
    key: str, value: Float[Tensor, ""], per_fold: Float[Tensor, " folds"], images: Int[Tensor, ""]
) -> dict[str, float]:
    """``key`` with ``/ci_low`` and ``/ci_high``; the ends from two images per fold on (40), nothing where the
    value is not finite."""
    if not value.isfinite():
        return {}
    low, high = interval(per_fold)
    ends = {f"{key}/ci_low": low, f"{key}/ci_high": high} if images >= PER_FOLD * len(per_fold) and math.isfinite(low) else {}
    return {key: value.item()} | ends


def with_intervals(
    values: dict[str, Float[Tensor, ""]], per_fold: dict[str, Float[Tensor, " folds"]], images: Int[Tensor, ""]
) -> dict[str, float]:
    """:func:`with_interval` of every value."""
    report: dict[str, float] = {}
    for key, value in values.items():
        report |= with_interval(key, value, per_fold[key], images)
    return report


def require_images(images: int, folds: int = FOLDS) -> None:
    """Refuse too few images for an interval.

    Raises:
        InputError: if there are fewer than two for each fold.
    """
    least = PER_FOLD * folds
    if images < least:
        raise InputError(
            f"Expected images to be at least {least} for an interval over {folds} groups of images, but got {images}. "
            f"Measure on {least} images or more."
        )


def credibility_report(
    parts: dict[str, Float[Tensor, ""]], per_fold: dict[str, Float[Tensor, " folds"]], images: int
) -> dict[str, float]:
    """``r_pos/all``, ``r_cor/all``, ``r_norm/all``, then ``credibility/all``, each with its interval.

    The interval of Cred comes from Cred of every fold, so that dependence between the parts is respected.

    Args:
        parts: r_pos, r_cor and r_norm from all images.
        per_fold: the same from every fold.
        images: number of images.

    Raises:
        InputError: if there are fewer than two images for each fold.
    """
    require_images(images, len(per_fold["r_pos"]))
    names = ("r_pos", "r_cor", "r_norm")
    whole, folds = (
        {f"{name}/all": each[name] for name in names} | {"credibility/all": credibility(*(each[name] for name in names))}
        for each in (parts, per_fold)
    )
    return with_intervals(whole, folds, torch.tensor(images))
