"""Mitigations that show the network an image differently: a larger canvas, other padding, or the mean over several views."""

import torch
from jaxtyping import Float
from torch import Tensor

from sdprobe.mitigations.base import Extraction
from sdprobe.tokens.views import View
from sdprobe.utilities import settings
from sdprobe.utilities.errors import InputError

# where the views of shift_flip_noise lie, in steps; every second one is mirrored
OFFSETS = ((0, 0), (1, 1), (-1, 1), (1, -1), (-1, -1), (0, 1), (1, 0), (0, -1), (-1, 0))


class Canvas(Extraction):
    """The image continued by reflection on every side, extracted, and cropped again: its border is no border any more.

    Args:
        margin: pixels a side; a multiple of 64, so that every grid crops whole tokens.
    """

    def __init__(self, margin: int = 64) -> None:
        settings.check("canvas", margin=margin)
        self.margin = margin

    def passes(self, size: int) -> tuple[View, ...]:
        """One larger pass."""
        if self.margin >= size:
            raise InputError(
                f"Expected canvas.margin to be smaller than the image of {size} pixels, which is reflected into it, but got "
                f"{self.margin}. Use {settings.COARSEST}, or larger images."
            )
        return (View(margin=self.margin),)

    def merge(self, grids: list[Float[Tensor, "b c _h _w"]], size: int) -> Float[Tensor, "b c h w"]:
        """The tokens of the image itself."""
        [grid] = grids
        stride = (size + 2 * self.margin) / grid.shape[-1]
        ring, rest = divmod(self.margin, stride)
        assert rest == 0  # strides divide 64
        inner = slice(int(ring), -int(ring))
        return grid[..., inner, inner]


class PaddingSwap(Extraction):
    """Every convolution with a kernel above 1, in U-Net and VAE, pads differently; the network is restored after each pass.

    A causal probe first: trained networks may lose features by it.

    Args:
        mode: ``reflect``, ``replicate`` or ``circular``.
    """

    def __init__(self, mode: str = "reflect") -> None:
        settings.check("padding_swap", mode=mode)
        self.mode = mode

    def passes(self, size: int) -> tuple[View, ...]:
        """One pass of the padded network."""
        return (View(padding=self.mode),)

    def merge(self, grids: list[Float[Tensor, "b c _h _w"]], size: int) -> Float[Tensor, "b c h w"]:
        """The pass itself."""
        return grids[0]


class ShiftFlipNoise(Extraction):
    """Mean over K passes of the image shifted (on a canvas continued by reflection), mirrored and with fresh noise.

    Tokens are brought back to where their content lies. One within a token of a view's border has weight 0, unless no
    view has its place elsewhere; then all views that show it count.

    Args:
        views: K, from 2 to 18; of every second one the image is mirrored.
        shift: pixels of a step, a multiple of 64.
    """

    def __init__(self, views: int = 8, shift: int = 64) -> None:
        settings.check("shift_flip_noise", views=views, shift=shift)
        self.views, self.shift = views, shift

    def passes(self, size: int) -> tuple[View, ...]:
        """K passes."""
        if 2 * self.shift > size:
            raise InputError(
                f"Expected images of at least {2 * self.shift} pixels to shift them by {self.shift}, but got {size}. "
                f"Use images.size={2 * self.shift} or larger."
            )
        return tuple(self._view(k) for k in range(self.views))

    def merge(self, grids: list[Float[Tensor, "b c _h _w"]], size: int) -> Float[Tensor, "b c h w"]:
        """Weighted mean of the views, each brought back."""
        height, width = grids[0].shape[-2:]
        stride = size / width
        inner = grids[0].new_zeros((height, width), dtype=torch.float32)
        inner[1:-1, 1:-1] = 1
        shown = torch.ones_like(inner)
        sums = {name: torch.zeros_like(grids[0], dtype=torch.float32) for name in ("inner", "shown")}
        weights = {name: torch.zeros_like(inner) for name in sums}
        for k, grid in enumerate(grids):
            view = self._view(k)
            steps = tuple(round(pixels / stride) for pixels in view.shift)
            back = _brought_back(grid.float(), steps, view.flip)
            for name, weight in (("inner", inner), ("shown", shown)):
                here = _brought_back(weight, steps, view.flip)
                sums[name] += back * here
                weights[name] += here
        mean = torch.where(weights["inner"] > 0, sums["inner"], sums["shown"])
        total = torch.where(weights["inner"] > 0, weights["inner"], weights["shown"])
        return (mean / total).to(grids[0].dtype)

    def _view(self, k: int) -> View:
        down, right = OFFSETS[k % len(OFFSETS)]
        return View(shift=(down * self.shift, right * self.shift), flip=k % 2 == 1, draw=k)


def _brought_back(grid: Float[Tensor, "*b h w"], steps: tuple[int, ...], flip: bool) -> Float[Tensor, "*b h w"]:
    """Undo a shift by whole tokens, then a mirroring; 0 where the view showed nothing of the image."""
    back = torch.zeros_like(grid)
    height, width = grid.shape[-2:]
    rows, cols = (
        (slice(max(0, step), side + min(0, step)), slice(max(0, -step), side + min(0, -step)))
        for step, side in zip(steps, (height, width), strict=True)
    )
    back[..., rows[1], cols[1]] = grid[..., rows[0], cols[0]]
    return back.flip(-1) if flip else back
