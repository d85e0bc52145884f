"""Ridge regression of real-valued targets from moments streamed in one pass."""

import torch
from jaxtyping import Float
from torch import Tensor

from probes.closed_form import SHRINKAGE
from tokens.processes import Processes


class RidgeMoments:
    """Sums over tokens, float64, from which the least-squares line of V targets follows.

    Args:
        channels: C.
        variants: V.
        device: where tokens are.
    """

    def __init__(self, channels: int, variants: int, device: torch.device) -> None:
        def zeros(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.float64, device=device)

        self.count, self.total, self.second = zeros(), zeros(channels), zeros(channels, channels)
        self.target, self.cross = zeros(variants), zeros(channels, variants)

    def update(self, tokens: Float[Tensor, "n c"], targets: Float[Tensor, "n v"]) -> None:
        """Add tokens and their targets."""
        x, y = tokens.double(), targets.double()
        self.count += len(x)
        self.total += x.sum(0)
        self.second += x.T @ x
        self.target += y.sum(0)
        self.cross += x.T @ y

    def share(self, processes: Processes) -> None:
        """Add the sums of all processes."""
        for sums in (self.count, self.total, self.second, self.target, self.cross):
            processes.total(sums)

    def solve(self, shrinkage: float = SHRINKAGE) -> tuple[Float[Tensor, "v c"], Float[Tensor, " v"]]:
        """Weight and bias: w = (Σ + λI)⁻¹ cov(x, y), b = ȳ − wᵀx̄, Σ the covariance of tokens, λ = ``shrinkage`` · tr Σ / C."""
        count = self.count.clamp_min(1)
        mean, target = self.total / count, self.target / count
        covariance = self.second / count - mean.outer(mean)
        level = (shrinkage * covariance.trace() / len(mean)).clamp_min(torch.finfo(mean.dtype).tiny)
        covariance.diagonal().add_(level)
        weight = torch.linalg.solve(covariance, self.cross / count - mean.outer(target)).T
        return weight, target - weight @ mean
