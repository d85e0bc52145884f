"""Correlates risks with harm: Spearman's ρ within each model, with intervals over models and layers, and a baseline.

A point is a layer at a timestep. Its risks come from a statistics run, its harm from a correspondence run that compares
``position_mean``. Points of one layer are dependent, and so are points of one model. The intervals therefore resample whole
models, and whole layers within them; with one model they use the jackknife over layers. All values are ranks within a model,
so differences between models have no effect.
"""

import math
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from scipy import stats

from sdprobe.metrics.intervals import jackknife_pseudovalues, mean_interval
from sdprobe.reports.mitigated_layers import LEAST_PCK
from sdprobe.reports.run import Run
from sdprobe.tokens.keys import variant

MITIGATION = "position_mean"
PCK = "pck_ours_point_0.10"
RISKS = {"credibility": "1 − credibility", "r_pos": "r_pos", "r_cor": "r_cor", "r_norm": "r_norm"}
HARMS = {"gain": "PCK gained by removing position,\ndisplaced pairs", "copy_excess": "position-copy excess"}
BASELINE = {"resolution": "resolution", "depth": "depth", "raw": "raw PCK"}
RESAMPLES = 2000
FEWEST_CELLS, FEWEST_LAYERS = 6, 3  # points and layers that a model needs for a correlation
LEAST, LEAST_LOW = 0.5, 0.2


@dataclass(frozen=True)
class CredibilityCell:
    """A layer of a network at a timestep. ``credibility`` is 1 − Cred, so every risk should correlate positively with harm."""

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
        """Whether PCK is high enough for a loss to show."""
        return self.raw >= LEAST_PCK

    def has(self, *names: str) -> bool:
        """Whether these were measured."""
        return all(math.isfinite(getattr(self, name)) for name in names)


def credibility_cells(runs: Iterable[Run]) -> list[CredibilityCell]:
    """Every layer that a statistics run and a correspondence run of the same network and timestep measured, unmitigated.

    Depth is the layer's index in execution order among the measured ones; resolution is its tokens per side.
    """
    # harm and risk are those of the network without mitigation
    plain = [level for run in runs if not run.chain for level in run.levels]
    statistics = {_key(run): run for run in plain if run.kind == "statistics"}
    found = []
    for run in plain:
        if run.kind == "correspondence" and _key(run) in statistics:
            other = statistics[_key(run)]
            found += [_cell(run, other, layer, depth) for depth, layer in enumerate(run.bases) if layer in other.layers]
    return found


def _key(run: Run) -> tuple[str, int, int]:
    weights = "" if run.meta["weights"] == "stored" else f" {run.meta['weights']}"
    return f"{run.meta['model']}{weights}", int(run.meta["timestep"]), int(run.meta.get("seed", 0))


def _cell(run: Run, statistics: Run, layer: str, depth: int) -> CredibilityCell:
    model, timestep, _ = _key(run)
    credibility = statistics.value("test", layer, "credibility")
    values = {
        "credibility": None if credibility is None else 1 - credibility,
        **{name: statistics.value("test", layer, name) for name in ("r_pos", "r_cor", "r_norm")},
        "gain": run.value("gain_over_none", variant(layer, MITIGATION), PCK, "displacement_far"),
        "copy_excess": run.value("test", layer, "copy_excess"),
        "resolution": float(run.meta["shapes"][layer][1]),
        "depth": float(depth),
        "raw": run.value("test", layer, PCK),
    }
    return CredibilityCell(model, timestep, layer, **{k: math.nan if v is None else v for k, v in values.items()})


@dataclass(frozen=True)
class Correlation:
    """Mean over models of Spearman's ρ, with a 95 % interval; NaN if it cannot be computed."""

    rho: float
    ci_low: float
    ci_high: float
    cells: int


@dataclass(frozen=True)
class Validation:
    """Correlation of a risk with a harm, compared with a baseline from resolution, depth and raw PCK on held-out clusters."""

    risk: Correlation
    baseline: Correlation
    better: Correlation
    models: int

    @property
    def verdict(self) -> str:
        """``predictive`` or ``descriptive``.

        Predictive: at least two models, ρ ≥ 0.5, an interval above 0.2, and an interval of the paired difference from the
        baseline above 0.
        """
        certain = self.risk.rho >= LEAST and self.risk.ci_low > LEAST_LOW and self.better.ci_low > 0
        return "predictive" if self.models > 1 and certain else "descriptive"


def validation(cells: Sequence[CredibilityCell], risk: str, harm: str) -> Validation:
    """Correlate a risk with a harm over the points that count and have both; see :class:`Validation`."""
    kept = [cell for cell in cells if cell.counts and cell.has(risk, harm, *BASELINE)]
    models = [rows for rows in _by_model(kept) if _enough(rows)]
    kept = [cell for rows in models for cell in rows]
    if not models:
        nothing = Correlation(math.nan, math.nan, math.nan, 0)
        return Validation(nothing, nothing, nothing, 0)
    guesses = dict(zip(kept, baseline(kept, harm), strict=True))
    table = [np.array([[getattr(c, risk), getattr(c, harm), guesses[c]] for c in rows]) for rows in models]
    layers = [np.unique([c.layer for c in rows], return_inverse=True)[1] for rows in models]
    point = _mean(np.stack([_rhos(rows, np.ones((1, len(rows)))) for rows in table]))[0]
    ends = _one_model(table[0], layers[0]) if len(models) == 1 else _several(table, layers, f"{risk}/{harm}", point)
    found = [Correlation(float(point[k]), float(ends[0, k]), float(ends[1, k]), len(kept)) for k in range(3)]
    return Validation(found[0], found[1], found[2], len(models))


def baseline(cells: Sequence[CredibilityCell], harm: str) -> list[float]:
    """Harm of every point, predicted by a linear regression on resolution, depth and raw PCK of other models.

    With one model, the regression is fitted on other layers. It uses centred ranks within a model and no intercept: an
    intercept that depends on the held-out part would itself correlate with the harm.
    """
    rows = _by_model(cells)
    ordered = [cell for each in rows for cell in each]
    features = np.concatenate([_ranks(np.array([[getattr(c, name) for name in BASELINE] for c in each])) for each in rows])
    target = np.concatenate([_ranks(np.array([[getattr(c, harm)] for c in each]))[:, 0] for each in rows])
    clusters = np.array([cell.model if len(rows) > 1 else cell.layer for cell in ordered])
    predicted: dict[CredibilityCell, float] = {}
    for cluster in np.unique(clusters):
        out = clusters == cluster
        weights = np.linalg.lstsq(features[~out], target[~out], rcond=None)[0]
        predicted |= dict(zip([cell for cell, o in zip(ordered, out, strict=True) if o], features[out] @ weights, strict=True))
    return [float(predicted[cell]) for cell in cells]


def spearman(a: np.ndarray, b: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Spearman's ρ (resamples,) of a (n,) and b (n,); pair i counts ``weights[:, i]`` times; NaN if a or b is constant.

    Ties share their mean rank: rank of x = Σ_j w_j ([x_j < x] + ½ [x_j = x]), up to a constant.
    """
    ranks = [weights @ ((x[:, None] < x) + 0.5 * (x[:, None] == x)) for x in (a, b)]
    total = weights.sum(1, keepdims=True)
    x, y = (rank - (weights * rank).sum(1, keepdims=True) / total for rank in ranks)
    size = np.sqrt((weights * x**2).sum(1) * (weights * y**2).sum(1))
    return np.asarray(np.where(size > 1e-9 * total[:, 0] ** 3, (weights * x * y).sum(1), np.nan) / np.maximum(size, 1e-300))


def _enough(rows: Sequence[CredibilityCell]) -> bool:
    return len(rows) >= FEWEST_CELLS and len({cell.layer for cell in rows}) >= FEWEST_LAYERS


def _by_model(cells: Sequence[CredibilityCell]) -> list[list[CredibilityCell]]:
    groups: dict[str, list[CredibilityCell]] = {}
    for cell in cells:
        groups.setdefault(cell.model, []).append(cell)
    return list(groups.values())


def _ranks(columns: np.ndarray) -> np.ndarray:
    """Ranks of each column (n, k), centred, in (−½, ½)."""
    return np.asarray((stats.rankdata(columns, axis=0) - (len(columns) + 1) / 2) / len(columns))


def _rhos(rows: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """(risk, baseline, risk − baseline) of a model's rows (n, 3), per row of weights; a constant baseline counts as 0."""
    risk = spearman(rows[:, 0], rows[:, 1], weights)
    other = np.where(np.isfinite(risk), np.nan_to_num(spearman(rows[:, 2], rows[:, 1], weights)), np.nan)
    return np.stack([risk, other, risk - other], 1)


def _mean(rhos: np.ndarray) -> np.ndarray:
    """Mean over models (models, resamples, 3) without those that have no ρ; NaN if none has one."""
    counted = np.isfinite(rhos).sum(0)
    return np.asarray(np.where(counted > 0, np.nansum(rhos, 0), np.nan) / np.maximum(counted, 1))


def _one_model(rows: np.ndarray, layers: np.ndarray) -> np.ndarray:
    """Ends (2, 3) of (risk, baseline, risk − baseline) of one model: jackknife over layers, correlations on Fisher's scale."""
    weights = np.stack([(layers != layer).astype(float) for layer in np.unique(layers)])
    values, without = _rhos(rows, np.ones((1, len(rows))))[0], _rhos(rows, weights)
    ends = np.full((2, 3), math.nan)
    for k in (k for k in range(3) if np.isfinite(values[k])):
        correlation = k < 2  # the last is a difference of two correlations
        parts = [_fisher(part) if correlation else part for part in (values[k], without[:, k])]
        found = np.asarray(mean_interval(jackknife_pseudovalues(float(parts[0]), parts[1])))
        ends[:, k] = np.tanh(found) if correlation else found
    return ends


def _fisher(rho: np.ndarray | float) -> np.ndarray:
    return np.arctanh(np.clip(rho, -0.999, 0.999))


def _several(table: Sequence[np.ndarray], layers: Sequence[np.ndarray], key: str, point: np.ndarray) -> np.ndarray:
    """The same over several models: percentiles of resamples, widened if needed to contain the estimate."""
    drawn = _resampled(table, layers, zlib.crc32(key.encode()))
    if not np.isfinite(drawn).any(0).all():
        return np.full((2, 3), math.nan)
    low, high = np.nanquantile(drawn, [0.025, 0.975], axis=0)
    return np.stack([np.minimum(low, point), np.maximum(high, point)])


def _resampled(table: Sequence[np.ndarray], layers: Sequence[np.ndarray], seed: int) -> np.ndarray:
    """Means (resamples, 3) over models drawn with replacement; layers are drawn anew within each drawn model."""
    generator = np.random.default_rng(seed)
    picked = generator.integers(len(table), size=(len(table), RESAMPLES))
    drawn = np.empty((len(table), RESAMPLES, 3))
    for slot, m in product(range(len(table)), range(len(table))):
        chosen = picked[slot] == m
        count = int(layers[m].max()) + 1
        times = generator.multinomial(count, np.full(count, 1 / count), size=int(chosen.sum()))
        drawn[slot, chosen] = _rhos(table[m], times[:, layers[m]].astype(float))
    return _mean(drawn)
