"""Text that others wrote, made fit to be shown, and where their paths lead; docs/trust.md says what may be trusted."""

import os
import re
import stat
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

LINE = 1000  # bytes of a line that are read
# control characters, which terminals obey, and those that change the order of characters
_UNSHOWN = re.compile(r"[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufeff]")


def shown(text: object, longest: int = 200) -> str:
    """The text in one line without control characters, cut after so many characters.

    >>> shown("a\\x1b[2J\\nb"), shown("abcdef", longest=4)
    ('a�[2J b', 'abc…')
    """
    plain = _UNSHOWN.sub("\N{REPLACEMENT CHARACTER}", re.sub(r"[\t\r\n]+", " ", str(text)))
    return plain if len(plain) <= longest else f"{plain[: longest - 1]}…"


def first_line(file: Path) -> str:
    """The first line of a text file, fit to be shown; empty if it has none or cannot be read."""
    if special(file):
        return ""
    try:
        with open(file, "rb") as stream:
            text = stream.read(LINE).decode(errors="replace")
    except OSError:
        return ""
    return shown(next(iter(text.splitlines()), ""))


def is_shown(text: str) -> bool:
    """Whether a text has no character that :func:`shown` replaces."""
    return not _UNSHOWN.search(text)


def within(path: Path, folder: Path) -> bool:
    """Whether a path, with all links followed, is the folder or lies in it. A link that leads to itself does not."""
    try:
        return path.resolve().is_relative_to(folder.resolve())
    except (OSError, RuntimeError):
        return False


def below(folder: Path) -> Iterator[os.DirEntry[str]]:
    """Everything below a folder. Links are not followed, and what may not be listed is left out."""
    waiting = [str(folder)]
    while waiting:
        with suppress(OSError), os.scandir(waiting.pop()) as entries:
            for entry in entries:
                yield entry
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(entry.path)


def special(path: Path) -> str:
    """What a path is if it is neither a file nor a folder nor a link to one: to open a pipe has no end. Empty otherwise."""
    try:
        return kind(path.stat().st_mode)
    except (OSError, ValueError):  # it does not exist, or may not be seen
        return ""


def kind(mode: int) -> str:
    """What a mode of :func:`os.stat` says, for a message; empty for files, folders and links.

    >>> kind(stat.S_IFIFO | 0o644), kind(stat.S_IFREG)
    ('a pipe', '')
    """
    names = {stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device"}
    return names.get(stat.S_IFMT(mode), "")
