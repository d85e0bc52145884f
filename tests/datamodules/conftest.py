"""Fixtures of this folder: the tiny random backbone in float32, and folders of small photographs."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sdprobe.backbones import FrozenSD


@pytest.fixture(scope="session")
def sd() -> FrozenSD:
    return FrozenSD.from_pretrained("tiny", precision="fp32", device="cpu")


@pytest.fixture(scope="session")
def save_photos() -> Callable[..., Path]:
    """A function (folder, count, first) that writes pictures named p<number>.png, each with content of its own."""

    def save(folder: Path, count: int, first: int = 0) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        for number in range(first, first + count):
            coarse = np.random.default_rng(number).integers(0, 256, (6, 6, 3), dtype=np.uint8)
            Image.fromarray(coarse).resize((72, 64), Image.Resampling.BICUBIC).save(folder / f"p{number:03d}.png")
        return folder

    return save
