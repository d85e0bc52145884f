"""Mirrored, cropped and rotated pictures: pixels, grouping by photograph, and distinct names and keys."""

import pytest
import torch

from datamodules.images.scenes import Scenes
from datamodules.images.texture import LatentTextures, Textures
from datamodules.images.views import Cropped, FlipBalanced, RandomCrops, Rotated, Viewed, rotated
from sdprobe.tokens.splits import split_by_photo
from sdprobe.tokens.views import View
from sdprobe.utilities.errors import InputError


def test_the_four_mirrorings_of_a_picture_have_a_symmetric_mean() -> None:
    scenes = Scenes(64, 3)
    flipped = FlipBalanced(scenes, 64)
    assert len(flipped) == 12
    four = torch.stack([flipped[4 + k]["image"] for k in range(4)])
    assert torch.equal(four[0], scenes[1]["image"]) and torch.equal(four[3], four[0].rot90(2, (-2, -1)))
    mean = four.mean(0)
    torch.testing.assert_close(mean, mean.flip(-1))
    torch.testing.assert_close(mean, mean.flip(-2))
    assert not torch.allclose(four[1], four[2], atol=0.05)


@pytest.mark.parametrize("wrapper", ["flips", "crops"])
def test_variants_of_a_picture_stay_in_one_split(wrapper: str) -> None:
    scenes = Scenes(64, 20)
    source = FlipBalanced(scenes, 64) if wrapper == "flips" else RandomCrops(scenes, 64, crops=4)
    parts = split_by_photo([source.photo(i) for i in range(80)])
    assert all(len({i // 4 for i in part}) * 4 == len(part) for part in parts.values())


def test_crops_are_parts_of_the_picture_and_differ() -> None:
    source = RandomCrops(Textures(128, 2), 128, crops=2)
    a, b = source[0]["image"], source[1]["image"]
    assert torch.equal(a, source[0]["image"]) and not torch.allclose(a, b, atol=0.05)
    whole = Textures(128, 2)[0]["image"]
    steps = [(image - image.roll(1, -1))[..., 1:].abs().mean() for image in (a, whole)]
    assert steps[0] < steps[1], "enlarged, hence smoother"
    assert RandomCrops(Textures(128, 2), 128, crops=2, seed=1).content_key(0) != source.content_key(0)


def test_rotated_and_cropped_pictures_keep_their_id_and_have_keys_of_their_own() -> None:
    scenes = Scenes(128, 3)
    image = scenes[1]["image"]
    shown = {Rotated: image.flip((-2, -1)), Cropped: image[:, 16:112, 16:112]}
    sources = [rotated(scenes), Cropped(scenes, 16), Cropped(scenes, 32)]
    for source in sources[:2]:
        assert len(source) == 3 and torch.equal(source[1]["image"], shown[type(source)])
        assert source[1]["id"] == source.name(1) == scenes.name(1) and source.photo(1) == scenes.photo(1)
    assert [source.size for source in sources] == [128, 96, 64]
    assert len({source.content_key(1) for source in (scenes, *sources)}) == 4


def test_bad_wrappers_are_refused() -> None:
    with pytest.raises(InputError, match="images of 128 pixels, but got 64"):
        FlipBalanced(Scenes(64, 2), 128)
    with pytest.raises(InputError, match=r"images\.crops to be at least 1, but got 0"):
        RandomCrops(Scenes(64, 2), 64, crops=0)
    with pytest.raises(InputError, match="the margin to be at least 0, but got -1"):
        Cropped(Scenes(128, 1), -1)
    with pytest.raises(InputError, match="Expected pictures to crop, but got the latents of LatentTextures"):
        Cropped(LatentTextures(128, 1), 16)
    with pytest.raises(InputError, match="Expected pictures to change, but got the latents of LatentTextures"):
        Viewed(LatentTextures(128, 1), View(flip=True))


@pytest.mark.parametrize(("size", "margin"), [(128, 64), (128, 33), (64, 8)])
def test_a_margin_that_leaves_too_little_is_refused(size: int, margin: int) -> None:
    with pytest.raises(InputError, match="Expected the margin to leave at least 64 pixels"):
        Cropped(Scenes(size, 1), margin)
