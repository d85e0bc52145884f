"""Types in signatures of constructors, and whether a value from YAML, JSON or the command line has one of them."""

from collections.abc import Sequence
from types import UnionType
from typing import Any, Union, Unpack, get_args, get_origin, get_type_hints

_SPOKEN = {int: "an integer", float: "a number", str: "text", bool: "true or false", type(None): "null"}
_LISTS = {str: "a list of names", int: "a list of integers"}


def declared(target: Any) -> dict[str, Any]:
    """Argument → declared type of a constructor, with those in a dictionary of options."""
    hints = get_type_hints(target.__init__ if isinstance(target, type) else target)  # type: ignore[misc]
    hints.pop("return", None)
    options = {name: get_args(hint)[0] for name, hint in hints.items() if get_origin(hint) is Unpack}
    types = {name: hint for name, hint in hints.items() if name not in options}
    return types | {name: hint for option in options.values() for name, hint in get_type_hints(option).items()}


def fits(value: Any, hint: Any) -> bool:
    """Whether a value has a declared type. An integer is a number, too; any value fits a type of unknown kind.

    >>> fits(1, float), fits(1.5, int), fits(True, int), fits(None, int | None)
    (True, False, False, True)
    """
    options = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    if any(option not in _SPOKEN and get_origin(option) is not Sequence for option in options):
        return True
    return any(_is(value, option) for option in options)


def spoken(hint: Any) -> str:
    """A declared type for a message.

    >>> spoken(int | None)
    'an integer or null'
    """
    options = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    return " or ".join(_SPOKEN.get(option) or _LISTS[get_args(option)[0]] for option in options)


def _is(value: Any, kind: Any) -> bool:
    if get_origin(kind) is Sequence:
        return isinstance(value, list) and all(_is(item, get_args(kind)[0]) for item in value)
    if isinstance(value, bool):
        return kind is bool
    return isinstance(value, (int, float) if kind is float else kind)
