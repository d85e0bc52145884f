"""Contents of the figures of one run: curves, bands, panels over the grid, pictures."""

from collections.abc import Callable

import numpy as np
import pytest
from matplotlib.figure import Figure

from sdprobe.reports.correspondence import DISPLACEMENTS
from sdprobe.reports.dispatch import figures, report_of
from sdprobe.reports.run import Run
from sdprobe.tokens.keys import GROUPS, PARTITION
from tests.reports.fabricated import KINDS, behind, curves, fabricated, without

Numbers = dict[str, tuple[str, str, str]]  # label → condition, metric, group
RANDOM = "random weights, 3 seeds"


def beside(metric: str, **others: str) -> Numbers:
    """The network, random weights, and other baselines by their condition."""
    named = {"this network": "test", RANDOM: "random_weights"} | {text: what for what, text in others.items()}
    return {label: (what, metric, "all") for label, what in named.items()}


def groups_of(metric: str) -> Numbers:
    """Similarity of every group, whole and cropped, and of the content of the cropped corners."""
    found = {group: ("test", metric, group) for group in PARTITION}
    found |= {f"{group}, image cropped": ("test", f"cropped_{metric}", group) for group in PARTITION}
    return found | {"same content as the cropped corners, in the whole image": ("test", metric, "corner_content")}


SIX = ("conv_in", "down_0", "down_1", "mid", "up_0", "up_1")
RISKS = {"position": "r_pos", "corners": "r_cor", "norms": "r_norm"}
SHUFFLED = {"shuffled_labels": "shuffled labels"}
MATCHED = {"trained head": "test", "zero-shot": "zero_shot", RANDOM: "random_weights"}
# figure → probe, curves of each panel, number of bands of each panel, number of curves with mitigations of each panel
CURVES: dict[str, tuple[str, list[Numbers], list[int], list[int]]] = {
    "accuracy_over_layers": (
        "position",
        [beside(metric, **SHUFFLED, chance="chance") for metric in ("binned_accuracy", "axis_accuracy")], [2, 2], [1, 1],
    ),
    "content_over_layers": ("content", [beside("content_r2", **SHUFFLED, chance="knowing the position only")], [2], [1]),
    "equivariance_over_layers": ("equivariance", [beside("equivariance"), beside("r_pos")], [2, 2], [1, 1]),
    "depth_error_over_layers": ("depth", [beside("rmse", position_only="position only", constant="constant")], [2], [1]),
    "credibility": (
        "statistics",
        [
            beside("credibility"),
            {text: ("test", name, "all") for text, name in RISKS.items()}
            | {f"{text}, {RANDOM}": ("random_weights", name, "all") for text, name in RISKS.items()},
        ],
        [2, 6], [1, 0],
    ),
    "similarity_over_layers": ("statistics", [groups_of("similarity"), groups_of("similarity_centred")], [7, 7], [0, 0]),
    "norms_over_layers": (
        "statistics",
        [
            {group.replace("_", "-"): ("test", "relative_norm", group) for group in GROUPS},
            {"share of tokens detected as high-norm": ("test", "high_norm_share", "all"),
             "their share of energy": ("test", "high_norm_energy", "all")},
        ],
        [4, 2], [0, 0],
    ),
    "pck_over_layers": (
        "correspondence",
        [
            {label: (what, "pck_ours_point_0.10", "all") for label, what in MATCHED.items()},
            {f"trained head, {name}": ("test", "pck_ours_point_0.10", f"displacement_{name}") for name in DISPLACEMENTS},
        ],
        [2, 3], [1, 0],
    ),
}  # fmt: skip


def one(run: Run, name: str) -> Figure:
    """A single figure of those that the run has data for."""
    drawing = report_of(run).drawings[name]
    assert drawing.applies(run)
    return drawing.draw(run.showing([]))


@pytest.mark.parametrize("name", CURVES)
def test_curves_are_the_numbers_of_the_run_without_gaps_where_it_has_them(name: str) -> None:
    kind, panels, bands, variants = CURVES[name]
    run = behind(kind, "leace", layers=SIX)
    run = without(run, "test/mid/high_norm_energy")
    figure = one(run, name)
    scale = 100 if kind == "correspondence" else 1
    assert [label.get_text() for label in figure.axes[-1].get_xticklabels()] == run.bases
    for axis, numbers, count, behinds in zip(figure.axes, panels, bands, variants, strict=True):
        drawn = {label.removesuffix(", without mitigation"): values for label, values in curves(axis).items()}
        for label, (what, metric, group) in numbers.items():
            values = np.array([run.value(what, layer, metric, group) for layer in run.bases], dtype=float)
            np.testing.assert_allclose(drawn.pop(label), scale * values, err_msg=label)
        if behinds:
            what, metric, group = next(iter(numbers.values()))
            values = np.array([run.value(what, f"{layer}__leace", metric, group) for layer in run.bases], dtype=float)
            np.testing.assert_allclose(drawn.pop("with leace"), scale * values)
        assert all(label.startswith("same position") for label in drawn), "no curve besides"
        assert len(axis.collections) == count + behinds
    bare = one(Run({}, run.meta, run.maps), name)
    assert not any(set(curves(axis)) - {"same position"} for axis in bare.axes), "nothing was measured"
    bare.canvas.draw()  # the layout is found when it is drawn


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "study"])
@pytest.mark.parametrize(
    ("units", "seeds", "said"),
    [
        (12, 3, "bands: 95 % intervals over {}; for random weights also over 3 seeds"),
        (12, 1, "bands: 95 % intervals over {}"),
        (4, 3, "no bands: {} are too few for intervals"),
    ],
)
def test_bands_are_drawn_where_there_are_intervals_and_say_what_they_rest_on(
    kind: str, units: int, seeds: int, said: str
) -> None:
    name = next(name for name, (owner, *_) in CURVES.items() if owner == kind)
    if kind == "statistics" and units < 6:
        return  # their intervals are over 20 groups of images, whatever there is
    figure = one(fabricated(kind, SIX, units=units, seeds=seeds), name)
    rest = {"statistics": "20 groups of images", "correspondence": f"{units} test pictures"}.get(
        kind, f"{units} test photographs"
    )
    assert figure.get_suptitle().replace("\n", " ").endswith(said.format(rest))
    assert len(figure.axes[0].collections) == {(12, 3): 2, (12, 1): 1, (4, 3): 0}[units, seeds]


def test_no_band_stands_where_a_layer_has_no_interval() -> None:
    band = one(without(fabricated("statistics", SIX), "conv_in/credibility/all/ci_low"), "credibility").axes[0].collections[0]
    assert band.get_datalim(band.axes.transData).x0 == 1


@pytest.mark.parametrize("kind", KINDS)
def test_a_chain_of_mitigations_stands_in_every_figure(kind: str) -> None:
    chain = fabricated(kind, mitigations={"none": {"steps": ["PositionMean", "Leace"]}})
    for name, figure in figures(chain).items():
        assert "with mitigation position_mean → leace" in figure.get_suptitle().replace("\n", " "), name


def test_panels_of_several_numbers_say_that_they_are_without_mitigation() -> None:
    titles = [one(run, "credibility").axes[1].get_legend().get_title().get_text()
              for run in (behind("statistics", "leace"), fabricated("statistics"))]  # fmt: skip
    assert titles == ["without mitigation", ""]


def shares(run: Run, key: str) -> np.ndarray:
    return np.asarray(run.maps[key] / run.maps[key].sum(1, keepdims=True).clip(1))


def wrong(run: Run, layer: str) -> np.ndarray:
    counts = run.maps[f"{layer}/offset_counts"]
    return np.where(counts > 0, run.maps[f"{layer}/offset_errors"] / counts.clip(1), np.nan)


GRIDS: dict[str, tuple[str, Callable[[Run], list[np.ndarray]]]] = {
    "accuracy_over_grid": ("position", lambda run: [run.maps[f"{layer}/accuracy"] for layer in run.layers]),
    "predicted_against_true": (
        "position", lambda run: [shares(run, f"{layer}/{axis}") for layer in run.layers for axis in ("rows", "cols")],
    ),
    "depth_error_over_grid": ("depth", lambda run: [run.maps[f"{layer}/error"] for layer in run.layers]),
    "errors_over_offset": ("correspondence", lambda run: [wrong(run, layer) for layer in run.layers]),
    "norm_maps": (
        "statistics", lambda run: [run.maps[f"{layer}/norm"] / run.maps[f"{layer}/norm"].mean() for layer in run.layers],
    ),
    "similarity": (
        "statistics", lambda run: [run.maps["pictures"][0], *(run.maps[f"{layer}/similarity"] for layer in run.layers)],
    ),
    "cka": ("statistics", lambda run: [run.maps["cka"], run.maps["cka_positions"]]),
}  # fmt: skip


@pytest.mark.parametrize("name", GRIDS)
def test_panels_show_the_maps_they_are_given(name: str) -> None:
    kind, tables = GRIDS[name]
    run = fabricated(kind)
    panels = [axis for axis in one(run, name).axes if axis.images]
    for panel, table in zip(panels, tables(run), strict=True):
        np.testing.assert_allclose(np.ma.filled(panel.images[0].get_array(), np.nan), table)
    titles = [panel.get_title().split()[0] for panel in panels if panel.get_title() not in ("", "picture")]
    assert titles == [layer for layer in run.layers for _ in range(2 if name == "predicted_against_true" else 1)] * (
        name != "cka"
    )


def test_cka_stands_beside_what_positions_give_and_alone_in_older_runs() -> None:
    run = fabricated("statistics")
    titles = [axis.get_title(loc="left") for axis in one(run, "cka").axes if axis.images]
    assert titles == ["same positions of the same images", "same positions of different images"]
    assert len([axis for axis in one(without(run, "cka_positions"), "cka").axes if axis.images]) == 1


@pytest.mark.parametrize("empty", [False, True])
def test_high_norm_tokens_are_marked_on_the_pictures(empty: bool) -> None:
    run = fabricated("statistics")
    if empty:
        run.maps.update({key: np.zeros_like(mask) for key, mask in run.maps.items() if key.endswith("/high_norm")})
    figure: Figure = one(run, "high_norm_tokens")
    panels = [panel for panel in figure.axes if panel.collections]
    assert len(panels) == 2 * len(run.layers)
    for number, panel in enumerate(panels):
        mask = run.maps[f"{run.layers[number % 3]}/high_norm"][number // 3]
        places = {(x - 0.5, y - 0.5) for x, y in np.asarray(panel.collections[0].get_offsets()).tolist()}
        assert places == {(col, row) for row, col in np.argwhere(mask).tolist()}, "x is the column, y the row"
        assert panel.get_xlabel() == str(mask.sum())


def test_many_layers_show_their_stages_only() -> None:
    names = [f"up_{i}_{kind}_{j}" for i in range(4) for kind in ("res", "attn") for j in range(2)] + ["mid", "up_3"]
    drawn = figures(fabricated("statistics", names))
    assert [panel.get_title() for panel in drawn["principal_components"].axes[:3]] == ["", "mid", "up_3"]
    shown = [panel.get_title() for panel in drawn["norm_maps"].axes if panel.images and panel.get_title()]
    assert len(shown) == 12 and [shown[0], shown[-1]] == [names[0], names[-1]]
    every = figures(fabricated("statistics", names), ["all"])["norm_maps"]
    assert [panel.get_title() for panel in every.axes if panel.images and panel.get_title()] == names


def test_matches_join_the_points_of_their_pair() -> None:
    run = fabricated("correspondence")
    best = max(run.layers, key=lambda layer: run.value("test", layer, "pck_ours_point_0.10") or 0)
    figure = one(run, "matches")
    assert f"Matches at {best} (highest PCK), crosses" in figure.get_suptitle()
    for number, panel in enumerate(figure.axes):
        rows = run.maps[f"{best}/matches"][3 * number : 3 * number + 3]
        rows = rows[np.argsort(rows[:, -1] == 1, kind="stable")]  # correct matches are drawn last
        assert panel.get_title() == f"{(rows[:, -1] == 1).sum()} of 3 correct"
        lines = [line for line in panel.get_lines() if len(np.asarray(line.get_xdata())) == 2]
        for line, (_, x, y, _, _, found_x, found_y, _) in zip(lines, rows * np.array([1, *[32] * 6, 1]), strict=True):
            assert np.asarray(line.get_xdata()).tolist() == pytest.approx([x, 34 + found_x])
            assert np.asarray(line.get_ydata()).tolist() == pytest.approx([y, found_y])
        assert len({line.get_color() for line in lines}) == 3, "correct, wrong, at the source's position"
