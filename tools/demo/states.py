"""Saved states of a training run: atomic, read back without unpickling code; and the loss curve as a CSV file."""

import csv
import time
from pathlib import Path
from typing import Any

import torch

from sdprobe.utilities.io import replacing


class Clock:
    """Signals every `seconds` that a state should be saved."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.last = seconds, time.monotonic()

    def due(self) -> bool:
        """Whether `seconds` have passed since this last returned True."""
        if time.monotonic() - self.last < self.seconds:
            return False
        self.last = time.monotonic()
        return True


def save_state(path: Path, state: dict[str, Any]) -> None:
    """Write `state` so that an interruption leaves the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        torch.save(state, file)


def load_state(path: Path) -> dict[str, Any] | None:
    """The state in `path`, or None if there is none."""
    if not path.exists():
        return None
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return state


def log_line(path: Path, **values: float) -> None:
    """Append one row to a CSV file, with a header if it is new."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = not path.exists()
    with path.open("a", newline="") as file:
        rows = csv.writer(file)
        if new:
            rows.writerow(values)
        rows.writerow(f"{value:.6g}" for value in values.values())
