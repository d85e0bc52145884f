"""PositionRSA: whether tokens at nearby positions are similar, within an image and between images."""

from functools import cache

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from sdprobe.metrics.folds import FOLDS, FoldMeans
from sdprobe.metrics.layer_tokens import LayerTokens
from sdprobe.tokens.geometry import bins, positions
from sdprobe.utilities.rng import keyed_generator

CELLS = 8
PER_CELL = 4
IMAGES = 32
TINY = torch.finfo(torch.float64).tiny

Sample = tuple[Float[Tensor, "_m _c"], Int[np.ndarray, "_m 2"]]


def stratified(height: int, width: int, generator: torch.Generator) -> Int[Tensor, " m"]:
    """Row-major indices of 256 tokens: 4 at random in each cell of an 8×8 partition; all tokens if a side is below 16."""
    if min(height, width) < 2 * CELLS:
        return torch.arange(height * width)
    position = positions(height, width)
    cell = bins(position[:, 0], height, CELLS) * CELLS + bins(position[:, 1], width, CELLS)
    order = torch.randperm(len(cell), generator=generator)
    order = order[cell[order].argsort(stable=True)]
    counts = cell.bincount()
    rank = torch.arange(len(cell)) - (counts.cumsum(0) - counts).repeat_interleave(counts)
    return order[rank < PER_CELL].sort().values


def squared_distances(left: Int[np.ndarray, "m 2"], right: Int[np.ndarray, "k 2"]) -> Int[np.ndarray, "m k"]:
    """Squared distances of all pairs of positions: whole numbers, in the same order as the distances."""
    rows, cols = (np.subtract.outer(left[:, axis], right[:, axis]) for axis in (0, 1))
    total: Int[np.ndarray, "m k"] = rows * rows + cols * cols
    return total


@cache
def upper(size: int) -> Int[np.ndarray, " n"]:
    """Indices above the diagonal of a (size, size) table, flattened."""
    return np.flatnonzero(np.triu(np.ones((size, size), dtype=bool), 1))


def average_ranks(ordered: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """Ranks from 1 of sorted values, those of equal values averaged."""
    starts = np.flatnonzero(np.append(True, ordered[1:] != ordered[:-1]))
    if len(starts) == len(ordered):
        return np.arange(1.0, len(ordered) + 1)
    counts = np.diff(starts, append=len(ordered))
    return (starts + (counts + 1) / 2).repeat(counts)


def counted_ranks(values: Int[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """Ranks from 1 of small whole numbers, ties averaged, by counting instead of sorting."""
    counts = np.bincount(values)
    return (counts.cumsum() - (counts - 1) / 2)[values]


def spearman(dissimilarity: Float[np.ndarray, " n"], distance: Int[np.ndarray, " n"]) -> float:
    """Spearman's ρ of dissimilarity and squared distance, tied ranks averaged; NaN where one of the two does not vary."""
    if len(distance) < 2:
        return float("nan")
    order = dissimilarity.argsort()
    ordered = dissimilarity[order]
    if ordered[-1] - ordered[0] < 1e-12 or distance.min() == distance.max():
        return float("nan")
    middle = (len(order) + 1) / 2  # the mean of any ranks
    a, b = average_ranks(ordered) - middle, counted_ranks(distance)[order] - middle
    return float(a @ b / np.sqrt((a @ a) * (b @ b)))


def alive(tokens: Float[Tensor, "m c"], position: Int[Tensor, "m 2"]) -> Sample:
    """The tokens with a nonzero norm, as unit tokens in float64, and their positions."""
    vectors = tokens.double()
    norms = torch.linalg.vector_norm(vectors, dim=1)
    nonzero = norms > TINY
    return vectors[nonzero] / norms[nonzero, None], position[nonzero].numpy()


class PositionRSA(FoldMeans):
    """Spearman correlation between dissimilarity of centred tokens (1 − cosine) and spatial distance.

    ``rsa/within`` is over pairs of tokens of one image, where nearby tokens also show the same content. ``rsa/between`` is
    over pairs of tokens of two consecutive images of different photographs, which have only position in common. Both are in
    [−1, 1], 0 if position does not matter, and averaged over images. 256 tokens of an image suffice: 4 at random in each cell
    of an 8×8 partition, keyed by the image; all tokens of grids with a side below 16. Tokens of norm 0 are left out.

    At most ``limit`` images are used, spread evenly, because ranks cost more than activations. One sample of tokens is
    kept from image to image. On several devices each pairs its own images.

    Args:
        images, folds: see :class:`~.FoldMetric`.
        limit: largest number of images to use.
        seed: of the draw of tokens.

    References:
        Kriegeskorte, Mur & Bandettini (2008), Frontiers in Systems Neuroscience 2: representational similarity analysis.
    """

    bounds = (-1, 1)
    total: Tensor
    number: Tensor

    def __init__(self, images: int, limit: int = IMAGES, seed: int = 0, folds: int = FOLDS) -> None:
        super().__init__(images, folds, total=(2,), number=(2,))  # columns: within, between
        self.limit, self.seed = min(limit, images), seed
        self.last: tuple[int, Sample] | None = None

    def reset(self) -> None:
        """Discard all sums."""
        super().reset()
        self.last = None

    def update(self, layer: LayerTokens, image: Int[Tensor, " b"], photo: Int[Tensor, " b"]) -> None:
        """Add the next images: their tokens, their indices in the dataset, and the photographs they show."""
        first = int(self.seen)
        fold = self._next_folds(len(layer))
        for i in range(len(layer)):
            if (first + i + 1) * self.limit // self.images > (first + i) * self.limit // self.images:
                index = stratified(layer.height, layer.width, keyed_generator(self.seed, "rsa", int(image[i])))
                tokens = layer.centred[i, index.to(layer.centred.device)].cpu()
                self._compare(int(fold[i]), int(photo[i]), alive(tokens, positions(layer.height, layer.width)[index]))

    def _compare(self, fold: int, photo: int, sample: Sample) -> None:
        tokens, position = sample
        pairs = upper(len(tokens))
        tables = (1 - tokens @ tokens.mT).numpy(), squared_distances(position, position)
        correlations = [spearman(*(table.ravel()[pairs] for table in tables)), float("nan")]
        if self.last is not None and self.last[0] != photo:
            others, other_positions = self.last[1]
            tables = (1 - others @ tokens.mT).numpy(), squared_distances(other_positions, position)
            correlations[1] = spearman(*(table.ravel() for table in tables))
        values = torch.tensor(correlations, dtype=torch.float64, device=self.total.device)
        self.total[fold] += values.nan_to_num()
        self.number[fold] += values.isfinite().double()
        self.last = photo, sample

    def _means(self) -> dict[str, tuple[Tensor, Tensor]]:
        return {f"rsa/{group}": (self.total[:, k], self.number[:, k]) for k, group in enumerate(("within", "between"))}
