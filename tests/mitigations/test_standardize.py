"""Standardize: moments are what the mode says, and nothing else moves."""

import pytest
import torch
from torch import Tensor

from sdprobe.mitigations import Standardize
from sdprobe.tokens.geometry import flatten
from tests.mitigations.planted import batches, grids


def covariance(grid: Tensor) -> Tensor:
    return torch.cov(flatten(grid).flatten(0, 1).double().T, correction=0)


@pytest.mark.parametrize("mode", ["centre", "zscore", "zca"])
def test_the_mean_goes(mode: str) -> None:
    raw = 50 + 3 * grids(30, 8, 5, 4)
    left = Standardize(mode=mode).fit(batches(raw, 3)).transform(raw)
    assert left.mean((0, 2, 3)).abs().max() < 1e-4


def test_centre_changes_nothing_else() -> None:
    raw = grids(30, 8, 5, 4)
    torch.testing.assert_close(covariance(Standardize().fit([raw]).transform(raw)), covariance(raw))


def test_zscore_makes_every_channel_vary_by_one_and_leaves_correlations() -> None:
    raw = grids(30, 8, 5, 4) * torch.logspace(-2, 3, 8).view(-1, 1, 1)
    left = Standardize(mode="zscore").fit([raw]).transform(raw)
    scale = covariance(raw).diagonal().sqrt()
    torch.testing.assert_close(covariance(left), covariance(raw) / scale.outer(scale), atol=1e-4, rtol=1e-4)


def test_zca_whitens_and_stays_nearest_to_the_token() -> None:
    raw = grids(80, 8, 5, 4)
    mitigation = Standardize(mode="zca", shrinkage=1e-9).fit([raw])
    torch.testing.assert_close(covariance(mitigation.transform(raw)), torch.eye(8, dtype=torch.float64), atol=1e-4, rtol=0)
    torch.testing.assert_close(mitigation.fitted["weight"], mitigation.fitted["weight"].T)
    assert torch.linalg.eigvalsh(mitigation.fitted["weight"]).min() > 0


def test_shrinkage_bounds_what_a_still_direction_is_enlarged_by() -> None:
    raw = grids(30, 8, 5, 4)
    raw[:, 0] = 2
    for mode, bound in (("zscore", 1.0), ("zca", (1e-3 * covariance(raw).trace().item() / 8) ** -0.5)):
        mitigation = Standardize(mode=mode).fit([raw])
        assert mitigation.transform(raw)[:, 0].abs().max() < 1e-3
        moved = raw.clone()
        moved[:, 0] += 1
        assert mitigation.transform(moved)[:, 0].max() == pytest.approx(bound, rel=1e-3)
