"""A run folder for reports: metrics by condition, layer, metric and group; maps by layer."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sdprobe.reports.recorded import checked, shown_names
from sdprobe.tokens.keys import ENDS, Key, label_of
from sdprobe.utilities.io import parsing, read_arrays, read_json

SCHEMA = 2  # of metrics.json; older runs have no pseudo-values for significance tests


@dataclass(frozen=True)
class Run:
    """metrics.json and maps.npz of one run."""

    metrics: dict[str, float]
    meta: dict[str, Any]
    maps: dict[str, np.ndarray]
    folder: Path = Path()

    @classmethod
    def read(cls, folder: Path, maps: bool = True) -> "Run":
        """Read a folder, without maps if many runs are compared.

        Raises:
            FileNotFoundError: there is no metrics.json.
            DamagedFile: a file holds something else than what a run writes.
        """
        content = read_json(folder / "metrics.json")
        with parsing(folder / "metrics.json"):
            metrics, meta = checked(content)
        arrays = read_arrays(folder / "maps.npz") if maps and (folder / "maps.npz").is_file() else {}
        with parsing(folder / "maps.npz"):
            arrays = shown_names(arrays)
        return cls(metrics, meta, arrays, folder)

    def pseudovalues(self, quantity: str = "") -> dict[str, np.ndarray]:
        """``<condition>/<layer>/<metric>/<group>`` → contribution of every sampled unit; empty for runs of an older schema.

        ``quantity``: read those of this ``<metric>/<group>`` only.
        """
        path = self.folder / "pseudovalues.npz"
        if int(self.meta.get("schema", 1)) < SCHEMA or not path.is_file():
            return {}
        return read_arrays(path, f"/{quantity}" if quantity else "")

    @property
    def layers(self) -> list[str]:
        """Measured layers in execution order."""
        return list(self.meta["layers"])

    @property
    def bases(self) -> list[str]:
        """Measured layers, without their variants with mitigations."""
        return [layer for layer in self.layers if not label_of(layer)]

    @property
    def labels(self) -> list[str]:
        """Mitigations that the run compares with no mitigation, in order; empty for other runs."""
        return list(dict.fromkeys(filter(None, map(label_of, self.layers))))

    @property
    def kind(self) -> str:
        """Kind of the probe: ``position``, ``statistics``, ``content``, …"""
        return str(self.meta.get("probe", "position"))

    @property
    def chain(self) -> str:
        """Mitigations that are applied to all layers, in order: ``standardize → leace``; empty for none."""
        steps = (self.meta.get("mitigations") or {}).get("none", {}).get("steps", ())
        return " → ".join(re.sub(r"(?<=[a-z])(?=[A-Z])", "_", step).lower() for step in steps)

    @property
    def setting(self) -> str:
        """Network, noise level and mitigations, for titles."""
        weights = "" if self.meta["weights"] == "stored" else f" with {self.meta['weights'].replace('-', ' weights, seed ')}"
        mitigated = f", with mitigation {self.chain}" if self.chain else ""
        return f"{self.meta['model']}{weights}, timestep {self.meta['timestep']}{mitigated}"

    def value(self, condition: str, layer: str, metric: str, group: str = "all", end: str = "") -> float | None:
        """A number of the run, or None if it was not measured; ``end`` is ``ci_low`` or ``ci_high``."""
        return self.metrics.get(str(Key(condition, layer, metric, group, end)))

    def estimate(
        self, condition: str, layer: str, metric: str, group: str = "all"
    ) -> tuple[float | None, float | None, float | None]:
        """A number and both ends of its 95 % interval; each is None if it was not measured."""
        value, low, high = (self.value(condition, layer, metric, group, end) for end in ("", *ENDS))
        return value, low, high
