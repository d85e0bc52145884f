"""CorrespondenceProbe: planted parts are found, planted positions are copied, planted attractors are blamed."""

from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from torch import Tensor

from datamodules.images.pairs import Pair
from probes.correspondence import CorrespondenceProbe
from sdprobe.tokens.geometry import tokens_at
from tests.probes.conftest import contributions
from tests.probes.planted_pairs import SIZE, PlantedPairs, planted_pairs

MAIN = "pck_ours_point_0.10"
SIDE, CHANNELS = 16, 24


def noise(images: int, seed: int = 0, channels: int = CHANNELS) -> Tensor:
    return torch.randn(images, channels, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))


def codes(parts: int, channels: int) -> Tensor:
    """One fixed random vector per part."""
    return torch.randn(parts, channels, generator=torch.Generator().manual_seed(1))


def with_parts(grid: Tensor, points: Tensor, strength: float) -> Tensor:
    """Add each part's vector to the token under its point."""
    grid = grid.clone()
    for index in range(len(grid)):
        place = tokens_at(points[index], SIZE / SIDE, SIDE, SIDE)
        grid[index, :, place[:, 0], place[:, 1]] += strength * codes(points.shape[1], grid.shape[1]).T
    return grid


def with_position(grid: Tensor, strength: float) -> Tensor:
    code = torch.randn(1, *grid.shape[1:], generator=torch.Generator().manual_seed(7))
    return grid + strength * code


def measured(grids: dict[str, Tensor], pairs: dict[str, list[Pair]], tmp_path: Path, **options: Any) -> CorrespondenceProbe:
    data = PlantedPairs(grids, pairs)
    probe = CorrespondenceProbe(data.shapes, 99, data, **({"head": "none", "enlarged": False} | options))
    trainer = lightning.Trainer(
        accelerator="cpu", max_epochs=30, logger=False, enable_checkpointing=False, default_root_dir=tmp_path,
        enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
    )  # fmt: skip
    trainer.fit(probe, datamodule=data)
    trainer.test(probe, datamodule=data, verbose=False)
    return probe


def test_a_picture_matched_with_itself_is_always_right_and_errs_by_less_than_half_a_token(tmp_path: Path) -> None:
    pairs, _ = planted_pairs(4, 6, seed=0)
    identity = [Pair(p.source, p.source, p.category, p.ids, p.source_points, p.source_points, p.target_box) for p in pairs[::3]]
    probe = measured({"mid": noise(4)}, {"test": identity}, tmp_path)
    assert probe.results[f"test/mid/{MAIN}/all"] == 1
    table = probe.predictions()
    cell = table["mid/test/cell"]
    error = [abs(table["target_point_x"] / 8 - (cell % SIDE) - 0.5), abs(table["target_point_y"] / 8 - (cell // SIDE) - 0.5)]
    assert max(part.max() for part in error) <= 0.5


def test_planted_parts_give_one_and_noise_gives_chance(tmp_path: Path) -> None:
    pairs, points = planted_pairs(8, 6, seed=1)
    grids = {"mid": with_parts(noise(8), points, 50.0), "up_1": noise(8, seed=5)}
    probe = measured(grids, {"test": pairs}, tmp_path)
    results = probe.results
    contributions(probe, units=8)  # pictures
    assert results[f"test/mid/{MAIN}/all"] == pytest.approx(1, abs=0.01), "two parts may share a token"
    chance = results[f"random_point/baseline/{MAIN}/all"]
    assert results[f"test/up_1/{MAIN}/all/ci_low"] <= chance <= results[f"test/up_1/{MAIN}/all/ci_high"]
    assert results[f"test/up_1/{MAIN}/all"] < 0.1


def test_a_planted_position_code_gives_exactly_the_same_position_baseline(tmp_path: Path) -> None:
    pairs, _ = planted_pairs(8, 6, seed=2)
    # points at token centres, where the token under a point and the point agree
    centred = [
        Pair(p.source, p.target, p.category, p.ids, snapped(p.source_points), snapped(p.target_points), p.target_box)
        for p in pairs
    ]
    results = measured({"mid": with_position(0.01 * noise(8), 1.0)}, {"test": centred}, tmp_path).results
    for group in ("all", "displacement_near", "displacement_middle"):
        assert results[f"test/mid/{MAIN}/{group}"] == results[f"same_position/baseline/{MAIN}/{group}"]
    assert results["gain_over_same_position/mid/pck_ours_point_0.10/all"] == 0
    assert results["test/mid/copy_share/all"] == 1, "every wrong match is a copy"
    assert results["test/mid/copy_excess/all/ci_low"] > 0.8


def snapped(points: tuple[tuple[float, float], ...]) -> tuple[tuple[float, float], ...]:
    stride = SIZE / SIDE
    return tuple(((x // stride + 0.5) * stride, (y // stride + 0.5) * stride) for x, y in points)


def test_noise_makes_no_copies_beyond_chance(tmp_path: Path) -> None:
    pairs, _ = planted_pairs(12, 6, seed=3)
    results = measured({"mid": noise(12, seed=8)}, {"test": pairs}, tmp_path).results
    assert results["test/mid/copy_excess/all/ci_low"] <= 0 <= results["test/mid/copy_excess/all/ci_high"]


def test_corners_that_attract_matches_are_blamed_and_random_tokens_are_not(tmp_path: Path) -> None:
    pairs, points = planted_pairs(8, 6, seed=4)
    grid = with_parts(noise(8), points, 2.0)
    clean = measured({"mid": grid}, {"test": pairs}, tmp_path).results
    for row, col in ((0, 0), (0, -1), (-1, 0), (-1, -1)):
        grid[:, :, row, col] = codes(6, CHANNELS)[0]  # the first part without noise: more like it than the part itself
    results = measured({"mid": grid}, {"test": pairs}, tmp_path).results
    assert results["test/mid/attraction/corner/ci_low"] > 0.5
    assert 0.1 < results["test/mid/harm/corner"] <= 1 / 6 + 0.02
    assert results["test/mid/harm/corner/ci_low"] > 0.05
    assert abs(results["test/mid/harm_random/corner"]) < 0.02
    assert abs(clean["test/mid/harm/corner"]) < 0.02
    assert clean["test/mid/attraction/corner"] < 0.05


def test_where_every_match_is_perfect_no_mask_costs_anything(tmp_path: Path) -> None:
    pairs, points = planted_pairs(8, 4, seed=10)
    results = measured({"mid": with_parts(noise(8), points, 50.0)}, {"test": pairs}, tmp_path).results
    assert results[f"test/mid/{MAIN}/all"] == 1
    for group in ("corner", "border"):
        assert results[f"test/mid/harm/{group}"] == results[f"test/mid/harm_random/{group}"] == 0
    counted = results["test/mid/harm/border/n"]
    assert counted == results["test/mid/harm_random/border/n"]
    assert counted < results[f"test/mid/{MAIN}/all/n"] - results[f"test/mid/{MAIN}/target_border/n"], (
        "nor under the random mask"
    )


def test_flipping_both_pictures_changes_nothing(tmp_path: Path) -> None:
    pairs, points = planted_pairs(6, 5, seed=5)
    grid = with_parts(noise(6), points, 2.0)

    def flipped(pair: Pair) -> Pair:
        mirror = [tuple((SIZE - x, y) for x, y in spots) for spots in (pair.source_points, pair.target_points)]
        return Pair(pair.source, pair.target, pair.category, pair.ids, mirror[0], mirror[1], pair.target_box)

    upright = measured({"mid": grid}, {"test": pairs}, tmp_path).results
    mirrored = measured({"mid": grid.flip(-1)}, {"test": [flipped(pair) for pair in pairs]}, tmp_path).results
    drawn = ("random", "expected", "excess", "/harm/")  # harm: the random mask has a say in which keypoints count
    names = [name for name in upright if not any(word in name for word in drawn)]
    assert len(names) > 100
    for name in names:
        if "sd_dino" not in name and "dift" not in name:  # half a pixel to the left and above; whole pixels
            assert upright[name] == pytest.approx(mirrored[name]), name


def test_a_trained_projection_finds_parts_that_a_position_code_hides(tmp_path: Path) -> None:
    pairs, points = planted_pairs(30, 5, seed=6)
    grid = with_position(with_parts(0.1 * noise(30, channels=48), points, 1.0), 1.0)
    part = {name: [p for p in pairs if (p.source in members and p.target in members)] for name, members in
            {"train": range(20), "val": range(20, 24), "test": range(24, 30)}.items()}  # fmt: skip
    results = measured({"mid": grid}, part, tmp_path, head="linear", dimensions=24, min_steps=300).results
    assert results[f"zero_shot/mid/{MAIN}/all"] < 0.35
    assert results[f"test/mid/{MAIN}/all"] > 0.7
    assert results[f"gain_over_zero_shot/mid/{MAIN}/all/ci_low"] > 0.2
    assert results[f"shuffled_labels/mid/{MAIN}/all"] < 0.3, "the control learns nothing about parts"
    assert results["val/mid/retrieval_accuracy/all"] > 0.2


def test_enlarged_matching_agrees_with_tokens_where_parts_are_planted(tmp_path: Path) -> None:
    pairs, points = planted_pairs(6, 4, seed=8)
    results = measured({"mid": with_parts(noise(6), points, 50.0)}, {"test": pairs}, tmp_path, enlarged=True).results
    assert results["test/mid/pck_dift_point_0.10/all"] > 0.9
