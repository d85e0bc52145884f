"""ShiftAnova: planted content and code come apart, layout of photographers stays, and what no window shows is reported."""

import pytest
import torch
from torch import Tensor

from sdprobe.mitigations import PositionMean, ShiftAnova
from sdprobe.mitigations.shift_anova import conjugate_gradients, without_periodic
from sdprobe.utilities.errors import InputError
from tests.mitigations.planted import generator


def planted(
    images: int, channels: int, side: int, more: int, noise: float = 0.0
) -> tuple[list[tuple[Tensor, ...]], Tensor, Tensor]:
    """Grids of the nine windows of each picture, the code g (mean 0), and the mean content f of the larger picture."""
    layout = 100 + 3 * torch.randn(channels, side + 3 * more, side + 3 * more, generator=generator(0))
    code = torch.randn(channels, side, side, generator=generator(1))
    code = code - code.mean((1, 2), keepdim=True)
    content = layout + torch.randn(images, *layout.shape, generator=generator(2))
    content += layout - content.mean(0)
    draw = generator(3)
    windows = []
    for image in content:
        views = []
        for top in (0, more, 3 * more):
            for left in (0, more, 3 * more):
                seen = image[:, top : top + side, left : left + side] + code
                views.append((seen + noise * torch.randn(seen.shape, generator=draw))[None])
        windows.append(tuple(views))
    return windows, code, layout


def test_the_planted_code_is_found_and_the_layout_of_pictures_stays() -> None:
    windows, code, layout = planted(6, 3, side=8, more=1)
    mitigation = ShiftAnova().fit(windows)
    torch.testing.assert_close(mitigation.fitted["code"], code, atol=1e-3, rtol=0)
    left = torch.cat([mitigation.transform(views[0]) for views in windows]).mean(0)
    torch.testing.assert_close(left, layout[:, :8, :8], atol=1e-3, rtol=0)
    confounded = PositionMean(basis="onehot").fit([views[0].repeat(11, 1, 1, 1) for views in windows]).fitted["code"]
    assert (confounded - code).abs().max() > 1, "the mean map takes layout for code"


def test_patterns_that_repeat_with_the_step_are_left_alone_and_counted() -> None:
    windows, code, _ = planted(3, 2, side=16, more=2)
    mitigation = ShiftAnova().fit(windows)
    torch.testing.assert_close(mitigation.fitted["code"], without_periodic(code, 2, 2), atol=1e-3, rtol=0)
    assert mitigation.describe() == {"fit_images": 3, "unidentified": 4, "unidentified_share": 4 / 256}
    repeating = torch.randn(1, 2, 2, 2, generator=generator(5)).repeat(1, 1, 8, 8)
    shifted = [tuple(view + repeating for view in views) for views in windows]
    torch.testing.assert_close(ShiftAnova().fit(shifted).fitted["code"], mitigation.fitted["code"], atol=1e-3, rtol=0)


def test_it_is_the_least_squares_solution_of_least_norm() -> None:
    windows, _, _ = planted(1, 1, side=4, more=1, noise=1.0)
    rows, seen = [], []
    for view, (top, left) in zip(windows[0], [(r, c) for r in (0, 1, 3) for c in (0, 1, 3)], strict=True):
        for row in range(4):
            for col in range(4):
                equation = torch.zeros(49 + 16, dtype=torch.float64)
                equation[(row + top) * 7 + col + left] = 1
                equation[49 + row * 4 + col] = 1
                rows.append(equation)
                seen.append(view[0, 0, row, col].double())
    solution = torch.linalg.lstsq(torch.stack(rows), torch.stack(seen), driver="gelsd").solution[49:]
    found = ShiftAnova().fit(windows, size=256).fitted["code"].flatten()
    torch.testing.assert_close(found, (solution - solution.mean()).float(), atol=1e-4, rtol=0)


def test_nine_windows_of_a_larger_picture_are_asked_for() -> None:
    mitigation = ShiftAnova(larger=128, images=5)
    assert [view.window for view in mitigation.fit_views] == [(r, c) for r in (0, 64, 128) for c in (0, 64, 128)]
    assert {view.larger for view in mitigation.fit_views} == {128} and mitigation.fit_images == 5
    with pytest.raises(InputError, match="the grids of 9 windows, but got 1"):
        mitigation.fitter().update(torch.zeros(1, 2, 8, 8))


def test_a_step_that_is_no_multiple_of_the_stride_is_refused() -> None:
    windows, _, _ = planted(1, 1, side=6, more=1)
    with pytest.raises(InputError, match=r"stride, 85\.3333 pixels \(6 tokens for 512\), but got 64"):
        ShiftAnova().fit(windows)
    assert ShiftAnova().fit(windows, size=384).describe()["unidentified"] == 1
    with pytest.raises(InputError, match="but got 32"):
        ShiftAnova(step=32).fit(planted(1, 1, side=8, more=1)[0])


def test_conjugate_gradients_solve_singular_systems_with_the_least_norm() -> None:
    root = torch.randn(9, 6, generator=generator(0), dtype=torch.float64)
    matrix = root @ root.T
    right = (matrix @ torch.randn(9, 3, generator=generator(1), dtype=torch.float64)).T.contiguous()
    right[2] = 0
    solution = conjugate_gradients(lambda flat: flat @ matrix, right, accuracy=1e-10)
    torch.testing.assert_close(solution, right @ torch.linalg.pinv(matrix, rtol=1e-10, hermitian=True), atol=1e-6, rtol=0)
