"""ShiftAnova: separate what the network adds at a position from where photographers place objects, with shifted windows."""

from collections.abc import Callable, Sequence
from itertools import product

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sdprobe.mitigations.base import Fitter, Mitigation
from sdprobe.tokens.geometry import minus
from sdprobe.tokens.views import View
from sdprobe.utilities import settings
from sdprobe.utilities.errors import InputError

ACCURACY = 1e-6


class WindowSums(Fitter):
    """Sums over pictures at every token: ``content`` on the grid of the larger picture, ``code`` on the grid of a window.

    Args:
        settings: what is fitted.
        size: side of the fit images, and of a window, in pixels.
    """

    settings: "ShiftAnova"

    def __init__(self, settings: "ShiftAnova", size: int) -> None:
        super().__init__(settings)
        self.size = size
        self.content: Tensor = torch.empty(0)
        self.code: Tensor = torch.empty(0)

    def update(self, *grids: Float[Tensor, "b c h w"]) -> None:
        channels, *sides = grids[0].shape[1:]
        offsets = self.offsets(sides)
        if len(grids) != len(offsets):
            raise InputError(f"Expected the grids of {len(offsets)} windows, but got {len(grids)}. Pass one per view.")
        if not self.images:
            canvas = [offset + side for offset, side in zip(offsets[-1], sides, strict=True)]
            self.content, self.code = (
                torch.zeros(channels, *shape, dtype=torch.float64, device=grids[0].device) for shape in (canvas, sides)
            )
        for grid, offset in zip(grids, offsets, strict=True):
            seen = grid.sum(0, dtype=torch.float64)
            _window(self.content, offset, sides).add_(seen)
            self.code += seen
        self.images += len(grids[0])

    def offsets(self, sides: Sequence[int]) -> list[tuple[int, int]]:
        """(row, col) of every window on the grid of the larger picture, given the sides of a window in tokens."""
        step, size = self.settings.step, self.size
        for side in sides:
            if step * side % size:
                raise InputError(
                    f"Expected step to be a multiple of the layer's stride, {size / side:g} pixels ({side} tokens for "
                    f"{size}), but got {step}. Use another step, or other layers."
                )
        return [(top * sides[0] // size, left * sides[1] // size) for top, left in self.settings.shifts]


class ShiftAnova(Mitigation):
    """x − g_p, where g is the position code in y_{n,s,p} = f_{n,p+s} + g_p.

    Every fit image n is rendered larger, and the network sees it through windows at shifts s. Windows share the content f,
    which moves with the picture, and the code g, which does not. Means over images are solved by least squares with conjugate
    gradients, to a relative residual of 1e-6. Of all solutions, g is the one of least norm: with windows ``step`` pixels
    apart, a code that repeats every step/stride tokens cannot be told from content, so the mean of g over all tokens with the
    same row and column modulo step/stride is 0. Where stride = step, only the mean of g is lost.

    Where photographers place objects is part of f and stays, and so does μ. Every window has its own noise, also where images
    share a noise tensor, so the effect of shared noise is no part of g.

    Args:
        larger: by how many pixels the picture is larger than a window, a multiple of ``step`` above it. There are 9 windows,
            at the shifts {0, step, larger} on either axis, each of the size of the fit images.
        step: smallest shift in pixels, a multiple of the layer's stride (pixels per token).
        images: largest number of fit images; each takes 9 passes.

    Raises:
        InputError: an option out of range. At the first grid: a step that is no multiple of the layer's stride.

    Example:
        >>> import torch
        >>> from sdprobe.mitigations import ShiftAnova
        >>> mitigation = ShiftAnova(larger=192, step=64)
        >>> len(mitigation.fit_views)
        9
        >>> windows = tuple(torch.rand(2, 8, 4, 4) for _ in range(9))  # 2 images of 256 px, 9 windows, stride 64
        >>> mitigation.fit([windows], size=256).transform(torch.rand(2, 8, 4, 4)).shape
        torch.Size([2, 8, 4, 4])
    """

    fitted = ("code", "unidentified")

    def __init__(self, larger: int = 192, step: int = 64, images: int = 32) -> None:
        settings.check("shift_anova", larger=larger, step=step, images=images)
        if larger <= step or larger % step:
            raise InputError(f"Expected larger to be a multiple of step ({step}) above it, but got {larger}. Use {3 * step}.")
        self.step, self.fit_images = step, images
        self.shifts = [(top, left) for top in (0, step, larger) for left in (0, step, larger)]  # of the windows, in pixels
        self.fit_views = tuple(View(window=shift, larger=larger, draw=draw) for draw, shift in enumerate(self.shifts))

    def fitter(self, size: int = 512) -> WindowSums:
        return WindowSums(self, size)

    def solve(self, sums: WindowSums) -> dict[str, Tensor]:
        sides = sums.code.shape[1:]
        offsets = sums.offsets(sides)
        period = offsets[4]  # the window at (step, step)
        code = separated(sums.content / sums.images, sums.code / sums.images, offsets)
        g = without_periodic(code, *period).float().contiguous()
        return {"code": g, "unidentified": torch.tensor(min(period[0], sides[0]) * min(period[1], sides[1]))}

    def apply(self, grid: Float[Tensor, "b c h w"], code: Float[Tensor, "c _h _w"], **_: Tensor) -> Float[Tensor, "b c h w"]:
        return minus(grid, code)

    def report(self, code: Float[Tensor, "c h w"], unidentified: Int[Tensor, ""]) -> dict[str, object]:
        """What the windows cannot identify.

        Returns:
            ``unidentified``: number of dimensions of the code, per channel, that no window can tell from content and that are
            kept.
            ``unidentified_share``: the same as a share of h · w.
        """
        return {"unidentified": unidentified.item(), "unidentified_share": unidentified.item() / code[0].numel()}


def separated(
    content: Float[Tensor, "c H W"], code: Float[Tensor, "c h w"], offsets: list[tuple[int, int]]
) -> Float[Tensor, "c h w"]:
    """g of the normal equations Σ_s (f_{p+s} + g_p) = code_p and Σ_s (f_q + g_{q−s}) = content_q, over windows s."""
    sides, first = list(code.shape[1:]), content[0].numel()

    def normal(flat: Tensor) -> Tensor:
        f, g = flat[:, :first].view(content.shape), flat[:, first:].view(code.shape)
        to_f, to_g = torch.zeros_like(f), torch.zeros_like(g)
        for offset in offsets:
            seen = _window(f, offset, sides) + g
            _window(to_f, offset, sides).add_(seen)
            to_g += seen
        return torch.cat([to_f.flatten(1), to_g.flatten(1)], dim=1)

    right = torch.cat([content.flatten(1), code.flatten(1)], dim=1)
    constant = torch.zeros_like(right)  # f takes the mean token first: next to it g may be less than the accuracy of a solution
    constant[:, :first] = code.mean((1, 2)).div(len(offsets))[:, None]
    return conjugate_gradients(normal, right - normal(constant))[:, first:].view(code.shape)


def conjugate_gradients(
    matrix: Callable[[Float[Tensor, "c n"]], Float[Tensor, "c n"]], right: Float[Tensor, "c n"], accuracy: float = ACCURACY
) -> Float[Tensor, "c n"]:
    """x of A x = b for every row b of ``right``, with ‖A x − b‖ ≤ accuracy · ‖b‖.

    A must be symmetric without negative eigenvalues, and b in its range. The iteration starts from 0, so x is the solution of
    least norm. It takes at most n steps.
    """
    x, residual = torch.zeros_like(right), right.clone()
    direction, energy = right.clone(), right.square().sum(1, keepdim=True)
    goal = accuracy**2 * energy
    for _ in range(right.shape[1]):
        active = energy > goal
        if not active.any():
            break
        image = matrix(direction)
        step = torch.where(active, energy / (direction * image).sum(1, keepdim=True), 0)
        x, residual = x + step * direction, residual - step * image
        renewed = residual.square().sum(1, keepdim=True)
        direction = residual + torch.where(active, renewed / energy, 0) * direction
        energy = renewed
    return x


def without_periodic(code: Float[Tensor, "c h w"], rows: int, cols: int) -> Float[Tensor, "c h w"]:
    """The code minus its mean over tokens with the same row modulo ``rows`` and the same column modulo ``cols``."""
    result = code.clone()
    for row, col in product(range(min(rows, code.shape[1])), range(min(cols, code.shape[2]))):
        cells = code[:, row::rows, col::cols]
        result[:, row::rows, col::cols] = cells - cells.mean((1, 2), keepdim=True)
    return result


def _window(canvas: Float[Tensor, "c H W"], offset: tuple[int, int], sides: Sequence[int]) -> Float[Tensor, "c h w"]:
    (top, left), (height, width) = offset, sides
    return canvas[:, top : top + height, left : left + width]
