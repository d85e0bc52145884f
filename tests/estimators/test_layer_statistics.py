"""LayerStatistics: corner risk sees corners that are alike within or across images, and nothing else; gains hold themselves."""

import pytest
import torch
from torch import Tensor

from sdprobe.estimators.layer_statistics import LayerStatistics
from sdprobe.metrics.credibility import RISKS
from sdprobe.metrics.layer_tokens import TokenMeans
from sdprobe.tokens.groups import token_groups
from tests.planted import corner_code

CHANNELS, SIDE, FIT, IMAGES = 64, 12, 20, 60
CORNERS = ([0, 0, -1, -1], [0, -1, 0, -1])


def randn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def orthogonal(count: int, seed: int = 5) -> Tensor:
    """So many unit vectors, one a column."""
    return torch.linalg.qr(randn(CHANNELS, count, seed=seed)).Q


def clean(seed: int) -> tuple[Tensor, Tensor]:
    """Whole and cropped grids of tokens with E‖e‖² = 1; a cropped token is mostly what the whole image shows there."""
    whole = randn(FIT + IMAGES, CHANNELS, SIDE, SIDE, seed=seed) / CHANNELS**0.5
    own = randn(IMAGES, CHANNELS, SIDE - 2, SIDE - 2, seed=seed + 1000) / CHANNELS**0.5
    return whole, 0.8 * whole[FIT:, :, 1:-1, 1:-1] + 0.6 * own


def measured(whole: Tensor, cropped: Tensor) -> LayerStatistics:
    fitted = TokenMeans(CHANNELS)
    fitted.update(whole[:FIT], token_groups(whole[:FIT])["high_norm"])
    layer = LayerStatistics((CHANNELS, SIDE, SIDE), 1, fitted, IMAGES, {"noise": 0, "timestep": 0}, seed=0, similar=False)
    index = torch.arange(IMAGES)
    for part in index.split(16):
        grid = whole[FIT:][part]
        layer.whole(grid, token_groups(grid), part, part)
        layer.cropped(cropped[part], token_groups(cropped[part]))
    return layer


def cornered(vectors: Tensor, seed: int = 11) -> LayerStatistics:
    """Vectors (images or 1, C, 4) added to the corners of whole and of cropped images alike."""
    whole, cropped = clean(seed)
    vectors = vectors.expand(FIT + IMAGES, -1, -1)
    whole[:, :, *CORNERS] += vectors
    cropped[:, :, *CORNERS] += vectors[FIT:]
    return measured(whole, cropped)


def places(seed: int) -> LayerStatistics:
    """A code of rows and columns that makes half of every token's energy; cropped images have rows and columns of theirs.

    Rows and columns have orthogonal vectors, so that no place is longer, or more like other places, than any other. A smooth
    code would not do: corners are its extremes, which stand out from the mean token as corners do.
    """
    whole, cropped = clean(seed)
    basis = orthogonal(2 * SIDE)
    code = 2**-0.5 * (basis[:, :SIDE, None] + basis[:, None, SIDE:])
    return measured(whole + code, cropped + code[:, : SIDE - 2, 2:])


def test_a_corner_that_is_itself_in_every_image_is_a_risk_though_corners_differ() -> None:
    """Fixed vectors, one a corner, as long as a token: half of every corner's energy."""
    found = cornered(orthogonal(4)[None]).compute()
    assert found["r_cor_within/all"] < 0.01
    assert found["r_cor_across/all"] == pytest.approx(0.5, abs=0.03)
    assert found["r_cor_across/all/ci_low"] - 0.01 < 0.5 < found["r_cor_across/all/ci_high"] + 0.01
    for end in ("", "/ci_low", "/ci_high"):
        assert found[f"r_cor/all{end}"] == found[f"r_cor_across/all{end}"], "the larger of the two"
    assert found["credibility/all/ci_low"] < (1 - 0.5) ** (1 / 3) < found["credibility/all/ci_high"] < 0.9


def test_corners_that_repeat_within_an_image_and_change_with_it_are_a_risk() -> None:
    vectors = torch.nn.functional.normalize(randn(FIT + IMAGES, CHANNELS, 1, seed=6), dim=1)
    found = cornered(vectors.expand(-1, -1, 4)).compute()
    assert found["r_cor_across/all"] < 0.01
    assert found["r_cor_within/all"] == pytest.approx(0.5, abs=0.03)
    assert found["r_cor/all"] == found["r_cor_within/all"]


def test_one_vector_in_all_corners_of_all_images_is_both() -> None:
    code = corner_code(CHANNELS, 2, 2, 1.0, torch.Generator().manual_seed(5)).float()
    found = cornered(code.flatten(1)[None]).compute()
    assert found["r_cor_within/all"] == pytest.approx(0.5, abs=0.03)
    assert found["r_cor_across/all"] == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize("planted", ["nothing", "places"])
@pytest.mark.parametrize("seed", range(20, 24))
def test_without_a_corner_effect_the_interval_holds_zero_and_its_estimate(planted: str, seed: int) -> None:
    layer = places(seed) if planted == "places" else measured(*clean(seed))
    found = layer.compute()
    explained = 0.5 if planted == "places" else 0
    assert found["r_pos/all"] == pytest.approx(explained, abs=0.04)
    assert found["cropped_similarity_across/corner"] == pytest.approx(explained, abs=0.05), "it is there, in all places"
    assert found["r_cor/all/ci_low"] == 0 <= found["r_cor/all"] <= found["r_cor/all/ci_high"] < 0.06
    assert found["r_cor/all"] < 0.03
    for key in (key.removesuffix("/ci_low") for key in found if key.endswith("/ci_low")):
        assert found[f"{key}/ci_low"] - 1e-12 <= found[key] <= found[f"{key}/ci_high"] + 1e-12, key


def test_gains_are_of_reported_values_and_their_intervals_hold_them() -> None:
    corners, plain = cornered(orthogonal(4)[None], seed=20), measured(*clean(20))
    found, back, own, theirs = corners.gain(plain), plain.gain(corners), corners.compute(), plain.compute()
    for name in RISKS:
        assert {f"{name}/all", f"{name}/all/n"} <= set(found)
    for key in (key for key in found if key.count("/") == 1):
        assert found[key] == pytest.approx(own[key] - theirs[key]) and back[key] == -found[key]
        if f"{key}/ci_low" in found:
            assert found[f"{key}/ci_low"] <= found[key] <= found[f"{key}/ci_high"]
    assert found["r_cor/all/ci_low"] > 0.4 and found["r_cor/all/n"] == 20
    same = plain.gain(plain)
    assert same["r_cor/all"] == 0 and "r_cor/all/ci_low" not in same, "no fold differs"
