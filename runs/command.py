"""The command line: ``resume=``, and one helpful sentence for a misspelt override before Hydra sees it."""

import difflib
import re
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, MissingConfigException
from omegaconf import OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from tokens.errors import InputError

CONFIGS = Path(__file__).parent.parent / "configs"


def expanded(arguments: list[str]) -> list[str]:
    """Command-line arguments with ``resume=FOLDER`` replaced by the overrides that FOLDER was started with.

    Raises:
        InputError: FOLDER is no run folder, or other overrides stand beside ``resume``.
    """
    folders = [argument.removeprefix("resume=") for argument in arguments if argument.startswith("resume=")]
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
    return [*kept, f"resume={folder}", f"hydra.run.dir={folder}"]


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
            compose("train", overrides=[_first(text) for text in overrides], return_hydra_config=True)
    except (HydraException, OmegaConfBaseException) as error:
        raise InputError(_sentence(error, overrides)) from error
    finally:
        GlobalHydra.instance().clear()


def _first(text: str) -> str:
    """An override with a sweep replaced by its first value."""
    override = OverridesParser.create().parse_override(text)
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


def explained(error: OmegaConfBaseException) -> str:
    """One sentence for a configuration error that shows only when a value is used."""
    if isinstance(error, MissingMandatoryValue):
        # images and backbone are read through datamodule, but typed by their own names
        key = str(error.full_key).removeprefix("datamodule.")
        return f"Expected {key} to be given, but it is missing. Add {key}=... to the command."
    reason = str(error).strip().splitlines()[0].rstrip(".")
    return f"Expected a usable value for {error.full_key or 'the configuration'}, but got an error: {reason}."
