"""Cropping takes away the margin and nothing else."""

import pytest
import torch

from datamodules.images.scenes import Scenes
from datamodules.images.source import ImageSource
from datamodules.images.views import Cropped
from sdprobe.utilities.errors import InputError


def test_a_cropped_picture_is_the_middle_of_the_whole_one() -> None:
    scenes = Scenes(128, 3, 0)
    cropped = Cropped(scenes, 16)
    assert isinstance(cropped, ImageSource) and len(cropped) == 3 and cropped.size == 96
    assert torch.equal(cropped[1]["image"], scenes[1]["image"][:, 16:112, 16:112])
    assert cropped.name(1) == scenes.name(1) and cropped.photo(1) == scenes.photo(1)


def test_other_margins_are_other_contents() -> None:
    scenes = Scenes(256, 2, 0)
    assert len({scenes.content_key(0), Cropped(scenes, 8).content_key(0), Cropped(scenes, 16).content_key(0)}) == 3


@pytest.mark.parametrize(("size", "margin"), [(128, 64), (128, 33), (64, 8)])
def test_a_margin_that_leaves_too_little_is_refused(size: int, margin: int) -> None:
    with pytest.raises(InputError, match="Expected the margin to leave at least 64 pixels"):
        Cropped(Scenes(size, 1, 0), margin)


def test_a_negative_margin_is_refused() -> None:
    with pytest.raises(InputError, match="the margin to be at least 0, but got -1"):
        Cropped(Scenes(128, 1, 0), -1)
