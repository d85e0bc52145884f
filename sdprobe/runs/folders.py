"""Run folders as data: which overrides of a folder a resumed run takes, and which folders a run writes into. Imports no torch.

A folder may come from someone else. What it says is compared with what a run can have stored, and the rest is refused. What is
typed on the command line is the user's own, and is not restricted here.
"""

import os
import re
import shlex
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from hydra.errors import HydraException

from sdprobe.runs.groups import is_group, options
from sdprobe.utilities.errors import InputError
from sdprobe.utilities.foreign import below, is_shown, kind, shown, within
from sdprobe.utilities.io import DamagedFile, read_json, read_yaml

OVERRIDES = Path(".hydra", "overrides.yaml")
RUN = (OVERRIDES, Path("error.txt"), Path("config_hash"))  # a run folder has one of them, or a metrics.json with meta
LARGEST = 2**16  # bytes of a list of overrides
LONGEST = 5000  # characters of one: Hydra's parser takes a minute for a list of ten thousand items
WANDB = ("wandb", "settings")  # no run writes them, but wandb reads them in the folder where it is started
DEEPEST = 50  # folders below that of a run; wandb makes about five
KEY = re.compile(r"(?!hydra\b)[A-Za-z]\w*(\.(?!_)[\w-]+)*")
# settings that say where to write; of loggers, name and version do so too
PLACES = re.compile(r"(.*\.)?(cache_dir|save_dir|dirpath|filename|default_root_dir)|logger\.folder|trainer\.callbacks.*")
NAMES = re.compile(r"logger\.(name|version)")


def stored_overrides(folder: Path) -> list[str]:
    """The overrides that a run was started with, as text; empty without a record.

    Raises:
        DamagedFile: the record is no list of texts.
    """
    file = folder / OVERRIDES
    if not file.exists():
        return []
    listed = read_yaml(file, LARGEST)
    if not isinstance(listed, list) or not all(isinstance(text, str) for text in listed):
        raise DamagedFile(file, "no list of overrides")
    return listed


def resumed_overrides(folder: Path, typed: Sequence[str] = ()) -> list[str]:
    """The overrides of a folder that a run continues with: values of settings, and options of groups.

    Args:
        folder: of the run.
        typed: the user's own ``cache_dir=DIR``, in place of the folder's.

    Raises:
        InputError: no run folder, an override that does more, or a link out of the folder.
    """
    if not (folder / OVERRIDES).exists():
        raise InputError(
            f"Expected resume to be a run folder with .hydra/overrides.yaml, but '{folder}' has none. "
            "Give the folder of one run, such as outputs/2026-01-31/12-00-00-000000."
        )
    try:
        stored = stored_overrides(folder)
    except DamagedFile as error:
        raise InputError(
            f"Expected {error.args[0]} to be as the run wrote it, but got '{error.args[1]}'. A resumed run keeps its settings. "
            "Start a new run for others."
        ) from error
    kept = []
    for text in stored:
        override = _parsed(text)
        key = override.key_or_group if override else ""
        if key in ("resume", "run_dir") or (key == "cache_dir" and typed):  # the command says where the run is
            continue
        if override is None or (reason := _beyond(override, text, folder)):
            reason = "is no override" if override is None else reason
            command = shown(f"python train.py {shlex.join(stored)}", longest=4000)
            raise InputError(
                f"Expected {folder}/.hydra/overrides.yaml to set values of settings and to choose options of groups, but got "
                f"'{shown(text)}', which {reason}. If you trust it, start the run anew with {command}"
            )
        if key == "cache_dir" and not _same(override.value(), folder):
            raise InputError(
                f"Expected the cache of a resumed run to be .cache or in its folder, but {folder}/.hydra/overrides.yaml has "
                f"'{shown(text)}'. Add {shown(shlex.quote(text))} to the command if this cache is yours."
            )
        kept.append(text)
    check_files(folder)
    if not any(text.startswith("images.size=") for text in kept):
        kept += [f"images.size={size}" for size in _stored_size(folder)]
    return [*kept, *typed]


def _stored_size(folder: Path) -> list[int]:
    """The size of images that null stood for, which another version may fill in otherwise; empty if none is recorded."""
    file = folder / ".hydra" / "config.yaml"
    if not file.is_file():
        return []
    config = read_yaml(file)
    images = config.get("images") if isinstance(config, dict) else None
    size = images.get("size") if isinstance(images, dict) else None
    return [size] if isinstance(size, int) else []


def _parsed(text: str) -> Override | None:
    if text.startswith("-") or len(text) > LONGEST or not is_shown(text):
        return None
    try:
        return OverridesParser.create().parse_override(text)
    except (HydraException, RecursionError):
        return None


def _beyond(override: Override, text: str, folder: Path) -> str:
    """What an override does beyond setting a value and choosing an option; empty if it does nothing beyond."""
    key, value = override.key_or_group, None if override.is_sweep_override() else override.value()
    if override.type == OverrideType.DEL and re.fullmatch(r"mitigation\.\w+", key):
        return ""
    if override.type != OverrideType.CHANGE or override.package is not None or "@" in text.partition("=")[0]:
        return "adds, deletes or moves a setting"
    if not KEY.fullmatch(key):
        return "is no setting of a run"
    if override.is_sweep_override() or not _is_plain(value):
        return "is not a number, a text or a list of them"
    if "${" in str(value) or "${" in text:
        return "refers to another value"
    if is_group(key):
        known = options(key)
        unknown = [name for name in (value if isinstance(value, list) else [value]) if name is not None and name not in known]
        return f"is no option of {key}" if unknown else ""
    if NAMES.fullmatch(key) and isinstance(value, list):
        return "is no name"
    named = NAMES.fullmatch(key) and {"/", ".."} & {*Path(str(value)).parts}
    return "says where to write" if named or (PLACES.fullmatch(key) and key != "cache_dir") else ""


def _is_plain(value: Any) -> bool:
    """Whether a value is null, a flag, a number, a text, or a list of those."""
    if isinstance(value, list):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, bool | int | float | str)


def _same(place: object, folder: Path) -> bool:
    """Whether a cache is the default one, or in the run folder."""
    return str(place) == ".cache" or within(Path(str(place)), folder)


def check_place(folder: Path) -> None:
    """Refuse to write where something else than a run is, and what :func:`check_files` refuses.

    Raises:
        InputError: such a folder.
    """
    if not folder.is_dir():
        return
    others = [path.name for path in folder.iterdir() if not path.name.startswith(".") and path.suffix != ".log"]
    if others and not any((folder / name).is_file() for name in RUN) and not _is_record(folder / "metrics.json"):
        raise InputError(
            f"Expected the run folder to be new, empty or the folder of a run, but '{folder}' holds other files, such as "
            f"'{shown(min(others))}'. Choose another folder."
        )
    check_files(folder)


def _is_record(file: Path) -> bool:
    """Whether a ``metrics.json`` is that of a run: other programs use the name, too."""
    try:
        return isinstance(read_json(file).get("meta"), dict)
    except DamagedFile:
        return file.is_file() and b'"meta"' in file.read_bytes()[-LARGEST:]
    except OSError:
        return False


def check_files(folder: Path) -> None:
    """Check that everything below a run folder is a file or a folder of its own: a run may write to any of them.

    Raises:
        InputError: a link that leads out, a file that has another name elsewhere, a pipe or a device, or folders too deep.
    """
    for entry in below(folder):
        path = Path(entry.path)
        if reason := _not_its_own(entry, path, folder):
            name = shown(path.relative_to(folder))
            raise InputError(
                f"Expected the run folder '{folder}' to hold files of its own, but '{name}' is {reason}. "
                "Remove it, or use another folder."
            )


def _not_its_own(entry: os.DirEntry[str], path: Path, folder: Path) -> str:
    """Why a run must not write to a path below its folder; empty if it may."""
    if entry.is_symlink():
        return "" if within(path, folder) else f"a link to '{shown(path.readlink())}'"
    if path.parts[-2:] == WANDB:
        return "settings of wandb, which may name another server for your key"
    if len(path.parts) - len(folder.parts) > DEEPEST:
        return f"more than {DEEPEST} folders below it"
    try:
        status = entry.stat(follow_symlinks=False)
    except FileNotFoundError:  # of a run that just replaced it
        return ""
    if stat.S_ISREG(status.st_mode) and status.st_nlink > 1:
        return "a hard link, which has another name elsewhere"
    return kind(status.st_mode)
