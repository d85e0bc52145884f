"""The log as a person reads it: warnings and errors say so, and lines stay above a progress bar."""

import logging
import sys
import sysconfig
from typing import TextIO

from sdprobe.utilities.foreign import shown

PROJECT = ("sdprobe", "probes", "datamodules")
INSTALLED = tuple({sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib")})
MARKS = {logging.WARNING: "Warning: ", logging.ERROR: "Error: ", logging.CRITICAL: "Error: "}


class Marked(logging.Formatter):
    """Writes ``Warning:`` before warnings and ``Error:`` before errors.

    >>> Marked("%(message)s").format(logging.makeLogRecord({"levelno": logging.WARNING, "msg": "the disk is nearly full"}))
    'Warning: the disk is nearly full'
    """

    def format(self, record: logging.LogRecord) -> str:
        """Return the text of a record, without control characters of the names and values in it."""
        lines = (MARKS.get(record.levelno, "") + super().format(record)).split("\n")
        return "\n".join(shown(line, longest=len(line)) for line in lines)


def wanted(record: logging.LogRecord) -> bool:
    """Whether a record is for the user: of installed libraries only warnings and errors are.

    >>> wanted(logging.makeLogRecord({"name": "httpx", "levelno": logging.INFO, "pathname": f"{INSTALLED[0]}/httpx.py"}))
    False
    >>> wanted(logging.makeLogRecord({"name": "my_probes", "levelno": logging.INFO, "pathname": "/home/me/my_probes.py"}))
    True
    """
    own = record.name.partition(".")[0] in PROJECT or not record.pathname.startswith(INSTALLED)
    return own or record.levelno >= logging.WARNING


class Stderr(logging.StreamHandler[TextIO]):
    """Writes to what standard error is at the moment: a progress bar replaces it, to let other lines pass.

    A warning is written once: each of many layers may give the same.
    """

    def __init__(self, stream: object = None) -> None:
        logging.Handler.__init__(self)
        self._warned: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record."""
        text = record.getMessage()
        if record.levelno != logging.WARNING or text not in self._warned:
            super().emit(record)
        if record.levelno == logging.WARNING:
            self._warned.add(text)

    @property
    def stream(self) -> TextIO:  # type: ignore[override]
        """Standard error."""
        return sys.stderr
