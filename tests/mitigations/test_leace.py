"""Leace: equals the paper's formula and the published package, erases position, and does so at the least cost."""

import logging

import pytest
import torch
from torch import Tensor

from sdprobe.mitigations import Leace
from sdprobe.mitigations.bases import additive, axis_cosines
from sdprobe.mitigations.leace import shrunk
from sdprobe.tokens.geometry import flatten
from sdprobe.utilities.errors import InputError
from tests.mitigations.planted import axis_accuracy, batches, generator, grids

CHANCE = 1 / 6


def tokens_and_position(grid: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
    """Every token beside its functions of position, one row each, float64."""
    return flatten(grid).flatten(0, 1).double(), z.repeat(len(grid), 1)


def cross_covariance(grid: Tensor, z: Tensor) -> Tensor:
    x, labels = tokens_and_position(grid, z)
    return (x - x.mean(0)).T @ (labels - labels.mean(0)) / len(x)


def paper(grid: Tensor, z: Tensor) -> Tensor:
    """Theorem 4.3 of the paper, token by token: r(x) = x − W⁺ P W (x − E x), P the orthogonal projection on W Σ_xz."""
    x, labels = tokens_and_position(grid, z)
    deviation, labels = x - x.mean(0), labels - labels.mean(0)
    values, vectors = torch.linalg.eigh(sum(torch.outer(row, row) for row in deviation) / len(x))
    whiten = vectors @ torch.diag(values**-0.5) @ vectors.T
    aim = whiten @ (sum(torch.outer(row, label) for row, label in zip(deviation, labels, strict=True)) / len(x))
    project = aim @ torch.linalg.pinv(aim, rtol=1e-9)
    erased = torch.stack(
        [row - torch.linalg.inv(whiten) @ project @ whiten @ gap for row, gap in zip(x, deviation, strict=True)]
    )
    return erased.view(len(grid), *grid.shape[2:], -1).permute(0, 3, 1, 2)


def least_squares(raw: Tensor, erased: Tensor) -> float:
    return (raw.double() - erased.double()).square().mean().item()


@pytest.mark.parametrize("columns", ["additive", "cosine"])
def test_it_is_the_formula_of_the_paper(columns: str) -> None:
    raw = grids(20, 24, 4, 5, strength=2.0)
    z = additive(4, 5) if columns == "additive" else axis_cosines(4, 5, 2)
    mitigation = Leace(columns=columns, tolerance=1e-6, shrinkage=False).fit([raw])
    torch.testing.assert_close(mitigation.transform(raw), paper(raw, z).float(), atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("shrinkage", [True, False])
@pytest.mark.parametrize("tolerance", [0.01, 0.15, 1e-6])
def test_it_is_the_published_package_without_its_limit_on_the_trace(shrinkage: bool, tolerance: float) -> None:
    published = pytest.importorskip("concept_erasure")
    raw = grids(30, 24, 5, 6, strength=1.0)
    x, z = tokens_and_position(raw, additive(5, 6))
    eraser = published.LeaceFitter.fit(x, z, svd_tol=tolerance, shrinkage=shrinkage, constrain_cov_trace=False).eraser
    mitigation = Leace(columns="additive", tolerance=tolerance, shrinkage=shrinkage).fit(batches(raw, 7))
    torch.testing.assert_close(flatten(mitigation.transform(raw)).flatten(0, 1), eraser(x).float(), atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("shrinkage", [True, False])
def test_no_linear_probe_reads_position_afterwards_and_one_did_before(shrinkage: bool) -> None:
    raw = grids(48, 24, 6, 6, strength=2.0)
    left = Leace(columns="additive", tolerance=1e-6, shrinkage=shrinkage).fit([raw]).transform(raw)
    assert axis_accuracy(raw) > 0.8
    assert axis_accuracy(left) == pytest.approx(CHANCE, abs=5e-4)
    assert cross_covariance(raw, additive(6, 6)).abs().max() > 0.05
    assert cross_covariance(left, additive(6, 6)).abs().max() < 1e-6
    torch.testing.assert_close(left.mean((0, 2, 3)), raw.mean((0, 2, 3)))


@pytest.mark.parametrize("seed", range(4))
def test_every_other_projection_that_erases_changes_tokens_more(seed: int) -> None:
    raw = grids(40, 24, 5, 5, strength=2.0)
    x, _ = tokens_and_position(raw, additive(5, 5))
    cross = cross_covariance(raw, additive(5, 5))
    u = torch.linalg.svd(cross).U[:, :8]
    root = torch.randn(24, 24, generator=generator(seed), dtype=torch.float64)
    metric = torch.eye(24, dtype=torch.float64) if seed == 0 else root @ root.T
    other = u @ torch.linalg.solve(u.T @ metric @ u, u.T @ metric)  # projects along u, in another metric
    assert ((torch.eye(24) - other) @ cross).abs().max() < 1e-9, "it erases too"
    least = least_squares(raw, Leace(columns="additive", tolerance=1e-6, shrinkage=False).fit([raw]).transform(raw))
    assert least < 0.999 * ((x - x.mean(0)) @ other.T).square().mean().item()


def test_auto_takes_one_hots_while_they_are_few_for_the_channels() -> None:
    wide, narrow, tiny = (Leace(tolerance=1e-6).fit([grids(12, channels, 4, 3)]) for channels in (50, 48, 24))
    assert wide.describe()["rank"] == 5, "additive: 4 + 3 − 2, a tenth of 50"
    assert narrow.describe()["rank"] == 4, "two cosines an axis, ⌊0.05 · 48⌋"
    assert tiny.describe()["rank"] == 4, "never fewer than two"
    assert Leace(cosines=1, tolerance=1e-6).fit([grids(12, 24, 4, 3)]).describe()["rank"] == 2


def test_what_the_tolerance_lets_through_stays() -> None:
    raw = grids(40, 24, 6, 6, strength=2.0)
    ranks = [Leace(columns="additive", tolerance=tolerance).fit([raw]).describe()["rank"] for tolerance in (1e-6, 0.25, 10.0)]
    assert ranks[0] == 10 and 0 < ranks[1] < 10 and ranks[2] == 0  # type: ignore[operator]
    assert torch.equal(Leace(tolerance=10.0).fit([raw]).transform(raw), raw)


def test_channels_that_never_vary_stay_as_they_are() -> None:
    raw = torch.cat([grids(40, 24, 5, 5, strength=2.0), torch.full((40, 2, 5, 5), 7.0)], dim=1)
    left = Leace(columns="additive", tolerance=1e-6, shrinkage=False).fit([raw]).transform(raw)
    torch.testing.assert_close(left[:, 24:], raw[:, 24:])
    assert cross_covariance(left, additive(5, 5)).abs().max() < 1e-6


def test_a_high_rank_is_warned_of_and_a_higher_one_refused(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        for _ in range(2):  # as at two noise levels
            Leace(columns="additive", tolerance=1e-6).fit([grids(40, 21, 6, 6)])
    assert caplog.text.count("rank 10 is more than a tenth of 21 channels") == 1
    with pytest.raises(InputError, match="at most half of the 19 channels, but got 10"):
        Leace(columns="additive", tolerance=1e-6).fit([grids(40, 19, 6, 6)])


def test_shrinkage_keeps_the_trace_and_is_nothing_for_many_tokens() -> None:
    root = torch.randn(6, 6, generator=generator(0), dtype=torch.float64)
    covariance = root @ root.T
    few, many = shrunk(covariance, 10), shrunk(covariance, 10**9)
    torch.testing.assert_close(few.trace(), covariance.trace())
    assert torch.linalg.cond(few) < 0.5 * torch.linalg.cond(covariance)
    torch.testing.assert_close(many, covariance, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(shrunk(torch.eye(3, dtype=torch.float64), 5), torch.eye(3, dtype=torch.float64))
