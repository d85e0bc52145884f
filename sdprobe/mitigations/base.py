"""Mitigations: settings → fitter → map of one layer's grids. Fitted on training images, before any probe. Data path step 6.

A :class:`Mitigation` holds settings. Its :class:`Fitter` sums over grids and returns a :class:`Map`. Settings and maps are
immutable. A :class:`Chain` applies several maps one after the other.
"""

import inspect
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from sdprobe.tokens.views import View
from sdprobe.utilities.arrays import tensor_of
from sdprobe.utilities.errors import InputError

BATCH = 8  # images that are added at a time where grids are one tensor, as in runs


class Configured:
    """Settings of one step. ``options`` holds the constructor's arguments by name, with defaults; JSON-serialisable."""

    __signature__: ClassVar[inspect.Signature]
    options: dict[str, Any]  # no dataclass: OmegaConf would take it for a configuration

    def __init_subclass__(cls) -> None:
        """Show the constructor's arguments as the signature of the class, which ``__new__`` would hide from tools."""
        super().__init_subclass__()
        _, *parameters = inspect.signature(cls.__init__).parameters.values()
        cls.__signature__ = inspect.Signature(parameters if cls.__init__ is not object.__init__ else ())

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        """Record the arguments in ``options``."""
        made = super().__new__(cls)
        bound = inspect.signature(cls).bind(*args, **kwargs)
        bound.apply_defaults()
        made.options = dict(bound.arguments)
        return made


class Mitigation(Configured):
    """Settings of a mitigation that maps activation grids of any one layer. Base class.

    A subclass implements :meth:`fitter`, :meth:`solve` and :meth:`apply`. Use :meth:`fit` to get a :class:`Map`.

    Attributes:
        options: the constructor's arguments by name.
        fitted: names of the tensors that a fit determines. The first one has an entry per channel.
        fit_views: how the network is shown every fit image, one pass per view.
        fit_images: the largest number of images that a fit uses. None is no limit; 0 means that nothing is fitted.

    Example:
        >>> import torch
        >>> from sdprobe.mitigations import Mitigation, PositionMean
        >>> isinstance(PositionMean(), Mitigation), PositionMean(gamma=0.5).options["gamma"]
        (True, 0.5)
        >>> fitted = PositionMean().fit(torch.rand(16, 8, 4, 4))
        >>> fitted.transform(torch.rand(2, 8, 4, 4)).shape
        torch.Size([2, 8, 4, 4])
    """

    fitted: tuple[str, ...]
    fit_views: tuple[View, ...] = (View(),)
    fit_images: int | None = None

    def fitter(self, size: int = 512) -> "Fitter":
        """An empty fitter for one layer.

        Args:
            size: side of the fit images in pixels.

        Returns:
            a fitter that has seen no image.
        """
        raise NotImplementedError

    def fit(self, batches: Tensor | np.ndarray | Iterable[Any], size: int = 512) -> "Map":
        """Fit on grids of training images. Do not use images that you test on (:func:`sdprobe.split` keeps them apart).

        Args:
            batches: activations (B, C, h, w) of one layer, of any network, or an iterable of such batches, each of which is
                read once; with several ``fit_views``, tuples with one such grid per view. Sums are kept in float64.
            size: side of the fit images in pixels.

        Returns:
            the fitted map.

        Raises:
            InputError: grids of another rank, with NaN, or of different shapes; a dictionary of layers; images that cannot
                determine the map (none, or too few).
        """
        if isinstance(batches, Mapping) or not isinstance(batches, Iterable):
            layers = ", ".join(map(str, batches)) if isinstance(batches, Mapping) else type(batches).__name__
            raise InputError(
                f"Expected batches to be grids of one layer, but got {layers}. Fit one map per layer: fit(grids['mid'])."
            )
        if isinstance(batches, Tensor | np.ndarray):
            batches = _grid(batches).split(BATCH)
        fitter = self.fitter(size)
        for batch in batches:
            fitter.update(*(_grid(grid) for grid in (batch if isinstance(batch, tuple) else (batch,))))
        return fitter.finish()

    def solve(self, sums: Any) -> dict[str, Tensor]:
        """The tensors named in ``fitted``.

        Args:
            sums: the fitter, after its last image.

        Returns:
            name → tensor, float32 or integer. A tensor that these settings do not need has shape (0,).

        Raises:
            InputError: the images seen cannot determine the map.
        """
        raise NotImplementedError

    def apply(self, grid: Float[Tensor, "b c h w"], *args: Any, **kwargs: Any) -> Float[Tensor, "b c h w"]:
        """The mitigated grids, given the ``fitted`` tensors by name. :meth:`Map.transform` calls this with its own tensors.

        Args:
            grid: activations (B, C, h, w) of one layer. Images do not influence each other.

        Returns:
            grids of the same shape and dtype.
        """
        raise NotImplementedError

    def report(self, *args: Any, **kwargs: Any) -> dict[str, object]:
        """Numbers that describe a fit, such as ``rank``, given the ``fitted`` tensors by name.

        Returns:
            name → number, JSON-serialisable; empty by default.
        """
        return {}


class Fitter:
    """Sums in float64 over the fit images of one layer.

    Attributes:
        images: number of images seen.
    """

    images = 0

    def __init__(self, settings: Mitigation) -> None:
        self.settings = settings

    def update(self, *grids: Float[Tensor, "b c h w"]) -> None:
        """Add b fit images.

        Args:
            *grids: grids (B, C, h, w), one per view of ``settings.fit_views``.

        Raises:
            InputError: grids that do not match those seen before.
        """
        raise NotImplementedError

    def finish(self) -> "Map":
        """The map that these images determine.

        Returns:
            settings and fitted tensors.

        Raises:
            InputError: no image was seen, or the images seen cannot determine the map.
        """
        if not self.images and self.settings.fit_images != 0:
            raise InputError("Expected at least one fit image, but got none. Fit on grids of training images.")
        return Map(self.settings, self.images, self.settings.solve(self))


def _grid(grid: Any) -> Float[Tensor, "b c h w"]:
    """Activations (B, C, h, w) as a tensor, checked."""
    grid = tensor_of(grid)
    if not isinstance(grid, Tensor) or grid.ndim != 4 or not grid.is_floating_point() or not grid.isfinite().all():
        found = f"{tuple(grid.shape)} of {grid.dtype}" if isinstance(grid, Tensor | np.ndarray) else type(grid).__name__
        raise InputError(
            f"Expected batches to be finite activations with the axes (B, C, h, w), but got {found}. Give grids of one layer, "
            "one timestep and one draw, without NaN."
        )
    return grid


@dataclass(frozen=True, eq=False)
class Map:
    """A fitted mitigation of one layer. :meth:`Mitigation.fit` returns it.

    Args:
        settings: the mitigation.
        seen: number of images that it was fitted on.
        fitted: the tensors that the fit determined, by name.

    Example:
        >>> import torch
        >>> from sdprobe import mitigations
        >>> fitted = mitigations.Standardize().fit(torch.rand(4, 8, 4, 4))  # 4 images, 8 channels, a 4 × 4 grid
        >>> fitted.describe()
        {'fit_images': 4}
        >>> fitted.transform(torch.rand(2, 8, 4, 4)).shape
        torch.Size([2, 8, 4, 4])
    """

    settings: Mitigation
    seen: int
    fitted: Mapping[str, Tensor]

    def transform(self, grid: Any) -> Float[Tensor, "b c h w"]:
        """Apply the mitigation.

        Args:
            grid: activations (B, C, h, w) of the layer that was fitted, a tensor or an array. Images do not influence each
                other.

        Returns:
            the mitigated grids, a tensor of the same shape and dtype.

        Raises:
            InputError: a grid of another rank, or another number of channels than in the fit.
        """
        grid = tensor_of(grid)
        if not isinstance(grid, Tensor):
            raise InputError(
                f"Expected grid to be a tensor of one layer, but got {type(grid).__name__}. Transform one at a time."
            )
        if grid.ndim != 4:
            raise InputError(f"Expected grid to have the axes (B, C, h, w), but got {tuple(grid.shape)}. Reshape it.")
        channels = len(self.fitted[self.settings.fitted[0]])
        if self.settings.fit_images != 0 and grid.shape[1] != channels:
            raise InputError(
                f"Expected grids of {channels} channels, those of the fit, but got {grid.shape[1]}. Fit one per layer."
            )
        return self.settings.apply(grid, **self.fitted)

    def describe(self) -> dict[str, object]:
        """What a report says about the fit.

        Returns:
            ``fit_images`` and the numbers of :meth:`Mitigation.report`; empty where nothing is fitted. JSON-serialisable.
        """
        return {} if self.settings.fit_images == 0 else {"fit_images": self.seen, **self.settings.report(**self.fitted)}

    def to(self, device: torch.device | str) -> "Map":
        """The same map on another device.

        Args:
            device: such as ``cuda``.

        Returns:
            a new map.
        """
        return replace(self, fitted={name: tensor.to(device) for name, tensor in self.fitted.items()})


@dataclass(frozen=True, eq=False)
class Chain:
    """Fitted mitigations of one layer, applied in order. :func:`load` returns chains.

    Args:
        maps: the fitted mitigations.
    """

    maps: tuple[Map, ...] = ()

    def transform(self, grid: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Apply all mitigations of the chain.

        Args:
            grid: activations (B, C, h, w).

        Returns:
            the mitigated grids, of the same shape and dtype.
        """
        for fitted in self.maps:
            grid = fitted.transform(grid)
        return grid

    def to(self, device: torch.device | str) -> "Chain":
        """Return the same chain on another device."""
        return Chain(tuple(fitted.to(device) for fitted in self.maps))


class Extraction(Configured):
    """Settings of a mitigation that changes how the network is shown an image, not its activations. Base class.

    It is fitted to nothing, costs one pass of the network per view, and must be the first of a chain.

    Example:
        >>> from sdprobe.mitigations import Canvas, Extraction
        >>> isinstance(Canvas(), Extraction), len(Canvas().passes(512))
        (True, 1)
    """

    def passes(self, size: int) -> tuple[View, ...]:
        """How the network is shown every image.

        Args:
            size: side of the images in pixels.

        Returns:
            the views, one pass each.

        Raises:
            InputError: an option that does not fit this size.
        """
        raise NotImplementedError

    def merge(self, grids: list[Float[Tensor, "b c _h _w"]], size: int) -> Float[Tensor, "b c h w"]:
        """Combine the grids of all views.

        Args:
            grids: one (B, C, h', w') per view of :meth:`passes`, in their order.
            size: side of the images in pixels.

        Returns:
            one grid (B, C, h, w), whose tokens lie where those of the unchanged image would.
        """
        raise NotImplementedError
