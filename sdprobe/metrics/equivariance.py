"""ShiftEquivariance: how far activations move with the picture, from two windows of it, by distance to the border."""

from collections.abc import Iterator

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sdprobe.metrics.clusters import ClusterMetric, column_means
from sdprobe.metrics.intervals import positive_interval, ratio_pseudovalues

DECIBEL = 10 / np.log(10)


def margins(side: int, shift: int) -> Iterator[int]:
    """Distances to the border, in tokens, that some tokens have which two windows share: 0, 1, 2, 4, 8, …

    >>> list(margins(side=8, shift=1)), list(margins(side=2, shift=1))
    ([0, 1, 2], [0])
    """
    margin = 0
    while side - shift - 2 * margin > 0:
        yield margin
        margin = max(1, 2 * margin)


def margin_name(margin: int) -> str:
    """``<where>`` of a distance to the border.

    >>> margin_name(0), margin_name(2)
    ('all', 'margin_2')
    """
    return f"margin_{margin}" if margin else "all"


class ShiftEquivariance(ClusterMetric):
    """Shift equivariance of one layer, over the tokens that two windows share, with intervals over photographs.

    f and f′ are the layer's grids of two windows of one picture. The second window lies s tokens further down and right, so
    that token p of f′ shows what token p + s of f shows. With d_p = f_{p+s} − f′_p, the mean token μ of other images, and sums
    over images and tokens that are at least m tokens from every border of both windows::

        equivariance      = 1 − Σ ‖d_p‖² / Σ ½ (‖f_{p+s} − μ‖² + ‖f′_p − μ‖²)
        equivariance_psnr = 10 · log₁₀(Σ range² / Σ (‖d_p‖² / C))   in decibels

    ``range`` is the greatest minus the least activation of an image in both windows. 1 is exact equivariance, and −1 is the
    expectation for windows that have nothing in common. ``all`` is m = 0, ``margin_1``, ``margin_2``, ``margin_4``, … the
    tokens at least so far from every border. Where tokens do not vary, the share is undefined; where d is 0 everywhere, the
    PSNR is infinite; then they have no key. An additive code g of position costs ‖g_{p+s} − g_p‖² on average over p.

    Args:
        height, width: of the grid, in tokens.
        shift: s, at least 1 and less than either side.
        photos: number of photographs; photo indices are below it.

    References:
        Karras et al. (2021), Alias-Free Generative Adversarial Networks, NeurIPS (EQ-T, the PSNR). The share is our own.

    Example:
        >>> import torch
        >>> metric = ShiftEquivariance(4, 4, shift=1, photos=8)
        >>> picture = torch.randn(8, 3, 5, 5, generator=torch.manual_seed(0))
        >>> windows = picture[..., :4, :4], picture[..., 1:, 1:]
        >>> metric.update(*windows, mean=torch.zeros(3), photo=torch.arange(8))
        >>> {name: value for name, value in metric.compute().items() if not name.endswith("/n")}
        {'equivariance/all': 1.0, 'equivariance/margin_1': 1.0}
    """

    higher_is_better = True
    kinds = ("equivariance", "equivariance_psnr")
    residual: Tensor
    spread: Tensor
    scale: Tensor
    near: Tensor

    def __init__(self, height: int, width: int, shift: int, photos: int) -> None:
        _, *others = margins(min(height, width), shift)
        super().__init__([margin_name(margin) for margin in others], photos, residual=(), spread=(), scale=())
        self.shift, self.margins = shift, others
        rows, cols = (torch.arange(side - shift) for side in (height, width))
        rows, cols = (torch.minimum(index, len(index) - 1 - index) for index in (rows, cols))
        self.register_buffer("near", torch.minimum(rows[:, None], cols[None]).flatten(), persistent=False)

    def update(
        self,
        first: Float[Tensor, "b c h w"],
        second: Float[Tensor, "b c h w"],
        mean: Float[Tensor, " c"],
        photo: Int[Tensor, " b"],
    ) -> None:
        """Add images: the grids of both windows, the mean token of other images, and the photograph that each shows."""
        first, second, mean = first.float(), second.float(), mean.to(first.device).float()[:, None, None]
        channels, height, width = first.shape[1:]
        moved, other = first[:, :, self.shift :, self.shift :], second[:, :, : height - self.shift, : width - self.shift]
        extent = torch.maximum(first.amax((1, 2, 3)), second.amax((1, 2, 3))) - torch.minimum(
            first.amin((1, 2, 3)), second.amin((1, 2, 3))
        )
        tokens = len(self.near)
        masks: dict[str, Bool[Tensor, " n"]] = {
            margin_name(margin): (self.near >= margin).repeat(len(first)) for margin in self.margins
        }
        self._add(
            photo.repeat_interleave(tokens),
            masks,
            residual=_energies(moved - other),
            spread=(_energies(moved - mean) + _energies(other - mean)) / 2,
            scale=(channels * extent.double().square()).repeat_interleave(tokens),
        )

    def _pseudovalues(self) -> Float[np.ndarray, "photos groups 2"]:
        unmoved, error = self._ratios()
        mean = column_means(error)
        with np.errstate(divide="ignore", invalid="ignore"):
            decibels = np.where(mean > 0, -DECIBEL * (np.log(mean) + (error - mean) / mean), np.nan)
        return np.stack([1 - unmoved, decibels], axis=-1)

    def _intervals(self, values: Float[np.ndarray, "photos groups 2"]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        unmoved, error = self._ratios()
        low, high = positive_interval(unmoved, self.spread.cpu().numpy())
        least, most = positive_interval(error, self.scale.cpu().numpy())
        with np.errstate(divide="ignore", invalid="ignore"):
            psnr, psnr_low, psnr_high = (-DECIBEL * np.log(each) for each in (column_means(error), most, least))
        return (
            np.stack([1 - column_means(unmoved), psnr], axis=-1),
            np.stack([1 - high, psnr_low], axis=-1),
            np.stack([1 - low, psnr_high], axis=-1),
        )

    def _ratios(self) -> tuple[Float[np.ndarray, "photos groups"], Float[np.ndarray, "photos groups"]]:
        """Pseudo-values of the residual's share of the spread, and of the squared range."""
        residual, spread, scale = (each.cpu().numpy() for each in (self.residual, self.spread, self.scale))
        return ratio_pseudovalues(residual, spread), ratio_pseudovalues(residual, scale)


def _energies(grid: Float[Tensor, "b c h w"]) -> Float[Tensor, "b*h*w"]:
    """Sum of squares of every token, in float64."""
    return grid.square().sum(1).double().flatten()
