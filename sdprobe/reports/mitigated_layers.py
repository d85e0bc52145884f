"""Merges runs with ``datamodule.compare=true``: per layer, every mitigation compared with none.

Runs of one setting, also of different probes, give one :class:`MitigatedLayer` per layer.
"""

import logging
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from sdprobe.metrics.intervals import FEWEST
from sdprobe.metrics.sign_flips import adjusted_p
from sdprobe.reports.grouping import mitigation_groups
from sdprobe.reports.run import Run
from sdprobe.tokens.keys import ENDS, ENERGY, OVER_NONE, Key, base_of, label_of, select, variant

log = logging.getLogger(__name__)

NONE = "none"
CONTROLS = ("random_rank", "shuffled_position", "pca_drop", "empty_image")
RANDOM = CONTROLS[0]
LEVEL = 0.05
NOTHING = 0.02  # a change whose whole interval lies within ± this counts as no change
LEAST_PCK = 0.08  # below this PCK, matching is too close to chance for a loss to show
POSITION, PCK, CONTENT = "binned_accuracy/all", "pck_ours_point_0.10/all", "content_r2/all"
# metric/group → heading, in the order of the table
METRICS = {
    POSITION: "position",
    "r_pos/all": "V_pos",
    "r_cor/all": "corner\nrisk",
    "relative_norm/corner": "corner\nnorm",
    CONTENT: "content\nR²",
    PCK: "PCK\nall",
    "pck_ours_point_0.10/displacement_near": "PCK\nnear",
    "pck_ours_point_0.10/displacement_middle": "PCK\nmiddle",
    "pck_ours_point_0.10/displacement_far": "PCK\nfar",
    "rmse/all": "depth\nRMSE",
}
# written into the CSV only
MORE = (
    "axis_accuracy/all", "cell_accuracy/all", "r_norm/all", "credibility/all",
    *(f"relative_norm/{group}" for group in ("border", "interior", "high_norm")),
)  # fmt: skip
Place = tuple[str, str]  # layer, mitigation
APART = 1e-3  # tolerance for the same number in two runs


@dataclass(frozen=True)
class Cell:
    """A metric with a mitigation, and its gain over no mitigation; NaN if not measured.

    ``energy``: the same with as much energy removed along random directions, which belongs to no family.
    ``p`` is adjusted for the family of the metric, see :class:`Family`. Controls belong to no family and have no p.
    """

    value: float
    ci_low: float = math.nan
    ci_high: float = math.nan
    gain: float = math.nan
    gain_ci_low: float = math.nan
    gain_ci_high: float = math.nan
    units: int = 0
    p: float = math.nan
    energy: float = math.nan
    energy_ci_low: float = math.nan
    energy_ci_high: float = math.nan

    @property
    def significant(self) -> bool:
        """Whether the gain differs from 0."""
        return self.p < LEVEL


@dataclass(frozen=True)
class Row:
    """A mitigation of a layer: its cells by metric, and its cost.

    ``beyond``: (position accuracy minus that of the random control of equal rank, adjusted p); NaN without such a control.
    """

    label: str
    family: str
    cells: dict[str, Cell]
    passes: float
    fit_images: tuple[int, ...]
    rank: int | None
    beyond: tuple[float, float] = (math.nan, math.nan)

    @property
    def control(self) -> bool:
        """Whether it is a control for comparison and not meant for use."""
        return _is(self, CONTROLS)

    @property
    def random(self) -> bool:
        """Whether it removes a random subspace."""
        return _is(self, (RANDOM,))


@dataclass(frozen=True)
class Family:
    """Comparisons that are corrected together: one metric, all layers and mitigations of a group of runs, the same units."""

    columns: int
    units: int


@dataclass(frozen=True)
class MitigatedLayer:
    """A layer of a network: first no mitigation, then the mitigations in the given order.

    ``families``: metric → its :class:`Family`. ``tested``: whether the runs have pseudo-values for tests (schema 2 or later).
    """

    setting: str
    layer: str
    chance: float
    rows: list[Row]
    families: dict[str, Family] = field(default_factory=dict)
    tested: bool = True

    @property
    def none(self) -> Row:
        """The layer without mitigation."""
        return self.rows[0]


def mitigated_layers(runs: Iterable[Run]) -> list[MitigatedLayer]:
    """Every layer with variants, by group of :func:`~sdprobe.reports.grouping.mitigation_groups`, in execution order.

    If two runs of a group disagree about a number, one label names two mitigations. The later run is then left out with a
    warning.
    """
    found = []
    for title, together in mitigation_groups(runs).items():
        kept, metrics = _merged(together, title)
        layers = dict.fromkeys(base_of(name) for run in kept for name in run.layers)
        group = [_layer(title, layer, kept, metrics) for layer in layers]
        found += _tested(group, kept)
    return found


def verdict(layer: MitigatedLayer, row: Row) -> str:
    """Whether a mitigation works: ``yes``, ``no`` with the reason, or what is missing or inconclusive.

    It works if it lowers position accuracy significantly, also compared with the random control of equal rank, and does not
    lower PCK: PCK without mitigation is at least 8 % and the interval of its gain lies above −.02. It does not work if PCK
    falls significantly. Otherwise the result is inconclusive.
    """
    if row.label == NONE:
        return ""
    if row.control:
        return "control"
    position, pck = row.cells.get(POSITION), row.cells.get(PCK)
    if position is None:
        return "undecided: run probe=position"
    if math.isnan(position.p):
        few = POSITION in layer.families and layer.families[POSITION].units < FEWEST
        return "too few photographs" if few else "not tested: run again"
    if not position.significant:
        within = max(-position.gain_ci_low, position.gain_ci_high) < NOTHING  # False without an interval
        unchanged = position.gain == 0 and math.isnan(position.gain_ci_low)
        return "no: position unchanged" if within or unchanged else "position inconclusive"
    if position.gain > 0:
        return "no: position rises"
    if pck is not None and pck.significant and pck.gain < 0:
        return "no: lowers PCK"
    control = counterpart(layer, row)
    if control is None:
        there = any(each.random for each in layer.rows)  # in the runs of another probe
        return f"undecided: {'run probe=position with' if there else 'add'} mitigation random_rank"
    if not row.beyond[1] < LEVEL:
        return f"vs. {control.label} inconclusive"
    if row.beyond[0] > 0:
        return f"no: removes less than {control.label}"
    if pck is None or math.isnan(pck.gain_ci_low):
        few = PCK in layer.families and layer.families[PCK].units < FEWEST
        return "undecided: run probe=correspondence" if pck is None else "too few pictures" if few else "PCK inconclusive"
    if layer.none.cells[PCK].value < LEAST_PCK:
        return f"PCK below {LEAST_PCK:.0%}"
    return "yes" if pck.gain_ci_low > -NOTHING else "PCK inconclusive"


def counterpart(layer: MitigatedLayer, row: Row) -> Row | None:
    """The random control of equal rank, else the smallest of higher rank, else (or without a rank) the largest."""
    controls = sorted((each for each in layer.rows if each.random and POSITION in each.cells), key=lambda each: each.rank or 0)
    if not controls:
        return None
    larger = [each for each in controls if row.rank is not None and (each.rank or 0) >= row.rank]
    return larger[0] if larger else controls[-1]


def _is(row: Row, kinds: tuple[str, ...]) -> bool:
    return row.label.startswith(kinds) or row.family.lower() in {kind.replace("_", "") for kind in kinds}


def _layer(setting: str, layer: str, runs: list[Run], metrics: Mapping[str, float]) -> MitigatedLayer:
    described: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for run in runs:
        for label, description in run.meta.get("mitigations", {}).items():
            described[label].append(description)
    labels = dict.fromkeys(label_of(name) for run in runs for name in run.layers if base_of(name) == layer)
    cells = {label: _cells(metrics, variant(layer, label)) for label in labels}
    rows = [_row(label or NONE, layer, cells[label], described[label or NONE]) for label in sorted(labels, key=bool)]
    return MitigatedLayer(setting, layer, metrics.get(f"chance/{layer}/{POSITION}", math.nan), rows)


def _tested(group: list[MitigatedLayer], runs: list[Run]) -> list[MitigatedLayer]:
    """Layers with p-values of every metric, and of the comparison with the random controls."""
    units = {key: values for run in runs for key, values in select(run.pseudovalues(), condition="test").items()}
    families: dict[str, Family] = {}
    for key in (*METRICS, *MORE):
        rows = [(layer, row) for layer in group for row in layer.rows if row.label != NONE and not row.control]
        columns = {(layer.layer, row.label): _difference(units, layer.layer, row.label, "", key) for layer, row in rows}
        adjusted, family = _adjusted(columns)
        if family.columns:
            families[key] = family
        for layer, row in rows:
            if key in row.cells and not math.isnan(row.cells[key].gain):
                place = layer.layer, row.label
                count = int(np.isfinite(columns[place]).sum())
                row.cells[key] = replace(row.cells[key], p=adjusted.get(place, math.nan), units=count)
    controls = {
        (layer.layer, row.label): control.label
        for layer in group
        for row in layer.rows
        if not row.control and row.label != NONE and (control := counterpart(layer, row)) is not None
    }
    differences = {place: _difference(units, *place, label, POSITION) for place, label in controls.items()}
    adjusted, _ = _adjusted(differences)
    return [
        replace(
            layer,
            families=families,
            tested=bool(units),
            rows=[replace(row, beyond=_beyond(differences, adjusted, (layer.layer, row.label))) for row in layer.rows],
        )
        for layer in group
    ]


def _difference(units: Mapping[str, np.ndarray], layer: str, label: str, other: str, key: str) -> np.ndarray:
    """Per unit: a metric with one mitigation minus with another (empty label: none); empty if one was not measured."""
    own, base = (units.get(f"test/{variant(layer, name)}/{key}", np.empty(0)) for name in (label, other))
    return own - base if len(own) == len(base) else np.empty(0)


def _adjusted(columns: Mapping[Place, np.ndarray]) -> tuple[dict[Place, float], Family]:
    """(adjusted p by column, their family); columns whose number of units differs from the most common one are left out."""
    lengths = Counter(len(values) for values in columns.values() if len(values))
    if not lengths:
        return {}, Family(0, 0)
    units = lengths.most_common(1)[0][0]
    kept = {place: values for place, values in columns.items() if len(values) == units}
    p = adjusted_p(np.stack(list(kept.values()), axis=1))
    return dict(zip(kept, p.tolist(), strict=True)), Family(len(kept), units)


def _beyond(differences: Mapping[Place, np.ndarray], adjusted: Mapping[Place, float], place: Place) -> tuple[float, float]:
    values = differences.get(place, np.empty(0))
    return (float(np.nanmean(values)) if np.isfinite(values).any() else math.nan, adjusted.get(place, math.nan))


def _merged(runs: list[Run], title: str) -> tuple[list[Run], dict[str, float]]:
    """(runs that agree with the runs before them, merged numbers)."""
    kept: list[Run] = []
    merged: dict[str, float] = {}
    for run in runs:
        numbers = {key: value for key, value in run.metrics.items() if _wanted(key)}
        apart = [key for key, value in numbers.items() if abs(merged.get(key, value) - value) > APART]
        if apart:
            key = apart[0]
            log.warning(
                "%s is left out of the mitigations of %s: its %s is %.4g, and %.4g in an earlier run. Report these runs "
                "separately, or give every mitigation its own label.", run.folder, title, key, numbers[key], merged[key],
            )  # fmt: skip
            continue
        kept.append(run)
        merged = numbers | merged
    return kept, merged


def _wanted(text: str) -> bool:
    key = Key.parse(text)
    known = key.condition in ("test", "chance", OVER_NONE, ENERGY) and key.statistic in ("", *ENDS, "n")
    return known and key.quantity in (*METRICS, *MORE)


def _cells(metrics: Mapping[str, float], name: str) -> dict[str, Cell]:
    found = {}
    for key in (*METRICS, *MORE):
        if (value := metrics.get(f"test/{name}/{key}")) is not None:
            ends = [metrics.get(f"test/{name}/{key}/{end}", math.nan) for end in ("ci_low", "ci_high")]
            gain = [metrics.get(f"gain_over_none/{name}/{key}{end}", math.nan) for end in ("", "/ci_low", "/ci_high")]
            units = int(metrics.get(f"gain_over_none/{name}/{key}/n", 0))
            energy = [metrics.get(f"{ENERGY}/{name}/{key}{end}", math.nan) for end in ("", "/ci_low", "/ci_high")]
            own = Cell(value, ends[0], ends[1], gain[0], gain[1], gain[2], units)
            found[key] = replace(own, energy=energy[0], energy_ci_low=energy[1], energy_ci_high=energy[2])
    return found


def _row(label: str, layer: str, cells: dict[str, Cell], described: list[Mapping[str, Any]]) -> Row:
    fits = [fit for description in described for fit in description["fits"].get(layer, [])]
    images = {int(fit["fit_images"]) for fit in fits if fit.get("fit_images")}
    ranks = [int(fit["rank"]) for fit in fits if fit.get("rank") is not None]
    steps = described[0]["steps"] if described else []
    passes = max((float(description["passes"]) for description in described), default=math.nan)
    return Row(label, steps[0] if steps else label, cells, passes, tuple(sorted(images)), max(ranks, default=None))
