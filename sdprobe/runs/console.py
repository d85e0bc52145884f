"""The log as a person reads it: warnings and errors say so, and lines stay above a progress bar."""

import logging
import sys
from typing import TextIO

from sdprobe.utilities.foreign import shown

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


class Stderr(logging.StreamHandler[TextIO]):
    """Writes to what standard error is at the moment: a progress bar replaces it, to let other lines pass."""

    def __init__(self, stream: object = None) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> TextIO:  # type: ignore[override]
        """Standard error."""
        return sys.stderr
