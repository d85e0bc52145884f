"""Heads in closed form: linear discriminants and ridge regression, from moments summed in one pass."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

SHRINKAGE = 1e-3


class Moments:
    """Sums over tokens, in float64, that determine a closed-form head.

    Args:
        channels: C.
        sides: number of classes per axis (rows, columns).
        variants: V label variants.
        device: where tokens are.
    """

    def __init__(self, channels: int, sides: Sequence[int], variants: int, device: torch.device) -> None:
        self.sides = tuple(sides)
        self.second, self.total = _zeros(device, channels, channels), _zeros(device, channels)
        self.sums = [_zeros(device, variants, side, channels) for side in sides]
        self.counts = [_zeros(device, variants, side) for side in sides]

    def update(self, tokens: Float[Tensor, "n c"], labels: Int[Tensor, "n v 2"]) -> None:
        """Add tokens with the (row, col) labels of every variant."""
        x = tokens.double()
        self.second += x.T @ x
        self.total += x.sum(0)
        for axis in range(2):
            for variant in range(labels.shape[1]):
                self.sums[axis][variant].index_add_(0, labels[:, variant, axis], x)
                self.counts[axis][variant].index_add_(0, labels[:, variant, axis], torch.ones_like(x[:, 0]))

    def discriminants(self, variant: int) -> tuple[Float[Tensor, "k c"], Float[Tensor, " k"]]:
        """Weight and bias of the linear discriminants of rows, then of columns.

        logit_k = m_kᵀ Σ⁻¹ x − ½ m_kᵀ Σ⁻¹ m_k with class means m_k and the pooled within-class covariance Σ, shrunk by
        1e-3 · tr Σ / C. All are taken relative to the overall mean. This changes no difference of logits and keeps the sums
        well conditioned. A class without tokens has the logit −∞.
        """
        parts = [self._axis_discriminants(variant, axis) for axis in range(2)]
        return torch.cat([weight for weight, _ in parts]), torch.cat([bias for _, bias in parts])

    def ridge(self, variant: int) -> tuple[Float[Tensor, "2 c"], Float[Tensor, " 2"]]:
        """Weight and bias of the ridge regression of centred, normalised coordinates (see :func:`coordinates`)."""
        count = self.counts[0][variant].sum()
        mean = self.total / count
        covariance = _shrunk(self.second / count - mean.outer(mean))
        targets, crosses = [], []
        for axis, side in enumerate(self.sides):
            values = coordinates(torch.arange(side, device=mean.device, dtype=mean.dtype), side)
            target = (self.counts[axis][variant] * values).sum() / count
            crosses.append((self.sums[axis][variant] * values[:, None]).sum(0) / count - target * mean)
            targets.append(target)
        weight = torch.linalg.solve(covariance, torch.stack(crosses).T).T
        return weight, torch.stack(targets) - weight @ mean

    def _axis_discriminants(self, variant: int, axis: int) -> tuple[Tensor, Tensor]:
        counts, sums = self.counts[axis][variant], self.sums[axis][variant]
        overall = self.total / counts.sum()
        means = sums / counts.clamp_min(1)[:, None] - overall
        total = self.second / counts.sum() - overall.outer(overall)
        between = (means * (counts / counts.sum())[:, None]).T @ means
        weight = torch.linalg.solve(_shrunk(total - between), means.T).T
        bias = -0.5 * (weight * means).sum(1) - weight @ overall
        return weight, bias.masked_fill(counts == 0, -torch.inf)


def coordinates(index: Tensor, side: int) -> Tensor:
    """Centred, normalised coordinate (index + ½)/side − ½ of a token along an axis; lies in (−½, ½)."""
    return (index + 0.5) / side - 0.5


def _zeros(device: torch.device, *shape: int) -> Tensor:
    return torch.zeros(shape, dtype=torch.float64, device=device)


def _shrunk(covariance: Float[Tensor, "c c"], shrinkage: float = SHRINKAGE) -> Float[Tensor, "c c"]:
    """Σ + ``shrinkage`` · tr Σ / C · I."""
    level = shrinkage * covariance.trace() / len(covariance)
    return covariance + level.clamp_min(torch.finfo(covariance.dtype).tiny) * torch.eye(len(covariance)).to(covariance)


class RidgeMoments:
    """Sums over tokens, in float64, that determine the ridge regression of V targets.

    Args:
        channels: C.
        variants: V.
        device: where tokens are.
    """

    def __init__(self, channels: int, variants: int, device: torch.device) -> None:
        self.count, self.total, self.second = _zeros(device), _zeros(device, channels), _zeros(device, channels, channels)
        self.target, self.cross = _zeros(device, variants), _zeros(device, channels, variants)

    def update(self, tokens: Float[Tensor, "n c"], targets: Float[Tensor, "n v"]) -> None:
        """Add tokens and their targets."""
        x, y = tokens.double(), targets.double()
        self.count += len(x)
        self.total += x.sum(0)
        self.second += x.T @ x
        self.target += y.sum(0)
        self.cross += x.T @ y

    def solve(self, shrinkage: float = SHRINKAGE) -> tuple[Float[Tensor, "v c"], Float[Tensor, " v"]]:
        """Weight and bias: w = (Σ + λI)⁻¹ cov(x, y), b = ȳ − wᵀx̄, Σ the covariance of tokens, λ = ``shrinkage`` · tr Σ / C."""
        count = self.count.clamp_min(1)
        mean, target = self.total / count, self.target / count
        covariance = _shrunk(self.second / count - mean.outer(mean), shrinkage)
        weight = torch.linalg.solve(covariance, self.cross / count - mean.outer(target)).T
        return weight, target - weight @ mean
