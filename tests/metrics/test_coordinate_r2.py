"""CoordinateR2: the coefficient of determination of whole grids, and finite numbers for every grid there is."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchmetrics import R2Score

from sdprobe.metrics.r2 import CoordinateR2


def grids(height: int, width: int, photos: int, noise: float = 0.1, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Predicted and true centred coordinates of whole grids, and their photographs."""
    rows, cols = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    sides = torch.tensor([height, width])
    target = ((torch.stack([rows.flatten(), cols.flatten()], 1) + 0.5) / sides - 0.5).repeat(photos, 1)
    predicted = 0.8 * target + noise * torch.randn(target.shape, generator=torch.Generator().manual_seed(seed))
    return predicted, target, torch.arange(photos).repeat_interleave(height * width)


def measured(photos: int, *batches: tuple[Tensor, Tensor, Tensor]) -> dict[str, float]:
    metric = CoordinateR2(photos)
    for batch in batches:
        metric.update(*batch)
    return metric.compute()


@given(st.integers(2, 20), st.integers(2, 20), st.integers(1, 5), st.floats(0, 1), st.integers(0, 10**6))
@settings(deadline=None, max_examples=40)
def test_it_is_the_r2_of_torchmetrics(height: int, width: int, photos: int, noise: float, seed: int) -> None:
    predicted, target, photo = grids(height, width, photos, noise, seed)
    theirs = R2Score(multioutput="uniform_average")
    theirs.update(predicted.double(), target.double())
    assert measured(photos, (predicted, target, photo))["r2/all"] == pytest.approx(theirs.compute().item(), abs=1e-5)


def test_exact_predictions_score_one_and_the_mean_scores_zero() -> None:
    _, target, photo = grids(8, 8, 8)
    assert measured(8, (target, target, photo)) == {"r2/all": 1}, "an error that was never seen has no interval"
    values = measured(8, (torch.zeros_like(target), target, photo))
    assert [values[f"r2/all{end}"] for end in ("", "/ci_low", "/ci_high")] == pytest.approx([0] * 3, abs=1e-12)


@given(st.integers(1, 10), st.floats(0.01, 1), st.integers(0, 10**6))
@settings(deadline=None, max_examples=30)
def test_the_interval_holds_its_value_and_needs_six_photographs(photos: int, noise: float, seed: int) -> None:
    values = measured(photos, grids(4, 6, photos, noise, seed))
    assert ("r2/all/ci_low" in values) == ("r2/all/ci_high" in values) == (photos >= 6)
    if photos >= 6:
        assert values["r2/all/ci_low"] <= values["r2/all"] <= values["r2/all/ci_high"] < 1


def test_the_interval_holds_the_value_and_widens_with_scatter_between_photographs() -> None:
    steady = measured(30, grids(8, 8, 30))
    predicted, target, photo = grids(8, 8, 30)
    uneven = measured(30, (torch.where((photo % 2 == 0)[:, None], target, predicted), target, photo))
    for values in (steady, uneven):
        assert values["r2/all/ci_low"] <= values["r2/all"] <= values["r2/all/ci_high"]
        json.dumps(values, allow_nan=False)
    widths = [values["r2/all/ci_high"] - values["r2/all/ci_low"] for values in (steady, uneven)]
    assert widths[1] > 2 * widths[0]


def test_photographs_that_were_not_seen_do_not_count() -> None:
    predicted, target, photo = grids(8, 8, 3)
    assert measured(50, (predicted, target, photo + 20)) == measured(3, (predicted, target, photo))


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 4), (4, 1)])
def test_a_grid_of_a_single_row_or_column_gives_finite_values(height: int, width: int) -> None:
    # mid is 1×1 at 64 px, a size that is allowed; a coordinate without variance has nothing to explain
    json.dumps(measured(3, grids(height, width, 3)), allow_nan=False)


def test_without_any_token_there_is_no_key() -> None:
    empty = torch.zeros(0, 2)
    assert measured(3, (empty, empty, torch.zeros(0, dtype=torch.long))) == {}
