"""TokenSums: what one pass over the fit images leaves behind for every closed form, in float64."""

import torch
from jaxtyping import Float
from torch import Tensor

from sdprobe.tokens.geometry import flatten
from sdprobe.utilities.errors import InputError


class TokenSums:
    """Sums over images: per position, and if asked for the second moment of all tokens and the energy of each position.

    Position is the same in every image, so that the covariance of tokens with any function of it follows from the mean map.

    Args:
        second: also Σ x xᵀ over all tokens (C, C).
        energy: also Σ ‖x‖² per position (P,).
    """

    def __init__(self, second: bool = False, energy: bool = False) -> None:
        self.wants = (second, energy)
        self.images = 0
        self.total: Tensor = torch.empty(0)
        self.second: Tensor = torch.empty(0)
        self.energy: Tensor = torch.empty(0)

    def update(self, grid: Float[Tensor, "b c h w"]) -> None:
        """Add images.

        Raises:
            InputError: their grids have another shape than those before.
        """
        total = grid.sum(0, dtype=torch.float64)
        if self.images and total.shape != self.total.shape:
            shapes = [" × ".join(map(str, shape)) for shape in (self.total.shape, total.shape)]
            raise InputError(f"Expected every fit image to have a grid of {shapes[0]}, but got {shapes[1]}. Fit one per layer.")
        second, energy = self.wants
        self.total = self.total + total if self.images else total
        if second:
            tokens = flatten(grid).flatten(0, 1).double()
            product = tokens.T @ tokens
            self.second = self.second + product if self.images else product
        if energy:
            squares = grid.double().square().sum((0, 1)).flatten()
            self.energy = self.energy + squares if self.images else squares
        self.images += len(grid)

    def means(self) -> Float[Tensor, "p c"]:
        """m_p: the mean token at every position, row-major.

        Raises:
            InputError: no image was added.
        """
        if not self.images:
            raise InputError("Expected at least one fit image, but got none. Fit on grids of training images.")
        return self.total.flatten(1).T / self.images

    def covariance(self) -> Float[Tensor, "c c"]:
        """Σ: covariance of all tokens around their mean μ, divided by their number.

        Raises:
            InputError: no image was added.
        """
        means = self.means()
        mean = means.mean(0)
        return self.second / (self.images * len(means)) - mean.outer(mean)
