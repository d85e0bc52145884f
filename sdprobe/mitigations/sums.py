"""TokenSums: what one pass over the fit images stores for every closed form."""

import logging
from functools import cache

import torch
from jaxtyping import Float
from torch import Tensor

from sdprobe.mitigations.base import Fitter, Mitigation
from sdprobe.tokens.geometry import flatten
from sdprobe.utilities.errors import InputError

log = logging.getLogger(__name__)


@cache
def _warn_of_noise(name: str, images: int, channels: int) -> None:
    """Once, however many layers and noise levels are fitted."""
    log.warning("%s: %d fit images for %d channels; noise is taken for position.", name, images, channels)


class TokenSums(Fitter):
    """Sums per position; if asked for, also the second moment of all tokens and the energy of each position.

    Position is the same in every image. Therefore the covariance of tokens with any function of position follows from the mean
    map.

    Args:
        settings: what is fitted.
        second: also sum x xᵀ over all tokens (C, C).
        energy: also sum ‖x‖² per position (P,).
    """

    def __init__(self, settings: Mitigation, second: bool = False, energy: bool = False) -> None:
        super().__init__(settings)
        self.wants = (second, energy)
        self.total: Tensor = torch.empty(0)
        self.second: Tensor = torch.empty(0)
        self.energy: Tensor = torch.empty(0)

    def update(self, *grids: Float[Tensor, "b c h w"]) -> None:
        [grid] = grids
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

    def check_images(self, least: int, counted: str, fix: str) -> None:
        """Warn if there are fewer images than channels, because the noise of the mean map is then taken for position.

        Raises:
            InputError: fewer images than ``least``.
        """
        name, channels = type(self.settings).__name__, len(self.total)
        if self.images < least:
            raise InputError(
                f"Expected at least as many fit images as {counted}, {least}, but got {self.images}. Use more images, or {fix}."
            )
        if self.images < channels:
            _warn_of_noise(name, self.images, channels)

    def means(self) -> Float[Tensor, "p c"]:
        """m_p: the mean token at every position, row-major."""
        return self.total.flatten(1).T / self.images

    def covariance(self) -> Float[Tensor, "c c"]:
        """Σ: covariance of all tokens around their mean μ, divided by their number."""
        means = self.means()
        mean = means.mean(0)
        return self.second / (self.images * len(means)) - mean.outer(mean)

    def as_grid(self, tokens: Float[Tensor, "p c"]) -> Float[Tensor, "c h w"]:
        """One token per position, as a map (C, h, w) in float32."""
        return tokens.T.unflatten(1, self.total.shape[1:]).float().contiguous()
