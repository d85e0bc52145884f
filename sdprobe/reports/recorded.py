"""What ``metrics.json`` may hold. The file may come from someone else, so reports show nothing of it that is unchecked."""

import math
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sdprobe.utilities.errors import InputError, Unfit
from sdprobe.utilities.foreign import shown

LONGEST = 2000  # characters of a text
GREATEST = 2**53  # of an integer: floats are exact up to there
_TAG = re.compile(r"\[(?=[a-z#/@][^\[]*\])")  # what rich takes for a style, such as [red]
Kind = Callable[[Any], bool]


def _text(value: Any) -> bool:
    return isinstance(value, str)


def _integer(value: Any) -> bool:
    return type(value) is int and abs(value) <= GREATEST


def _number(value: Any) -> bool:
    return _integer(value) or (type(value) is float and math.isfinite(value))


def _flag(value: Any) -> bool:
    return isinstance(value, bool)


def _optional(kind: Kind) -> Kind:
    return lambda value: value is None or kind(value)


def _list(kind: Kind) -> Kind:
    return lambda value: isinstance(value, list) and all(map(kind, value))


def _one_or_several(kind: Kind) -> Kind:
    return lambda value: kind(value) or (_list(kind)(value) and len(value) > 1)


def _by_name(kind: Kind) -> Kind:
    return lambda value: isinstance(value, dict) and all(map(kind, value.values()))


def _applied(value: Any) -> bool:
    """What a variant was made with."""
    return isinstance(value, dict) and _list(_text)(value.get("steps", []))


def _choice(value: Any) -> bool:
    """What ``choose=`` found."""
    texts, counts, numbers = ("chosen", "metric"), ("cells", "photographs"), ("bound", "position", "within_bound")
    return (
        isinstance(value, dict)
        and all(_text(value.get(name)) for name in texts)
        and all(_integer(value.get(name)) for name in counts)
        and all(_list(_text)(value.get(name)) for name in ("by", "equal", "left_out"))
        and all(_number(value[name]) for name in numbers if name in value)
        and ("bound" not in value or "within_bound" in value)
    )


# entries of meta that reports use → what they are, and how a message calls it
KINDS: dict[str, tuple[Kind, str]] = {
    **dict.fromkeys(("model", "weights", "probe", "config_hash", "settings_hash"), (_text, "text")),
    **dict.fromkeys(
        ("control", "labels", "target_box", "dataset_fingerprint", "prompt", "inside"), (_optional(_text), "text or null")
    ),
    "schema": (_integer, "an integer"),
    "noise_level": (_one_or_several(_number), "a number or several"),
    "timestep": (_one_or_several(_integer), "an integer or several"),
    **dict.fromkeys(("twins", "seed", "train_steps", "image_size"), (_optional(_integer), "an integer or null")),
    **dict.fromkeys(("images", "photographs", "pairs"), (_by_name(_integer), "integers by name")),
    "complete": (_flag, "true or false"),
    "image_reach": (_optional(_flag), "true, false or null"),
    "layers": (_list(_text), "a list of texts"),
    "concatenated": (_optional(_list(_text)), "a list of texts or null"),
    "published_names": (_by_name(_text), "texts by name"),
    "shapes": (_by_name(lambda shape: _list(_integer)(shape) and len(shape) == 3), "three integers by name"),
    "mitigations": (_optional(_by_name(_applied)), "entries by name, each with texts as steps"),
    "seconds": (_by_name(_number), "numbers by name"),
    "choices": (_list(_choice), "a list of what was chosen"),
}
NEEDED = ("complete", "layers", "model", "weights", "timestep", "images")
OF_LAYERS = ("published_names", "shapes")


@contextmanager
def fitting(folder: Path) -> Iterator[None]:
    """A block that shows files of a folder, which may have been written by others, or by different runs.

    Raises:
        InputError: the files do not fit each other. The exception behind it tells more.
    """
    try:
        yield
    except InputError:
        raise
    except (LookupError, ValueError, TypeError, ArithmeticError) as error:  # an array is missing, or of another shape or kind
        raise InputError(
            f"Expected the files in '{folder}' to fit each other, but they cannot be shown ({type(error).__name__}). "
            "Repeat the run, or delete its folder."
        ) from error


def checked(content: dict[str, Any]) -> tuple[dict[str, float], dict[str, Any]]:
    """(numbers by key, meta), with texts that are fit to be shown.

    Raises:
        Unfit: something else than what a run writes.
    """
    if not isinstance(content.get("meta"), dict):
        raise Unfit("it lacks meta")
    command = content["meta"].get("command")
    metrics = _shown(content)
    meta = metrics.pop("meta")
    for key, value in metrics.items():
        if not _number(value):
            raise Unfit(f"{shown(key)} is no number")
    for name, (fits, kind) in KINDS.items():
        if name in meta and not fits(meta[name]):
            raise Unfit(f"meta.{name} is not {kind}")
    if not meta.get("layers", True):
        raise Unfit("meta.layers is empty")
    for name in [name for name in OF_LAYERS if name in meta]:
        if absent := [layer for layer in meta.get("layers", ()) if layer not in meta[name]]:
            raise Unfit(f"meta.{name} lacks {absent[0]}")
    return metrics, meta | ({"command": shown(command, LONGEST)} if command is not None else {})


def lacking(meta: Any) -> str:
    """What the ``meta`` of every run has and this one has not; empty if nothing."""
    if not isinstance(meta, dict):
        return "it lacks meta"
    return next((f"it lacks meta.{name}" for name in NEEDED if name not in meta), "")


def shown_names(arrays: dict[str, Any]) -> dict[str, Any]:
    """Arrays under names that agree with those that :func:`checked` returns. Raises Unfit unless all are numbers."""
    if strange := [name for name, array in arrays.items() if array.dtype.kind not in "biufU"]:
        raise Unfit(f"{shown(strange[0])} holds no numbers")
    return {_shown(name): array for name, array in arrays.items()}


def _shown(node: Any) -> Any:
    """A value with its texts in one line, without control characters, and without what rich takes for a style."""
    if isinstance(node, str):
        if len(node) <= LONGEST and node.isascii() and node.isprintable() and "[" not in node:  # most are, of a thousand runs
            return node
        return _TAG.sub("[ ", shown(node, LONGEST))
    if isinstance(node, dict):
        return {_shown(key): _shown(value) for key, value in node.items()}
    return [_shown(value) for value in node] if isinstance(node, list) else node
