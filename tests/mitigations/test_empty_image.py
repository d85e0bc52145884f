"""EmptyImage: what an empty picture shows of position goes; the mean token and the layout of photographs stay."""

import torch

from sdprobe.mitigations import EmptyImage
from tests.mitigations.planted import axis_accuracy, generator, grids


def test_the_code_that_empty_pictures_show_is_subtracted_and_nothing_else() -> None:
    code = 2 * torch.randn(16, 6, 6, generator=generator(7))
    code = code - code.mean((1, 2), keepdim=True)
    grey = 5 + code + 0.1 * torch.randn(64, 16, 6, 6, generator=generator(8))
    photographs = grids(60, 16, 6, 6)
    mitigation = EmptyImage().fit([grey])
    left = mitigation.transform(photographs + code)
    torch.testing.assert_close(left, photographs, atol=0.1, rtol=0)
    torch.testing.assert_close(left.mean((0, 2, 3)), photographs.mean((0, 2, 3)))
    assert axis_accuracy(photographs + code) > 0.7 > 0.4 > axis_accuracy(left)
    assert mitigation.describe() == {"fit_images": 64}


def test_it_is_fitted_on_grey_pictures_with_draws_of_noise() -> None:
    mitigation = EmptyImage(draws=3)
    assert mitigation.fit_images == 3
    assert [view.empty for view in mitigation.fit_views] == [True]
    picture = mitigation.fit_views[0].show(torch.rand(3, 8, 8, generator=generator(0)))
    assert picture.eq(0.5).all()
