"""ActivationDataModule under a real Trainer: the right images, every token, and the same numbers at any budget."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from PIL import Image

from datamodules.activations import STEPS_PER_EPOCH, ActivationDataModule
from datamodules.images.folder import FolderImages
from sdprobe.backbones import FrozenSD
from sdprobe.tokens.batch import TokenBatch
from sdprobe.tokens.mixing import flattened
from sdprobe.tokens.splits import split_by_photo
from sdprobe.utilities.errors import InputError

COUNT = 25
LAYERS = ["conv_in", "down_0"]  # 64 and 16 tokens of a 64 px image
SIZE = 9  # tokens per batch: does not divide 64, and few passes fill an epoch


class Recorder(lightning.LightningModule):
    """Trains a single number and keeps every batch it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.epochs: list[list[TokenBatch]] = []
        self.val: list[TokenBatch] = []
        self.test: list[TokenBatch] = []

    def on_train_epoch_start(self) -> None:
        self.epochs.append([])

    def training_step(self, batch: TokenBatch, batch_idx: int) -> torch.Tensor:
        self.epochs[-1].append(batch)
        return self.weight * sum(tokens.mean() for tokens in batch.tokens.values())

    def validation_step(self, batch: TokenBatch, batch_idx: int) -> None:
        self.val.append(batch)

    def test_step(self, batch: TokenBatch, batch_idx: int) -> None:
        self.test.append(batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def trainer(epochs: int = 1) -> lightning.Trainer:
    return lightning.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )


def fitted(data: ActivationDataModule, epochs: int = 1) -> Recorder:
    recorder = Recorder()
    trainer(epochs).fit(recorder, datamodule=data)
    return recorder


def run_of_test(data: ActivationDataModule) -> Recorder:
    recorder = Recorder()
    trainer().test(recorder, datamodule=data, verbose=False)
    return recorder


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory, save_photos: Callable[..., Path]) -> Path:
    return save_photos(tmp_path_factory.mktemp("data") / "photos", COUNT)


@pytest.fixture(scope="module")
def make(sd: FrozenSD, photos: Path) -> Callable[..., ActivationDataModule]:
    """A function of options that makes a data module; latents are shared."""

    def module(root: Path = photos, images: dict[str, Any] | None = None, **options: Any) -> ActivationDataModule:
        source = FolderImages(str(root), **({"size": 64} | (images or {})))
        settings = {"block": LAYERS, "token_batch": SIZE, "mixing_images": 4, "cache_dir": str(photos.parent / "cache")}
        return ActivationDataModule(source, sd, **(settings | options))

    return module


@contextmanager
def memory_for(sd: FrozenSD, images: int) -> Iterator[None]:
    def refuse(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        if len(inputs[0]) > images:
            raise torch.OutOfMemoryError("CUDA out of memory")

    handle = sd.unet.unet.conv_in.register_forward_pre_hook(refuse)
    try:
        yield
    finally:
        handle.remove()


def assert_same_batches(one: list[TokenBatch], other: list[TokenBatch]) -> None:
    assert len(one) == len(other) > 0
    for a, b in zip(one, other, strict=True):
        assert list(a.tokens) == list(b.tokens)
        for layer, tokens in a.tokens.items():
            assert torch.equal(a.positions[layer], b.positions[layer])
            assert torch.equal(a.photo[layer], b.photo[layer])
            torch.testing.assert_close(tokens, b.tokens[layer], rtol=1e-4, atol=1e-5)


def rows(batches: list[TokenBatch], layer: str) -> list[tuple[int, int, int]]:
    """(photo, row, col) of every token, sorted."""
    found = []
    for batch in batches:
        if layer in batch.tokens:
            found += [(int(p), *where) for p, where in zip(batch.photo[layer], batch.positions[layer].tolist(), strict=True)]
    return sorted(found)  # type: ignore[arg-type]


def bytes_of_an_image(data: ActivationDataModule) -> float:
    """GiB that a drawn image takes, taken from a module that keeps everything."""
    [piece, *_] = data.resident._pieces.values()
    parts = [*piece.tokens.values(), *piece.positions.values(), *piece.image.values(), *piece.photo.values()]
    parts += [mask for groups in piece.masks.values() for mask in groups.values()]
    return sum(part.nbytes for part in parts) / 2**30


@pytest.fixture(scope="module")
def resident(make: Callable[..., ActivationDataModule]) -> ActivationDataModule:
    """A module that keeps everything, after two epochs; its recorder hangs on it."""
    data = make(activation_budget=1.0)
    data.recorder = fitted(data, epochs=2)  # type: ignore[attr-defined]
    return data


# --- what a probe is given -------------------------------------------------------------------------------------------


def test_shapes_and_layers_are_those_of_the_batches(resident: ActivationDataModule) -> None:
    assert resident.layers == ("conv_in", "down_0")
    assert resident.shapes == {"conv_in": (16, 8, 8), "down_0": (16, 4, 4)}
    for batch in resident.recorder.epochs[0]:  # type: ignore[attr-defined]
        for layer, (channels, height, width) in resident.shapes.items():
            assert batch.tokens[layer].shape == (len(batch.positions[layer]), channels)
            assert (batch.positions[layer] < torch.tensor([height, width])).all()
            assert set(batch.masks[layer]) == {"corner", "border", "interior", "high_norm"}


def test_an_epoch_has_at_least_so_many_steps_of_full_batches(resident: ActivationDataModule) -> None:
    recorder = resident.recorder  # type: ignore[attr-defined]
    images = len(resident.split["train"])
    passes = -(-STEPS_PER_EPOCH // -(-images * 64 // SIZE))
    for epoch in recorder.epochs:
        assert len(epoch) >= STEPS_PER_EPOCH
        sizes = [len(batch.tokens["conv_in"]) for batch in epoch]
        assert sum(sizes) == passes * images * 64
        assert sum(size < SIZE for size in sizes) <= passes


def test_every_pass_gives_every_drawn_token_exactly_once(resident: ActivationDataModule) -> None:
    epoch = resident.recorder.epochs[0]  # type: ignore[attr-defined]
    steps = -(-len(resident.split["train"]) * 64 // SIZE)
    for layer in LAYERS:
        expected = rows([resident.resident[i] for i in resident.split["train"]], layer)
        for start in range(0, len(epoch), steps):
            assert rows(epoch[start : start + steps], layer) == expected


def test_epochs_and_passes_are_mixed_differently(resident: ActivationDataModule) -> None:
    first, second = resident.recorder.epochs  # type: ignore[attr-defined]
    steps = -(-len(resident.split["train"]) * 64 // SIZE)
    for other in (second[0], first[steps]):
        assert not torch.equal(first[0].tokens["down_0"], other.tokens["down_0"])


def test_images_come_from_their_split_only(resident: ActivationDataModule, make: Callable[..., ActivationDataModule]) -> None:
    recorder = resident.recorder  # type: ignore[attr-defined]
    test = run_of_test(make()).test
    for name, batches in {"train": recorder.epochs[0], "val": recorder.val, "test": test}.items():
        seen = {int(photo) for batch in batches for photo in batch.photo["conv_in"]}
        assert seen == set(resident.split[name])


def test_splits_are_those_of_the_photographs(resident: ActivationDataModule) -> None:
    names = [resident.images.photo(i) for i in range(COUNT)]
    assert resident.split == split_by_photo(names, "default", 0)
    assert all(resident.split.values())


def test_validation_gives_one_image_at_a_time(resident: ActivationDataModule) -> None:
    images = resident.split["val"]
    val = resident.recorder.val[: len(images)]  # type: ignore[attr-defined]
    assert [batch.photo["conv_in"].unique().tolist() for batch in val] == [[i] for i in images]
    assert all(len(batch.tokens[layer]) == 64 for batch in val for layer in LAYERS)


@pytest.mark.parametrize("sampling", ["stratified", "all"])
def test_the_test_loader_gives_every_token_of_every_test_image_once(
    make: Callable[..., ActivationDataModule], sampling: str
) -> None:
    data = make(sampling=sampling, batch_size=2)
    batches = run_of_test(data).test
    for layer, (_, height, width) in data.shapes.items():
        whole = [(i, row, col) for i in data.split["test"] for row in range(height) for col in range(width)]
        assert rows(batches, layer) == sorted(whole)
    assert_same_batches(batches, [flattened(grid) for grid in data.stream(data.split["test"])])


# --- what changes nothing --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_the_budget_changes_no_token_and_no_order(
    make: Callable[..., ActivationDataModule], resident: ActivationDataModule, share: float
) -> None:
    images = len(resident.split["train"]) + len(resident.split["val"])
    assert len(resident.resident) == images
    data = make(activation_budget=share * images * bytes_of_an_image(resident) * 1.01)
    recorder = fitted(data, epochs=2)
    assert len(data.resident) == int(share * images)
    for epoch, expected in zip(recorder.epochs, resident.recorder.epochs, strict=True):  # type: ignore[attr-defined]
        assert_same_batches(epoch, expected)
    assert_same_batches(recorder.val, resident.recorder.val)  # type: ignore[attr-defined]


@pytest.mark.parametrize(("batch_size", "budget"), [(3, 1.0), (5, 0.0)])
def test_batch_size_changes_no_token_and_no_order(
    make: Callable[..., ActivationDataModule], resident: ActivationDataModule, batch_size: int, budget: float
) -> None:
    recorder = fitted(make(batch_size=batch_size, activation_budget=budget))
    assert_same_batches(recorder.epochs[0], resident.recorder.epochs[0])  # type: ignore[attr-defined]


def test_a_layer_alone_is_given_what_it_is_given_among_others(
    make: Callable[..., ActivationDataModule], resident: ActivationDataModule
) -> None:
    recorder = fitted(make(block="down_0"))
    for alone, among in zip(recorder.epochs[0], resident.recorder.epochs[0], strict=True):  # type: ignore[attr-defined]
        assert torch.equal(alone.positions["down_0"], among.positions["down_0"])
        torch.testing.assert_close(alone.tokens["down_0"], among.tokens["down_0"], rtol=1e-4, atol=1e-5)


def test_another_seed_changes_everything(make: Callable[..., ActivationDataModule], resident: ActivationDataModule) -> None:
    data = make(seed=1)
    assert data.split != resident.split
    first = fitted(data).epochs[0][0]
    assert not torch.equal(first.tokens["down_0"], resident.recorder.epochs[0][0].tokens["down_0"])  # type: ignore[attr-defined]


def test_running_out_of_memory_while_training_changes_no_token(
    make: Callable[..., ActivationDataModule], resident: ActivationDataModule, sd: FrozenSD
) -> None:
    for budget in (0.0, 1.0):
        data = make(activation_budget=budget, batch_size=6)
        with memory_for(sd, 3):
            recorder = fitted(data)
        assert data.stream.batch_size == 3
        assert_same_batches(recorder.epochs[0], resident.recorder.epochs[0])  # type: ignore[attr-defined]


def test_running_out_of_memory_while_testing_loses_no_image(make: Callable[..., ActivationDataModule], sd: FrozenSD) -> None:
    data = make(batch_size=4)
    with memory_for(sd, 2):
        batches = run_of_test(data).test
    assert data.stream.batch_size == 2
    assert sorted({int(photo) for batch in batches for photo in batch.photo["conv_in"]}) == sorted(data.split["test"])


# --- what is computed ------------------------------------------------------------------------------------------------


def test_a_resident_image_passes_the_unet_once_in_all_epochs(make: Callable[..., ActivationDataModule], sd: FrozenSD) -> None:
    data = make(activation_budget=1.0)
    before = sd.passes["unet"]
    recorder = fitted(data, epochs=3)
    assert len(recorder.epochs) == 3
    used = len(data.split["train"]) + len(data.split["val"])
    assert sd.passes["unet"] - before == used
    trainer().test(recorder, datamodule=data, verbose=False)
    assert sd.passes["unet"] - before == used + len(data.split["test"]), "test images pass once, when tested"


def test_mitigation_images_are_never_encoded(sd: FrozenSD, make: Callable[..., ActivationDataModule], tmp_path: Path) -> None:
    data = make(cache_dir=str(tmp_path))
    before = sd.passes["encoder"]
    recorder = fitted(data)
    trainer().test(recorder, datamodule=data, verbose=False)
    used = COUNT - len(data.split["fit"])
    assert sd.passes["encoder"] - before == used
    assert len(list(tmp_path.rglob("*.safetensors"))) == used
    again = make(cache_dir=str(tmp_path))
    again.prepare_data()
    assert sd.passes["encoder"] - before == used


# --- every token -----------------------------------------------------------------------------------------------------


def test_sampling_all_trains_on_every_token_of_every_layer_once_an_epoch(make: Callable[..., ActivationDataModule]) -> None:
    data = make(sampling="all", splits="loos2025", block=["conv_in", "down_0", "mid"], token_batch=64)
    recorder = fitted(data, epochs=2)
    for epoch in recorder.epochs:
        for layer, (_, height, width) in data.shapes.items():
            whole = [(i, row, col) for i in data.split["train"] for row in range(height) for col in range(width)]
            assert rows(epoch, layer) == sorted(whole)
    assert recorder.val == []


def test_sampling_all_drops_no_token_where_blocks_and_batches_do_not_fit(make: Callable[..., ActivationDataModule]) -> None:
    data = make(sampling="all", splits="loos2025", block=["conv_in", "down_0"], token_batch=75, mixing_images=1)
    [epoch] = fitted(data).epochs
    for layer, (_, height, width) in data.shapes.items():
        assert sum(len(batch.tokens.get(layer, ())) for batch in epoch) == len(data.split["train"]) * height * width


def test_crops_of_a_photograph_stay_in_one_split(make: Callable[..., ActivationDataModule]) -> None:
    data = make(images={"crops": 2})
    photos = {name: {data.images.photo(i) for i in part} for name, part in data.split.items()}
    assert sum(map(len, photos.values())) == COUNT == len(set().union(*photos.values()))
    assert sum(map(len, data.split.values())) == 2 * COUNT


# --- pictures that cannot be decoded ---------------------------------------------------------------------------------


def test_skipped_images_leave_their_split_and_are_described(
    make: Callable[..., ActivationDataModule], save_photos: Callable[..., Path], tmp_path: Path
) -> None:
    root = save_photos(tmp_path / "photos", COUNT)
    names = [f"p{i:03d}.png" for i in range(COUNT)]
    split = split_by_photo(names)
    gone = [split["train"][0], split["test"][1]]
    for i in gone:
        (root / names[i]).write_text(f"no picture {i}")
    data = make(root, images={"on_error": "skip"}, cache_dir=str(tmp_path / "cache"))
    data.prepare_data()
    assert data.split == {name: [i for i in part if i not in gone] for name, part in split.items()}
    described = data.describe()
    assert described["skipped"] == [names[i] for i in sorted(gone)]
    assert described["images"]["train"] == len(split["train"]) - 1
    recorder = fitted(data)
    assert {int(p) for batch in recorder.epochs[0] for p in batch.photo["conv_in"]} == set(data.split["train"])


def test_a_split_of_which_nothing_can_be_decoded_is_named(
    make: Callable[..., ActivationDataModule], save_photos: Callable[..., Path], tmp_path: Path
) -> None:
    root = save_photos(tmp_path / "photos", COUNT)
    for i in split_by_photo([f"p{i:03d}.png" for i in range(COUNT)])["val"]:
        (root / f"p{i:03d}.png").write_text(f"no picture {i}")
    with pytest.raises(InputError, match="images for the val split"):
        make(root, images={"on_error": "skip"}, cache_dir=str(tmp_path / "cache")).prepare_data()


def test_a_damaged_mitigation_image_does_not_matter(
    make: Callable[..., ActivationDataModule], save_photos: Callable[..., Path], tmp_path: Path
) -> None:
    root = save_photos(tmp_path / "photos", COUNT)
    (root / f"p{split_by_photo([f'p{i:03d}.png' for i in range(COUNT)])['fit'][0]:03d}.png").write_text("no picture")
    make(root, cache_dir=str(tmp_path / "cache")).prepare_data()


# --- options and the record ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"sampling": "random"}, r"datamodule\.sampling to be one of stratified, all, but got 'random'"),
        ({"batch_size": 0}, r"datamodule\.batch_size to be at least 1, but got 0"),
        ({"token_batch": 0}, r"datamodule\.token_batch to be at least 1, but got 0"),
        ({"mixing_images": -1}, r"datamodule\.mixing_images to be at least 1, but got -1"),
        ({"num_workers": -1}, r"datamodule\.num_workers to be at least 0, but got -1"),
        ({"activation_budget": -0.5}, r"activation_budget to be at least 0, but got -0\.5"),
        ({"timestep": 1000}, r"timestep to be from 0 to 999, but got 1000"),
        ({"timestep": -1}, r"timestep .*-1"),
        ({"splits": "thirds"}, r"splits to be one of default, loos2025, but got 'thirds'"),
        ({"block": "middle"}, r"middle"),
        ({"images": {"limit": 9}}, r"at least 10 distinct photographs to split, but got 9"),
    ],
)
def test_unusable_options_are_refused(make: Callable[..., ActivationDataModule], option: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make(**option)


def test_the_description_is_json_and_says_what_was_used(
    make: Callable[..., ActivationDataModule], sd: FrozenSD, tmp_path: Path
) -> None:
    data = make(cache_dir=str(tmp_path))
    fitted(data)
    described = data.describe()
    assert json.loads(json.dumps(described, allow_nan=False)) == described
    assert described["images"] == {"fit": 10, "train": 8, "val": 2, "test": 5}
    assert described["photographs"] == described["images"]
    assert described["latents"] == {"reused": 0, "encoded": 15}
    assert described["resident_images"] == 10
    assert described["passes"] == sd.passes
    assert described["skipped"] == []
    assert described["unet_hash"] == sd.unet_hash
    again = make(cache_dir=str(tmp_path))
    again.prepare_data()
    assert again.describe()["latents"] == {"reused": 15, "encoded": 0}
    assert again.describe()["dataset_fingerprint"] == described["dataset_fingerprint"]


def test_the_fingerprint_changes_with_a_used_picture(
    make: Callable[..., ActivationDataModule], save_photos: Callable[..., Path], tmp_path: Path
) -> None:
    root = save_photos(tmp_path / "photos", COUNT)
    data = make(root)
    before = data.describe()["dataset_fingerprint"]
    assert make(root).describe()["dataset_fingerprint"] == before
    tested = data.describe()["test_fingerprint"]
    Image.new("RGB", (64, 64), "orange").save(root / data.images.photo(data.split["train"][0]))
    assert make(root).describe()["dataset_fingerprint"] != before
    assert make(root).describe()["test_fingerprint"] == tested, "a picture that is trained on"
    Image.new("RGB", (64, 64), "orange").save(root / data.images.photo(data.split["test"][0]))
    assert make(root).describe()["test_fingerprint"] != tested
