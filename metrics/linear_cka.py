"""LinearCKA: how alike two layers see the same places of the same images."""

import math

import torch
from jaxtyping import Float
from torch import Tensor
from torchmetrics import Metric

from metrics.folds import folds_of
from tokens.errors import InputError
from tokens.keyed import keyed_generator

CELLS = 8
ROWS = 1024
MIN_ROWS = 4


def cell_mean(image: Float[Tensor, "c h w"], cell: int) -> Float[Tensor, " c"]:
    """Mean over one cell of an 8×8 partition, numbered row-major; the other cells are not touched."""
    height, width = image.shape[1:]
    row, col = divmod(cell, CELLS)
    rows = slice(row * height // CELLS, -(-(row + 1) * height // CELLS))
    cols = slice(col * width // CELLS, -(-(col + 1) * width // CELLS))
    return image[:, rows, cols].mean((1, 2), dtype=torch.float64)


def centred_gram(rows: Float[Tensor, "n c"]) -> Float[Tensor, "n n"]:
    """The Gram matrix of the rows, U-centred: its off-diagonal rows and columns sum to 0, and its diagonal is 0.

    The inner product of two such matrices over n (n − 3) is the unbiased HSIC₁ of linear kernels.

    References:
        Székely & Rizzo (2014), Annals of Statistics 42, definition 2.
    """
    rows = rows.double() - rows.double().mean(0)
    gram = (rows @ rows.mT).fill_diagonal_(0)
    count = len(rows)
    side = gram.sum(0) / (count - 2)
    whole = gram.sum() / ((count - 1) * (count - 2))
    return (gram - side[:, None] - side[None] + whole).fill_diagonal_(0)


def hsic_to_cka(grams: Float[Tensor, "l m"]) -> Float[Tensor, "l l"]:
    """HSIC₁(i, j) / √(HSIC₁(i, i) · HSIC₁(j, j)); NaN where a layer does not vary."""
    products = grams @ grams.mT
    scale = products.diagonal()
    return products / torch.where(scale > 0, scale, torch.nan).outer(scale).sqrt()


def debiased_cka(x: Float[Tensor, "n c"], y: Float[Tensor, "n d"]) -> Float[Tensor, ""]:
    """Debiased linear CKA of two representations of the same n things, one in each row.

    HSIC₁(K, L) = 1/(n(n−3)) · [tr(KL) + 1ᵀK1·1ᵀL1/((n−1)(n−2)) − 2/(n−2)·1ᵀKL1] with K = XXᵀ, L = YYᵀ, diagonals set to 0;
    CKA = HSIC₁(K, L) / √(HSIC₁(K, K) HSIC₁(L, L)). At most 1, about 0 for independent rows and possibly negative (not
    clipped); rotations, a common factor and a common offset of X or Y change nothing. NaN where X or Y does not vary.

    Raises:
        InputError: if there are fewer than 4 rows.

    References:
        Song et al. (2012), JMLR 13, theorem 2; Kornblith et al. (2019), arXiv:1905.00414; Nguyen et al. (2021),
        arXiv:2010.15327, section 3.
    """
    if len(x) < MIN_ROWS:
        raise InputError(
            f"Expected the rows to be at least {MIN_ROWS} for debiased CKA, but got {len(x)}. Measure on more images."
        )
    return hsic_to_cka(torch.stack([centred_gram(x).flatten(), centred_gram(y).flatten()]))[0, 1]


class LinearCKA(Metric):
    """Debiased linear CKA between layers, on means over the cells of an 8×8 partition of the grid.

    At most ``rows`` (image, cell) pairs are kept, the same for all layers, so memory does not grow with the images: R rows
    from N images are ⌊(n+1)R/N⌋ − ⌊nR/N⌋ from image n, which spreads them evenly, and an image's rows are cells drawn at
    random without repetition, keyed by the image's number. A cell is what torch's adaptive pooling makes it: exact where 8
    divides the side; on grids below 8×8 neighbouring cells share tokens.

    Rows of one image are not independent, which leaves some similarity of whole images in values near 0. The states are
    buffers of fixed place: the metric works on one device only.

    Args:
        channels: layer → C.
        images: number of images that will arrive.
        rows: rows to keep at most.
        seed: of the draw of cells.

    Raises:
        InputError: if more images arrive than ``images``; in :meth:`compute`, if fewer than 4 rows came.
    """

    full_state_update = False
    seen: Tensor

    def __init__(self, channels: dict[str, int], images: int, rows: int = ROWS, seed: int = 0) -> None:
        super().__init__()
        self.layers, self.images, self.seed = tuple(channels), images, seed
        self.size = min(rows, images * CELLS**2)
        for layer, width in channels.items():
            self.add_state(f"rows_{layer}", torch.zeros(self.size, width, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("seen", torch.tensor(0), dist_reduce_fx="sum")

    def _filled(self, images: int) -> int:
        """Rows that the first ``images`` images give."""
        return images * self.size // self.images

    def _cells(self, image: int) -> list[int]:
        """Cells of the image number ``image``, row-major indices into the partition."""
        order = torch.randperm(CELLS**2, generator=keyed_generator(self.seed, "cka", image))
        return order[: self._filled(image + 1) - self._filled(image)].tolist()

    def update(self, grids: dict[str, Float[Tensor, "b _c _h _w"]]) -> None:
        """Add the next images: the grid of every layer. Few of their tokens are read, none is kept."""
        batch, first = len(grids[self.layers[0]]), int(self.seen)
        folds_of(first, batch, self.images)  # refuses images beyond the last
        places = [(i, cell) for i in range(batch) for cell in self._cells(first + i)]
        for layer in self.layers:
            kept: Tensor = getattr(self, f"rows_{layer}")
            for row, (i, cell) in enumerate(places, start=self._filled(first)):
                kept[row] = cell_mean(grids[layer][i], cell)
        self.seen += batch

    def rows(self, layer: str) -> Float[Tensor, "n c"]:
        """The (image, cell) means kept of a layer, to compare across timesteps or models with :func:`debiased_cka`."""
        kept: Tensor = getattr(self, f"rows_{layer}")
        return kept[: self._filled(int(self.seen))]

    def compute(self) -> Float[Tensor, "l l"]:
        """CKA of every pair of layers, in the order of ``channels``; NaN where a layer does not vary."""
        count = self._filled(int(self.seen))
        if count < MIN_ROWS:
            raise InputError(
                f"Expected the rows to be at least {MIN_ROWS} for debiased CKA, but got {count}. Measure on more images."
            )
        grams = torch.stack([centred_gram(self.rows(layer)).flatten() for layer in self.layers])
        return hsic_to_cka(grams / math.sqrt(count * (count - 3)))
