"""The rows of ``tools.benchmarks.extraction``; each is measured when it is requested."""

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import lightning

from datamodules.activations import ActivationDataModule
from datamodules.latents import LatentCache, LatentStore
from datamodules.stream import ActivationStream, Pass
from probes import PositionProbe
from sdprobe.backbones import FrozenSD
from sdprobe.backbones.precision import name_of
from sdprobe.tokens.mixing import CELLS, batches_per_pass
from tools.benchmarks.published_study import in_one_run, published
from tools.benchmarks.rivals import SEED, TIMESTEP, Sdhelper, disagreement, ours, require_equal
from tools.benchmarks.shaped import Pictures, write_pipeline
from tools.benchmarks.timing import Timed, in_turns, matrix_product, operations, times_faster
from tools.benchmarks.where import shares

FULL, NARROW = (1, 1), (5, 4)  # how many times narrower U-Net and VAE are than SD-1.5's
EXACT, HALF = 1e-4, 0.1  # relative distance of activations in fp32, and in bf16, whose VAE alone costs 2 %
LAYERS_APART = 9  # of the study's 45 layers, similarities are measured in every ninth


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    work: str
    measured: str
    target: str
    how: str


@dataclass(frozen=True)
class Scale:
    """Sizes of the benchmark."""

    narrower: tuple[int, int]
    size: int
    images: int
    rounds: int
    study_size: int
    study_images: int
    growth: tuple[int, int]

    def with_(self, **changes: Any) -> "Scale":
        """The same with changes."""
        return replace(self, **changes)

    @property
    def shape(self) -> str:
        """The sizes as text."""
        width = "full width" if self.narrower == FULL else f"U-Net {self.narrower[0]} times narrower"
        return f"SD-1.5 shape, {width}, {self.size} px, {self.images} images"


def stream_of(sd: FrozenSD, pictures: Pictures, block: str, cache: Path, batch: int = 8) -> ActivationStream:
    """Activations of pictures whose latents are in the cache afterwards."""
    store = LatentStore(pictures, sd.encoder, LatentCache(cache), SEED, batch, num_workers=0)
    store.prepare(range(len(pictures)))
    return ActivationStream(sd, store, Pass(sd.unet.resolve(block), (TIMESTEP,), SEED), batch)


def drain(stream: ActivationStream) -> None:
    """All batches of a stream, one after the other."""
    for _ in stream(range(len(stream.store.images))):
        pass


def activations(scale: Scale, folder: Path) -> Iterator[Row]:
    """Activations of 45 layers and of mid, with and without cached latents, beside sdhelper; then the share of the limit."""
    pipeline = write_pipeline(folder / f"{scale.narrower}", scale.narrower)
    pictures, rival = Pictures(scale.images, scale.size), Sdhelper(pipeline)
    sd = ours(pipeline, scale.images)
    names = sd.published_names(sd.unet.resolve("loos2025"))
    half, full = _checked(sd, rival, pictures, names, pipeline)
    every, mid = (stream_of(sd, pictures, block, folder / "cache", scale.images) for block in ("loos2025", "mid"))
    timed = in_turns(
        {
            "theirs": lambda: rival.extract(pictures.pictures, list(names.values())),
            "ours": lambda: sd.activations(pictures.pixels(), "loos2025", TIMESTEP, SEED),
            "ours, cached": lambda: drain(every),
            "theirs, mid": lambda: rival.extract(pictures.pictures, ["mid_block"]),
            "ours, mid": lambda: drain(mid),
            "product": matrix_product(),
        },
        scale.rounds,
    )
    checked = f"{scale.shape}; theirs fp32, ours {name_of(sd.dtype)}, equal to {half:.1g}; both in fp32 to {full:.0e}"
    yield _ratio("activations of 45 layers, nothing cached", timed, "theirs", "ours", 4, scale, checked)
    yield _ratio("the same, latents cached", timed, "theirs", "ours, cached", 12, scale, "latents read from disk")
    yield _ratio("mid only, latents cached", timed, "theirs, mid", "ours, mid", 30, scale, "early exit after mid")
    yield _limit(sd, every, timed, scale)


def heads(scale: Scale, folder: Path) -> Iterator[Row]:
    """What training the heads of all layers adds to an epoch that extracts."""
    pipeline = write_pipeline(folder / f"{scale.narrower}", scale.narrower)
    sd = FrozenSD.from_pretrained(str(pipeline))
    pictures = Pictures(10, scale.size)  # the smallest number that can be split
    data, resident = (
        ActivationDataModule(
            pictures, sd, "all", timestep=TIMESTEP, splits="loos2025", activation_budget=budget, cache_dir=str(folder / "cache")
        )
        for budget in (0, 2)
    )
    data.prepare_data()
    probe = PositionProbe(data.shapes, data.photos)
    once = batches_per_pass(len(data.split["train"]), [CELLS * CELLS], data.mixing_images, data.token_batch)

    def train(data: ActivationDataModule) -> None:
        trainer = lightning.Trainer(
            accelerator=sd.device.type, devices=1, max_epochs=1, limit_train_batches=once, limit_val_batches=0, logger=False,
            enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        )  # fmt: skip
        trainer.fit(probe, datamodule=data)

    def extract() -> None:
        for _ in data.stream(data.split["train"]):
            pass

    works = {"alone": extract, "trained": lambda: train(data), "heads": lambda: train(resident)}
    timed = in_turns(works, 3 * scale.rounds)  # more rounds: a small difference of two large times
    (wall, cpu), (own, _) = (times_faster(timed[name], timed["alone"]) for name in ("trained", "heads"))
    yield Row(
        f"{len(data.layers)} heads with two controls each, trained while extracting, an epoch that extracts",
        f"{100 * (wall - 1):+.0f} % over extraction ({100 * (cpu - 1):+.0f} % of processor time)",
        "≤ 15 %", f"{len(data.split['train'])} training images, 64 tokens of each and layer, Adam; an epoch of kept tokens, "
        f"without extraction, takes {100 * own:.0f} % of the extraction's time",
    )  # fmt: skip


def study(scale: Scale, folder: Path) -> Iterator[Row]:
    """The study by the published procedure and in one run."""
    pipeline = write_pipeline(folder / f"{NARROW}", NARROW)
    pictures = Pictures(scale.study_images, scale.study_size)
    sd, rival = ours(pipeline, len(pictures)), Sdhelper(pipeline)
    names = sd.published_names(sd.unet.resolve("loos2025"))
    mine = {solver: in_one_run(sd, pictures, solver, folder / solver) for solver in ("closed_form", "adam")}
    theirs = published(rival, pictures.pictures, names, LAYERS_APART)
    norms = max(disagreement(mine["adam"].norms[layer], theirs.norms[layer]) for layer in names)
    corners = max(abs(mine["adam"].corners[layer] - value) for layer, value in theirs.corners.items())
    for solver, result in mine.items():
        accuracy = sum(abs(result.accuracy[layer] - theirs.accuracy[layer]) for layer in names) / len(names)
        yield Row(
            f"the study: position ({solver}), token groups and norms over 45 layers",
            f"{theirs.seconds / result.seconds:.0f} × ({theirs.seconds:.0f} s, {result.seconds:.0f} s)",
            "≥ 40 ×",
            f"U-Net {NARROW[0]} times narrower, {scale.study_size} px, {len(pictures)} images; norms differ by {norms:.1g}, "
            f"corner similarity by {corners:.1g}, accuracy by {accuracy:.2g} on average; timed once; theirs rebuilt from its "
            f"description around sdhelper, similarities of every {LAYERS_APART}th layer timed and multiplied",
        )


def memory(scale: Scale, folder: Path) -> Iterator[Row]:
    """Peak memory of a process by number of images."""
    write_pipeline(folder / f"{NARROW}", NARROW)
    peaks = {who: [_peak(who, count, folder) for count in scale.growth] for who in ("ours", "theirs")}
    few, many = scale.growth
    grown = {who: f"{low:.2f} → {high:.2f} GiB ({100 * (high / low - 1):+.0f} %)" for who, (low, high) in peaks.items()}
    yield Row(
        f"peak memory from {few} to {many} images", f"ours {grown['ours']}, theirs {grown['theirs']}",
        "ours flat within 5 %; theirs grows",
        f"45 layers, U-Net {NARROW[0]} times narrower, 256 px; ours streams them, theirs returns them all; a process each that "
        "gives freed tensors back at once",
    )  # fmt: skip


def _checked(sd: FrozenSD, rival: Sdhelper, pictures: Pictures, names: dict[str, str], pipeline: Path) -> tuple[float, float]:
    """Distance of activations from those of sdhelper: all pictures in our precision, the first one in fp32."""
    theirs = rival.extract(pictures.pictures, list(names.values()))
    half = require_equal(sd.activations(pictures.pixels(), "loos2025", TIMESTEP, SEED), theirs, names, HALF)
    alone, first = rival.extract(pictures.pictures[:1], list(names.values())), pictures.pixels()[:1]
    return half, require_equal(ours(pipeline, 1, "fp32").activations(first, "loos2025", TIMESTEP, SEED), alone, names, EXACT)


def _peak(who: str, count: int, folder: Path) -> float:
    command = [sys.executable, "-m", "tools.benchmarks.peak", who, str(count), str(folder / f"{NARROW}"), str(folder / "peak")]
    # memory of live tensors, not memory that the allocator caches
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}
    process = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    return float(process.stdout.split()[-1])


def _ratio(work: str, timed: dict[str, Timed], slow: str, fast: str, target: int, scale: Scale, how: str) -> Row:
    wall, cpu = times_faster(timed[slow], timed[fast])
    rates = [scale.images / min(timed[name].wall) for name in (slow, fast)]
    measured = f"{wall:.1f} × ({cpu:.1f} × in processor time; {rates[0]:.2g} → {rates[1]:.2g} images/s)"
    return Row(work, measured, f"≥ {target} × sdhelper", how)


def _limit(sd: FrozenSD, stream: ActivationStream, timed: dict[str, Timed], scale: Scale) -> Row:
    """The share of the matrix-multiply rate of the same turns, and what the rest of the time is spent on."""
    counted = operations(lambda: drain(stream))
    # the median ratio of consecutive turns, as in the other rows
    ratio = times_faster(timed["ours, cached"], timed["product"])
    share = [counted / (2 * 4096**3) / value for value in ratio]
    rate = 2 * 4096**3 / min(timed["product"].wall) / 1e12
    return Row(
        "share of the bf16 matmul rate, 45 layers, latents cached",
        f"{100 * share[0]:.0f} % ({100 * share[1]:.0f} % in processor time) of {rate:.2f} TFLOP/s",
        "GPU only: ≥ 35 %",
        f"{counted / scale.images / 1e9:.0f} GFLOP per image; time: {shares(lambda: drain(stream))}",
    )
