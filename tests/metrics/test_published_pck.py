"""Every PCK of SPair-71k, PF-PASCAL and PF-WILLOW, against loops that read the data sets' own files as the papers' rules say.

The loops know nothing of tables of keypoints or placements: file → numbers → verdict, one keypoint at a time.
    sd_dino     Zhang et al. (2023), arXiv 2305.15347: SPair-71k α · box, PF-PASCAL α · image
    geoaware    Zhang et al. (2024), arXiv 2311.17034: the same, half a pixel further
    dift        Tang et al. (2023), arXiv 2306.03881: α · box, whole pixels of the original picture
    thesis      behind Loos and Linhardt (2025), arXiv 2504.07008: α · box in the network's input
    PF-WILLOW   Ham et al. (2018), arXiv 1703.07144: α · box around the keypoints; its table is filled up with zeros
"""

import csv
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import loadmat
from torch import Tensor

from datamodules.images.pairs import PairFiles
from datamodules.images.proposal_flow import PFPascalImages, PFWillowImages
from datamodules.images.spair import SPairImages
from datamodules.keypoints import keypoint_table, slots_of
from sdprobe.metrics.pck import ALPHAS, distances, input_distances, pixel_distances
from sdprobe.tokens.batch import Keypoints
from sdprobe.tokens.geometry import tokens_at
from tests.datamodules.pair_trees import add_pascal, add_spair, add_willow, annotate_pascal, save_picture
from tests.metrics.test_pck import annotation_place, near, reference_hit

PAIRS, PARTS = 24, 6
SIZE, SIDE = 960, 60  # of the input in the papers, and its tokens
Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Truth:
    """A target keypoint as a file has it: the point, size of the picture, box of the target."""

    x: float
    y: float
    width: int
    height: int
    box: Box


# --- fabricated trees ------------------------------------------------------------------------------------------------


def drawn(root: Path, folder: str, suffix: str, whole: bool) -> Iterator[tuple[str, str, list[list[list[float]]], list[float]]]:
    """Two new pictures of any shape for each pair, objects half as long: names, keypoints, and a box around the target's."""
    generator = np.random.default_rng(5)
    for number in range(PAIRS):
        names, points = (f"s{number}", f"t{number}"), []
        for name in names:
            size = generator.integers(60, 260, 2)
            save_picture(root / folder / f"{name}.{suffix}", (int(size[0]), int(size[1])))
            spots = 1 + (size - 2) * (generator.uniform(0, 0.5, 2) + generator.uniform(0, 0.5, (PARTS, 2)))
            points.append((spots.round() if whole else spots).tolist())
        low, high = np.min(points[1], axis=0), np.max(points[1], axis=0)
        around = np.concatenate([low - 0.2 * (high - low), high + 0.1 * (high - low)])
        yield *names, points, (around.round() if whole else around).tolist()


def spair(root: Path) -> PairFiles:
    for source, target, points, box in drawn(root, "JPEGImages/cat", "jpg", whole=True):
        sizes = [[*Image.open(root / f"JPEGImages/cat/{name}.jpg").size, 3] for name in (source, target)]
        add_spair(
            root, "test", "cat", source, target, src_kps=points[0], trg_kps=points[1], trg_bndbox=box,
            kps_ids=list(map(str, range(PARTS))), src_imsize=sizes[0], trg_imsize=sizes[1],
        )  # fmt: skip
    return SPairImages(str(root), SIZE)


def pascal(root: Path) -> PairFiles:
    for source, target, points, box in drawn(root, "JPEGImages", "jpg", whole=False):
        add_pascal(root, "test", "cat", source, target, (points[0], points[1]))
        for name, kps in zip((source, target), points, strict=True):
            annotate_pascal(root, "cat", name, kps, box)
    return PFPascalImages(str(root), SIZE)


def willow(root: Path) -> PairFiles:
    for source, target, points, _ in drawn(root, "car(S)", "png", whole=False):
        add_willow(root, "car(S)", source, target, (points[0], points[1]))
    return PFWillowImages(str(root), SIZE)


# --- files → truths --------------------------------------------------------------------------------------------------


def spair_truths(root: Path) -> Iterator[Truth]:
    for line in (root / "Layout/large/test.txt").read_text().split():
        record = json.loads((root / "PairAnnotation/test" / f"{line}.json").read_text())
        width, height, _ = record["trg_imsize"]
        yield from (Truth(x, y, width, height, tuple(record["trg_bndbox"])) for x, y in record["trg_kps"])


def pascal_truths(root: Path) -> Iterator[Truth]:
    with (root / "test_pairs_pf_pascal.csv").open() as file:
        for row in csv.DictReader(file):
            name = Path(row["target_image"]).stem
            size = Image.open(root / "JPEGImages" / f"{name}.jpg").size
            box = tuple(loadmat(root / f"Annotations/cat/{name}.mat")["bbox"][0].tolist())
            for x, y in zip(row["XB"].split(";"), row["YB"].split(";"), strict=True):
                yield Truth(float(x), float(y), *size, box)


def willow_truths(root: Path) -> Iterator[Truth]:
    with (root / "test_pairs_pf.csv").open() as file:
        for row in csv.DictReader(file):
            size = Image.open(root / row["imageB"].removeprefix("PF-dataset/")).size
            spots = [(float(row[f"XB{k}"]), float(row[f"YB{k}"])) for k in range(1, 11)]
            spots = [spot for spot in spots if spot != (0, 0)]
            xs, ys = zip(*spots, strict=True)
            yield from (Truth(x, y, *size, (min(xs), min(ys), max(xs), max(ys))) for x, y in spots)


# --- verdicts --------------------------------------------------------------------------------------------------------


def box_side(truth: Truth) -> float:
    return max(truth.box[2] - truth.box[0], truth.box[3] - truth.box[1])


def annotated(truth: Truth, u: float, v: float, alpha: float, image: bool) -> bool:
    """sd_dino and geoaware: a point (u, v) of 840 pixels."""
    limit = alpha * (840 if image else box_side(truth) * 840 / max(truth.width, truth.height))
    return near(u, v, annotation_place(truth.x, truth.y, truth.width, truth.height), limit, strict=True)


def verdict(protocol: str, truth: Truth, cell: list[int], alpha: float, image: bool) -> bool:
    """Of a token (row, col) among 60 × 60."""
    point, picture = [truth.x, truth.y], [truth.width, truth.height]
    return reference_hit(protocol, point, list(truth.box), picture, SIZE, "pad", cell, SIDE, alpha, image)


# --- agreement -------------------------------------------------------------------------------------------------------

DATASETS = pytest.mark.parametrize(
    ("make", "truths", "image"),
    [
        pytest.param(spair, spair_truths, False, id="spair"),
        pytest.param(pascal, pascal_truths, True, id="pascal"),
        pytest.param(willow, willow_truths, False, id="willow"),
    ],
)
Make, Truths = Callable[[Path], PairFiles], Callable[[Path], Iterator[Truth]]


def keypoints(images: PairFiles) -> Keypoints:
    pairs = images.pairs("test")
    return keypoint_table(pairs, images, slots_of(pairs))


def near_truth(points: Keypoints) -> Tensor:
    """(x, y) of the input, a fifth of the picture's longer side or less from the truth, so that every α tells points apart."""
    generator = torch.Generator().manual_seed(0)
    angle = 2 * math.pi * torch.rand(len(points), dtype=torch.float64, generator=generator)
    far = SIZE / 5 * torch.rand(len(points), dtype=torch.float64, generator=generator) ** 2
    return points.target_input + far[:, None] * torch.stack([angle.cos(), angle.sin()], 1)


@DATASETS
def test_verdicts_are_those_of_the_papers_at_every_alpha(tmp_path: Path, make: Make, truths: Truths, image: bool) -> None:
    points, known = keypoints(make(tmp_path)), list(truths(tmp_path))
    assert len(points) == len(known) == PAIRS * PARTS
    cell = tokens_at(near_truth(points), SIZE / SIDE, SIDE, SIDE)
    for protocol in ("ours", "ours_img", "sd_dino", "geoaware", "loos_thesis"):
        found = distances(protocol, points, cell, SIDE)
        shares = []
        for alpha in ALPHAS:
            expected = [verdict(protocol, truth, rc, alpha, image) for truth, rc in zip(known, cell.tolist(), strict=True)]
            assert found.correct(alpha).tolist() == expected, (protocol, alpha)
            shares.append(np.mean(expected))
        assert shares == sorted(shares) and 0.2 < shares[1] < shares[3] < 1, "the control: both answers occur"


@DATASETS
def test_refined_points_and_whole_pixels_are_counted_by_the_papers_rules(
    tmp_path: Path, make: Make, truths: Truths, image: bool
) -> None:
    points, known = keypoints(make(tmp_path)), list(truths(tmp_path))
    refined = near_truth(points)
    original = (refined - points.target_offset) / points.target_scale
    pixel = original.floor().long()
    for alpha in ALPHAS:
        found = input_distances("geoaware_refined", points, refined).correct(alpha).tolist()
        scaled = (refined * 840 / 960).tolist()
        assert found == [annotated(truth, *uv, alpha, image) for truth, uv in zip(known, scaled, strict=True)]
        dift = []
        for truth, (u, v) in zip(known, pixel.tolist(), strict=True):
            dift.append(math.sqrt((u - truth.x) ** 2 + (v - truth.y) ** 2) / box_side(truth) <= alpha)
        assert pixel_distances(points, pixel).correct(alpha).tolist() == dift


@DATASETS
def test_only_pf_pascal_is_counted_by_the_image(tmp_path: Path, make: Make, truths: Truths, image: bool) -> None:
    images = make(tmp_path)
    points = keypoints(images)
    assert (points.image_reach, images.image_reach) == (image, image)
    assert images.box == ("keypoints" if make is willow else "object")
    for protocol in ("sd_dino", "geoaware"):
        reach = input_distances(protocol, points, points.target_input).reference
        assert (reach == 840).all().item() is image
    other: Any = vars(points) | {"image_reach": not image}
    hits = [input_distances("sd_dino", some, near_truth(points)).correct(0.10) for some in (points, Keypoints(**other))]
    assert (hits[0] != hits[1]).double().mean() > 0.05, "the control: the wrong length is told from the right one"


def test_what_is_said_of_the_data_set_survives_a_selection(tmp_path: Path) -> None:
    points = keypoints(pascal(tmp_path))
    part = points.select(torch.tensor([3, 5])).to("cpu")
    assert part.image_reach and not part.squashed and len(part) == 2 and part.size == SIZE
    assert keypoints(PFPascalImages(str(tmp_path), SIZE, resize="squash")).squashed
    assert not keypoints(PFPascalImages(str(tmp_path), SIZE, resize="replicate")).squashed
