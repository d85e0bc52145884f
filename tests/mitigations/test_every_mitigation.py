"""Laws of all mitigations: batches, precision, saving, other images and other shapes."""

import inspect
import json
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from safetensors.torch import load, save
from torch import Tensor

from sdprobe import mitigations
from sdprobe.mitigations import (
    ChannelDiscard,
    EmptyImage,
    Leace,
    OutlierTokens,
    PcaDrop,
    PositionMean,
    RandomRank,
    ShiftAnova,
    ShuffledPosition,
    Standardize,
)
from sdprobe.mitigations.base import Mitigation
from sdprobe.utilities.errors import InputError
from tests.mitigations.planted import generator, grids
from tests.planted import high_norm_patches

CONFIGS = Path(__file__).parents[2] / "configs" / "mitigation"
MAKERS: dict[str, Callable[[], Mitigation]] = {
    "position_mean": PositionMean,
    "position_mean_scaled": lambda: PositionMean(basis="cosine", gamma=0.5, scale=True, centre=True),
    "leace": Leace,
    "standardize": Standardize,
    "zscore": lambda: Standardize(mode="zscore"),
    "zca": lambda: Standardize(mode="zca"),
    "random_rank": lambda: RandomRank(rank=3),
    "pca_drop": PcaDrop,
    "shuffled_position": ShuffledPosition,
    "project": OutlierTokens,
    "inpaint": lambda: OutlierTokens(mode="inpaint"),
    "mask": lambda: OutlierTokens(mode="mask"),
    "clip": lambda: OutlierTokens(mode="clip"),
    "channel_discard": lambda: ChannelDiscard(ratio=1.5),
    "empty_image": EmptyImage,
    "shift_anova": ShiftAnova,
}
every = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)


COUNT = 24


@cache
def images(seed: int = 0) -> Tensor:
    """Grids of 8 × 8 tokens, with a code of position and high-norm tokens."""
    raw = grids(COUNT, 24, 8, 8, strength=1.0, seed=seed)
    return high_norm_patches(raw, 20.0, 1, generator(seed + 7))[0]


def fed(mitigation: Mitigation, parts: int = 1, seed: int = 0) -> Mitigation:
    """Fitted on as many different views of every image as it wants."""
    views = [images(seed + view) for view in range(len(mitigation.fit_views))]
    return mitigation.fit(tuple(view[i] for view in views) for i in torch.arange(COUNT).tensor_split(parts))


@every
def test_batch_size_changes_neither_fit_nor_transform(make: Callable[[], Mitigation]) -> None:
    raw = images(20)
    whole, parts = fed(make()), fed(make(), parts=5)
    expected = whole.transform(raw)
    torch.testing.assert_close(parts.transform(raw), expected, atol=1e-4, rtol=1e-5)
    alone = torch.cat([whole.transform(image[None]) for image in raw])
    torch.testing.assert_close(alone, expected, atol=1e-5, rtol=1e-5)
    assert parts.describe() == whole.describe()


@every
def test_a_fresh_instance_loads_the_state_and_does_the_same(make: Callable[[], Mitigation]) -> None:
    raw, fitted, fresh, refitted = images(20), fed(make()), make(), fed(make(), seed=50)
    for other in (fresh, refitted):
        other.load_state_dict(load(save(fitted.state_dict())))
        assert torch.equal(other.transform(raw), fitted.transform(raw))
        assert other.describe() == fitted.describe()
    json.dumps(fitted.describe(), allow_nan=False)


@every
def test_a_state_without_a_part_is_refused(make: Callable[[], Mitigation]) -> None:
    state = fed(make()).state_dict()
    state.pop(list(state)[-1])
    with pytest.raises(RuntimeError, match="Missing key"):
        make().load_state_dict(state)


@every
def test_grids_keep_their_precision_and_arithmetic_is_float32(make: Callable[[], Mitigation]) -> None:
    raw, mitigation = images(20)[:4], fed(make())
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        left = mitigation.transform(raw.to(dtype))
        assert left.dtype == dtype and left.shape == raw.shape and left.isfinite().all()
        assert torch.equal(left, mitigation.transform(raw.to(dtype).float()).to(dtype))


@every
def test_a_second_fit_forgets_the_first(make: Callable[[], Mitigation]) -> None:
    twice = fed(fed(make(), seed=50))
    assert torch.equal(twice.transform(images(20)), fed(make()).transform(images(20)))
    assert twice.describe() == fed(make()).describe()


@every
def test_memory_layout_changes_no_value(make: Callable[[], Mitigation]) -> None:
    raw, mitigation = images(20)[:4], fed(make())
    last = raw.to(memory_format=torch.channels_last)
    torch.testing.assert_close(mitigation.transform(last), mitigation.transform(raw), atol=1e-5, rtol=1e-5)


@every
def test_the_grid_that_goes_in_is_not_written_to(make: Callable[[], Mitigation]) -> None:
    raw, mitigation = images(20)[:4], fed(make())
    before = raw.clone()
    mitigation.transform(raw)
    assert torch.equal(raw, before)


@every
def test_grids_of_another_size_are_taken_and_other_channels_refused(make: Callable[[], Mitigation]) -> None:
    mitigation = fed(make())
    for size in ((6, 6), (12, 9)):
        assert mitigation.transform(grids(2, 24, *size)).shape == (2, 24, *size)
    if len(mitigation.state_dict()) > 1 and mitigation.fit_images != 0:
        with pytest.raises(InputError, match="grids of 24 channels, those of the fit, but got 20"):
            mitigation.transform(grids(2, 20, 8, 8))


@every
def test_nothing_is_transformed_before_a_fit_and_nothing_fitted_on_no_image(make: Callable[[], Mitigation]) -> None:
    if make().fit_images == 0:
        make().fit([]).transform(images()[:2])
        return
    with pytest.raises(InputError, match="to be fitted before it transforms"):
        make().transform(images()[:2])
    with pytest.raises(InputError, match="at least one fit image, but got none"):
        make().fit([])


def test_fit_images_of_two_shapes_are_refused() -> None:
    with pytest.raises(InputError, match="a grid of 24 × 8 × 8, but got 24 × 6 × 6"):
        PositionMean().fit([grids(2, 24, 8, 8), grids(2, 24, 6, 6)])


@pytest.mark.parametrize("name", sorted({path.stem for path in CONFIGS.glob("*.yaml")} - {"none", "saved"}))
def test_every_choice_is_a_node_of_its_own_name_with_the_constructors_defaults(name: str) -> None:
    node = OmegaConf.load(CONFIGS / f"{name}.yaml")
    assert list(node) == [name]
    made = instantiate(node[name])
    parameters = inspect.signature(type(made)).parameters
    given = {key: value for key, value in node[name].items() if key != "_target_"}
    assert given == {key: parameter.default for key, parameter in parameters.items()}


def test_every_class_has_a_choice() -> None:
    targets = {OmegaConf.load(path)[path.stem]["_target_"] for path in CONFIGS.glob("*.yaml") if path.stem != "none"}
    classes = {name for name in mitigations.__all__ if isinstance(getattr(mitigations, name), type)}
    assert {f"sdprobe.mitigations.{name}" for name in classes - {"Extraction", "Mitigation"}} == targets
