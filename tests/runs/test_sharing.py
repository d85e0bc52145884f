"""Jobs of one process share networks: they are loaded once, no job changes them, and they give the numbers of jobs alone."""

import gc
import itertools
import weakref
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from torch import nn

from sdprobe import FrozenSD
from sdprobe.backbones import pool
from sdprobe.backbones.pool import Pool
from sdprobe.backbones.random_pipeline import random_pipeline
from sdprobe.backbones.saving import save_folder
from sdprobe.backbones.weights import weight_hash
from sdprobe.runs.cli import UserError
from sdprobe.runs.measurement import Measurement
from sdprobe.runs.record import unpacked
from sdprobe.utilities.errors import InputError
from tests.runs import forks

SMALL = [
    "backbone=tiny", "images.size=128", "images.limit=12", "block=up_0", "twins=1", "logger=none", "device=cpu",
    "trainer.max_epochs=4",
]  # fmt: skip


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> Iterator[Pool]:
    """An empty pool in place of that of the process."""
    monkeypatch.setattr(pool, "_PROCESS", Pool(2**30))
    yield pool._PROCESS
    pool._PROCESS.clear()


def load(**settings: Any) -> FrozenSD:
    with pool.shared():
        return FrozenSD.from_pretrained("tiny", device="cpu", **settings)


def state(sd: FrozenSD) -> tuple[Any, ...]:
    """Everything about the networks that could make another job compute something else."""
    networks: list[nn.Module] = [sd.unet.unet, sd.encoder.vae, *sd.prompts.encoders]
    modules = [module for network in networks for module in network.modules()]
    return (
        [weight_hash(network) for network in networks],
        [tensor.data_ptr() for network in networks for tensor in network.state_dict().values()],
        [module.padding_mode for module in modules if isinstance(module, nn.Conv2d)],
        [(module.conv.padding, module.padding) for module in modules if type(module).__name__ == "Downsample2D"],
        sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in modules),
        any(module.training for module in modules),
        any(parameter.requires_grad for network in networks for parameter in network.parameters()),
    )


# --- the pool ----------------------------------------------------------------------------------------------------------


def test_a_part_is_built_once_and_only_for_its_checkpoint() -> None:
    parts, built = Pool(limit=0), list[str]()
    for checkpoint, key in (("a", "unet"), ("a", "unet"), ("a", "vae"), ("b", "unet"), ("a", "unet")):
        parts.turn_to(checkpoint)
        assert parts.part(key, lambda name=f"{checkpoint}/{key}": built.append(name) or name) == f"{checkpoint}/{key}"  # type: ignore[misc]
    assert built == ["a/unet", "a/vae", "b/unet", "a/unet"]


def test_the_networks_of_a_checkpoint_are_gone_before_those_of_the_next_are_loaded() -> None:
    parts = Pool(limit=0)
    parts.turn_to("a")
    network = parts.part("unet", lambda: nn.Linear(4, 4))
    holder = {"network": network}
    holder["itself"] = holder  # type: ignore[assignment]  # as trainer, probe and data hold each other
    gone = weakref.ref(network)
    del network, holder
    gc.disable()
    try:
        parts.turn_to("b")
        assert gone() is None
    finally:
        gc.enable()


def test_spare_networks_are_kept_up_to_a_limit_and_the_first_always() -> None:
    size = 4 * (16 * 16 + 16)
    parts = Pool(limit=2.5 * size)
    networks = [parts.part(seed, lambda: (nn.Linear(16, 16), "hash"), spare=seed > 0) for seed in range(4)]
    again = [parts.part(seed, lambda: (nn.Linear(16, 16), "hash"), spare=seed > 0) for seed in range(4)]
    assert [one is other for one, other in zip(networks, again, strict=True)] == [True, True, False, False]
    small = Pool(limit=0)
    assert small.part("stored", lambda: nn.Linear(1, 1)) is small.part("stored", lambda: nn.Linear(1, 1))


# --- checkpoints -------------------------------------------------------------------------------------------------------


def test_what_determines_a_network_decides_whether_it_is_shared(kept: Pool) -> None:
    first = load()
    for settings in ({}, {"noise": "shared"}, {"posterior": "sample"}, {"padding": "circular"}, {"vae_input": "unit"}):
        other = load(**settings)  # type: ignore[arg-type]
        assert other.unet.unet is first.unet.unet and other.encoder.vae is first.encoder.vae, settings
        assert other.prompts is first.prompts and other.passes == {"unet": 0, "encoder": 0}
    random = [load(weights="random", weights_seed=seed) for seed in (1, 2, 1)]
    assert random[0].unet.unet is random[2].unet.unet is not random[1].unet.unet
    assert len({sd.unet_hash for sd in (first, *random)}) == 3
    assert all(sd.encoder.vae is first.encoder.vae for sd in random), "only the U-Net has other weights"
    assert load(weights="shuffled").unet.unet is not load().unet.unet is first.unet.unet
    assert FrozenSD.from_pretrained("tiny", device="cpu").unet.unet is not first.unet.unet, "a user's own call shares nothing"
    half = load(precision="bf16")
    assert half.dtype == torch.bfloat16 and half.encoder.vae.dtype == torch.bfloat16
    assert load().unet.unet is not first.unet.unet, "another precision has been loaded meanwhile"


def test_a_changed_file_is_another_checkpoint(kept: Pool, tmp_path: Path) -> None:
    save_folder(random_pipeline("tiny", 3), tmp_path)

    def load_folder() -> FrozenSD:
        with pool.shared():
            return FrozenSD.from_pretrained(str(tmp_path), device="cpu")

    first = load_folder()
    assert load_folder().unet.unet is first.unet.unet
    save_folder(random_pipeline("tiny", 4), tmp_path)
    second = load_folder()
    assert second.unet.unet is not first.unet.unet and second.unet_hash != first.unet_hash
    assert second.unet_hash == FrozenSD.from_pretrained(str(tmp_path), device="cpu").unet_hash


def test_loading_draws_no_random_numbers(kept: Pool) -> None:
    """A job that finds its networks loaded would otherwise initialise its heads otherwise."""
    before = torch.get_rng_state()
    load(weights="random")
    load(weights="shuffled")
    assert torch.equal(before, torch.get_rng_state())


# --- what jobs do to networks ------------------------------------------------------------------------------------------


def test_a_network_that_others_have_used_is_what_it_was(kept: Pool) -> None:
    images, layers = torch.rand(2, 3, 128, 128, generator=torch.Generator().manual_seed(0)), ["mid", "up_1"]
    first = load()
    expected, before = first.activations(images, layers), state(first)  # transformers adds its hooks at the first use
    others = [load(padding="circular", noise="rolled"), load(weights="random"), load(posterior="sample")]
    for other in others:
        other.activations(images, layers, with_grad=True)
        with other.padded("reflect"):
            other.activations(images, layers, prompt="a cat")
        with pytest.raises(InputError), other.padded("replicate"):
            other.activations(images * 9, layers)  # fails inside
        other.to("cpu")
    again = load()
    assert state(again) == before
    found = again.activations(images, layers)
    assert all(torch.equal(found[layer], expected[layer]) for layer in layers)
    alone = FrozenSD.from_pretrained("tiny", device="cpu").activations(images, layers)
    assert all(torch.equal(found[layer], alone[layer]) for layer in layers)


FAILS = ["block=no_such_layer"]
JOBS = [
    ["mitigation=padding_swap", "probe.solver=closed_form"],
    ["backbone.weights=random", "backbone.padding=reflect", "probe.solver=closed_form"],
    ["mitigation=shift_anova", "probe.solver=closed_form"],
    ["probe=depth", "mitigation=channel_discard"],
    FAILS,
    ["timestep=[10,261]"],
    ["backbone.padding=circular"],
]


@pytest.mark.slow
def test_no_job_changes_what_the_next_gets(kept: Pool, launch) -> None:
    launch()
    before = state(load())
    for job in JOBS:
        with pytest.raises(UserError) if job == FAILS else nullcontext():
            launch(*job)
        assert state(load()) == before, job


def test_after_a_run_nothing_but_the_pool_holds_the_networks(kept: Pool, configure) -> None:
    measurement = Measurement(configure("probe.solver=closed_form"))
    measurement.run()
    measurement.release()
    gone = weakref.ref(measurement.data.backbone.unet.unet)
    assert gone() is load().unet.unet
    del measurement
    kept.turn_to("another checkpoint")
    assert gone() is None


# --- numbers -----------------------------------------------------------------------------------------------------------


READERS: dict[str, Any] = {
    ".npz": lambda file: dict(np.load(file)),
    ".safetensors": load_file,
    ".parquet": lambda file: unpacked(file.read_bytes()),
}


def arrays(folder: Path) -> dict[tuple[Path, str], Any]:
    """Every array that a run has written, by file and name."""
    files = [file for file in folder.rglob("*") if file.suffix in READERS]
    return {(file.relative_to(folder), name): array for file in files for name, array in READERS[file.suffix](file).items()}


def same(one: Path, other: Path) -> None:
    """Two runs have equal numbers, to the last bit."""
    assert forks.numbers(one) == forks.numbers(other)
    found, expected = arrays(one), arrays(other)
    assert found and found.keys() == expected.keys()
    for key, array in found.items():
        assert array.dtype == expected[key].dtype, key
        np.testing.assert_array_equal(array, expected[key], str(key))


def compare(jobs: dict[int, list[str]], sweep: list[str], monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Jobs of a sweep in one process, and the same jobs alone in processes that share nothing."""
    forks.prepare(monkeypatch)
    monkeypatch.setattr("sdprobe.runs.run.draw", lambda finished, folder, form: [])
    monkeypatch.setattr(pool, "_PROCESS", Pool(2**30))  # each process is forked with an empty one
    code, said = forks.command(
        "-m", *SMALL, *sweep, f"cache_dir={folder / 'a'}", f"hydra.sweep.dir={folder / 'sweep'}", log=folder / "log"
    )
    assert code == 0, said
    for number, job in jobs.items():
        places = [f"cache_dir={folder / f'b{number}'}", f"hydra.run.dir={folder / f'alone{number}'}"]
        code, said = forks.command(*SMALL, *job, *places, log=folder / "log")
        assert code == 0, said
        same(folder / "sweep" / str(number), folder / f"alone{number}")


def test_jobs_of_one_process_have_the_numbers_of_jobs_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    compare({1: ["backbone.padding=zeros"]}, ["backbone.padding=circular,zeros"], monkeypatch, tmp_path)


@pytest.mark.slow
def test_jobs_of_every_kind_in_one_process_have_the_numbers_of_jobs_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    kinds = itertools.product(("position", "correspondence", "depth"), ("padding_swap", "none"))
    limit = "images.limit=48"
    jobs = {number: [limit, f"probe={kind[0]}", f"mitigation={kind[1]}"] for number, kind in enumerate(kinds)}
    compare(jobs, [limit, "probe=position,correspondence,depth", "mitigation=padding_swap,none"], monkeypatch, tmp_path)
