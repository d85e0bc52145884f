"""Mitigations: settings → fitter → map of one layer's grids, fitted on training images before any probe. Data path step 6.

A :class:`Mitigation` holds settings. Its :class:`Fitter` sees grids and ends in a :class:`Map`; neither settings nor maps ever
change. A :class:`Chain` applies several maps one after the other.
"""

import inspect
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sdprobe.tokens.views import View
from sdprobe.utilities.errors import InputError


class Configured:
    """Settings of one step. ``options`` holds the constructor's arguments by name, defaults included; JSON can hold them."""

    options: dict[str, Any]  # no dataclass: OmegaConf would take it for a configuration

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        """Note the arguments."""
        made = super().__new__(cls)
        bound = inspect.signature(cls).bind(*args, **kwargs)
        bound.apply_defaults()
        made.options = dict(bound.arguments)
        return made


class Mitigation(Configured):
    """Settings of a mitigation that maps activation grids, and what it makes of them, for any layer.

    ``fitted`` names the tensors of a fit; the first has an entry per channel. ``fit_views`` are the ways the network is shown
    every fit image. ``fit_images`` is the most images that a fit looks at; None takes all, 0 says that nothing is fitted.
    """

    fitted: tuple[str, ...]
    fit_views: tuple[View, ...] = (View(),)
    fit_images: int | None = None

    def fitter(self, size: int = 512) -> "Fitter":
        """An empty fitter for one layer; ``size`` is the side of the images in pixels."""
        raise NotImplementedError

    def fit(
        self, batches: Iterable[Float[Tensor, "_b c h w"] | tuple[Float[Tensor, "_b c h w"], ...]], size: int = 512
    ) -> "Map":
        """Fit on batches of grids of training images (tuples where there are several views), each looked at once."""
        fitter = self.fitter(size)
        for batch in batches:
            fitter.update(*(batch if isinstance(batch, tuple) else (batch,)))
        return fitter.finish()

    def solve(self, sums: Any) -> dict[str, Tensor]:
        """The ``fitted`` tensors, float32 or integers; one that the settings do not ask for has shape (0,).

        Args:
            sums: the fitter behind its last image.

        Raises:
            InputError: the images seen cannot determine the map.
        """
        raise NotImplementedError

    def apply(self, grid: Float[Tensor, "b c h w"], *args: Any, **kwargs: Any) -> Float[Tensor, "b c h w"]:
        """The mitigated grids, in the dtype of ``grid``, given the ``fitted`` tensors by name; images never mix."""
        raise NotImplementedError

    def report(self, *args: Any, **kwargs: Any) -> dict[str, object]:
        """Numbers such as ``rank``, which JSON can hold, given the ``fitted`` tensors by name."""
        return {}


class Fitter:
    """Sums over ``images`` many fit images of one layer, in float64."""

    images = 0

    def __init__(self, settings: Mitigation) -> None:
        self.settings = settings

    def update(self, *grids: Float[Tensor, "b c h w"]) -> None:
        """Add the grids of b fit images, one per view of ``settings.fit_views``.

        Raises:
            InputError: grids that do not belong to those before.
        """
        raise NotImplementedError

    def finish(self) -> "Map":
        """The map.

        Raises:
            InputError: the images seen cannot determine it.
        """
        if not self.images and self.settings.fit_images != 0:
            raise InputError("Expected at least one fit image, but got none. Fit on grids of training images.")
        return Map(self.settings, self.images, self.settings.solve(self))


@dataclass(frozen=True, eq=False)
class Map:
    """One layer's fitted mitigation: its settings, how many images were ``seen``, and the ``fitted`` tensors by name."""

    settings: Mitigation
    seen: int
    fitted: Mapping[str, Tensor]

    def transform(self, grid: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """The mitigated grids, in the dtype of ``grid``; images never mix.

        Raises:
            InputError: another number of channels than in the fit.
        """
        channels = len(self.fitted[self.settings.fitted[0]])
        if self.settings.fit_images != 0 and grid.shape[1] != channels:
            raise InputError(
                f"Expected grids of {channels} channels, those of the fit, but got {grid.shape[1]}. Fit one per layer."
            )
        return self.settings.apply(grid, **self.fitted)

    def describe(self) -> dict[str, object]:
        """What a report says of the fit, nothing where nothing is fitted; JSON can hold it."""
        return {} if self.settings.fit_images == 0 else {"fit_images": self.seen, **self.settings.report(**self.fitted)}

    def to(self, device: torch.device | str) -> "Map":
        """The same map on this device."""
        return replace(self, fitted={name: tensor.to(device) for name, tensor in self.fitted.items()})


@dataclass(frozen=True, eq=False)
class Chain:
    """One layer's fitted mitigations in their order."""

    maps: tuple[Map, ...] = ()

    def transform(self, grid: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """The grids behind all of the mitigations."""
        for fitted in self.maps:
            grid = fitted.transform(grid)
        return grid

    def to(self, device: torch.device | str) -> "Chain":
        """The same chain on this device."""
        return Chain(tuple(fitted.to(device) for fitted in self.maps))


class Extraction(Configured):
    """A mitigation that changes how the network is shown an image, not what is made of its activations.

    It is fitted to nothing, costs one pass per view, and comes first in a chain.
    """

    def passes(self, size: int) -> tuple[View, ...]:
        """The views of every image of ``size`` pixels.

        Raises:
            InputError: an option that does not fit this size.
        """
        raise NotImplementedError

    def merge(self, grids: list[Float[Tensor, "b c _h _w"]], size: int) -> Float[Tensor, "b c h w"]:
        """One grid from those of the views, with tokens where the image's own would be."""
        raise NotImplementedError
