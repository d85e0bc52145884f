"""PositionMean and its control: what is planted goes, what is not stays, and grids of other sizes take it along."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sdprobe.mitigations import Leace, Mitigation, PositionMean, ShuffledPosition
from sdprobe.mitigations.bases import columns, smoothed, span
from sdprobe.tokens.geometry import resized, source_index
from tests.mitigations.planted import axis_accuracy, batches, generator, grids

CHANCE = 1 / 6


def test_one_hot_erasure_brings_the_fit_split_probe_to_chance_and_it_was_not_there_before() -> None:
    raw = grids(48, 16, 6, 6, strength=3.0)
    assert axis_accuracy(raw) > 0.9
    assert axis_accuracy(PositionMean(basis="onehot").fit([raw]).transform(raw)) == pytest.approx(CHANCE, abs=5e-4)


@pytest.mark.parametrize(
    "make",
    [PositionMean, lambda: PositionMean(basis="onehot"), lambda: Leace(columns="additive", tolerance=1e-6)],
)
def test_a_fresh_probe_on_other_images_finds_no_additive_code(make: Callable[[], Mitigation]) -> None:
    fit, train, test = grids(600, 24, 6, 6, strength=1.5).split(200)
    fitted = make().fit([fit])
    assert axis_accuracy(train, test) > 0.6
    assert axis_accuracy(fitted.transform(train), fitted.transform(test)) < CHANCE + 0.03


def test_a_one_hot_code_survives_the_additive_basis_and_not_its_own_though_neither_shows_an_axis() -> None:
    raw = grids(60, 16, 6, 6) + 3 * torch.randn(1, 16, 6, 6, generator=generator(9))
    left = {basis: PositionMean(basis=basis).fit([raw]).transform(raw) for basis in ("additive", "onehot")}
    code = {basis: (grid.mean(0) - grid.mean((0, 2, 3))[:, None, None]).square().mean().sqrt() for basis, grid in left.items()}
    assert code["additive"] > 2 and code["onehot"] < 1e-5
    for grid in left.values():  # all that a linear probe of row and column reads are their means
        assert axis_accuracy(raw) > 0.5 > CHANCE + 5e-4 > axis_accuracy(grid)


@pytest.mark.parametrize("basis", ["additive", "onehot", "cosine"])
@pytest.mark.parametrize("ridge", [0.0, 2.5])
def test_the_map_is_the_ridge_formula(basis: str, ridge: float) -> None:
    means = torch.randn(30, 4, generator=generator(0), dtype=torch.float64)
    z = columns(basis, 6, 5, 3)
    z = z - z.mean(0)
    inverse = torch.linalg.pinv(z.T @ z + ridge * torch.eye(z.shape[1]), rtol=1e-10, hermitian=True)
    expected = z @ inverse @ z.T @ (means - means.mean(0))
    found, rank = smoothed(means, basis, 6, 5, 3, ridge)
    torch.testing.assert_close(found, expected)
    assert rank == torch.linalg.matrix_rank(z) == len(span(columns(basis, 6, 5, 3))[1])


def test_strength_scales_what_goes_and_the_mean_token_stays_unless_asked() -> None:
    raw = grids(64, 8, 5, 7, strength=2.0)
    whole, half = (PositionMean(gamma=gamma).fit([raw]).transform(raw) for gamma in (1.0, 0.5))
    torch.testing.assert_close(raw - half, (raw - whole) / 2, atol=1e-5, rtol=0)
    torch.testing.assert_close(whole.mean((0, 2, 3)), raw.mean((0, 2, 3)))
    assert PositionMean(centre=True).fit([raw]).transform(raw).mean((0, 2, 3)).abs().max() < 1e-5


def test_scale_makes_the_residuals_of_all_positions_equal() -> None:
    louder = torch.linspace(0.5, 3, 30).view(5, 6)
    raw = grids(100, 8, 5, 6) * louder
    mitigation = PositionMean(basis="onehot", scale=True).fit([raw])
    spread = mitigation.transform(raw).var(0, correction=0).sum(0).sqrt()
    torch.testing.assert_close(spread, spread.mean().expand(5, 6), rtol=1e-4, atol=0)
    plain = PositionMean(basis="onehot").fit([raw]).transform(raw).var(0, correction=0).sum(0).sqrt()
    assert plain.max() > 4 * plain.min()
    torch.testing.assert_close(mitigation.fitted["spread"], louder / louder.mean(), rtol=0.1, atol=0)
    torch.testing.assert_close(mitigation.transform(raw).mean((0, 2, 3)), raw.mean((0, 2, 3)), atol=1e-4, rtol=0)


@given(st.integers(1, 40), st.integers(1, 40))
def test_other_sizes_keep_the_distance_to_the_nearest_border(side: int, fitted: int) -> None:
    index = source_index(side, fitted).tolist()
    depth = (fitted - 1) // 2
    for token, source in enumerate(index):
        near, far = token, side - 1 - token
        assert 0 <= source < fitted
        if near < far:
            assert source == min(near, depth)
        if far < near:
            assert fitted - 1 - source == min(far, depth)


def test_a_code_of_the_border_is_removed_from_a_grid_of_another_size() -> None:
    fit, larger = grids(60, 8, 6, 6), grids(60, 8, 10, 4, seed=5)
    mark = 4 * torch.randn(8, generator=generator(3))
    fit[:, :, 0] += mark[:, None]
    marked = larger.clone()
    marked[:, :, 0] += mark[:, None]
    left = PositionMean(basis="additive").fit([fit]).transform(marked)
    assert (left - larger).mean(0).norm(dim=0).max() < 0.25 * mark.norm()
    assert (marked - larger).mean(0).norm(dim=0).max() == pytest.approx(mark.norm().item(), rel=1e-5)


def test_the_report_names_rank_columns_and_fit_images() -> None:
    raw = grids(40, 8, 6, 5)
    described = {basis: PositionMean(basis=basis).fit([raw]).describe() for basis in ("additive", "onehot", "cosine")}
    assert described["additive"] == {"fit_images": 40, "columns": 11, "rank": 9}
    assert described["onehot"] == {"fit_images": 40, "columns": 30, "rank": 29}
    assert described["cosine"]["columns"] == 16 + 4 + 4


def test_the_shuffled_control_takes_as_much_and_leaves_position() -> None:
    raw = grids(64, 16, 6, 6, strength=2.0)
    right, wrong = (kind().fit(batches(raw)) for kind in (PositionMean, ShuffledPosition))
    torch.testing.assert_close((raw - right.transform(raw)).norm(), (raw - wrong.transform(raw)).norm(), rtol=1e-5, atol=0)
    assert axis_accuracy(right.transform(raw)) < 0.25 < 0.6 < axis_accuracy(wrong.transform(raw))
    again, other = (ShuffledPosition(seed=seed).fit([raw]).transform(raw) for seed in (0, 1))
    assert torch.equal(again, wrong.transform(raw)) and not torch.equal(again, other)


def test_a_map_resized_to_its_own_size_is_itself() -> None:
    code = torch.randn(3, 4, 5, generator=generator(0))
    assert torch.equal(resized(code, 4, 5), code)
    assert torch.equal(resized(code, 9, 5)[:, [0, 1, 4, -1]], code[:, [0, 1, 1, -1]])
