"""Tries the paths of a command once, before anything is built or written. Imports no torch."""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from sdprobe.utilities.errors import InputError
from sdprobe.utilities.foreign import shown, special


def check_folder(name: str, folder: object) -> None:
    """Check that a folder exists; what reads it knows what to say of a file.

    Args:
        name: of the setting, for the message.
        folder: its value.

    Raises:
        InputError: there is no such folder, or it cannot be read.
    """
    if not os.path.isfile(str(folder)):
        _try(name, folder, "a folder", os.listdir)


def check_file(name: str, file: object) -> None:
    """Check that a file exists.

    Args:
        name: of the setting, for the message.
        file: its value.

    Raises:
        InputError: there is no such file, or it cannot be read.
    """
    _try(name, file, "a file", _open)


def check_writable(name: str, folder: object) -> None:
    """Check that a folder can be written to, or made: a folder is made in the deepest of its parents that exists, and removed.

    Args:
        name: of the setting, for the message.
        folder: its value.

    Raises:
        InputError: it is a file, is protected, or has a name that the file system refuses.
    """
    _try(name, folder, "a folder that can be written to", _write)


def _try(name: str, value: object, wanted: str, attempt: Callable[[Path], object]) -> None:
    """Raises InputError with the reason why the file system refuses."""
    try:
        attempt(_path(value))
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
    except ValueError as error:  # a null byte, or a value that is no path
        reason = str(error)
    else:
        return
    spelt = "null" if value is None else shown(value, longest=80)
    raise InputError(f"Expected {name} to be {wanted}, but got '{spelt}' ({reason}). Correct the path.")


def _path(value: object) -> Path:
    if not isinstance(value, str) or not value.strip():
        raise ValueError("no path" if value in (None, "") else "not text")
    return Path(value).absolute()


def _open(path: Path) -> None:
    if strange := special(path):  # to open a pipe has no end
        raise OSError(0, strange)
    with open(path, "rb"):
        pass


def _write(path: Path) -> None:
    there = next(parent for parent in (path, *path.parents) if os.path.lexists(parent))
    longest = os.pathconf(there, "PC_NAME_MAX")
    if long := next((part for part in path.parts if len(os.fsencode(part)) > longest), None):
        raise OSError(0, f"the name '{long[:20]}…' is longer than {longest} bytes")
    os.rmdir(tempfile.mkdtemp(dir=there))
