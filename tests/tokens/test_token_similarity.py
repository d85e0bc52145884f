"""token_similarity: cosines with one token, whatever grid the token was chosen in."""

import pytest
import torch

from sdprobe.tokens.groups import token_similarity


@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize("token", [(0, 0), (2, 5), (7, 7)])
@pytest.mark.parametrize(("height", "width"), [(16, 16), (8, 8), (2, 2), (4, 12)])
def test_it_is_the_cosine_with_the_token_at_that_place(token: tuple[int, int], height: int, width: int, centred: bool) -> None:
    grid = torch.randn(6, height, width, generator=torch.Generator().manual_seed(0)) + 1
    found = token_similarity(grid, token, 8, centred)
    row, col = int((token[0] + 0.5) * height / 8), int((token[1] + 0.5) * width / 8)
    assert found.shape == (height, width) and found[row, col] == pytest.approx(1, abs=1e-5)
    shift = grid.mean((1, 2)) if centred else torch.zeros(6)
    for i in range(height):
        for j in range(width):
            one, two = grid[:, row, col] - shift, grid[:, i, j] - shift
            assert found[i, j] == pytest.approx(float(one @ two / (one.norm() * two.norm())), abs=1e-5)
