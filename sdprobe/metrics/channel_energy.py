"""ChannelEnergy: whether a few channels carry the energy of a layer's tokens."""

from jaxtyping import Float, Int
from torch import Tensor

from sdprobe.metrics.credibility import channel_risk
from sdprobe.metrics.folds import FOLDS, Estimate, FoldMetric, estimates_of
from sdprobe.metrics.layer_tokens import LayerTokens


def top_count(channels: int) -> int:
    """k = ⌈0.01 C⌉.

    >>> [top_count(channels) for channels in (4, 100, 320, 1280)]
    [1, 1, 4, 13]
    """
    return -(-channels // 100)


class ChannelEnergy(FoldMetric):
    """Share of energy in the strongest channels.

    ``channel_energy/all``: S_k, energy share of the top k = ⌈0.01 C⌉ channels. ``r_chn/all``: S_k beyond their count share,
    see :func:`channel_risk`. The energy of a channel is Σ (x_c − mean_c)² over all tokens, and S_k lies in [k/C, 1]. The
    channels are chosen once, on all images. Choosing them again in every fold would favour channels that are strong by chance.

    Args:
        channels: C.
        images, folds: see :class:`~.FoldMetric`.

    References:
        Sun et al. (2024), arXiv:2402.17762: massive activations are in few channels.
    """

    bounds = (0, 1)
    energy: Tensor

    def __init__(self, channels: int, images: int, folds: int = FOLDS) -> None:
        super().__init__(images, folds, energy=(channels,))

    def update(self, layer: LayerTokens) -> None:
        """Add the next images."""
        fold = self._next_folds(len(layer), layer.norms.device)
        for i, image in enumerate(layer.centred):  # one image at a time, so that squares need little memory
            self.energy[fold[i]] += image.square().sum(0)

    def top(self) -> Int[Tensor, " k"]:
        """Indices of the top k channels, in descending order of energy."""
        return self.energy.sum(0).topk(top_count(self.energy.shape[1])).indices

    def _values(self, energy: Float[Tensor, "*n c"]) -> dict[str, Tensor]:
        channels, top = energy.shape[-1], self.top()
        share = energy[..., top].sum(-1) / energy.sum(-1)
        return {"channel_energy/all": share, "r_chn/all": channel_risk(share, len(top), channels)}

    def estimates(self) -> dict[str, Estimate]:
        """S_k and r_chn of all images and without each fold, of the images on this device; NaN where all energy is 0."""
        return estimates_of(self._values, self.energy)
