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
    """Extend the image by reflection on every side, extract, and crop the grids.

    The border of the image then lies inside the picture that the network sees.

    Args:
        margin: pixels added on every side, a positive multiple of 64, so that every grid is cropped by whole tokens.

    Raises:
        InputError: another margin; in :meth:`passes`, one that is not smaller than the image.

    Example:
        >>> import torch
        >>> from sdprobe.mitigations import Canvas
        >>> canvas = Canvas(margin=64)
        >>> canvas.passes(512)[0].margin
        64
        >>> canvas.merge([torch.rand(1, 8, 10, 10)], size=512).shape  # 640 pixels, stride 64
        torch.Size([1, 8, 8, 8])
    """

    def __init__(self, margin: int = 64) -> None:
        settings.check("canvas", margin=margin)
        self.margin = margin

    def passes(self, size: int) -> tuple[View, ...]:
        """One pass of a larger picture.

        Args:
            size: side of the images in pixels.

        Returns:
            one view.

        Raises:
            InputError: the margin is not smaller than the image, which is reflected into it.
        """
        if self.margin >= size:
            raise InputError(
                f"Expected canvas.margin to be smaller than the image of {size} pixels, which is reflected into it, but got "
                f"{self.margin}. Use {settings.COARSEST}, or larger images."
            )
        return (View(margin=self.margin),)

    def merge(self, grids: list[Float[Tensor, "b c _h _w"]], size: int) -> Float[Tensor, "b c h w"]:
        """Crop the grid to the tokens of the image itself.

        Args:
            grids: one (B, C, h', w').
            size: side of the images in pixels.

        Returns:
            (B, C, h, w).
        """
        [grid] = grids
        stride = (size + 2 * self.margin) / grid.shape[-1]
        ring, rest = divmod(self.margin, stride)
        assert rest == 0  # strides divide 64
        inner = slice(int(ring), -int(ring))
        return grid[..., inner, inner]


class PaddingSwap(Extraction):
    """Change the padding of every convolution with a kernel above 1 × 1, in U-Net and VAE, during each pass.

    It tests what padding causes. Trained networks may lose features by it. After each pass the network is as before.

    Args:
        mode: ``reflect``, ``replicate`` or ``circular``.
        where: a block or layer of the U-Net, such as ``up_1``, whose convolutions change alone. None changes all convolutions,
            also those of the VAE. Only ``probe=role`` takes a ``where``.

    Raises:
        InputError: another mode; in :meth:`passes`, a ``where``.

    References:
        Islam, Jia & Bruce (2020), How Much Position Information Do Convolutional Neural Networks Encode?, ICLR.

    Example:
        >>> from sdprobe.mitigations import PaddingSwap
        >>> PaddingSwap("circular").passes(512)[0].padding
        'circular'
    """

    def __init__(self, mode: str = "reflect", where: str | None = None) -> None:
        settings.check("padding_swap", mode=mode, where=where)
        self.mode, self.where = mode, where

    def passes(self, size: int) -> tuple[View, ...]:
        """One pass of the network with another padding.

        Args:
            size: side of the images in pixels.

        Returns:
            one view.

        Raises:
            InputError: the change is restricted to a block.
        """
        if self.where is not None:
            raise InputError(
                f"Expected padding_swap.where only with probe=role, but got '{self.where}'. Leave it out to change all "
                "convolutions."
            )
        return (View(padding=self.mode),)

    def merge(self, grids: list[Float[Tensor, "b c _h _w"]], size: int) -> Float[Tensor, "b c h w"]:
        """The grid of the only pass.

        Args:
            grids: one (B, C, h, w).
            size: side of the images in pixels.

        Returns:
            that grid.
        """
        return grids[0]


class ShiftFlipNoise(Extraction):
    """Mean over K passes of the image shifted (on a canvas extended by reflection), mirrored, and with new noise.

    Tokens of every pass are moved back to where their content lies. A token at the border of a view has weight 0, unless its
    content is at the border in every view that shows it. Then all these views count.

    Args:
        views: K, from 2 to 18. Every second view is mirrored.
        shift: pixels of one step, a positive multiple of 64.

    Raises:
        InputError: an option out of range; in :meth:`passes`, images smaller than two steps.

    Example:
        >>> import torch
        >>> from sdprobe.mitigations import ShiftFlipNoise
        >>> mitigation = ShiftFlipNoise(views=4)
        >>> [(view.shift, view.flip) for view in mitigation.passes(512)]
        [((0, 0), False), ((64, 64), True), ((-64, 64), False), ((64, -64), True)]
        >>> mitigation.merge([torch.rand(1, 8, 8, 8) for _ in range(4)], size=512).shape
        torch.Size([1, 8, 8, 8])
    """

    def __init__(self, views: int = 8, shift: int = 64) -> None:
        settings.check("shift_flip_noise", views=views, shift=shift)
        self.views, self.shift = views, shift

    def passes(self, size: int) -> tuple[View, ...]:
        """K passes.

        Args:
            size: side of the images in pixels.

        Returns:
            K views.

        Raises:
            InputError: images smaller than two steps.
        """
        if 2 * self.shift > size:
            raise InputError(
                f"Expected images of at least {2 * self.shift} pixels to shift them by {self.shift}, but got {size}. "
                f"Use images.size={2 * self.shift} or larger."
            )
        return tuple(self._view(k) for k in range(self.views))

    def merge(self, grids: list[Float[Tensor, "b c _h _w"]], size: int) -> Float[Tensor, "b c h w"]:
        """Weighted mean of the views, each moved back.

        Args:
            grids: one (B, C, h, w) per view.
            size: side of the images in pixels.

        Returns:
            (B, C, h, w).
        """
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
