"""A run folder as reports see it: metrics by what, layer, metric and group; maps by layer."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sdprobe.tokens.keys import ENDS, Key, label_of
from sdprobe.utilities.io import read_arrays, read_json

SCHEMA = 2  # of metrics.json; runs of an older one have no pseudo-values that a test could use


@dataclass(frozen=True)
class Run:
    """metrics.json and maps.npz of one run."""

    metrics: dict[str, float]
    meta: dict[str, Any]
    maps: dict[str, np.ndarray]
    folder: Path = Path()

    @classmethod
    def read(cls, folder: Path, maps: bool = True) -> "Run":
        """Raises FileNotFoundError where there is no metrics.json. Many runs at once are read without their maps."""
        metrics = read_json(folder / "metrics.json")
        meta = metrics.pop("meta")
        arrays = read_arrays(folder / "maps.npz") if maps and (folder / "maps.npz").is_file() else {}
        return cls(metrics, meta, arrays, folder)

    def pseudovalues(self) -> dict[str, np.ndarray]:
        """``<what>/<layer>/<metric>/<group>`` → what every sampled unit contributes; none for runs of an older schema."""
        path = self.folder / "pseudovalues.npz"
        if int(self.meta.get("schema", 1)) < SCHEMA or not path.is_file():
            return {}
        return read_arrays(path)

    @property
    def layers(self) -> list[str]:
        """Measured layers in execution order."""
        return list(self.meta["layers"])

    @property
    def bases(self) -> list[str]:
        """Measured layers themselves, without their variants behind mitigations."""
        return [layer for layer in self.layers if not label_of(layer)]

    @property
    def labels(self) -> list[str]:
        """Mitigations that stand beside the layers, in order; empty unless a run compares."""
        return list(dict.fromkeys(filter(None, map(label_of, self.layers))))

    @property
    def kind(self) -> str:
        """What was measured: ``position``, ``statistics``, ``content``, …"""
        return str(self.meta.get("probe", "position"))

    @property
    def chain(self) -> str:
        """Mitigations that all layers are behind, in order: ``standardize → leace``; empty for none."""
        steps = (self.meta.get("mitigations") or {}).get("none", {}).get("steps", ())
        return " → ".join(re.sub(r"(?<=[a-z])(?=[A-Z])", "_", step).lower() for step in steps)

    @property
    def setting(self) -> str:
        """Network, noise level and mitigations, for titles."""
        weights = "" if self.meta["weights"] == "stored" else f" with {self.meta['weights'].replace('-', ' weights, seed ')}"
        behind = f", behind {self.chain}" if self.chain else ""
        return f"{self.meta['model']}{weights}, timestep {self.meta['timestep']}{behind}"

    def value(self, what: str, layer: str, metric: str, group: str = "all", end: str = "") -> float | None:
        """A number of the run, None where it was not measured; ``end`` is ``ci_low`` or ``ci_high``."""
        return self.metrics.get(str(Key(what, layer, metric, group, end)))

    def estimate(
        self, what: str, layer: str, metric: str, group: str = "all"
    ) -> tuple[float | None, float | None, float | None]:
        """A number and both ends of its 95 % interval, each None where it was not measured."""
        value, low, high = (self.value(what, layer, metric, group, end) for end in ("", *ENDS))
        return value, low, high
