"""Mirrored, cropped and rotated pictures: what is done, what stays together, what is told apart."""

import pytest
import torch

from datamodules.images.scenes import Scenes
from datamodules.images.source import ImageSource
from datamodules.images.texture import Textures
from datamodules.images.views import FlipBalanced, RandomCrops, Rotated, rotated
from datamodules.splits import split_by_photo
from sdprobe.utilities.errors import InputError


def test_the_four_mirrorings_of_a_picture_have_a_symmetric_mean() -> None:
    scenes = Scenes(64, 3)
    flipped = FlipBalanced(scenes, 64)
    assert isinstance(flipped, ImageSource) and len(flipped) == 12
    four = torch.stack([flipped[4 + k]["image"] for k in range(4)])
    assert torch.equal(four[0], scenes[1]["image"]) and torch.equal(four[3], four[0].rot90(2, (-2, -1)))
    mean = four.mean(0)
    torch.testing.assert_close(mean, mean.flip(-1))
    torch.testing.assert_close(mean, mean.flip(-2))
    assert not torch.allclose(four[1], four[2], atol=0.05)


@pytest.mark.parametrize("wrapper", ["flips", "crops"])
def test_variants_of_a_picture_stay_in_one_split_under_names_of_their_own(wrapper: str) -> None:
    scenes = Scenes(64, 20)
    source = FlipBalanced(scenes, 64) if wrapper == "flips" else RandomCrops(scenes, 64, crops=4)
    assert len({source.name(i) for i in range(80)}) == len({source.content_key(i) for i in range(80)}) == 80
    parts = split_by_photo([source.photo(i) for i in range(80)])
    assert all(len({i // 4 for i in part}) * 4 == len(part) for part in parts.values())
    assert source[5]["id"] == source.name(5)


def test_a_limit_counts_items() -> None:
    assert len(FlipBalanced(Scenes(64, 20), 64, limit=6)) == 6 and len(FlipBalanced(Scenes(64, 1), 64, limit=160)) == 4


def test_crops_are_parts_of_the_picture_and_differ() -> None:
    source = RandomCrops(Textures(128, 2), 128, crops=2)
    a, b = source[0]["image"], source[1]["image"]
    assert a.shape == (3, 128, 128) and a.min() >= 0 and a.max() <= 1 and not torch.allclose(a, b, atol=0.05)
    assert torch.equal(a, source[0]["image"])
    whole = Textures(128, 2)[0]["image"]
    steps = [(image - image.roll(1, -1))[..., 1:].abs().mean() for image in (a, whole)]
    assert steps[0] < steps[1], "enlarged, hence smoother"
    assert RandomCrops(Textures(128, 2), 128, crops=2, seed=1).content_key(0) != source.content_key(0)


def test_a_rotated_picture_keeps_its_id_and_has_a_key_of_its_own() -> None:
    scenes = Scenes(64, 2)
    turned = rotated(scenes)
    assert type(turned) is Rotated and isinstance(turned, ImageSource) and len(turned) == 2
    assert torch.equal(turned[1]["image"], scenes[1]["image"].flip((-2, -1)))
    assert turned[1]["id"] == turned.name(1) == scenes.name(1) and turned.photo(1) == scenes.photo(1)
    assert turned.content_key(1) != scenes.content_key(1)


def test_bad_wrappers_are_refused() -> None:
    with pytest.raises(InputError, match="images of 128 pixels, but got 64"):
        FlipBalanced(Scenes(64, 2), 128)
    with pytest.raises(InputError, match=r"images\.limit to be at least 1, but got 0"):
        FlipBalanced(Scenes(64, 2), 64, limit=0)
    with pytest.raises(InputError, match=r"images\.crops to be at least 1, but got 0"):
        RandomCrops(Scenes(64, 2), 64, crops=0)
