"""LinearCKA: the published estimator, unbiased where the plain one is not, on rows spread evenly over the images."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from metrics.linear_cka import LinearCKA, cell_mean, debiased_cka
from tokens.errors import InputError


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def hsic(x: Tensor, y: Tensor) -> float:
    """HSIC₁ as printed: traces and sums of Gram matrices without their diagonals."""
    n = len(x)
    k = [[0.0 if i == j else float(x[i] @ x[j]) for j in range(n)] for i in range(n)]
    l = [[0.0 if i == j else float(y[i] @ y[j]) for j in range(n)] for i in range(n)]  # noqa: E741
    trace = sum(k[i][j] * l[j][i] for i in range(n) for j in range(n))
    sums = sum(map(sum, k)) * sum(map(sum, l)) / ((n - 1) * (n - 2))
    cross = sum(k[i][j] * l[j][m] for i in range(n) for j in range(n) for m in range(n))
    return (trace + sums - 2 / (n - 2) * cross) / (n * (n - 3))


def reference(x: Tensor, y: Tensor) -> float:
    return hsic(x, y) / (hsic(x, x) * hsic(y, y)) ** 0.5


def biased(x: Tensor, y: Tensor) -> float:
    x, y = x - x.mean(0), y - y.mean(0)
    return ((x.mT @ y).norm() ** 2 / (x.mT @ x).norm() / (y.mT @ y).norm()).item()


@given(st.integers(4, 9), st.integers(1, 5), st.integers(1, 5), st.integers(0, 10**6))
@settings(deadline=None, max_examples=30)
def test_it_is_the_published_formula(count: int, width: int, other: int, seed: int) -> None:
    x, y = randn(count, width, seed=seed), randn(count, other, seed=seed + 1)
    y[:, 0] += x[:, 0]
    if hsic(x, x) > 1e-3 and hsic(y, y) > 1e-3:  # the unbiased estimate of a small sample may be negative
        assert debiased_cka(x, y).item() == pytest.approx(reference(x, y), abs=1e-6)


@given(st.floats(1e-3, 1e3), st.integers(0, 10**6))
@settings(deadline=None, max_examples=20)
def test_rotation_scale_and_offset_change_nothing(scale: float, seed: int) -> None:
    x, y = randn(30, 6, seed=seed), randn(30, 4, seed=seed + 1)
    y[:, :2] += x[:, :2]
    rotation = torch.linalg.qr(randn(6, 6, seed=seed)).Q
    turned = scale * x @ rotation + 5
    assert debiased_cka(turned, y).item() == pytest.approx(debiased_cka(x, y).item(), abs=1e-9)
    assert debiased_cka(y, turned).item() == pytest.approx(debiased_cka(x, y).item(), abs=1e-9)
    assert debiased_cka(x, turned).item() == pytest.approx(1)


def test_independent_rows_score_zero_on_average_where_the_plain_estimate_does_not() -> None:
    pairs = [(randn(40, 60, seed=2 * i), randn(40, 60, seed=2 * i + 1)) for i in range(200)]
    values = torch.tensor([debiased_cka(x, y).item() for x, y in pairs])
    assert values.mean().abs() < 4 * values.std() / 200**0.5
    assert values.abs().max() < 5 * values.std()
    assert (values < 0).sum() > 50, "negative values are not clipped"
    assert min(biased(x, y) for x, y in pairs) > 0.5, "the reason for debiasing"


def test_a_shared_part_is_found() -> None:
    shared = randn(200, 5, seed=9)
    x, y = torch.cat([shared, randn(200, 5, seed=1)], 1), torch.cat([shared, randn(200, 5, seed=2)], 1)
    assert debiased_cka(x, y).item() == pytest.approx(0.5, abs=0.1)


def test_rows_that_do_not_vary_have_no_value() -> None:
    assert debiased_cka(torch.ones(6, 3), randn(6, 2)).isnan()


def test_too_few_rows_are_refused() -> None:
    with pytest.raises(InputError, match="at least 4 for debiased CKA, but got 3"):
        debiased_cka(randn(3, 2), randn(3, 2))
    metric = LinearCKA({"mid": 2}, images=1000, rows=1000)
    metric.update({"mid": randn(2, 2, 8, 8)})
    with pytest.raises(InputError, match="at least 4 for debiased CKA, but got 2"):
        metric.compute()


LAYERS = {"mid": (3, 8, 8), "up_1": (5, 16, 24), "small": (2, 4, 4)}


def grids_of(images: int, seed: int = 0) -> dict[str, Tensor]:
    return {layer: randn(images, *shape, seed=seed + i) for i, (layer, shape) in enumerate(LAYERS.items())}


def metric_of(grids: dict[str, Tensor], parts: int = 1, rows: int = 200) -> LinearCKA:
    images = len(grids["mid"])
    metric = LinearCKA({layer: grid.shape[1] for layer, grid in grids.items()}, images=images, rows=rows)
    for index in torch.arange(images).tensor_split(parts):
        metric.update({layer: grid[index] for layer, grid in grids.items()})
    return metric


@given(st.integers(1, 30), st.integers(1, 30))
@settings(deadline=None, max_examples=30)
def test_a_cell_is_what_adaptive_pooling_makes_it(height: int, width: int) -> None:
    image = randn(2, height, width)
    means = torch.stack([cell_mean(image, cell) for cell in range(64)], dim=1).unflatten(1, (8, 8))
    torch.testing.assert_close(means, torch.nn.functional.adaptive_avg_pool2d(image, 8))


@pytest.mark.parametrize(("images", "rows"), [(7, 1024), (7, 50), (30, 20), (64, 64), (100, 33)])
def test_rows_are_cell_means_spread_evenly_over_images(images: int, rows: int) -> None:
    index = torch.arange(images).double().view(-1, 1, 1, 1)
    cell = torch.arange(64).double().view(1, 1, 8, 8)
    code = (100 * index + cell).expand(-1, 1, -1, -1)
    fine = code.repeat_interleave(2, 2).repeat_interleave(3, 3)
    fine = fine + torch.tensor([[1.0, -1, 0], [-2, 0, 2]]).repeat(8, 8)  # offsets that vanish in a cell's mean
    metric = metric_of({"mid": code, "up_1": fine}, rows=rows)
    kept = metric.rows("mid")[:, 0]
    assert len(kept) == min(rows, 64 * images)
    assert torch.allclose(kept, metric.rows("up_1")[:, 0]), "all layers keep the same places"
    assert len(kept.unique()) == len(kept), "no place twice"
    per_image = (kept / 100).long().bincount(minlength=images)
    assert per_image.max() - per_image.min() <= 1
    assert (kept.diff()[(kept / 100).long().diff() == 0] != 0).all()


def test_the_draw_of_cells_is_no_fixed_cell() -> None:
    code = torch.arange(64.0).view(1, 1, 8, 8).expand(640, -1, -1, -1)
    counts = metric_of({"mid": code}, rows=640).rows("mid")[:, 0].long().bincount(minlength=64)
    assert counts.max() < 30, "one row per image must not be the same cell each time"
    assert (counts > 0).sum() > 55


@pytest.mark.parametrize("parts", [2, 5, 30])
@pytest.mark.parametrize("rows", [25, 200])
def test_any_batch_size_gives_what_all_at_once_give(parts: int, rows: int) -> None:
    grids = grids_of(30)
    torch.testing.assert_close(metric_of(grids, parts, rows).compute(), metric_of(grids, 1, rows).compute())


def test_the_matrix_is_symmetric_with_ones_and_holds_debiased_cka() -> None:
    grids = grids_of(20)
    metric = metric_of(grids)
    matrix = metric.compute()
    torch.testing.assert_close(matrix, matrix.mT)
    torch.testing.assert_close(matrix.diagonal(), torch.ones(3, dtype=torch.float64))
    for i, layer in enumerate(LAYERS):
        for j, other in enumerate(LAYERS):
            torch.testing.assert_close(matrix[i, j], debiased_cka(metric.rows(layer), metric.rows(other)))


def test_a_layer_and_its_upsampled_copy_are_the_same() -> None:
    grid = randn(20, 6, 8, 8)
    matrix = metric_of({"mid": grid, "up_1": grid.repeat_interleave(2, 2).repeat_interleave(2, 3)}).compute()
    assert matrix[0, 1].item() == pytest.approx(1)


def test_memory_does_not_grow_with_images_and_one_too_many_is_refused() -> None:
    metric = LinearCKA({"mid": 3}, images=10**6)
    assert metric.rows_mid.shape == (1024, 3)
    metric = metric_of(grids_of(3))
    with pytest.raises(InputError, match="but got 3 and at least 4 came"):
        metric.update(grids_of(1))
