"""The table of settings names settings that exist, lets defaults pass, and stops a wrong value before anything is written."""

import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from sdprobe.runs import configuration
from sdprobe.utilities.errors import InputError
from sdprobe.utilities.settings import SETTINGS, check, rules

CONFIGS = Path(__file__).parents[2] / "configs"
GROUPS = ("images", "backbone", "datamodule", "probe", "logger")
NODES = ("", "report")  # of train.yaml
ROWS = [(section, name) for section, table in SETTINGS.items() for name in table]


def choices(section: str) -> dict[str, dict[str, Any]]:
    """Choice → settings, of the YAML files that a section is about."""
    group, _, choice = section.partition("=")
    if group in GROUPS:
        inherited = {"controls": "position", "study": "position"}  # their YAML has only what differs
        files = (CONFIGS / group).glob(f"{inherited.get(choice, choice) or '*'}.yaml")
        return {file.stem: OmegaConf.to_container(OmegaConf.load(file)) for file in files}  # type: ignore[misc]
    if group in NODES:
        train = OmegaConf.load(CONFIGS / "train.yaml")
        return {"": OmegaConf.to_container(train[group] if group else train)}  # type: ignore[dict-item,index]
    return {group: OmegaConf.to_container(OmegaConf.load(CONFIGS / "mitigation" / f"{group}.yaml"))[group]}  # type: ignore[index,call-overload]


@pytest.mark.parametrize("section", SETTINGS)
def test_the_table_names_settings_that_exist_and_lets_their_defaults_pass(section: str) -> None:
    found: set[str] = set()
    for given in choices(section).values():
        values = {name: value for name, value in given.items() if "${" not in str(value) and value != "???"}
        if section == "images" and "size" in values:
            assert values["size"] is None  # until the checkpoint says, which fill_size asks
            values["size"] = 512
        check(section, **values)
        found |= set(given)
    assert set(SETTINGS[section]) <= found


@pytest.mark.parametrize(("section", "name"), ROWS, ids=lambda part: part or "top")
def test_a_wrong_value_is_refused_by_the_command_line_with_the_name_that_was_typed(section: str, name: str) -> None:
    group, _, choice = section.partition("=")
    choice = choice or next((chosen for chosen, given in choices(section).items() if name in given), "")
    probes = {"pairs": "correspondence", "grids": "statistics", "explore": "explore", "windows": "equivariance", "role": "role"}
    probe = probes.get(choice, "position")
    wanted = {"probe": [f"probe={choice}"], "datamodule": [f"probe={probe}"]}.get(group, [f"{group}={choice}"])
    if group not in (*GROUPS, *NODES):
        wanted = [f"mitigation={group}"]
    if group in NODES or choice in ("activations", "_base"):
        wanted = []
    wrong = "a/b" if group == "logger" else "wrong" if "one of" in refusal(section, name, "wrong") else "-5"
    typed = ".".join(filter(None, ["mitigation" if group not in (*GROUPS, *NODES) else "", group, name]))
    cfg = composed(*wanted).copy()
    OmegaConf.update(cfg, typed, -5 if wrong == "-5" else wrong)
    with pytest.raises(InputError, match=rf"Expected \S*{name} to be .*but got"):
        configuration.check_settings(cfg)


@pytest.mark.parametrize("name", ["megabytes", "format"])
def test_a_setting_of_reports_cannot_be_left_out(name: str) -> None:
    cfg = composed().copy()
    cfg.report[name] = None
    with pytest.raises(InputError, match=rf"Expected report.{name} to be .*but got None"):
        configuration.check_settings(cfg)


@cache
def composed(*overrides: str) -> DictConfig:
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return compose("train", overrides=list(overrides), return_hydra_config=True)


def refusal(section: str, name: str, value: Any) -> str:
    """What the table says of a value; nothing where it is of another type."""
    try:
        rules(section)[name](name, value)
    except InputError as error:
        return str(error)
    except TypeError:
        pass
    return ""


def test_a_wrong_setting_leaves_a_run_folder_as_it_was(tmp_path: Path) -> None:
    (tmp_path / ".hydra").mkdir()
    for name in ("metrics.json", ".hydra/overrides.yaml"):
        (tmp_path / name).write_text("kept")
    command = [sys.executable, "train.py", "probe.solver=sgd", f"hydra.run.dir={tmp_path}"]
    answer = subprocess.run(command, cwd=CONFIGS.parent, capture_output=True, text=True)
    assert (answer.returncode, answer.stdout) == (1, "")
    assert answer.stderr == "Expected probe.solver to be one of adam, closed_form, but got 'sgd'. Use adam.\n"
    assert {path.name: path.read_text() for path in tmp_path.rglob("*") if path.is_file()} == {
        "metrics.json": "kept",
        "overrides.yaml": "kept",
    }
