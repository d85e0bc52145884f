"""Ctrl-C: the run ends with one sentence, at any moment. The module imports nothing slow, so that it works from the start."""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from sdprobe.utilities import locks

EXIT_CODE = 130
_state = {"sentence": "Interrupted before the run began; nothing was started.", "said": ""}


def begin() -> None:
    """End the process at once on Ctrl-C, with the text of :func:`expect`. Imports of compiled modules may swallow errors."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not of a command that a script put into the background
        signal.signal(signal.SIGINT, _end)


def expect(text: str) -> None:
    """Set what Ctrl-C will say from now on: how to go on, or what is left."""
    _state["sentence"] = text


def say() -> None:
    """Print the sentence, once, in the process that the user started."""
    if not _state["said"] and os.environ.get("LOCAL_RANK", "0") == "0":
        _state["said"] = _state["sentence"]
        sys.stderr.write(f"{_state['sentence']}\n")
        sys.stderr.flush()


def happened() -> bool:
    """Return whether the sentence was printed."""
    return bool(_state["said"])


@contextmanager
def deferred() -> Iterator[None]:
    """Raise KeyboardInterrupt on Ctrl-C within, so that a record can be written."""
    at_once = signal.getsignal(signal.SIGINT) is _end
    if at_once:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        if at_once:
            signal.signal(signal.SIGINT, _end)


def _end(number: int, frame: FrameType | None) -> None:
    say()
    locks.release_all()
    os._exit(EXIT_CODE)  # no cleanup: libraries may be half imported
