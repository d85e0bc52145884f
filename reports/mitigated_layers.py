"""What runs with ``datamodule.compare=true`` measured, put side by side: per layer, every mitigation beside none.

Runs of one setting are one :class:`MitigatedLayer` per layer, whatever probe each of them had.
"""

import logging
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from reports.holm import holm
from reports.mitigation_groups import mitigation_groups
from reports.run import Run, base_of, label_of, variant

log = logging.getLogger(__name__)

NONE = "none"
CONTROLS = ("random_rank", "shuffled_position", "pca_drop", "empty_image")
RANDOM = CONTROLS[0]
LEVEL = 0.05
LEAST_PCK = 0.08  # matching below it is too close to nothing to be harmed
POSITION, PCK, CONTENT = "binned_accuracy/all", "pck_ours_point_0.10/all", "content_r2/all"
# metric/group → heading; in the order of the table
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
# written into the CSV as well
MORE = (
    "axis_accuracy/all", "cell_accuracy/all", "r_norm/all", "credibility/all",
    *(f"relative_norm/{group}" for group in ("border", "interior", "high_norm")),
)  # fmt: skip
ENDS = tuple(f"/{key}" for key in (*METRICS, *MORE))
APART = 1e-3  # what two runs may differ by in the same number


@dataclass(frozen=True)
class Cell:
    """A metric behind a mitigation, and how much it lies above no mitigation; NaN where nothing was measured."""

    value: float
    ci_low: float = math.nan
    ci_high: float = math.nan
    gain: float = math.nan
    gain_ci_low: float = math.nan
    gain_ci_high: float = math.nan
    p: float = math.nan
    p_holm: float = math.nan

    @property
    def significant(self) -> bool:
        """Whether the gain differs from 0 after Holm's correction."""
        return self.p_holm < LEVEL


@dataclass(frozen=True)
class Row:
    """A mitigation of a layer: its cells by metric, and what it took."""

    label: str
    family: str
    cells: dict[str, Cell]
    passes: float
    fit_images: tuple[int, ...]
    rank: int | None

    @property
    def control(self) -> bool:
        """Whether it is there to be compared with, not to be used."""
        return _is(self, CONTROLS)

    @property
    def random(self) -> bool:
        """Whether it removes a random subspace."""
        return _is(self, (RANDOM,))


@dataclass(frozen=True)
class MitigatedLayer:
    """A layer of a network: none first, then the mitigations in the order they were given."""

    setting: str
    layer: str
    chance: float
    rows: list[Row]

    @property
    def none(self) -> Row:
        """The layer itself."""
        return self.rows[0]


def mitigated_layers(runs: Iterable[Run]) -> list[MitigatedLayer]:
    """Every layer with variants, group by group of :func:`~reports.mitigation_groups.mitigation_groups`, in execution order.

    Where two runs of a group disagree about a number, so that one label stands for two mitigations, the later is left out
    of the group with a warning.
    """
    found = []
    for title, together in mitigation_groups(runs).items():
        kept, metrics = _merged(together, title)
        layers = dict.fromkeys(base_of(name) for run in kept for name in run.layers)
        found += [_layer(title, layer, kept, metrics) for layer in layers]
    return found


def verdict(layer: MitigatedLayer, row: Row) -> str:
    """Whether a mitigation works: ``yes``, or why not, or what is missing to tell.

    It works if it lowers position accuracy significantly, by more than the random control of its rank (see :func:`beyond`),
    and does not lower PCK significantly, of which there must be something to lose: 8 % without mitigation. Significance is
    after Holm's correction.
    """
    if row.label == NONE:
        return ""
    if row.control:
        return "control"
    position, pck = row.cells.get(POSITION), row.cells.get(PCK)
    if position is None:
        return "position missing"
    if math.isnan(position.p_holm):
        return "too few images"
    if not (position.significant and position.gain < 0):
        return "no: position stays"
    control = counterpart(layer, row)
    if pck is not None and pck.significant and pck.gain < 0:
        return "no: lowers PCK"
    if control is None:
        return "random_rank missing"
    if not beyond(position, control.cells[POSITION]):
        return f"no: not beyond {control.label}"
    if pck is None or math.isnan(pck.p_holm):
        return "PCK missing" if pck is None else "too few pairs"
    return "yes" if layer.none.cells[PCK].value >= LEAST_PCK else f"PCK below {LEAST_PCK:.0%}"


def counterpart(layer: MitigatedLayer, row: Row) -> Row | None:
    """The random control of the same rank; else the smallest of a higher rank; else, and for what has no rank, the largest."""
    controls = sorted((each for each in layer.rows if each.random and POSITION in each.cells), key=lambda each: each.rank or 0)
    if not controls:
        return None
    larger = [each for each in controls if row.rank is not None and (each.rank or 0) >= row.rank]
    return larger[0] if larger else controls[-1]


def beyond(cell: Cell, control: Cell) -> bool:
    """Whether a gain lies below a control's, their intervals apart.

    Both are gains over the same layer, whose covariance a run does not keep. Intervals that do not overlap are stricter than
    an interval of the paired difference, since sd(a − b) ≤ sd(a) + sd(b) however the two depend on each other.
    """
    return cell.gain_ci_high < control.gain_ci_low


def _is(row: Row, kinds: tuple[str, ...]) -> bool:
    return row.label.startswith(kinds) or row.family.lower() in {kind.replace("_", "") for kind in kinds}


def _layer(setting: str, layer: str, runs: list[Run], metrics: Mapping[str, float]) -> MitigatedLayer:
    described: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for run in runs:
        for label, said in run.meta.get("mitigations", {}).items():
            described[label].append(said)
    labels = dict.fromkeys(label_of(name) for run in runs for name in run.layers if base_of(name) == layer)
    cells = {label: _cells(metrics, variant(layer, label)) for label in labels}
    _correct(cells)
    rows = [_row(label or NONE, layer, cells[label], described[label or NONE]) for label in sorted(labels, key=bool)]
    return MitigatedLayer(setting, layer, metrics.get(f"chance/{layer}/{POSITION}", math.nan), rows)


def _merged(runs: list[Run], title: str) -> tuple[list[Run], dict[str, float]]:
    """(runs that agree with those before them, their numbers)."""
    kept: list[Run] = []
    merged: dict[str, float] = {}
    for run in runs:
        numbers = {key: value for key, value in run.metrics.items() if _wanted(key)}
        apart = [key for key, value in numbers.items() if abs(merged.get(key, value) - value) > APART]
        if apart:
            key = apart[0]
            log.warning(
                "%s is left out of the mitigations of %s: %s is %.4g there and %.4g in a run before it. Report these runs "
                "apart, or give every mitigation a label of its own.", run.folder, title, key, numbers[key], merged[key],
            )  # fmt: skip
            continue
        kept.append(run)
        merged = numbers | merged
    return kept, merged


def _wanted(key: str) -> bool:
    number = key.removesuffix("/ci_low").removesuffix("/ci_high").removesuffix("/p")
    return key.startswith(("test/", "chance/", "gain_over_none/")) and number.endswith(ENDS)


def _cells(metrics: Mapping[str, float], name: str) -> dict[str, Cell]:
    found = {}
    for key in (*METRICS, *MORE):
        if (value := metrics.get(f"test/{name}/{key}")) is not None:
            ends = [metrics.get(f"test/{name}/{key}/{end}", math.nan) for end in ("ci_low", "ci_high")]
            gain = [metrics.get(f"gain_over_none/{name}/{key}{end}", math.nan) for end in ("", "/ci_low", "/ci_high", "/p")]
            found[key] = Cell(value, *ends, *gain)
    return found


def _correct(cells: dict[str, dict[str, Cell]]) -> None:
    """Holm's correction of every metric over the mitigations of a layer, controls among them."""
    for key in (*METRICS, *MORE):
        labels = [label for label, each in cells.items() if key in each and not math.isnan(each[key].p)]
        corrected: np.ndarray = holm(np.array([cells[label][key].p for label in labels])) if labels else np.array([])
        for label, p in zip(labels, corrected, strict=True):
            cell = cells[label][key]
            cells[label][key] = Cell(**(vars(cell) | {"p_holm": float(p)}))


def _row(label: str, layer: str, cells: dict[str, Cell], described: list[Mapping[str, Any]]) -> Row:
    fits = [fit for said in described for fit in said["fits"].get(layer, [])]
    images = {int(fit["fit_images"]) for fit in fits if fit.get("fit_images")}
    ranks = [int(fit["rank"]) for fit in fits if fit.get("rank") is not None]
    steps = described[0]["steps"] if described else []
    passes = max((float(said["passes"]) for said in described), default=math.nan)
    return Row(label, steps[0] if steps else label, cells, passes, tuple(sorted(images)), max(ranks, default=None))
