"""The report of the controls: planted differences come back with intervals that know what is paired."""

import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from sdprobe.reports.collection import summarise
from sdprobe.reports.controls import (
    CONTRASTS,
    STEPS,
    contrast,
    controls_figure,
    controls_figures,
    controls_tables,
    difference,
    layers_of,
    mean_accuracy,
    write_controls,
)
from sdprobe.reports.grouping import control_groups
from sdprobe.reports.run import Run
from tests.reports.fabricated import printed

PHOTOS, TOKENS = 40, 128
LEVELS = {
    "trained": 0.6, "random_0": 0.7, "random_1": 0.68, "random_2": 0.72, "random_periodic": 0.65, "random_circular": 0.125,
}  # fmt: skip


def cell(
    name: str,
    level: float,
    photos: str = "scene",
    other: float | None = None,
    layers: tuple[str, ...] = ("mid",),
    **changes: object,
) -> Run:
    """A run whose photographs differ in difficulty, alike in every cell."""
    hard = np.random.default_rng(0).normal(0, 0.1, PHOTOS)
    views = {"test": level, "rotated": level} | ({"other_noise": other} if other is not None else {})
    right = np.stack([TOKENS * (value + hard - hard.mean()) for value in views.values()])
    count = np.full(right.shape, float(TOKENS))
    metrics, maps = {}, {"views": np.array(list(views)), "photos": np.array([f"{photos} {i}" for i in range(PHOTOS)])}
    for layer in layers:
        maps |= {f"{layer}/photo_right": right, f"{layer}/photo_count": count}
        metrics |= {f"chance/{layer}/binned_accuracy/all": 0.125, f"test/{layer}/flip_attribution/all": 0.9}
        for view, value in views.items():
            ends = {"": value, "/ci_low": value - 0.03, "/ci_high": value + 0.03}
            metrics |= {f"{view}/{layer}/binned_accuracy/all{end}": number for end, number in ends.items()}
    meta = {"control": name, "complete": True, "layers": list(layers), "model": "tiny", "seed": 0, "timestep": 50}
    return Run(metrics, meta | changes, maps)


@pytest.fixture
def runs() -> list[Run]:
    return [cell(name, level) for name, level in LEVELS.items()] + [cell("shared", 0.7, other=0.6)]


def cells(runs: list[Run]) -> dict[str, Run]:
    """Those of the only group."""
    [known] = control_groups(runs).values()
    return known


def test_planted_differences_come_back(runs: list[Run]) -> None:
    known = cells(runs)
    found = {name: contrast(known, name, "mid") for name in ("architecture", "noise", "learned")}
    assert {name: each and round(each.value, 6) for name, each in found.items()} == {
        "architecture": 0.525, "noise": 0.1, "learned": -0.1,
    }  # fmt: skip
    assert contrast(known, "content", "mid") is None, "its cell is missing"


def test_pairing_takes_the_difficulty_of_photographs_away(runs: list[Run]) -> None:
    known = cells(runs)
    paired = contrast(known, "architecture", "mid")
    elsewhere = cells([*runs, cell("random_circular", 0.125, photos="texture")])
    alone = contrast(elsewhere, "architecture", "mid")
    assert paired and alone and paired.paired and not alone.paired
    assert paired.half < 1e-9 < 0.02 < alone.half
    # two independent means of 40 photographs with a standard deviation of 0.1
    assert alone.half == pytest.approx(1.96 * 0.1 * (2 / PHOTOS) ** 0.5, rel=0.25)
    assert paired.value == pytest.approx(alone.value)


def test_a_mean_over_seeds_has_their_spread_in_its_interval(runs: list[Run]) -> None:
    learned = contrast(cells(runs), "learned", "mid")
    # paired over photographs, so that only the t-interval of .70, .68, .72 is left: 4.303 · 0.02 / √3
    assert learned and learned.half == pytest.approx(4.303 * 0.02 / 3**0.5, rel=1e-3)


def test_the_steps_of_the_waterfall_add_up_to_the_trained_network(runs: list[Run]) -> None:
    known = cells(runs)
    steps = [
        difference(known, "mid", upper, lower) if lower else mean_accuracy(known, "mid", upper) for _, upper, lower in STEPS
    ]
    assert sum(step.value for step in steps if step) == pytest.approx(LEVELS["trained"])


def test_a_contrast_that_is_nothing_has_an_interval_around_zero() -> None:
    covered = 0
    for seed in range(40):
        generator = np.random.default_rng(seed)
        sides = []
        for name in ("random_periodic", "random_circular"):
            run = cell(name, 0.5)
            run.maps["mid/photo_right"] = generator.binomial(TOKENS, 0.5, (2, PHOTOS)).astype(float)
            sides.append(run)
        found = contrast(cells(sides), "architecture", "mid")
        assert found
        covered += found.low <= 0 <= found.high
    assert covered >= 34, "95 % of 40, short of three standard deviations"


def test_tables_are_those_of_the_snapshot(runs: list[Run], tmp_path: Path, snapshot: Callable[[str, str], None]) -> None:
    """Every cell, every view, and every contrast that can be taken."""
    write_controls(control_groups(runs), tmp_path / "controls.csv")
    snapshot("controls", printed(controls_tables(runs), 160) + (tmp_path / "controls.csv").read_text())


def test_runs_that_are_no_cells_are_left_out(runs: list[Run]) -> None:
    unfinished, unnamed = cell("crops", 0.5), cell("texture", 0.5)
    unfinished.meta["complete"] = False
    unnamed.meta["control"] = None
    assert set(cells([*runs, unfinished, unnamed])) == {*LEVELS, "shared"}
    assert layers_of({}) == [] and controls_tables([]) == []


def test_only_layers_that_every_cell_has_are_compared() -> None:
    runs = [cell("trained", 0.6, layers=("mid", "up_0")), cell("shuffled", 0.6)]
    assert layers_of(cells(runs)) == ["mid"]


@pytest.mark.parametrize("names", [tuple(LEVELS), ("trained",)])
def test_the_figure_draws_what_there_is(names: tuple[str, ...]) -> None:
    figure = controls_figure("tiny", cells([cell(name, LEVELS[name], layers=("mid", "up_0")) for name in names]))
    labels = [tick.get_text() for tick in figure.axes[0].get_xticklabels()]
    assert labels[0] == "chance" and labels[-1] == "this\nnetwork"
    assert len(labels) == (6 if len(names) > 1 else 2)
    assert len(figure.axes[0].patches) == len(labels)


def test_every_cell_of_a_contrast_is_a_configuration() -> None:
    configured = {path.stem for path in (Path(__file__).parents[2] / "configs" / "control").glob("*.yaml")}
    sides = [side for _, upper, lower in CONTRASTS.values() for side in (*upper, *lower)]
    assert {name for name, _ in sides} <= configured
    for _, upper, lower in STEPS:
        assert {name for name, _ in (*upper, *lower)} <= configured


OTHERS = [{"model": "a/b"}, {"seed": 1}, {"timestep": 10}, {"image_size": 256}, {"precision": "bf16"}]


@pytest.mark.parametrize("other", OTHERS, ids=str)
def test_cells_of_other_models_seeds_and_settings_are_not_mixed(runs: list[Run], other: dict[str, object]) -> None:
    groups = control_groups([*runs, cell("trained", 0.3, **other), cell("shuffled", 0.2, **other)])  # type: ignore[arg-type]
    first, second = groups.values()
    assert contrast(first, "learned", "mid") and "shuffled" not in first
    found = contrast(second, "order of weights", "mid")
    assert set(second) == {"trained", "shuffled"} and found and found.value == pytest.approx(0.1)
    assert len(controls_tables([*runs, *second.values()])) == 2
    figures = controls_figures({title: {"trained": group["trained"]} for title, group in groups.items()})
    assert len(figures) == 2 and all(name.startswith("controls_") and "/" not in name for name in figures)


def test_the_cell_with_a_timestep_of_its_own_stays_with_the_others(runs: list[Run]) -> None:
    own = cell("shared_261", 0.5, other=0.4, timestep=261)
    assert set(cells([*runs, own])) == {*LEVELS, "shared", "shared_261"}
    assert set(cells([own])) == {"shared_261"}
    groups = control_groups([*runs, cell("trained", 0.3, timestep=10), own, cell("trained", 0.3, seed=1)])
    assert ["shared_261" in group for group in groups.values()] == [True, True, False]


def test_the_later_of_two_runs_of_a_cell_counts_and_a_warning_names_the_other(caplog: pytest.LogCaptureFixture) -> None:
    assert cells([cell("trained", 0.3), cell("trained", 0.6)])["trained"].value("test", "mid", "binned_accuracy") == 0.6
    assert "control 'trained' of tiny" in caplog.text


def test_two_seeds_are_written_apart(tmp_path: Path) -> None:
    meta = {"probe": "controls", "weights": "stored", "images": {"test": PHOTOS}}
    runs = [cell("trained", 0.5 + 0.1 * seed, seed=seed, **meta) for seed in (0, 1)]  # type: ignore[arg-type]
    names = {path.name for path in summarise(runs, tmp_path)}
    assert {"controls.csv", "controls_tiny_seed_0.png", "controls_tiny_seed_1.png"} <= names
    with (tmp_path / "controls.csv").open() as file:
        found = {row["seed"]: float(row["value"]) for row in csv.DictReader(file) if row["kind"] == "test"}
    assert found == {"0": 0.5, "1": 0.6}
