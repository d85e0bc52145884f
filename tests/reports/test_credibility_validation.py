"""The verdict on credibility: planted relations are found, absent ones are not, and one model never predicts."""

import csv
import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scipy import stats

from sdprobe.reports.credibility import credibility_tables, write
from sdprobe.reports.run import Run
from sdprobe.reports.validation import (
    BASELINE,
    HARMS,
    RISKS,
    CredibilityCell,
    baseline,
    credibility_cells,
    spearman,
    validation,
)
from sdprobe.tokens.keys import Key, base_of, label_of, variant
from tests.reports.fabricated import printed

LAYERS = [("conv_in", 64), ("down_1", 32), ("down_2", 16), ("mid", 8), ("up_0", 16), ("up_1", 32), ("up_2", 64), ("up_3", 64)]
TIMES = (10, 50, 261)


def cells_of(models: int, seed: int, credibility: float = 0.0, depth: float = 0.0, noise: float = 0.3) -> list[CredibilityCell]:
    """Cells whose gain is a multiple of the risk, of depth, and noise that the timesteps of a layer share in part."""
    generator = np.random.default_rng(seed)
    found = []
    for model in range(models):
        offset = generator.normal(0, 5)
        for place, (layer, side) in enumerate(LAYERS):
            shared = generator.normal(0, noise)
            for timestep in TIMES:
                risk, raw = generator.random(), 0.1 + 0.4 * generator.random()
                own = shared + generator.normal(0, noise)
                gain = offset + 4 * credibility * risk + 4 * depth * place / len(LAYERS) + own
                parts = dict(zip(("r_pos", "r_cor", "r_norm"), generator.random(3), strict=True))
                found.append(
                    CredibilityCell(
                        f"model {model}", timestep, layer, risk, **parts, gain=gain, copy_excess=generator.normal(),
                        resolution=float(side), depth=float(place), raw=raw,
                    )
                )  # fmt: skip
    return found


def changed(cell: CredibilityCell, **values: Any) -> CredibilityCell:
    return CredibilityCell(**(vars(cell) | values))


# --- statistics ------------------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4), st.integers(0, 3)), min_size=3, max_size=15))
def test_weighted_spearman_is_scipy_s_on_repeated_rows(rows: list[tuple[int, int, int]]) -> None:
    a, b, times = (np.array(column, dtype=float) for column in zip(*rows, strict=True))
    repeated = [np.repeat(x, times.astype(int)) for x in (a, b)]
    if any(len(np.unique(x)) < 2 for x in repeated):
        assert times.sum() == 0 or np.isnan(spearman(a, b, times[None])[0])
    else:
        assert spearman(a, b, times[None])[0] == pytest.approx(stats.spearmanr(*repeated).statistic, abs=1e-9)


def slow_baseline(cells: Sequence[CredibilityCell], harm: str) -> list[float]:
    """Reference for one cell at a time: ranks within each model, least squares on the cells of other models."""
    ranks: dict[CredibilityCell, np.ndarray] = {}
    for cell in cells:
        same = [other for other in cells if other.model == cell.model]
        ranks[cell] = np.array(
            [np.mean([np.sign(getattr(cell, name) - getattr(other, name)) for other in same]) / 2 for name in (*BASELINE, harm)]
        )
    guesses = []
    for cell in cells:
        others = np.array([ranks[other] for other in cells if other.model != cell.model])
        weights = np.linalg.pinv(others[:, :3].T @ others[:, :3]) @ others[:, :3].T @ others[:, 3]
        guesses.append(float(ranks[cell][:3] @ weights))
    return guesses


def test_baseline_never_saw_the_model() -> None:
    cells = cells_of(3, seed=0, depth=1.0)
    assert baseline(cells, "gain") == pytest.approx(slow_baseline(cells, "gain"), abs=1e-9)
    spoilt = [changed(cell, gain=-cell.gain) if cell.model == "model 1" else cell for cell in cells]
    own = [i for i, cell in enumerate(cells) if cell.model == "model 1"]
    assert np.array(baseline(cells, "gain"))[own] == pytest.approx(np.array(baseline(spoilt, "gain"))[own])


def test_baseline_of_one_model_never_saw_the_layer() -> None:
    cells = cells_of(1, seed=0, depth=1.0)
    # the order among other layers stays when this one's gains change places between its own timesteps
    here = [i for i, cell in enumerate(cells) if cell.layer == "mid"]
    spoilt = list(cells)
    spoilt[here[0]], spoilt[here[1]] = (changed(cells[here[i]], gain=cells[here[1 - i]].gain) for i in (0, 1))
    assert np.array(baseline(cells, "gain"))[here] == pytest.approx(np.array(baseline(spoilt, "gain"))[here])


def test_a_planted_relation_is_predictive() -> None:
    found = validation(cells_of(4, seed=1, credibility=1.0), "credibility", "gain")
    assert found.verdict == "predictive"
    assert found.risk.rho > 0.8 and found.risk.cells == 4 * len(LAYERS) * len(TIMES)
    assert abs(found.baseline.rho) < 0.5


@pytest.mark.parametrize("seed", range(5))
def test_no_relation_is_descriptive(seed: int) -> None:
    assert validation(cells_of(4, seed), "credibility", "gain").verdict == "descriptive"


@pytest.mark.parametrize("seed", range(3))
def test_one_model_is_descriptive_however_strong_the_relation(seed: int) -> None:
    found = validation(cells_of(1, seed, credibility=1.0), "credibility", "gain")
    assert found.risk.rho > 0.8 and found.risk.ci_low > 0.2
    assert found.verdict == "descriptive"


def test_a_risk_that_only_follows_depth_is_not_better_than_depth() -> None:
    cells = cells_of(4, seed=2, depth=1.0)
    follower = [changed(cell, credibility=cell.depth + 0.5 * (i % 3)) for i, cell in enumerate(cells)]
    found = validation(follower, "credibility", "gain")
    assert found.risk.rho > 0.8 and found.risk.ci_low > 0.2
    assert found.verdict == "descriptive"


def test_a_relation_the_wrong_way_round_is_descriptive() -> None:
    found = validation(cells_of(4, seed=1, credibility=-1.0), "credibility", "gain")
    assert found.risk.rho < -0.8 and found.verdict == "descriptive"


def test_offsets_between_models_are_no_evidence() -> None:
    shifted = [changed(cell, credibility=cell.credibility + 9 * int(cell.model[-1]), gain=cell.gain + 99 * int(cell.model[-1]))
               for cell in cells_of(4, seed=3)]  # fmt: skip
    plain = validation(cells_of(4, seed=3), "credibility", "gain")
    assert validation(shifted, "credibility", "gain").risk == plain.risk


def test_intervals_are_wider_when_timesteps_of_a_layer_agree() -> None:
    generator = np.random.default_rng(0)
    cells = cells_of(1, seed=4)
    by_layer = {layer: generator.random(2) for layer, _ in LAYERS}
    same = [changed(cell, r_pos=by_layer[cell.layer][0], gain=by_layer[cell.layer][1]) for cell in cells]
    alone = [changed(cell, layer=f"{cell.layer}_{cell.timestep}") for cell in same]
    width = [v.risk.ci_high - v.risk.ci_low for v in (validation(each, "r_pos", "gain") for each in (same, alone))]
    assert width[0] > 1.3 * width[1]


def test_clustered_intervals_cover() -> None:
    covered = 0
    for seed in range(60):
        found = validation(cells_of(3, seed + 100), "r_pos", "copy_excess").risk
        covered += found.ci_low <= 0 <= found.ci_high
    assert covered >= 60 * 0.95 - 3 * math.sqrt(60 * 0.05 * 0.95)


def test_cells_without_working_matching_do_not_count() -> None:
    cells = cells_of(4, seed=1, credibility=1.0)
    spoilt = [changed(cell, raw=0.079, gain=-cell.gain) for cell in cells]
    assert validation([*cells, *spoilt], "credibility", "gain") == validation(cells, "credibility", "gain")
    assert validation(spoilt, "credibility", "gain").risk.cells == 0


def test_too_few_cells_of_a_model_leave_it_out() -> None:
    cells = cells_of(3, seed=1, credibility=1.0)
    few = [cell for cell in cells if cell.model != "model 2" or cell.layer in ("mid", "up_0")]
    assert validation(few, "credibility", "gain").models == 2


def test_a_risk_that_never_varies_has_no_correlation() -> None:
    found = validation([changed(cell, r_norm=0.0) for cell in cells_of(3, seed=1)], "r_norm", "gain")
    assert math.isnan(found.risk.rho) and found.verdict == "descriptive"


# --- from run folders ------------------------------------------------------------------------------------------------


def stored(cells: Sequence[CredibilityCell], folder: Path) -> list[Run]:
    """The run folders these cells come from: two per model and timestep."""
    folder.mkdir()
    runs = []
    for model, timestep in dict.fromkeys((cell.model, cell.timestep) for cell in cells):
        here = [cell for cell in cells if (cell.model, cell.timestep) == (model, timestep)]
        names = [name for cell in here for name in (cell.layer, f"{cell.layer}__position_mean")]
        shapes = {
            name: [64, int(cell.resolution), int(cell.resolution)]
            for cell in here
            for name in names
            if base_of(name) == cell.layer
        }
        said = {"layers": names, "model": model, "weights": "stored", "timestep": timestep, "seed": 0, "shapes": shapes}
        statistics, matching = {}, {}
        for cell in here:
            statistics[f"test/{cell.layer}/credibility/all"] = 1 - cell.credibility
            statistics |= {f"test/{cell.layer}/{name}/all": getattr(cell, name) for name in ("r_pos", "r_cor", "r_norm")}
            matching |= {f"test/{cell.layer}/pck_ours_point_0.10/all": cell.raw}
            matching |= {f"test/{cell.layer}/copy_excess/all": cell.copy_excess}
            matching[f"gain_over_none/{cell.layer}__position_mean/pck_ours_point_0.10/displacement_far"] = cell.gain
        for probe, metrics in (("statistics", statistics), ("correspondence", matching)):
            path = folder / str(len(runs))
            path.mkdir()
            (path / "metrics.json").write_text(json.dumps(metrics | {"meta": said | {"probe": probe}}))
            runs.append(Run.read(path))
    return runs


def test_cells_are_read_back(tmp_path: Path) -> None:
    cells = cells_of(2, seed=0)
    found = credibility_cells(stored(cells, tmp_path / "sweep"))
    key = lambda cell: (cell.model, cell.timestep, cell.depth)  # noqa: E731
    for mine, theirs in zip(sorted(cells, key=key), sorted(found, key=key), strict=True):
        assert {k: v for k, v in vars(theirs).items() if isinstance(v, str)} == {"model": mine.model, "layer": mine.layer}
        assert theirs == changed(mine, credibility=pytest.approx(mine.credibility))


def test_a_run_at_several_levels_has_the_cells_of_a_run_at_each(tmp_path: Path) -> None:
    cells = cells_of(1, seed=0)
    apart = stored(cells, tmp_path / "sweep")
    together = []
    for kind in ("statistics", "correspondence"):
        runs = [run for run in apart if run.kind == kind]
        metrics, shapes = {}, {}
        for run in runs:
            level = run.meta["timestep"]
            renamed = {name: variant(base_of(name), label_of(name), level) for name in run.layers}
            shapes |= {new: run.meta["shapes"][old] for old, new in renamed.items()}
            metrics |= {str(replace((key := Key.parse(text)), layer=renamed[key.layer])): v for text, v in run.metrics.items()}
        levels = [run.meta["timestep"] for run in runs]
        assert len(levels) > 1
        meta = runs[0].meta | {"timestep": levels, "layers": list(shapes), "shapes": shapes}
        together.append(Run(metrics, meta, {}))
    assert set(credibility_cells(together)) == set(credibility_cells(apart))


def test_what_was_not_measured_is_missing_not_zero(tmp_path: Path) -> None:
    runs = stored(cells_of(1, seed=0), tmp_path / "sweep")
    bare = [Run({k: v for k, v in run.metrics.items() if "copy_excess" not in k}, run.meta, run.maps) for run in runs]
    assert all(math.isnan(cell.copy_excess) for cell in credibility_cells(bare))
    assert validation(credibility_cells(bare), "r_pos", "copy_excess").risk.cells == 0


def test_a_run_of_one_kind_has_no_cells(tmp_path: Path) -> None:
    runs = stored(cells_of(1, seed=0), tmp_path / "sweep")
    alone = [run for run in runs if run.kind == "statistics"]
    assert credibility_tables(alone) == [] and write(alone, tmp_path) == []


def test_random_weights_are_another_model(tmp_path: Path) -> None:
    runs = stored(cells_of(1, seed=0), tmp_path / "sweep")
    untrained = [Run(run.metrics, run.meta | {"weights": "random-1"}, run.maps) for run in runs]
    assert {cell.model for cell in credibility_cells([*runs, *untrained])} == {"model 0", "model 0 random-1"}


def test_the_report_says_predictive_with_models_and_descriptive_with_one(tmp_path: Path) -> None:
    for models, verdict, said in ((4, "predictive", ""), (1, "descriptive", " (not shown to predict harm by position)")):
        runs = stored(cells_of(models, seed=1, credibility=1.0), tmp_path / str(models))
        text = printed(credibility_tables(runs), 150)
        assert text.startswith(f"Credibility is {verdict}{said}; {24 * models} of {24 * models} points count, {models} of")
        paths = write(runs, tmp_path)
        with paths[1].open() as file:
            table = {(row["risk"], row["harm"]): row for row in csv.DictReader(file)}
        assert table["credibility", "gain"]["verdict"] == verdict and table["r_cor", "gain"]["verdict"] == "descriptive"
        assert set(table) == {(risk, harm) for risk in RISKS for harm in HARMS}


def test_the_cells_are_written_and_drawn(tmp_path: Path) -> None:
    cells = cells_of(1, seed=1)
    cells[0] = changed(cells[0], raw=0.01)
    paths = write(stored(cells, tmp_path / "sweep"), tmp_path)
    with paths[0].open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 24 and [row["counts"] for row in rows].count("0") == 1
    row = next(row for row in rows if (row["layer"], row["timestep"]) == ("mid", "50"))
    cell = next(cell for cell in cells if (cell.layer, cell.timestep) == ("mid", 50))
    assert float(row["gain"]) == pytest.approx(cell.gain, rel=1e-4) and float(row["risk"]) == pytest.approx(
        cell.credibility, rel=1e-4
    )
    with Image.open(paths[2]) as image:
        assert image.width > 1200 and np.asarray(image.convert("L")).std() > 5
