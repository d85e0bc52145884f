"""A run at several noise levels in reports: each level as a run of its own, and its numbers over noise."""

from fnmatch import fnmatchcase
from pathlib import Path

import pytest
from matplotlib import pyplot as plt

from sdprobe.reports.collection import filtered, read_runs, summarise
from sdprobe.reports.comparison import comparison_figures, groups_of
from sdprobe.reports.dispatch import FILES, figures, tables
from sdprobe.reports.registry.best import Metric, rank
from sdprobe.reports.registry.entries import find
from sdprobe.reports.registry.listing import row as listing
from sdprobe.reports.registry.listing import show_list
from sdprobe.reports.run import Run
from sdprobe.reports.tracked import chosen, headline, layer_rows, long_table, noise_rows
from sdprobe.tokens.keys import Key, base_of, cells, label_of, place_of, timestep_of, variant
from tests.reports.fabricated import KINDS, LAYERS, configured, curves, fabricated, printed, stored

TIMESTEPS = [10, 50, 261]
SIGMA = [0.084, 0.184, 0.42]


def several(kind: str, layers: tuple[str, ...] = tuple(LAYERS), label: str = "") -> Run:
    """A run at three noise levels, also behind a mitigation if it has a label."""
    names = [name for cell in cells(layers, TIMESTEPS) for name in dict.fromkeys((cell, variant(cell, label)))]
    published = {name: LAYERS[base_of(name)] for name in names}
    run = fabricated(kind, names, timestep=TIMESTEPS, noise_level=SIGMA, published_names=published)
    if kind == "statistics":
        run.maps.update({f"{name}__t{t}": run.maps[name] for name in ("cka", "cka_positions") for t in TIMESTEPS})
        del run.maps["cka"], run.maps["cka_positions"]
    return run


@pytest.mark.parametrize("kind", ["content", "statistics", "correspondence"])
def test_levels_share_out_the_numbers_of_a_run(kind: str) -> None:
    run, alone = several(kind, ("mid",), "leace"), fabricated(kind, ["mid", "mid__leace"])
    for level, timestep, sigma in zip(run.levels, TIMESTEPS, SIGMA, strict=True):
        assert level.metrics.keys() == alone.metrics.keys() and level.layers == alone.layers
        assert level.maps.keys() == alone.maps.keys() and level.levels == [level]
        assert (level.meta["timestep"], level.meta["noise_level"]) == (timestep, sigma)
        for text, value in level.metrics.items():
            key = Key.parse(text)
            layer = variant(base_of(key.layer), label_of(key.layer), timestep)
            name = text if key.layer == "baseline" else text.replace(f"/{key.layer}/", f"/{layer}/", 1)
            assert run.metrics[name] == value
    assert fabricated(kind).levels[0].level is None, "a run at one level is itself"


@pytest.mark.parametrize("layers", [("mid",), ("conv_in", "mid")], ids=["one layer", "two layers"])
@pytest.mark.parametrize("kind", [pytest.param(kind, marks=pytest.mark.slow) if kind != "position" else kind for kind in KINDS])
def test_every_report_draws_several_levels(kind: str, layers: tuple[str, ...]) -> None:
    run = several(kind, layers)
    assert "timesteps 10, 50, 261" in printed(tables(run))
    names = list(figures(run))
    assert all(any(fnmatchcase(f"{name}.png", pattern) for pattern in FILES) for name in names), "the next run removes them"
    over_layers = [name for name in names if name.endswith(tuple(variant("", timestep=t) for t in TIMESTEPS))]
    assert bool(over_layers) == (len(layers) > 1)
    assert len(over_layers) % 3 == 0 and (f"timesteps_{kind.replace('study', 'position')}" in names) == (len(layers) > 1)
    plt.close("all")


@pytest.mark.parametrize(
    ("kind", "name", "metric"),
    [("position", "accuracy_over_noise", "binned_accuracy"), ("depth", "depth_error_over_noise", "rmse"),
     ("content", "content_over_noise", "content_r2"), ("correspondence", "pck_over_noise", "pck_ours_point_0.10")],
)  # fmt: skip
def test_one_layer_is_drawn_over_noise_beside_its_baselines(kind: str, name: str, metric: str) -> None:
    run = several(kind, ("mid",), "leace")
    figure = figures(run)[name]
    figure.canvas.draw()
    drawn, scale = curves(figure.axes[0]), 100 if kind == "correspondence" else 1
    for text, condition, label in (("random weights", "random_weights", ""), ("leace", "test", "leace")):
        values = [run.value(condition, variant("mid", label, t), metric) for t in TIMESTEPS]
        if None not in values:
            [found] = [series for title, series in drawn.items() if text in title]
            assert found == pytest.approx([scale * value for value in values if value is not None])
    bottom = figure.axes[-1] if kind == "correspondence" else [axis for axis in figure.axes if axis.get_xticklabels()][-1]
    assert [text.get_text() for text in bottom.get_xticklabels()] == [f"timestep {t}" for t in TIMESTEPS]
    plt.close(figure)


def test_a_folder_is_compared_level_by_level(tmp_path: Path) -> None:
    stored(several("position"), configured(tmp_path / "several", timestep=TIMESTEPS, noise_level=None))
    stored(fabricated("position", timestep=500, noise_level=0.6), configured(tmp_path / "one", timestep=500))
    runs, skipped = read_runs(tmp_path)
    assert len(runs) == 2 and not skipped
    [kept], _ = filtered(runs, {}, ["timestep=261"])
    assert kept.meta["timestep"] == 261 and kept.layers == list(LAYERS)
    paths = {path.stem for path in summarise(runs, tmp_path)}
    assert {"layers_position", "timesteps_position", "layers_timesteps_position"} <= paths
    text = (tmp_path / "report.txt").read_text()
    assert "2 runs with a result" in text and all(f"timestep {t}" in text for t in (*TIMESTEPS, 500))
    rows = (tmp_path / "runs.csv").read_text().splitlines()
    assert len(rows) == 1 + 4 * len(LAYERS)


def test_levels_are_ranked_and_listed(tmp_path: Path) -> None:
    stored(several("position"), configured(tmp_path / "several", timestep=TIMESTEPS))
    entries = find([tmp_path])
    metric = Metric.parse("r2")
    every, some = rank(entries, metric, [], True), rank(entries, metric, ["timestep=10,261", "block=mid"], True)
    assert [cell.record(1)["timestep"] for cell in some] == [int(timestep_of(cell.layer) or 0) for cell in some]
    assert {cell.layer for cell in some} == {"mid__t10", "mid__t261"} and len(every) == 3 * len(LAYERS)
    listed = listing(entries[0])
    assert (listed["layers"], listed["timestep"], listed["layer"]) == (list(LAYERS), TIMESTEPS, chosen(several("position"))[0])
    assert "10, 50, 261" in printed(lambda console: show_list(entries, console), width=200)


def test_a_tracker_gets_curves_over_noise() -> None:
    run = several("position", ("conv_in", "mid"), "leace")
    network = ["conv_in", "down_0", "mid"]
    rows = layer_rows(run, network)
    assert [(row["layers/name"], row["layers/timestep"]) for row in rows] == [
        (layer, t) for layer in ("conv_in", "mid") for t in TIMESTEPS
    ]
    for found in rows:
        t = found["layers/timestep"]
        layer = variant(found["layers/name"], timestep=t)
        assert found[f"layers_t{t}/binned_accuracy"] == run.value("test", layer, "binned_accuracy")
        assert found[f"layers_t{t}/binned_accuracy/chance"] == run.value("chance", layer, "binned_accuracy")
        assert found[f"mitigations_t{t}/binned_accuracy/leace"] == run.value("test", f"{layer}__leace", "binned_accuracy")
        assert not any(name.startswith(("layers/binned", "mitigations/")) for name in found)
    noise = noise_rows(run)
    assert [(row["noise/timestep"], row["noise/level"]) for row in noise] == list(zip(TIMESTEPS, SIGMA, strict=True))
    for row in noise:
        for layer in ("conv_in", "mid", "mid__leace"):
            name = variant(base_of(layer), label_of(layer), row["noise/timestep"])
            assert row[f"noise/cell_accuracy/{layer}"] == run.value("test", name, "cell_accuracy")
            assert row[f"noise/binned_accuracy/{layer}/random_weights"] == run.value("random_weights", name, "binned_accuracy")
    assert noise_rows(fabricated("position")) == []
    table = {(row[0], row[1], row[2], row[3], row[4], row[5]): row[6] for row in long_table(run)}
    assert table["test", "mid", 261, "leace", "axis_accuracy", "corner"] == run.value(
        "test", "mid__t261__leace", "axis_accuracy", "corner"
    )
    best = headline(run, network)
    place = best["layer"], best["timestep"]
    assert place == place_of(max((run.value("test", layer, "binned_accuracy"), layer) for layer in run.bases)[1], 0) or (
        "validation" in best["layer_is"]
    )
    assert best["layer_is"].endswith("layers and noise levels")


def test_inputs_of_attention_lie_between_the_blocks_of_a_transformer() -> None:
    network = ["patch", "block_0_norm", "block_0", "block_1_norm", "block_1"]
    rows = layer_rows(fabricated("position", network), network)
    assert [row["layers/index"] for row in rows] == [0, 0.5, 1, 1.5, 2]


def test_a_baseline_without_a_network_has_no_level() -> None:
    run = several("correspondence", ("mid",))
    assert {row[2] for row in long_table(run) if row[1] == "baseline"} == {None}
    assert {row[2] for row in long_table(run) if row[1] == "mid"} == set(TIMESTEPS)


@pytest.mark.parametrize(
    ("timesteps", "sigma"),
    [(TIMESTEPS, [0.184, 0.284, 0.52]), ([84, 184, 420], SIGMA)],
    ids=["a timestep is other noise", "the same noise has other timesteps"],
)
def test_networks_of_different_noise_schedules_are_compared_by_their_noise(
    tmp_path: Path, timesteps: list[int], sigma: list[float]
) -> None:
    for name, steps, levels in (("one", TIMESTEPS, SIGMA), ("two", timesteps, sigma)):
        for t, level in zip(steps, levels, strict=True):
            run = fabricated("position", ["mid"], timestep=t, noise_level=level, model=name, schedule_hash=name)
            stored(run, configured(tmp_path / f"{name}{t}", timestep=t))
    drawn = comparison_figures(groups_of(read_runs(tmp_path)[0])).figures["timesteps_position"]
    assert drawn.axes[0].get_xlabel() == "noise level, share of noise"
    places = sorted(round(float(x), 2) for line in drawn.axes[0].get_lines() for x in line.get_xdata())
    assert places == pytest.approx(sorted([*SIGMA, *sigma]), abs=0.01)
    plt.close("all")
