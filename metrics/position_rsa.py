"""PositionRSA: whether tokens that lie near one another are alike, within an image and between images."""

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy import stats
from torch import Tensor
from torch.nn.functional import normalize
from torchmetrics import Metric

from metrics.credibility import FOLDS, folds_of, with_interval
from tokens.geometry import bins, flatten, positions
from tokens.keyed import keyed_generator

CELLS = 8
PER_CELL = 4
IMAGES = 128
TINY = torch.finfo(torch.float64).tiny

Sample = tuple[Float[Tensor, "_m _c"], Int[Tensor, "_m 2"]]


def stratified(height: int, width: int, generator: torch.Generator) -> Int[Tensor, " m"]:
    """Row-major indices of 256 tokens: 4 at random in each cell of an 8×8 partition; all tokens if a side is below 16."""
    if min(height, width) < 2 * CELLS:
        return torch.arange(height * width)
    place = positions(height, width)
    cell = bins(place[:, 0], height, CELLS) * CELLS + bins(place[:, 1], width, CELLS)
    order = torch.randperm(len(cell), generator=generator)
    order = order[cell[order].argsort(stable=True)]
    counts = cell.bincount()
    rank = torch.arange(len(cell)) - (counts.cumsum(0) - counts).repeat_interleave(counts)
    return order[rank < PER_CELL].sort().values


def rank_correlation(
    left: Float[Tensor, "m c"], left_place: Int[Tensor, "m 2"], right: Float[Tensor, "k c"], right_place: Int[Tensor, "k 2"]
) -> float:
    """Spearman's ρ between 1 − cosine and Euclidean distance, over all pairs of a left and a right unit token.

    NaN where one of the two does not vary.
    """
    dissimilarity = (1 - left @ right.mT).flatten().numpy()
    distance = torch.cdist(left_place.double(), right_place.double()).flatten().numpy()
    return spearman(dissimilarity, distance)


def spearman(dissimilarity: Float[np.ndarray, " n"], distance: Float[np.ndarray, " n"]) -> float:
    """Spearman's ρ, tied ranks averaged; NaN where one of the two does not vary."""
    if len(distance) < 2 or not np.ptp(distance) or np.ptp(dissimilarity) < 1e-12:
        return float("nan")
    return float(stats.spearmanr(dissimilarity, distance).statistic)


class PositionRSA(Metric):
    """Spearman between token dissimilarity (1 − cosine) and spatial distance.

    ``rsa/within`` is over pairs of tokens of one image, where nearby tokens also show the same thing; ``rsa/between`` over
    pairs of tokens of two consecutive images that show different photographs, where only position is common. Both are in
    [−1, 1], 0 where place does not matter, and averaged over images. 256 tokens of an image suffice: 4 at random in each
    cell of an 8×8 partition, keyed by the image; all tokens of grids with a side below 16. Tokens of norm 0 are left out.

    At most ``limit`` images are looked at, spread evenly, since ranks cost more than activations. One sample of tokens is
    kept from image to image. Images form 20 folds of consecutive ones for the intervals; on several devices ``images`` is the
    number that one device sees, and its images are paired among themselves.

    Args:
        images: number of images that will arrive.
        mean: mean token (C,) to subtract first; without it, nothing is subtracted.
        limit: images to look at, at most.
        seed: of the draw of tokens.
        folds: number of groups of images.

    Raises:
        InputError: if more images arrive than ``images``.

    References:
        Kriegeskorte, Mur & Bandettini (2008), Frontiers in Systems Neuroscience 2: representational similarity analysis.
    """

    full_state_update = False
    mean: Tensor
    total: Tensor
    number: Tensor
    seen: Tensor

    def __init__(
        self,
        images: int,
        mean: Float[Tensor, " c"] | None = None,
        limit: int = IMAGES,
        seed: int = 0,
        folds: int = FOLDS,
    ) -> None:
        super().__init__()
        self.images, self.limit, self.seed, self.folds = images, min(limit, images), seed, folds
        self.register_buffer("mean", torch.zeros(1) if mean is None else mean.double(), persistent=False)
        for name in ("total", "number"):  # columns: within, between
            self.add_state(name, torch.zeros(folds, 2, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("seen", torch.tensor(0), dist_reduce_fx="sum")
        self.last: tuple[int, Sample] | None = None

    def reset(self) -> None:
        """Forget everything."""
        super().reset()
        self.last = None

    def update(self, grid: Float[Tensor, "b c h w"], image: Int[Tensor, " b"], photo: Int[Tensor, " b"]) -> None:
        """Add the next images: their grids, their indices in the dataset, and the photographs they show."""
        first = int(self.seen)
        fold = folds_of(first, len(grid), self.images, self.folds)
        for i in range(len(grid)):
            if (first + i + 1) * self.limit // self.images > (first + i) * self.limit // self.images:
                self._add(int(fold[i]), int(photo[i]), self._sample(grid[i : i + 1], int(image[i])))
        self.seen += len(grid)

    def _sample(self, grid: Float[Tensor, "1 c h w"], image: int) -> Sample:
        """Unit tokens of the image and their positions."""
        height, width = grid.shape[2:]
        index = stratified(height, width, keyed_generator(self.seed, "rsa", image))
        tokens = flatten(grid)[0, index.to(grid.device)].double() - self.mean
        unit = normalize(tokens, dim=-1, eps=TINY).cpu()
        alive = unit.square().sum(-1) > 0.5
        return unit[alive], positions(height, width)[index][alive]

    def _add(self, fold: int, photo: int, sample: Sample) -> None:
        tokens, place = sample
        upper = torch.triu_indices(len(tokens), len(tokens), offset=1)
        dissimilarity = (1 - tokens @ tokens.mT)[upper[0], upper[1]].numpy()
        distance = torch.cdist(place.double(), place.double())[upper[0], upper[1]].numpy()
        found = [spearman(dissimilarity, distance), float("nan")]
        if self.last is not None and self.last[0] != photo:
            found[1] = rank_correlation(*self.last[1], *sample)
        values = torch.tensor(found, dtype=torch.float64, device=self.total.device)
        self.total[fold] += values.nan_to_num()
        self.number[fold] += values.isfinite().double()
        self.last = photo, sample

    def compute(self) -> dict[str, float]:
        """``rsa/within`` and ``rsa/between`` with ``/ci_low``, ``/ci_high`` (from 40 images on) and ``/n`` (images, pairs)."""
        values: dict[str, float] = {}
        for column, group in enumerate(("within", "between")):
            key, total, number = f"rsa/{group}", self.total[:, column], self.number[:, column]
            measured = with_interval(key, total.sum() / number.sum(), total / number, self.seen)
            values |= measured | ({f"{key}/n": int(number.sum())} if measured else {})
        return values
