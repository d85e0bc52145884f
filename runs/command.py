"""The command line: ``resume=``, and one helpful sentence for a misspelt override before Hydra sees it."""

import difflib
import re
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
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
    if len(overrides) < len(arguments) and not {"-m", "--multirun"} & set(arguments):
        return  # --help, --cfg, ...: Hydra's own business
    try:
        with initialize_config_dir(str(CONFIGS), version_base="1.3"):
            compose("train", overrides=[_first(text) for text in overrides], return_hydra_config=True)
    except (HydraException, OmegaConfBaseException) as error:
        raise InputError(_sentence(str(error), overrides)) from error
    finally:
        GlobalHydra.instance().clear()


def _first(text: str) -> str:
    """An override with a sweep replaced by its first value."""
    override = OverridesParser.create().parse_override(text)
    if not override.is_sweep_override():
        return text
    value = next(override.sweep_string_iterator())
    return f"{override.get_key_element()}={value}"


def _sentence(message: str, overrides: list[str]) -> str:
    """Hydra's multi-line message as one sentence that names what to type instead."""
    if match := re.search(r"Could not (?:override|append)[^']*'([^']+)'", message):
        key = match.group(1).lstrip("+~")
        return f"Expected a setting that exists, but got '{key}'.{_nearest(key, _keys(), 'setting')}"
    if match := re.search(r"Could not find '([^']+)/([^'/]+)'\s+Available options in '[^']+':((?:\s+\S+)+)", message):
        group, choice, options = match.group(1), match.group(2), match.group(3).split()
        shown = [option for option in options if not option.startswith("_")]
        hint = _nearest(choice, shown, "one").replace("The nearest", " The nearest").strip()
        return f"Expected {group} to be one of {', '.join(shown)}, but got '{choice}'. {hint}"
    reason = next((line.strip() for line in message.splitlines() if line.strip()), "no reason given").rstrip(".")
    return f"Expected overrides of the form key=value, but got '{' '.join(overrides)}': {reason}. Quote globs and lists."


def _nearest(name: str, names: list[str], kind: str) -> str:
    """`` The nearest ... is ...``, by the last part of a dotted key where the whole is far from everything."""
    if not names:
        return ""
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.0)[0]
    return f" The nearest {kind} is '{close}'."


def _keys() -> list[str]:
    """Every dotted key of the default configuration, and its groups."""
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        cfg = compose("train")
    found: list[str] = []

    def walk(node: DictConfig, prefix: str) -> None:
        for key in node:
            name = f"{prefix}{key}"
            found.append(name)
            value = OmegaConf.to_container(node, resolve=False)[key]  # type: ignore[call-overload,index]
            if isinstance(value, dict):
                walk(node[key], f"{name}.")

    GlobalHydra.instance().clear()
    walk(cfg, "")
    return found


def explained(error: OmegaConfBaseException) -> str:
    """One sentence for a configuration error that shows only when a value is used."""
    if isinstance(error, MissingMandatoryValue):
        return f"Expected {error.full_key} to be given, but it is missing. Add {error.full_key}=... to the command."
    reason = str(error).strip().splitlines()[0].rstrip(".")
    return f"Expected a usable value for {error.full_key or 'the configuration'}, but got an error: {reason}."
