"""What every mitigation is: a map of one layer's grids, fitted on training images, applied before any probe.

Data path step 6.
"""

from collections.abc import Iterable
from typing import Self

from jaxtyping import Float
from torch import Tensor

from mitigations.configured import Configured
from mitigations.views import View


class Mitigation(Configured):
    """One layer's map of activation grids. Everything fitted is a buffer, so ``state_dict`` is all that is kept of a fit.

    ``fit_views`` are the ways the network is shown every fit image: :meth:`update` gets one grid per view. ``fit_images`` is
    the most images a fit looks at; None takes all, 0 says that nothing is fitted.
    """

    fit_views: tuple[View, ...] = (View(),)
    fit_images: int | None = None

    def update(self, *grids: Float[Tensor, "b c h w"]) -> None:
        """Add the grids of b fit images, one per view of ``fit_views``; sums are float64."""
        raise NotImplementedError

    def finish(self) -> None:
        """Turn what was added up into the map.

        Raises:
            InputError: the images seen cannot determine it.
        """

    def fit(self, batches: Iterable[Float[Tensor, "b c h w"]]) -> Self:
        """Fit on batches of grids of training images, each looked at once; returns itself."""
        for grid in batches:
            self.update(grid)
        self.finish()
        return self

    def transform(self, grid: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """The mitigated grids, in the dtype of ``grid``; images never mix."""
        raise NotImplementedError

    def describe(self) -> dict[str, object]:
        """What a report says of the fit: numbers such as ``rank``; JSON can hold it."""
        return {}


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
