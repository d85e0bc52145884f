"""Which runs there are below a folder, in what state, and the few numbers by which many are listed and ranked.

``metrics.json`` is written with one number per line and ``meta`` at the end. Of many runs only ``meta`` and the lines that are
asked for are parsed, which is about ten times as fast as parsing all; a file of another form is parsed completely. Files are
data of others: what cannot be a run's is a state with a reason, and texts are shown without control characters.
"""

import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, cached_property
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np

from sdprobe.reports.filters import Settings, settings_of, where
from sdprobe.reports.recorded import checked, lacking
from sdprobe.reports.run import Run
from sdprobe.tokens.keys import Key
from sdprobe.utilities import locks
from sdprobe.utilities.errors import InputError, Unfit
from sdprobe.utilities.foreign import first_line, shown
from sdprobe.utilities.io import DamagedFile, parsing, read_file, read_json, reason

DEFAULT = ("outputs", "multirun")  # where train.py writes
TRACES = ("metrics.json", "error.txt", "config_hash", "train.log")  # any of these files marks the folder of a run
INSIDE = (
    "checkpoints",
    "mitigation",
    "heads",
    "wandb",
    "lightning_logs",
    "tensorboard",
)  # subfolders without other runs
LARGEST = 256 * 2**20  # bytes of a metrics.json that are read
_META = b'\n "meta": {'
Wanted = Callable[[dict[str, Any]], Sequence[str]]  # meta → <metric>/<where> to read


@dataclass(frozen=True, eq=False)
class Entry:
    """A run folder.

    Attributes:
        folder: of the run.
        name: its path below the folder that was asked for; its whole path if several were, or the run itself was.
        state: ``finished``, ``running``, ``dead`` (its process has ended without a result), ``failed``, ``incomplete``,
            ``damaged``, or ``no result`` (nothing says whether its process runs).
        reason: why it is not finished.
        changed: when its newest trace was written, in seconds since 1970.
        run: the numbers that were asked for, and ``meta``; None without a readable ``metrics.json``.
    """

    folder: Path
    name: str
    state: str
    reason: str
    changed: float
    run: Run | None

    @cached_property
    def settings(self) -> Settings:
        """See :func:`~sdprobe.reports.filters.settings_of`."""
        return settings_of(self.folder, self.run.meta if self.run else {})

    @cached_property
    def _units(self) -> dict[str, dict[str, np.ndarray]]:
        return {}

    def pseudovalues(self, key: Key) -> np.ndarray | None:
        """Contribution of every test unit to a number; None where the run does not hold them."""
        if self.run is None:
            return None
        if key.quantity not in self._units:
            try:
                self._units[key.quantity] = self.run.pseudovalues(key.quantity)
            except (OSError, ValueError, TypeError):  # damaged, or a schema that is no number
                self._units[key.quantity] = {}
        values = self._units[key.quantity].get(str(key))
        return values if values is not None and values.ndim == 1 and values.dtype.kind == "f" else None

    def setting(self, name: str) -> str:
        """A setting as text; empty where it is unknown."""
        return ", ".join(self.settings.get(name, ()))


def find(places: Sequence[Path], filters: Sequence[str] = (), wanted: Wanted | None = None) -> list[Entry]:
    """The runs below these folders, the oldest first.

    Args:
        places: folders; empty: those of :data:`DEFAULT` that exist.
        filters: see :func:`~sdprobe.reports.filters.where`.
        wanted: which numbers to read of a run, from its ``meta``; None: all.

    Raises:
        InputError: no run, or filters that cannot be met.
    """
    roots = list(places) or [Path(name) for name in DEFAULT if Path(name).is_dir()]
    for root in roots:
        if not root.is_dir():
            raise InputError(f"Expected a folder that contains runs, but got '{shown(str(root))}', which is none. Correct it.")
    above = roots[0] if len(roots) == 1 else Path()
    found = {folder: traced for root in roots for folder, traced in folders(root)}
    entries = [read(folder, above, traced, wanted) for folder, traced in found.items()]
    if not entries:
        looked = " and ".join(f"'{shown(str(root))}'" for root in roots) or f"no folder {' or '.join(DEFAULT)} here"
        raise InputError(f"Expected a folder that contains runs, but got {looked}. Give the folder of your runs.")
    return where(sorted(entries, key=lambda entry: entry.changed), filters, lambda entry: entry.settings)


def one(text: str) -> Entry:
    """The run in a folder, or the only one below :data:`DEFAULT` whose path ends like this.

    Raises:
        InputError: there is none, or there are several.
    """
    folder = Path(text)
    if folder.is_dir():
        if not (traced := traces(folder)):
            raise InputError(
                f"Expected a run folder, but '{shown(text)}' has no metrics.json. "
                f"python -m sdprobe.reports ls '{shown(text)}' lists the runs below it."
            )
        return read(folder, Path(), traced)
    parts = folder.parts
    roots = [Path(name) for name in DEFAULT if Path(name).is_dir()]
    found = [(path, traced) for root in roots for path, traced in folders(root) if path.parts[-len(parts) :] == parts]
    if len(found) == 1:
        return read(found[0][0], Path(), found[0][1])
    names = [path.as_posix() for path, _ in found]
    got = f"{len(names)} runs have this name: {', '.join(names[:4])}{', …' * (len(names) > 4)}" if names else "there is none"
    raise InputError(f"Expected '{shown(text)}' to be a run folder, but {got}. Give its path.")


def read(folder: Path, root: Path, traced: dict[str, float], wanted: Wanted | None = None) -> Entry:
    """A run folder with its :func:`traces`."""
    name = os.path.relpath(folder, root) if root not in (Path(), folder) else str(folder)
    run, damage = None, ""
    if "metrics.json" in traced:
        try:
            run = read_run(folder, wanted)
        except InputError as error:
            damage = str(error)
    state, reason = _state(folder, run, damage, traced)
    return Entry(folder, shown(name), state, shown(reason), max(traced.values()), run)


def read_run(folder: Path, wanted: Wanted | None = None) -> Run:
    """The wanted numbers of a ``metrics.json``, and its ``meta``; values that are no finite numbers are left out.

    Raises:
        InputError: it cannot be read, or is not that of a run. The message is a part of a sentence.
    """
    path = folder / "metrics.json"
    try:
        if path.stat().st_size > LARGEST:
            raise InputError(f"metrics.json is larger than {LARGEST // 2**20} MiB")
        text = read_file(path)
        with parsing(path):
            content = _parts(text, wanted) if wanted else None
        content = read_json(path) if content is None else content
        if wrong := lacking(meta := content.pop("meta", None)):
            raise InputError(f"metrics.json is not that of a run: {wrong}")
        numbers = {
            key: value for key, value in content.items() if type(value) in (int, float) and isfinite(value) and _is_key(key)
        }
        return Run(*checked({**numbers, "meta": meta}), {}, folder)
    except Unfit as error:
        raise InputError(f"metrics.json is not that of a run: {error}") from error
    except RecursionError as error:
        raise InputError(f"metrics.json is not that of a run: {reason(error)}") from error
    except DamagedFile as error:
        raise InputError(f"metrics.json is unreadable ({error.args[1]})") from error
    except OSError as error:
        raise InputError(f"metrics.json is unreadable ({error.strerror})") from error


def _parts(text: bytes, wanted: Wanted) -> dict[str, Any] | None:
    """``meta`` and the wanted numbers, from the lines that hold them; None if the file has another form."""
    start = text.rfind(_META)
    if start < 0 or text[:2] != b"{\n":
        return None
    meta = json.loads(b"{" + text[start + 1 :])
    if set(meta) != {"meta"} or not isinstance(meta["meta"], dict):
        return None
    lines = [line for name in wanted(meta["meta"]) for line in _lines(text, f"/{name}".encode(), start)]
    for condition in (b'\n "chance/', b'\n "val/'):  # a layer is chosen by both; keys are sorted, so these are neighbours
        if (first := text.find(condition)) >= 0:
            lines.append(text[first + 1 : text.find(b"\n", text.rfind(condition) + 1)])
    return {**json.loads(b"{" + b"\n".join(lines).rstrip(b",") + b"}"), **meta}


def _lines(text: bytes, name: bytes, end: int) -> Iterator[bytes]:
    """Lines with a key of this name or of its statistics."""
    at = text.find(name, 0, end)
    while at >= 0:
        stop = text.find(b"\n", at)
        if text[at + len(name) : at + len(name) + 1] in (b'"', b"/"):
            yield text[text.rfind(b"\n", 0, at) + 1 : stop]
        at = text.find(name, stop, end)


@cache
def _is_key(text: str) -> bool:
    try:
        return bool(Key.parse(text).layer)
    except InputError:
        return False


def _state(folder: Path, run: Run | None, damage: str, traced: dict[str, float]) -> tuple[str, str]:
    """(state, reason) of a run folder."""
    if run is not None and run.meta["complete"]:
        return "finished", ""
    runs, why = locks.state(folder)
    if runs:
        return "running", why
    if "error.txt" in traced:
        return "failed", first_line(folder / "error.txt") or "error.txt is empty"
    if damage:
        return "damaged", damage
    if run is not None:
        return "incomplete", f"its results are partial; {why}"
    return ("no result" if runs is None else "dead"), why


def folders(root: Path) -> Iterator[tuple[Path, dict[str, float]]]:
    """(run folder, its traces) below a folder, itself included. Links to folders are not followed."""
    waiting = [str(root)]
    while waiting:
        folder = waiting.pop()
        traces, below = _look(folder)
        waiting += below
        if traces:
            yield Path(folder), traces


def traces(folder: Path) -> dict[str, float]:
    """The files of a run that a folder has, and the time of their last change; empty if it is none."""
    return _look(str(folder))[0]


def _look(folder: str) -> tuple[dict[str, float], list[str]]:
    """(traces of a run, subfolders that may hold others); the subfolders that a run writes, and hidden ones, are left out."""
    found: dict[str, float] = {}
    below = []
    with suppress(OSError), os.scandir(folder) as files:
        for file in files:
            with suppress(OSError):  # a link to itself
                if file.is_dir(follow_symlinks=False):
                    if file.name == ".hydra":
                        found[file.name] = file.stat().st_mtime
                    elif not file.name.startswith((".", "random_weights_")) and file.name not in INSIDE:
                        below.append(file.path)
                elif file.name in TRACES and file.is_file():
                    found[file.name] = file.stat().st_mtime
    return found if found.keys() - {"train.log"} else {}, below


def when(seconds: float) -> str:
    """A time as people write it."""
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))
