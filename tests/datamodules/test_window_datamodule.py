"""WindowDataModule: two windows of one picture, each encoded on its own, with the noise of the larger picture."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from datamodules.images.folder import FolderImages
from datamodules.images.texture import LatentTextures, Textures
from datamodules.images.views import resized
from datamodules.windows import WindowDataModule
from sdprobe.backbones import FrozenSD
from sdprobe.backbones.noise import Cut, NoiseSchedule
from sdprobe.mitigations import Canvas, PaddingSwap, Standardize
from sdprobe.tokens.batch import GridBatch
from sdprobe.tokens.views import View
from sdprobe.utilities.errors import InputError

SIZE, SHIFT, COUNT = 128, 64, 12
CELLS = SHIFT // 8
LAYERS = ("latent", "noisy_latent", "conv_in")


@pytest.fixture(scope="module")
def make(sd: FrozenSD, tmp_path_factory: pytest.TempPathFactory, save_photos: Callable[..., Path]) -> Callable[..., Any]:
    folder = tmp_path_factory.mktemp("windows")
    photos = save_photos(folder / "photos", COUNT)

    def module(images: Any = None, **options: Any) -> WindowDataModule:
        source = FolderImages(str(photos), size=SIZE) if images is None else images
        given = {"block": LAYERS, "shift": SHIFT, "least": 1, "cache_dir": str(folder / "cache"), "batch_size": 4} | options
        return WindowDataModule(source, sd, **given)

    return module


def pairs(data: WindowDataModule) -> list[tuple[GridBatch, GridBatch]]:
    data.prepare_data()
    data.setup("test")
    return list(data.test_dataloader())


def test_windows_are_cut_from_one_larger_picture_and_encoded_apart(make: Callable[..., Any], sd: FrozenSD) -> None:
    data = make()
    larger = resized(data.images, SIZE + SHIFT)
    for first, second in pairs(data):
        assert torch.equal(first.image, second.image)
        for row, index in enumerate(first.image.tolist()):
            picture = larger[index]["image"]
            for batch, top in ((first, 0), (second, SHIFT)):
                window = picture[:, top : top + SIZE, top : top + SIZE]
                assert torch.allclose(batch.grids["latent"][row], sd.encoder(window[None], ["a"], 0)[0], atol=1e-4)
    assert data.test_dataloader().images == len(data.split["test"]) == sum(len(first.image) for first, _ in pairs(data))
    assert data.describe()["shift"] == SHIFT


def test_noise_moves_with_the_picture(make: Callable[..., Any], sd: FrozenSD) -> None:
    """The noise of the tokens that both windows show is equal, and only of those."""
    data = make(timestep=600)
    alpha = sd.noise.alphas_cumprod[600]
    for first, second in pairs(data):
        noise = [(batch.grids["noisy_latent"] - alpha.sqrt() * batch.grids["latent"]) for batch in (first, second)]
        assert torch.allclose(noise[0][..., CELLS:, CELLS:], noise[1][..., :-CELLS, :-CELLS], atol=1e-5)
        assert not torch.allclose(noise[0], noise[1], atol=0.1)
        assert not torch.allclose(noise[0][..., :CELLS, :], noise[1][..., -CELLS:, :], atol=0.1)


@pytest.mark.parametrize("mode", ["independent", "shared", "rolled", "none"])
def test_cut_noise_is_a_window_of_white_noise(mode: str) -> None:
    schedule = NoiseSchedule(torch.zeros(1000), mode)  # nothing but noise
    latents, ids = torch.zeros(2, 4, 8, 8), ["a", "b"]
    whole = schedule(torch.zeros(2, 4, 12, 12), 0, ids)
    for top, left in ((0, 0), (3, 1), (4, 4)):
        window = schedule(latents, 0, ids, cut=Cut(top, left, 4))
        assert torch.equal(window, whole[:, :, top : top + 8, left : left + 8])
    assert torch.equal(schedule(latents, 0, ids, cut=Cut(0, 0, 0)), schedule(latents, 0, ids))
    assert torch.equal(schedule(latents, 0, ids, cut=Cut(3, 1, 0)), schedule(latents, 0, ids).roll((-3, -1), (2, 3)))


def test_periodic_pictures_continue_periodically(make: Callable[..., Any]) -> None:
    data = make(Textures(SIZE, limit=COUNT))
    image = data.images[0]["image"]
    window = data.second.store.images[0]["image"]
    assert data.larger == 0 and torch.equal(window, image.roll((-SHIFT, -SHIFT), (1, 2)))
    assert make(Textures(SIZE, limit=COUNT, periodic=False)).larger == SHIFT


def test_windows_of_shift_anova_keep_noise_of_their_own(make: Callable[..., Any]) -> None:
    data = make()
    windows = [View(window=(top, top), larger=SHIFT) for top in (0, SHIFT)]
    first, second = (data.base_stream.viewed(view) for view in windows)
    assert first.cut is None and second.cut is None and data.second.cut == Cut(CELLS, CELLS, CELLS)
    assert windows[0].shows == View(window=(0, 0), larger=SHIFT, moves=True).shows, "both share latents"


def test_maps_apply_to_both_windows_and_other_padding_keeps_them(make: Callable[..., Any]) -> None:
    chosen = {"standardize": Standardize(), "padding_swap": PaddingSwap(mode="reflect")}
    data = make(mitigation=chosen, compare=True, timestep=600)
    [*_, (first, second)] = pairs(data)
    for batch in (first, second):
        moved = batch.grids["conv_in"] - batch.grids["conv_in__standardize"]
        assert torch.allclose(moved, moved[:, :, :1, :1].expand_as(moved), atol=1e-5)
    noisy, latent = ([batch.grids[f"{name}__padding_swap"] for batch in (first, second)] for name in LAYERS[1::-1])
    alpha = data.backbone.noise.alphas_cumprod[600]
    noise = [a - alpha.sqrt() * z for a, z in zip(noisy, latent, strict=True)]
    assert torch.allclose(noise[0][..., CELLS:, CELLS:], noise[1][..., :-CELLS, :-CELLS], atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shift": SIZE}, r"datamodule\.shift to be less than images\.size, .* but got 128 for 128 pixels"),
        ({"shift": 0}, r"datamodule\.shift to be at least 1"),
        ({"least": 40}, "at least 40 images to measure, but got 7 of 12"),
        ({"mitigation": {"canvas": Canvas()}}, "mitigations that keep the picture .* but got Canvas. Leave it out"),
        ({"images": LatentTextures(SIZE, limit=COUNT)}, "pictures to change, but got the latents of LatentTextures"),
    ],
)
def test_what_cannot_be_measured_is_refused(make: Callable[..., Any], options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make(**options)
