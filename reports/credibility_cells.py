"""Layer × timestep cells: what credibility says of a layer beside what position measurably costs there.

Statistics runs say the first, correspondence runs with ``position_mean`` as a variant the second.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from reports.mitigated_layers import LEAST_PCK
from reports.run import Run
from tokens.keys import variant

MITIGATION = "position_mean"
PCK = "pck_ours_point_0.10"
RISKS = {"credibility": "1 − credibility", "r_pos": "r_pos", "r_cor": "r_cor", "r_norm": "r_norm"}
HARMS = {"gain": "PCK gained by removing position,\ndisplaced pairs", "copy_excess": "position-copy excess"}
BASELINE = {"resolution": "resolution", "depth": "depth", "raw": "raw PCK"}


@dataclass(frozen=True)
class CredibilityCell:
    """A layer of a network at a timestep. ``credibility`` is 1 − Cred, so that every risk should go with more harm."""

    model: str
    timestep: int
    layer: str
    credibility: float
    r_pos: float
    r_cor: float
    r_norm: float
    gain: float
    copy_excess: float
    resolution: float
    depth: float
    raw: float

    @property
    def counts(self) -> bool:
        """Whether matching works well enough there for harm to mean anything."""
        return self.raw >= LEAST_PCK

    def has(self, *names: str) -> bool:
        """Whether these were measured."""
        return all(math.isfinite(getattr(self, name)) for name in names)


def credibility_cells(runs: Iterable[Run]) -> list[CredibilityCell]:
    """Every layer that both a statistics and a correspondence run of the same network and timestep measured.

    Depth is a layer's place in execution order among the measured ones; resolution its tokens per side.
    """
    statistics = {_key(run): run for run in runs if run.kind == "statistics"}
    found = []
    for run in runs:
        if run.kind == "correspondence" and _key(run) in statistics:
            said = statistics[_key(run)]
            found += [_cell(run, said, layer, place) for place, layer in enumerate(run.bases) if layer in said.layers]
    return found


def _key(run: Run) -> tuple[str, int, int]:
    weights = "" if run.meta["weights"] == "stored" else f" {run.meta['weights']}"
    return f"{run.meta['model']}{weights}", int(run.meta["timestep"]), int(run.meta.get("seed", 0))


def _cell(run: Run, statistics: Run, layer: str, place: int) -> CredibilityCell:
    model, timestep, _ = _key(run)
    credibility = statistics.value("test", layer, "credibility")
    values = {
        "credibility": None if credibility is None else 1 - credibility,
        **{name: statistics.value("test", layer, name) for name in ("r_pos", "r_cor", "r_norm")},
        "gain": run.value("gain_over_none", variant(layer, MITIGATION), PCK, "displacement_far"),
        "copy_excess": run.value("test", layer, "copy_excess"),
        "resolution": float(run.meta["shapes"][layer][1]),
        "depth": float(place),
        "raw": run.value("test", layer, PCK),
    }
    return CredibilityCell(model, timestep, layer, **{k: math.nan if v is None else v for k, v in values.items()})
