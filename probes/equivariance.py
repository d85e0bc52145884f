"""EquivarianceProbe: do a layer's activations move with the picture? Measured without training. Data path steps 8 and 9.

Fit images give every layer's mean token. All other images are measured in two windows.
"""

from typing import Protocol, cast

from torch import nn

from probes.base import Data, Probe, Shapes
from probes.statistics import Sized, whole_tokens
from sdprobe.estimators.scores import entry
from sdprobe.metrics.equivariance import ShiftEquivariance
from sdprobe.metrics.folds import FOLDS, require_images, with_interval
from sdprobe.metrics.layer_tokens import LayerTokens, TokenMeans
from sdprobe.metrics.position_variance import PositionVariance
from sdprobe.tokens.batch import GridBatch
from sdprobe.tokens.keys import qualified, select
from sdprobe.utilities.errors import InputError


class WindowData(Data, Protocol):
    """A data module that streams images in two windows."""

    def test_dataloader(self) -> Sized:
        """Return a loader of pairs of batches."""


class EquivarianceProbe(Probe):
    """Shift equivariance of every layer by distance to the border, and position variance beside it.

    ``results`` are ``test/<layer>/equivariance/<where>`` and ``test/<layer>/equivariance_psnr/<where>`` of
    :class:`~sdprobe.metrics.equivariance.ShiftEquivariance`, and ``test/<layer>/r_pos/all``, which is the
    :class:`~sdprobe.metrics.position_variance.PositionVariance` of the first window.

    Args:
        shapes: layer → (C, h, w).
        photos: number of photographs.
        data: a data module with two windows, such as :class:`~datamodules.windows.WindowDataModule`.
        size: side of a window in pixels.
        shift: pixels between the windows, at least 1; a whole number of tokens in every layer, and less than ``size``.

    Raises:
        InputError: a shift that is not a whole number of tokens, or leaves no token that both windows show; an option out of
            range; a data module of another kind.

    Example:
        >>> from types import SimpleNamespace
        >>> shapes = {"mid": (64, 8, 8), "up_1": (64, 32, 32)}
        >>> EquivarianceProbe(shapes, photos=60, data=SimpleNamespace(kind="windows"), size=512, shift=64).shifts  # in tokens
        {'mid': 1, 'up_1': 4}
    """

    kind, reads = "equivariance", "windows"
    data: WindowData

    def __init__(self, shapes: Shapes, photos: int, data: Data, size: int = 512, shift: int = 64) -> None:
        super().__init__(shapes, data)
        self.automatic_optimization, self.fitting = False, "fit mean tokens"
        self.shifts = {layer: _shift(layer, shift, size, h) for layer, (_, h, _) in shapes.items()}
        self.fitted = nn.ModuleDict({entry(layer): TokenMeans(channels) for layer, (channels, _, _) in shapes.items()})
        self.scores = nn.ModuleDict(
            {entry("test", layer): ShiftEquivariance(h, w, self.shifts[layer], photos) for layer, (_, h, w) in shapes.items()}
        )

    def on_fit_start(self) -> None:
        """Raise InputError if there are too few images, before anything is computed."""
        require_images(self.data.test_dataloader().images, FOLDS)

    def training_step(self, batch: GridBatch, batch_idx: int) -> None:
        """Add fit images to the sums for the mean token."""
        for layer, grid in batch.grids.items():
            self._means(layer).update(grid, batch.masks[layer]["high_norm"])

    def on_train_epoch_end(self) -> None:
        """Stop after one pass."""
        self.trainer.should_stop = True

    def on_test_start(self) -> None:
        """Build the metrics of position variance, which need the number of images."""
        images = self.data.test_dataloader().images
        self.measures = nn.ModuleDict({entry(layer): PositionVariance(*shape, images) for layer, shape in self.shapes.items()})
        self.measures.to(self.device)
        self.means = {layer: self._means(layer).compute()[0].view(shape[0]) for layer, shape in self.shapes.items()}

    def test_step(self, batch: tuple[GridBatch, GridBatch], batch_idx: int) -> None:
        """Compare both windows of a batch of images, and add the first to position variance."""
        first, second = batch
        for layer, grid in first.grids.items():
            mean = self.means[layer]
            self.scores[entry("test", layer)].update(grid, second.grids[layer], mean, first.photo)  # type: ignore[operator]
            self._variance(layer).update(LayerTokens.of(grid, {}, mean))

    def collect(self) -> None:
        """Write both measures of every layer; equivariance of all tokens is logged."""
        self.collect_scores(self.scores, ("test",))
        for layer in self.shapes:
            variance = self._variance(layer)
            self.results |= qualified("test", layer, with_interval("r_pos/all", variance.estimate(), variance.images))
        self.log_dict(select(self.results, condition="test", metric="equivariance", where="all", statistic=""))

    def _means(self, layer: str) -> TokenMeans:
        return cast(TokenMeans, self.fitted[entry(layer)])

    def _variance(self, layer: str) -> PositionVariance:
        return cast(PositionVariance, self.measures[entry(layer)])


def _shift(layer: str, shift: int, size: int, side: int) -> int:
    """The shift in tokens of a grid of ``side`` tokens."""
    tokens = whole_tokens("shift", shift, layer, size, side)
    if shift >= size:
        raise InputError(f"Expected datamodule.shift to be less than images.size, {size}, but got {shift}. Use a smaller one.")
    return tokens
