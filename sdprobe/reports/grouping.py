"""Groups runs that belong to one curve, one table of mitigations or one set of controls, and names the groups.

A run's name is its network and the conditions in which runs of that network differ. Runs of the same name form a group. Curves,
tables and sets of controls differ in which conditions count.
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
OWN_TIMESTEP = "shared_261"  # this control sets its own timestep and joins the group whatever the others' timestep is


def meta(name: str) -> Read:
    """A setting of a run."""
    return lambda run: run.meta.get(name)


def mitigation(run: Run) -> str | None:
    """A run's chain of mitigations, ``compared`` if layers are compared with their variants, None without a mitigation."""
    return "compared" if len(run.meta.get("mitigations") or {}) > 1 else run.chain or None


def fingerprint(run: Run) -> str | None:
    """The first eight digits of the digest of a run's images."""
    return str(run.meta["dataset_fingerprint"])[:8] if run.meta.get("dataset_fingerprint") else None


def settings(run: Run) -> str:
    """The first eight digits of the digest of a run's settings without layers, timestep and seed."""
    return str(run.meta.get("settings_hash", run.meta.get("config_hash")))[:8]


# label of a condition in names → its value in a run
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
# conditions of curves: seeds are averaged, timesteps are points of a curve
SHARED = (
    "mitigation", "control", "size", "noise", "padding", "precision", "VAE input", "posterior", "scaled again", "prompt",
    "concatenated",
)  # fmt: skip
OWN = ("probe", "solver")
HIDDEN = ("images", "settings")  # may depend on the seed, so they are named only if one seed has two values
CELLS = ("seed", "size", "precision", "timestep")
VARIANTS = ("seed", "noise", "padding", "size", "precision", "VAE input", "posterior")  # the timestep is part of the setting


def names(tasks: Mapping[str, Sequence[Run]]) -> Names:
    """Name of every run as a curve.

    A condition that differs within one task is named in all tasks, so that names agree between tasks. Probe and solver are
    named within a task only. A chain of mitigations is always named. If several runs of one seed, timestep and layer still
    share a name, their images or settings are added.
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
    """Network of every run: its last path component, or its path if that is ambiguous; and its weights unless stored."""
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
    """Append to names those conditions in which runs of one short name differ."""
    for label in labels:
        differing = _differing(runs, short, label)
        _append(named, [run for run in runs if short[id(run)] in differing], label)
    return named


def _append(named: Names, runs: Iterable[Run], label: str) -> None:
    for run in runs:
        value = CONDITIONS[label](run)
        named[id(run)] += f", {label} {'none' if value is None else value}"


def _groups(runs: Sequence[Run], short: Names, labels: Sequence[str]) -> dict[str, list[Run]]:
    """Name → the runs that agree in these conditions and in their short name."""
    named = _append_differing(dict(short), runs, labels, short)
    groups: dict[str, list[Run]] = defaultdict(list)
    for run in runs:
        groups[named[id(run)]].append(run)
    return groups


def control_groups(runs: Sequence[Run]) -> dict[str, dict[str, Run]]:
    """Name → control → its run, of complete runs of ``probe=controls``.

    Controls of a group share model, seed, image size, precision and timestep. A control that sets its own timestep joins every
    group that agrees otherwise. Of two runs of one control the later counts, and a warning names the other.
    """
    usable = [run for run in runs if run.meta.get("control") and run.meta["complete"] and "photos" in run.maps]
    leading = [run for run in usable if run.meta["control"] != OWN_TIMESTEP]
    leading += [run for run in usable if not any(_belongs(run, other) for other in leading)]
    groups = _groups(leading, {id(run): str(run.meta["model"]) for run in leading}, CELLS)
    return {name: _cells([run for run in usable if _belongs(run, group[0])], name) for name, group in groups.items()}


def _belongs(run: Run, other: Run) -> bool:
    """Whether two controls belong to one group."""
    labels = CELLS[:-1] if run.meta["control"] == OWN_TIMESTEP else CELLS
    return run.meta["model"] == other.meta["model"] and all(
        CONDITIONS[label](run) == CONDITIONS[label](other) for label in labels
    )


def _cells(runs: Sequence[Run], name: str) -> dict[str, Run]:
    found: dict[str, Run] = {}
    for run in runs:
        cell = str(run.meta["control"])
        if cell in found:
            log.warning("Two runs of the control '%s' of %s: %s is left out.", cell, name, found[cell].folder)
        found[cell] = run
    return found


def mitigation_groups(runs: Iterable[Run]) -> dict[str, list[Run]]:
    """Name → runs of one network, timestep and conditions, in which every probe has one data set and one solver.

    A probe with two data sets or solvers makes two groups, and the runs of unambiguous probes join both. If several probes are
    ambiguous, each group contains one of them. Runs without variants belong to no group.
    """
    compared = [run for run in runs if len(run.bases) < len(run.layers)]
    return {
        ", ".join(filter(None, (name, which))): each
        for name, group in _groups(compared, {id(run): run.setting for run in compared}, VARIANTS).items()
        for which, each in _by_measurement(group).items()
    }


def _by_measurement(runs: list[Run]) -> dict[str, list[Run]]:
    """Suffix of the group's name (empty if there is only one group) → its runs."""
    kinds: dict[str, dict[tuple[Any, ...], list[Run]]] = defaultdict(lambda: defaultdict(list))
    for run in runs:
        images = tuple(sorted((run.meta.get("images") or {}).items()))
        # training steps distinguish a trained probe from a closed-form one
        kinds[run.kind][run.meta.get("dataset_fingerprint"), images, bool(run.meta.get("train_steps"))].append(run)
    several = [kind for kind, each in kinds.items() if len(each) > 1]
    if not several:
        return {"": runs}
    single = [run for run in runs if run.kind not in several]
    return {f"{kind} of {each[0].folder}": [*single, *each] for kind in several for each in kinds[kind].values()}
