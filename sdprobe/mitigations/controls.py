"""Controls: what a mitigation must beat. Random directions, directions of most variance, a shuffled map, an empty picture."""

import torch
from jaxtyping import Float
from torch import Tensor

from sdprobe.mitigations.base import Mitigation
from sdprobe.mitigations.low_rank import REFUSE, LowRank
from sdprobe.mitigations.position_mean import PositionMean
from sdprobe.mitigations.sums import TokenSums
from sdprobe.tokens.geometry import minus
from sdprobe.tokens.views import View
from sdprobe.utilities import settings
from sdprobe.utilities.rng import keyed_generator


class RandomRank(LowRank):
    """x − Q Qᵀ (x − μ), the columns of Q an orthonormal basis of a random subspace, uniform among those of its dimension.

    Args:
        rank: its dimension k. None is the rank h + w − 2 of position_mean's additive basis, or half of the channels where
            that is less.
        seed: draws another subspace; layers of one shape share theirs.

    Raises:
        InputError: an option out of range; at the end of a fit, a rank above half of the channels.
    """

    second = False

    def __init__(self, rank: int | None = None, seed: int = 0) -> None:
        settings.check("random_rank", rank=rank)
        self.rank, self.seed = rank, seed

    def factors(self, sums: TokenSums) -> tuple[Float[Tensor, "c r"], Float[Tensor, "r c"]]:
        channels, height, width = sums.total.shape
        rank = min(height + width - 2, int(REFUSE * channels)) if self.rank is None else min(self.rank, channels)
        generator = keyed_generator(self.seed, "random_rank", channels, height, width)
        draw = torch.randn(channels, rank, generator=generator, dtype=torch.float64)
        basis = torch.linalg.qr(draw).Q.to(sums.total.device)
        return basis, basis.T


class PcaDrop(LowRank):
    """x − V Vᵀ (x − μ), V the eigenvectors of the k largest eigenvalues of the covariance of tokens.

    Args:
        rank: k, at least 1.

    Raises:
        InputError: an option out of range; at the end of a fit, a rank above half of the channels.

    Reference: J. Mu, P. Viswanath. All-but-the-top. ICLR 2018.
    """

    def __init__(self, rank: int = 1) -> None:
        settings.check("pca_drop", rank=rank)
        self.rank = rank

    def factors(self, sums: TokenSums) -> tuple[Float[Tensor, "c r"], Float[Tensor, "r c"]]:
        vectors = torch.linalg.eigh(sums.covariance()).eigenvectors.flip(1)[:, : self.rank]
        return vectors, vectors.T


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

    def solve(self, sums: TokenSums) -> dict[str, Tensor]:
        fitted = super().solve(sums)
        code, (height, width) = fitted["code"], sums.total.shape[1:]
        order = torch.randperm(height * width, generator=keyed_generator(self.seed, "shuffled_position", height, width))
        return fitted | {"code": code.flatten(1)[:, order.to(code.device)].unflatten(1, (height, width)).contiguous()}


class EmptyImage(Mitigation):
    """x − (e_p − ē) with e the mean grid of a mid-grey picture over draws of noise, and ē its mean over positions.

    What is left of a picture without content is written by padding, weights and noise; ē goes back in because it is what the
    network says of grey, and no place. No photographer's layout goes. Like all that is measured off the data, e may differ from
    what the same position carries in photographs.

    Args:
        draws: grey pictures to average over, each with the noise of another fit image; with shared noise all are one.

    Raises:
        InputError: ``draws`` below 1.
    """

    fitted = ("code",)
    fit_views = (View(empty=True),)

    def __init__(self, draws: int = 16) -> None:
        settings.check("empty_image", draws=draws)
        self.fit_images = draws

    def fitter(self, size: int = 512) -> TokenSums:
        return TokenSums(self)

    def solve(self, sums: TokenSums) -> dict[str, Tensor]:
        means = sums.means()
        return {"code": sums.as_grid(means - means.mean(0))}

    def apply(self, grid: Float[Tensor, "b c h w"], code: Float[Tensor, "c _h _w"]) -> Float[Tensor, "b c h w"]:
        return minus(grid, code)
