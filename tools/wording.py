"""Formats numbers and verdicts for the documents: each with its interval and n, or the reason why there is none."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdprobe.metrics.intervals import FEWEST_SEEDS
from sdprobe.reports.mitigated_layers import NOTHING
from sdprobe.utilities.errors import InputError
from sdprobe.utilities.io import read_json


@dataclass(frozen=True)
class Estimate:
    """A value and its 95 % interval, if it has one."""

    value: float
    low: float | None = None
    high: float | None = None

    def __str__(self) -> str:
        return self.text()

    def text(self, digits: int = 2, scale: float = 1, sign: bool = False) -> str:
        """``.57 [.54, .60]``; without brackets if there is no interval."""
        value = number(scale * self.value, digits, sign)
        if self.low is None or self.high is None:
            return value
        return f"{value} [{number(scale * self.low, digits, sign)}, {number(scale * self.high, digits, sign)}]"


@dataclass(frozen=True)
class Measured:
    """``metrics.json`` of a run folder, read by key."""

    folder: Path
    metrics: dict[str, float]
    meta: dict[str, Any]

    @classmethod
    def read(cls, folder: Path) -> "Measured":
        """Read a run folder; raises InputError if it has no results."""
        path = folder / "metrics.json"
        if not path.is_file():
            raise InputError(f"Expected {path} to exist, but it does not. Run the step again.")
        metrics = read_json(path)
        return cls(folder, metrics, metrics.pop("meta"))

    def number(self, key: str) -> float:
        """A value.

        Raises:
            InputError: the run did not measure it.
        """
        if key not in self.metrics:
            raise InputError(f"Expected {self.folder / 'metrics.json'} to have '{key}', but it does not. Correct the renderer.")
        return self.metrics[key]

    def estimate(self, key: str) -> Estimate:
        """A value with its interval over photographs."""
        return Estimate(self.number(key), self.metrics.get(f"{key}/ci_low"), self.metrics.get(f"{key}/ci_high"))

    def random(self, key: str, digits: int = 2, scale: float = 1, seeded: bool = False) -> str:
        """A value of ``random_weights`` with its interval over seeds and photographs, from three seeds on.

        Args:
            key: without ``random_weights/``.
            digits: after the point.
            scale: 100 for percent.
            seeded: give the number of seeds also if there is an interval.
        """
        text, seeds = self.random_estimate(key).text(digits, scale), self.seeds(key)
        return text if seeds >= FEWEST_SEEDS and not seeded else f"{text} ({'one seed' if seeds == 1 else f'{seeds} seeds'})"

    def random_estimate(self, key: str) -> Estimate:
        """A value of ``random_weights``; without interval below three seeds, because it would not cover other networks."""
        estimate = self.estimate(f"random_weights/{key}")
        return estimate if self.seeds(key) >= FEWEST_SEEDS else Estimate(estimate.value)

    def seeds(self, key: str) -> int:
        """Number of random networks in the mean ``random_weights/key``."""
        return int(self.metrics.get(f"random_weights/{key}/seeds", self.meta.get("twins", 1)))

    def tested(self, kind: str = "photographs") -> int:
        """Number of test photographs (``photographs``), images or pairs of the intervals."""
        counts = self.meta.get(kind) or self.meta["images"]
        return int(counts["test"])


def number(value: float, digits: int = 2, sign: bool = False) -> str:
    """Without the leading zero, with a minus sign (U+2212)."""
    text = re.sub(r"^([+-]?)0\.(?=\d)", r"\1.", f"{value:{'+' if sign else ''}.{digits}f}")
    return text.replace("-", "−")


def half_width(estimate: Estimate, n: str, digits: int = 3, scale: float = 1) -> str:
    """``.567 ± .024 (n = 32 photographs)``."""
    value = number(scale * estimate.value, digits)
    if estimate.low is None or estimate.high is None:
        return f"{value} (n = {n}, no interval)"
    arm = max(estimate.value - estimate.low, estimate.high - estimate.value)
    return f"{value} ± {number(scale * arm, digits)} (n = {n})"


def effect(estimate: Estimate, n: str, digits: int = 3) -> str:
    """A verdict on a difference, with value, interval and n.

    "no change" if the whole interval is within ± .02, "higher" or "lower" if the interval excludes 0, else "inconclusive".
    """
    numbers = f"{estimate.text(digits, sign=True)}, n = {n}"
    if estimate.low is None or estimate.high is None:
        return f"inconclusive ({numbers}, no interval because fewer than 6 differ)"
    if estimate.low >= -NOTHING and estimate.high <= NOTHING:
        return f"no change ({numbers})"
    if estimate.low > 0 or estimate.high < 0:
        return f"{'higher' if estimate.low > 0 else 'lower'} ({numbers})"
    return f"inconclusive ({numbers})"
