"""PcaDrop: a control that takes the directions of most variance, whatever they mean."""

import torch
from jaxtyping import Float
from torch import Tensor

from mitigations.low_rank import LowRank
from mitigations.sums import TokenSums
from tokens import expect


class PcaDrop(LowRank):
    """x − V Vᵀ (x − μ), V the eigenvectors of the k largest eigenvalues of the covariance of tokens.

    Args:
        rank: k, at least 1.

    Raises:
        InputError: an option out of range; at the end of a fit, a rank above half of the channels.

    Reference: J. Mu, P. Viswanath. All-but-the-top. ICLR 2018.
    """

    def __init__(self, rank: int = 1) -> None:
        super().__init__()
        expect.at_least("rank", rank, 1)
        self.rank = rank

    def factors(self, sums: TokenSums) -> tuple[Float[Tensor, "c r"], Float[Tensor, "r c"]]:
        vectors = torch.linalg.eigh(sums.covariance()).eigenvectors.flip(1)[:, : self.rank]
        return vectors, vectors.T
