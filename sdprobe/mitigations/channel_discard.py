"""ChannelDiscard: zero channels with massive activations, then normalise tokens."""

import logging

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import layer_norm

from sdprobe.mitigations.base import Fitter, Mitigation
from sdprobe.tokens.geometry import flatten
from sdprobe.utilities import settings

log = logging.getLogger(__name__)


class MagnitudeSums(Fitter):
    """``total``: Σ over images of the mean of ``|x_c|`` over positions, (C,)."""

    total = torch.zeros((), dtype=torch.float64)

    def update(self, *grids: Float[Tensor, "b c h w"]) -> None:
        [grid] = grids
        self.total = self.total + grid.abs().sum((0, 2, 3), dtype=torch.float64) / grid[0, 0].numel()
        self.images += len(grid)


class ChannelDiscard(Mitigation):
    """Set channels with massive activations to 0, then apply layer norm without learned weights to every token.

    A channel c is set to 0 if its mean magnitude ``E |x_c|`` over training tokens exceeds ``ratio`` times the median over
    channels. Layer norm runs whether or not a channel is chosen. Often none is.

    Args:
        ratio: at least 1.

    Raises:
        InputError: ``ratio`` below 1. At the end of a fit: no image was seen.

    References:
        Gan et al. (2025), Unleashing Diffusion Transformers for Visual Correspondence by Modulating Massive Activations,
        arXiv 2505.18584.

    Example:
        >>> import torch
        >>> from sdprobe.mitigations import ChannelDiscard
        >>> grids = torch.randn(4, 8, 4, 4)
        >>> grids[:, 3] *= 1000
        >>> ChannelDiscard().fit([grids]).describe()
        {'fit_images': 4, 'discarded': 1}
    """

    fitted = ("magnitude",)

    def __init__(self, ratio: float = 100.0) -> None:
        settings.check("channel_discard", ratio=ratio)
        self.ratio = ratio

    def fitter(self, size: int = 512) -> MagnitudeSums:
        return MagnitudeSums(self)

    def solve(self, sums: MagnitudeSums) -> dict[str, Tensor]:
        magnitude = (sums.total / sums.images).float()
        if not self.chosen(magnitude).any():
            log.info("channel_discard: no channel exceeds %g times the median magnitude; only layer norm is left.", self.ratio)
        return {"magnitude": magnitude}

    def chosen(self, magnitude: Float[Tensor, " c"]) -> Bool[Tensor, " c"]:
        """Which channels become 0.

        Args:
            magnitude: mean magnitude of every channel (C,).

        Returns:
            a boolean mask (C,).
        """
        return magnitude > self.ratio * magnitude.quantile(0.5)

    def apply(self, grid: Float[Tensor, "b c h w"], magnitude: Float[Tensor, " c"]) -> Float[Tensor, "b c h w"]:
        tokens = flatten(grid.float()).masked_fill(self.chosen(magnitude), 0)
        normed = layer_norm(tokens, tokens.shape[-1:]).unflatten(1, grid.shape[2:]).permute(0, 3, 1, 2)
        return normed.to(grid.dtype)

    def report(self, magnitude: Float[Tensor, " c"]) -> dict[str, object]:
        """How many channels become 0.

        Returns:
            ``discarded``, which may be 0.
        """
        return {"discarded": int(self.chosen(magnitude).sum())}
