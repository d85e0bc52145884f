"""The contract of all mitigations: settings and maps stay as they are, fits are saved whole, bad options are refused."""

import inspect
import json
import logging
from collections.abc import Callable
from dataclasses import FrozenInstanceError
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file
from torch import Tensor

from sdprobe import mitigations
from sdprobe.mitigations import (
    Canvas,
    ChannelDiscard,
    EmptyImage,
    Leace,
    Map,
    Mitigation,
    OutlierTokens,
    PaddingSwap,
    PcaDrop,
    PositionMean,
    RandomRank,
    ShiftAnova,
    ShiftFlipNoise,
    ShuffledPosition,
    Standardize,
    load,
    save,
)  # fmt: skip
from sdprobe.mitigations.saved import KINDS
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


def fed(mitigation: Mitigation, parts: int = 1, seed: int = 0) -> Map:
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
def test_a_saved_map_is_the_same_map(make: Callable[[], Mitigation], tmp_path: Path) -> None:
    raw, fitted = images(20), fed(make())
    save(tmp_path, {"mid": fitted, "up_0": fed(make(), seed=50)}, timestep=50)
    [again] = load(tmp_path, timestep=50)["mid"].maps
    assert type(again.settings) is type(make()) and again.settings.options == make().options
    assert torch.equal(again.transform(raw), fitted.transform(raw))
    assert again.describe() == fitted.describe()
    assert again.to(torch.device("meta")).fitted.keys() == fitted.fitted.keys()
    json.dumps(fitted.describe(), allow_nan=False)


@every
def test_a_file_with_a_tensor_less_or_more_is_refused(make: Callable[[], Mitigation], tmp_path: Path) -> None:
    save(tmp_path, {"mid": fed(make())})
    record, tensors = tmp_path / "mitigation.json", tmp_path / "mitigation.safetensors"
    record.write_text(json.dumps({**json.loads(record.read_text()), "digest": None, "meta": {}}))  # as of an older version
    state = load_file(tensors)
    for name in state:
        save_file({key: value for key, value in state.items() if key != name}, tensors)
        with pytest.raises(InputError, match=rf"to fit its record, but only one of them has '{name}'"):
            load(tmp_path)
    save_file(state | {"mid/maps.1.seen": torch.tensor(0)}, tensors)
    with pytest.raises(InputError, match=r"only one of them has 'mid/maps\.1\.seen'"):
        load(tmp_path)


@every
def test_grids_keep_their_precision_and_arithmetic_is_float32(make: Callable[[], Mitigation]) -> None:
    raw, mitigation = images(20)[:4], fed(make())
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        left = mitigation.transform(raw.to(dtype))
        assert left.dtype == dtype and left.shape == raw.shape and left.isfinite().all()
        assert torch.equal(left, mitigation.transform(raw.to(dtype).float()).to(dtype))


@every
def test_neither_settings_nor_maps_change(make: Callable[[], Mitigation]) -> None:
    settings = make()
    options = dict(vars(settings))
    first = fed(settings)
    expected = first.transform(images(20))
    fed(settings, seed=50)
    assert vars(settings) == options and torch.equal(fed(settings).transform(images(20)), expected)
    assert torch.equal(first.transform(images(20)), expected)
    with pytest.raises(FrozenInstanceError):
        first.seen = 0  # type: ignore[misc]


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
    if mitigation.settings.fit_images != 0:
        with pytest.raises(InputError, match="grids of 24 channels, those of the fit, but got 20"):
            mitigation.transform(grids(2, 20, 8, 8))


@every
def test_only_what_is_not_fitted_does_without_images(make: Callable[[], Mitigation]) -> None:
    if make().fit_images == 0:
        raw = images()[:2]
        assert torch.equal(make().fit([]).transform(raw), fed(make()).transform(raw))
        assert make().fit([]).describe() == fed(make()).describe() == {}
        return
    with pytest.raises(InputError, match="at least one fit image, but got none"):
        make().fit([])


@pytest.mark.parametrize(
    ("make", "counted", "rank"),
    [
        (lambda: PositionMean(), "the additive basis has independent columns", 10),
        (lambda: PositionMean(basis="cosine"), "the cosine basis has independent columns", 23),
        (lambda: Leace(columns="additive"), "there are functions of position", 12),
    ],
)
def test_few_images_are_refused_below_the_columns_and_warned_of_below_the_channels(
    make: Callable[[], Mitigation], counted: str, rank: int, caplog: pytest.LogCaptureFixture
) -> None:
    raw = grids(rank, 24, 6, 6)
    with pytest.raises(InputError, match=f"as many fit images as {counted}, {rank}, but got {rank - 1}"):
        make().fit([raw[:-1]])
    with caplog.at_level(logging.WARNING):
        make().fit([raw.repeat(3, 1, 1, 1)])
        assert "fit images for" not in caplog.text
        make().fit([raw])
    assert f"{rank} fit images for 24 channels" in caplog.text


@pytest.mark.parametrize(
    ("kind", "options", "match"),
    [
        (Canvas, {"margin": 32}, "canvas.margin to be a positive multiple of 64, but got 32"),
        (ChannelDiscard, {"ratio": 0.5}, r"ratio to be at least 1, but got 0\.5"),
        (EmptyImage, {"draws": 0}, "draws to be at least 1, but got 0"),
        (Leace, {"columns": "onehot"}, "columns to be one of auto, additive, cosine, but got 'onehot'"),
        (Leace, {"cosines": 0}, "cosines to be at least 1"),
        (Leace, {"tolerance": 0.0}, "tolerance to be positive"),
        (OutlierTokens, {"mode": "drop"}, "mode to be one of project, inpaint, mask, clip"),
        (OutlierTokens, {"threshold": 0.0}, "threshold to be positive"),
        (PaddingSwap, {"mode": "zeros"}, "replicate, reflect, circular, but got 'zeros'"),
        (PcaDrop, {"rank": 0}, "rank to be at least 1, but got 0"),
        *(
            (kind, options, match)
            for kind in (PositionMean, ShuffledPosition)
            for options, match in (
                ({"basis": "fourier"}, "basis to be one of additive, onehot, cosine"),
                ({"gamma": 1.5}, "gamma to be from 0 to 1, but got 1.5"),
                ({"gamma": float("nan")}, "gamma"),
                ({"cosines": 0}, "cosines to be at least 1"),
                ({"ridge": -1.0}, "ridge to be at least 0"),
            )
        ),
        (RandomRank, {"rank": 0}, "rank to be at least 1, but got 0"),
        (ShiftAnova, {"larger": 100}, r"larger to be a multiple of step \(64\) above it, but got 100"),
        (ShiftAnova, {"larger": 64}, "larger to be a multiple"),
        (ShiftAnova, {"step": 0}, "step to be at least 1"),
        (ShiftAnova, {"images": 0}, "images to be at least 1"),
        (ShiftFlipNoise, {"views": 1}, "views to be from 2 to 18, but got 1"),
        (ShiftFlipNoise, {"views": 2, "shift": 32}, "shift_flip_noise.shift to be a positive multiple of 64, but got 32"),
        (Standardize, {"mode": "pca"}, "mode to be one of centre, zscore, zca, but got 'pca'"),
        (Standardize, {"shrinkage": 0.0}, "shrinkage to be positive"),
    ],
)
def test_options_out_of_range_are_refused(kind: type, options: dict[str, Any], match: str) -> None:
    with pytest.raises(InputError, match=match):
        kind(**options)


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


def test_every_class_has_a_choice_and_can_be_read_from_a_file() -> None:
    targets = {OmegaConf.load(path)[path.stem]["_target_"] for path in CONFIGS.glob("*.yaml") if path.stem != "none"}
    classes = {name for name in mitigations.__all__ if isinstance(getattr(mitigations, name), type)}
    kinds = classes - {"Extraction", "Map", "Mitigation"}
    assert {f"sdprobe.mitigations.{name}" for name in kinds} == targets
    assert set(KINDS) == kinds - {"Saved"}
