"""Snapshots of printed tables, and figures that are closed after every test."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import matplotlib.pyplot as plt
import pytest

SNAPSHOTS = Path(__file__).with_name("snapshots")


@pytest.fixture(autouse=True)
def _closed() -> Iterator[None]:
    yield
    plt.close("all")


@pytest.fixture
def snapshot() -> Callable[[str, str], None]:
    """Compare a text with the file of this name; ``SNAPSHOTS=write pytest`` writes the files anew."""

    def check(name: str, text: str) -> None:
        lines = [line.rstrip() for line in text.splitlines()]
        path = SNAPSHOTS / f"{name}.txt"
        if os.environ.get("SNAPSHOTS") == "write":
            path.write_text("\n".join(lines) + "\n")
        assert path.read_text().splitlines() == lines

    return check
