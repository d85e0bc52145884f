"""Which runs belong together: one curve, one table of mitigations, one group of control cells; and what tells runs apart.

Runs that differ by the seed alone are one curve; any others have names of their own.
"""

import logging
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sdprobe.reports.run import Run

Tasks = Mapping[str, Sequence[Run]]
Read = Callable[[Run], Any]
OWN: dict[str, Read] = {
    "probe": lambda run: run.kind,
    "solver": lambda run: None if "train_steps" not in run.meta else "trained" if run.meta["train_steps"] else "closed form",
}
OWN_TIMESTEP = "shared_261"  # the cell that sets a timestep, and goes with the others' whatever theirs is
NAMED = {"model": "", "seed": "seed ", "image_size": "size ", "precision": "", "timestep": "timestep "}
log = logging.getLogger(__name__)
CONDITIONS = ("seed", "noise", "padding", "image_size", "precision", "vae_input", "posterior")


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


def control_groups(runs: Sequence[Run]) -> dict[str, dict[str, Run]]:
    """Title → cell → its run: complete ones of ``probe=controls`` with a ``control``.

    Cells of a group have model, seed, image size, precision and timestep in common; the title names the model, and what else
    differs between groups. A cell with a timestep of its own joins every group that is alike otherwise. Of two runs of one cell
    the later counts, and a warning names the other.
    """
    usable = [run for run in runs if run.meta.get("control") and run.meta["complete"] and "photos" in run.maps]
    keys = dict.fromkeys(_key(run) for run in usable if run.meta["control"] != OWN_TIMESTEP)
    keys |= dict.fromkeys(_key(run) for run in usable if not any(_belongs(run, key) for key in keys))
    varying = [i for i in range(1, len(NAMED)) if len({key[i] for key in keys}) > 1]
    groups: dict[str, dict[str, Run]] = {}
    for key in keys:
        texts = [f"{said}{value}" for said, value in zip(NAMED.values(), key, strict=True)]
        title = ", ".join(texts[i] for i in (0, *varying))
        groups[title] = _cells([run for run in usable if _belongs(run, key)], title)
    return groups


def _key(run: Run) -> tuple[Any, ...]:
    return tuple(run.meta.get(name) for name in NAMED)


def _belongs(run: Run, key: tuple[Any, ...]) -> bool:
    own = _key(run)
    return own == key or (run.meta["control"] == OWN_TIMESTEP and own[:-1] == key[:-1])


def _cells(runs: Sequence[Run], title: str) -> dict[str, Run]:
    found: dict[str, Run] = {}
    for run in runs:
        name = str(run.meta["control"])
        if name in found:
            log.warning("Two runs of the cell '%s' of %s: %s is left out.", name, title, found[name].folder)
        found[name] = run
    return found


def mitigation_groups(runs: Iterable[Run]) -> dict[str, list[Run]]:
    """Title → runs of one network, timestep and conditions, in which every probe has one data set and one solver.

    Two data sets or solvers of a probe make two groups, each with the runs of those probes that have only one. Where several
    probes have two, nothing says which go together: each group has one such probe. Runs without variants are in none.
    """
    settings: dict[tuple[Any, ...], list[Run]] = defaultdict(list)
    for run in runs:
        if len(run.bases) < len(run.layers):
            settings[run.setting, *(run.meta.get(name) for name in CONDITIONS)].append(run)
    groups: dict[str, list[Run]] = {}
    for setting, together in settings.items():
        title = ", ".join([setting[0], *_differing(setting, list(settings))])
        groups |= {", ".join(filter(None, (title, said))): each for said, each in _by_measurement(together).items()}
    return groups


def _differing(setting: tuple[Any, ...], every: list[tuple[Any, ...]]) -> list[str]:
    """What a setting's title needs besides network and timestep: conditions in which settings of the same two differ."""
    alike = [other for other in every if other[0] == setting[0]]
    return [
        f"{name.replace('_', ' ')} {setting[i]}"
        for i, name in enumerate(CONDITIONS, start=1)
        if len({other[i] for other in alike}) > 1
    ]


def _by_measurement(runs: list[Run]) -> dict[str, list[Run]]:
    """What tells the group from others of its setting (nothing where it is alone) → its runs."""
    ways: dict[str, dict[tuple[Any, ...], list[Run]]] = defaultdict(lambda: defaultdict(list))
    for run in runs:
        ways[run.kind][_way(run)].append(run)
    several = [kind for kind, each in ways.items() if len(each) > 1]
    if not several:
        return {"": runs}
    single = [run for run in runs if run.kind not in several]
    return {f"{kind} of {each[0].folder}": [*single, *each] for kind in several for each in ways[kind].values()}


def _way(run: Run) -> tuple[Any, ...]:
    """Data set and images per split; steps tell an iterated probe from one in closed form."""
    images = run.meta.get("images") or {}
    return run.meta.get("dataset_fingerprint"), tuple(sorted(images.items())), bool(run.meta.get("train_steps"))
