"""Command-line arguments as a shell delivers them, made into overrides that Hydra's grammar takes. Imports no torch."""

import re
import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from sdprobe.utilities.errors import InputError

# settings whose value is text: spaces, commas, brackets, = and apostrophes belong to it
TEXT = re.compile(
    r"prompt|cache_dir|run_dir|position_run|resume|(images\.)+(root|path|split|column|revision)|backbone\.(path|revision)|datamodule\.labels"
    r"|mitigation\.saved\.folder|logger\.(?!tags)\w+|hydra\.(run|sweep)\.dir"
)
# lists that a user may write with spaces
SPACED = re.compile(r"(block|timestep|noise_level|choose|mitigation)=\[")
# those of them that are places on this machine, where ~ is the home folder
PLACES = re.compile(r".*(_dir|_run|\.dir|resume|root|path|labels|folder)")
_OURS = re.compile(r"""(["']).*\1|(choice|range|glob|sort|shuffle|tag|interval)\(.*\)|.*\$\{.*|null|""", re.S)


def as_overrides(arguments: Sequence[str]) -> list[str]:
    """Arguments with text quoted for Hydra, ``~`` expanded and published layer names made plain.

    >>> as_overrides(["prompt=it's a cat, asleep", "images.split=train[:12]", "block=[up_blocks[1].resnets[2],mid]"])
    ["prompt='it\\\\'s a cat, asleep'", "images.split='train[:12]'", 'block=[up_blocks.1.resnets.2,mid]']

    Raises:
        InputError: an argument that is no override; the sentence names it and, where there is one, a spelling that works.
    """
    for argument in arguments:
        if not argument.isprintable() and any(0xD800 <= ord(c) <= 0xDFFF for c in argument):  # bytes that are no UTF-8
            raise InputError(f"Expected arguments in UTF-8, but got {argument!a}. Rename the file or folder.")
    jobs = any(argument in ("-m", "--multirun") for argument in arguments)
    words: list[str] = []
    for argument in arguments:  # a list with spaces, which the shell splits
        if words and SPACED.match(words[-1]) and "]" not in words[-1] and "=" not in argument:
            words[-1] += f" {argument}"
        else:
            words.append(argument)
    return [word if word.startswith("-") else _override(word, jobs) for word in words]


def _override(argument: str, jobs: bool) -> str:
    key, sign, value = argument.partition("=")
    if not sign and not key.startswith("~"):
        raise InputError(
            f"Expected arguments of the form key=value, but got '{argument}'. Put quotes around spaces and brackets."
        )
    name = key.lstrip("+~")
    if name == "choose" and "," in value and not value.startswith("["):  # one choice, not a job per value
        value = f"[{value}]"
    elif name == "block":
        value = re.sub(r"(?<=[a-z])\[(\d+)\]", r".\1", value)
    elif TEXT.fullmatch(name) and not _OURS.fullmatch(value) and not (jobs and "," in value and _reason(argument) is None):
        if PLACES.fullmatch(name) and value.startswith("~"):
            value = str(Path(value).expanduser())
        value = quoted(value)
    override = f"{key}{sign}{value}"
    if reason := _reason(override):
        spelling = f"{key}={quoted(value)}"
        fix = f'Write "{spelling}".' if _reason(spelling) is None else "See docs/usage.md, Quoting in a shell."
        raise InputError(f"Expected an override of the form key=value, but got '{argument}': {reason}. {fix}")
    return override


def quoted(value: str) -> str:
    r"""Text as Hydra's grammar quotes it.

    >>> quoted("it's"), quoted("C:\\")
    ("'it\\'s'", "'C:\\\\'")
    """
    escaped = re.sub(r"(\\*)'", r"\1\1\\'", value)
    trailing = re.search(r"\\*$", escaped)
    return f"'{escaped}{trailing[0] if trailing else ''}'"


def command(overrides: Iterable[str]) -> str:
    """Overrides as a user types them in a shell, without the quotes of Hydra's grammar that :func:`as_overrides` adds.

    >>> command(["seed=1", "cache_dir='/tmp/my cache'", "images.split='train[:12]'"])
    "seed=1 'cache_dir=/tmp/my cache' 'images.split=train[:12]'"
    >>> as_overrides(shlex.split(command(["-m", "prompt='a, b'"])))  # still one prompt
    ['-m', "prompt='a, b'"]
    """
    return shlex.join(_typed(override) for override in overrides)


def _typed(override: str) -> str:
    key, _, value = override.partition("=")
    plain = f"{key}={value[1:-1]}"
    same = TEXT.fullmatch(key) and quoted(value[1:-1]) == value and as_overrides(["-m", plain])[1] == override
    return plain if same else override


def _reason(override: str) -> str | None:
    """Why Hydra's grammar refuses an override; None where it takes it."""
    try:
        OverridesParser.create().parse_override(override)
    except HydraException as error:
        return str(error).strip().splitlines()[0].rstrip(".")
    return None
