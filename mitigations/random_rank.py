"""RandomRank: a control that takes random directions, as many as a mitigation takes chosen ones."""

import torch
from jaxtyping import Float
from torch import Tensor

from mitigations.low_rank import REFUSE, LowRank
from mitigations.sums import TokenSums
from tokens import expect
from tokens.keyed import keyed_generator


class RandomRank(LowRank):
    """x − Q Qᵀ (x − μ), the columns of Q an orthonormal basis of a random subspace, uniform among those of its dimension.

    Args:
        rank: its dimension k. None is the rank h + w − 2 of position_mean's additive basis, or half of the channels where
            that is less.
        seed: draws another subspace; layers of one shape share theirs.

    Raises:
        InputError: an option out of range; at the end of a fit, a rank above half of the channels.
    """

    def __init__(self, rank: int | None = None, seed: int = 0) -> None:
        super().__init__()
        if rank is not None:
            expect.at_least("rank", rank, 1)
        self.rank, self.seed = rank, seed

    def begin(self) -> TokenSums:
        return TokenSums()

    def factors(self, sums: TokenSums) -> tuple[Float[Tensor, "c r"], Float[Tensor, "r c"]]:
        channels, height, width = sums.total.shape
        rank = min(height + width - 2, int(REFUSE * channels)) if self.rank is None else min(self.rank, channels)
        generator = keyed_generator(self.seed, "random_rank", channels, height, width)
        draw = torch.randn(channels, rank, generator=generator, dtype=torch.float64)
        basis = torch.linalg.qr(draw).Q.to(sums.total.device)
        return basis, basis.T
