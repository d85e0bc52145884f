"""Checks of arguments, one function per constraint.

Each raises :class:`~sdprobe.utilities.errors.InputError` if the value does not meet it, also for NaN. ``fix`` replaces the
default last sentence.
"""

import difflib
import math
from collections.abc import Collection
from typing import NoReturn

from sdprobe.utilities.errors import InputError


def one_of(name: str, value: str, options: Collection[str], fix: str = "") -> str:
    """``value`` is among the options; returns it."""
    if value not in options:
        nearest = (difflib.get_close_matches(str(value), list(options), n=1, cutoff=0.5) or list(options))[0]
        _refuse(name, f"one of {', '.join(options)}", value, fix or f"Use {nearest}.")
    return value


def at_least(name: str, value: float, low: float, fix: str = "") -> None:
    """``value`` ≥ ``low``."""
    if not value >= low:
        _refuse(name, f"at least {low}", value, fix or f"Use {low} or more.")


def positive(name: str, value: float) -> None:
    """``value`` > 0."""
    if not value > 0:
        _refuse(name, "positive", value, "Use a number above 0.")


def between(name: str, value: float, low: float, high: float, fix: str = "Use a number in that range.") -> None:
    """``low`` ≤ ``value`` ≤ ``high``."""
    if not low <= value <= high:
        _refuse(name, f"from {low} to {high}", value, fix)


def whole(name: str, value: float, low: int, high: float = math.inf) -> None:
    """A whole number, ``low`` ≤ ``value`` ≤ ``high``."""
    if value != int(value):
        _refuse(name, "an integer", value, "Correct the value.")
    if value < low and high == math.inf:
        at_least(name, value, low)
    between(name, value, low, high)


def multiple(name: str, value: int, step: int) -> None:
    """``value`` = k · ``step``, k ≥ 1."""
    if value < step or value % step:
        near = max(step, value // step * step)
        _refuse(name, f"a positive multiple of {step}", value, f"Use {near} or {near + step}.")


def without(name: str, value: str, characters: str, longest: int) -> None:
    """A text without these characters, at most so long."""
    if len(str(value)) > longest or set(str(value)) & set(characters):
        _refuse(name, f"at most {longest} characters without {' '.join(characters)}", value, "Choose another name.")


def _refuse(name: str, constraint: str, value: object, fix: str) -> NoReturn:
    raise InputError(f"Expected {name} to be {constraint}, but got {value!r}. {fix}")
