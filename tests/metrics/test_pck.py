"""Every protocol agrees with a loop written from its definition, and counts the exact threshold as its paper does."""

import math

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from datamodules.images.pairs import placement_of
from sdprobe.metrics.pck import (
    ALPHAS,
    PROTOCOLS,
    REFINED,
    distances,
    input_distances,
    pixel_distances,
    point_distances,
    random_correct,
)
from sdprobe.tokens.batch import Keypoints
from sdprobe.tokens.geometry import tokens_at
from sdprobe.utilities.settings import RESIZES

Hits = list[bool]
PLAIN = [name for name in PROTOCOLS if name != "dift" and not name.endswith(REFINED)]  # those that read tokens' centres


def table(pictures: list[tuple[int, int]], resize: str, size: int, seed: int = 0) -> Keypoints:
    """A keypoint for every target picture (width, height), with a random box; source pictures are turned by 90°."""
    generator, n = np.random.default_rng(seed), len(pictures)
    whole = torch.arange(n)
    ends = np.sort(generator.uniform(0, 1, (n, 2, 2)), axis=1) * np.array(pictures)[:, None, :]  # (x0, y0), (x1, y1)
    places = [placement_of(*picture, size, resize) for picture in pictures]
    turned = [placement_of(*picture[::-1], size, resize) for picture in pictures]
    return Keypoints(
        pair=whole,
        category=whole % 2,
        source=2 * whole,
        target=2 * whole + 1,
        source_slot=0 * whole,
        target_slot=0 * whole,
        source_point=double(generator.uniform(0, 1, (n, 2)) * np.array(pictures)[:, ::-1]),
        target_point=double(generator.uniform(0, 1, (n, 2)) * np.array(pictures)),
        target_box=double(ends.reshape(n, 4)),
        target_size=double(pictures),
        source_scale=double([place.scale for place in turned]),
        source_offset=double([place.offset for place in turned]),
        target_scale=double([place.scale for place in places]),
        target_offset=double([place.offset for place in places]),
        size=size,
        squashed=resize == "squash",
    )


def double(values: object) -> Tensor:
    return torch.tensor(np.array(values), dtype=torch.float64)


def single(point: tuple[float, float], box: tuple[float, float, float, float], side: int = 840) -> Keypoints:
    """One keypoint in a square picture that is its own network input."""
    points = table([(side, side)], "squash", side)
    return Keypoints(**(vars(points) | {"target_point": double([point]), "target_box": double([box])}))


def random_pictures(n: int, seed: int) -> list[tuple[int, int]]:
    return [(int(w), int(h)) for w, h in np.random.default_rng(seed).integers(40, 900, (n, 2))]


# --- the definitions, keypoint by keypoint ---------------------------------------------------------------------------


def placed(x: float, y: float, width: int, height: int, size: int, resize: str) -> tuple[float, float]:
    """Where a point of the original picture lies in the network's input."""
    if resize == "squash":
        return x * size / width, y * size / height
    wide = size if width >= height else round(size * width / height)
    high = size if height >= width else round(size * height / width)
    return x * wide / width + (size - wide) // 2, y * high / height + (size - high) // 2


def annotation_place(x: float, y: float, width: int, height: int) -> tuple[float, float]:
    """sd_dino and geoaware: one scale, and a whole margin of what the rounded shorter side leaves of 840 pixels."""
    scale = 840 / max(width, height)
    left = int((840 - int(np.around(840 * width / height))) / 2) if height > width else 0
    top = int((840 - int(np.around(840 * height / width))) / 2) if width > height else 0
    return x * scale + left, y * scale + top


def thesis_place(x: float, y: float, width: int, height: int, size: int) -> tuple[float, float]:
    """The thesis: whole margins in the picture's own pixels, then one scale."""
    longer = max(width, height)
    return (x + (longer - width) // 2) * size / longer, (y + (longer - height) // 2) * size / longer


def near(x: float, y: float, true: tuple[float, float], limit: float, strict: bool = False) -> bool:
    error = math.hypot(x - true[0], y - true[1])
    return error < limit if strict else error <= limit


def reference(protocol: str, points: Keypoints, resize: str, cell: Tensor, side: int, alpha: float) -> Hits:
    return [
        reference_hit(
            protocol,
            points.target_point[i].tolist(),
            points.target_box[i].tolist(),
            [int(edge) for edge in points.target_size[i].tolist()],
            points.size,
            resize,
            cell[i].tolist(),
            side,
            alpha,
        )
        for i in range(len(points))
    ]


def reference_hit(
    protocol: str,
    point: list[float],
    box: list[float],
    picture: list[int],
    size: int,
    resize: str,
    cell: list[int],
    side: int,
    alpha: float,
    image_reach: bool = False,
) -> bool:
    width, height = picture
    row, col = cell
    left, top = placed(0, 0, width, height, size, resize)
    right, bottom = placed(width, height, width, height, size, resize)
    x = ((col + 0.5) * size / side - left) / (right - left) * width  # the token's centre in the original picture
    y = ((row + 0.5) * size / side - top) / (bottom - top) * height
    if protocol in ("ours", "ours_img"):
        reach = max(width, height) if protocol == "ours_img" else max(box[2] - box[0], box[3] - box[1])
        return near(x, y, (point[0], point[1]), alpha * reach)
    if protocol == "loos_thesis":
        x0, y0 = thesis_place(box[0], box[1], width, height, size)
        x1, y1 = thesis_place(box[2], box[3], width, height, size)
        guess = ((col + 0.5) * size / side, (row + 0.5) * size / side)
        if resize == "squash":
            guess = thesis_place(x, y, width, height, size)
        reach = max(int(x1) - int(x0), int(y1) - int(y0))
        return near(*guess, thesis_place(point[0], point[1], width, height, size), alpha * reach)
    step = 840 / side
    guess = annotation_place(x, y, width, height) if resize == "squash" else ((col + 0.5) * step, (row + 0.5) * step)
    half = 0.5 if protocol == "sd_dino" else 0.0
    reach = 840 if image_reach else max(box[2] - box[0], box[3] - box[1]) * 840 / max(width, height)
    true = annotation_place(point[0], point[1], width, height)
    return near(guess[0] - half, guess[1] - half, true, alpha * reach, strict=True)


# --- agreement -------------------------------------------------------------------------------------------------------


def informative(hits: Hits) -> None:
    assert 0.03 < np.mean(hits) < 0.97, "the control: both answers occur"


def aimed(points: Keypoints, side: int, seed: int) -> Tensor:
    """Tokens scattered around the true one, so that hits and misses are both frequent."""
    noise = torch.randn(len(points), 2, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return tokens_at(points.target_input + noise * points.size / 12, points.size / side, side, side)


@pytest.mark.parametrize("resize", RESIZES)
@pytest.mark.parametrize("protocol", PLAIN)
@pytest.mark.parametrize(("size", "side"), [(512, 32), (960, 60), (768, 48), (256, 7)])
def test_a_protocol_agrees_with_a_loop_over_keypoints(protocol: str, resize: str, size: int, side: int) -> None:
    points = table(random_pictures(300, seed=size), resize, size, seed=side)
    cell = aimed(points, side, seed=1)
    for alpha in ALPHAS:
        expected = reference(protocol, points, resize, cell, side, alpha)
        assert distances(protocol, points, cell, side).correct(alpha).tolist() == expected
    informative(expected)


@pytest.mark.parametrize("protocol", ["sd_dino", "geoaware", "loos_thesis"])
def test_a_frame_of_its_own_moves_a_truth_by_what_is_rounded_at_most(protocol: str) -> None:
    points = table(random_pictures(300, seed=3), "pad", 960)
    moved = input_distances(protocol, points, points.target_input).error  # the true point, placed by the input's rule
    moved = (moved - (math.sqrt(0.5) if protocol == "sd_dino" else 0)).abs()
    margin = (
        0.5 * points.target_scale.amax(1) if protocol == "loos_thesis" else 0.5
    )  # half a pixel of the picture, of the frame
    assert (moved <= margin + 1).all()
    assert (moved > 0.1).any(), "it does move some"


@pytest.mark.parametrize("protocol", ["geoaware", "ours"])
def test_a_refined_protocol_counts_a_point_as_its_namesake_counts_a_centre(protocol: str) -> None:
    points = table(random_pictures(200, seed=12), "pad", 960)
    cell = aimed(points, 60, seed=12)
    found = input_distances(f"{protocol}_refined", points, (cell.flip(1) + 0.5).double() * 16)
    plain = distances(protocol, points, cell, 60)
    assert (
        torch.equal(found.error, plain.error) and torch.equal(found.reference, plain.reference) and found.strict == plain.strict
    )
    points = table([(300, 300), (960, 960)] * 9, "pad", 960)  # placed alike in every frame
    moved = input_distances(f"{protocol}_refined", points, points.target_input)
    assert moved.error.max() < 1e-9, "the true point itself, between tokens"


@pytest.mark.parametrize("resize", RESIZES)
def test_dift_compares_whole_pixels_of_the_original_with_keypoints_as_written(resize: str) -> None:
    points = table(random_pictures(400, seed=4), resize, 768, seed=4)
    generator = np.random.default_rng(5)
    shift = generator.normal(0, 0.15, (400, 2)) * points.target_size.numpy()
    pixel = torch.from_numpy(np.clip(np.floor(points.target_point.numpy() + shift), 0, points.target_size.numpy() - 1)).int()
    for alpha in ALPHAS:
        expected = []
        for (x, y), (u, v), (x0, y0, x1, y1) in zip(
            points.target_point.tolist(), pixel.tolist(), points.target_box.tolist(), strict=True
        ):
            expected.append(math.sqrt((u - x) ** 2 + (v - y) ** 2) / max(y1 - y0, x1 - x0) <= alpha)
        assert pixel_distances(points, pixel).correct(alpha).tolist() == expected
    informative(expected)


@given(st.sampled_from(RESIZES), st.sampled_from(["ours", "ours_img"]), st.integers(0, 10**6))
@settings(max_examples=25)
def test_any_point_of_the_input_counts_as_the_point_of_the_picture_that_it_shows(resize: str, kind: str, seed: int) -> None:
    points = table(random_pictures(20, seed), resize, 512, seed)
    found = point_distances(points, points.source_input, image=kind == "ours_img")
    for i in range(len(points)):
        width, height = (int(edge) for edge in points.target_size[i].tolist())
        left, top = placed(0, 0, width, height, 512, resize)
        right, bottom = placed(width, height, width, height, 512, resize)
        x, y = placed(*points.source_point[i].tolist(), height, width, 512, resize)  # the source picture is turned
        back = (x - left) / (right - left) * width, (y - top) / (bottom - top) * height
        assert found.error[i].item() == pytest.approx(math.dist(back, points.target_point[i].tolist()), abs=1e-9)


# --- laws and traps --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("protocol", "centre", "counts"),
    [("ours", 7, True), ("loos_thesis", 7, True), ("sd_dino", 6.5, False), ("geoaware", 7, False)],
)
@pytest.mark.parametrize(("alpha", "side", "limit"), [(0.01, 100, 1), (0.05, 200, 10), (0.10, 100, 10), (0.15, 100, 15)])
def test_the_exact_threshold_counts_where_the_protocol_says_at_most(
    protocol: str, centre: float, counts: bool, alpha: float, side: int, limit: int
) -> None:
    cell = torch.tensor([[20, 30]])
    x, y = 14 * 30 + centre, 14 * 20 + centre
    for away, expected in ((limit, counts), (limit - 1e-6, True), (limit + 1e-6, False)):
        for point in ((x + away, y), (x, y - away), (x + 0.6 * away, y + 0.8 * away)):
            points = single(point, (0, 0, side, side / 2))
            found = distances(protocol, points, cell, 60)
            if found.error.item() == pytest.approx(limit, abs=1e-9) and found.error.item() != limit:
                continue  # 0.6 and 0.8 are not exact in binary
            assert found.correct(alpha).item() is expected


def test_the_exact_threshold_counts_for_dift() -> None:
    points = single((100, 50), (0, 0, 20, 100))
    for pixel, expected in (((110, 50), True), ((106, 58), True), ((92, 44), True), ((111, 50), False), ((108, 57), False)):
        assert pixel_distances(points, torch.tensor([pixel])).correct(0.10).item() is expected


def test_the_thesis_cuts_its_box_to_whole_pixels_before_it_measures_it() -> None:
    cell = torch.tensor([[20, 30]])
    point = (14 * 30 + 7 + 10.05, 14 * 20 + 7.0)
    for box, reach in (((0, 0, 100.9, 9), 100), ((0.9, 0, 100.9, 9), 100), ((0.9, 0, 101.0, 9), 101), ((-0.9, 0, 100, 9), 100)):
        found = distances("loos_thesis", single(point, box), cell, 60)
        assert found.reference.item() == reach
        assert found.correct(0.10).item() is (reach > 100.5)
        assert distances("ours", single(point, box), cell, 60).reference.item() == pytest.approx(max(box[2] - box[0], 9))


def test_a_squashed_input_does_not_distort_a_box_in_any_frame() -> None:
    points = table([(800, 200)], "squash", 400)  # ½ and 2
    points = Keypoints(**(vars(points) | {"target_box": double([(100, 50, 200, 90)])}))  # 100 × 40 → 50 × 80 of the input
    cell = torch.tensor([[3, 3]])
    assert distances("loos_thesis", points, cell, 8).reference.item() == 50
    assert distances("sd_dino", points, cell, 8).reference.item() == pytest.approx(100 * 840 / 800)
    assert distances("geoaware", points, cell, 8).reference.item() == pytest.approx(100 * 840 / 800)
    assert distances("ours", points, cell, 8).reference.item() == 100
    assert distances("ours_img", points, cell, 8).reference.item() == 800
    assert pixel_distances(points, cell).reference.item() == 100


@given(st.sampled_from(RESIZES), st.sampled_from([(512, 32), (512, 8), (960, 60)]), st.integers(0, 10**6))
@example("pad", (960, 60), 219)  # a picture of 61 × 60 pixels
@settings(max_examples=30)
def test_a_match_with_the_true_token_errs_by_half_a_cell_at_most(resize: str, grid: tuple[int, int], seed: int) -> None:
    size, side = grid
    points = table(random_pictures(20, seed), resize, size, seed)
    cell = tokens_at(points.target_input, size / side, side, side)
    half = size / side / 2 * math.sqrt(2) + 1e-9
    assert (distances("ours", points, cell, side).error * points.target_scale.amin(1) <= half).all()
    shrunk = (size / points.target_size.amax(1) / points.target_scale.amin(1)).clamp_max(1)  # rounding makes this exceed 1
    for protocol, frame in (("loos_thesis", size), ("geoaware", 840), ("sd_dino", 840)):
        slack = 1.5 * max(1, frame / size) + (math.sqrt(0.5) if protocol == "sd_dino" else 0)  # the frame's own rounding
        if protocol == "loos_thesis":  # pads by whole pixels of the picture, which are large in a frame of small pictures
            slack = slack + 0.5 * frame / points.target_size.amax(1)
        assert (distances(protocol, points, cell, side).error <= half * shrunk * frame / size + slack).all()


@pytest.mark.parametrize("protocol", PLAIN)
def test_a_box_without_width_is_reached_by_nothing_but_never_by_a_nan(protocol: str) -> None:
    points = single((100, 50), (40, 40, 40, 40))
    found = distances(protocol, points, torch.tensor([[3, 20]]), 60)
    assert found.error.isfinite().all() and found.reference.isfinite().all()
    assert found.correct(0.10).item() is (protocol == "ours_img" and found.error.item() <= 84)


def test_averages_are_the_published_ones() -> None:
    assert PROTOCOLS == {
        "ours": ("point", "image", "macro"),
        "ours_img": ("point", "image", "macro"),
        "dift": ("image", "point"),
        "sd_dino": ("macro", "pair"),
        "geoaware": ("image",),
        "geoaware_refined": ("image",),
        "ours_refined": ("point", "image", "macro"),
        "loos_thesis": ("point",),
    }


def test_a_protocol_that_reads_pixels_or_does_not_exist_is_refused() -> None:
    points = single((1, 1), (0, 0, 2, 2))
    for protocol in ("dift", "pck"):
        with pytest.raises(ValueError, match=protocol):
            distances(protocol, points, torch.tensor([[0, 0]]), 60)


# --- chance ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("image", [False, True])
@pytest.mark.parametrize("alpha", ALPHAS)
def test_chance_is_how_often_uniform_points_of_the_picture_hit(image: bool, alpha: float) -> None:
    points = table(random_pictures(60, seed=7), "pad", 512, seed=7)
    draws, generator = 20_000, np.random.default_rng(8)
    expected = random_correct(points, alpha, image)
    found = []
    for (x, y), (width, height), (x0, y0, x1, y1) in zip(
        points.target_point.tolist(), points.target_size.tolist(), points.target_box.tolist(), strict=True
    ):
        guess = generator.uniform(0, 1, (draws, 2)) * (width, height)
        limit = alpha * (max(width, height) if image else max(x1 - x0, y1 - y0))
        found.append(np.mean(np.hypot(guess[:, 0] - x, guess[:, 1] - y) <= limit))
    assert np.abs(expected.numpy() - found).max() < 0.015, "the points that stand for all are 48 × 48"
    assert expected.mean().item() == pytest.approx(np.mean(found), abs=0.001)


def test_chance_of_circles_smaller_than_the_points_spacing_is_right_on_average() -> None:
    n = 3000
    points = table([(480, 480)] * n, "pad", 512, seed=9)
    inside = 20 + points.target_point * 440 / 480  # no circle leaves the picture, and 440 is 44 spacings
    points = Keypoints(**(vars(points) | {"target_point": inside, "target_box": double([(0, 0, 40, 10)] * n)}))
    share = random_correct(points, 0.10)  # 4 pixels of 10 between points
    area = math.pi * 4**2 / 480**2
    assert share.max().item() <= 1 / 48**2
    assert abs(share.mean().item() - area) < 4 * share.std().item() / math.sqrt(n)


def test_chance_does_not_depend_on_how_keypoints_are_cut_into_parts() -> None:
    points = table(random_pictures(1500, seed=10), "pad", 512, seed=10)
    whole = random_correct(points, 0.10)
    parts = torch.cat([random_correct(points.select(rows), 0.10) for rows in torch.arange(1500).split(500)])
    assert torch.equal(whole, parts)
    assert ((whole >= 0) & (whole <= 1)).all()
