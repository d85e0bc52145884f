"""GridDataModule: every image once per view, the right pixels, noise and timestep in each, whatever the memory."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch

from datamodules.grids import GridDataModule
from datamodules.images.folder import FolderImages
from datamodules.loaders import GridLoader
from sdprobe.backbones import FrozenSD
from sdprobe.tokens.batch import GridBatch, joined
from sdprobe.tokens.splits import split_by_photo
from sdprobe.utilities.errors import InputError

COUNT, REPEATS, MARGIN = 12, 3, 32
LAYERS = ("conv_in", "down_0")  # 16 and 8 tokens a side of a 128 px image, 8 and 4 of a cropped one
VIEWS = ("whole", "cropped", "other_noise", "other_timestep")
OFTEN = {"whole": True, "cropped": True, "other_noise": False, "other_timestep": False}  # views of every measured image


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory, save_photos: Callable[..., Path]) -> Path:
    return save_photos(tmp_path_factory.mktemp("grids") / "photos", COUNT)


@pytest.fixture(scope="module")
def make(sd: FrozenSD, photos: Path) -> Callable[..., GridDataModule]:
    """A function of options that makes a data module; latents are shared."""

    def module(root: Path = photos, images: dict[str, Any] | None = None, **options: Any) -> GridDataModule:
        source = FolderImages(str(root), **({"size": 128} | (images or {})))
        settings = {
            "block": LAYERS,
            "margin": MARGIN,
            "repeats": REPEATS,
            "least": 1,
            "cache_dir": str(photos.parent / "cache"),
        }
        data = GridDataModule(source, sd, **(settings | options))
        data.prepare_data()
        return data

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


@contextmanager
def counted(sd: FrozenSD) -> Iterator[list[int]]:
    """Images of every batch that enters the U-Net: what passes, rather than what the record says."""
    sizes: list[int] = []
    handle = sd.unet.unet.conv_in.register_forward_pre_hook(lambda module, inputs: sizes.append(len(inputs[0])))
    try:
        yield sizes
    finally:
        handle.remove()


def images_of(batches: list[GridBatch]) -> list[int]:
    return [index for batch in batches for index in batch.image.tolist()]


def together(batches: list[GridBatch]) -> dict[str, torch.Tensor]:
    return {layer: torch.cat([batch.grids[layer] for batch in batches]) for layer in batches[0].grids}


def assert_close(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert list(one) == list(other)
    for layer, grid in one.items():
        torch.testing.assert_close(grid, other[layer], rtol=1e-4, atol=1e-5)


class Recorder(lightning.LightningModule):
    """Trains nothing and keeps every batch, by the dataloader it came from."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.fit: list[GridBatch] = []
        self.views: dict[int, list[GridBatch]] = {number: [] for number in range(len(VIEWS))}

    def training_step(self, batch: GridBatch, batch_idx: int) -> None:
        self.fit.append(batch)

    def test_step(self, batch: GridBatch, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.views[dataloader_idx].append(batch)

    def configure_optimizers(self) -> None:
        return None


def run(data: GridDataModule, fit: bool = True) -> Recorder:
    recorder = Recorder()
    trainer = lightning.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, num_sanity_val_steps=0,
    )  # fmt: skip
    if fit:
        trainer.fit(recorder, datamodule=data)
    trainer.test(recorder, datamodule=data, verbose=False)
    return recorder


# --- which images, how often -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("splits", ["default", "loos2025"])
@pytest.mark.parametrize("repeats", [REPEATS, 0, 99])
def test_every_image_passes_the_unet_once_per_view(
    make: Callable[..., GridDataModule], sd: FrozenSD, splits: str, repeats: int
) -> None:
    data = make(splits=splits, repeats=repeats, batch_size=5)
    before, measured = sd.passes["unet"], data.split["test"]
    with counted(sd) as sizes:
        recorder = run(data)
    assert images_of(recorder.fit) == data.split["fit"]
    for number, view in enumerate(VIEWS):
        assert images_of(recorder.views[number]) == (measured if OFTEN[view] else measured[:repeats]), view
    passes = len(data.split["fit"]) + 2 * len(measured) + 2 * min(repeats, len(measured))
    assert sum(sizes) == passes
    assert sd.passes["unet"] - before == passes, "what the record says is what was computed"


def test_fit_images_are_not_measured_and_no_image_is_left_out(make: Callable[..., GridDataModule]) -> None:
    data = make()
    names = split_by_photo([data.images.photo(i) for i in range(COUNT)], "default", 0)
    assert data.split["fit"] == names["fit"]
    assert data.split["test"] == [*names["train"], *names["val"], *names["test"]]
    assert not set(data.split["fit"]) & set(data.split["test"])
    assert sorted(data.split["fit"] + data.split["test"]) == list(range(COUNT))


def test_without_a_fit_split_training_images_give_the_mean_and_all_are_measured(make: Callable[..., GridDataModule]) -> None:
    data = make(splits="loos2025")
    assert data.split["test"] == list(range(COUNT)), "in the order of the files"
    assert data.split["fit"] == list(range(round(0.8 * COUNT)))


def test_lengths_say_what_comes(make: Callable[..., GridDataModule]) -> None:
    data = make(batch_size=5, repeats=4)
    for loader, images in zip(data.test_dataloader(), (7, 7, 4, 4), strict=True):
        assert (loader.images, len(loader)) == (images, -(-images // 5))
        assert [len(batch.image) for batch in loader] == [5, 2][: len(loader)] if images == 7 else [4]
        assert len(list(loader)) == len(loader), "again from the start"
    assert data.train_dataloader().images == 5


def test_no_repeats_are_no_batches(make: Callable[..., GridDataModule]) -> None:
    loaders = make(repeats=0).test_dataloader()
    assert [(loader.images, len(loader), list(loader)) for loader in loaders[2:]] == [(0, 0, [])] * 2
    assert [loader.images for loader in loaders[:2]] == [7, 7]


def test_the_other_timestep_is_another_one_by_default(make: Callable[..., GridDataModule]) -> None:
    assert make(timestep=50).views[3].levels == (261,)
    assert make(timestep=261).views[3].levels == (50,)


def test_without_noise_there_is_no_other_noise(photos: Path) -> None:
    silent = FrozenSD.from_pretrained("tiny", precision="fp32", device="cpu", noise="none")
    data = GridDataModule(FolderImages(str(photos), size=128), silent, LAYERS, margin=MARGIN, least=1)
    assert [loader.images for loader in data.test_dataloader()] == [7, 7, 0, 7]


# --- what every view shows -------------------------------------------------------------------------------------------


def test_every_view_is_what_the_backbone_makes_of_its_pixels_noise_and_timestep(
    make: Callable[..., GridDataModule], sd: FrozenSD
) -> None:
    data = make(timestep=20, other_timestep=700, seed=3, repeats=99)
    measured, inner = data.split["test"], slice(MARGIN, 128 - MARGIN)
    pixels = torch.stack([data.images[i]["image"] for i in measured])
    ids = [data.images.name(i) for i in measured]
    expected = {
        "whole": sd.activations(pixels, LAYERS, timestep=20, seed=3, ids=ids),
        "cropped": sd.activations(pixels[:, :, inner, inner], LAYERS, timestep=20, seed=3, ids=ids),
        "other_noise": sd.activations(pixels, LAYERS, timestep=20, seed=4, ids=ids),
        "other_timestep": sd.activations(pixels, LAYERS, timestep=700, seed=3, ids=ids),
    }
    assert tuple(expected) == VIEWS
    found = [list(loader) for loader in data.test_dataloader()]
    for view, batches in zip(VIEWS, found, strict=True):
        assert_close(together(batches), expected[view])
        side = 8 if view == "cropped" else 16
        for batch in batches:
            assert {name: mask.shape for name, mask in batch.masks["conv_in"].items()} == dict.fromkeys(
                ("corner", "border", "interior", "high_norm"), (len(batch.image), side, side)
            )
    for other in (2, 3):
        assert not torch.allclose(together(found[0])["conv_in"], together(found[other])["conv_in"], atol=1e-2)


def test_shapes_are_those_of_the_whole_images(make: Callable[..., GridDataModule]) -> None:
    data = make()
    assert data.layers == LAYERS and data.photos == COUNT
    assert data.shapes == {"conv_in": (16, 16, 16), "down_0": (16, 8, 8)}
    [batch] = data.test_dataloader()[0]
    assert {layer: tuple(grid.shape[1:]) for layer, grid in batch.grids.items()} == data.shapes


def test_batch_size_changes_no_activation_and_no_order(make: Callable[..., GridDataModule]) -> None:
    for one, other in zip(make(batch_size=8).test_dataloader(), make(batch_size=3).test_dataloader(), strict=True):
        one, other = list(one), list(other)
        assert images_of(one) == images_of(other)
        assert_close(together(one), together(other))


# --- batches ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("parts", [[7], [2, 5], [1, 1, 5], [3, 1, 2, 1]])
def test_joined_parts_are_the_whole(make: Callable[..., GridDataModule], parts: list[int]) -> None:
    [whole] = make().test_dataloader()[0]
    ends = torch.tensor([0, *parts]).cumsum(0).tolist()
    pieces = [whole.select(range(start, end)) for start, end in pairwise(ends)]
    again = joined(pieces)
    assert (again is pieces[0]) == (len(parts) == 1)
    assert list(again.grids) == list(whole.grids) == list(again.masks)
    assert torch.equal(again.image, whole.image) and torch.equal(again.photo, whole.photo)
    for layer, grid in whole.grids.items():
        assert torch.equal(again.grids[layer], grid)
        assert list(again.masks[layer]) == list(whole.masks[layer])
        for group, mask in whole.masks[layer].items():
            assert torch.equal(again.masks[layer][group], mask)


def test_running_out_of_memory_keeps_one_batch_per_group(make: Callable[..., GridDataModule], sd: FrozenSD) -> None:
    data, expected = make(batch_size=4), [list(loader) for loader in make(batch_size=4).test_dataloader()]
    with memory_for(sd, 2):
        recorder = run(data, fit=False)  # Lightning asks for the length before the first batch
    assert [stream.batch_size for stream in data.views] == [2, 2, 2, 2]
    for number, batches in recorder.views.items():
        assert [batch.image.tolist() for batch in batches] == [batch.image.tolist() for batch in expected[number]]
        assert_close(together(batches), together(expected[number]))


def test_running_out_of_memory_while_fitting_loses_no_image(make: Callable[..., GridDataModule], sd: FrozenSD) -> None:
    data = make(batch_size=4)
    with memory_for(sd, 2):
        recorder = run(data)
    assert images_of(recorder.fit) == data.split["fit"]
    assert images_of(recorder.views[0]) == data.split["test"]


def test_a_loader_makes_its_batches_anew_and_only_when_asked(make: Callable[..., GridDataModule], sd: FrozenSD) -> None:
    before = sd.passes["unet"]
    loaders = make().test_dataloader()
    assert sd.passes["unet"] == before, "asking for the loaders computes nothing"
    assert isinstance(loaders[0], GridLoader)
    next(iter(loaders[0]))
    assert sd.passes["unet"] == before + 7


# --- cells of the autoencoder ----------------------------------------------------------------------------------------


def test_floor_cells_are_those_of_the_encoder(
    make: Callable[..., GridDataModule], sd: FrozenSD, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = make()
    pixels = torch.stack([data.images[i]["image"] for i in (4, 1)])
    variance = sd.encoder.vae.encode(pixels * 2 - 1).latent_dist.logvar
    floor = variance.median().item()  # a random autoencoder never comes near the real floor
    monkeypatch.setattr("sdprobe.backbones.latents.LOG_VARIANCE_FLOOR", floor)
    found = data.floor_cells([4, 1])
    assert list(found) == [4, 1]
    for cells, expected in zip(found.values(), (variance <= floor).any(1), strict=True):
        assert cells.shape == (16, 16) and torch.equal(cells, expected) and cells.any() and not cells.all()


# --- the record ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("splits", "images", "encoded"),
    [("default", {"fit": 5, "test": 7}, 5 + 7 + 7), ("loos2025", {"fit": 10, "test": 12}, 12 + 12)],
)
def test_the_description_is_json_and_says_what_was_used(
    make: Callable[..., GridDataModule], sd: FrozenSD, tmp_path: Path, splits: str, images: dict[str, int], encoded: int
) -> None:
    before = sd.passes["encoder"]
    data = make(splits=splits, cache_dir=str(tmp_path))
    described = data.describe()
    assert json.loads(json.dumps(described, allow_nan=False)) == described
    assert described["images"] == described["photographs"] == images
    assert sd.passes["encoder"] - before == encoded, "fit images are not cropped"
    assert described["latents"] == {"reused": 0, "encoded": encoded}
    assert described["margin"] == MARGIN and described["skipped"] == []
    assert described["passes"] == sd.passes and described["unet_hash"] == sd.unet_hash
    assert data.seconds["encode"] > 0
    again = make(splits=splits, cache_dir=str(tmp_path)).describe()
    assert again["latents"] == {"reused": encoded, "encoded": 0}
    assert again["dataset_fingerprint"] == described["dataset_fingerprint"]


def test_the_fingerprint_tells_other_pictures(
    make: Callable[..., GridDataModule], save_photos: Callable[..., Path], tmp_path: Path
) -> None:
    other = make(save_photos(tmp_path / "photos", COUNT, first=1), cache_dir=str(tmp_path))
    for name in ("dataset_fingerprint", "test_fingerprint"):
        assert other.describe()[name] != make().describe()[name]


def test_images_that_cannot_be_decoded_leave_their_split(
    make: Callable[..., GridDataModule], save_photos: Callable[..., Path], tmp_path: Path
) -> None:
    root, split = save_photos(tmp_path / "photos", COUNT), make().split
    gone = [split["fit"][1], split["test"][0]]
    for i in gone:
        (root / f"p{i:03d}.png").write_text(f"no picture {i}")
    data = make(root, images={"on_error": "skip"}, cache_dir=str(tmp_path / "cache"))
    assert data.split == {name: [i for i in part if i not in gone] for name, part in split.items()}
    assert data.describe()["skipped"] == [f"p{i:03d}.png" for i in sorted(gone)]
    assert [loader.images for loader in data.test_dataloader()] == [6, 6, REPEATS, REPEATS]
    with pytest.raises(InputError, match=rf"p{gone[0]:03d}\.png to be an intact image"):
        make(root, cache_dir=str(tmp_path / "cache"))
    for i in split["fit"]:
        (root / f"p{i:03d}.png").write_text(f"no picture {i}")
    with pytest.raises(InputError, match="Expected images for the fit split, but none can be decoded"):
        make(root, images={"on_error": "skip"}, cache_dir=str(tmp_path / "cache"))


# --- what cannot be used ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"margin": 40}, r"margin to leave at least 64 pixels of 128, but got 40 on every side\. .*images\.size=144 or more"),
        ({"margin": -1}, r"margin .*-1"),
        ({"batch_size": 0}, r"datamodule\.batch_size to be at least 1, but got 0"),
        ({"num_workers": -1}, r"datamodule\.num_workers to be at least 0, but got -1"),
        ({"least": 40}, r"at least 40 images to measure, but got 7 of 12, since others give .*Use about 69 images"),
        ({"timestep": 30, "other_timestep": 30}, r"other_timestep to differ from timestep, but both are 30"),
        ({"repeats": -1}, r"datamodule\.repeats to be at least 0, but got -1"),
        ({"timestep": 1000}, r"timestep to be from 0 to 999, but got 1000"),
        ({"other_timestep": -1}, r"timestep to be from 0 to 999, but got -1"),
        ({"splits": "thirds"}, r"splits to be one of default, loos2025, but got 'thirds'"),
        ({"block": "middle"}, r"middle"),
        ({"images": {"limit": 9}}, r"at least 10 distinct photographs to split, but got 9"),
    ],
)
def test_unusable_options_are_refused(make: Callable[..., GridDataModule], option: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make(**option)
