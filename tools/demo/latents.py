"""Training data of the diffusion model: latents, captions and part labels of scenes, in files of 100 that are drawn beside
training.
"""

import json
import math
from collections.abc import Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from hashlib import sha256
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from jaxtyping import Float, UInt8
from torch import Tensor

from sdprobe.scenes.painting import VERSION as SCENES
from sdprobe.scenes.painting import paint
from sdprobe.utilities.io import read_tensors, write_tensors
from tools.demo.captions import caption
from tools.demo.parts import part_map
from tools.demo.portraits import KINDS, VERSION

SHARD = 100
CAPTIONS = 4  # sentences per scene


@dataclass(frozen=True)
class Latents:
    """Scaled posterior means (n, 4, h, h) in half precision; of each the captions and the part at every cell."""

    values: Float[Tensor, "n 4 h h"]
    captions: list[list[str]]
    parts: UInt8[Tensor, "n h h"]


@dataclass(frozen=True)
class Shard:
    """Pictures `first` … `last` - 1 of a kind (a key of `KINDS`), seed and size in pixels, and the file of their latents."""

    kind: str
    seed: int
    size: int
    first: int
    last: int
    path: Path


def shards(kind: str, seed: int, count: int, size: int, model: str, work: Path) -> list[Shard]:
    """The first `count` pictures of a kind, for the autoencoder with the fingerprint `model`."""
    key = sha256(f"{SCENES}:{VERSION}:{kind}:{seed}:{size}:{model}".encode()).hexdigest()[:12]
    stem = work / "latents" / f"{kind}-{size}-{key}"
    bounds = [(first, min(first + SHARD, count)) for first in range(0, count, SHARD)]
    return [Shard(kind, seed, size, a, b, stem.with_name(f"{stem.name}-{a:06d}-{b:06d}.safetensors")) for a, b in bounds]


@torch.no_grad()
def draw(vae: AutoencoderKL, shard: Shard) -> None:
    """Paint, encode and caption the pictures of a shard, unless its file exists."""
    if shard.path.exists():
        return
    latents, captions, parts = [], [], []
    for index in range(shard.first, shard.last):
        composition, generator = KINDS[shard.kind](shard.seed, index), torch.Generator().manual_seed(index)
        pixels = torch.from_numpy(np.array(paint(composition, shard.size))).permute(2, 0, 1)[None] / 127.5 - 1
        mean = vae.encode(pixels.contiguous(memory_format=torch.channels_last)).latent_dist.mean
        latents.append((mean * vae.config.scaling_factor).half())
        captions.append([caption(composition, generator) for _ in range(CAPTIONS)])
        parts.append(part_map(composition, mean.shape[-1]))
    shard.path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {"latents": torch.cat(latents), "parts": torch.stack(parts)}
    write_tensors(shard.path, tensors, captions=json.dumps(captions))


class Painters:
    """Processes that draw shards beside training, in the order in which they were asked for; with none, `wait` draws them."""

    def __init__(self, vae: AutoencoderKL, processes: int) -> None:
        self.vae = vae.to("cpu", memory_format=torch.channels_last).eval()
        self.model, self.processes = fingerprint(vae), processes
        self.asked: dict[Path, Future[None]] = {}
        self.pool: ProcessPoolExecutor | None = None
        if processes:
            self.pool = ProcessPoolExecutor(processes, get_context("spawn"), initializer=_begin, initargs=(self.vae,))

    def ask(self, shard: Shard) -> None:
        """Begin to draw a shard."""
        if self.pool and shard.path not in self.asked and not shard.path.exists():
            self.asked[shard.path] = self.pool.submit(_draw, shard)

    def wait(self, shard: Shard) -> Latents:
        """The content of a shard as soon as it is drawn."""
        self.ask(shard)
        if shard.path in self.asked:
            self.asked[shard.path].result()
        draw(self.vae, shard)
        tensors, metadata = read_tensors(shard.path, unchecked=True)
        return Latents(tensors["latents"], json.loads(metadata["captions"]), tensors["parts"])

    def close(self) -> None:
        """End the processes; shards that nobody waits for are not drawn."""
        if self.pool:
            self.pool.shutdown(cancel_futures=True)


_known: list[AutoencoderKL] = []  # in a painting process: the autoencoder


def _begin(vae: AutoencoderKL) -> None:
    torch.set_num_threads(1)
    _known.append(vae)


def _draw(shard: Shard) -> None:
    draw(_known[0], shard)


class Pool:
    """The pictures of one kind and size.

    Their number grows during the first half of the first stage that uses them, so that training begins when the first shard is
    drawn. It depends on the progress of training only. As many shards as there are painters are drawn in advance.
    """

    def __init__(self, painters: Painters, parts: Sequence[Shard], stage: int) -> None:
        self.painters, self.parts, self.stage = painters, parts, stage
        self.latents: list[Latents] = []
        self.joined: Latents | None = None

    def at(self, stage: int, progress: float) -> Latents:
        """The pictures for a step after the share `progress` of a stage."""
        share = 1.0 if stage > self.stage else min(1.0, 2 * progress)
        wanted = max(1, math.ceil(share * len(self.parts)))
        if self.joined is None or wanted > len(self.latents):
            for shard in self.parts[len(self.latents) : wanted + self.painters.processes]:
                self.painters.ask(shard)
            self.latents += [self.painters.wait(shard) for shard in self.parts[len(self.latents) : wanted]]
            values, parts = (torch.cat([getattr(part, name) for part in self.latents]) for name in ("values", "parts"))
            self.joined = Latents(values, [text for part in self.latents for text in part.captions], parts)
        return self.joined


def fingerprint(model: torch.nn.Module) -> str:
    """Digest of a model's weights."""
    digest = sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode() + tensor.float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
