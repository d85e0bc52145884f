"""Peak memory of the data module of pairs by number of pairs: ``python -m tools.benchmarks.pair_memory``.

Matches every keypoint of as many pairs as SPair-71k has to test (12,234 of 480 images in 18 categories), and of its first 128
images, at several ``activation_budget``, each in a process of its own that gives freed tensors back to the system at once, so
that its peak is that of what is alive. Latents and U-Net are stood in for: grids are random, 1280 × 48 × 48 in bfloat16 as
at 768 pixels. What 480 images need beyond the cached target grids should be what 128 images need, but for the table of
keypoints and the list of pairs, about 3 KB a pair.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from itertools import islice, permutations

import torch
from rich.console import Console

from datamodules.images.pairs import Pair
from datamodules.images.scenes import Scenes
from datamodules.images.spair import TEST_PAIRS
from datamodules.pairs import PairDataModule
from sdprobe.backbones import FrozenSD
from sdprobe.estimators.matching import best, cosines
from sdprobe.runs.measurement import peak_memory
from sdprobe.tokens.batch import GridBatch
from sdprobe.tokens.geometry import Placement
from sdprobe.tokens.groups import token_groups

LAYER, SHAPE, SIZE = "up_1", (1280, 48, 48), 768
PARTS, FEW, BUDGETS = 12, 128, (0.0, 0.05, 0.1, 2.0)
GRID = SHAPE[0] * SHAPE[1] * SHAPE[2] * 2 / 2**20  # MiB


class NumberedPairs(Scenes):
    """Pairs without pictures: in every category ordered pairs of its images, 7 or 8 of 12 points each, 7.2 on average."""

    resize, box, image_reach = "pad", "object", False

    def __init__(self, sizes: Sequence[tuple[int, int]]) -> None:
        """``sizes``: images and pairs of every category."""
        super().__init__(SIZE, sum(images for images, _ in sizes))
        spread = torch.rand(len(self), PARTS, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        self.points = [[(x, y) for x, y in spots] for spots in (spread * SIZE).tolist()]
        self.all: list[Pair] = []
        first = 0
        for number, (images, pairs) in enumerate(sizes):
            ordered = islice(permutations(range(first, first + images), 2), pairs)
            self.all += [self._pair(*ends, f"category {number:02d}", len(self.all) + k) for k, ends in enumerate(ordered)]
            first += images

    def pairs(self, split: str) -> Sequence[Pair]:
        return self.all if split == "test" else ()

    def picture_size(self, index: int) -> tuple[int, int]:
        return SIZE, SIZE

    def placement(self, index: int) -> Placement:
        return Placement((1.0, 1.0), (0.0, 0.0))

    def _pair(self, source: int, target: int, category: str, number: int) -> Pair:
        parts = [(number + k) % PARTS for k in range(8 if number % 9 < 2 else 7)]
        first, second = (tuple(self.points[index][part] for part in parts) for index in (source, target))
        return Pair(source, target, category, tuple(map(str, parts)), first, second, (0.0, 0.0, float(SIZE), float(SIZE)))


class StandIn(PairDataModule):
    """A data module without latents and U-Net."""

    def __init__(self, images: NumberedPairs, budget: float, cache: str) -> None:
        backbone = FrozenSD.from_pretrained("tiny", device="cpu")
        super().__init__(images, backbone, LAYER, head="none", activation_budget=budget, cache_dir=cache)
        self.shapes = {LAYER: SHAPE}
        self.noise = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0)).bfloat16()

    def _stream(self, prompt: str, indices: Sequence[int]) -> Iterator[GridBatch]:
        for start in range(0, len(indices), self.stream.batch_size):
            chunk = list(indices[start : start + self.stream.batch_size])
            grid = torch.stack([self.noise.roll(7919 * index) for index in chunk])
            image = torch.tensor(chunk)
            yield GridBatch({LAYER: grid}, {LAYER: token_groups(grid)}, image, image)


def sizes(images: int) -> list[tuple[int, int]]:
    """(images, pairs) of SPair-71k's test categories: the fewest images with so many pairs, until ``images`` are used."""
    counts: list[tuple[int, int]] = []
    for pairs in TEST_PAIRS.values():
        fewest = next(k for k in range(pairs) if k * (k - 1) >= pairs)
        taken = min(fewest, images - sum(used for used, _ in counts))
        counts.append((taken, min(pairs, taken * (taken - 1))))
    return [count for count in counts if count[1]]


def measured(images: int, budget: float) -> dict[str, float]:
    """Match every keypoint in this process; peak memory of the process in MiB."""
    torch.set_num_threads(1)
    parts = sizes(images)
    with tempfile.TemporaryDirectory() as cache, torch.no_grad():
        data = StandIn(NumberedPairs(parts), budget, cache)
        before, found = resident(), 0
        for batch in data.test_dataloader():
            found += len(best(cosines(batch.source[LAYER], batch.target[LAYER])))
    kept = min(budget * 1024 // GRID, max(count for count, _ in parts)) * GRID
    return {"images": sum(i for i, _ in parts), "pairs": sum(p for _, p in parts), "keypoints": found, "cached": kept,
            "before": before, "peak": resident()}  # fmt: skip


def resident() -> float:
    """Peak memory of this process in MiB."""
    return peak_memory(torch.device("cpu")) / 2**20


def row(images: int, budget: float) -> dict[str, float]:
    """:func:`measured` in a process of its own."""
    command = [sys.executable, "-m", "tools.benchmarks.pair_memory", "--images", str(images), "--budget", str(budget)]
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": str(2**20)}  # else glibc's heap keeps and fragments grids
    out = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment).stdout
    values: dict[str, float] = json.loads(out.splitlines()[-1])
    return values


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a Markdown table, or with both options one measurement."""
    parser = argparse.ArgumentParser(prog="python -m tools.benchmarks.pair_memory", description=main.__doc__)
    parser.add_argument("--images", type=int, help="use the first images of SPair-71k's test pairs")
    parser.add_argument("--budget", type=float, help="GiB of cached target grids")
    options = parser.parse_args(arguments)
    if options.images is not None and options.budget is not None:
        sys.stdout.write(json.dumps(measured(options.images, options.budget)) + "\n")
        return
    console = Console(width=160)
    console.print(
        "| images | pairs | keypoints | activation_budget, GiB | cached grids, MiB | peak, MiB | peak − cached, MiB |"
    )
    console.print("|---|---|---|---|---|---|---|")
    for images, budget in [(FEW, 0.0), *((480, budget) for budget in BUDGETS)]:
        values = row(images, budget)
        whole = " | ".join(f"{values[name]:,.0f}" for name in ("images", "pairs", "keypoints"))
        ends = " | ".join(f"{value:,.0f}" for value in (values["cached"], values["peak"], values["peak"] - values["cached"]))
        console.print(f"| {whole} | {budget} | {ends} |")


if __name__ == "__main__":
    main()
