"""ShuffledPosition: a control that subtracts position_mean's map from the wrong places."""

import torch

from mitigations.position_mean import PositionMean
from tokens.keyed import keyed_generator


class ShuffledPosition(PositionMean):
    """x − γ G_π(p) with position_mean's G and one random permutation π of positions: as much goes, at wrong places.

    Args:
        basis: as in :class:`PositionMean`, like all that follow but ``seed``.
        gamma: γ in [0, 1].
        cosines: lowest cosines per axis.
        ridge: λ, at least 0.
        seed: draws another permutation; layers of one grid share theirs.

    Raises:
        InputError: as :class:`PositionMean`.
    """

    def __init__(
        self, basis: str = "additive", gamma: float = 1.0, cosines: int = 4, ridge: float = 0.0, seed: int = 0
    ) -> None:
        super().__init__(basis=basis, gamma=gamma, cosines=cosines, ridge=ridge)
        self.seed = seed

    def finish(self) -> None:
        super().finish()
        height, width = self.code.shape[1:]
        order = torch.randperm(height * width, generator=keyed_generator(self.seed, "shuffled_position", height, width))
        self.code = self.code.flatten(1)[:, order.to(self.code.device)].unflatten(1, (height, width)).contiguous()
