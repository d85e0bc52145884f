"""PairDataModule: every image is extracted once, and every keypoint gets its own tokens, whatever the memory or the batch."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.nn.functional import interpolate, normalize

from datamodules.images.pairs import Pair
from datamodules.images.scenes import ScenePairs, Scenes
from datamodules.images.spair import SPairImages
from datamodules.keypoints import CONCATENATED
from datamodules.pairs import PairDataModule
from sdprobe.backbones import FrozenSD
from sdprobe.tokens.batch import MatchBatch
from sdprobe.tokens.geometry import tokens_at
from sdprobe.utilities.errors import InputError
from tests.datamodules.pair_trees import add_spair

SIZE, LAYERS = 128, ("up_0", "up_1")


@pytest.fixture(scope="module")
def images() -> ScenePairs:
    return ScenePairs(SIZE, 48, seed=3)


@pytest.fixture(scope="module")
def make(sd: FrozenSD, images: ScenePairs, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., PairDataModule]:
    cache = str(tmp_path_factory.mktemp("pairs"))

    def module(learns: bool = False, source: ScenePairs = images, **options: Any) -> PairDataModule:
        head = "linear" if learns else "none"
        data = PairDataModule(source, sd, **({"block": LAYERS, "cache_dir": cache, "head": head} | options))
        data.trainer = SimpleNamespace(current_epoch=0)  # type: ignore[assignment]
        data.prepare_data()
        data.setup("fit")
        return data

    return module


@pytest.fixture
def ten_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datamodules.pairs.STEPS_PER_EPOCH", 10)


@pytest.fixture(scope="module")
def plenty(make: Callable[..., PairDataModule]) -> list[MatchBatch]:
    """What is served where memory is plenty; read only."""
    return matches(make())


def matches(data: PairDataModule) -> list[MatchBatch]:
    loader = data.test_dataloader()
    found = list(loader)
    assert len(found) == len(loader)
    return found


def same(one: list[MatchBatch], other: list[MatchBatch]) -> bool:
    """Whether two passes serve the same tokens for every keypoint, in whatever order the targets come."""

    def by_row(batches: list[MatchBatch]) -> dict[int, tuple[torch.Tensor, torch.Tensor]]:
        return {int(row): (b.source["up_1"][i], b.target["up_1"]) for b in batches for i, row in enumerate(b.row)}

    a, b = by_row(one), by_row(other)
    return a.keys() == b.keys() and all(
        torch.allclose(x, y, atol=1e-4) for row in a for x, y in zip(a[row], b[row], strict=True)
    )


def test_every_keypoint_of_every_test_pair_is_served_once_with_its_own_tokens(
    make, plenty: list[MatchBatch], images: ScenePairs, sd: FrozenSD
) -> None:
    data = make()
    table, pairs = data.keypoints(), images.pairs("test")
    assert len(table) == sum(len(pair.ids) for pair in pairs)
    rows = torch.cat([batch.row for batch in plenty])
    assert rows.sort().values.tolist() == list(range(len(table)))
    for batch in plenty[:3]:
        for i, row in enumerate(batch.row.tolist()):
            pair = pairs[int(table.pair[row])]
            k = row - int((table.pair == table.pair[row]).nonzero()[0])
            source, target = (images[index] for index in (pair.source, pair.target))
            grids = sd.activations(torch.stack([source["image"], target["image"]]), LAYERS, ids=[source["id"], target["id"]])
            for layer in LAYERS:
                side = grids[layer].shape[2]
                [[r, c]] = tokens_at(torch.tensor([pair.source_points[k]]), SIZE / side, side, side).tolist()
                torch.testing.assert_close(batch.source[layer][i], grids[layer][0, :, r, c], atol=1e-4, rtol=1e-4)
                torch.testing.assert_close(batch.target[layer], grids[layer][1], atol=1e-4, rtol=1e-4)
                x, y = (int(v) for v in pair.source_points[k])
                enlarged = interpolate(grids[layer][:1], (SIZE, SIZE), mode="bilinear", align_corners=False)
                torch.testing.assert_close(batch.sampled[layer][i], enlarged[0, :, y, x], atol=1e-4, rtol=1e-4)


def test_each_image_goes_through_the_unet_once_and_again_only_where_memory_is_short(
    make, plenty: list[MatchBatch], sd: FrozenSD
) -> None:
    data = make()
    images = len({i for pair in data.pairs("test") for i in (pair.source, pair.target)})
    targets = len({pair.target for pair in data.pairs("test")})
    for budget, passes in ((1.0, images), (0, images + targets)):
        before = sd.passes["unet"]
        assert same(plenty, matches(make(activation_budget=budget)))
        assert sd.passes["unet"] - before == passes


def test_batch_size_changes_no_token(make, plenty: list[MatchBatch]) -> None:
    assert same(plenty, matches(make(batch_size=3)))


def test_training_extracts_every_image_once_and_repeats_itself(make, sd: FrozenSD, ten_steps: None) -> None:
    before = sd.passes["unet"]
    data = make(learns=True)
    images = len({i for split in ("train", "val") for p in data.pairs(split) for i in (p.source, p.target)})
    assert sd.passes["unet"] - before == images
    first, again = list(data.train_dataloader()), list(make(learns=True).train_dataloader())
    assert len(first) == len(data.train_dataloader()) >= 10
    assert all(torch.equal(a.source["up_0"], b.source["up_0"]) for a, b in zip(first, again, strict=True))
    assert sd.passes["unet"] - before == 2 * images, "epochs extract nothing"


def test_corresponding_tokens_of_a_step_come_from_corresponding_points(make, images: ScenePairs) -> None:
    data = make(learns=True, pair_batch=4)
    [batch] = list(data._steps(images.pairs("train")[:4]))
    pairs = images.pairs("train")[:4]
    assert len(batch.label) == sum(len(pair.ids) for pair in pairs)
    names = [(pair.category, name) for pair in pairs for name in pair.ids]
    for i, a in enumerate(names):
        for j, b in enumerate(names):
            assert (batch.label[i] == batch.label[j]).item() == (a == b)
    assert len(batch.background["up_0"]) == 16 * len({pair.target for pair in pairs})


def test_layers_are_concatenated_as_unit_tokens_on_the_finest_grid(make, plenty: list[MatchBatch]) -> None:
    whole, joined = plenty, matches(make(concatenate=True))
    [first, second] = LAYERS
    one, other = whole[0], next(b for b in joined if torch.equal(b.row, whole[0].row))
    coarse = interpolate(normalize(one.target[first], dim=0)[None], one.target[second].shape[1:], mode="bilinear")[0]
    expected = torch.cat([coarse, normalize(one.target[second], dim=0)])
    torch.testing.assert_close(other.target[CONCATENATED], expected, atol=1e-4, rtol=1e-4)


def test_a_prompt_may_name_the_category_of_the_pair(make, plenty: list[MatchBatch]) -> None:
    data = make(prompt="a photo of a {category}")
    named, table, categories = matches(data), data.keypoints(), data.categories
    written = matches(make(prompt="a photo of a quadruped"))
    rows = {int(b.row[0]): b for b in written}
    assert not same(plenty, named)
    for batch in named:
        alike = torch.allclose(batch.target["up_1"], rows[int(batch.row[0])].target["up_1"], atol=1e-5)
        assert alike == (categories[int(table.category[batch.row[0]])] == "quadruped")


class TwoCategories(ScenePairs):
    """The same pictures in two categories, as where file names do not tell categories apart."""

    def pairs(self, split: str) -> Sequence[Pair]:
        return [replace(p, category=c) for p in super().pairs(split)[:2] for c in ("cat", "dog")]


@pytest.fixture(scope="module")
def doubled() -> TwoCategories:
    return TwoCategories(SIZE, 48, seed=3)


@pytest.mark.parametrize("prompt", ["a photo of a {category}", "a photo"])
def test_a_picture_of_two_categories_has_the_tokens_of_each_prompt(
    make, sd: FrozenSD, doubled: TwoCategories, prompt: str
) -> None:
    before = sd.passes["unet"]
    data = make(learns=True, source=doubled, prompt=prompt)
    pictures = len({i for split in ("train", "val") for p in data.pairs(split) for i in (p.source, p.target)})
    assert sd.passes["unet"] - before == pictures * (2 if "{" in prompt else 1)
    found = {}
    for category in ("cat", "dog"):
        pairs = [pair for pair in data.pairs("train") if pair.category == category]
        [found[category]] = data._steps(pairs)
        [expected] = make(learns=True, source=doubled, prompt=prompt.replace("{category}", category))._steps(pairs)
        for name in ("source", "target", "background"):
            torch.testing.assert_close(getattr(found[category], name), getattr(expected, name), atol=1e-4, rtol=1e-4)
    assert torch.equal(found["cat"].source["up_1"], found["dog"].source["up_1"]) == ("{" not in prompt)


def test_memory_that_runs_out_in_one_category_is_not_tried_again_in_the_next(
    make, plenty: list[MatchBatch], sd: FrozenSD, images: ScenePairs
) -> None:
    assert len({pair.category for pair in images.pairs("test")}) > 2
    tried = []

    def refuse(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        tried.append(len(inputs[0]))
        if tried[-1] > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")

    handle = sd.unet.unet.conv_in.register_forward_pre_hook(refuse)
    try:
        scarce = matches(make(batch_size=2))
    finally:
        handle.remove()
    assert [size for size in tried if size > 1] == [2]
    assert same(plenty, scarce)


def test_pairs_of_a_picture_that_is_damaged_behind_its_header_are_counted(
    make, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for target in ("b", "c"):
        add_spair(tmp_path, "test", "cat", "a", target)
        add_spair(tmp_path, "test", "cat", target, "a")
    add_spair(tmp_path, "test", "cat", "a", "x", trg_bndbox=[1, 1, 1, 1])
    file = tmp_path / "JPEGImages/cat/c.jpg"
    file.write_bytes(file.read_bytes()[:-400])
    data = make(source=SPairImages(str(tmp_path), size=64, on_error="skip"))
    assert [len(data.pairs("test")), len(data.images.pairs("test"))] == [2, 4]
    assert data.describe()["dropped_pairs"] == {"empty box": 1, "unreadable image": 2}
    assert "Left out 2 pairs of pictures that cannot be decoded." in caplog.messages


def test_the_pairs_that_a_choice_reads_are_counted(make) -> None:
    data = make()
    assert ": test " in data.counts()
    data.validate_choice()
    assert ": val " in data.counts()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pair_batch": 0}, r"datamodule\.pair_batch to be at least 1"),
        ({"background": 65}, r"from 1 to 64"),
        ({"activation_budget": -1.0}, "activation_budget to be at least 0"),
        ({"timestep": 1000}, "timestep"),
    ],
)
def test_unusable_options_are_refused(make, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make(**options)


def test_images_without_pairs_are_refused(sd: FrozenSD, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="images=scene_pairs, spair"):
        PairDataModule(Scenes(SIZE, 48), sd, cache_dir=str(tmp_path))
