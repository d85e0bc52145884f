"""The command line: ``resume=``, one sentence for every error the user can fix, and quiet libraries."""

import difflib
import errno
import logging
import os
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import UnionType
from typing import Any, Union, Unpack, get_args, get_origin, get_type_hints

import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ValueType
from hydra.errors import CompactHydraException, HydraException, InstantiationException, MissingConfigException
from hydra.types import RunMode
from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationResolutionError, MissingMandatoryValue, OmegaConfBaseException

from sdprobe.backbones.precision import choose_device
from sdprobe.runs import sweep
from sdprobe.runs.record import ROOT, target_name
from sdprobe.utilities import settings
from sdprobe.utilities.errors import InputError

SPOKEN = {int: "an integer", float: "a number", str: "text", bool: "true or false", type(None): "null"}
LISTS = {str: "a list of names", int: "a list of integers"}
CONFIGS = ROOT / "configs"
# a full, protected or read-only place to write to
WRITING = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS)
# notes of libraries on their own internals, met on every run
_NOISE = (
    r"`isinstance\(treespec, LeafSpec\)` is deprecated",
    r".*`LightningModule.configure_optimizers` returned `None`",
    r"It is recommended to use `self\.log\(.*sync_dist=True\)`",  # what is logged is a sum over processes already
    r"`broadcast_buffers` is deprecated",
    r"The ``compute`` method of metric \w+ was called before the ``update``",  # a process without test images
    r"You are using `torch.load` with `weights_only=False`",
    r".*does not have many workers",
    r"Total length of `\w+` across ranks is zero",
    r"\n'hydra/launcher/\w+' is validated against ConfigStore schema",  # ours name every setting themselves
    r"The number of training batches .* is smaller than the logging interval",
)


def expanded(arguments: list[str]) -> list[str]:
    """Command-line arguments with ``resume=FOLDER`` replaced by the overrides that FOLDER was started with.

    Raises:
        InputError: FOLDER is no run folder, or other overrides stand beside ``resume``.
    """
    folders = [argument.removeprefix("resume=").strip("'") for argument in arguments if argument.startswith("resume=")]
    if not folders or folders[-1] in ("", "null"):
        return arguments
    folder = Path(folders[-1])
    if len(arguments) > 1:
        raise InputError(
            f"Expected resume={folder} alone, but got {' '.join(arguments)}. A resumed run keeps the settings it began with."
        )
    stored = folder / ".hydra" / "overrides.yaml"
    if not stored.is_file():
        raise InputError(
            f"Expected resume to be a run folder with .hydra/overrides.yaml, but '{folder}' has none. "
            "Give the folder of one run, such as outputs/2026-01-31/12-00-00-000000."
        )
    kept = [str(override) for override in OmegaConf.load(stored) if not str(override).startswith("resume=")]
    # a job of a preset or an experiment would begin the whole sweep again
    return [*kept, f"resume='{folder}'", f"hydra.run.dir='{folder}'", "hydra.mode=RUN"]


def check(arguments: list[str]) -> None:
    """Compose the configuration once, sweeps by their first value, and say in one sentence what is misspelt.

    Raises:
        InputError: an override that the configuration does not have, or an unreadable one.
    """
    overrides = [argument for argument in arguments if not argument.startswith("-")]
    if {argument for argument in arguments if argument.startswith("-")} - {"-m", "--multirun"}:
        return  # --help, --cfg job, ...: Hydra's own business
    try:
        with initialize_config_dir(str(CONFIGS), version_base="1.3"):
            cfg = compose("train", overrides=[first for text in overrides if (first := _first(text))], return_hydra_config=True)
    except (HydraException, OmegaConfBaseException) as error:
        raise InputError(_sentence(error, overrides)) from error
    except ValueError as error:  # a group set to null
        raise InputError(f"Expected a choice for every configuration group, but got {' '.join(overrides)}: {error}") from error
    finally:
        GlobalHydra.instance().clear()
    sweeps = len(overrides) < len(arguments) or cfg.hydra.mode == RunMode.MULTIRUN
    if sweeps:
        sweep.check(cfg)
    try:
        check_types(cfg)
        check_settings(cfg)
        check_devices(cfg, sweeps)
    except InputError:
        raise
    except (OmegaConfBaseException, HydraException, ImportError, AttributeError, TypeError, ValueError):
        return  # a configuration so odd that nothing can be checked is explained where it is used


def check_settings(cfg: DictConfig) -> None:
    """Hold values against :data:`~sdprobe.utilities.settings.SETTINGS`, before anything is built or written.

    Raises:
        InputError: a value that a setting may not have.
    """
    choices = cfg.hydra.runtime.choices
    sections = {"": cfg, "probe": cfg.probe}
    sections |= {name: cfg[name] for name in ("images", "backbone", "datamodule")}
    sections |= {target_name(each._target_): each for each in cfg.mitigation.values()}
    for name, node in sections.items():
        section = f"probe={choices.probe}" if name == "probe" else _snake(name)
        given = {key: _known(node, key) for key in settings.rules(section) if key in node}
        settings.check(section, **{key: value for key, value in given.items() if value is not None})


def _known(node: DictConfig, key: str) -> Any:
    """A value; None where it is not given yet, or refers to what only a run knows, such as ``${hydra:job.num}``."""
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
    """An override with a sweep replaced by its first value; nothing for a glob, which only Hydra's loader can resolve."""
    override = OverridesParser.create().parse_override(text)
    if override.value_type == ValueType.GLOB_CHOICE_SWEEP:
        return ""
    if not override.is_sweep_override():
        return text
    value = next(override.sweep_string_iterator())
    return f"{override.get_key_element()}={value}"


def _sentence(error: Exception, overrides: list[str]) -> str:
    """Hydra's multi-line message as one sentence that names what to type instead."""
    if isinstance(error, MissingConfigException) and error.options and error.missing_cfg_file:
        group, _, choice = error.missing_cfg_file.rpartition("/")
        options = [option for option in error.options if not option.startswith("_")]
        return f"Expected {group} to be one of {', '.join(options)}, but got '{choice}'. {_nearest(choice, options)}"
    if match := re.search(r"Could not (?:override|append)[^']*'([^']+)'", str(error)):
        key = match.group(1).lstrip("+~")
        if key == "trainer.devices":
            return "Expected trainer.devices beside trainer=ddp, but got it alone. Use trainer=ddp trainer.devices=2."
        return f"Expected a setting that exists, but got '{key}'. {_nearest(key, _keys())}"
    reason = str(error).strip().splitlines()[0].rstrip(".")
    return f"Expected overrides of the form key=value, but got '{' '.join(overrides)}': {reason}. Quote globs and lists."


def _nearest(name: str, names: list[str]) -> str:
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.0)[0]
    return f"The nearest is '{close}'."


def _keys() -> list[str]:
    """Every dotted key of the default configuration, and its groups."""
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        settings = OmegaConf.to_container(compose("train"), resolve=False)
    GlobalHydra.instance().clear()

    def walk(node: object, prefix: str) -> list[str]:
        if not isinstance(node, dict):
            return []
        return [name for key, value in node.items() for name in (f"{prefix}{key}", *walk(value, f"{prefix}{key}."))]

    return walk(settings, "")


def check_types(cfg: DictConfig) -> None:
    """Compare every setting with the type its constructor declares, before anything is built.

    Raises:
        InputError: a value of another type, or a number out of range that no constructor sees.
    """
    nodes = {name: cfg[name] for name in ("images", "backbone", "datamodule", "probe")}
    for name, node in (nodes | {f"mitigation.{label}": each for label, each in cfg.mitigation.items()}).items():
        raw = OmegaConf.to_container(node, resolve=False)
        hints = declared(get_object(node._target_))
        if strange := [str(key) for key in node if not str(key).startswith("_") and hints and key not in hints]:
            raise InputError(
                f"Expected {name}={node._target_.rpartition('.')[2]} to have a setting '{strange[0]}', but it has none. "
                f"Choose another {name}=, or another cell of control=, which may bring {name} of its own."
            )
        for key, hint in hints.items():
            if key not in node or OmegaConf.is_missing(node, key) or "_target_" in str(raw[key]):  # type: ignore[index,call-overload]
                continue
            if raw[key] in ("${images}", "${backbone}"):  # type: ignore[index,call-overload]
                continue
            try:
                value = OmegaConf.to_container(node[key]) if OmegaConf.is_config(node[key]) else node[key]
            except InterpolationResolutionError:
                continue  # it refers to what only a run knows, such as ${hydra:job.num}
            linked = re.fullmatch(r"\$\{(\w+)\}", str(raw[key]))  # type: ignore[index,call-overload]
            if not _fits(value, hint):
                shown = linked.group(1) if linked else f"{name}.{key}"
                raise InputError(f"Expected {shown} to be {_spoken(hint)}, but got {value!r}. Correct the value.")
    for key, value in {"twins": cfg.twins, "trainer.max_epochs": cfg.trainer.max_epochs}.items():
        least = 0 if key == "twins" else 1
        if not _fits(value, int) or value < least:
            raise InputError(f"Expected {key} to be an integer of at least {least}, but got {value!r}. Correct the value.")
    if not _fits(cfg.activation_budget, float):
        raise InputError(f"Expected activation_budget to be a number, but got {cfg.activation_budget!r}. Correct the value.")


def check_devices(cfg: DictConfig, sweep: bool) -> None:
    """Whether a run can have the devices it asks for.

    Args:
        cfg: of the run.
        sweep: whether the run is a job of a multirun.

    Raises:
        InputError: a number of devices that is none, that is not there, or that a sweep cannot use.
    """
    count = cfg.trainer.get("devices", 1)
    if not _fits(count, int) or count < 1:
        raise InputError(f"Expected trainer.devices to be an integer of at least 1, but got {count!r}. Use trainer.devices=2.")
    if count == 1:
        return
    if sweep:
        raise InputError(
            f"Expected trainer.devices to be 1 in a sweep, whose jobs have one device each, but got {count}. "
            "Leave out trainer=ddp."
        )
    if str(cfg.device).startswith("cuda:"):
        raise InputError(
            f"Expected device to be auto, cpu or cuda for several devices, but got '{cfg.device}'. Use device=cuda."
        )
    gpus = choose_device(str(cfg.device)).type == "cuda"
    there, what = (torch.cuda.device_count(), "GPUs") if gpus else (os.cpu_count() or 1, "processor cores")
    if count > there:
        raise InputError(f"Expected trainer.devices to be at most {there}, the number of {what}, but got {count}. Lower it.")


def declared(target: Any) -> dict[str, Any]:
    """Argument → declared type of a constructor, those in a dictionary of options included."""
    hints = get_type_hints(target.__init__ if isinstance(target, type) else target)  # type: ignore[misc]
    options = {name: get_args(hint)[0] for name, hint in hints.items() if get_origin(hint) is Unpack}
    found = {name: hint for name, hint in hints.items() if name not in options}
    return found | {name: hint for each in options.values() for name, hint in get_type_hints(each).items()}


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value from YAML or the command line has a declared type; unknown kinds of types fit."""
    options = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    if any(option not in SPOKEN and get_origin(option) is not Sequence for option in options):
        return True
    return any(_is(value, option) for option in options)


def _is(value: Any, kind: Any) -> bool:
    if get_origin(kind) is Sequence:
        return isinstance(value, list) and all(_is(item, get_args(kind)[0]) for item in value)
    if isinstance(value, bool):
        return kind is bool
    return isinstance(value, (int, float) if kind is float else kind)


def _spoken(hint: Any) -> str:
    options = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    return " or ".join(SPOKEN.get(option) or LISTS[get_args(option)[0]] for option in options)


def explained(error: OmegaConfBaseException) -> str:
    """One sentence for a configuration error that shows only when a value is used."""
    if isinstance(error, MissingMandatoryValue):
        # images and backbone are read through datamodule, but typed by their own names
        key = str(error.full_key).removeprefix("datamodule.")
        return f"Expected {key} to be given, but it is missing. Add {key}=... to the command."
    reason = str(error).strip().splitlines()[0].rstrip(".")
    return f"Expected a usable value for {error.full_key or 'the configuration'}, but got an error: {reason}."


class UserError(CompactHydraException):
    """A sentence for the user; Hydra prints it without a traceback and exits with 1."""


@contextmanager
def user_errors() -> Iterator[None]:
    """Raise :class:`UserError` for wrong input, wrong configuration and places that cannot be written to."""
    try:
        yield
    except InputError as error:
        raise UserError(str(error)) from error
    except InstantiationException as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, InputError):
            cause = cause.__cause__
        if cause is None:
            raise
        raise UserError(str(cause)) from error
    except OmegaConfBaseException as error:
        raise UserError(explained(error)) from None  # Hydra would print the cause too
    except OSError as error:
        if error.errno not in WRITING:
            raise
        where = error.filename or "the run folder"
        raise UserError(
            f"Expected to write to {where}, but got '{error.strerror}'. Free some space, or set hydra.run.dir and cache_dir."
        ) from error


def silence_libraries() -> None:
    """Raise the level of chatty loggers and filter the warnings above."""
    for name in (
        "lightning.pytorch.utilities.rank_zero",
        "lightning.fabric.utilities.rank_zero",
        "lightning.fabric.utilities.distributed",
        "lightning.pytorch.accelerators.cuda",
        "httpx",
        "diffusers",
    ):
        logging.getLogger(name).setLevel(logging.ERROR if name == "diffusers" else logging.WARNING)
    for message in _NOISE:
        warnings.filterwarnings("ignore", message=message)
