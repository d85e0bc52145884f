"""``choose=`` through the command: picked on validation photographs, reported on test photographs, which it does not change."""

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sdprobe import FrozenSD
from sdprobe.reports.dispatch import tables
from sdprobe.reports.printing import printed
from sdprobe.reports.run import Run
from sdprobe.runs.choice import SAME, check_cells, groups
from sdprobe.runs.cli import UserError
from sdprobe.tokens.keys import select
from sdprobe.utilities.errors import InputError

# 128 textures have 10 validation photographs
SMALL = [
    "backbone=tiny", "images=texture_latents", "images.size=128", "images.limit=128", "probe.solver=closed_form", "logger=none",
    "twins=0", "block=[up_1,up_2]",
]  # fmt: skip
PAIRS = ["backbone=tiny", "probe=correspondence", "datamodule=pairs", "images=scene_pairs", "images.size=64", "logger=none",
         "images.limit=72", "images.pairs_per_category=2", "probe.head=none", "block=[up_1,up_2]", "twins=0"]  # fmt: skip
Launch = Callable[..., Any]


@pytest.fixture
def chosen(launch: Launch, module_cache: Path) -> Run:
    """A run that chooses a layer, measured once for the tests of this file, which leave its folder as it is."""
    folder = module_cache / "chosen"
    if not (folder / "metrics.json").exists():
        launch("twins=1", "choose=[layer]", "logger=csv", folder=str(folder))
    return Run.read(folder)


def _test(run: Run) -> dict[str, float]:
    return {key: value for key, value in run.metrics.items() if not key.startswith("choice/")}


def test_the_best_layer_on_validation_photographs_is_reported_on_test_photographs(launch: Launch, chosen: Run) -> None:
    plain, run = launch("twins=1", folder="plain"), chosen
    assert _test(run) == plain.metrics  # the choice changes no number
    [choice] = run.meta["choices"]
    scores = {key.split("/")[1]: value for key, value in select(run.metrics, condition="choice", statistic="").items()}
    assert set(scores) == {"up_1", "up_2"} and choice["chosen"] == max(scores, key=scores.__getitem__)
    assert (choice["photographs"], choice["cells"], choice["by"]) == (10, 2, ["layer"])
    assert run.meta["settings_hash"] == plain.meta["settings_hash"]  # one curve in reports
    text = printed(tables(run))
    assert "Choice of layer on 10 validation photographs" in text and choice["chosen"] in text
    assert "Choice" not in printed(tables(plain))


def test_scores_are_those_of_the_validation_photographs(launch: Launch, chosen: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run whose test split is the validation split of the other gives the same numbers."""
    from datamodules import activations

    split = activations.split_by_photo

    def swapped(*arguments: Any) -> dict[str, list[int]]:
        made = split(*arguments)
        return made | {"test": made["val"], "val": made["test"]}

    monkeypatch.setattr(activations, "split_by_photo", swapped)
    swap = launch(folder="swap")
    found = {key.removeprefix("choice/"): value for key, value in chosen.metrics.items() if key.startswith("choice/")}
    assert found and all(swap.metrics[f"test/{key}"] == value for key, value in found.items())


def test_one_choice_of_layer_and_noise_level(launch: Launch) -> None:
    run = launch("choose=[layer,timestep]", "timestep=[10,600]")
    [choice] = run.meta["choices"]
    assert choice["cells"] == 4 and choice["chosen"] in run.layers
    assert f"t = {choice['chosen'].partition('__t')[2]}" in printed(tables(run))


@pytest.mark.slow
def test_a_choice_among_layers_and_mitigations_beside_one_per_mitigation(launch: Launch) -> None:
    mitigated = ["mitigation=[standardize,position_mean]", "datamodule.compare=true"]
    whole = launch("choose=[layer,mitigation]", *mitigated)
    each = launch("choose=layer", *mitigated, folder="each")
    assert [choice["cells"] for choice in whole.meta["choices"]] == [6]
    assert [choice["cells"] for choice in each.meta["choices"]] == [2, 2, 2]


def test_cells_agree_in_what_is_not_chosen() -> None:
    cells = ["mid__t50", "mid__t50__leace", "up_1__t50", "up_1__t50__leace", "mid__t261", "mid__t261__leace"]
    assert groups(cells, ["timestep"]) == [
        ["mid__t50", "mid__t261"], ["mid__t50__leace", "mid__t261__leace"], ["up_1__t50"], ["up_1__t50__leace"],
    ]  # fmt: skip
    assert groups(cells, ["layer", "timestep", "mitigation"]) == [cells]


def test_a_bound_was_measured_on_the_same_network() -> None:
    assert set(FrozenSD.from_pretrained("demo_dit", device="cpu").describe()) - set(SAME) == {
        "unet_config_hash", "text_hash", "precision", "device",
    }  # fmt: skip


def test_cells_of_one_choice_share_a_chance_level_and_are_several() -> None:
    shapes = {"mid__t50": (4, 2, 2), "mid__t261": (4, 2, 2), "up_1__t50": (4, 8, 8), "up_1__t261": (4, 8, 8)}
    probe = SimpleNamespace(kind="position", score="binned_accuracy/all", shapes=shapes)
    check_cells(probe, ["timestep"])  # a noise level for each layer
    with pytest.raises(InputError, match=r"one chance level of binned_accuracy to choose among, but got 0\.125 at up_1"):
        check_cells(probe, ["layer"])
    with pytest.raises(InputError, match="Expected several cells to choose a mitigation among, but got mid__t50, mid__t261"):
        check_cells(probe, ["mitigation"])


def test_trackers_get_the_numbers_of_the_test_alone(chosen: Run) -> None:
    run = chosen
    [file] = (run.folder / "csv").rglob("metrics.csv")
    key = "test/up_1/binned_accuracy/all"
    logged = [float(row[key]) for row in csv.DictReader(file.open()) if row.get(key)]
    assert logged == [pytest.approx(run.metrics[key], rel=1e-6)]


@pytest.mark.slow
def test_a_choice_by_matching_changes_no_number_of_the_test_pairs(launch: Launch) -> None:
    plain, run = launch(*PAIRS, small=False, folder="plain"), launch(*PAIRS, "choose=layer", small=False)
    assert _test(run) == plain.metrics and run.meta["test_fingerprint"] == plain.meta["test_fingerprint"]
    assert run.meta["dataset_fingerprint"] == plain.meta["dataset_fingerprint"]
    [choice] = run.meta["choices"]
    assert choice["photographs"] >= 10 and choice["metric"] == "pck_ours_point_0.10/all"


@pytest.mark.slow
def test_matching_is_chosen_on_validation_pairs_within_a_bound_on_position(launch: Launch, tmp_path: Path) -> None:
    position = launch("images.size=64", folder="position")
    ends = {layer: position.value("test", layer, "binned_accuracy", end="ci_high") for layer in ("up_1", "up_2")}
    other = min(ends, key=ends.__getitem__)
    bound = (ends["up_1"] + ends["up_2"]) / 2
    limits = [f"position_run={tmp_path / 'position'}", f"position_bound={bound}"]
    limited = launch(*PAIRS, "choose=layer", *limits, small=False, folder="limited")
    [choice] = limited.meta["choices"]
    assert choice["photographs"] >= 10 and choice["metric"] == "pck_ours_point_0.10/all"
    assert (choice["chosen"], choice["within_bound"], choice["cells"], choice["position"]) == (other, 1, 2, ends[other])
    with pytest.raises(UserError, match=r"position accuracy is at most 0\.01, but the lowest is"):
        launch(*PAIRS, "choose=layer", limits[0], "position_bound=0.01", small=False, folder="none")
    with pytest.raises(UserError, match="to have the mitigations Standardize, as this run has, but got none"):
        launch(*PAIRS, "choose=layer", *limits, "mitigation=standardize", small=False, folder="none")
    with pytest.raises(UserError, match="Expected position_run to have padding 'circular', as this run has, but got 'zeros'"):
        launch(*PAIRS, "choose=layer", *limits, "backbone.padding=circular", small=False, folder="none")
    assert not (tmp_path / "none").exists()  # nothing was measured before


@pytest.mark.slow
def test_a_bound_was_measured_with_the_same_options_of_mitigations(launch: Launch, tmp_path: Path) -> None:
    launch("images.size=64", "mitigation=position_mean", "mitigation.position_mean.gamma=0.5", folder="position")
    limits = [f"position_run={tmp_path / 'position'}", "position_bound=1", "mitigation=position_mean"]
    with pytest.raises(UserError, match=r'to have the options .*"gamma": 1\.0.*, but got .*"gamma": 0\.5'):
        launch(*PAIRS, "choose=layer", *limits, small=False, folder="none")


@pytest.mark.slow
def test_a_resumed_run_makes_the_same_choice(launch: Launch, interrupt: Callable[..., Any], tmp_path: Path) -> None:
    import lightning

    class Stop(lightning.Callback):
        def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
            if trainer.current_epoch == 1:
                raise KeyboardInterrupt

    adam = ["probe.solver=adam", "probe.min_steps=30", "choose=layer"]
    whole = launch(*adam, folder="whole")
    interrupt(Stop(), *adam)
    resumed = launch(*adam, f"resume={tmp_path / 'cut'}", folder="cut")
    assert resumed.metrics == whole.metrics and resumed.meta["choices"] == whole.meta["choices"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["choose=head"], "Expected choose to be one of layer, timestep, mitigation, but got 'head'"),
        (["choose=layer", "images.limit=60"], "Expected at least 10 validation photographs to choose by, but got 5"),
        (["choose=layer", "protocol=loos2025"], "Expected at least 10 validation photographs to choose by, but got 0"),
        (["choose=layer", "block=[mid,up_2]"], "Expected layers with one chance level of binned_accuracy"),
        (["position_bound=0.3"], "Expected choose, position_run and position_bound together"),
        (["choose=layer", "position_run=nowhere", "position_bound=0.3"], "Expected position_run to be a run folder"),
    ],
)
def test_a_choice_that_cannot_be_made_is_refused(launch: Launch, overrides: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        launch(*overrides)


def test_a_probe_without_a_score_is_refused(launch: Launch) -> None:
    statistics = ["backbone=tiny", "probe=statistics", "datamodule=grids", "images=texture", "images.size=192"]
    with pytest.raises(UserError, match="Expected a probe with a score to maximise, but probe=statistics has none"):
        launch(*statistics, "images.limit=128", "block=up_1", "logger=none", "choose=layer", small=False)


def test_commas_need_no_brackets(command: Callable[..., tuple[Any, str, str]], tmp_path: Path) -> None:
    code, _, err = command(*SMALL, "choose=layer,head", f"run_dir={tmp_path / 'run'}", f"cache_dir={tmp_path}")
    assert code and "but got 'head'" in err


def test_a_foreign_choice_is_data(chosen: Run, tmp_path: Path) -> None:
    from sdprobe.utilities.io import DamagedFile, read_json, write_json

    path = Path(shutil.copytree(chosen.folder, tmp_path / "run")) / "metrics.json"
    content = read_json(path)
    content["meta"]["choices"][0]["cells"] = "many"
    write_json(path, json.loads(json.dumps(content)))
    with pytest.raises(DamagedFile, match=r"meta\.choices is not a list of what was chosen"):
        Run.read(path.parent)
