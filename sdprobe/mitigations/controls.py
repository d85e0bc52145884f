"""Controls that a mitigation must beat: random directions, directions of most variance, a shuffled map, an empty picture."""

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
    """Control: x − Q Qᵀ (x − μ), where Q is an orthonormal basis of a uniformly random subspace.

    Args:
        rank: dimension k of the subspace, at least 1. None takes the rank h + w − 2 of the additive basis of
            :class:`PositionMean`, or half of the channels if that is less.
        seed: draws another subspace. Layers of one shape share a subspace.

    Raises:
        InputError: an option out of range. At the end of a fit: a rank above half of the channels, or no image.

    Example:
        >>> import torch
        >>> from sdprobe.mitigations import RandomRank
        >>> RandomRank(rank=2).fit([torch.randn(4, 8, 4, 4)]).describe()
        {'fit_images': 4, 'rank': 2}
    """

    second = False

    def __init__(self, rank: int | None = None, seed: int = 0) -> None:
        settings.check("random_rank", rank=rank, seed=seed)
        self.rank, self.seed = rank, seed

    def factors(self, sums: TokenSums) -> tuple[Float[Tensor, "c r"], Float[Tensor, "r c"]]:
        channels, height, width = sums.total.shape
        rank = min(height + width - 2, int(REFUSE * channels)) if self.rank is None else min(self.rank, channels)
        generator = keyed_generator(self.seed, "random_rank", channels, height, width)
        draw = torch.randn(channels, rank, generator=generator, dtype=torch.float64)
        basis = torch.linalg.qr(draw).Q.to(sums.total.device)
        return basis, basis.T


class PcaDrop(LowRank):
    """Control: x − V Vᵀ (x − μ), where V holds the eigenvectors of the k largest eigenvalues of the covariance of tokens.

    Args:
        rank: k, at least 1.

    Raises:
        InputError: an option out of range. At the end of a fit: a rank above half of the channels, or no image.

    References:
        Mu & Viswanath (2018), All-but-the-top: Simple and effective postprocessing for word representations, ICLR.

    Example:
        >>> import torch
        >>> from sdprobe.mitigations import PcaDrop
        >>> PcaDrop(rank=2).fit([torch.randn(4, 8, 4, 4)]).transform(torch.randn(1, 8, 4, 4)).shape
        torch.Size([1, 8, 4, 4])
    """

    def __init__(self, rank: int = 1) -> None:
        settings.check("pca_drop", rank=rank)
        self.rank = rank

    def factors(self, sums: TokenSums) -> tuple[Float[Tensor, "c r"], Float[Tensor, "r c"]]:
        vectors = torch.linalg.eigh(sums.covariance()).eigenvectors.flip(1)[:, : self.rank]
        return vectors, vectors.T


class ShuffledPosition(PositionMean):
    """Control: x − γ G_π(p), with G of :class:`PositionMean` and a random permutation π of positions.

    It subtracts as much as :class:`PositionMean`, at the wrong positions.

    Args:
        basis: see :class:`PositionMean`.
        gamma: γ in [0, 1].
        cosines: number of lowest cosines per axis, at least 1.
        ridge: λ, at least 0.
        seed: draws another permutation. Layers of one grid share a permutation.

    Raises:
        InputError: see :class:`PositionMean`.

    Example:
        >>> import torch
        >>> from sdprobe.mitigations import ShuffledPosition
        >>> ShuffledPosition(seed=1).fit([torch.randn(16, 8, 4, 4)]).describe()
        {'fit_images': 16, 'columns': 8, 'rank': 6}
    """

    def __init__(
        self, basis: str = "additive", gamma: float = 1.0, cosines: int = 4, ridge: float = 0.0, seed: int = 0
    ) -> None:
        super().__init__(basis=basis, gamma=gamma, cosines=cosines, ridge=ridge)
        settings.check("shuffled_position", seed=seed)
        self.seed = seed

    def solve(self, sums: TokenSums) -> dict[str, Tensor]:
        fitted = super().solve(sums)
        code, (height, width) = fitted["code"], sums.total.shape[1:]
        order = torch.randperm(height * width, generator=keyed_generator(self.seed, "shuffled_position", height, width))
        return fitted | {"code": code.flatten(1)[:, order.to(code.device)].unflatten(1, (height, width)).contiguous()}


class EmptyImage(Mitigation):
    """x − (e_p − ē), where e is the mean grid of a mid-grey picture over several draws of noise, and ē its mean over positions.

    The grid of a picture without content comes from padding, weights and noise. ē is added again because it is the network's
    response to grey and depends on no position. Where photographers place objects does not enter e. Like everything measured
    on inputs unlike the data, e may differ from what the same position adds in photographs.

    Args:
        draws: number of grey pictures to average over, at least 1. Each has the noise of another fit image; if all images
            share one noise tensor, the grey pictures are equal.

    Raises:
        InputError: ``draws`` below 1. At the end of a fit: no image was seen.

    Example:
        >>> import torch
        >>> from sdprobe.mitigations import EmptyImage
        >>> mitigation = EmptyImage(draws=4)
        >>> mitigation.fit_views[0].empty  # the network is shown grey pictures
        True
        >>> mitigation.fit([torch.randn(4, 8, 4, 4)]).transform(torch.randn(1, 8, 4, 4)).shape
        torch.Size([1, 8, 4, 4])
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
