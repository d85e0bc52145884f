"""Groups runs that can be compared, and names groups and runs by the settings in which they differ.

A run has settings of three kinds. Those in :func:`measurement` say what was measured on which images: runs that differ in one
of them are not compared. Those in :func:`conditions` tell the curves of one figure apart. Seeds, and the images and splits that
a seed draws, tell repetitions apart, which are averaged.
"""

import logging
import re
import shlex
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdprobe.reports.filters import settings_of, where
from sdprobe.reports.run import Run
from sdprobe.utilities.errors import InputError

Conditions = Mapping[str, str]  # setting, as on the command line where it has one → value
Read = Callable[[Run], Conditions]
log = logging.getLogger(__name__)
OWN_TIMESTEP = "shared_261"  # this control sets its own timestep and joins the group whatever the others' timestep is
PLAIN = ("", "null", "stored", "encoded", "default", "stratified")  # values that a name leaves out
# what a name says instead of "<setting> <value>"
BARE = ("backbone", "images", "backbone.weights", "probe.solver")
# recorded in metrics.json under another name
RECORDED = {
    "control": "control", "prompt": "prompt", "timestep": "timestep", "backbone.noise": "noise", "backbone.padding": "padding",
    "backbone.position": "position", "backbone.text": "text",
    "backbone.vae_input": "vae_input", "backbone.posterior": "posterior", "backbone.scale_again": "scaled_again",
    "precision": "precision",
}  # fmt: skip
# settings of these sections change numbers, …
SECTIONS = ("probe", "backbone", "mitigation", "datamodule")
# … except for these, and those that are recorded, or belong to the images or the seed
WITHOUT_EFFECT = re.compile(
    r"backbone\.(path|variant|weights|weights_seed|device|precision|scale_again|prompt_cache|cache_dir)|probe\.pictured|.*\.seed|datamodule\.("
    r"batch_size|num_workers|activation_budget|cache_dir|compare|block|timestep|prompt|splits|sampling|labels_side)"
)
SPLITS = ("datamodule.splits", "datamodule.sampling", "datamodule.margin")
SEED_OF = ("images.seed", "images.images.seed")
CELLS = ("backbone", "seed", "images.size", "precision", "timestep")  # that controls of a group share


def settings(run: Run) -> dict[str, str]:
    """Every setting of a run, as text; without those of lists."""
    return {
        name: value[-1] for name, value in settings_of(run.folder, run.meta).items() if len(value) == 1 or name == "backbone"
    }


def measurement(run: Run) -> dict[str, str]:
    """What runs must share to be compared: the images without their seed, their size, and the splits.

    Controls have their own images, so that they are compared with each other only. A run whose settings are not known is
    compared with runs of the same images and the same number of test images.
    """
    known = settings(run)
    pattern = r"images\.limit" if run.meta.get("control") else r"images($|\.)(?!.*(seed|on_error)$)"
    found = {name: value for name, value in known.items() if name in SPLITS or re.match(pattern, name)}
    found["images.size"] = _text(run.meta.get("image_size"))
    if run.meta.get("control"):
        found["images"] = "controls"
    elif "images" not in known:
        found |= {"images": fingerprint(run), "test": _text((run.meta.get("images") or {}).get("test"))}
    return found


def data(run: Run) -> str:
    """The images of a run, in words: ``scenes, 160 images``, ``holidays`` for the folder of this name."""
    known = measurement(run)
    place = known.get("images.root") or known.get("images.path") or known.get("images.images.root")
    name = Path(place).name if place else known["images"].replace("_", " ")
    if "test" in known:
        name = f"images {name}".strip()
    limit = known.get("images.limit", "null")
    return name if limit == "null" else f"{name}, {limit} images"


def conditions(run: Run) -> dict[str, str]:
    """What tells the curves of one figure apart: everything that can change a number, without layers, seeds and images.

    What ``metrics.json`` records is taken from there, so that runs without a configuration are compared, too. The layers of a
    run that compares mitigations are measured without mitigation.
    """
    meta = run.meta
    found = {"backbone": str(meta["model"]), "backbone.weights": str(meta.get("weights", "stored")).replace("-", " weights ")}
    found |= {"mitigation": run.chain, "probe": run.kind, "concatenated": " + ".join(meta.get("concatenated") or ())}
    found |= {name: _text(meta.get(key)) for name, key in RECORDED.items()}
    if "train_steps" in meta and "images" not in settings(run):
        found["probe.solver"] = "adam" if meta["train_steps"] else "closed_form"
    if meta.get("control"):  # which says what else is set
        return {name: found[name] for name in ("backbone", "control", "timestep", "precision", "prompt")}
    for name, value in settings(run).items():
        compared = name.startswith("mitigation.") and run.labels
        if name.partition(".")[0] in SECTIONS and "." in name and not compared and not WITHOUT_EFFECT.fullmatch(name):
            found.setdefault(name, value)
    # probes and data modules repeat settings of each other
    return {name: value for name, value in found.items() if f"probe.{name.removeprefix('datamodule.')}" not in found}


def _text(value: Any) -> str:
    return "" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def fingerprint(run: Run) -> str:
    """The first eight digits of the digest of a run's images."""
    return str(run.meta.get("dataset_fingerprint") or "")[:8]


def _tested(run: Run) -> str:
    """First digits of the digest of a run's test images; empty for older runs, and for controls, whose images differ."""
    return "" if run.meta.get("control") else str(run.meta.get("test_fingerprint") or "")[:8]


def replicate(run: Run) -> tuple[str, str]:
    """The seed of a run and of its images: what tells repetitions of one measurement apart."""
    known = settings(run)
    return _text(run.meta.get("seed")), " ".join(known.get(name, "") for name in SEED_OF)


def differing(found: Iterable[Conditions]) -> list[str]:
    """Settings that have several values, in order of first occurrence. A run that does not know a setting does not differ.

    >>> differing([{"a": "1", "b": "2"}, {"a": "1", "b": "3"}, {"a": "1"}])
    ['b']
    """
    values: dict[str, set[str]] = defaultdict(set)
    for each in found:
        for name, value in each.items():
            values[name].add(value)
    return [name for name, there in values.items() if len(there) > 1]


def named(known: Conditions, names: Iterable[str]) -> str:
    """A name that says these settings; what is not set is left out.

    >>> named({"backbone": "tiny", "mitigation": "", "probe.solver": "adam"}, ["backbone", "mitigation", "probe.solver"])
    'tiny, adam'
    """
    parts = []
    for name in names:
        value = known.get(name, "")
        if value not in PLAIN:
            words = re.sub(r"^(probe|backbone|datamodule|mitigation|images)\.", "", name)
            parts.append(value if name in BARE else f"{words.replace('.', ' ').replace('_', ' ')} {value}")
    return ", ".join(parts)


def split(runs: Sequence[Run], read: Read) -> dict[str, list[Run]]:
    """Runs that agree in what ``read`` says, by a name that says what differs; one group has an empty name."""
    known = networks(runs, read)
    names = differing(known)
    groups: dict[str, list[Run]] = defaultdict(list)
    for run, each in zip(runs, known, strict=True):
        groups[named(each, names)].append(run)
    return dict(groups)


def networks(runs: Sequence[Run], read: Read) -> list[dict[str, str]]:
    """What ``read`` says of every run, with networks by their short name unless two have the same."""
    known = [dict(read(run)) for run in runs]
    models = {each["backbone"] for each in known if "backbone" in each}
    count = Counter(Path(model).name for model in models)
    for each in known:
        if "backbone" in each and count[Path(each["backbone"]).name] == 1:
            each["backbone"] = Path(each["backbone"]).name
    return known


@dataclass(frozen=True)
class Condition:
    """Repetitions of one measurement: its settings, those in which it differs from others beside it, its runs."""

    known: Conditions
    names: Sequence[str]
    runs: list[Run]

    @property
    def label(self) -> str:
        """The settings that differ; the network if that is nothing."""
        return named(self.known, self.names) or self.known["backbone"]

    @property
    def timesteps(self) -> list[int]:
        """Timesteps of the runs."""
        return sorted({int(run.meta["timestep"]) for run in self.runs})

    def filter(self, runs: Sequence[Run]) -> str:
        """The option of the command that shows this condition and the fewest others of these runs; empty if none does."""
        found = []
        for name in self.names:
            values = settings_of(self.runs[0].folder, self.runs[0].meta).get(name, ())
            several = len(values) > 1 and name != "backbone"
            text = f"{name}=[{','.join(values)}]" if several else f"{name}={''.join(values[-1:])}"
            try:
                shown = where(runs, [text], lambda run: settings_of(run.folder, run.meta))
            except InputError:
                continue
            if any(run is own for run in shown for own in self.runs):
                found.append((len(shown), f"--where {shlex.quote(text)}"))
        return min(found, default=(0, ""))[1]


def curves(runs: Sequence[Run], read: Read = conditions) -> list[Condition]:
    """The conditions among runs, in the order of their labels, numbers as numbers.

    Runs without a configuration whose settings no name tells apart are told apart by their digest.
    """
    known = networks(runs, read)
    names = differing(known)
    groups: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for place, each in enumerate(known):
        groups[tuple(each.get(name, "") for name in names)].append(place)
    for group in groups.values():
        digests = {place: _text(runs[place].meta.get("settings_hash"))[:8] for place in group}
        if len(set(filter(None, digests.values()))) > 1 and any("images" not in settings(runs[place]) for place in group):
            for place, digest in digests.items():
                known[place]["settings"] = digest
    names = differing(known)
    found: dict[tuple[str, ...], Condition] = {}
    for run, each in zip(runs, known, strict=True):
        found.setdefault(tuple(each.get(name, "") for name in names), Condition(each, names, [])).runs.append(run)
    return sorted(found.values(), key=lambda each: natural(each.label))


def natural(text: str) -> list[tuple[int, int, str]]:
    """Sort key: 10 after 2."""
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in re.split(r"(\d+)", text) if part]


def comparable(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """Name of the images and of what else differs → runs that may be compared; larger groups first.

    Runs of one seed that were tested on other images, because the files of a folder changed, are told apart by a digest of
    the test images.
    """
    groups: dict[str, list[Run]] = defaultdict(list)
    said = ("images", "images.root", "images.path", "images.images.root", "images.limit", "test")
    known = [measurement(run) for run in runs]
    rest = [name for name in differing(known) if name not in said]
    for run, each in zip(runs, known, strict=True):
        groups[", ".join(filter(None, (data(run), named(each, rest))))].append(run)
    found: dict[str, list[Run]] = {}
    for name, group in groups.items():
        images: dict[object, set[str]] = defaultdict(set)
        for run in group:
            images[run.kind, settings(run).get("probe.head"), replicate(run)].add(_tested(run))
        changed = any(len(each - {""}) > 1 for each in images.values())
        for run in group:
            found.setdefault(f"{name}, files {_tested(run)}" if changed and _tested(run) else name, []).append(run)
    return dict(sorted(found.items(), key=lambda item: -len(item[1])))


def control_groups(runs: Sequence[Run]) -> dict[str, dict[str, Run]]:
    """Name → control → its run, of complete runs of ``probe=controls``.

    Controls of a group share model, seed, image size, precision and timestep. A control that sets its own timestep joins every
    group that agrees otherwise. Of two runs of one control the later counts, and a warning names the other.
    """
    usable = [run for run in runs if run.meta.get("control") and run.meta["complete"] and "photos" in run.maps]
    leading = [run for run in usable if run.meta["control"] != OWN_TIMESTEP]
    leading += [run for run in usable if not any(_belongs(run, other) for other in leading)]
    found = {}
    for name, group in split(leading, _cell).items():
        title = ", ".join(filter(None, ("" if group[0].network in name.split(", ") else group[0].network, name)))
        found[title] = _cells([run for run in usable if _belongs(run, group[0])], title)
    return found


def _cell(run: Run) -> dict[str, str]:
    recorded = ("model", "seed", "image_size", "precision", "timestep")
    return {name: _text(run.meta.get(key)) for name, key in zip(CELLS, recorded, strict=True)}


def _belongs(run: Run, other: Run) -> bool:
    """Whether two controls belong to one group."""
    free = "timestep" if run.meta["control"] == OWN_TIMESTEP else ""
    one, two = _cell(run), _cell(other)
    return all(one[name] == two[name] for name in CELLS if name != free)


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
    kept = ("backbone.noise", "backbone.padding", "backbone.position", "backbone.vae_input", "backbone.posterior", "precision")
    compared = [run for run in runs if len(run.bases) < len(run.layers)]
    found = {}
    for setting in dict.fromkeys(run.setting for run in compared):

        def variant(run: Run) -> dict[str, str]:
            known = conditions(run)
            seeds = {"seed": _text(run.meta.get("seed")), "images.size": _text(run.meta.get("image_size"))}
            return seeds | {name: known.get(name, "") for name in kept}

        for name, group in split([run for run in compared if run.setting == setting], variant).items():
            for which, each in _by_measurement(group).items():
                short = setting.replace(str(group[0].meta["model"]), group[0].network, 1)
                title, long = (", ".join(filter(None, (network, name, which))) for network in (short, setting))
                found[long if title in found else title] = each
    return found


def _by_measurement(runs: list[Run]) -> dict[str, list[Run]]:
    """Suffix of the group's name (empty if there is only one group) → its runs."""
    kinds: dict[str, dict[tuple[str, ...], list[Run]]] = defaultdict(lambda: defaultdict(list))
    for run in runs:
        # training steps distinguish a trained probe from a closed-form one
        solver = f"solver {'adam' if run.meta.get('train_steps') else 'closed_form'}"
        kinds[run.kind][data(run), fingerprint(run), str(sorted((run.meta.get("images") or {}).items())), solver].append(run)
    several = [kind for kind, each in kinds.items() if len(each) > 1]
    if not several:
        return {"": runs}
    single = [run for run in runs if run.kind not in several]
    found = {}
    for kind in several:
        known = [dict(enumerate(key)) for key in kinds[kind]]
        varying = [place for place in range(4) if len({each[place] for each in known}) > 1 and place != 2] or [2]
        for key, each in kinds[kind].items():
            found[f"{kind} with {', '.join(key[place] for place in varying)}"] = [*single, *each]
    return found
