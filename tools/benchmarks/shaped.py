"""Test data of benchmarks: pipeline folders in Stable Diffusion's shape with random weights, and pictures of noise."""

import hashlib
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from datamodules.images.source import Item
from sdprobe.backbones.latents import LOG_VARIANCE_FLOOR
from sdprobe.backbones.random_pipeline import random_pipeline


def write_pipeline(folder: Path, narrower: tuple[int, int]) -> Path:
    """An SD-1.5-shaped pipeline with random weights, U-Net and VAE narrower by these factors; written once.

    The posterior variance of the VAE is at its minimum, so sampled latents equal the mode.
    """
    if not (folder / "model_index.json").is_file():
        pipeline = random_pipeline("sd15", dtype=torch.float16, narrower=narrower)
        with torch.no_grad():
            moments = pipeline.vae.quant_conv
            moments.weight[4:], moments.bias[4:] = 0.0, LOG_VARIANCE_FLOOR
        pipeline.save_pretrained(folder)
    return folder


class Pictures:
    """Smooth noise in colour, a source of images for this project and of PIL pictures for others."""

    on_error = "raise"

    def __init__(self, count: int, size: int) -> None:
        self.coarse = np.random.default_rng(0).integers(0, 256, (count, size // 32, size // 32, 3), dtype=np.uint8)
        self.size = size

    def __len__(self) -> int:
        return len(self.coarse)

    @property
    def pictures(self) -> list[Image.Image]:
        """All pictures, drawn again at each use to save memory."""
        return [self._drawn(index) for index in range(len(self))]

    def pixels(self) -> Tensor:
        """All pictures, (n, 3, size, size) in [0, 1]."""
        return torch.stack([self[index]["image"] for index in range(len(self))])

    def __getitem__(self, index: int) -> Item:
        pixels = torch.from_numpy(np.array(self._drawn(index))).permute(2, 0, 1)
        return {"image": pixels.float() / 255, "id": self.name(index)}

    def name(self, index: int) -> str:
        """Id: the number of the picture."""
        return str(index)

    photo = name

    def content_key(self, index: int) -> str:
        """Digest of the pixels."""
        return hashlib.sha256(self._drawn(index).tobytes()).hexdigest()

    def _drawn(self, index: int) -> Image.Image:
        return Image.fromarray(self.coarse[index]).resize((self.size, self.size), Image.Resampling.BICUBIC)
