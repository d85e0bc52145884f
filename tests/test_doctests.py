"""Examples in docstrings run as printed, in every module that has some."""

import doctest
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = [path for room in ("sdprobe", "datamodules", "probes", "tools") for path in sorted((ROOT / room).rglob("*.py"))]
MODULES = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in FILES if ">>>" in path.read_text()]


@pytest.mark.parametrize("module", MODULES)
def test_examples_run_as_printed(module: str) -> None:
    outcome = doctest.testmod(importlib.import_module(module.removesuffix(".__init__")))
    assert outcome.attempted and not outcome.failed
