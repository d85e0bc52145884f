"""Every YAML composes, and holds exactly what its class takes."""

import dataclasses
import functools
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf

from datamodules.base import StreamDataModule
from sdprobe.backbones.architectures import source_of
from sdprobe.backbones.published import transformers
from sdprobe.utilities import expect, settings

CONFIGS = Path(__file__).parent.parent / "configs"
CHOICES = sorted(
    (path.parent.relative_to(CONFIGS).as_posix(), path.stem)
    for path in CONFIGS.glob("*/*.yaml")
    if not path.stem.startswith("_")
)


def composed(*overrides: str) -> DictConfig:
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return compose("train", overrides=list(overrides))


def targets(node: Any) -> list[DictConfig]:
    """Every node with a ``_target_``, at any depth."""
    if isinstance(node, DictConfig):
        inner = [child for key in node for child in targets(node._get_node(key))]
        return [node, *inner] if "_target_" in node else inner
    return []


PROBES = [choice for group, choice in CHOICES if group == "probe"]
PROTOCOLS = [choice for group, choice in CHOICES if group == "protocol"]


@pytest.mark.parametrize(
    "overrides",
    [(f"{group}={choice}",) for group, choice in CHOICES]
    + [(f"protocol={protocol}", f"probe={probe}") for protocol in PROTOCOLS for probe in PROBES]
    + [("experiment=loos2025", f"probe={probe}") for probe in PROBES],
    ids=" ".join,
)
def test_every_choice_composes_and_matches_its_constructor(overrides: tuple[str, ...]) -> None:
    for node in targets(composed(*overrides)):
        target = get_object(node._target_)
        parameters = dict(inspect.signature(target).parameters)
        if "options" in parameters:
            parameters |= inspect.signature(StreamDataModule).parameters
        given = {str(key) for key in node if not str(key).startswith("_")}
        assert given <= set(parameters), f"{node._target_} does not take {given - set(parameters)}"
        if not node.get("_partial_", False):
            required = {name for name, p in parameters.items() if p.default is p.empty and p.kind != p.VAR_KEYWORD}
            assert required <= given, f"{node._target_} wants {required - given}"


@pytest.mark.parametrize(
    "choice",
    [choice for group, choice in CHOICES if group == "backbone" and choice not in ("local", "tiny", "demo", "demo_dit")],
)
def test_presets_live_in_repositories_that_exist(choice: str) -> None:
    # runwayml's and Stability AI's own SD 2.x repositories are gone
    assert composed(f"backbone={choice}").backbone.path == choice
    path = source_of(choice)["path"]
    assert path.count("/") == 1
    owners = {"CompVis", "stable-diffusion-v1-5", "sd2-community", "stabilityai"}
    assert choice in transformers() or path.split("/")[0] in owners
    assert path != "stabilityai/stable-diffusion-2-1"


def test_every_published_transformer_is_a_choice_of_backbone() -> None:
    assert transformers().keys() <= {choice for group, choice in CHOICES if group == "backbone"}


def test_defaults_live_in_constructors_and_yaml_repeats_them_truly() -> None:
    cfg = composed()
    for node in (cfg.probe, cfg.images, cfg.datamodule, cfg.backbone):
        parameters = {
            **inspect.signature(StreamDataModule).parameters,
            **inspect.signature(get_object(node._target_)).parameters,
        }
        for key, value in OmegaConf.to_container(node, resolve=False).items():  # type: ignore[union-attr]
            literal = (not isinstance(value, str | dict) or "${" not in str(value)) and (key, value) != ("size", None)
            if key in parameters and literal and not isinstance(value, dict) and parameters[key].default is not inspect._empty:
                assert value == parameters[key].default, f"{node._target_}: {key}"


@pytest.mark.parametrize("choice", sorted(path.stem for path in (CONFIGS / "hydra" / "launcher").glob("*.yaml")))
def test_launchers_get_only_settings_that_they_have(choice: str) -> None:
    if choice != "ray":
        pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        node = compose("train", overrides=[f"hydra/launcher={choice}"], return_hydra_config=True).hydra.launcher
    assert get_object(node._target_).__module__.startswith("hydra_plugins.")
    if choice == "ray":
        assert set(node) == {"_target_", "ray"} and set(node.ray) == {"init", "remote"}
        ray = pytest.importorskip("ray")
        assert set(node.ray.init) <= set(inspect.signature(ray.init).parameters)
        return
    from hydra_plugins.hydra_submitit_launcher.config import LocalQueueConf, SlurmQueueConf

    known = {field.name for field in dataclasses.fields(LocalQueueConf if "local" in choice else SlurmQueueConf)}
    assert {str(key) for key in node} <= known


# --- comments ----------------------------------------------------------------------------------------------------------

SETTING = re.compile(r"^ *(?:- )?(?P<key>[a-z]\w*): (?P<value>\S.*)$")
COMMENT = re.compile(r"[^;]+; values: (?P<values>.+)|set with [\w.]+=")


def settings_of_files() -> Iterator[tuple[str, str, str]]:
    """File, key and comment of every setting. Mitigations on a single line are explained in their own files."""
    for file in sorted(CONFIGS.rglob("*.yaml")):
        in_defaults = False
        for line in file.read_text().splitlines():
            in_defaults = line == "defaults:" or (in_defaults and line.startswith("  - "))
            setting = SETTING.match(line)
            if setting and not in_defaults and setting["key"] != "defaults" and "{_target_:" not in line:
                yield file.relative_to(CONFIGS).as_posix(), setting["key"], line.partition(" # ")[2]


def test_every_setting_has_a_comment_of_one_form() -> None:
    found = list(settings_of_files())
    assert len(found) > 300
    assert not [(file, key, comment) for file, key, comment in found if not COMMENT.fullmatch(comment)]


@pytest.mark.parametrize("section", settings.SETTINGS)
def test_comments_list_the_values_that_settings_may_have(section: str) -> None:
    group, _, choice = section.partition("=")
    folder = f"{group}/{choice}" if choice else f"{group}/" if (CONFIGS / group).is_dir() else "train.yaml"
    files = (folder, f"mitigation/{section}.yaml")
    for name, rule in settings.SETTINGS[section].items():
        if not isinstance(rule, functools.partial) or rule.func is not expect.one_of:
            continue
        found_in = [each for each in settings_of_files() if each[1] == name and each[0].startswith(files)]
        comments = [comment for *_, comment in found_in if "Python's logging" not in comment]
        stated = [found["values"] for comment in comments if (found := COMMENT.fullmatch(comment)) and found["values"]]
        for values in stated:
            assert {value.strip() for value in re.sub(r" ?\([^()]*\)", "", values).split(",")} == set(rule.keywords["options"])
        assert stated or choice in ("controls", "study"), name  # these two begin with the settings of probe=position
