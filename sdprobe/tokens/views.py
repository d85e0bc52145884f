"""View: how the network is shown an image."""

from dataclasses import dataclass, replace

from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import pad

# version of `View.show`; increase it when a pixel of a changed picture changes
VERSION = 1


@dataclass(frozen=True)
class View:
    """One pass of an image.

    Args:
        shift: pixels (down, right) by which the content moves, on a canvas extended by reflection.
        flip: mirror left to right, before the shift.
        margin: pixels added on every side, by reflection.
        window: (top, left) in pixels of a window of the usual size, cut from the image rendered ``larger`` pixels larger. With
            ``larger`` 0 it is cut from the image itself, continued periodically.
        larger: see ``window``.
        moves: whether the noise moves with the picture: it is drawn for the larger picture and cut like it. Otherwise each
            window has noise of its own.
        empty: a mid-grey picture instead of the image.
        crop: pixels cut off on every side.
        rotated: by 180°.
        draw: number of the noise draw; views with equal draws and equal shapes share their noise.
        reseed: added to the seed of the noise.
        timesteps: noise levels in place of those of the pass, one for each of them; None takes those of the pass.
        padding: padding mode of every convolution with a kernel above 1; None does not change it.
    """

    shift: tuple[int, int] = (0, 0)
    flip: bool = False
    margin: int = 0
    window: tuple[int, int] | None = None
    larger: int = 0
    moves: bool = False
    empty: bool = False
    crop: int = 0
    rotated: bool = False
    draw: int = 0
    reseed: int = 0
    timesteps: tuple[int, ...] | None = None
    padding: str | None = None

    @property
    def shows(self) -> "View":
        """The view with only what changes the picture. Views that agree in it share latents, unless their padding differs."""
        return replace(self, moves=False, draw=0, reseed=0, timesteps=None, padding=None)

    def show(self, image: Float[Tensor, "3 h w"]) -> Float[Tensor, "3 _h _w"]:
        """The picture for the network. ``image`` is already cropped and rotated, and for a window ``larger`` pixels larger."""
        if self.empty:
            return image.new_full(image.shape, 0.5)
        if self.window is not None:
            top, left = self.window
            height, width = (side - self.larger for side in image.shape[-2:])
            return image.roll((-top, -left), (-2, -1))[:, :height, :width].contiguous()
        if self.flip:
            image = image.flip(-1)
        if self.margin:
            image = pad(image[None], [self.margin] * 4, mode="reflect")[0]
        down, right = self.shift
        if down or right:
            height, width = image.shape[-2:]
            canvas = pad(image[None], [abs(right)] * 2 + [abs(down)] * 2, mode="reflect")[0]
            top, left = abs(down) - down, abs(right) - right
            image = canvas[:, top : top + height, left : left + width]
        return image.contiguous()
