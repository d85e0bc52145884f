"""Which runs belong together: one curve, one table of mitigations, one group of control cells; and what tells runs apart.

Runs have a name: their network, and those conditions in which runs of the network differ. Runs of one name are a group. What
makes a curve, a table or a set of cells differs in the conditions that count.
"""

import logging
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sdprobe.reports.run import Run

Read = Callable[[Run], Any]
Names = dict[int, str]  # id(run) → name
log = logging.getLogger(__name__)
OWN_TIMESTEP = "shared_261"  # the cell that sets a timestep, and goes with the others' whatever theirs is


def meta(name: str) -> Read:
    """A setting of a run."""
    return lambda run: run.meta.get(name)


def mitigation(run: Run) -> str | None:
    """A run's chain, ``compared`` where layers stand beside their variants, None without a mitigation."""
    return "compared" if len(run.meta.get("mitigations") or {}) > 1 else run.chain or None


def fingerprint(run: Run) -> str | None:
    """The first eight digits of the digest of a run's images."""
    return str(run.meta["dataset_fingerprint"])[:8] if run.meta.get("dataset_fingerprint") else None


def settings(run: Run) -> str:
    """The first eight digits of the digest of a run's settings, but those it is a point of a curve by."""
    return str(run.meta.get("settings_hash", run.meta.get("config_hash")))[:8]


# how a name calls a condition → what it is in a run
CONDITIONS: dict[str, Read] = {
    "mitigation": mitigation,
    "control": meta("control"),
    "seed": meta("seed"),
    "size": meta("image_size"),
    "noise": meta("noise"),
    "padding": meta("padding"),
    "precision": meta("precision"),
    "VAE input": meta("vae_input"),
    "posterior": meta("posterior"),
    "scaled again": meta("scaled_again"),
    "prompt": meta("prompt"),
    "concatenated": lambda run: " + ".join(run.meta.get("concatenated") or ()) or None,
    "timestep": meta("timestep"),
    "probe": lambda run: run.kind,
    "solver": lambda run: None if "train_steps" not in run.meta else "trained" if run.meta["train_steps"] else "closed form",
    "images": fingerprint,
    "settings": settings,
}
# of curves: a seed is a sample, a timestep a point
SHARED = (
    "mitigation", "control", "size", "noise", "padding", "precision", "VAE input", "posterior", "scaled again", "prompt",
    "concatenated",
)  # fmt: skip
OWN = ("probe", "solver")
HIDDEN = ("images", "settings")  # a seed may draw others, so these tell runs apart only where one seed has two of them
CELLS = ("seed", "size", "precision", "timestep")
VARIANTS = ("seed", "noise", "padding", "size", "precision", "VAE input", "posterior")  # the timestep stands in the setting


def names(tasks: Mapping[str, Sequence[Run]]) -> Names:
    """Name of every run as a curve.

    A condition that differs within one task is named in all, so that tasks still meet under one name; the probe and its solver
    are a task's own. A chain of mitigations is always named. Where runs of one seed, timestep and layer remain under one name,
    their images or settings are named.
    """
    every = [run for runs in tasks.values() for run in runs]
    short = checkpoints(every)
    named = dict(short)
    for label in SHARED:
        differing = {name for runs in tasks.values() for name in _differing(runs, short, label)}
        differing |= {short[id(run)] for run in every if label == "mitigation" and run.chain}
        _append(named, [run for run in every if short[id(run)] in differing], label)
    for runs in tasks.values():
        _append_differing(named, runs, OWN, short)
        for label in HIDDEN:
            differing = _differing_of_a_seed(runs, named, label)
            _append(named, [run for run in runs if named[id(run)] in differing], label)
    return named


def checkpoints(runs: Sequence[Run]) -> Names:
    """Network of every run, by its path where two networks end alike, and its weights where they are not its own."""
    count = Counter(Path(model).name for model in {str(run.meta["model"]) for run in runs})
    found = {}
    for run in runs:
        path = str(run.meta["model"])
        name = Path(path).name if count[Path(path).name] == 1 else path
        found[id(run)] = name if run.meta["weights"] == "stored" else f"{name}, {run.meta['weights']}"
    return found


def _differing(runs: Iterable[Run], named: Names, label: str) -> set[str]:
    """Names whose runs differ in a condition."""
    values = defaultdict(set)
    for run in runs:
        values[named[id(run)]].add(CONDITIONS[label](run))
    return {name for name, found in values.items() if len(found) > 1}


def _differing_of_a_seed(runs: Iterable[Run], named: Names, label: str) -> set[str]:
    """Names under which one seed has several values of a condition at one timestep and layer."""
    values = defaultdict(set)
    for run in runs:
        for layer in run.bases:
            values[named[id(run)], run.meta["timestep"], run.meta.get("seed"), layer].add(CONDITIONS[label](run))
    return {cell[0] for cell, found in values.items() if len(found) > 1}


def _append_differing(named: Names, runs: Sequence[Run], labels: Iterable[str], short: Names) -> Names:
    """Names, with those conditions in which runs of one short name differ."""
    for label in labels:
        differing = _differing(runs, short, label)
        _append(named, [run for run in runs if short[id(run)] in differing], label)
    return named


def _append(named: Names, runs: Iterable[Run], label: str) -> None:
    for run in runs:
        value = CONDITIONS[label](run)
        named[id(run)] += f", {label} {'none' if value is None else value}"


def _groups(runs: Sequence[Run], short: Names, labels: Sequence[str]) -> dict[str, list[Run]]:
    """Name → the runs that agree in these conditions, and in what their short name says."""
    named = _append_differing(dict(short), runs, labels, short)
    groups: dict[str, list[Run]] = defaultdict(list)
    for run in runs:
        groups[named[id(run)]].append(run)
    return groups


def control_groups(runs: Sequence[Run]) -> dict[str, dict[str, Run]]:
    """Name → cell → its run: complete ones of ``probe=controls`` with a ``control``.

    Cells of a group have model, seed, image size, precision and timestep in common. A cell with a timestep of its own joins
    every group that is alike otherwise. Of two runs of one cell the later counts, and a warning names the other.
    """
    usable = [run for run in runs if run.meta.get("control") and run.meta["complete"] and "photos" in run.maps]
    leading = [run for run in usable if run.meta["control"] != OWN_TIMESTEP]
    leading += [run for run in usable if not any(_belongs(run, other) for other in leading)]
    groups = _groups(leading, {id(run): str(run.meta["model"]) for run in leading}, CELLS)
    return {name: _cells([run for run in usable if _belongs(run, group[0])], name) for name, group in groups.items()}


def _belongs(run: Run, other: Run) -> bool:
    """Whether a cell is one of another's group."""
    labels = CELLS[:-1] if run.meta["control"] == OWN_TIMESTEP else CELLS
    return run.meta["model"] == other.meta["model"] and all(
        CONDITIONS[label](run) == CONDITIONS[label](other) for label in labels
    )


def _cells(runs: Sequence[Run], name: str) -> dict[str, Run]:
    found: dict[str, Run] = {}
    for run in runs:
        cell = str(run.meta["control"])
        if cell in found:
            log.warning("Two runs of the cell '%s' of %s: %s is left out.", cell, name, found[cell].folder)
        found[cell] = run
    return found


def mitigation_groups(runs: Iterable[Run]) -> dict[str, list[Run]]:
    """Name → runs of one network, timestep and conditions, in which every probe has one data set and one solver.

    Two data sets or solvers of a probe make two groups, each with the runs of those probes that have only one. Where several
    probes have two, nothing says which go together: each group has one such probe. Runs without variants are in none.
    """
    compared = [run for run in runs if len(run.bases) < len(run.layers)]
    return {
        ", ".join(filter(None, (name, which))): each
        for name, group in _groups(compared, {id(run): run.setting for run in compared}, VARIANTS).items()
        for which, each in _by_measurement(group).items()
    }


def _by_measurement(runs: list[Run]) -> dict[str, list[Run]]:
    """What tells the group from others of its conditions (nothing where it is alone) → its runs."""
    kinds: dict[str, dict[tuple[Any, ...], list[Run]]] = defaultdict(lambda: defaultdict(list))
    for run in runs:
        images = tuple(sorted((run.meta.get("images") or {}).items()))
        # steps tell an iterated probe from one in closed form
        kinds[run.kind][run.meta.get("dataset_fingerprint"), images, bool(run.meta.get("train_steps"))].append(run)
    several = [kind for kind, each in kinds.items() if len(each) > 1]
    if not several:
        return {"": runs}
    single = [run for run in runs if run.kind not in several]
    return {f"{kind} of {each[0].folder}": [*single, *each] for kind in several for each in kinds[kind].values()}
