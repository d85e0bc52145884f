"""ChannelDiscard: silence channels of massive activations, and bring tokens to one scale."""

import logging

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import layer_norm

from sdprobe.mitigations.base import Mitigation
from sdprobe.tokens.geometry import flatten
from sdprobe.utilities import expect
from sdprobe.utilities.errors import InputError

log = logging.getLogger(__name__)


class ChannelDiscard(Mitigation):
    """Channels whose mean magnitude E |x_c| exceeds ``ratio`` times the median over channels become 0; then layer norm.

    Layer norm, without learned weights, runs whether or not a channel is chosen; often none is.

    Args:
        ratio: at least 1.

    Raises:
        InputError: ``ratio`` below 1; at the end of a fit, no image was seen.

    Reference: C. Gan et al. Unleashing Diffusion Transformers for Visual Correspondence by Modulating Massive Activations.
        arXiv 2505.18584, 2025.
    """

    magnitude: Float[Tensor, " c"]

    def __init__(self, ratio: float = 100.0) -> None:
        super().__init__("magnitude")
        expect.at_least("ratio", ratio, 1)
        self.ratio = ratio
        self._sums: tuple[Tensor, int] | None = None

    def update(self, *grids: Float[Tensor, "b c h w"]) -> None:
        total, images = self._sums or (torch.zeros((), dtype=torch.float64, device=grids[0].device), 0)
        magnitude = grids[0].abs().sum((0, 2, 3), dtype=torch.float64) / grids[0][0, 0].numel()
        self._sums = total + magnitude, images + len(grids[0])

    def finish(self) -> None:
        if self._sums is None:
            raise InputError("Expected at least one fit image, but got none. Fit on grids of training images.")
        (total, images), self._sums = self._sums, None
        self.magnitude = (total / images).float()
        self.seen.fill_(images)
        if not self.chosen().any():
            log.info("channel_discard: no channel exceeds %g times the median magnitude; only layer norm is left.", self.ratio)

    def chosen(self) -> Bool[Tensor, " c"]:
        """The channels that become 0."""
        return self.magnitude > self.ratio * self.magnitude.quantile(0.5)

    def transform(self, grid: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        self.check(grid, self.magnitude)
        tokens = flatten(grid.float()).masked_fill(self.chosen(), 0)
        normed = layer_norm(tokens, tokens.shape[-1:]).unflatten(1, grid.shape[2:]).permute(0, 3, 1, 2)
        return normed.to(grid.dtype)

    def describe(self) -> dict[str, object]:
        """``fit_images``, and how many channels are ``discarded``, which may be 0."""
        if not self.magnitude.numel():
            return super().describe()
        return super().describe() | {"discarded": int(self.chosen().sum())}
