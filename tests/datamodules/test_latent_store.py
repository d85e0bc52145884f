"""LatentStore: every image is encoded once per encoder, and never mistaken for another."""

import copy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from datamodules.images.folder import FolderImages
from datamodules.images.texture import Constants
from datamodules.latents import LatentCache, LatentStore, _named
from sdprobe.backbones import FrozenSD
from sdprobe.backbones.latents import LatentEncoder
from sdprobe.utilities.errors import InputError


@pytest.fixture
def encoder(sd: FrozenSD) -> LatentEncoder:
    return LatentEncoder(sd.encoder.vae)


@pytest.fixture
def photos(tmp_path: Path, save_photos: Callable[..., Path]) -> Path:
    return save_photos(tmp_path / "photos", 5)


def store_of(
    photos: Path, encoder: LatentEncoder, cache: Path, seed: int = 0, batch_size: int = 2, workers: int = 0, **options: object
) -> LatentStore:
    images = FolderImages(str(photos), **({"size": 64} | options))  # type: ignore[arg-type]
    return LatentStore(images, encoder, LatentCache(cache), seed, batch_size, workers)


def everything(store: LatentStore) -> torch.Tensor:
    return torch.stack([store[i] for i in range(len(store.images))])


def test_latents_are_the_encoders(photos: Path, encoder: LatentEncoder, tmp_path: Path) -> None:
    store = store_of(photos, encoder, tmp_path / "cache")
    assert store.prepare(range(5)) == [0, 1, 2, 3, 4]
    for i in range(5):
        item = store.images[i]
        assert torch.allclose(store[i], encoder(item["image"][None], [item["id"]])[0], atol=1e-5)


def test_a_second_preparation_encodes_nothing(photos: Path, encoder: LatentEncoder, tmp_path: Path) -> None:
    first = store_of(photos, encoder, tmp_path / "cache")
    first.prepare(range(5))
    assert encoder.passes == first.encoded == 5
    latents = everything(first)
    again = store_of(photos, encoder, tmp_path / "cache")
    again.prepare(range(5))
    assert torch.equal(everything(again), latents)
    assert encoder.passes == 5
    assert again.encoded == 0


def test_only_what_is_asked_for_is_encoded(photos: Path, encoder: LatentEncoder, tmp_path: Path) -> None:
    store = store_of(photos, encoder, tmp_path / "cache")
    store.prepare([3, 1])
    assert encoder.passes == 2
    store.prepare([0, 1, 3])
    assert encoder.passes == 3
    assert store_of(photos, encoder, tmp_path / "cache").prepare([]) == []


def test_an_item_that_was_not_prepared_is_encoded_on_access(photos: Path, encoder: LatentEncoder, tmp_path: Path) -> None:
    store = store_of(photos, encoder, tmp_path / "cache")
    latent = store[4]
    assert encoder.passes == 1
    assert torch.equal(store[4], latent)
    assert encoder.passes == 1


def test_batch_size_does_not_change_a_latent(photos: Path, encoder: LatentEncoder, tmp_path: Path) -> None:
    one, five = (store_of(photos, encoder, tmp_path / str(size), batch_size=size) for size in (1, 5))
    for store in (one, five):
        store.prepare(range(5))
    assert torch.allclose(everything(one), everything(five), atol=1e-5)


def test_encoders_that_differ_do_not_share_latents(photos: Path, encoder: LatentEncoder, tmp_path: Path) -> None:
    other = copy.deepcopy(encoder.vae)
    with torch.no_grad():
        next(other.parameters()).mul_(1.5)
    encoders = [
        encoder,
        LatentEncoder(other),
        LatentEncoder(encoder.vae, vae_input="unit"),
        LatentEncoder(encoder.vae, posterior="sample"),
    ]
    assert LatentEncoder(copy.deepcopy(other).to(torch.bfloat16)).key(0) not in {each.key(0) for each in encoders}
    shared, found = [], []
    for number, each in enumerate(encoders):
        alone, together = store_of(photos, each, tmp_path / str(number)), store_of(photos, each, tmp_path / "shared")
        alone.prepare(range(2))
        together.prepare(range(2))
        assert together.encoded == 2, "nothing was taken from another encoder"
        shared.append(together)
        found.append(torch.stack([alone[0], alone[1]]))
    for store, latents in zip(shared, found, strict=True):
        assert torch.equal(torch.stack([store[0], store[1]]), latents)
    assert all(not torch.equal(a, b) for i, a in enumerate(found) for b in found[:i])


def test_sizes_and_crops_do_not_collide(photos: Path, encoder: LatentEncoder, tmp_path: Path) -> None:
    shapes = []
    for options in ({"size": 64}, {"size": 128}, {"size": 64, "crops": 2}, {"size": 64, "crops": 2, "seed": 1}):
        store = store_of(photos, encoder, tmp_path / "cache")
        store.images = FolderImages(str(photos), **options)
        store.prepare([0, 1])
        assert store.encoded == 2
        shapes.append(tuple(store[0].shape))
    assert shapes == [(4, 8, 8), (4, 16, 16), (4, 8, 8), (4, 8, 8)]


def test_a_changed_file_is_encoded_anew(photos: Path, encoder: LatentEncoder, tmp_path: Path) -> None:
    before = store_of(photos, encoder, tmp_path / "cache")
    before.prepare(range(5))
    old = everything(before)
    Image.new("RGB", (64, 64), "orange").save(photos / "p002.png")
    after = store_of(photos, encoder, tmp_path / "cache")
    after.prepare(range(5))
    assert after.encoded == 1
    assert [torch.equal(a, b) for a, b in zip(everything(after), old, strict=True)] == [True, True, False, True, True]


def test_copies_of_a_picture_share_the_mode_but_not_a_sample(photos: Path, encoder: LatentEncoder, tmp_path: Path) -> None:
    (photos / "copy.png").write_bytes((photos / "p000.png").read_bytes())
    mode = store_of(photos, encoder, tmp_path / "cache")
    copied = [mode.images.name(i) for i in range(6)].index("copy.png")
    mode.prepare(range(6))
    assert torch.equal(mode[copied], mode[[mode.images.name(i) for i in range(6)].index("p000.png")])
    sample = store_of(photos, LatentEncoder(encoder.vae, posterior="sample"), tmp_path / "cache")
    sample.prepare(range(6))
    assert not torch.equal(sample[copied], sample[[sample.images.name(i) for i in range(6)].index("p000.png")])


def test_samples_are_keyed_by_seed_and_id(photos: Path, encoder: LatentEncoder, tmp_path: Path) -> None:
    def sampled(folder: str, indices: list[int], seed: int = 0, batch_size: int = 2) -> dict[int, torch.Tensor]:
        each = LatentEncoder(encoder.vae, posterior="sample")
        store = store_of(photos, each, tmp_path / folder, seed, batch_size)
        store.prepare(indices)
        return {i: store[i] for i in indices}

    first, reordered = sampled("a", [0, 1, 2]), sampled("b", [2, 0], batch_size=1)
    for i in (0, 2):
        assert torch.allclose(first[i], reordered[i], atol=1e-5), "neither order nor batch matters"
    other = sampled("a", [0, 1, 2], seed=1)
    assert not torch.allclose(first[0], other[0], atol=1e-3)
    assert torch.equal(sampled("a", [0, 1, 2])[0], first[0]), "the first seed is still there"


@pytest.mark.parametrize("damage", ["flipped", "truncated", "deleted"])
def test_an_entry_damaged_after_preparation_is_encoded_again(
    photos: Path, encoder: LatentEncoder, tmp_path: Path, damage: str
) -> None:
    store = store_of(photos, encoder, tmp_path / "cache")
    store.prepare([2])
    before = store[2].clone()  # it is memory-mapped
    [path] = (tmp_path / "cache").rglob("*.safetensors")
    content = bytearray(path.read_bytes())
    if damage == "deleted":
        path.unlink()
    elif damage == "truncated":
        path.write_bytes(content[:-7])
    else:
        content[-9] ^= 1
        path.write_bytes(content)
    assert torch.allclose(store[2], before, atol=1e-5)
    assert encoder.passes == 2
    assert store.cache.damaged == (damage != "deleted")
    assert torch.equal(store[2], store[2])
    assert encoder.passes == 2, "and kept"


# --- pictures that cannot be decoded ---------------------------------------------------------------------------------


def spoil(photos: Path) -> None:
    for name in ("p001.png", "p003.png"):
        (photos / name).write_bytes((photos / name).read_bytes()[:400])


@pytest.mark.parametrize("workers", [0, 1])
def test_raise_names_the_first_file(photos: Path, encoder: LatentEncoder, tmp_path: Path, workers: int) -> None:
    spoil(photos)
    store = store_of(photos, encoder, tmp_path / "cache", workers=workers)
    with pytest.raises(InputError, match=r"p001\.png to be an intact image"):
        store.prepare(range(5))


@pytest.mark.parametrize("workers", [0, 1])
def test_skip_leaves_them_out_and_names_and_counts_them(
    photos: Path, encoder: LatentEncoder, tmp_path: Path, caplog: pytest.LogCaptureFixture, workers: int
) -> None:
    spoil(photos)
    store = store_of(photos, encoder, tmp_path / "cache", workers=workers, on_error="skip")
    assert store.prepare(range(5)) == [0, 2, 4]
    assert store.skipped == ["p001.png", "p003.png"]
    assert "Skipped 2 images" in caplog.text
    assert "p001.png, p003.png" in caplog.text
    assert encoder.passes == 3
    assert store.prepare(range(5)) == [0, 2, 4]
    assert encoder.passes == 3


def test_skipping_everything_leaves_nothing(photos: Path, encoder: LatentEncoder, tmp_path: Path) -> None:
    for file in photos.iterdir():
        file.write_text("no picture")
    assert store_of(photos, encoder, tmp_path / "cache", on_error="skip").prepare(range(5)) == []


# --- identity --------------------------------------------------------------------------------------------------------


def test_the_fingerprint_names_content_names_and_order(photos: Path, encoder: LatentEncoder, tmp_path: Path) -> None:
    store = store_of(photos, encoder, tmp_path / "cache")
    base = store.fingerprint([0, 1])
    assert base == store_of(photos, encoder, tmp_path / "elsewhere").fingerprint([0, 1])
    assert len({base, store.fingerprint([1, 0]), store.fingerprint([0]), store.fingerprint([0, 2])}) == 4
    Image.new("RGB", (64, 64), "orange").save(photos / "p001.png")
    changed = store_of(photos, encoder, tmp_path / "cache").fingerprint([0, 1])
    assert changed != base
    (photos / "p001.png").rename(photos / "p0011.png")
    assert store_of(photos, encoder, tmp_path / "cache").fingerprint([0, 1]) != changed
    assert encoder.passes == 0, "no image is encoded for it"


def test_unusual_latents_are_warned_of(
    photos: Path, encoder: LatentEncoder, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    vae = copy.deepcopy(encoder.vae)
    vae.register_to_config(scaling_factor=1000.0)
    store_of(photos, LatentEncoder(vae), tmp_path / "cache").prepare(range(5))
    assert "standard deviation" in caplog.text


def test_nearly_blank_pictures_are_named_once(
    photos: Path, encoder: LatentEncoder, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    grey = np.full((64, 64, 3), 90, np.uint8)
    edge = grey.copy()
    edge[:, :32] += 8  # a standard deviation of 4 of 255
    for name, pixels in {"p001": grey, "p003": edge, "p004": edge + 9 * (edge > 90)}.items():
        Image.fromarray(pixels.astype(np.uint8)).save(photos / f"{name}.png")

    def said(store: LatentStore) -> list[str]:
        caplog.clear()
        store.prepare(range(5))
        return [record.getMessage() for record in caplog.records if "blank" in record.getMessage()]

    line = "2 of the pictures are nearly blank: p001.png, p003.png. Remove those that are not meant to be."
    assert said(store_of(photos, encoder, tmp_path / "cache")) == [line]
    assert said(store_of(photos, encoder, tmp_path / "cache", size=128)) == [], "of the same pictures"
    _named.clear()  # another process, which finds the latents in the cache
    assert said(store_of(photos, encoder, tmp_path / "cache")) == [line]
    flat = LatentStore(Constants(64, 5), encoder, LatentCache(tmp_path / "cache"), 0, 2, 0)
    assert said(flat) == [], "blank on purpose"
