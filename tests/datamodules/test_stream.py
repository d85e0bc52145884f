"""ActivationStream: the grids of an image do not depend on its company, and running out of memory changes no number."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from datamodules.images.folder import FolderImages
from datamodules.latents import LatentCache, LatentStore
from datamodules.stream import ActivationStream, Pass
from sdprobe.backbones import FrozenSD
from sdprobe.tokens.batch import GridBatch
from sdprobe.tokens.groups import token_groups
from sdprobe.utilities.errors import InputError

LAYERS = ("down_0", "mid")
COUNT = 7


@pytest.fixture(scope="module")
def store(sd: FrozenSD, save_photos: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> LatentStore:
    root = tmp_path_factory.mktemp("stream")
    images = FolderImages(str(save_photos(root / "photos", COUNT)), size=128)
    store = LatentStore(images, sd.encoder, LatentCache(root / "cache"), 0, 8, 0)
    store.prepare(range(COUNT))
    return store


def stream_of(sd: FrozenSD, store: LatentStore, **options: Any) -> ActivationStream:
    batch_size = options.pop("batch_size", 8)
    return ActivationStream(sd, store, Pass(**({"layers": LAYERS, "timesteps": (50,)} | options)), batch_size)


def together(batches: list[GridBatch]) -> dict[str, torch.Tensor]:
    return {layer: torch.cat([batch.grids[layer] for batch in batches]) for layer in batches[0].grids}


def images_of(batches: list[GridBatch]) -> list[int]:
    return [index for batch in batches for index in batch.image.tolist()]


def assert_close(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert set(one) == set(other)
    for layer, grid in one.items():
        torch.testing.assert_close(grid, other[layer], rtol=1e-4, atol=1e-5)


@contextmanager
def memory_for(sd: FrozenSD, images: int) -> Iterator[list[int]]:
    """A U-Net that runs out of memory above so many images; yields the sizes of the batches tried."""
    tried: list[int] = []

    def refuse(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        tried.append(len(inputs[0]))
        if len(inputs[0]) > images:
            raise torch.OutOfMemoryError("CUDA out of memory")

    handle = sd.unet.unet.conv_in.register_forward_pre_hook(refuse)
    try:
        yield tried
    finally:
        handle.remove()


def test_grids_are_those_of_the_backbone(sd: FrozenSD, store: LatentStore) -> None:
    [batch] = stream_of(sd, store)([3, 0])
    pixels = torch.stack([store.images[i]["image"] for i in (3, 0)])
    expected = sd.activations(pixels, LAYERS, timestep=50, seed=0, ids=[store.images.name(i) for i in (3, 0)])
    assert_close(batch.grids, expected)


def test_batch_size_changes_no_activation(sd: FrozenSD, store: LatentStore) -> None:
    one, eight = (list(stream_of(sd, store, batch_size=size)(range(COUNT))) for size in (1, 8))
    assert [len(batch.image) for batch in one] == [1] * COUNT
    assert [len(batch.image) for batch in eight] == [COUNT]
    assert_close(together(one), together(eight))


def test_an_image_alone_gives_what_it_gives_in_any_order(sd: FrozenSD, store: LatentStore) -> None:
    forward, backward = (together(list(stream_of(sd, store, batch_size=3)(order))) for order in (range(5), range(4, -1, -1)))
    assert_close(forward, {layer: grid.flip(0) for layer, grid in backward.items()})


def test_layers_asked_for_together_are_those_asked_for_alone(sd: FrozenSD, store: LatentStore) -> None:
    [both] = stream_of(sd, store)([0, 1])
    for layer in LAYERS:
        [alone] = stream_of(sd, store, layers=(layer,))([0, 1])
        assert_close(alone.grids, {layer: both.grids[layer]})


def test_order_and_batch_sizes_are_as_asked(sd: FrozenSD, store: LatentStore) -> None:
    batches = list(stream_of(sd, store, batch_size=3)([6, 2, 5, 0]))
    assert images_of(batches) == [6, 2, 5, 0]
    assert [len(batch.image) for batch in batches] == [3, 1]
    assert list(stream_of(sd, store)([])) == []


def test_photo_counts_photographs_not_items(sd: FrozenSD, store: LatentStore, tmp_path: Path) -> None:
    root = store.images.root  # type: ignore[attr-defined]
    crops = LatentStore(FolderImages(str(root), size=64, crops=3), sd.encoder, LatentCache(tmp_path), 0, 8, 0)
    [batch] = stream_of(sd, crops)([0, 2, 3, 20])
    assert batch.photo.tolist() == [0, 0, 1, 6]
    assert batch.image.tolist() == [0, 2, 3, 20]


def test_masks_are_those_of_the_raw_grid(sd: FrozenSD, store: LatentStore) -> None:
    [batch] = stream_of(sd, store)([0, 1])
    for layer, grid in batch.grids.items():
        expected = token_groups(grid)
        assert set(batch.masks[layer]) == set(expected) == {"corner", "border", "interior", "high_norm"}
        for group, mask in expected.items():
            assert torch.equal(batch.masks[layer][group], mask)
        partition = sum(batch.masks[layer][group].int() for group in ("corner", "border", "interior"))
        assert (partition == 1).all()


def test_noise_is_keyed_by_seed_and_timestep_matters(sd: FrozenSD, store: LatentStore) -> None:
    base, again, seed, step = (
        together(list(stream_of(sd, store, layers=("noisy_latent",), **options)([0, 1])))["noisy_latent"]
        for options in ({}, {}, {"seed": 1}, {"timesteps": (500,)})
    )
    assert torch.equal(base, again)
    assert not torch.allclose(base, seed, atol=1e-3)
    assert not torch.allclose(base, step, atol=1e-3)


def test_one_pass_serves_all_layers(sd: FrozenSD, store: LatentStore) -> None:
    before = dict(sd.passes)
    list(stream_of(sd, store, layers=("conv_in", "down_0", "down_1", "mid"))(range(5)))
    assert sd.passes == {"unet": before["unet"] + 5, "encoder": before["encoder"]}


# --- out of memory ---------------------------------------------------------------------------------------------------


def test_out_of_memory_halves_the_batch_once_warns_and_keeps_the_numbers(
    sd: FrozenSD, store: LatentStore, caplog: pytest.LogCaptureFixture
) -> None:
    expected = together(list(stream_of(sd, store)(range(COUNT))))
    stream = stream_of(sd, store, batch_size=6)
    with memory_for(sd, 3) as tried:
        batches = list(stream(range(COUNT)))
    assert tried == [6, 3, 3, 1]
    assert stream.batch_size == 3
    assert caplog.text.count("Out of device memory") == 1
    assert "3 images per U-Net pass" in caplog.text
    assert images_of(batches) == list(range(COUNT)), "nothing lost, nothing twice"
    assert_close(together(batches), expected)


def test_a_second_lack_of_memory_ends_with_a_sentence(sd: FrozenSD, store: LatentStore) -> None:
    with memory_for(sd, 1) as tried, pytest.raises(InputError, match=r"Expected 3 images per U-Net pass.*batch_size.*block="):
        list(stream_of(sd, store, batch_size=6)(range(COUNT)))
    assert tried == [6, 3]


def test_lack_of_memory_for_a_single_image_ends_with_a_sentence(sd: FrozenSD, store: LatentStore) -> None:
    with memory_for(sd, 0) as tried, pytest.raises(InputError, match=r"Expected 1 images? per U-Net pass to fit"):
        list(stream_of(sd, store, batch_size=1)(range(COUNT)))
    assert tried == [1]


def test_memory_that_runs_out_later_keeps_what_came_before(sd: FrozenSD, store: LatentStore) -> None:
    stream = stream_of(sd, store, batch_size=2)
    batches = stream(range(COUNT))
    first = next(batches)
    with memory_for(sd, 1):
        rest = list(batches)
    assert images_of([first, *rest]) == list(range(COUNT))
    assert [len(batch.image) for batch in rest] == [1] * (COUNT - 2)
