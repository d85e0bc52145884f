"""The log as a person reads it."""

import io
import logging
import sys

import pytest

from sdprobe.runs.console import Marked, Stderr


def test_a_warning_that_many_layers_give_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    handler, log = Stderr(), logging.Logger("many layers")
    handler.setFormatter(Marked("%(message)s"))
    log.addHandler(handler)
    for _ in range(3):
        log.warning("rank %d is much", 4)
    log.info("next")
    log.info("next")
    log.warning("rank %d is much", 4)
    log.warning("rank %d is much", 7)
    assert sys.stderr.getvalue() == "Warning: rank 4 is much\nnext\nnext\nWarning: rank 7 is much\n"  # type: ignore[attr-defined]
