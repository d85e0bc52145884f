"""ChannelEnergy: whether a few channels carry the energy of a layer's tokens."""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torchmetrics import Metric

from sdprobe.metrics.credibility import channel_risk
from sdprobe.metrics.folds import FOLDS, Estimate, folds_of, leave_one_out, with_intervals
from sdprobe.metrics.layer_tokens import LayerTokens


def top_count(channels: int) -> int:
    """k = ⌈0.01 C⌉.

    >>> [top_count(channels) for channels in (4, 100, 320, 1280)]
    [1, 1, 4, 13]
    """
    return -(-channels // 100)


class ChannelEnergy(Metric):
    """``channel_energy/all``: S_k = energy share of the top k = ⌈0.01 C⌉ channels; ``r_chn/all``: beyond their count share.

    Energy of a channel is Σ (x_c − mean_c)² over all tokens; S_k lies in [k/C, 1], see :func:`channel_risk`. The channels are
    chosen once, on all images: chosen anew in every fold, each would favour its own luck.

    Images arrive in one order and form 20 folds of consecutive ones for the intervals; let crops of one photograph follow one
    another, so that few are split. On several devices ``images`` is the number that one device sees.

    Args:
        channels: C.
        images: number of images that will arrive.
        folds: number of groups of images.

    Raises:
        InputError: if more images arrive than ``images``.

    References:
        Sun et al. (2024), arXiv:2402.17762: massive activations sit in few channels.
    """

    full_state_update = False
    energy: Tensor
    seen: Tensor

    def __init__(self, channels: int, images: int, folds: int = FOLDS) -> None:
        super().__init__()
        self.images, self.folds = images, folds
        self.add_state("energy", torch.zeros(folds, channels, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("seen", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, layer: LayerTokens) -> None:
        """Add the next images."""
        fold = folds_of(int(self.seen), len(layer), self.images, self.folds, layer.norms.device)
        for i, image in enumerate(layer.centred):  # one by one, so that squares take little memory
            self.energy[fold[i]] += image.square().sum(0)
        self.seen += len(layer)

    def top(self) -> Int[Tensor, " k"]:
        """Indices of the top k channels, the most energetic first."""
        return self.energy.sum(0).topk(top_count(self.energy.shape[1])).indices

    def _values(self, energy: Float[Tensor, "*n c"]) -> dict[str, Tensor]:
        channels, top = energy.shape[-1], self.top()
        share = energy[..., top].sum(-1) / energy.sum(-1)
        return {"channel_energy/all": share, "r_chn/all": channel_risk(share, len(top), channels)}

    def estimates(self) -> dict[str, Estimate]:
        """S_k and r_chn of all images and without one fold each; of this device's images."""
        whole, without = self._values(self.energy.sum(0)), self._values(leave_one_out(self.energy))
        return {key: (whole[key], without[key]) for key in whole}

    def compute(self) -> dict[str, float]:
        """S_k and r_chn, with intervals from 40 images on; nothing where all energy is 0."""
        return with_intervals(self.estimates(), self.seen, (0, 1))
