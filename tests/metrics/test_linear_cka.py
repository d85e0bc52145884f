"""LinearCKA: the published estimator without pairs that share image or place; 0 on average for layers that share nothing."""

import itertools
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sdprobe.metrics.linear_cka import (
    LinearCKA,
    cell_mean,
    centred_grams,
    cka_matrix,
    debiased_cka,
    position_matrix,
    sharing,
    unrelated,
)
from sdprobe.utilities.errors import InputError


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


def every_pair(count: int) -> Tensor:
    return ~torch.eye(count, dtype=torch.bool)


def residuals(rows: Tensor, pairs: list[tuple[int, int]]) -> np.ndarray:
    """Inner products of the pairs, less the sum of two effects of rows that fits them best: least squares, a line per pair."""
    gram = np.array([float(rows[i] @ rows[j]) for i, j in pairs])
    effects = np.zeros((len(pairs), len(rows)))
    for line, (i, j) in enumerate(pairs):
        effects[line, i] = effects[line, j] = 1
    return gram - effects @ np.linalg.lstsq(effects, gram, rcond=None)[0]


def permuted(x: np.ndarray, y: np.ndarray, blocks: list[tuple[int, int]]) -> float:
    """Mean over all pairs of pairs in the same two cells: what permuting rows over images within a cell gives on average."""
    products = 0.0
    for block in set(blocks):
        inside = [k for k, other in enumerate(blocks) if other == block]
        products += sum(x[k] * y[m] for k in inside for m in inside) / len(inside)
    return products


def biased(x: Tensor, y: Tensor) -> float:
    x, y = x - x.mean(0), y - y.mean(0)
    return ((x.mT @ y).norm() ** 2 / (x.mT @ x).norm() / (y.mT @ y).norm()).item()


@given(st.integers(4, 9), st.integers(1, 5), st.integers(1, 5), st.integers(0, 10**6))
@settings(deadline=None, max_examples=30)
def test_with_every_pair_it_is_the_published_formula(count: int, width: int, other: int, seed: int) -> None:
    x, y = randn(count, width, seed=seed), randn(count, other, seed=seed + 1)
    y[:, 0] += x[:, 0]
    if hsic(x, x) > 1e-3 and hsic(y, y) > 1e-3:  # the unbiased estimate of a small sample may be negative
        assert debiased_cka(x, y, every_pair(count)).item() == pytest.approx(reference(x, y), abs=1e-6)


@given(st.integers(4, 7), st.integers(2, 3), st.integers(4, 6), st.integers(0, 10**6))
@settings(deadline=None, max_examples=20)
def test_with_pairs_left_out_it_is_least_squares_over_the_others(images: int, per_image: int, cells: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    image = torch.arange(images).repeat_interleave(per_image)
    cell = torch.cat([torch.randperm(cells, generator=generator)[:per_image] for _ in range(images)])
    x, y = randn(len(image), 3, seed=seed) + 3, randn(len(image), 2, seed=seed + 1)
    y[:, 0] += x[:, 0]
    mask = unrelated(image, cell, torch.eye(64, dtype=torch.bool))
    where = [(int(image[i]), int(cell[i])) for i in range(len(image))]
    pairs = [
        (i, j)
        for i, j in itertools.combinations(range(len(image)), 2)
        if all(a != b for a, b in zip(where[i], where[j], strict=True))
    ]
    first, second = residuals(x, pairs), residuals(y, pairs)
    grams = centred_grams([x, y], mask)
    scale = np.linalg.norm(first) * np.linalg.norm(second)
    assert cka_matrix(grams)[0, 1].item() == pytest.approx(first @ second / scale, abs=1e-6)
    blocks = [(min(c), max(c)) for c in ((where[i][1], where[j][1]) for i, j in pairs)]
    table = position_matrix(grams, mask, cell)
    assert table[0, 1].item() == table[1, 0].item() == pytest.approx(permuted(first, second, blocks) / scale, abs=1e-6)


@given(st.floats(1e-3, 1e3), st.booleans(), st.integers(0, 10**6))
@settings(deadline=None, max_examples=20)
def test_rotation_scale_and_offset_change_nothing(scale: float, every: bool, seed: int) -> None:
    x, y = randn(30, 6, seed=seed), randn(30, 4, seed=seed + 1)
    y[:, :2] += x[:, :2]
    rotation = torch.linalg.qr(randn(6, 6, seed=seed)).Q
    turned = scale * x @ rotation + 5
    row = torch.arange(30)
    pairs = every_pair(30) if every else unrelated(row // 3, 7 * row % 10, torch.eye(64, dtype=torch.bool))
    assert debiased_cka(turned, y, pairs).item() == pytest.approx(debiased_cka(x, y, pairs).item(), abs=1e-9)
    assert debiased_cka(y, turned, pairs).item() == pytest.approx(debiased_cka(x, y, pairs).item(), abs=1e-9)
    assert debiased_cka(x, turned, pairs).item() == pytest.approx(1)


def test_independent_rows_score_zero_on_average_where_the_plain_estimate_does_not() -> None:
    rows = [(randn(40, 60, seed=2 * i), randn(40, 60, seed=2 * i + 1)) for i in range(200)]
    values = torch.tensor([debiased_cka(x, y, every_pair(40)).item() for x, y in rows])
    assert values.mean().abs() < 4 * values.std() / 200**0.5
    assert values.abs().max() < 5 * values.std()
    assert (values < 0).sum() > 50, "negative values are not clipped"
    assert min(biased(x, y) for x, y in rows) > 0.5, "the reason for debiasing"


def test_rows_that_do_not_vary_have_no_value() -> None:
    assert debiased_cka(torch.ones(6, 3), randn(6, 2), every_pair(6)).isnan()


def test_too_few_rows_are_refused() -> None:
    with pytest.raises(InputError, match="rows for debiased CKA to be at least 4, but got 3"):
        debiased_cka(randn(3, 2), randn(3, 2), every_pair(3))
    with pytest.raises(InputError, match="images for debiased CKA to be at least 4, but got 3"):
        metric_of({"mid": randn(3, 2, 8, 8)}).compute()


# --- what layers have in common --------------------------------------------------------------------------------------

CHANNELS = 32
SHARED = torch.eye(64, dtype=torch.bool)

Rows = Callable[[Tensor, Tensor, torch.Generator], Tensor]  # of images, cells and a generator


def of_images(image: Tensor, cell: Tensor, generator: torch.Generator) -> Tensor:
    """A random vector per image."""
    return torch.randn(int(image.max()) + 1, CHANNELS, generator=generator, dtype=torch.float64)[image]


def of_cells(image: Tensor, cell: Tensor, generator: torch.Generator) -> Tensor:
    """A random position code."""
    return torch.randn(64, CHANNELS, generator=generator, dtype=torch.float64)[cell]


def of_both(image: Tensor, cell: Tensor, generator: torch.Generator) -> Tensor:
    return of_images(image, cell, generator) + of_cells(image, cell, generator)


def of_rows(image: Tensor, cell: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(len(image), CHANNELS, generator=generator, dtype=torch.float64)


def places_of(images: int) -> tuple[Tensor, Tensor]:
    """The places that a metric keeps of so many images."""
    metric = LinearCKA({"mid": (1, 8, 8)}, images=images)
    metric.seen += images
    return metric.cells_of_rows()


def any_two(make: Rows, image: Tensor, cell: Tensor, pairs: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """CKA and its part of positions of any two of 15 independent layers: 105 uncorrelated data sets."""
    generator = torch.Generator().manual_seed(seed)
    grams = centred_grams([make(image, cell, generator) for _ in range(15)], pairs)
    two = torch.ones(15, 15).triu(1) > 0
    return cka_matrix(grams)[two], position_matrix(grams, pairs, cell)[two]


@pytest.mark.parametrize("images", [40, 96])
@pytest.mark.parametrize("make", [of_images, of_cells])
def test_layers_that_share_nothing_have_mean_zero(make: Rows, images: int) -> None:
    image, cell = places_of(images)
    cka, positions = any_two(make, image, cell, unrelated(image, cell, SHARED), seed=images)
    assert abs(cka.mean()) < 0.02 and abs(positions.mean()) < 0.02


@pytest.mark.parametrize("make", [of_images, of_cells])
def test_pairs_of_one_image_or_place_would_read_as_similarity(make: Rows) -> None:
    (image, cell), generator = places_of(40), torch.Generator().manual_seed(0)
    values = [
        debiased_cka(make(image, cell, generator), make(image, cell, generator), every_pair(len(image))) for _ in range(2)
    ]
    assert min(values) > 0.15


@pytest.mark.slow
@pytest.mark.parametrize("images", [40, 96])
@pytest.mark.parametrize("make", [of_images, of_cells, of_both])
def test_layers_that_share_nothing_have_mean_zero_over_2100_data_sets(make: Rows, images: int) -> None:
    image, cell = places_of(images)
    pairs = unrelated(image, cell, SHARED)
    values = [any_two(make, image, cell, pairs, seed) for seed in range(20)]
    for kind in zip(*values, strict=True):
        assert abs(torch.cat(kind).mean()) < 0.01


@pytest.mark.parametrize(
    ("common", "own", "of_positions"),
    [
        (of_images, of_rows, 0.0),
        (of_images, of_cells, 0.0),
        (of_rows, of_rows, 0.0),
        (of_cells, of_rows, 0.25),
        (of_cells, of_images, 0.25),
    ],
)
def test_what_two_layers_share_is_found_and_told_from_position(common: Rows, own: Rows, of_positions: float) -> None:
    """Half of the variance is shared, of each: CKA ¼."""
    (image, cell), generator = places_of(40), torch.Generator().manual_seed(1)
    shared = common(image, cell, generator)
    turned = shared @ torch.linalg.qr(torch.randn(CHANNELS, CHANNELS, generator=generator, dtype=torch.float64)).Q
    layers = [shared + own(image, cell, generator), turned + own(image, cell, generator)]
    pairs = unrelated(image, cell, SHARED)
    grams = centred_grams(layers, pairs)
    assert cka_matrix(grams)[0, 1].item() == pytest.approx(0.25, abs=0.08)
    assert position_matrix(grams, pairs, cell)[0, 1].item() == pytest.approx(of_positions, abs=0.06)


@given(st.integers(1, 20), st.integers(1, 20))
@settings(deadline=None, max_examples=30)
def test_cells_share_what_their_means_read(height: int, width: int) -> None:
    tokens = torch.eye(height * width, dtype=torch.float64).reshape(-1, height, width)
    weights = torch.stack([cell_mean(tokens, cell) for cell in range(64)])
    assert torch.equal(sharing(height, width), weights @ weights.mT > 0)


LAYERS = {"mid": (3, 8, 8), "up_1": (5, 16, 24), "small": (2, 4, 4)}


def extract(images: int, seed: int = 0) -> dict[str, Tensor]:
    return {layer: randn(images, *shape, seed=seed + i) for i, (layer, shape) in enumerate(LAYERS.items())}


def metric_of(grids: dict[str, Tensor], parts: int = 1, rows: int = 200) -> LinearCKA:
    images = len(next(iter(grids.values())))
    metric = LinearCKA({layer: tuple(grid.shape[1:]) for layer, grid in grids.items()}, images=images, rows=rows)
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


def test_places_are_what_the_rows_were_read_at() -> None:
    code = 100 * torch.arange(30).double().view(-1, 1, 1, 1) + torch.arange(64).double().view(1, 1, 8, 8)
    metric = metric_of({"mid": code}, parts=4, rows=200)
    image, cell = metric.cells_of_rows()
    assert torch.equal(100 * image + cell, metric.rows("mid")[:, 0].long())


def test_the_matrices_leave_out_pairs_that_share_a_token_of_either_layer() -> None:
    grids = extract(20)
    metric = metric_of(grids)
    tables = metric.compute()
    torch.testing.assert_close(tables["cka"].diagonal(), torch.ones(3, dtype=torch.float64))
    image, cell = metric.cells_of_rows()
    for i, (layer, (_, *first)) in enumerate(LAYERS.items()):
        for j, (other, (_, *second)) in enumerate(LAYERS.items()):
            pairs = unrelated(image, cell, sharing(*first) | sharing(*second))
            expected = debiased_cka(metric.rows(layer), metric.rows(other), pairs)
            torch.testing.assert_close(tables["cka"][i, j], expected)
            grams = centred_grams([metric.rows(layer), metric.rows(other)], pairs)
            torch.testing.assert_close(tables["cka_positions"][i, j], position_matrix(grams, pairs, cell)[0, 1])


def test_a_layer_and_its_upsampled_copy_are_the_same() -> None:
    grid = randn(20, 6, 8, 8)
    tables = metric_of({"mid": grid, "up_1": grid.repeat_interleave(2, 2).repeat_interleave(2, 3)}).compute()
    assert tables["cka"][0, 1].item() == pytest.approx(1)


def test_position_codes_of_a_grid_below_8_by_8_have_mean_zero() -> None:
    layers = {f"layer_{i}": randn(1, 16, 4, 4, seed=i).expand(20, -1, -1, -1) for i in range(25)}
    tables = metric_of(layers, rows=160).compute()
    assert abs(tables["cka"][torch.ones(25, 25).triu(1) > 0].mean()) < 0.02
    torch.testing.assert_close(tables["cka_positions"], tables["cka"], atol=1e-2, rtol=0)


def test_memory_does_not_grow_with_images() -> None:
    assert LinearCKA({"mid": (3, 8, 8)}, images=10**6).rows_mid.shape == (1024, 3)
