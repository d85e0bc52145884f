"""What runs have in common: those that differ by the seed alone are one curve, any others have names of their own."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from reports.run import Run

Tasks = Mapping[str, Sequence[Run]]
Read = Callable[[Run], Any]


def mitigation(run: Run) -> str | None:
    """A run's chain, ``compared`` where layers stand beside their variants, None without a mitigation."""
    return "compared" if len(run.meta.get("mitigations") or {}) > 1 else run.chain or None


def fingerprint(run: Run) -> str | None:
    """The first eight digits of the digest of a run's images."""
    return str(run.meta["dataset_fingerprint"])[:8] if run.meta.get("dataset_fingerprint") else None


def settings(run: Run) -> str:
    """The first eight digits of the digest of a run's settings, but those it is a point of a curve by."""
    return str(run.meta.get("settings_hash", run.meta.get("config_hash")))[:8]


def _meta(name: str) -> Read:
    return lambda run: run.meta.get(name)


SHARED: dict[str, Read] = {
    "mitigation": mitigation,
    "control": _meta("control"),
    "size": _meta("image_size"),
    "noise": _meta("noise"),
    "padding": _meta("padding"),
    "precision": _meta("precision"),
    "VAE input": _meta("vae_input"),
    "posterior": _meta("posterior"),
    "scaled again": _meta("scaled_again"),
    "prompt": _meta("prompt"),
    "concatenated": lambda run: " + ".join(run.meta.get("concatenated") or ()) or None,
}
OWN: dict[str, Read] = {
    "probe": lambda run: run.kind,
    "solver": lambda run: None if "train_steps" not in run.meta else "trained" if run.meta["train_steps"] else "closed form",
}
# a seed may draw other images, so these tell runs apart only where one seed has two of them
HIDDEN: dict[str, Read] = {"images": fingerprint, "settings": settings}


def names(tasks: Tasks) -> dict[int, str]:
    """``id(run)`` → checkpoint and those conditions in which runs of the checkpoint differ.

    A condition that differs within one task is named in all, so that tasks still meet under one name; the probe and its solver
    are a task's own. A chain of mitigations is always named. Where runs of one seed, timestep and layer remain under one name,
    their images or settings are named.
    """
    every = [run for runs in tasks.values() for run in runs]
    short = checkpoints(every)
    named = {id(run): short[id(run)] for run in every}
    for label, read in SHARED.items():
        differing = {name for runs in tasks.values() for name in _several(runs, short, read)}
        differing |= {short[id(run)] for run in every if read is mitigation and run.chain}
        _append(named, [run for run in every if short[id(run)] in differing], label, read)
    for runs in tasks.values():
        for label, read in OWN.items():
            differing = _several(runs, short, read)
            _append(named, [run for run in runs if short[id(run)] in differing], label, read)
        for label, read in HIDDEN.items():
            differing = _several_of_a_seed(runs, named, read)
            _append(named, [run for run in runs if named[id(run)] in differing], label, read)
    return named


def checkpoints(runs: Sequence[Run]) -> dict[int, str]:
    """``id(run)`` → network, by its path where two networks end alike, and its weights where they are not its own."""
    count = Counter(Path(model).name for model in {str(run.meta["model"]) for run in runs})
    found = {}
    for run in runs:
        path = str(run.meta["model"])
        name = Path(path).name if count[Path(path).name] == 1 else path
        found[id(run)] = name if run.meta["weights"] == "stored" else f"{name}, {run.meta['weights']}"
    return found


def _several(runs: Iterable[Run], named: dict[int, str], read: Read) -> set[str]:
    """Names whose runs differ in a condition."""
    values = defaultdict(set)
    for run in runs:
        values[named[id(run)]].add(read(run))
    return {name for name, found in values.items() if len(found) > 1}


def _several_of_a_seed(runs: Iterable[Run], named: dict[int, str], read: Read) -> set[str]:
    """Names under which one seed has several values of a condition at one timestep and layer."""
    values = defaultdict(set)
    for run in runs:
        for layer in run.bases:
            values[named[id(run)], run.meta["timestep"], run.meta.get("seed"), layer].add(read(run))
    return {cell[0] for cell, found in values.items() if len(found) > 1}


def _append(named: dict[int, str], runs: Iterable[Run], label: str, read: Read) -> None:
    for run in runs:
        value = read(run)
        named[id(run)] += f", {label} {'none' if value is None else value}"
