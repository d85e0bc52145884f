"""Text that others wrote, made fit to be shown, and where their paths lead; docs/trust.md says what may be trusted."""

import re
from pathlib import Path

# control characters, which terminals obey, and those that change the order of characters
_UNSHOWN = re.compile(r"[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufeff]")


def shown(text: object, longest: int = 200) -> str:
    """The text in one line without control characters, cut after so many characters.

    >>> shown("a\\x1b[2J\\nb"), shown("abcdef", longest=4)
    ('a�[2J b', 'abc…')
    """
    plain = _UNSHOWN.sub("\N{REPLACEMENT CHARACTER}", re.sub(r"[\t\r\n]+", " ", str(text)))
    return plain if len(plain) <= longest else f"{plain[: longest - 1]}…"


def is_shown(text: str) -> bool:
    """Whether a text has no character that :func:`shown` replaces."""
    return not _UNSHOWN.search(text)


def within(path: Path, folder: Path) -> bool:
    """Whether a path, with all links followed, is the folder or lies in it."""
    return path.resolve().is_relative_to(folder.resolve())
