"""Composes the configuration of a command and checks it, before anything is built or written. Imports no torch."""

import difflib
import importlib.util
import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, QuotedString, ValueType
from hydra.errors import HydraException, MissingConfigException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationResolutionError, OmegaConfBaseException

from sdprobe.backbones.names import check_names
from sdprobe.runs import adapting, folders, places
from sdprobe.runs.groups import CONFIGS, is_group, options
from sdprobe.utilities import settings
from sdprobe.utilities.errors import InputError

# part of a launcher's _target_ → module it needs, and the extra of pyproject.toml that has it
EXTRAS = {"RayWorkers": ("ray", "ray"), "submitit": ("hydra_plugins.hydra_submitit_launcher", "slurm")}
INSTALL = "Install it: pip install --constraint constraints.txt --editable '.[{}]'."
LEVELS = ("timestep", "noise_level")  # settings that take a number or a list of numbers; one of them is given
# settings that take a list, and groups whose choice may be meant as a path: what to write instead
LISTED = {
    "block": "several layers", "timestep": "several noise levels", "noise_level": "several noise levels",
    "mitigation": "several one after the other", "logger.tags": "several tags",
}  # fmt: skip
OF_PATHS = {"backbone": "backbone=local backbone.path={}", "images": "images=folder images.root={}"}


def gpus() -> int:
    """GPUs of this machine: a job asks for one only where there is one, or Ray would wait for it for ever."""
    import torch

    return torch.cuda.device_count()


OmegaConf.register_new_resolver("either", lambda flag, yes, no: yes if flag else no, replace=True)
OmegaConf.register_new_resolver("gpus_per_job", lambda: min(1, gpus()), replace=True)


def check(arguments: Sequence[str]) -> DictConfig | None:
    """Compose the configuration once, with the first value of each sweep, and report mistakes in one sentence.

    torch is not imported, so that the answer is immediate. Returns None for options of Hydra itself.

    Raises:
        InputError: an override that the configuration does not have, or one that cannot be parsed.
    """
    overrides = [argument for argument in arguments if not argument.startswith("-")]
    if {argument for argument in arguments if argument.startswith("-")} - {"-m", "--multirun"}:
        return None  # --cfg job, --hydra-help, ...: left to Hydra
    check_choices(overrides)
    for text in (text for text in overrides if text.startswith("~") and not text.startswith("~mitigation.")):
        if is_group(text[1:].partition("=")[0]):
            raise InputError(f"Expected every configuration group to stay, but got '{text}'. Choose another of its choices.")
        raise InputError(f"Expected every setting to stay, but got '{text}'. Give it another value, or leave this out.")
    try:
        cfg = composed(overrides)
    except (HydraException, OmegaConfBaseException) as error:
        raise InputError(_sentence(error, overrides)) from error
    except ValueError as error:  # a group set to null
        group = next((text.partition("=")[0] for text in overrides if text.endswith("=null")), "a group")
        fix = f"Use {group}=none." if (CONFIGS / group / "none.yaml").is_file() else "Leave it out."
        raise InputError(f"Expected a choice for every configuration group, but got {group}=null. {fix}") from error
    if len(overrides) < len(arguments):
        cfg.hydra.mode = RunMode.MULTIRUN
    if cfg.hydra.mode == RunMode.MULTIRUN:
        check_launcher(cfg)
    elif several := [text for text in overrides if _first(text) != text]:
        key, _, value = several[0].partition("=")
        listed = key in LISTED and not set(value) & set("[(")  # neither lists nor range(…)
        fix = f"Write {key}=[{value}] for {LISTED[key]} in one run, or add -m" if listed else "Add -m"
        raise InputError(f"Expected one value of {key}, but got '{value}'. {fix} for a job per value.")
    check_logger(cfg)
    try:
        check_kinds(cfg, overrides)
        check_settings(cfg)
        check_levels(cfg, [*overrides, *(f"{key}=" for key in cfg.hydra.sweeper.get("params") or ())])
        check_names(cfg.block, adapting.check_backbone(cfg))
    except InputError:
        raise
    except (OmegaConfBaseException, HydraException, AttributeError, TypeError, ValueError):
        pass  # a configuration that cannot be checked here is reported where it is used
    return cfg


def composed(overrides: Sequence[str]) -> DictConfig:
    """The configuration of a run, or of the first job of a sweep."""
    try:
        with initialize_config_dir(str(CONFIGS), version_base="1.3"):
            return compose(
                "train", overrides=[first for text in overrides if (first := _first(text))], return_hydra_config=True
            )
    finally:
        GlobalHydra.instance().clear()


def check_choices(overrides: Sequence[str]) -> None:
    """Refuse numbers, dictionaries, lists and empty text where one choice of a group is meant. Several mitigations may be.

    Also refuse what a later job of a sweep cannot have: a choice that does not exist, and a number that is not allowed.

    Raises:
        InputError: such a value.
    """
    if whole := [text for text in overrides if text.lstrip("+~").partition("=")[0] == "hydra"]:
        raise InputError(f"Expected hydra to have settings of its own, but got {whole[0]}. Write hydra.NAME=VALUE.")
    elsewhere = any(text.startswith("hydra.searchpath=") for text in overrides)  # groups may have other choices
    for key, values in _swept(overrides):
        of_group, rule = is_group(key) and not key.startswith("hydra/") and not elsewhere, settings.rules("").get(key)
        for value in values:
            name = value.text if isinstance(value, QuotedString) else value
            if of_group and isinstance(name, str) and name not in options(key):
                raise InputError(_unknown(key, name))
            if rule is not None and all(
                isinstance(each, int | float) for each in (value if isinstance(value, list) else [value])
            ):
                rule(key, value)
    for text in _choices(overrides):
        override = OverridesParser.create().parse_override(text)
        value = None if override.is_sweep_override() or text.startswith("~") else override.value()
        names = value if isinstance(value, list) and override.key_or_group in LISTED else [value]
        if not names or any(
            not (name is None or isinstance(name, str | QuotedString)) or not str(name).strip("'\"") for name in names
        ):
            group = override.key_or_group
            known = ", ".join(options(group))
            raise InputError(f"Expected {group} to be one of {known}, but got {_spelt(value)}. Write {group}=NAME.")


def check_kinds(cfg: DictConfig, overrides: Sequence[str]) -> None:
    """Refuse text, lists and flags for a setting whose default is a number, and anything but a flag for a flag.

    Also refuse numbers that are not finite, and a value for a node that is set by its own name, such as datamodule.images.

    Raises:
        InputError: such a value. The types of constructors are checked later, because importing them imports torch.
    """
    defaults = composed(_choices(overrides))
    for key in (text.lstrip("+~").partition("=")[0] for text in overrides if not text.startswith("~mitigation.")):
        if "@" not in key:
            check_kind(cfg, defaults, key)


def check_kind(cfg: DictConfig, defaults: DictConfig, key: str) -> None:
    """Compare the value of one key with its default, as :func:`check_kinds` says.

    Raises:
        InputError: a value of another kind.
    """
    default, value = (OmegaConf.select(node, key) for node in (defaults, cfg))
    if isinstance(value, float) and not math.isfinite(value):
        raise InputError(f"Expected {key} to be a finite number, but got {value}. Correct the value.")
    if OmegaConf.is_config(default) and (linked := _linked(defaults, key)):
        raise InputError(f"Expected {key} to be left alone, but got {_spelt(value)}. Set {linked}= instead.")
    of_hydra = key.startswith("hydra.")  # where null leaves a node out
    if OmegaConf.is_dict(default) and not OmegaConf.is_dict(value) and not (value is None and of_hydra):
        raise InputError(f"Expected {key} to have settings of its own, but got {_spelt(value)}. Write {key}.NAME=VALUE.")
    if key in LEVELS and OmegaConf.is_list(value):
        return
    kind = bool if isinstance(default, bool) else (int, float) if isinstance(default, int | float) else object
    if value is not None and (not isinstance(value, kind) or (isinstance(value, bool) and kind == (int, float))):
        spoken = "true or false" if kind is bool else "a number"
        raise InputError(f"Expected {key} to be {spoken}, but got {_spelt(value)}. The default is {default}.")


def _linked(cfg: DictConfig, key: str) -> str:
    """The setting that a key refers to as a whole: ``images`` for ``datamodule.images``; empty for other keys."""
    parent, _, name = key.rpartition(".")
    node = OmegaConf.select(cfg, parent) if parent else cfg
    raw = OmegaConf.to_container(node, resolve=False)
    return match[1] if (match := re.fullmatch(r"\$\{(\w+)\}", str(raw[name]))) else ""  # type: ignore[index,call-overload]


def _spelt(value: object) -> str:
    """A value for a message."""
    return repr(OmegaConf.to_container(value)) if OmegaConf.is_config(value) else repr(value)


def check_launcher(cfg: DictConfig) -> None:
    """Check that the launcher of a sweep is installed, before its first job. ``cfg`` includes Hydra's own node.

    Raises:
        InputError: the launcher is not installed.
    """
    module, extra = next((needed for name, needed in EXTRAS.items() if name in cfg.hydra.launcher._target_), (None, None))
    if module and not _installed(module):
        raise InputError(
            f"Expected hydra/launcher to be installed, but got one that needs the extra '{extra}'. {INSTALL.format(extra)}"
        )


def check_logger(cfg: DictConfig) -> None:
    """Refuse ``logger=tensorboard`` where the package is not installed, before anything is measured.

    Raises:
        InputError: the package is not there.
    """
    if cfg.hydra.runtime.choices.get("logger") == "tensorboard" and not (
        _installed("tensorboard") or _installed("tensorboardX")
    ):
        raise InputError(
            f"Expected logger to be installed, but got 'tensorboard', which needs the extra of that name. "
            f"{INSTALL.format('tensorboard')}"
        )


def _installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # no hydra_plugins at all
        return False


def check_given(cfg: DictConfig) -> None:
    """Refuse a missing setting of images and backbone, a path that does not exist, and a folder that cannot be written to.

    Raises:
        InputError: such a setting.
    """
    for group in ("images", "backbone"):
        for key in cfg[group]:
            if OmegaConf.is_missing(cfg[group], key):
                raise InputError(missing(f"{group}.{key}"))
    if "root" in cfg.images:
        places.check_folder("images.root", cfg.images.root)
    if cfg.datamodule.get("labels") is not None:
        places.check_file("datamodule.labels", cfg.datamodule.labels)
    jobs = cfg.hydra.mode == RunMode.MULTIRUN
    written = {"hydra.sweep.dir": cfg.hydra.sweep.dir} if jobs else {"hydra.run.dir": cfg.hydra.run.dir}
    raw = OmegaConf.to_container(cfg, resolve=False)["run_dir"]  # type: ignore[index,call-overload]
    written |= {} if raw == "${hydra:runtime.output_dir}" else {"run_dir": cfg.run_dir}
    for name, folder in (written | {"cache_dir": cfg.cache_dir}).items():
        places.check_writable(name, folder)


def check_folders(cfg: DictConfig) -> None:
    """Refuse a run folder that holds something else than a run, and links out of it, before Hydra writes a log there.

    Raises:
        InputError: such a folder.
    """
    if cfg.hydra.mode == RunMode.MULTIRUN:
        folders.check_files(Path(str(cfg.hydra.sweep.dir)))  # its jobs check their own folders
        return
    for place in (cfg.hydra.run.dir, _known(cfg, "run_dir")):
        if place is not None:
            folders.check_place(Path(str(place)))


def check_settings(cfg: DictConfig) -> None:
    """Compare values with :data:`~sdprobe.utilities.settings.SETTINGS`, before anything is built or written.

    Raises:
        InputError: a value that is not allowed.
    """
    choices = cfg.hydra.runtime.choices
    sections = {"": cfg, "probe": cfg.probe}
    sections |= {name: cfg[name] for name in ("images", "backbone", "datamodule")}
    sections |= {settings.target_name(mitigation._target_): mitigation for mitigation in cfg.mitigation.values()}
    sections |= {name: cfg[name] for name in ("logger", "report") if cfg.get(name)}
    for name, node in sections.items():
        section = f"probe={choices.probe}" if name == "probe" else _snake(name)
        given = {key: _known(node, key) for key in settings.rules(section) if key in node}
        settings.check(section, **{key: value for key, value in given.items() if value is not None or name == "report"})
    name, node = "images", cfg.images
    while OmegaConf.is_dict(node.get("images")):  # views of other images
        name, node = f"{name}.images", node.images
        for key, rule in settings.rules("images").items():
            if key in node and (value := _known(node, key)) is not None:
                rule(f"{name}.{key}", value)


def check_levels(cfg: DictConfig, overrides: Sequence[str]) -> None:
    """Refuse noise levels that are given twice, as ``timestep`` and as ``noise_level``.

    Raises:
        InputError: both are given, or a choice of another group sets ``timestep``.
    """
    given = {text.lstrip("+~").partition("=")[0] for text in overrides}
    if cfg.noise_level is not None and ("timestep" in given or cfg.timestep != OmegaConf.load(CONFIGS / "train.yaml").timestep):
        of_group = "Leave noise_level out, or the sweep=, control= or experiment= of timestep."
        fix = "Leave one out." if "timestep" in given else of_group
        raise InputError(
            f"Expected timestep or noise_level, but got both, timestep {_spelt(cfg.timestep)} and noise_level "
            f"{_spelt(cfg.noise_level)}. {fix}"
        )


def _known(node: DictConfig, key: str) -> Any:
    """A value; None if it is missing, or refers to what only a run knows, such as ``${hydra:job.num}``."""
    try:
        return None if OmegaConf.is_missing(node, key) else node[key]
    except InterpolationResolutionError:
        return None


def _snake(name: str) -> str:
    """
    >>> _snake("PositionMean")
    'position_mean'
    """
    return re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()


def _first(text: str) -> str:
    """An override with a sweep replaced by its first value; empty for a glob, which only Hydra's loader can resolve."""
    override = OverridesParser.create().parse_override(text)
    if override.value_type == ValueType.GLOB_CHOICE_SWEEP:
        return ""
    if not override.is_sweep_override():
        return text
    value = next(override.sweep_string_iterator())
    return f"{override.get_key_element()}={value}"


def _sentence(error: Exception, overrides: list[str]) -> str:
    """Hydra's multi-line message as one sentence that says what to type instead."""
    missing = error.missing_cfg_file if isinstance(error, MissingConfigException) else None
    if missing or (found := re.search(r"Could not load '([^']+)'", str(error))):
        group, choice = re.fullmatch(r"(hydra/launcher|\w+)/(.*)", missing or found[1]).groups()  # type: ignore[union-attr,index]
        return _unknown(group, choice)
    if match := re.search(r"Could not (?:override|append)[^']*'([^']+)'", str(error)):
        key = match.group(1).lstrip("+~")
        if key == "trainer.devices":
            return "Expected trainer.devices with trainer=ddp, but got it alone. Use trainer=ddp trainer.devices=2."
        if choices := _choices_with(key):
            return f"Expected {key} with a choice that has it, but got it alone. Add {' or '.join(choices)}."
        return f"Expected a setting that exists, but got '{key}'. {_nearest(key, _keys(overrides))}"
    reason = str(error).strip().splitlines()[0].rstrip(".")
    return f"Expected overrides of the form key=value, but got '{' '.join(overrides)}': {reason}. Quote globs and lists."


def _unknown(group: str, choice: str) -> str:
    """The sentence for a choice that a group does not have."""
    known = options(group)
    path = f"Write {OF_PATHS[group].format(choice)}." if "/" in choice and group in OF_PATHS else _nearest(choice, known)
    return f"Expected {group} to be one of {', '.join(known)}, but got '{choice}'. {path}"


def _swept(overrides: Sequence[str]) -> Iterator[tuple[str, list[Any]]]:
    """(key, values) of every sweep over listed values. What cannot be parsed is reported elsewhere."""
    for text in overrides:
        try:
            override = OverridesParser.create().parse_override(text)
        except HydraException:
            continue
        swept = override.value()
        if isinstance(swept, ChoiceSweep):
            yield override.key_or_group, list(swept.list)


def _choices_with(key: str) -> list[str]:
    """``group=choice`` of every file of a group that has a setting ``group.setting``."""
    group, _, setting = key.partition(".")
    if group == "mitigation":  # its files begin with the name of the mitigation
        name, _, setting = setting.partition(".")
        file = CONFIGS / group / f"{name}.yaml"
        has_it = file.is_file() and re.search(rf"^ +{re.escape(setting)}:", file.read_text(), re.M)
        return [f"mitigation={name}"] if has_it else []
    files = sorted((CONFIGS / group).glob("[!_]*.yaml")) if setting else []
    return [f"{group}={file.stem}" for file in files if re.search(rf"^{re.escape(setting)}:", file.read_text(), re.M)]


def _nearest(name: str, names: list[str]) -> str:
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.0)[0]
    return f"The nearest is '{close}'."


def _choices(overrides: Sequence[str]) -> list[str]:
    """The overrides that choose of a group."""
    return [text for text in overrides if is_group(text.lstrip("+~").partition("=")[0].partition("@")[0])]


def _keys(overrides: Sequence[str]) -> list[str]:
    """Every dotted key of the configuration with these choices, and its groups."""
    settings = OmegaConf.to_container(composed(_choices(overrides)), resolve=False)
    settings.pop("hydra")  # type: ignore[union-attr,arg-type]

    def walk(node: object, prefix: str) -> list[str]:
        if not isinstance(node, dict):
            return []
        return [name for key, value in node.items() for name in (f"{prefix}{key}", *walk(value, f"{prefix}{key}."))]

    return walk(settings, "")


def missing(key: str) -> str:
    return f"Expected {key} to be given, but it is missing. Add {key}=... to the command."
