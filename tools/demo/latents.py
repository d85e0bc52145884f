"""Training data of the diffusion model: latents, captions and part labels of scenes, stored in files of 500 scenes."""

import json
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TypedDict

import numpy as np
import torch
from diffusers import AutoencoderKL
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset

from sdprobe.scenes.painting import VERSION as SCENES
from sdprobe.scenes.painting import paint
from sdprobe.utilities.io import read_tensors, write_tensors
from tools.demo.captions import caption
from tools.demo.parts import part_maps
from tools.demo.portraits import KINDS, VERSION

SHARD = 500
CAPTIONS = 4  # sentences per scene


class Captioned(TypedDict):
    """A scene in [-1, 1] and its captions."""

    image: Float[Tensor, "3 size size"]
    captions: list[str]


class CaptionedScenes(Dataset[Captioned]):
    """Pictures 0 … count - 1 of `seed` at `size` pixels; `kind` is a key of `KINDS`."""

    def __init__(self, kind: str, seed: int, count: int, size: int) -> None:
        self.compose, self.seed, self.count, self.size = KINDS[kind], seed, count, size

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Captioned:
        composition = self.compose(self.seed, index)
        generator = torch.Generator().manual_seed(index)
        pixels = torch.from_numpy(np.array(paint(composition, self.size))).permute(2, 0, 1)
        return {"image": pixels / 127.5 - 1, "captions": [caption(composition, generator) for _ in range(CAPTIONS)]}


@dataclass(frozen=True)
class Latents:
    """Scaled posterior means (n, 4, h, h) in half precision; of each the captions and the part at every cell."""

    values: Float[Tensor, "n 4 h h"]
    captions: list[list[str]]
    parts: UInt8[Tensor, "n h h"]


@torch.no_grad()
def encoded(vae: AutoencoderKL, kind: str, seed: int, count: int, size: int, work: Path, device: torch.device) -> Latents:
    """Latents of the first `count` pictures of a kind; files that an earlier call left in `work` are read back."""
    scenes = CaptionedScenes(kind, seed, count, size)
    key = sha256(f"{SCENES}:{VERSION}:{kind}:{seed}:{size}:{fingerprint(vae)}".encode()).hexdigest()[:12]
    vae = vae.to(device, memory_format=torch.channels_last).eval()
    values, texts = [], []
    for first in range(0, count, SHARD):
        last = min(first + SHARD, count)
        path = work / "latents" / f"{kind}-{size}-{key}-{first:06d}-{last:06d}.safetensors"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            part = Subset(scenes, range(first, last))
            items = DataLoader(part, batch_size=None, num_workers=2)
            latents, sentences = [], []
            for item in items:
                image = item["image"][None].to(device, memory_format=torch.channels_last)
                latents.append((vae.encode(image).latent_dist.mean * vae.config.scaling_factor).half().cpu())
                sentences.append(item["captions"])
            write_tensors(path, {"latents": torch.cat(latents)}, captions=json.dumps(sentences))
        tensors, metadata = read_tensors(path, unchecked=True)
        values.append(tensors["latents"])
        texts += json.loads(metadata["captions"])
    joined = torch.cat(values)
    return Latents(joined, texts, part_maps(kind, seed, count, joined.shape[-1], work))


def fingerprint(model: torch.nn.Module) -> str:
    """Digest of a model's weights."""
    digest = sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode() + tensor.float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
