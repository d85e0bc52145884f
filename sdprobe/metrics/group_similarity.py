"""GroupSimilarity: how similar the tokens of a group are within an image, independent of its content."""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Float32, Float64
from torch import Tensor
from torch.nn.functional import pad

from sdprobe.metrics.folds import FOLDS, FoldMeans
from sdprobe.metrics.layer_tokens import LayerTokens, inverse_norms
from sdprobe.tokens.geometry import border_groups
from sdprobe.utilities.errors import InputError

MIN_SIDE = 4


def require_side(height: int, width: int) -> None:
    """Check that a grid is large enough to have corner, border and interior.

    Raises:
        InputError: a side is below 4.
    """
    if min(height, width) < MIN_SIDE:
        raise InputError(
            f"Expected the grid to be at least {MIN_SIDE}×{MIN_SIDE} for statistics of corner, border and interior, but got "
            f"{height}×{width}. Use larger images or leave this layer out."
        )


def corner_mask(height: int, width: int, margin: int = 0, device: torch.device | str = "cpu") -> Bool[Tensor, "height width"]:
    """The 4 tokens ``margin`` tokens away from both edges: the corners of the grid after its outer rings are cropped.

    >>> corner_mask(6, 6, margin=1).nonzero().tolist()
    [[1, 1], [1, 4], [4, 1], [4, 4]]

    Raises:
        InputError: fewer than 4 × 4 tokens are left.
    """
    require_side(height - 2 * margin, width - 2 * margin)
    inner = border_groups(height - 2 * margin, width - 2 * margin, device)["corner"]
    return pad(inner, [margin] * 4)


def mean_cosines(
    tokens: Float32[Tensor, "b p c"], norms: Float64[Tensor, "b p"], member: Bool[Tensor, "b g p"]
) -> tuple[Float64[Tensor, "b g g"], Float64[Tensor, "b g g"], Float64[Tensor, "b g"]]:
    """Per image: mean cosine over all pairs of different tokens of two groups, and the sums behind it.

    With unit tokens t, Σ_{i∈A, j∈B} cos = (Σ_A t)·(Σ_B t), so pairs are never formed. The ``|A ∩ B|`` pairs of a token with
    itself add 1 each and are subtracted again. A token of norm 0 has no cosine and is left out of its group.

    Returns:
        the mean cosines, in [−1, 1] and NaN where there is no pair; the number of (ordered) pairs; ‖Σ_A t‖² of each group.
    """
    inverse = inverse_norms(norms).unsqueeze(1)
    chosen = (member & (inverse > 0)).float()
    sums = ((chosen * inverse) @ tokens).double()  # unit tokens are never stored
    products, shared = sums @ sums.mT, (chosen @ chosen.mT).double()
    size = shared.diagonal(dim1=1, dim2=2)
    pairs = size.unsqueeze(1) * size.unsqueeze(2) - shared
    cosines = torch.where(pairs > 0, (products - shared) / pairs.clamp(min=1), torch.nan)
    return cosines, pairs, products.diagonal(dim1=1, dim2=2)


def counted_cosine(square: Float[Tensor, "*n g"], count: Float[Tensor, " g"]) -> Float[Tensor, "*n g"]:
    """(‖Σt‖² − N) / (N (N − 1)) with a given N instead of the size of the group; the mean cosine if both agree.

    The published values of cropped grids use the size that the group has in the uncropped grid, for self pairs as well as for
    all pairs. This understates border and interior: on an 8×8 grid cropped to 6×6, interior is up to 7 times too low. Corner
    has 4 tokens in both grids.

    References:
        Loos & Linhardt (2025), arXiv:2504.07008: the result files published with the paper's code.
    """
    return (square - count) / (count * (count - 1))


class GroupSimilarity(FoldMeans):
    """Mean pairwise cosine within and between token groups, per image and then averaged over images; without self pairs.

    ``similarity/<a>`` is within group a, ``similarity/<a>_<b>`` between two groups, ``similarity_centred/…`` the same for x −
    mean, and ``similarity_published/<a>`` :func:`counted_cosine` of raw tokens with ``counts``. All are in [−1, 1]. Raw tokens
    of unrelated content are similar wherever tokens share a mean; the centred value is 0 for unrelated tokens.

    Args:
        groups: names of the token groups whose masks the tokens carry; they may overlap.
        images, folds: see :class:`~.FoldMetric`.
        centred: also measure ``similarity_centred``, for tokens that have a mean.
        counts: token counts per group for ``similarity_published``.

    Raises:
        InputError: a grid is smaller than 4×4, or more images arrive than ``images``.
    """

    total: Tensor
    number: Tensor
    published: Tensor

    def __init__(
        self,
        groups: Sequence[str],
        images: int,
        centred: bool = False,
        counts: dict[str, int] | None = None,
        folds: int = FOLDS,
    ) -> None:
        kinds = ("similarity", "similarity_centred") if centred else ("similarity",)
        counts = {group: count for group, count in (counts or {}).items() if group in groups}
        shape = (len(kinds), len(groups), len(groups))
        super().__init__(images, folds, total=shape, number=shape, published=(len(counts),))
        self.groups, self.kinds, self.counts = tuple(groups), kinds, counts

    def update(self, layer: LayerTokens) -> None:
        """Add the next images, with a mask for every group."""
        require_side(layer.height, layer.width)
        member = torch.stack([layer.masks[group] for group in self.groups], dim=1)
        tokens = ((layer.tokens, layer.norms), (layer.centred, layer.centred_norms))[: len(self.kinds)]
        cosines, pairs, squares = zip(*(mean_cosines(*kind, member) for kind in tokens), strict=True)
        counted = [self.groups.index(group) for group in self.counts]
        published = counted_cosine(squares[0][:, counted], squares[0].new_tensor([*self.counts.values()]))
        self._add(
            layer.rank,
            total=torch.stack(cosines, dim=1).nan_to_num(),
            number=(torch.stack(pairs, dim=1) > 0).double(),
            published=torch.where(pairs[0][:, counted, counted] > 0, published, 0),
        )

    def _means(self) -> dict[str, tuple[Tensor, Tensor]]:
        means = {}
        for k, kind in enumerate(self.kinds):
            for i, group in enumerate(self.groups):
                for j, other in enumerate(self.groups[i:], start=i):
                    name = group if i == j else f"{group}_{other}"
                    means[f"{kind}/{name}"] = (self.total[:, k, i, j], self.number[:, k, i, j])
        for column, group in enumerate(self.counts):
            i = self.groups.index(group)
            means[f"similarity_published/{group}"] = (self.published[:, column], self.number[:, 0, i, i])
        return means
