"""Mitigations side by side: planted numbers in, exact cells out; families of tests; dominance against a slow reference."""

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.markers import MarkerStyle
from PIL import Image
from scipy import stats

from sdprobe.metrics.sign_flips import adjusted_p
from sdprobe.reports.mitigated_layers import Family, MitigatedLayer, mitigated_layers, verdict
from sdprobe.reports.mitigations import best, dominated, mitigation_tables, pareto_figure, pareto_figures, write
from sdprobe.reports.run import Run
from sdprobe.reports.style import GREY, INCHES
from tests.reports.fabricated import printed

FAMILIES = {"position_mean_050": "PositionMean", "position_mean": "PositionMean", "leace": "Leace", "canvas": "Canvas"}
FAMILIES |= {"random_rank": "RandomRank", "shuffled_position": "ShuffledPosition"}
RANKS = {"position_mean_050": 14, "position_mean": 14, "leace": 6, "random_rank": 14, "shuffled_position": 14}
UNITS = 20
# value, gain, half width of the gain's interval
POSITION = {
    "none": (0.8,), "position_mean_050": (0.6, -0.2, 0.02), "position_mean": (0.25, -0.55, 0.02),
    "leace": (0.74, -0.06, 0.03), "canvas": (0.79, -0.01, 0.05), "random_rank": (0.76, -0.04, 0.02),
    "shuffled_position": (0.8, 0.0, 0.02),
}  # fmt: skip
PCK = {
    "none": (0.3,), "position_mean_050": (0.33, 0.03, 0.02), "position_mean": (0.24, -0.06, 0.03),
    "leace": (0.31, 0.01, 0.02), "canvas": (0.28, -0.02, 0.03), "random_rank": (0.29, -0.01, 0.02),
    "shuffled_position": (0.3, 0.0, 0.01),
}  # fmt: skip
CONTENT = {label: (0.5 - 0.05 * i, -0.05 * i, 0.01) if i else (0.5,) for i, label in enumerate(["none", *FAMILIES])}


def planted(metric: str, numbers: dict[str, tuple[float, ...]], layers: Sequence[str] = ("mid",)) -> dict[str, float]:
    """What a run writes about one metric of the layers and their variants."""
    found: dict[str, float] = {}
    for layer in layers:
        for label, (value, *gained) in numbers.items():
            name = layer if label == "none" else f"{layer}__{label}"
            ends = {"": value, "/ci_low": value - 0.05, "/ci_high": value + 0.05}
            found |= {f"test/{name}/{metric}{end}": each for end, each in ends.items()}
            if gained:
                gain, half = gained
                ends = {"": gain, "/ci_low": gain - half, "/ci_high": gain + half, "/n": UNITS}
                found |= {f"gain_over_none/{name}/{metric}{end}": each for end, each in ends.items()}
    return found


def run_of(
    metrics: dict[str, float],
    folder: Path,
    labels: Sequence[str] = tuple(FAMILIES),
    fit_images: int = 64,
    units: int = UNITS,
    **meta: Any,
) -> Run:
    """A run folder with these metrics and pseudo-values of ``units`` photographs that give their gains, read back."""
    bases = list(dict.fromkeys(key.split("/")[1].split("__")[0] for key in metrics))
    layers = [name for base in bases for name in (base, *(f"{base}__{label}" for label in labels))]
    described: dict[str, Any] = {"none": {"steps": [], "passes": 1.0, "fits": {base: [] for base in bases}}}
    for label in labels:
        fit = [] if label == "canvas" else [{"fit_images": fit_images} | ({"rank": RANKS[label]} if label in RANKS else {})]
        passes = 1.5625 if label == "canvas" else 1.0
        described[label] = {"steps": [FAMILIES[label]], "passes": passes, "fits": dict.fromkeys(bases, fit)}
    said = {
        "layers": layers, "probe": "position", "model": "some/model", "weights": "stored", "timestep": 50, "seed": 0,
        "noise": "independent", "padding": "zeros", "mitigations": described, "complete": True, "schema": 2,
    } | meta  # fmt: skip
    folder.mkdir()
    if not units and "schema" not in meta:
        said.pop("schema")
    np.savez(folder / "pseudovalues.npz", **by_unit(metrics, units))
    (folder / "metrics.json").write_text(json.dumps(metrics | {"meta": said}))
    return Run.read(folder)


def by_unit(metrics: dict[str, float], units: int) -> dict[str, np.ndarray]:
    """Pseudo-values whose paired differences have the gains of the metrics, and the half widths of their intervals."""
    found: dict[str, np.ndarray] = {}
    if units < 2:
        return found
    for key in (key for key in metrics if key.startswith("test/") and not key.endswith(("/ci_low", "/ci_high"))):
        _, name, rest = key.split("/", 2)
        base = np.random.default_rng(0).normal(metrics.get(f"test/{name.split('__')[0]}/{rest}", 0), 0.1, units)
        gain = metrics.get(f"gain_over_none/{name}/{rest}", 0.0)
        half = gain - metrics.get(f"gain_over_none/{name}/{rest}/ci_low", gain)
        noise = np.random.default_rng(list(name.encode())).normal(size=units)
        noise = (noise - noise.mean()) / noise.std(ddof=1)
        found[key] = base + gain + noise * half * units**0.5 / stats.t.ppf(0.975, units - 1)
    return found


def sweep(folder: Path, layers: Sequence[str] = ("mid",), without: Sequence[str] = ()) -> list[Run]:
    """A position run, a correspondence run and a content run."""
    kept = [label for label in FAMILIES if label not in without]
    runs = []
    for i, (key, numbers) in enumerate(
        (("binned_accuracy/all", POSITION), ("pck_ours_point_0.10/all", PCK), ("content_r2/all", CONTENT))
    ):
        kind = {label: each for label, each in numbers.items() if label in ("none", *kept)}
        metrics = planted(key, kind, layers)
        if i == 0:
            metrics |= {f"chance/{layer}/binned_accuracy/all": 0.125 for layer in layers}
        kind = ("position", "correspondence", "content")[i]
        runs.append(run_of(metrics, folder / str(i), kept, fit_images=128 if i == 1 else 64, probe=kind))
    return runs


def sweep_again(folder: Path) -> list[Run]:
    (folder / "again").mkdir()
    return sweep(folder / "again")


def rows(layer: MitigatedLayer) -> dict[str, str]:
    return {row.label: verdict(layer, row) for row in layer.rows}


def table_of(runs: Sequence[Run]) -> str:
    return " ".join(printed(mitigation_tables(runs)).split())


# --- families --------------------------------------------------------------------------------------------------------


def test_a_family_is_a_metric_over_all_layers_and_mitigations_without_controls(tmp_path: Path) -> None:
    layers = mitigated_layers(sweep(tmp_path, ("mid", "up_1")))
    assert [layer.families["binned_accuracy/all"] for layer in layers] == [Family(2 * 4, UNITS)] * 2
    assert [layer.families["pck_ours_point_0.10/all"] for layer in layers] == [Family(2 * 4, UNITS)] * 2


def test_p_values_are_those_of_joint_flips_over_the_family(tmp_path: Path) -> None:
    runs = sweep(tmp_path, ("mid", "up_1"))
    units = runs[0].pseudovalues()
    labels = [label for label in FAMILIES if label not in ("random_rank", "shuffled_position")]
    places = [(layer, label) for layer in ("mid", "up_1") for label in labels]
    key = "binned_accuracy/all"
    columns = np.stack([units[f"test/{layer}__{label}/{key}"] - units[f"test/{layer}/{key}"] for layer, label in places], 1)
    expected = dict(zip(places, adjusted_p(columns), strict=True))
    for layer in mitigated_layers(runs):
        for row in layer.rows[1:]:
            p = row.cells[key].p
            assert math.isnan(p) if row.control else p == expected[layer.layer, row.label]


def test_below_six_photographs_no_star_is_possible_and_the_table_says_so(tmp_path: Path) -> None:
    runs = [run_of(planted("binned_accuracy/all", POSITION), tmp_path / "few", units=5)]
    [layer] = mitigated_layers(runs)
    assert rows(layer)["position_mean"] == "too few photographs"
    text = table_of(runs)
    assert "5 photographs (fewer than 6: no star is possible)" in text and ".25*" not in text


@pytest.mark.parametrize("schema", [None, 1])
def test_runs_of_an_older_schema_have_no_stars(tmp_path: Path, schema: int | None) -> None:
    metrics = planted("binned_accuracy/all", POSITION)
    old = {key.replace("/n", "/p"): 0.001 if key.endswith("/n") else value for key, value in metrics.items()}
    runs = [run_of(old, tmp_path / "old", **({} if schema is None else {"schema": schema}), units=0)]
    [layer] = mitigated_layers(runs)
    assert rows(layer)["position_mean"] == "not tested: run again" and not layer.families
    text = table_of(runs)
    assert ".25*" not in text and "come from an older version" in text
    assert write(runs, tmp_path)


def test_a_family_of_one_column_and_constant_differences_have_a_result(tmp_path: Path) -> None:
    one = {label: POSITION[label] for label in ("none", "leace")}
    [layer] = mitigated_layers([run_of(planted("binned_accuracy/all", one), tmp_path / "one", ["leace"])])
    assert layer.families["binned_accuracy/all"].columns == 1 and layer.rows[1].cells["binned_accuracy/all"].p < 0.01
    same = {"none": (0.8,), "leace": (0.8, 0.0, 0.0)}
    [layer] = mitigated_layers([run_of(planted("binned_accuracy/all", same), tmp_path / "same", ["leace"])])
    assert layer.rows[1].cells["binned_accuracy/all"].p == 1
    constant = {"none": (0.8,), "leace": (0.7, -0.1, 0.0)}
    [layer] = mitigated_layers([run_of(planted("binned_accuracy/all", constant), tmp_path / "constant", ["leace"])])
    assert layer.rows[1].cells["binned_accuracy/all"].significant


# --- table -----------------------------------------------------------------------------------------------------------


def test_controls_of_equal_energy_stand_beside_the_number_and_in_no_family(tmp_path: Path) -> None:
    """A mitigation without a map has a dash."""
    energy = {
        f"random_energy/mid__{label}/binned_accuracy/all": 0.5 + i / 100 for i, label in enumerate(("position_mean", "leace"))
    }
    energy |= {f"{key}/ci_low": value - 0.125 for key, value in energy.items()}
    metrics = planted("binned_accuracy/all", POSITION)
    plain, beside = (run_of(metrics | more, tmp_path / str(len(more))) for more in ({}, energy))
    [layer], [before] = mitigated_layers([beside]), mitigated_layers([plain])
    cells = {row.label: row.cells["binned_accuracy/all"] for row in layer.rows}
    assert (cells["leace"].energy, cells["leace"].energy_ci_low) == (0.51, 0.385) and math.isnan(cells["canvas"].energy)
    assert (
        layer.families == before.families
        and [row.cells["binned_accuracy/all"].p for row in layer.rows][1:4]
        == [row.cells["binned_accuracy/all"].p for row in before.rows][1:4]
    )
    text = table_of([beside])
    assert "random energy: the number before it" in text and "random energy" not in table_of([plain])
    [line] = [line for line in printed(mitigation_tables([beside])).splitlines() if line.split()[:1] == ["leace"]]
    assert line.split()[1:4] == [".74*", ".51", "1"]
    [line] = [line for line in printed(mitigation_tables([beside])).splitlines() if line.split()[:1] == ["canvas"]]
    assert line.split()[1:4] == [".79", "–", "1.56"]


def test_tables_are_those_of_the_snapshot(tmp_path: Path, snapshot: Callable[[str, str], None]) -> None:
    runs = sweep(tmp_path)
    paths = write(runs, tmp_path)
    assert [path.name for path in paths] == ["mitigations.csv", "mitigations.md", "mitigations_pareto.png"]
    snapshot("mitigations", printed(mitigation_tables(runs)) + "\n".join(path.read_text() for path in paths[:2]))
    with Image.open(paths[2]) as image:
        assert image.height > 900 and np.asarray(image.convert("L")).std() > 5


def test_a_mitigation_works_only_if_nothing_speaks_against_it(tmp_path: Path) -> None:
    [layer] = mitigated_layers(sweep(tmp_path))
    assert rows(layer) == {
        "none": "",
        "position_mean_050": "yes",
        "position_mean": "no: lowers PCK",
        "leace": "vs. random_rank inconclusive",
        "canvas": "position inconclusive",
        "random_rank": "control",
        "shuffled_position": "control",
    }


def test_without_a_random_control_nothing_works(tmp_path: Path) -> None:
    runs = sweep(tmp_path, without=["random_rank"])
    [layer] = mitigated_layers(runs)
    assert rows(layer)["position_mean_050"] == rows(layer)["leace"] == "undecided: add mitigation random_rank"
    assert "yes" not in rows(layer).values()
    assert "no random_rank: no verdict on what works" in table_of(runs)


def test_without_correspondence_it_says_so(tmp_path: Path) -> None:
    [layer] = mitigated_layers(sweep(tmp_path)[:1])
    assert rows(layer)["position_mean_050"] == "undecided: run probe=correspondence"
    [layer] = mitigated_layers(sweep_again(tmp_path)[1:])
    assert rows(layer)["position_mean_050"] == "undecided: run probe=position"


def test_where_matching_never_worked_nothing_is_said_to_work(tmp_path: Path) -> None:
    low = {label: (value - 0.221, *rest) for label, (value, *rest) in PCK.items()}
    metrics = planted("binned_accuracy/all", POSITION) | planted("pck_ours_point_0.10/all", low)
    [layer] = mitigated_layers([run_of(metrics, tmp_path / "run")])
    assert rows(layer)["position_mean_050"] == "PCK below 8%" and rows(layer)["position_mean"] == "no: lowers PCK"


def test_the_control_of_equal_rank_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # a control of leace's own rank that takes less, and one of a higher rank that takes nearly all
    monkeypatch.setitem(FAMILIES, "random_rank_6", "RandomRank")
    monkeypatch.setitem(RANKS, "random_rank_6", 6)
    numbers = POSITION | {"random_rank_6": (0.8, 0.0, 0.01), "random_rank": (0.3, -0.5, 0.02)}
    pck = PCK | {"random_rank_6": (0.3, 0.0, 0.01)}
    metrics = planted("binned_accuracy/all", numbers) | planted("pck_ours_point_0.10/all", pck)
    [layer] = mitigated_layers([run_of(metrics, tmp_path / "run", list(FAMILIES))])
    assert rows(layer)["leace"] == "yes"
    assert rows(layer)["position_mean_050"] == "no: removes less than random_rank"


def test_runs_of_other_networks_are_not_mixed(tmp_path: Path) -> None:
    runs = sweep(tmp_path)
    other = run_of(planted("binned_accuracy/all", POSITION | {"leace": (0.1, -0.7, 0.01)}), tmp_path / "x", timestep=261)
    values = [
        {row.label: row.cells["binned_accuracy/all"].value for row in layer.rows}["leace"]
        for layer in mitigated_layers([*runs, other])
    ]
    assert values == [0.74, 0.1]


OTHER = POSITION | {"leace": (0.1, -0.7, 0.01)}


def leace(layers: Sequence[MitigatedLayer]) -> list[tuple[float, bool]]:
    """Position accuracy of leace, and whether its PCK is known, per table."""
    found = [{row.label: row.cells for row in layer.rows}["leace"] for layer in layers]
    return [(cells["binned_accuracy/all"].value, "pck_ours_point_0.10/all" in cells) for cells in found]


def test_of_runs_that_disagree_the_later_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    other = run_of(planted("binned_accuracy/all", OTHER), tmp_path / "other")
    assert leace(mitigated_layers([*sweep(tmp_path), other])) == [(0.74, True)]
    [warning] = caplog.messages
    assert "other is left out" in warning and "test/mid__leace/binned_accuracy/all is 0.1, and 0.74" in warning


@pytest.mark.parametrize(
    "meta", [{"dataset_fingerprint": "b"}, {"images": {"test": 7}}, {"train_steps": 9}], ids=["data", "size", "solver"]
)
def test_another_way_of_measuring_has_a_table_of_its_own(
    tmp_path: Path, meta: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    runs = [*sweep(tmp_path), run_of(planted("binned_accuracy/all", OTHER), tmp_path / "other", **meta)]
    layers = mitigated_layers(runs)
    assert leace(layers) == [(0.74, True), (0.1, True)], "the only correspondence run belongs to both"
    assert len({layer.setting for layer in layers}) == 2 and not caplog.messages
    # with two data sets of both probes nothing tells which belong together
    runs.append(run_of(planted("pck_ours_point_0.10/all", PCK), tmp_path / "pck", probe="correspondence", **meta))
    assert [known for layer in mitigated_layers(runs) for known in [{*layer.none.cells}] if len(known) == 3] == []


@pytest.mark.parametrize("meta", [{"seed": 1}, {"precision": "bf16"}, {"image_size": 256}], ids=str)
def test_other_conditions_have_a_table_of_their_own(tmp_path: Path, meta: dict[str, Any]) -> None:
    layers = mitigated_layers([*sweep(tmp_path), run_of(planted("binned_accuracy/all", OTHER), tmp_path / "other", **meta)])
    assert leace(layers) == [(0.74, True), (0.1, False)]
    [(name, value)] = meta.items()
    assert layers[1].setting == f"some/model, timestep 50, {name.removeprefix('image_')} {value}"


def test_position_stays_only_where_its_interval_is_within_two_points(tmp_path: Path) -> None:
    numbers = POSITION | {"canvas": (0.8, 0.0, 0.01), "leace": (0.9, 0.1, 0.02)}
    [layer] = mitigated_layers([run_of(planted("binned_accuracy/all", numbers), tmp_path / "run")])
    assert (rows(layer)["canvas"], rows(layer)["leace"]) == ("no: position unchanged", "no: position rises")


def test_pck_that_may_have_fallen_by_more_than_two_points_is_inconclusive(tmp_path: Path) -> None:
    wide = PCK | {"position_mean_050": (0.3, 0.0, 0.03)}
    metrics = planted("binned_accuracy/all", POSITION) | planted("pck_ours_point_0.10/all", wide)
    [layer] = mitigated_layers([run_of(metrics, tmp_path / "run")])
    assert rows(layer)["position_mean_050"] == "PCK inconclusive"


def test_runs_without_variants_have_no_report(tmp_path: Path) -> None:
    plain = run_of(planted("binned_accuracy/all", {"none": (0.8,)}), tmp_path / "plain", labels=[])
    assert mitigation_tables([plain]) == [] and write([plain], tmp_path) == []
    assert not list(tmp_path.glob("mitigations*"))


def test_a_layer_that_is_the_start_of_another_s_name_stays_alone(tmp_path: Path) -> None:
    metrics = planted("binned_accuracy/all", POSITION, ("up_1",))
    metrics |= planted("binned_accuracy/all", {label: (0.01, *rest[1:]) for label, rest in POSITION.items()}, ("up_1_res_0",))
    [first, second] = mitigated_layers([run_of(metrics, tmp_path / "run")])
    assert first.none.cells["binned_accuracy/all"].value == 0.8
    assert second.none.cells["binned_accuracy/all"].value == 0.01


# --- figure ----------------------------------------------------------------------------------------------------------


def worse(point: np.ndarray, other: np.ndarray) -> bool:
    return bool(other[0] <= point[0] and other[1] >= point[1] and (other[0] < point[0] or other[1] > point[1]))


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=12))
def test_dominated_is_brute_force(points: list[tuple[int, int]]) -> None:
    array = np.array(points, dtype=float)
    expected = [sum(worse(point, other) for other in array) for point in array]
    assert dominated(array).tolist() == expected
    assert not all(expected)


def markers(axis: Any) -> dict[str, bool]:
    """Label → whether it is hollow."""
    return {line.get_gid(): line.get_markerfacecolor() == "white" for line in axis.get_lines() if line.get_gid()}


def test_dominated_points_are_hollow(tmp_path: Path) -> None:
    figure = pareto_figure(mitigated_layers(sweep(tmp_path)))
    assert figure is not None
    pck, content = figure.axes
    assert {label for label, hollow in markers(pck).items() if not hollow} == {
        "position_mean_050", "position_mean", "random_rank", "shuffled_position",  # controls are crosses
    }  # fmt: skip
    assert not markers(content)["none"] and markers(content)["canvas"]
    [star] = [line for line in pck.get_lines() if line.get_gid() == "none"]
    assert MarkerStyle(star.get_marker()).get_marker() == "*"  # type: ignore[arg-type]
    assert "chance" in figure.get_suptitle()


def test_six_mitigations_have_a_name_and_the_others_are_grey(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # each is worse than the one before it in both; two equal ones keep their order
    numbers = {f"leace_{i}": (0.3 + 0.02 * min(i, 7), -0.5, 0.02) for i in range(9)}
    pck = {label: (0.8 - values[0], 0.0, 0.02) for label, values in numbers.items()}
    monkeypatch.setattr(
        "tests.reports.test_mitigations.FAMILIES", dict.fromkeys(numbers, "Leace") | {"random_rank": "RandomRank"}
    )
    both = planted("binned_accuracy/all", {"none": (0.8,)} | numbers | {"random_rank": (0.1, 0.0, 0.02)})
    both |= planted("pck_ours_point_0.10/all", {"none": (0.9,)} | pck | {"random_rank": (0.9, 0.0, 0.02)})
    [layer] = mitigated_layers([run_of(both, tmp_path / "run", list(FAMILIES))])
    assert best(layer, "pck_ours_point_0.10/all") == [f"leace_{i}" for i in range(6)]
    figure = pareto_figure([layer])
    assert figure is not None
    assert {text.get_text() for text in figure.axes[0].texts if text.get_text()} == {"none", *(f"leace_{i}" for i in range(6))}
    colours = {line.get_gid(): line.get_color() for line in figure.axes[0].get_lines() if line.get_gid()}
    assert {colours[f"leace_{i}"] for i in (6, 7, 8)} == {GREY} == {colours["random_rank"]}
    assert len({colours[f"leace_{i}"] for i in range(6)} - {GREY}) == 6


def test_more_than_three_layers_have_several_figures(tmp_path: Path) -> None:
    figures = pareto_figures(mitigated_layers(sweep(tmp_path, ("mid", "up_0", "up_1", "up_2"))))
    assert {name: len(figure.axes) for name, figure in figures.items()} == {"mitigations_pareto": 6, "mitigations_pareto_2": 2}
    assert all(max(figure.get_size_inches()) <= INCHES for figure in figures.values())


def test_less_error_is_better(tmp_path: Path) -> None:
    # the same numbers as errors: what was best is worst
    metrics = planted("binned_accuracy/all", POSITION) | planted("rmse/all", PCK)
    figure = pareto_figure(mitigated_layers([run_of(metrics, tmp_path / "run")]))
    assert figure is not None
    [axis] = figure.axes
    low, high = axis.get_ylim()
    assert low > high
    assert {label for label, hollow in markers(axis).items() if not hollow} == {
        "position_mean",
        "random_rank",
        "shuffled_position",
    }


def test_every_point_has_a_name_inside_its_panel_and_none_covers_another(tmp_path: Path) -> None:
    figure = pareto_figure(mitigated_layers(sweep(tmp_path)))
    assert figure is not None
    for axis in figure.axes:
        texts = [text for text in axis.texts if text.get_text()]
        assert {text.get_text() for text in texts} == {"none", *FAMILIES} - {"random_rank", "shuffled_position"}
        boxes = [text.get_window_extent() for text in texts]
        assert all(axis.bbox.contains(box.x0, box.y0) and axis.bbox.contains(box.x1, box.y1) for box in boxes)
        assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])


def test_no_figure_without_a_task(tmp_path: Path) -> None:
    assert pareto_figure(mitigated_layers(sweep(tmp_path)[:1])) is None
