"""PositionVariance: share of the variance of tokens that position explains. It needs no probe and does not saturate."""

import torch
from jaxtyping import Float, Float32, Float64
from torch import Tensor

from sdprobe.metrics.folds import FOLDS, Estimate, FoldMetric, folds_of, leave_one_out, require_images
from sdprobe.metrics.layer_tokens import LayerTokens, inverse_norms
from sdprobe.utilities.errors import InputError

RESOLUTION = 1e-5  # relative precision of a sum over images in float32


def position_share(
    by_position: Float[Tensor, "c *grid"], squares: Float[Tensor, "2"], images: int, resolution: float = 1e-12
) -> Float[Tensor, ""]:
    """V_pos of N images on P positions, from their sums; two-way without interaction, unclipped.

    With tokens t_{n,p}, means over images t̄_p, over positions t̄_n, over both t̄::

        MS_b = N/(P−1) · Σ_p ‖t̄_p − t̄‖²           between positions
        MS_w = 1/(P(N−1)) · Σ ‖t_{n,p} − t̄_p‖²      within positions
        MS_e = 1/((N−1)(P−1)) · Σ ‖t_{n,p} − t̄_n − t̄_p + t̄‖²
        V_pos = σ_b² / (σ_b² + MS_w),  σ_b² = (MS_b − MS_e) / N

    The residual MS_e leaves out what differs between whole images, so that image effects cancel in σ_b². With one channel
    this is the intraclass correlation ICC(2,1) of Shrout & Fleiss, ICC(A,1) of McGraw & Wong, with positions as targets and
    images as judges. For t_{n,p} = g_p + e it estimates α²/(α² + σ²), α² = Σ_p ‖g_p − ḡ‖²/(P−1), σ² = E‖e‖².

    Args:
        by_position: Σ_n t_{n,p}.
        squares: Σ ‖t_{n,p}‖² and Σ_n ‖Σ_p t_{n,p}‖².
        images: N.
        resolution: share of Σ ‖t‖² below which variance is rounding error, so that nothing varies.

    Returns:
        at most 1, about 0 and possibly negative where position explains nothing; NaN where nothing varies, or there are
        fewer than 2 images or positions.

    References:
        Shrout & Fleiss (1979), Psychological Bulletin 86; McGraw & Wong (1996), Psychological Methods 1.
    """
    total = by_position.flatten(1).sum(1).square().sum()
    return share_of_sums(by_position.square().sum(), total, squares, images, by_position[0].numel(), resolution)


def share_of_sums(
    explained: Float[Tensor, ""],
    common: Float[Tensor, ""],
    squares: Float[Tensor, "2"],
    images: int,
    positions: int,
    resolution: float,
) -> Float[Tensor, ""]:
    """:func:`position_share` from Σ_p ‖Σ_n t_{n,p}‖² and ‖Σ_{n,p} t_{n,p}‖²."""
    if images < 2 or positions < 2:
        return torch.full_like(squares[0], torch.nan)
    explained, common = explained / images, common / (images * positions)
    within = (squares[0] - explained) / (positions * (images - 1))
    between = (explained - common) / (positions - 1)
    residual = (squares[0] - explained - squares[1] / positions + common) / ((images - 1) * (positions - 1))
    variance = (between - residual) / images
    varies = squares[0] - common > resolution * squares[0]
    return torch.where(varies, variance / (variance + within), torch.nan)


class PositionVariance(FoldMetric):
    """``position_variance/all``: V_pos, see :func:`position_share`, of one layer's tokens, with an interval.

    When the last image of a fold has arrived, its map of sums (h·w, C) is added to the total and moved to host memory in half
    precision, and the next fold starts. So the device holds two maps: that of the fold in float32 and the total in float64.
    To leave a fold out, only the product of its map with the total is needed. Because folds are processed in order, the metric
    works on one device.

    Args:
        channels, height, width: of the grid.
        images, folds: see :class:`~.FoldMetric`.
        normalise: give every centred token norm 1; a zero token stays zero.
    """

    total: Tensor
    current: Tensor
    squares: Tensor
    current_squares: Tensor
    fold_squares: Tensor

    def __init__(
        self,
        channels: int,
        height: int,
        width: int,
        images: int,
        normalise: bool = True,
        folds: int = FOLDS,
    ) -> None:
        super().__init__(images, folds, fold_squares=(2,))
        self.normalise = normalise
        tokens = (height * width, channels)
        self.add_sums(total=tokens, squares=(2,), current_squares=(2,))  # squares: Σ‖t‖², Σ_n‖Σ_p t‖²
        self.add_sums(torch.float32, current=tokens)
        # of each fold: its map divided by its largest entry, in half precision, and that entry
        self.ended: list[tuple[Tensor, Tensor]] = []

    def reset(self) -> None:
        """Discard all sums."""
        super().reset()
        self.ended = []

    def update(self, layer: LayerTokens) -> None:
        """Add the next images."""
        index, counts = folds_of(int(self.seen), len(layer), self.images, self.folds).unique(return_counts=True)
        scale = inverse_norms(layer.centred_norms) if self.normalise else torch.ones_like(layer.norms).float()
        parts = (values.split(counts.tolist()) for values in (layer.centred, layer.centred_norms, scale))
        for fold, tokens, norms, factor in zip(index.tolist(), *parts, strict=True):
            self._continue(tokens, norms, factor)
            self.seen += len(tokens)
            self._close(fold)

    def _continue(self, tokens: Float32[Tensor, "b p c"], norms: Float64[Tensor, "b p"], scale: Float32[Tensor, "b p"]) -> None:
        """Add t = scale · x of one fold, without forming t."""
        for image, factor in zip(tokens, scale, strict=True):
            self.current.addcmul_(image, factor.unsqueeze(1))
        by_image = (scale.unsqueeze(1) @ tokens).double()
        self.current_squares += torch.stack([(scale * norms).square().sum(), by_image.square().sum()])

    def _close(self, fold: int) -> None:
        """End the fold if all of its images have arrived."""
        if int(self.seen) < -(-(fold + 1) * self.images // self.folds):
            return
        largest = self.current.abs().amax().clamp_min(torch.finfo(torch.float32).tiny)
        self.ended.append(((self.current / largest).half().cpu(), largest.cpu()))
        self.total += self.current
        self.squares += self.current_squares
        self.fold_squares[fold] = self.current_squares
        self.current.zero_()
        self.current_squares.zero_()

    def estimate(self) -> Estimate:
        """V_pos of all images and without each fold."""
        edges = -(-torch.arange(self.folds + 1) * self.images // self.folds)
        explained, common = self.total.square().sum(), self.total.sum(0)
        without = []
        for k, (fold_map, largest) in enumerate(self.ended):
            own = fold_map.to(self.total).mul_(largest.to(self.total))
            left = explained - 2 * (self.total * own).sum() + own.square().sum()
            squares, images = leave_one_out(self.fold_squares)[k], self.images - int(edges[k + 1] - edges[k])
            total = (common - own.sum(0)).square().sum()
            without.append(share_of_sums(left, total, squares, images, len(self.total), RESOLUTION))
        return position_share(self.total.mT, self.squares, self.images, RESOLUTION), torch.stack(without)

    def estimates(self) -> dict[str, Estimate]:
        """``position_variance/all``: see :meth:`estimate`."""
        return {"position_variance/all": self.estimate()}

    def compute(self) -> dict[str, float]:
        """``position_variance/all`` from all images, unclipped, with the interval over folds.

        Raises:
            InputError: fewer images arrived than ``images``, or than two per fold.
        """
        require_images(int(self.seen), self.folds)
        if self.seen != self.images:
            raise InputError(
                f"Expected images to be the number of images that arrive, but got {self.images}, and {int(self.seen)} arrived. "
                "Give the statistic the length of the stream."
            )
        return super().compute()
