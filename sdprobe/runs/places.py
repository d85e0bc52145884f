"""Tries the paths of a command once, before anything is built or written. Imports no torch."""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from sdprobe.utilities.errors import InputError
from sdprobe.utilities.foreign import shown, special


def check_folder(name: str, folder: object) -> None:
    """Check that a folder exists.

    Args:
        name: of the setting, for the message.
        folder: its value.

    Raises:
        InputError: there is no such folder, or it cannot be read.
    """
    reason = _refused(lambda: os.listdir(_path(folder)))
    if reason == "not a directory" and os.path.isfile(str(folder)):
        return  # what reads it knows what to say of a file
    if reason:
        raise InputError(f"Expected {name} to be a folder, but '{_spelt(folder)}' is not{_why(reason)}. Correct the path.")


def check_file(name: str, file: object) -> None:
    """Check that a file exists.

    Args:
        name: of the setting, for the message.
        file: its value.

    Raises:
        InputError: there is no such file, or it cannot be read.
    """

    def opened() -> None:
        if strange := special(_path(file)):
            raise OSError(0, strange)
        with open(_path(file), "rb"):
            pass

    if reason := _refused(opened):
        raise InputError(f"Expected {name} to be a file, but '{_spelt(file)}' cannot be read ({reason}). Correct the path.")


def check_writable(name: str, folder: object) -> None:
    """Check that a folder can be written to, or made: a folder is made in the deepest of its parents that exists, and removed.

    Args:
        name: of the setting, for the message.
        folder: its value.

    Raises:
        InputError: it is a file, is protected, or has a name that the file system refuses.
    """

    def tried() -> None:
        path = _path(folder)
        there = next(parent for parent in (path, *path.parents) if os.path.lexists(parent))
        longest = os.pathconf(there, "PC_NAME_MAX")
        if long := next((part for part in path.parts if len(os.fsencode(part)) > longest), None):
            raise OSError(0, f"the name '{long[:20]}…' is longer than {longest} bytes")
        os.rmdir(tempfile.mkdtemp(dir=there))

    if reason := _refused(tried):
        raise InputError(
            f"Expected {name} to be a folder that can be written to, but got '{_spelt(folder)}' ({reason}). Choose another."
        )


def _spelt(value: object) -> str:
    return "null" if value is None else shown(value, longest=80)


def _why(reason: str) -> str:
    return "" if reason in ("no such file or directory", "not a directory") else f" ({reason})"


def _path(value: object) -> Path:
    if not isinstance(value, str) or not value.strip():
        raise ValueError("no path" if value in (None, "") else "not text")
    return Path(value).absolute()


def _refused(attempt: Callable[[], object]) -> str:
    """Why the file system refuses; empty if it does not."""
    try:
        attempt()
    except OSError as error:
        return (error.strerror or str(error)).lower()
    except ValueError as error:  # a null byte, or a value that is no path
        return str(error)
    return ""
