"""When to save the state of a training run, and the loss curve as a CSV file."""

import csv
import time
from pathlib import Path


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


def log_line(path: Path, **values: float) -> None:
    """Append one row to a CSV file, with a header if it is new."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = not path.exists()
    with path.open("a", newline="") as file:
        rows = csv.writer(file)
        if new:
            rows.writerow(values)
        rows.writerow(f"{value:.6g}" for value in values.values())
