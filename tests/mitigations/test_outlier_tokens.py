"""OutlierTokens: planted tokens are found and repaired within a stated error, and no other token is touched."""

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from sdprobe.mitigations import OutlierTokens
from sdprobe.mitigations.outlier_tokens import inpainted
from sdprobe.tokens.groups import high_norm
from tests.mitigations.planted import generator
from tests.planted import high_norm_patches


def smooth(images: int, channels: int = 64, side: int = 16) -> Tensor:
    """Grids whose neighbours are alike: coarse noise enlarged bilinearly, a mean of 1, and a little of their own."""
    coarse = torch.randn(images, channels, 4, 4, generator=generator(0))
    grown = torch.nn.functional.interpolate(coarse, (side, side), mode="bilinear", align_corners=False)
    return 1 + grown + 0.2 * torch.randn(images, channels, side, side, generator=generator(1))


def planted(images: int = 12) -> tuple[Tensor, Tensor, Tensor]:
    clean = smooth(images)
    spoilt, mask = high_norm_patches(clean, strength=30.0, patches=2, generator=generator(2))
    assert torch.equal(high_norm(spoilt), mask), "the plan works only if exactly the planted tokens are detected"
    return clean, spoilt, mask


def error(found: Tensor, clean: Tensor, mask: Tensor) -> float:
    """Root mean squared error of the masked tokens over their root mean square around the mean token."""
    tokens, true = (grid.permute(0, 2, 3, 1)[mask] for grid in (found, clean))
    centred = true - clean.mean((0, 2, 3))
    return ((tokens - true).square().sum() / centred.square().sum()).sqrt().item()


@pytest.mark.parametrize(("mode", "bound"), [("project", 0.35), ("inpaint", 0.6)])
def test_planted_outliers_are_repaired_to_within_the_stated_error(mode: str, bound: float) -> None:
    clean, spoilt, mask = planted()
    left = OutlierTokens(mode=mode).fit([spoilt]).transform(spoilt)
    assert error(spoilt, clean, mask) > 20
    assert error(left, clean, mask) < bound


@pytest.mark.parametrize("mode", ["project", "inpaint", "mask", "clip"])
def test_tokens_that_are_not_detected_stay_bit_for_bit(mode: str) -> None:
    clean, spoilt, mask = planted()
    mitigation = OutlierTokens(mode=mode).fit([spoilt])
    left = mitigation.transform(spoilt)
    assert torch.equal(left.permute(0, 2, 3, 1)[~mask], spoilt.permute(0, 2, 3, 1)[~mask])
    assert not torch.equal(left, spoilt)
    assert not high_norm(clean).any() and torch.equal(mitigation.transform(clean), clean)


def test_the_direction_is_the_planted_one_and_the_report_counts_detections() -> None:
    clean, spoilt, mask = planted()
    mitigation = OutlierTokens().fit([spoilt])
    true = (spoilt - clean).permute(0, 2, 3, 1)[mask].mean(0)
    assert cosine_similarity(mitigation.fitted["direction"], true, dim=0) > 0.99
    assert mitigation.describe() == {"fit_images": 12, "detected": int(mask.sum())}
    assert OutlierTokens().fit([clean]).describe()["detected"] == 0


def test_without_detections_in_training_projection_changes_nothing() -> None:
    clean, spoilt, _ = planted()
    torch.testing.assert_close(OutlierTokens().fit([clean]).transform(spoilt), spoilt)


def test_clipping_takes_the_norm_and_keeps_the_direction() -> None:
    _, spoilt, mask = planted()
    left = OutlierTokens(mode="clip").fit([]).transform(spoilt)
    torch.testing.assert_close(cosine_similarity(left, spoilt), torch.ones(12, 16, 16))
    median = spoilt.norm(dim=1).flatten(1).median(1).values
    torch.testing.assert_close(left.norm(dim=1)[mask], median.repeat_interleave(mask.flatten(1).sum(1)))


def test_masked_tokens_resemble_nothing() -> None:
    _, spoilt, mask = planted()
    left = OutlierTokens(mode="mask").fit([]).transform(spoilt)
    assert cosine_similarity(left, torch.ones_like(left))[mask].eq(0).all()


def test_inpainting_is_the_mean_of_clean_neighbours_in_a_loop() -> None:
    grid = torch.randn(2, 3, 6, 5, generator=generator(0))
    mask = torch.rand(2, 6, 5, generator=generator(1)) < 0.5
    mask[0, :3, :3] = True
    found = inpainted(grid, mask)
    for n, r, c in mask.nonzero().tolist():
        clean = [grid[n, :, i, j] for i in range(6) for j in range(5) if not mask[n, i, j]]
        near = [grid[n, :, i, j] for i in range(6) for j in range(5)
                if max(abs(i - r), abs(j - c)) <= 1 and not mask[n, i, j]]  # fmt: skip
        torch.testing.assert_close(found[n, :, r, c], torch.stack(near or clean).mean(0), atol=1e-5, rtol=1e-5)
