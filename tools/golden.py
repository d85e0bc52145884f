"""Check that a refactoring changed no number: ``python -m tools.golden compare [RUN ...]``.

``tools/golden.yaml`` lists a commit, small runs of ``train.py``, and intended renamings since that commit. ``compare`` measures
the runs at that commit, in a separate checkout, and in the working tree, and compares all their files. Results of the commit
are stored below ``.cache/golden`` and reused as long as commit, overrides, processor and libraries are the same. The demo
weights are those of the commit. ``write`` makes HEAD the new commit.
"""

import argparse
import csv
import hashlib
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import safetensors.numpy
import yaml

from sdprobe.utilities.errors import InputError

ROOT = Path(__file__).parent.parent
PLAN = "tools/golden.yaml"
CACHE = ".cache/golden"
TOLERANCE = 1e-12  # relative and absolute
SHOWN = 100  # differences printed at most
PROCESSES = 2
# with several threads, floats are added in another order
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
LIBRARIES = ("torch", "numpy", "scipy", "diffusers", "transformers", "lightning", "torchmetrics")
# entries of JSON files and columns of tables that describe time, machine and code of a measurement; not compared
PROVENANCE = {
    "command", "source", "git_commit", "config_hash", "settings_hash", "packages", "hardware", "seconds", "peak_memory_gib",
    "started", "run", "checksum", "files",
}  # fmt: skip
# One process runs many commands, because imports take longer than most of them. A process takes a run by creating its log. The
# code uses train.py and no module, so it works for every commit.
WORKER = """
import json, os, pathlib, runpy, sys
sys.path.insert(0, os.getcwd())
folder = pathlib.Path(sys.argv[1])
for name, words in json.loads(sys.argv[2]).items():
    try:
        log = open(folder / f"{name}.log", "x")
    except FileExistsError:
        continue
    sys.stdout.flush()
    os.dup2(log.fileno(), 1)
    os.dup2(log.fileno(), 2)
    sys.argv = ["train.py", *words]
    try:
        runpy.run_path("train.py", run_name="__main__")
    except SystemExit as end:
        if end.code:
            sys.stderr.write(f"{end.code}\\n")
            continue
    (folder / f"{name}.finished").touch()
"""
UNCOMPARED = "not compared"
Values = dict[str, Any]  # RUN/FILE → nothing of interest, RUN/FILE:KEY → number, text or array


def main(arguments: Sequence[str] | None = None, root: Path = ROOT) -> int:
    """Compare, or make HEAD the reference; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tools.golden", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("what", choices=("compare", "write"))
    parser.add_argument("runs", nargs="*", metavar="RUN", help="compare only these runs")
    options = parser.parse_args(arguments)
    head = git(root, "rev-parse", "HEAD")
    if options.what == "write":
        return write(root, head)
    plan = yaml.safe_load((root / PLAN).read_text())
    runs = chosen(plan, options.runs)
    frozen_folders, new = frozen(root, plan["commit"], runs), root / CACHE / "present"
    measure(root, head, runs, new)
    before = {key: value for name, folder in frozen_folders.items() for key, value in values_of(folder, name).items()}
    after = {key: value for name in runs for key, value in values_of(new / name, name).items()}
    before, after, stale = without_intended(plan["intended"], before, after)
    lines = differences(before, after) + ([] if options.runs else stale)
    say(*lines[:SHOWN], *([f"… and {len(lines) - SHOWN} more"] if len(lines) > SHOWN else []))
    say(f"{len(lines)} differences from {plan['commit'][:7]} in {counted(before)} of {len(runs)} runs.")
    return int(bool(lines))


def write(root: Path, head: str) -> int:
    """Make HEAD the reference commit, and delete the list of intended changes.

    Raises:
        InputError: tracked files differ from HEAD.
    """
    if changed := git(root, "status", "--porcelain", "--untracked-files=no"):
        raise InputError(f"Expected tracked files to be those of HEAD, but got '{changed.splitlines()[0]}'. Commit them first.")
    text = re.sub(r"^commit: .*", f"commit: {head}", (root / PLAN).read_text(), flags=re.MULTILINE)
    (root / PLAN).write_text(text.partition("\nintended:")[0] + "\nintended: []\n")
    shutil.rmtree(root / CACHE, ignore_errors=True)
    say(f"{PLAN} now refers to {head}. Commit it.")
    return 0


def chosen(plan: Mapping[str, Any], names: Sequence[str]) -> dict[str, list[str]]:
    """Name → overrides of the runs with these names, or of all runs.

    Raises:
        InputError: an unknown name.
    """
    if unknown := [name for name in names if name not in plan["runs"]]:
        raise InputError(f"Expected runs among {', '.join(plan['runs'])}, but got '{unknown[0]}'. Correct the name.")
    settings = {name: shlex.split(f"{plan['common']} {plan['runs'][name]}") for name in names or plan["runs"]}
    # Hydra refuses two choices of one group; keep the later one
    return {name: list({word.partition("=")[0]: word for word in words}.values()) for name, words in settings.items()}


# --- Measuring -------------------------------------------------------------------------------------------------------


def frozen(root: Path, commit: str, runs: Mapping[str, Sequence[str]]) -> dict[str, Path]:
    """Name → folder with the results of the reference commit on this machine; measured if not stored."""
    hardware, cache = machine(), root / CACHE / "frozen"
    keys = {name: json.dumps([commit, hardware, words], sort_keys=True) for name, words in runs.items()}
    folders = {name: cache / f"{name}-{hashlib.sha256(key.encode()).hexdigest()[:16]}" for name, key in keys.items()}
    if missing := {name: words for name, words in runs.items() if not folders[name].is_dir()}:
        cache.mkdir(parents=True, exist_ok=True)
        with checkout(root, commit) as other:
            measure(other, commit, missing, root / CACHE / "measured")
        for name in missing:
            (root / CACHE / "measured" / name).rename(folders[name])
    return folders


def machine() -> dict[str, str]:
    """What influences rounding: processor, libraries, threads."""
    import torch

    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").is_file() else []
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor())
    libraries = {name: version(name) for name in LIBRARIES}
    return {"cpu": model, "capability": torch.backends.cpu.get_cpu_capability()} | libraries | ENVIRONMENT


@contextmanager
def checkout(root: Path, commit: str) -> Iterator[Path]:
    """A temporary second checkout at this commit."""
    with tempfile.TemporaryDirectory(prefix="checkout-", dir=root / CACHE, ignore_cleanup_errors=True) as folder:
        git(root, "worktree", "add", "--detach", folder, commit)
        try:
            yield Path(folder)
        finally:
            git(root, "worktree", "remove", "--force", folder)


def measure(root: Path, commit: str, runs: Mapping[str, Sequence[str]], folder: Path) -> None:
    """Run ``train.py`` of a checkout with each of these overrides, into ``folder``/NAME, each with its own cache.

    Raises:
        InputError: a run failed, or modules of another checkout were measured.
    """
    started = time.monotonic()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as caches:
        commands = {
            name: [*words, f"cache_dir={caches}/{name}", f"hydra.run.dir={folder / name}", f"hydra.sweep.dir={folder / name}"]
            for name, words in runs.items()
        }
        command = [sys.executable, "-c", WORKER, str(folder), json.dumps(commands)]
        processes = [subprocess.Popen(command, cwd=root, env=os.environ | ENVIRONMENT) for _ in range(PROCESSES)]
        try:
            for process in processes:
                process.wait()
        finally:
            for process in processes:
                process.kill()
    if failed := [name for name in runs if not (folder / f"{name}.finished").exists()]:
        raise InputError(
            f"Expected every run to succeed at {commit[:7]}, but got a failure of {', '.join(failed)}. "
            f"Read {folder / failed[0]}.log."
        )
    for path in folder.rglob("metrics.json"):
        measured = json.loads(path.read_text())["meta"]["git_commit"]
        if not str(measured).startswith(commit):
            raise InputError(f"Expected the modules of {root} to be measured, but got those of a checkout at {measured}.")
    say(f"{len(runs)} runs at {commit[:7]}: {time.monotonic() - started:.0f} s")


def git(root: Path, *words: str) -> str:
    """Output of a git command.

    Raises:
        InputError: the project has no git history, or not that commit.
    """
    try:
        return subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError) as error:
        reason = (str(getattr(error, "stderr", "")) or str(error)).splitlines()[0]
        raise InputError(
            f"Expected {root} to be a git checkout with its history, but git {words[0]} says '{reason}'. "
            "Clone the repository, or fetch the commit."
        ) from error


# --- Comparing -------------------------------------------------------------------------------------------------------


def values_of(folder: Path, run: str) -> Values:
    """All files of a run folder, and the contents of files with numbers."""
    values: Values = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        file = f"{run}/{path.relative_to(folder).as_posix()}"
        values |= {file: "a file"} | {f"{file}:{key}": value for key, value in contents(path).items()}
    return values


def contents(path: Path) -> Values:
    """Key → value of metrics, arrays and tables; empty for pictures, logs, settings and checkpoints."""
    match path.suffix:
        case ".json":
            return dict(leaves(json.loads(path.read_text())))
        case ".npz":
            with np.load(path, allow_pickle=False) as stored:
                return {key: stored[key] for key in stored.files}
        case ".parquet":
            table = pyarrow.parquet.read_table(path)
            return {key: table[key].to_numpy() for key in table.column_names}
        case ".safetensors":  # as integers: bit by bit
            tensors = safetensors.numpy.load_file(path)
            return {f"{key} ({value.dtype})": value.view(f"u{value.itemsize}") for key, value in tensors.items()}
        case ".csv":
            with path.open(newline="") as file:
                return columns(list(csv.reader(file)))
        case ".md":  # without folders and hashes of settings
            text = re.sub(r"(?<=\| )(/[^|]*|[0-9a-f]{16})(?= \|)", "", path.read_text())
            return {f"line {number}": line for number, line in enumerate(text.splitlines(), 1)}
    return {}


def leaves(node: Any, path: str = "", compared: bool = True) -> Iterator[tuple[str, Any]]:
    """Path → value of the leaves of a JSON document."""
    if not (isinstance(node, dict | list) and node):
        yield path, node if compared else UNCOMPARED
        return
    for key, child in node.items() if isinstance(node, dict) else enumerate(node):
        yield from leaves(child, f"{path}/{key}".strip("/"), compared and key not in PROVENANCE)


def columns(rows: list[list[str]]) -> Values:
    """Header → cells (n,), as numbers if all of them are numbers."""
    cells_of: Values = {}
    for name, *cells in zip(*rows, strict=True):
        try:
            cells_of[name] = np.array([float(cell or "nan") for cell in cells])
        except ValueError:
            cells_of[name] = np.array(cells, dtype=object)
    return {name: UNCOMPARED if name in PROVENANCE else cells for name, cells in cells_of.items()}


def without_intended(changes: Sequence[Mapping[str, str]], before: Values, after: Values) -> tuple[Values, Values, list[str]]:
    """(reference values by their new names, present values without intended additions, intended changes without effect).

    Raises:
        InputError: a change of another kind, or without a reason.
    """
    stale = []
    for change in sorted(changes, key=lambda change: "added" in change):
        if set(change) not in ({"renamed", "to", "reason"}, {"removed", "reason"}, {"added", "reason"}):
            raise InputError(
                f"Expected 'renamed' and 'to', 'removed' or 'added', with a 'reason', but got {change}. Correct {PLAN}."
            )
        pattern = re.compile(next(iter(change[kind] for kind in ("renamed", "removed", "added") if kind in change)))
        matched = {name for name in (after.keys() - before.keys() if "added" in change else before) if pattern.fullmatch(name)}
        if "renamed" in change:
            before = {pattern.sub(change["to"], name) if name in matched else name: value for name, value in before.items()}
        elif "removed" in change:
            before = {name: value for name, value in before.items() if name not in matched}
        else:
            after = {name: value for name, value in after.items() if name not in matched}
        stale += [] if matched else [f"intended change without effect: {change}"]
    return before, after, stale


def differences(before: Values, after: Values) -> list[str]:
    """A line for each name that one side lacks, and for each value that differs."""
    lines = []
    for name in sorted(before.keys() | after.keys()):
        if name not in after:
            lines.append(f"{name}: missing, was {shown(before[name])}")
        elif name not in before:
            lines.append(f"{name}: new, {shown(after[name])}")
        elif text := difference(before[name], after[name]):
            lines.append(f"{name}: {text}")
    return lines


def difference(one: Any, other: Any) -> str:
    """The difference between two values, empty if they are equal. NaN equals NaN only in arrays."""
    if isinstance(one, np.ndarray) and isinstance(other, np.ndarray):
        if (one.dtype, one.shape) != (other.dtype, other.shape):
            return f"{shown(one)}, now {shown(other)}"
        same = np.isclose(other, one, TOLERANCE, TOLERANCE, equal_nan=True) if one.dtype.kind in "fc" else one == other
        if same.all():
            return ""
        first = tuple(int(index) for index in np.argwhere(~same)[0])
        return f"{(~same).sum()} of {same.size} values, first at {first}: {one[first]}, now {other[first]}"
    numbers = all(type(value) in (int, float) for value in (one, other))
    same = abs(one - other) <= TOLERANCE * (1 + abs(one)) if numbers else type(one) is type(other) and one == other
    return "" if same else f"{shown(one)}, now {shown(other)}"


def shown(value: Any) -> str:
    """A value as a line of text."""
    return f"{value.dtype} {value.shape}" if isinstance(value, np.ndarray) else repr(value)


def counted(values: Values) -> str:
    """Number of compared items."""
    files = sum(":" not in name for name in values)
    arrays = sum(isinstance(value, np.ndarray) for value in values.values())
    return f"{len(values) - files - arrays} keys, {arrays} arrays and columns, {files} files"


def say(*lines: str) -> None:
    """Write lines and flush."""
    sys.stdout.write("".join(f"{line}\n" for line in lines))
    sys.stdout.flush()


if __name__ == "__main__":
    try:
        sys.exit(main())
    except InputError as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        sys.exit(130)
