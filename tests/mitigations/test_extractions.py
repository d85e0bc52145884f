"""Views and their merges: a network that only looks at what lies under a token gets the plain image's tokens back."""

import pytest
import torch
from torch.nn.functional import avg_pool2d

from sdprobe.mitigations import Canvas, ShiftFlipNoise
from sdprobe.tokens.views import View
from sdprobe.utilities.errors import InputError

SIZE = 256
STRIDES = (8, 16, 64)


def picture(seed: int = 0, size: int = SIZE) -> torch.Tensor:
    return torch.rand(3, size, size, generator=torch.Generator().manual_seed(seed))


def local(image: torch.Tensor, stride: int) -> torch.Tensor:
    """A network that knows no position: the mean colour under each token; mirroring the image mirrors the grid."""
    return avg_pool2d(image[None], stride)


@pytest.mark.parametrize("stride", STRIDES)
@pytest.mark.parametrize("extraction", [Canvas(), Canvas(128), ShiftFlipNoise(2), ShiftFlipNoise(8), ShiftFlipNoise(18)])
def test_a_network_that_knows_no_position_gets_its_own_tokens_back(extraction: Canvas | ShiftFlipNoise, stride: int) -> None:
    image = picture()
    grids = [local(view.show(image), stride) for view in extraction.passes(SIZE)]
    merged, plain = extraction.merge(grids, SIZE), local(image, stride)
    if isinstance(extraction, ShiftFlipNoise):  # canvases reflect; the shifted views show the image itself wherever it is
        torch.testing.assert_close(merged, plain)
    else:
        assert merged.equal(plain)


def test_what_a_network_adds_by_position_is_averaged_over_where_the_views_put_it() -> None:
    extraction, stride = ShiftFlipNoise(8), 64
    side = SIZE // stride
    added = torch.arange(side * side, dtype=torch.float32).view(1, 1, side, side)
    merged = extraction.merge([added for _ in extraction.passes(SIZE)], SIZE)
    assert merged.std() < 0.5 * added.std()
    assert (Canvas().merge([torch.nn.functional.pad(added, [1] * 4)], SIZE) == added).all()  # a canvas keeps it


def test_tokens_next_to_a_views_border_do_not_count_where_another_view_has_them_inside() -> None:
    extraction, stride = ShiftFlipNoise(9), 16
    spoilt = []
    for view in extraction.passes(SIZE):
        grid = local(view.show(picture()), stride)
        grid[..., [0, -1], :] = grid[..., :, [0, -1]] = 1e6
        spoilt.append(grid)
    merged = extraction.merge(spoilt, SIZE)
    assert (merged < 2).all()


def test_views_differ_and_say_what_changes_the_picture() -> None:
    views = ShiftFlipNoise(18).passes(SIZE)
    assert len(set(views)) == 18
    assert len({view.draw for view in views}) == 18
    assert len({view.shows for view in views}) == 18
    assert View(draw=3, padding="reflect").shows == View()
    assert View(flip=True).show(picture()).equal(picture().flip(-1))
    assert View(empty=True).show(picture()).unique().tolist() == [0.5]
    larger = picture(size=SIZE + 192)
    assert View(window=(64, 128), larger=192).show(larger).equal(larger[:, 64 : 64 + SIZE, 128 : 128 + SIZE])


def test_a_shift_moves_the_content_down_and_right() -> None:
    shown = View(shift=(64, -128)).show(picture())
    assert shown[:, 64:, :128].equal(picture()[:, : SIZE - 64, 128:])


def test_images_too_small_for_the_passes_are_refused() -> None:
    with pytest.raises(InputError, match="at least 384 pixels"):
        ShiftFlipNoise(2, shift=192).passes(256)
    with pytest.raises(InputError, match="smaller than the image of 256 pixels"):
        Canvas(256).passes(256)
