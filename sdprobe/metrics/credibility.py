"""Credibility of the tokens of a layer: risks by position, corner and norm, and their product.

The risks are functions of other statistics. Their intervals come from leaving out one fold of images at a time in all of
these (:mod:`sdprobe.metrics.folds`).
"""

from collections.abc import Mapping

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from sdprobe.metrics.folds import Estimate, pseudovalues, require_images, with_interval
from sdprobe.metrics.intervals import mean_interval, with_ends

RISKS = ("r_pos", "r_cor", "r_norm")


def above_chance(share: Float[Tensor, "*n"], chance: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """(share − chance) / (1 − chance): 0 at chance, 1 at most, negative below chance; 0 where chance is 1."""
    rest = 1 - chance
    return torch.where(rest == 0, 0 * share, (share - chance) / rest.where(rest != 0, 1))


def corner_risk(inner: Float[Tensor, "*n"], outer: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """(c_in − c_out) / (1 − c_out): similarity of corners beyond that of their content. Unclipped: negative where it is less.

    Args:
        inner: c_in, mean centred cosine between corner tokens of cropped images, either of different corners of one image or
            of the same corner of different images.
        outer: c_out, the same for the tokens of the full images with the same content.
    """
    return above_chance(inner, outer)


def larger_risk(*kinds: Estimate) -> Estimate:
    """The larger of several risks; NaN is ignored. Corners may resemble each other, or each may be the same in all images."""
    values, without = (torch.stack(parts).nan_to_num(-torch.inf).amax(0) for parts in zip(*kinds, strict=True))
    return values.where(values.isfinite(), torch.nan), without.where(without.isfinite(), torch.nan)


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
    """Cred = Π(1 − r)^{1/3} over r_pos, r_cor, r_norm, each clipped to [0, 1] here only. 1 is full credibility, 0 is none.

    >>> credibility(torch.tensor(-0.01), torch.tensor(0.0), torch.tensor(0.0)).item()
    1.0
    """
    trust = [1 - risk.clamp(0, 1) for risk in (position, corner, norm)]
    return (trust[0] * trust[1] * trust[2]) ** (1 / 3)


def credibility_report(risks: Mapping[str, Estimate], images: int) -> dict[str, float]:
    """``r_pos/all`` as measured, ``r_cor/all`` and ``r_norm/all`` in [0, 1], then ``credibility/all``, with intervals.

    Intervals are those of the unclipped values, clipped at the end. Where the true risk is 0, half of the estimates are
    clipped, and an interval over clipped estimates would miss both 0 and the estimate.

    Args:
        risks: unclipped, by name of RISKS.
        images: number of images.

    Raises:
        InputError: there are fewer than two images for each fold.
    """
    require_images(images, len(risks["r_pos"][1]))
    report = with_interval("r_pos/all", risks["r_pos"], images)
    for name in RISKS[1:]:
        report |= with_clipped(f"{name}/all", *risks[name])
    low, high = mean_interval(credibility_pseudovalues(risks))
    value = credibility(*(risks[name][0] for name in RISKS)).item()
    return report | with_ends("credibility/all", value, *_held(low, high, value))


def with_clipped(key: str, value: Float[Tensor, ""], without: Float[Tensor, " folds"]) -> dict[str, float]:
    """A risk in [0, 1], with the interval of the unclipped risk, clipped."""
    low, high = mean_interval(pseudovalues((value, without)))
    return with_ends(key, value.clamp(0, 1).item(), np.clip(low, 0, 1).item(), np.clip(high, 0, 1).item())


def clipped_pseudovalues(estimate: Estimate) -> Float[np.ndarray, " folds"]:
    """Pseudo-values of a risk that is reported clipped: as measured, but 0 where its whole interval is below 0."""
    values = pseudovalues(estimate)
    high = mean_interval(values)[1]
    return np.where(np.isfinite(values), 0.0, np.nan) if high < 0 else values


def credibility_pseudovalues(risks: Mapping[str, Estimate]) -> Float[np.ndarray, " folds"]:
    """Pseudo-values of Cred with unclipped risks; a risk whose whole interval is below 0 is taken as 0."""
    value = torch.ones((), dtype=torch.float64)
    without = torch.ones(len(risks["r_pos"][1]), dtype=torch.float64)
    for name in RISKS:
        below = mean_interval(pseudovalues(risks[name]))[1] < 0
        own, left = (part.detach().double().cpu() for part in risks[name])
        value, without = (value, without) if below else (value * (1 - own), without * (1 - left))
    return pseudovalues((_cube_root(value), _cube_root(without)))


def _held(low: Float[np.ndarray, ""], high: Float[np.ndarray, ""], value: float) -> tuple[float, float]:
    """The ends clipped to [0, 1], and extended where needed so that they contain the value.

    The value is computed from risks that are clipped one by one; the ends are clipped only here.
    """
    return float(np.clip(np.minimum(low, value), 0, 1)), float(np.clip(np.maximum(high, value), 0, 1))


def _cube_root(value: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    return value.sign() * value.abs() ** (1 / 3)
