"""StatisticsProbe: anomalies of a layer's tokens, measured without training. Data path steps 8 and 9.

Fit images give every layer's mean token and the direction of its high-norm tokens. All other images are measured whole and
cropped, and a few of them also with other noise and at another timestep.
"""

from collections.abc import Sequence
from typing import Protocol, cast, runtime_checkable

import numpy as np
from jaxtyping import Bool
from torch import Tensor, nn

from probes.base import Data, Probe, Shapes
from probes.pictures import Pictures
from sdprobe.estimators.layer_statistics import LayerStatistics, reported
from sdprobe.metrics.folds import FOLDS, require_images
from sdprobe.metrics.group_similarity import MIN_SIDE
from sdprobe.metrics.layer_tokens import TokenMeans
from sdprobe.metrics.linear_cka import LinearCKA
from sdprobe.tokens.batch import GridBatch
from sdprobe.tokens.keys import by_timestep, label_of, select, timestep_of, variant
from sdprobe.utilities import settings
from sdprobe.utilities.errors import InputError

WHOLE, CROPPED, OTHER_NOISE, OTHER_TIMESTEP = range(4)
STRIDE = 8  # pixels per latent cell
FIRST = ("conv_in", "down_0")  # layers in which anomalies of the latent itself may appear


@runtime_checkable
class Sized(Protocol):
    """A dataloader with ``images``, the number of its images."""

    images: int


class StatisticsData(Data, Protocol):
    """A data module that streams images whole, cropped, with other noise and at another timestep."""

    def test_dataloader(self) -> Sequence[Sized]:
        """Return a loader per view."""

    def floor_cells(self, indices: Sequence[int]) -> dict[int, Bool[Tensor, "h w"]]:
        """Return image index → cells (h, w) of its latent where the VAE's posterior variance has its minimum in any channel."""


class StatisticsProbe(Probe):
    """Statistics of every layer: similarity and norm of token groups, variance by position, high-norm tokens, credibility.

    ``results`` are ``test/<layer>/<metric>/<group>``; methods.md, sections 10 and 11, defines them with their ranges. Intervals
    need 40 images, two for each of 20 groups.

    Args:
        shapes: layer → (C, h, w); h and w at least 4, also after cropping.
        photos: number of photographs; not used.
        data: a data module with the four views, such as :class:`~datamodules.grids.GridDataModule`.
        size: side of the images in pixels.
        margin: pixels that the cropped view lacks on every side, at least 1; a whole number of tokens in every layer.
        pictured: number of images to draw, at least 0: the first ones measured, at most those of one batch.
        token: (row, col) on a grid of 32 × 32 tokens, each from 0 to 31. Its similarity to all others is drawn for the first
            image. The default is near the middle.
        seed: seed of the tokens drawn for RSA and CKA.

    Raises:
        InputError: a grid that is too small for corner, border and interior, a margin that is not a whole number of tokens, an
            option out of range, a data module of another kind.

    Example:
        >>> from types import SimpleNamespace
        >>> shapes = {"mid": (64, 8, 8), "up_1": (64, 32, 32)}
        >>> probe = StatisticsProbe(shapes, photos=60, data=SimpleNamespace(kind="grids"), size=512, margin=64)
        >>> probe.margins  # in tokens
        {'mid': 1, 'up_1': 4}
    """

    kind, reads, explored = "statistics", "grids", 2
    data: StatisticsData

    def __init__(
        self,
        shapes: Shapes,
        photos: int,
        data: Data,
        size: int = 512,
        margin: int = 64,
        pictured: int = 4,
        token: Sequence[int] = (12, 17),
        seed: int = 0,
    ) -> None:
        super().__init__(shapes, data)
        settings.check("probe", pictured=pictured)
        self.automatic_optimization, self.fitting = False, "fit mean tokens"
        self.size, self.pictured, self.seed = size, pictured, seed
        self.margins = {layer: _margin(layer, margin, size, h) for layer, (_, h, _) in shapes.items()}
        self.fitted = nn.ModuleDict({layer: TokenMeans(channels) for layer, (channels, _, _) in shapes.items()})
        self.cka = nn.ModuleDict()  # between the layers of each noise level
        self.pictures = Pictures(token)

    def on_fit_start(self) -> None:
        """Raise InputError if there are too few images, before anything is computed."""
        require_images(self._images(WHOLE), FOLDS)

    def training_step(self, batch: GridBatch, batch_idx: int) -> None:
        """Add fit images to the sums for the mean token and the direction of high-norm tokens."""
        for layer, grid in batch.grids.items():
            self._means(layer).update(grid, batch.masks[layer]["high_norm"])

    def on_train_epoch_end(self) -> None:
        """Stop after one pass."""
        self.trainer.should_stop = True

    def on_test_start(self) -> None:
        """Build the metrics, which need the mean tokens.

        Raises:
            InputError: a resumed run, which has not seen the fit images.
        """
        if not all(self._means(layer).count for layer in self.shapes):
            raise InputError(
                "Expected a run of probe=statistics to begin with its fit images, but got a resumed run. Leave out resume=."
            )
        measured = self._images(WHOLE)
        repeated = {"noise": self._images(OTHER_NOISE), "timestep": self._images(OTHER_TIMESTEP)}
        self.measures = nn.ModuleDict(
            {
                layer: LayerStatistics(
                    shape, self.margins[layer], self._means(layer), measured, repeated, self.seed, not label_of(layer)
                )
                for layer, shape in self.shapes.items()
            }
        ).to(self.device)
        levels = by_timestep(layer for layer in self.shapes if not label_of(layer))
        self.cka = nn.ModuleDict(
            {
                variant("cka", timestep=level): LinearCKA({name: self.shapes[name] for name in names}, measured, seed=self.seed)
                for level, names in levels.items()
            }
        ).to(self.device)

    def test_step(self, batch: GridBatch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Update every layer's statistics with a batch of a view; ``dataloader_idx`` is the number of the view."""
        for layer, grid in batch.grids.items():
            statistics, masks = self._of(layer), batch.masks[layer]
            if dataloader_idx == WHOLE:
                statistics.whole(grid, masks, batch.image, batch.photo)
            elif dataloader_idx == CROPPED:
                statistics.cropped(grid, masks)
            else:
                statistics.repeated(dataloader_idx == OTHER_NOISE, masks["high_norm"], batch.image)
        if dataloader_idx == WHOLE:
            for cka in self.cka.values():
                cka.update(batch.grids)  # type: ignore[operator]
            self.keep(batch)
            if batch_idx == 0 and self.pictured:
                self.pictures.take(batch, self.pictured)

    def collect(self) -> None:
        """Write the statistics of every layer; credibility is logged."""
        self._compare_with_floor()
        results, units = reported({layer: self._of(layer) for layer in self.shapes})
        self.results |= results
        self._units |= units
        self.log_dict(select(self.results, metric="credibility", where="all", statistic=""))

    def maps(self) -> dict[str, np.ndarray]:
        """Arrays by name.

        Returns:
            ``<layer>/norm`` (h, w); ``cka`` and ``cka_positions`` (L, L), with several noise levels as ``cka__t261`` and
            ``cka_positions__t261`` of each; those of :meth:`~probes.pictures.Pictures.maps`.
        """
        maps: dict[str, np.ndarray] = {f"{layer}/norm": self._of(layer).norms.maps()["norm"] for layer in self.shapes}
        for level, cka in self.cka.items():
            tables: dict[str, Tensor] = cka.compute()  # type: ignore[operator]
            maps |= {variant(name, timestep=timestep_of(level)): table.cpu().numpy() for name, table in tables.items()}
        return maps | self.pictures.maps()

    def _compare_with_floor(self) -> None:
        """Compare high-norm tokens with the VAE's cells of minimal variance, in layers of the latent's resolution."""
        latent = self.size // STRIDE
        sides = {layer: h for layer, (_, h, _) in self.shapes.items() if layer.startswith(FIRST) and h == latent}
        seen = [index for layer in sides for index in self._of(layer).first_masks]
        if not seen:
            return
        cells = self.data.floor_cells(list(dict.fromkeys(seen)))
        for layer in sides:
            statistics = self._of(layer)
            statistics.compare_with_floor({index: cells[index] for index in statistics.first_masks})

    def _of(self, layer: str) -> LayerStatistics:
        return cast(LayerStatistics, self.measures[layer])

    def _means(self, layer: str) -> TokenMeans:
        return cast(TokenMeans, self.fitted[layer])

    def _images(self, view: int) -> int:
        """Number of images in a view."""
        return self.data.test_dataloader()[view].images


def whole_tokens(name: str, pixels: int, layer: str, size: int, side: int) -> int:
    """Pixels in tokens of a grid of ``side`` tokens, for the setting ``datamodule.NAME`` and images of ``size`` pixels.

    Raises:
        InputError: they are not a whole number of tokens.
    """
    settings.check("datamodule", **{name: pixels})
    if pixels * side % size:
        raise InputError(
            f"Expected datamodule.{name} to be a whole number of tokens in layer {layer} ({size // side} pixels each), "
            f"but got {pixels} pixels. Use a multiple of 64, or leave this layer out."
        )
    return pixels * side // size


def _margin(layer: str, margin: int, size: int, side: int) -> int:
    """The margin in tokens of a grid of ``side`` tokens."""
    tokens = whole_tokens("margin", margin, layer, size, side)
    left = side - 2 * tokens
    if left < MIN_SIDE:
        raise InputError(
            f"Expected the grid of layer {layer} to be at least {MIN_SIDE}×{MIN_SIDE} after cropping for statistics of corner, "
            f"border and interior, but got {left}×{left}. Use larger images, or leave this layer out."
        )
    return tokens
