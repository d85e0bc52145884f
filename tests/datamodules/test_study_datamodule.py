"""StudyDataModule: a probe observes every image once, on the way or afterwards, at 1 + number-of-crops passes an image."""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch

from datamodules.activations import STEPS_PER_EPOCH
from datamodules.images.folder import FolderImages
from datamodules.study import StudyDataModule
from sdprobe.backbones import FrozenSD
from sdprobe.tokens.batch import GridBatch, TokenBatch
from sdprobe.utilities.errors import InputError

COUNT = 11
LAYERS = ("conv_in", "down_0")  # 8 and 16 pixels per token
TOKENS, WHOLE, CROPS = 0, 1, {2: 8, 3: 16}  # dataloader → what it brings, with its margin


class Recorder(lightning.LightningModule):
    """Trains a single number; keeps what it observes and what every dataloader brings."""

    def __init__(self, closed_form: bool = False) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.automatic_optimization = not closed_form
        self.observed: list[GridBatch] = []
        self.loaders: dict[int, list[Any]] = {number: [] for number in (TOKENS, WHOLE, *CROPS)}

    def observe(self, batch: GridBatch) -> None:
        self.observed.append(batch)

    def training_step(self, batch: TokenBatch, batch_idx: int) -> torch.Tensor | None:
        if not self.automatic_optimization:
            return None
        return self.weight * sum(tokens.mean() for tokens in batch.tokens.values())

    def validation_step(self, batch: TokenBatch, batch_idx: int) -> None:
        pass

    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.loaders[dataloader_idx].append(batch)

    def configure_optimizers(self) -> torch.optim.Optimizer | None:
        return torch.optim.SGD(self.parameters(), lr=0.1) if self.automatic_optimization else None


def trainer(**options: Any) -> lightning.Trainer:
    return lightning.Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        num_sanity_val_steps=0, **({"max_epochs": 1} | options),
    )  # fmt: skip


def run(data: StudyDataModule, closed_form: bool = False, **options: Any) -> Recorder:
    recorder, trains = Recorder(closed_form), trainer(**options)
    trains.fit(recorder, datamodule=data)
    trains.test(recorder, datamodule=data, verbose=False)
    return recorder


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory, save_photos: Callable[..., Path]) -> Path:
    return save_photos(tmp_path_factory.mktemp("study") / "photos", COUNT)


@pytest.fixture(scope="module")
def make(sd: FrozenSD, photos: Path) -> Callable[..., StudyDataModule]:
    """A function of options that makes a data module; latents are shared."""

    def module(**options: Any) -> StudyDataModule:
        settings = {"block": LAYERS, "splits": "loos2025", "sampling": "all", "token_batch": 64, "batch_size": 4}
        settings["cache_dir"] = str(photos.parent / "cache")
        return StudyDataModule(FolderImages(str(photos), size=128), sd, **(settings | options))

    return module


@contextmanager
def counted(sd: FrozenSD) -> Iterator[list[int]]:
    """Images of every batch that enters the U-Net."""
    sizes: list[int] = []
    handle = sd.unet.unet.conv_in.register_forward_pre_hook(lambda module, inputs: sizes.append(len(inputs[0])))
    try:
        yield sizes
    finally:
        handle.remove()


def seen(batches: list[GridBatch]) -> list[int]:
    return [index for batch in batches for index in batch.image.tolist()]


def together(batches: list[GridBatch]) -> dict[str, torch.Tensor]:
    """Grids of the batches, in the order of the images' indices."""
    order = torch.tensor(seen(batches)).argsort()
    return {layer: torch.cat([batch.grids[layer] for batch in batches])[order] for layer in batches[0].grids}


def assert_close(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert list(one) == list(other)
    for layer, grid in one.items():
        torch.testing.assert_close(grid, other[layer], rtol=1e-4, atol=1e-5)


def once_each(recorder: Recorder) -> None:
    """Observed on the way or brought by the second loader: every image, and none twice."""
    assert Counter(seen(recorder.observed) + seen(recorder.loaders[WHOLE])) == Counter(range(COUNT))


# --- passes and observations -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "epochs"),
    [
        ({"activation_budget": 1.0}, 3),  # tokens stay on the device
        ({"activation_budget": 1.0, "splits": "default"}, 2),  # validation images too
        ({"activation_budget": 0.0, "closed_form": True}, 1),  # one pass is enough
    ],
)
def test_every_image_costs_one_pass_and_one_per_crop(
    make: Callable[..., StudyDataModule], sd: FrozenSD, options: dict[str, Any], epochs: int
) -> None:
    closed_form = options.pop("closed_form", False)
    data, before = make(**options), sd.passes["unet"]
    with counted(sd) as sizes:
        recorder = run(data, closed_form, max_epochs=epochs)
    used = len(data.all_images)
    assert used == (COUNT if data.split["fit"] == [] else COUNT - len(data.split["fit"])) > 5
    assert sum(sizes) == (1 + len(CROPS)) * used
    assert sd.passes["unet"] - before == (1 + len(CROPS)) * used
    assert Counter(seen(recorder.observed)) == Counter(data.all_images)
    assert recorder.loaders[WHOLE] == [], "nobody is left"


@pytest.mark.parametrize("splits", ["loos2025", "default"])
def test_images_that_pass_again_in_later_epochs_are_observed_once(
    make: Callable[..., StudyDataModule], sd: FrozenSD, splits: str
) -> None:
    data = make(activation_budget=0.0, splits=splits, mixing_images=3)
    with counted(sd) as sizes:
        recorder = run(data, max_epochs=3)
    trained, rest = len(data.split["train"]), len(data.split["test"]) + len(data.all_images) * len(CROPS)
    assert sum(sizes) == 3 * (trained + len(data.split["val"])) + rest, "recomputed in every epoch"
    assert Counter(seen(recorder.observed)) == Counter(data.all_images)
    assert recorder.loaders[WHOLE] == []


def test_several_passes_of_an_epoch_observe_once_too(make: Callable[..., StudyDataModule], sd: FrozenSD) -> None:
    data = make(activation_budget=0.0, sampling="stratified", token_batch=9)
    with counted(sd) as sizes:
        recorder = run(data)
    passes = -(-STEPS_PER_EPOCH // -(-len(data.split["train"]) * 64 // 9))
    assert passes > 1 and sum(sizes) == passes * len(data.split["train"]) + len(data.split["test"]) + COUNT * len(CROPS)
    once_each(recorder)
    assert recorder.loaders[WHOLE] == []


@pytest.mark.parametrize("closed_form", [False, True])
def test_a_budget_for_some_observes_everyone_once(
    make: Callable[..., StudyDataModule], sd: FrozenSD, closed_form: bool
) -> None:
    whole = make(activation_budget=1.0)
    run(whole)
    used = sum(sum(p.nbytes for p in piece.tokens.values()) for piece in whole.resident._pieces.values())
    data = make(activation_budget=0.5 * used / 2**30)
    with counted(sd) as sizes:
        recorder = run(data, closed_form, max_epochs=1 if closed_form else 2)
    again = 0 if closed_form else len(data.split["train"]) - len(data.resident)
    assert sum(sizes) == (1 + len(CROPS)) * COUNT + again, "no image that does not fit is computed before the first epoch"
    assert (0 if closed_form else 1) <= len(data.resident) < len(data.split["train"])
    assert Counter(seen(recorder.observed)) == Counter(range(COUNT))
    assert recorder.loaders[WHOLE] == []


def test_training_images_that_nobody_has_shown_come_by_the_second_loader(make: Callable[..., StudyDataModule]) -> None:
    """A resumed run whose training is over: nothing but the test passes by."""
    data, recorder = make(), Recorder()
    trainer().test(recorder, datamodule=data, verbose=False)
    assert seen(recorder.observed) == data.split["test"]
    assert seen(recorder.loaders[WHOLE]) == data.split["train"]
    once_each(recorder)
    reference = run(make())
    assert_close(together(recorder.observed + recorder.loaders[WHOLE]), together(reference.observed))


def test_a_run_that_is_cut_short_leaves_the_rest_to_the_second_loader(make: Callable[..., StudyDataModule]) -> None:
    data = make(activation_budget=0.0, mixing_images=2, batch_size=1)
    recorder = run(data, limit_train_batches=3)
    met = set(seen(recorder.observed)) - set(data.split["test"])
    assert 0 < len(met) < len(data.split["train"])
    assert seen(recorder.loaders[WHOLE]) == [i for i in data.split["train"] if i not in met]
    once_each(recorder)


def test_a_second_test_does_not_observe_again(make: Callable[..., StudyDataModule]) -> None:
    data = make()
    run(data)
    again = Recorder()
    trainer().test(again, datamodule=data, verbose=False)
    assert again.observed == [] and again.loaders[WHOLE] == []


# --- what is shown ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("budget", [0.0, 1.0])
def test_what_is_observed_is_the_whole_grid_of_every_layer(make: Callable[..., StudyDataModule], budget: float) -> None:
    data = make(activation_budget=budget)
    recorder = run(data, max_epochs=2)
    expected = list(data.stream(range(COUNT)))
    assert_close(together(recorder.observed), together(expected))
    for batch in recorder.observed:
        for layer, grid in batch.grids.items():
            assert {group: mask.shape for group, mask in batch.masks[layer].items()} == dict.fromkeys(
                ("corner", "border", "interior", "high_norm"), (len(batch.image), *grid.shape[2:])
            )


def test_every_crop_lacks_one_token_of_the_layers_it_brings(make: Callable[..., StudyDataModule], sd: FrozenSD) -> None:
    data = make(seed=2)
    recorder = run(data)
    assert list(data.crops) == list(CROPS.values())
    for number, margin in CROPS.items():
        batches = recorder.loaders[number]
        [layer] = batches[0].grids
        assert layer == {8: "conv_in", 16: "down_0"}[margin]
        assert seen(batches) == data.all_images
        last = 128 - margin
        pixels = torch.stack([data.images[i]["image"][:, margin:last, margin:last] for i in data.all_images])
        ids = [data.images.name(i) for i in data.all_images]
        assert_close(together(batches), sd.activations(pixels, (layer,), timestep=50, seed=2, ids=ids))
        assert batches[0].grids[layer].shape[2] == data.shapes[layer][1] - 2


def test_layers_of_one_resolution_share_a_crop(make: Callable[..., StudyDataModule]) -> None:
    data = make(block=["conv_in", "down_0", "up_3", "conv_out"])
    assert {margin: list(stream.reads.layers) for margin, stream in data.crops.items()} == {
        8: ["conv_in", "up_3", "conv_out"],
        16: ["down_0"],
    }


def test_the_position_probe_is_tested_on_the_tokens_of_the_test_images(make: Callable[..., StudyDataModule]) -> None:
    data = make()
    batches = run(data).loaders[TOKENS]
    found = Counter(photo for batch in batches for photo in batch.photo["conv_in"].tolist())
    assert found == dict.fromkeys(data.split["test"], 256)


def test_crops_are_encoded_beforehand_and_once(make: Callable[..., StudyDataModule], sd: FrozenSD, tmp_path: Path) -> None:
    before, data = sd.passes["encoder"], make(cache_dir=str(tmp_path))
    data.prepare_data()
    assert sd.passes["encoder"] - before == (1 + len(CROPS)) * COUNT
    run(data)
    assert sd.passes["encoder"] - before == (1 + len(CROPS)) * COUNT


def test_running_out_of_memory_loses_no_image(make: Callable[..., StudyDataModule], sd: FrozenSD) -> None:
    def refuse(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        if len(inputs[0]) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")

    data, recorder = make(), Recorder()
    handle = sd.unet.unet.conv_in.register_forward_pre_hook(refuse)
    try:
        trainer().test(recorder, datamodule=data, verbose=False)
    finally:
        handle.remove()
    once_each(recorder)
    assert [seen(recorder.loaders[number]) for number in CROPS] == [data.all_images] * 2


def test_too_few_images_for_intervals_are_told(make: Callable[..., StudyDataModule], caplog: pytest.LogCaptureFixture) -> None:
    make().prepare_data()
    assert f"no intervals: they need 40 images, but got {COUNT}" in caplog.text


def test_images_too_small_to_crop_are_refused_before_anything_is_encoded(
    make: Callable[..., StudyDataModule], sd: FrozenSD, tmp_path: Path
) -> None:
    before = sd.passes["encoder"]
    data = make(block=["conv_in", "mid"], cache_dir=str(tmp_path))
    with pytest.raises(InputError, match=r"layer mid has 2×2\. Use images\.size=384 or more"):
        data.prepare_data()
    assert sd.passes["encoder"] == before
