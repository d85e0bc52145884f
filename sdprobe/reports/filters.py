"""Filters ``key=value`` over runs, by the settings with which they were started.

A run's settings are those of its composed configuration (``.hydra/config.yaml``: also the settings that were left at their
default) and the choices of its groups (``.hydra/hydra.yaml``: ``probe``, ``backbone``, ``images``, …). A run without these
files has the settings that ``metrics.json`` records. Imports neither torch nor matplotlib.

``block=mid`` holds for every run that measured ``mid``, and ``block=stages`` for those started with this word. Of a setting
with several values, such as ``mitigation=[leace,standardize]``, one is enough; ``mitigation=[leace,standardize]`` asks for
both. ``timestep=10,50`` is either. Of several filters all must hold.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import yaml

from sdprobe.reports.run import Run
from sdprobe.tokens.keys import base_of, label_of
from sdprobe.utilities.errors import InputError
from sdprobe.utilities.io import LARGEST_YAML, parsed_yaml, read_file

Settings = Mapping[str, tuple[str, ...]]  # name → value; several of a list
Item = TypeVar("Item")
# setting → where metrics.json records it
RECORDED = {
    "probe": "probe", "timestep": "timestep", "seed": "seed", "prompt": "prompt", "control": "control", "twins": "twins",
    "images.size": "image_size", "backbone.weights": "weights", "backbone.noise": "noise", "backbone.padding": "padding",
    "backbone.position": "position", "backbone.text": "text",
    "backbone.vae_input": "vae_input", "backbone.posterior": "posterior",
}  # fmt: skip
FINGERPRINTS = ("dataset_fingerprint", "test_fingerprint")
DIGITS = 8  # of fingerprints, as tables show them
MOST = 2000  # settings of a run that are read: a hundred times those of a real one
DEEPEST = 20  # sections within sections


def where(runs: Sequence[Item], filters: Sequence[str], settings: Callable[[Item], Settings]) -> list[Item]:
    """The runs for which all filters hold, in order.

    Args:
        runs: of any type.
        filters: texts such as ``probe=position`` and ``timestep=10,50``.
        settings: a run → its settings, see :func:`settings_of`.

    Raises:
        InputError: a text of another form, a setting that no run has, or filters that leave no run.
    """
    pairs = [parsed(text) for text in filters]
    if not pairs or not runs:
        return list(runs)
    every = [settings(run) for run in runs]
    for name, _ in pairs:
        if not any(name in each for each in every):
            raise InputError(_unknown(name, sorted({known for each in every for known in each})))
    chosen = [run for run, each in zip(runs, every, strict=True) if all(_holds(each.get(name), value) for name, value in pairs)]
    if not chosen:
        raise InputError(_none(filters, pairs, every))
    return chosen


def settings_of(folder: Path, meta: Mapping[str, Any], references: bool = True) -> Settings:
    """The settings of the run in a folder.

    Args:
        folder: of the run.
        meta: that of its ``metrics.json``, empty where there is none.
        references: include settings whose value is that of another one, such as ``datamodule.timestep``.
    """
    configured = _read(folder / ".hydra" / "config.yaml", _sections)
    found = _recorded(meta) | dict(islice(_flat(configured, configured if references else None), MOST))
    for group, choice in _read(folder / ".hydra" / "hydra.yaml", _choices).items():
        found |= {} if "/" in group or group == "mitigation" else {group: _values(choice)}
    if "timestep" in meta:  # noise_level= sets it, and a run at several levels is compared level by level
        found["timestep"] = _values(meta["timestep"])
    if model := meta.get("model"):  # backbone=local backbone.path=… has the name of its checkpoint
        found["backbone"] = tuple(dict.fromkeys((*found.get("backbone", ()), Path(str(model)).name)))
    if isinstance(meta.get("layers"), list):
        found["block"] = tuple(dict.fromkeys((*found.get("block", ()), *(base_of(str(layer)) for layer in meta["layers"]))))
    return found


def _recorded(meta: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    """What ``metrics.json`` says about settings."""
    found = {name: _values(meta[key]) for name, key in RECORDED.items() if key in meta}
    found |= {name: (str(meta[name])[:DIGITS],) for name in FINGERPRINTS if name in meta}
    if isinstance(meta.get("layers"), list):
        labels = [label_of(str(layer)) for layer in meta["layers"]]
        chain = Run({}, {"mitigations": meta.get("mitigations")}, {}).chain.split(" → ") if "mitigations" in meta else []
        found["mitigation"] = tuple(dict.fromkeys(filter(None, (*labels, *chain)))) or ("none",)
    return found


def _read(path: Path, parse: Callable[[str], dict[str, Any]]) -> dict[str, Any]:
    """A file of ``.hydra/``; empty where there is none, or a damaged one."""
    try:
        return parse(read_file(path, largest=LARGEST_YAML).decode())
    except (OSError, ValueError, yaml.YAMLError, RecursionError):
        return {}


def _sections(text: str) -> dict[str, Any]:
    """A configuration. Runs of one laboratory share most sections, so each distinct one is parsed once."""
    found: dict[str, Any] = {}
    for section in re.split(r"\n(?=\w)", text):
        found |= _parsed(section)
    return found


def overrides(folder: Path) -> dict[str, str]:
    """The settings that were typed on the command line, and their values."""
    texts = _read(folder / ".hydra" / "overrides.yaml", lambda text: {"": parsed_yaml(text)}).get("")
    pairs = [str(text).partition("=") for text in texts] if isinstance(texts, list) else []
    return {name.lstrip("+~"): value for name, _, value in pairs}


def _choices(text: str) -> dict[str, Any]:
    """The choices of groups in ``hydra.yaml``, whose other parts take long to parse and are not needed."""
    block = re.search(r"\n    choices:\n((?: {6}.*\n)+)", text)
    return _parsed(block[1]) if block else {}


@cache
def _parsed(section: str) -> dict[str, Any]:
    content = parsed_yaml(section)
    return content if isinstance(content, dict) else {}


def _flat(node: Any, root: Any, name: str = "") -> Iterator[tuple[str, tuple[str, ...]]]:
    """(dotted name, value) of every setting, with references to other settings replaced by their value."""
    if name == "mitigation" and isinstance(node, dict):
        yield name, tuple(map(str, node)) or ("none",)
    if isinstance(node, dict) and name.count(".") < DEEPEST:
        for key, value in node.items():
            if not str(key).startswith("_"):
                yield from _flat(value, root, f"{name}.{key}".removeprefix("."))
    elif (value := _resolved(node, root)) is not None:
        yield name, _values(*value)


def _resolved(node: Any, root: Any, depth: int = 0) -> tuple[Any] | None:
    """A value behind its reference ``${other.setting}``; None if it refers to no value, or ``root`` is None."""
    reference = re.fullmatch(r"\$\{([\w.]+)\}", node) if isinstance(node, str) else None
    if reference is None:
        return None if isinstance(node, dict) or (isinstance(node, str) and "${" in node) else (node,)
    found = root
    for part in reference[1].split("."):
        if not isinstance(found, dict) or part not in found or depth > 4:
            return None
        found = found[part]
    return _resolved(found, root, depth + 1)


def _values(value: Any) -> tuple[str, ...]:
    """A value as text, as it is written on the command line; one text per element of a list."""
    if isinstance(value, list | tuple):
        return tuple(text for each in value if not isinstance(each, dict | list) for text in _values(each))
    return ("null" if value is None else str(value).lower() if isinstance(value, bool) else str(value),)


def parsed(text: str) -> tuple[str, str]:
    """(setting, value) of a filter.

    Raises:
        InputError: it has another form.
    """
    name, sign, value = text.partition("=")
    if not sign or not name:
        raise InputError(f"Expected filters of the form setting=value, but got '{text}'. Write probe=position, for example.")
    return name, value


def _holds(values: tuple[str, ...] | None, wanted: str) -> bool:
    """Whether a setting with these values meets a filter."""
    own = {_same(value) for value in values or ()}
    either = [wanted, *re.split(r",(?![^\[]*\])", wanted)]
    return any(
        own >= {_same(part) for part in one[1:-1].split(",")} if one[:1] == "[" and one[-1:] == "]" else _same(one) in own
        for one in either
    )


def _same(text: str) -> object:
    """Equal for spellings of one value: 0.001 and 1e-3, null and none, true and True."""
    text = text.strip()
    try:
        return float(text)
    except ValueError:
        return {"none": "null", "true": "true", "false": "false"}.get(text.lower(), text)


def _unknown(name: str, known: list[str]) -> str:
    """The sentence for a setting that no run has, with those that are meant, or else the settings outside sections."""
    last = [other for other in known if other.rpartition(".")[2] == name.rpartition(".")[2]]
    near = (last or get_close_matches(name, known, n=1, cutoff=0.6))[:4]
    outside = ", ".join(other for other in known if "." not in other)
    fix = f"Use {' or '.join(near)}." if near else f"There are {outside}, and those of their sections, such as images.limit."
    return f"Expected a setting that one of these runs has, but got '{name}'. {fix}"


def _none(filters: Sequence[str], pairs: Sequence[tuple[str, str]], every: Sequence[Settings]) -> str:
    """The sentence for filters that leave no run."""
    for name, value in pairs:
        if not any(_holds(each.get(name), value) for each in every):
            there = list(dict.fromkeys(text for each in every for text in each.get(name, ())))
            listed = ", ".join(there[:12]) + ", …" * (len(there) > 12)
            return f"Expected a run with {name}={value}, but got {len(every)} runs without. They have {name}: {listed}."
    return f"Expected a run with {' and '.join(filters)}, but got {len(every)} runs of which none has all. Use fewer filters."
