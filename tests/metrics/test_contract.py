"""What all metrics have in common, each on the same images: batches, order, processes, resets, intervals, gains, examples.

A case feeds a metric images by their number. What a metric says of them is compared with references in its own file.
"""

import json
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities.data import dim_zero_sum

from sdprobe.metrics.channel_energy import ChannelEnergy
from sdprobe.metrics.clusters import ClusterMetric
from sdprobe.metrics.corner_similarity import CornerSimilarity
from sdprobe.metrics.depth_error import DepthError
from sdprobe.metrics.equivariance import ShiftEquivariance
from sdprobe.metrics.flip_attribution import FlipAttribution
from sdprobe.metrics.folds import FOLDS, FoldMetric, folds_of, pseudovalues
from sdprobe.metrics.gains import paired_gains
from sdprobe.metrics.grid_accuracy import GridAccuracy
from sdprobe.metrics.group_similarity import GroupSimilarity
from sdprobe.metrics.high_norm import PATCHES, DetectionMetric, DetectionScore, HighNormTokens, MaskOverlap
from sdprobe.metrics.intervals import FEWEST, effective_units
from sdprobe.metrics.layer_tokens import LayerTokens, TokenMeans
from sdprobe.metrics.linear_cka import LinearCKA
from sdprobe.metrics.position_rsa import PositionRSA
from sdprobe.metrics.position_variance import PositionVariance
from sdprobe.metrics.r2 import ContentR2, CoordinateR2
from sdprobe.metrics.token_norms import TokenNorms
from sdprobe.tokens.groups import border_groups
from sdprobe.utilities.errors import InputError
from tests.metrics.drawn import randmask, randn

IMAGES, PHOTOS, TOKENS, CHANNELS, SIDE = 60, 12, 12, 5, 6
GROUPS = ("corner", "high_norm")
ROUNDING = 1e-6  # of sums in float32, which rounds by 6e-8


class Images:
    """Grids with masks and labels, and tokens with positions, depth and content as probes predict them."""

    def __init__(self, seed: int = 0) -> None:
        self.photo = torch.arange(IMAGES) * 7 % PHOTOS
        grids = IMAGES, SIDE, SIDE
        self.grid = randn(IMAGES, CHANNELS, SIDE, SIDE, seed=1) + randn(CHANNELS, SIDE, SIDE, seed=2)
        self.mean = randn(CHANNELS, seed=3)
        places = {name: mask.expand(IMAGES, -1, -1) for name, mask in border_groups(SIDE, SIDE).items()}
        with_detections = randmask(IMAGES, 1, 1, share=0.7, seed=14)
        self.masks = places | {"high_norm": randmask(*grids, share=0.6, seed=4) & with_detections}
        self.label = randmask(*grids, share=0.4, seed=5)
        n = (IMAGES, TOKENS)
        self.member = {group: randmask(*n, share=0.4, seed=6 + i) for i, group in enumerate(GROUPS)}
        self.where = (torch.rand(*n, 2, generator=torch.Generator().manual_seed(8)) * SIDE).long()
        guess = (torch.rand(*n, 2, generator=torch.Generator().manual_seed(9 + seed)) * SIDE).long()
        self.guess = torch.where(randmask(*n, 2, share=0.6, seed=20 + seed), self.where, guess)
        self.depth = 1 + randn(*n, seed=10).abs()
        self.depth[randmask(*n, share=0.2, seed=11)] = torch.nan
        self.content = randn(*n, 4, seed=12)
        hard = 0.2 + self.photo[:, None] / PHOTOS  # photographs differ far more than two probes do
        self.off = hard * randn(*n, seed=13) + 0.05 * randn(*n, seed=30 + seed)

    def layer(self, index: Tensor, ranked: bool = False) -> LayerTokens:
        masks = {name: mask[index] for name, mask in self.masks.items()}
        return LayerTokens.of(self.grid[index], masks, self.mean, index if ranked else None)

    def tokens(self, index: Tensor, *tables: Tensor) -> list[Any]:
        """Tables of the tokens of some images, then their masks, photographs and images."""
        masks = {group: mask[index].flatten() for group, mask in self.member.items()}
        by_token = [ids.repeat_interleave(TOKENS) for ids in (self.photo[index], index)]
        return [*(table[index].flatten(0, 1) for table in tables), masks, *by_token]


DATA = Images()


class Case(NamedTuple):
    make: Callable[[int], Metric]  # of a number of images
    feed: Callable[[Any, Tensor, Images], None]
    ordered: bool = False  # whether images have to arrive in their order


def feed_flips(metric: FlipAttribution, index: Tensor, data: Images) -> None:
    guess, where, _, photo, _ = data.tokens(index, data.guess, data.where)
    metric.update(guess, where, photo, rotated=False)
    metric.update(torch.where((photo % 3 > 0)[:, None], guess, SIDE - 1 - guess), where, photo, rotated=True)


def feed_depth(metric: DepthError, index: Tensor, data: Images) -> None:
    depth, off, where, masks, photo, image = data.tokens(index, data.depth, data.off, data.where)
    metric.update(depth + off, depth, where, masks, photo, image)


def feed_content(metric: ContentR2, index: Tensor, data: Images) -> None:
    content, off, masks, photo, _ = data.tokens(index, data.content, data.off)
    metric.update(content + off[:, None], content, masks, photo)


def feed_coordinates(metric: CoordinateR2, index: Tensor, data: Images) -> None:
    content, off, _, photo, _ = data.tokens(index, data.content[..., :2], data.off)
    metric.update(content + off[:, None], content, photo)


CLUSTERS = {
    "GridAccuracy": Case(
        lambda _: GridAccuracy(SIDE, SIDE, GROUPS, PHOTOS),
        lambda metric, index, data: metric.update(*data.tokens(index, data.guess, data.where)[:4]),
    ),
    "DepthError": Case(lambda _: DepthError(SIDE, SIDE, GROUPS, PHOTOS), feed_depth),
    "ContentR2": Case(lambda _: ContentR2(GROUPS, PHOTOS), feed_content),
}
BY_FOLD = {
    "CornerSimilarity": Case(
        lambda images: CornerSimilarity(CHANNELS, images),
        lambda metric, index, data: metric.update(data.layer(index, ranked=True), "corner"),
    ),
    "GroupSimilarity": Case(
        lambda images: GroupSimilarity((*GROUPS, "border"), images, centred=True, counts={"corner": 4, "border": 20}),
        lambda metric, index, data: metric.update(data.layer(index, ranked=True)),
    ),
    "TokenNorms": Case(
        lambda images: TokenNorms(SIDE, SIDE, GROUPS, images),
        lambda metric, index, data: metric.update(data.layer(index, ranked=True)),
    ),
    "HighNormTokens": Case(HighNormTokens, lambda metric, index, data: metric.update(data.layer(index, ranked=True))),
    "DetectionScore": Case(
        DetectionScore, lambda metric, index, data: metric.update(data.masks["high_norm"][index], data.label[index], index)
    ),
    "MaskOverlap": Case(
        MaskOverlap, lambda metric, index, data: metric.update(data.masks["high_norm"][index], data.label[index]), ordered=True
    ),
}
FOLD_METRICS = BY_FOLD | {
    "ChannelEnergy": Case(
        lambda images: ChannelEnergy(CHANNELS, images),
        lambda metric, index, data: metric.update(data.layer(index)),
        ordered=True,
    ),
    "PositionVariance": Case(
        lambda images: PositionVariance(CHANNELS, SIDE, SIDE, images),
        lambda metric, index, data: metric.update(data.layer(index)),
        ordered=True,
    ),
    "PositionRSA": Case(
        lambda images: PositionRSA(images, limit=images),
        lambda metric, index, data: metric.update(data.layer(index), index, data.photo[index]),
        ordered=True,
    ),
}
REPORTING = {
    **CLUSTERS,
    **FOLD_METRICS,
    "CoordinateR2": Case(lambda _: CoordinateR2(PHOTOS), feed_coordinates),
    "FlipAttribution": Case(lambda _: FlipAttribution(SIDE, SIDE, PHOTOS), feed_flips),
}
ALL = {
    **REPORTING,
    "ShiftEquivariance": Case(
        lambda _: ShiftEquivariance(SIDE, SIDE, 1, PHOTOS),
        lambda metric, index, data: metric.update(
            data.grid[index], data.grid[index].roll((-1, -1), (-2, -1)), torch.zeros(CHANNELS), data.photo[index]
        ),
    ),
    "TokenMeans": Case(
        lambda _: TokenMeans(CHANNELS),
        lambda metric, index, data: metric.update(data.grid[index], data.masks["high_norm"][index]),
    ),
    "LinearCKA": Case(
        lambda images: LinearCKA({"mid": (CHANNELS, SIDE, SIDE)}, images, rows=200),
        lambda metric, index, data: metric.update({"mid": data.grid[index]}),
        ordered=True,
    ),
}


def over(cases: dict[str, Case]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("case", [pytest.param(case, id=name) for name, case in cases.items()])


def measured(case: Case, *batches: Tensor, data: Images = DATA, images: int = IMAGES) -> Any:
    metric = case.make(images)
    for index in batches or (torch.arange(images),):
        case.feed(metric, index, data)
    return metric


def contents(metric: Metric) -> dict[str, Any]:
    """Everything that a metric says, as arrays."""
    said = {name: getattr(metric, name)() for name in ("compute", "maps", "estimates", "pseudovalues") if hasattr(metric, name)}
    found = {}
    for name, values in said.items():
        for key, value in values.items() if isinstance(values, dict) else enumerate(values):
            found[f"{name} {key}"] = np.concatenate([np.ravel(part) for part in value]) if isinstance(value, tuple) else value
    return found


def assert_same(found: Metric, expected: Metric) -> None:
    ours, theirs = contents(found), contents(expected)
    assert set(ours) == set(theirs)
    for key, value in theirs.items():
        np.testing.assert_allclose(ours[key], value, rtol=ROUNDING, atol=ROUNDING, err_msg=key)


# --- sums ------------------------------------------------------------------------------------------------------------


@over(ALL)
@pytest.mark.parametrize("parts", [2, 7, IMAGES])
def test_any_batch_size_gives_what_all_at_once_give(case: Case, parts: int) -> None:
    assert_same(measured(case, *torch.arange(IMAGES).tensor_split(parts)), measured(case))


@over({name: case for name, case in ALL.items() if not case.ordered})
def test_images_may_arrive_in_any_order(case: Case) -> None:
    order = torch.randperm(IMAGES, generator=torch.Generator().manual_seed(0))
    assert_same(measured(case, *order.split(7)), measured(case))


@over(ALL)
def test_processes_merge_by_adding_states(case: Case) -> None:
    merged = case.make(IMAGES)
    assert set(merged._reductions.values()) == {dim_zero_sum}, "what distributed reduction does is the sum taken here"
    if case.ordered:
        return
    processes = [measured(case, torch.arange(IMAGES)[k::2]) for k in range(2)]
    for name in merged._reductions:
        setattr(merged, name, sum(getattr(process, name) for process in processes))
    merged._update_count = 1
    assert_same(merged, measured(case))


@over(ALL)
def test_a_reset_forgets_and_memory_does_not_grow(case: Case) -> None:
    metric = measured(case)
    sizes = {name: state.nbytes for name, state in metric.metric_state.items()}
    metric.reset()
    case.feed(metric, torch.arange(IMAGES), Images(1))
    assert {name: state.nbytes for name, state in metric.metric_state.items()} == sizes
    assert_same(metric, measured(case, data=Images(1)))


# --- reports ---------------------------------------------------------------------------------------------------------


@over(REPORTING)
def test_a_report_is_json_and_intervals_hold_their_value(case: Case) -> None:
    values = measured(case).compute()
    assert json.loads(json.dumps(values, allow_nan=False)) == values and values
    for key in (key for key in values if key.count("/") == 1):
        assert isinstance(values.get(f"{key}/n", 0), int)
        assert values[f"{key}/ci_low"] - 1e-12 <= values[key] <= values[f"{key}/ci_high"] + 1e-12, key


@over(FOLD_METRICS)
def test_values_are_estimates_whose_pseudovalues_mean_them(case: Case) -> None:
    metric = measured(case)
    values, estimates = metric.compute(), metric.estimates()
    assert {key for key in values if key.count("/") == 1} == {key for key, (value, _) in estimates.items() if value.isfinite()}
    for key, estimate in estimates.items():
        assert values[key] == estimate[0].item() == pytest.approx(np.nanmean(pseudovalues(estimate)), abs=1e-9)
        low, high = (0, 1) if isinstance(metric, DetectionMetric) and key != PATCHES else metric.bounds
        assert low <= values[f"{key}/ci_low"] and values[f"{key}/ci_high"] <= high


@over(BY_FOLD)
def test_without_a_fold_values_are_those_of_the_other_images(case: Case) -> None:
    found, fold = measured(case).estimates(), folds_of(0, IMAGES, IMAGES)
    for k in (0, 7, FOLDS - 1):
        alone = case.make(IMAGES)
        for index in (fold != k).nonzero()[:, 0].split(20):
            case.feed(alone, index, DATA)
        for key, (value, _) in alone.estimates().items():
            assert found[key][1][k].item() == pytest.approx(value.item(), abs=ROUNDING), key


@over({name: case for name, case in FOLD_METRICS.items() if name != "PositionVariance"})
def test_intervals_need_two_images_per_fold(case: Case) -> None:
    assert not any("/ci_" in key for key in measured(case, images=2 * FOLDS - 1).compute())
    assert any("/ci_" in key for key in measured(case, images=2 * FOLDS).compute())


@over({**FOLD_METRICS, "LinearCKA": ALL["LinearCKA"]})
def test_an_image_too_many_is_refused(case: Case) -> None:
    metric = measured(case, images=3)
    with pytest.raises(InputError, match="but got 3, and at least 4 arrived"):
        case.feed(metric, torch.tensor([3]), DATA)


@over(CLUSTERS)
@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_groups_without_tokens_have_no_key(case: Case) -> None:
    empty = Images()
    empty.member["corner"][:] = False
    values = measured(case, data=empty).compute()
    assert {key.split("/")[1] for key in values} == {"all", "high_norm"}
    for nothing in (case.make(IMAGES), measured(case, torch.zeros(0, dtype=torch.long))):
        assert nothing.compute() == nothing.pseudovalues() == nothing.gain(nothing) == {}


@over(CLUSTERS)
@pytest.mark.parametrize("photographs", [1, 2, 5, 6, 9])
def test_pseudovalues_are_the_jackknifes_and_intervals_need_six_effective_photographs(case: Case, photographs: int) -> None:
    tested = (DATA.photo < photographs).nonzero()[:, 0]
    metric: ClusterMetric = measured(case, tested)
    values, units = metric.compute(), metric.pseudovalues()
    assert set(units) == {key for key in values if key.count("/") == 1}
    without = [measured(case, tested[DATA.photo[tested] != k]).compute() for k in range(photographs)]
    for key, found in units.items():
        assert np.isfinite(found).tolist() == [k < photographs for k in range(PHOTOS)]
        assert np.nanmean(found) == pytest.approx(values[key], abs=1e-9)
        if photographs > 1 and not key.startswith("rmse/"):  # the root is linearised
            left = np.array([each[key] for each in without])
            expected = values[key] + (photographs - 1) * (left.mean() - left)
            np.testing.assert_allclose(found[:photographs], expected, atol=1e-9)
        weights = metric.spread if isinstance(metric, ContentR2) else metric.count
        enough = effective_units(weights[:, metric.groups.index(key.split("/")[1])].numpy()) + 1e-9 >= FEWEST
        assert (f"{key}/ci_low" in values) == (f"{key}/ci_high" in values) == enough, key


# --- gains -----------------------------------------------------------------------------------------------------------


@over(CLUSTERS)
def test_gains_are_paired_differences_of_pseudovalues(case: Case) -> None:
    own, other = measured(case), measured(case, data=Images(1))
    found, back, values, theirs = own.gain(other), other.gain(own), own.compute(), other.compute()
    assert found == paired_gains(own.pseudovalues(), other.pseudovalues())
    assert {key for key in found if key.count("/") == 1} == {key for key in values if key.count("/") == 1}
    for key in (key for key in found if key.count("/") == 1):
        assert found[key] == pytest.approx(values[key] - theirs[key], abs=1e-9) == -back[key]
        assert found[f"{key}/n"] == PHOTOS
        assert found[f"{key}/ci_low"] <= found[key] <= found[f"{key}/ci_high"]
    widths = [found[f"{key}/ci_high"] - found[f"{key}/ci_low"] for found in (found, theirs) for key in (f"{own.kinds[0]}/all",)]
    assert widths[0] < widths[1] or isinstance(own, GridAccuracy), "what both share cancels"
    same = own.gain(own)
    assert set(same.values()) == {0, PHOTOS} and not any("/ci_" in key for key in same), "no photograph differs"


@over(CLUSTERS)
def test_groups_of_other_tokens_have_no_gain_and_few_photographs_no_interval(case: Case) -> None:
    own, other = measured(case), measured(case, data=Images(1))
    for metric in (own, other):
        metric.count[0, 2] = 10**4  # one photograph holds nearly all
    gained = own.gain(other)
    assert f"{own.kinds[0]}/high_norm/n" in gained and f"{own.kinds[0]}/high_norm/ci_low" not in gained
    assert f"{own.kinds[0]}/all/ci_low" in gained
    other.count[3, 1] += 1
    assert {key.split("/")[1] for key in own.gain(other)} == {"all", "high_norm"}


def test_every_metric_is_held_to_the_contract() -> None:
    def kinds(base: type) -> set[str]:
        below = base.__subclasses__()
        return set().union(*map(kinds, below)) if below else {base.__name__}

    assert kinds(ClusterMetric) | kinds(FoldMetric) <= set(ALL)
