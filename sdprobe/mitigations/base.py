"""The base of mitigations: maps of one layer's grids, fitted on training images before any probe. Data path step 6.

A :class:`Chain` applies several maps one after the other. :class:`Configured` remembers constructor arguments, so that a saved
state can be given to a new object of its class.
"""

import inspect
from collections.abc import Iterable, Sequence
from typing import Any, TypeVar, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from sdprobe.tokens.views import View
from sdprobe.utilities.errors import InputError

Made = TypeVar("Made", bound="Configured")
Self = TypeVar("Self", bound="Mitigation")  # the run-time checker of the tests cannot take typing.Self in a method


class Configured(nn.Module):
    """``options`` holds the constructor's arguments by name, defaults included; plain values that JSON can hold."""

    options: dict[str, Any]

    def __new__(cls: type[Made], *args: Any, **kwargs: Any) -> Made:
        """Note the arguments."""
        made = super().__new__(cls)
        bound = inspect.signature(cls).bind(*args, **kwargs)
        bound.apply_defaults()
        object.__setattr__(made, "options", dict(bound.arguments))
        return made


class Mitigation(Configured):
    """One layer's map of activation grids. Everything fitted is a buffer, so ``state_dict`` is all that is kept of a fit.

    ``fit_views`` are the ways the network is shown every fit image: :meth:`update` gets one grid per view. ``fit_images`` is
    the most images a fit looks at; None takes all, 0 says that nothing is fitted. ``size`` is the side of the images in
    pixels: whoever fits on another size sets it first. ``seen`` counts the fit images.
    """

    fit_views: tuple[View, ...] = (View(),)
    fit_images: int | None = None
    size: int = 512
    seen: Int[Tensor, ""]

    def __init__(self, *fitted: str) -> None:
        super().__init__()
        self.register_buffer("seen", torch.tensor(0))
        for name in fitted:  # float32 buffers whose shapes the fit, or a saved state, will bring
            self.register_buffer(name, torch.empty(0))

    def update(self, *grids: Float[Tensor, "b c h w"]) -> None:
        """Add the grids of b fit images, one per view of ``fit_views``; sums are float64. After a finish, begins anew."""
        raise NotImplementedError

    def finish(self) -> None:
        """Turn what was added up into the map.

        Raises:
            InputError: the images seen cannot determine it.
        """

    def fit(self: Self, batches: Iterable[Float[Tensor, "_b c h w"] | tuple[Float[Tensor, "_b c h w"], ...]]) -> Self:
        """Fit on batches of grids of training images (tuples where there are several views), each looked at once."""
        for batch in batches:
            self.update(*(batch if isinstance(batch, tuple) else (batch,)))
        self.finish()
        return self

    def transform(self, grid: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """The mitigated grids, in the dtype of ``grid``; images never mix."""
        raise NotImplementedError

    def describe(self) -> dict[str, object]:
        """What a report says of the fit: numbers such as ``rank``; JSON can hold it."""
        return {"fit_images": self.seen.item()}

    def check(self, grid: Float[Tensor, "b c h w"], fitted: Float[Tensor, "_c *rest"]) -> None:
        """Refuses a grid that a fit, of which ``fitted`` is a buffer with one entry per channel, does not belong to.

        Raises:
            InputError: nothing was fitted yet, or with another number of channels.
        """
        if not fitted.numel():
            raise InputError(
                f"Expected {type(self).__name__} to be fitted before it transforms, but got no fit. Fit it, or load a fit."
            )
        if grid.shape[1] != len(fitted):
            raise InputError(
                f"Expected grids of {len(fitted)} channels, those of the fit, but got {grid.shape[1]}. Fit one per layer."
            )

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        for name, buffer in self._buffers.items():
            saved = state_dict.get(prefix + name)
            if buffer is not None and saved is not None:
                self._buffers[name] = buffer.new_empty(saved.shape)
        super()._load_from_state_dict(state_dict, prefix, *rest)


class Extraction(Configured):
    """A mitigation that changes how the network is shown an image, not what is made of its activations.

    It is fitted to nothing, costs one pass per view, and comes first in a chain.
    """

    def views(self, size: int) -> tuple[View, ...]:
        """The passes that every image of ``size`` pixels takes.

        Raises:
            InputError: an option that does not fit this size.
        """
        raise NotImplementedError

    def merge(self, grids: list[Float[Tensor, "b c _h _w"]], size: int) -> Float[Tensor, "b c h w"]:
        """One grid from those of the views, with tokens where the image's own would be."""
        raise NotImplementedError


class Chain(nn.Module):
    """One layer's fitted mitigations in their order."""

    def __init__(self, maps: Sequence[Mitigation] = ()) -> None:
        super().__init__()
        self.maps = nn.ModuleList(maps)

    def transform(self, grid: Float[Tensor, "b c h w"], first: int | None = None) -> Float[Tensor, "b c h w"]:
        """The grids behind all of the mitigations, or behind the ``first`` so many."""
        for each in self.maps[:first]:
            grid = cast(Mitigation, each).transform(grid)
        return grid
