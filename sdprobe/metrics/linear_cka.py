"""LinearCKA: similarity of two layers on the same positions of the same images."""

from collections.abc import Iterator, Sequence
from itertools import combinations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sdprobe.metrics.folds import folds_of
from sdprobe.metrics.sums import SumMetric
from sdprobe.utilities import expect
from sdprobe.utilities.rng import keyed_generator

CELLS = 8
ROWS = 1024
MIN_ROWS = 4
RIDGE = 1e-10  # ridge of the least squares, relative to the number of rows


def cell_mean(image: Float[Tensor, "c h w"], cell: int) -> Float[Tensor, " c"]:
    """Mean over one cell of an 8×8 partition, numbered row-major. Other cells are not read."""
    height, width = image.shape[1:]
    row, col = divmod(cell, CELLS)
    rows = slice(row * height // CELLS, -(-(row + 1) * height // CELLS))
    cols = slice(col * width // CELLS, -(-(col + 1) * width // CELLS))
    return image[:, rows, cols].mean((1, 2), dtype=torch.float64)


def sharing(height: int, width: int) -> Bool[Tensor, "64 64"]:
    """Which cells share a token of a grid. If 8 divides both sides, each cell shares tokens with itself only."""

    def axis(side: int) -> Bool[Tensor, "8 8"]:
        number = torch.arange(CELLS)
        start, end = number * side // CELLS, -(-(number + 1) * side // CELLS)
        return (start[:, None] < end) & (start < end[:, None])

    return (axis(height)[:, None, :, None] & axis(width)[None, :, None, :]).reshape(CELLS**2, CELLS**2)


def unrelated(image: Int[Tensor, " n"], cell: Int[Tensor, " n"], shared: Bool[Tensor, "64 64"]) -> Bool[Tensor, "n n"]:
    """Pairs of rows with neither the image nor the position in common: different images, and cells that share no token."""
    return (image[:, None] != image) & ~shared.to(cell.device)[cell][:, cell]


def centred_grams(layers: Sequence[Float[Tensor, "n _c"]], pairs: Bool[Tensor, "n n"]) -> Float[Tensor, "l m"]:
    """K̂ of every layer on the m pairs i < j: its inner products K without what a row adds to all its pairs.

    K̂_ij = K_ij − u_i − u_j, where u minimises Σ (K_ij − u_i − u_j)² over the pairs. A common offset of the rows is such a sum
    and vanishes. With every pair i ≠ j this is U-centring, and ⟨K̂, L̂⟩ is HSIC₁ times n (n − 3) / 2.

    References:
        Székely & Rizzo (2014), Annals of Statistics 42, arXiv:1310.2926, definition 2 and section 3 (U-centring).
    """
    once = pairs.triu().flatten().nonzero()[:, 0]
    normal = pairs.double() + pairs.sum(1).double().diag()
    normal.diagonal().add_(
        RIDGE * len(pairs)
    )  # for a row without pairs, or two sets of rows, u is not unique, but u_i + u_j is
    factor = torch.linalg.cholesky(normal)
    grams = []
    for rows in layers:
        rows = rows.double() - rows.double().mean(0)
        gram = rows @ rows.mT
        effect = torch.cholesky_solve((gram * pairs).sum(1, keepdim=True), factor)
        grams.append((gram - effect - effect.mT).take(once))
    return torch.stack(grams)


def cka_matrix(grams: Float[Tensor, "l m"]) -> Float[Tensor, "l l"]:
    """CKA = ⟨K̂, L̂⟩ / (‖K̂‖ ‖L̂‖) of every pair of layers; NaN where a layer does not vary."""
    return _scaled(grams @ grams.mT, grams)


def position_matrix(grams: Float[Tensor, "l m"], pairs: Bool[Tensor, "n n"], cell: Int[Tensor, " n"]) -> Float[Tensor, "l l"]:
    """The part of :func:`cka_matrix` that remains when the rows of one layer are permuted over images within each cell.

    The mean over all permutations replaces K̂ by its mean over the pairs in the same two cells. The scale of the rows does not
    change. In that mean each pair has a weight of about 1/240, so without any position code a layer has about .004 with
    itself.
    """
    ends = cell[pairs.triu().nonzero()].sort(1).values
    block = ends[:, 0] * CELLS**2 + ends[:, 1]
    sums = grams.new_zeros(len(grams), CELLS**4).index_add_(1, block, grams)
    sums /= block.bincount(minlength=CELLS**4).clamp(min=1).sqrt()
    return _scaled(sums @ sums.mT, grams)


def _scaled(products: Float[Tensor, "l l"], grams: Float[Tensor, "l m"]) -> Float[Tensor, "l l"]:
    scale = grams.square().sum(1)
    return products / torch.where(scale > 0, scale, torch.nan).outer(scale).sqrt()


def debiased_cka(x: Float[Tensor, "n c"], y: Float[Tensor, "n d"], pairs: Bool[Tensor, "n n"]) -> Float[Tensor, ""]:
    """Debiased linear CKA of two representations of the same n items, one item per row, over some pairs of them.

    CKA = ⟨K̂, L̂⟩ / (‖K̂‖ ‖L̂‖), see :func:`centred_grams`. It is unbiased: let X and Y be independent, and let E[K_ij] be the
    same for all ``pairs``, as for rows that are independent draws. Then E⟨K̂, L̂⟩ = ⟨E K̂, E L̂⟩ = 0, because a constant is a
    sum u_i + u_j. Pairs of rows that share something (image, position) have another mean and must be left out. With every pair
    i ≠ j it is the published estimator HSIC₁(K, L) / √(HSIC₁(K, K) HSIC₁(L, L)).

    The value is from −1 to 1 (not clipped), and 1 for equal layers. Rotations, a common factor and a common offset of X or Y
    change nothing. NaN if X or Y does not vary.

    Raises:
        InputError: there are fewer than 4 rows.

    References:
        Song et al. (2012), JMLR 13, theorem 2; Kornblith et al. (2019), arXiv:1905.00414; Nguyen et al. (2021),
        arXiv:2010.15327, section 3.
    """
    expect.at_least("rows for debiased CKA", len(x), MIN_ROWS)
    return cka_matrix(centred_grams([x, y], pairs))[0, 1]


class LinearCKA(SumMetric):
    """Debiased linear CKA between layers, on means over the cells of an 8×8 partition of the grid.

    At most ``rows`` (image, cell) pairs are stored, the same for all layers, so memory does not grow with the number of
    images. Image n of N contributes ⌊(n+1)R/N⌋ − ⌊nR/N⌋ of R rows, which spreads them evenly. The rows of an image are cells
    drawn at random without repetition, keyed by the number of the image. Cells are those of torch's adaptive pooling: exact if
    8 divides the side; on grids below 8×8 neighbouring cells share tokens.

    Rows of one image are similar, and so are rows of one position. If two layers each have a vector of their own per image, or
    per position, such pairs look like similarity between the layers (.28 and .21 at 40 images). Therefore only pairs count
    that are from different images and whose cells share no token of either layer's grid. Then two layers with unrelated codes
    of content or position have mean 0. The contribution of shared positions is reported separately, see
    :func:`position_matrix`.

    The states are buffers with fixed positions, so the metric works on one device only.

    Args:
        shapes: layer → (C, h, w).
        images: number of images that will arrive.
        rows: largest number of rows to store.
        seed: of the draw of cells.

    Raises:
        InputError: more images arrive than ``images``; in :meth:`compute`, fewer than 4 arrived.
    """

    seen: Tensor

    def __init__(self, shapes: dict[str, tuple[int, int, int]], images: int, rows: int = ROWS, seed: int = 0) -> None:
        super().__init__()
        self.layers, self.images, self.seed = tuple(shapes), images, seed
        self.shared = [sharing(height, width) for _, height, width in shapes.values()]
        self.size = min(rows, images * CELLS**2)
        self.add_sums(**{f"rows_{layer}": (self.size, channels) for layer, (channels, _, _) in shapes.items()})
        self.add_sums(torch.int64, seen=())

    def _filled(self, images: int) -> int:
        """Number of rows from the first ``images`` images."""
        return images * self.size // self.images

    def _cells(self, image: int) -> list[int]:
        """Cells of the image number ``image``, row-major indices into the partition."""
        order = torch.randperm(CELLS**2, generator=keyed_generator(self.seed, "cka", image))
        return order[: self._filled(image + 1) - self._filled(image)].tolist()

    def update(self, grids: dict[str, Float[Tensor, "b _c _h _w"]]) -> None:
        """Add the next images: the grid of every layer. Only a few tokens are read, and no token is stored."""
        batch, first = len(grids[self.layers[0]]), int(self.seen)
        folds_of(first, batch, self.images)  # refuses images beyond the last
        cells = [(i, cell) for i in range(batch) for cell in self._cells(first + i)]
        for layer in self.layers:
            rows: Tensor = getattr(self, f"rows_{layer}")
            for row, (i, cell) in enumerate(cells, start=self._filled(first)):
                rows[row] = cell_mean(grids[layer][i], cell)
        self.seen += batch

    def rows(self, layer: str) -> Float[Tensor, "n c"]:
        """The stored (image, cell) means of a layer. Compare them across timesteps or models with :func:`debiased_cka`."""
        rows: Tensor = getattr(self, f"rows_{layer}")
        return rows[: self._filled(int(self.seen))]

    def cells_of_rows(self) -> tuple[Int[Tensor, " n"], Int[Tensor, " n"]]:
        """Image and cell of every row: the number of the image in order of arrival, and the row-major index of the cell."""
        cells = [self._cells(image) for image in range(int(self.seen))]
        image = torch.arange(len(cells)).repeat_interleave(torch.tensor([len(drawn) for drawn in cells], dtype=torch.long))
        cell = torch.tensor([cell for drawn in cells for cell in drawn], dtype=torch.long)
        return image.to(self.device), cell.to(self.device)

    def compute(self) -> dict[str, Float[Tensor, "l l"]]:
        """``cka`` and ``cka_positions`` of every pair of layers, in the order of ``shapes``; NaN if a layer does not vary."""
        expect.at_least("images for debiased CKA", int(self.seen), MIN_ROWS)
        image, cell = self.cells_of_rows()
        size = (len(self.layers), len(self.layers))
        cka, positions = (torch.zeros(size, dtype=torch.float64, device=self.device) for _ in range(2))
        for members, shared in self._alike():
            pairs = unrelated(image, cell, shared)
            grams = centred_grams([self.rows(self.layers[i]) for i in members], pairs)
            block = torch.meshgrid(torch.tensor(members), torch.tensor(members), indexing="ij")
            cka[block], positions[block] = cka_matrix(grams), position_matrix(grams, pairs, cell)
        return {"cka": cka, "cka_positions": positions}

    def _alike(self) -> Iterator[tuple[list[int], Bool[Tensor, "64 64"]]]:
        """Groups of layers to compare, and the cells that share a token of one of their grids. Equal grids come last."""
        kinds: dict[bytes, list[int]] = {}
        for number, shared in enumerate(self.shared):
            kinds.setdefault(shared.numpy().tobytes(), []).append(number)
        of_kind = list(kinds.values())
        for first, second in [*combinations(of_kind, 2), *zip(of_kind, of_kind, strict=True)]:
            yield sorted({*first, *second}), self.shared[first[0]] | self.shared[second[0]]
