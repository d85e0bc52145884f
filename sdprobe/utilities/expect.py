"""Checks of arguments, one function per constraint.

Each raises :class:`~sdprobe.utilities.errors.InputError` if the value does not meet it, also for NaN. ``fix`` replaces the
default last sentence.
"""

import difflib
import math
import re
from collections.abc import Callable, Collection, Sequence
from typing import Any, NoReturn

from sdprobe.utilities.errors import InputError

LARGEST = 8192  # pixels per side of an image


def one_of(name: str, value: object, options: Collection[str], fix: str = "") -> str:
    """``value`` is among the options; returns it."""
    if not isinstance(value, str) or value not in options:
        nearest = (difflib.get_close_matches(str(value), list(options), n=1, cutoff=0.5) or list(options))[0]
        _refuse(name, f"one of {', '.join(options)}", value, fix or f"Use {nearest}.")
    return value


def finite(name: str, value: object) -> float:
    """``value`` is a number, and neither infinite nor NaN; returns it."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < math.inf:
        _refuse(name, "a finite number", value, "Correct the value.")
    return value


def at_least(name: str, value: object, low: float, fix: str = "") -> None:
    """``value`` ≥ ``low``."""
    number = finite(name, value)
    if not number >= low:
        _refuse(name, f"at least {low}", value, fix or f"Use {low} or more.")


def positive(name: str, value: object) -> None:
    """``value`` > 0."""
    number = finite(name, value)
    if not number > 0:
        _refuse(name, "positive", value, "Use a number above 0.")


def between(name: str, value: object, low: float, high: float, fix: str = "Use a number in that range.") -> None:
    """``low`` ≤ ``value`` ≤ ``high``."""
    number = finite(name, value)
    if not low <= number <= high:
        _refuse(name, f"from {low} to {high}", value, fix)


def integer(name: str, value: object, fix: str = "Correct the value.") -> int:
    """``value`` is a whole number; returns it."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < math.inf or value != int(value):
        _refuse(name, "an integer", value, fix)
    return int(value)


def whole(name: str, value: object, low: int, high: int) -> None:
    """A whole number of a range, ``low`` ≤ ``value`` ≤ ``high``."""
    between(name, integer(name, value), low, high)


def ascending(rule: Callable[[str, Any], object]) -> Callable[[str, Any], None]:
    """The check of a number that meets a rule, or of a list of such numbers, each larger than the one before."""

    def check(name: str, value: Any) -> None:
        numbers = list(value) if isinstance(value, Sequence) and not isinstance(value, str) else [value]
        if not numbers:
            _refuse(name, "a number or a list of numbers", numbers, "Put at least one into the list.")
        for number in numbers:
            rule(name, number)
        if numbers != sorted(set(numbers)):
            fix = f"Write {name}=[{','.join(map(str, sorted(set(numbers))))}]."
            _refuse(name, "in ascending order, without repetition", numbers, fix)

    return check


def each(rule: Callable[[str, Any], object]) -> Callable[[str, Any], None]:
    """The check of a name that meets a rule, or of several, as a list or separated by commas."""

    def check(name: str, value: Any) -> None:
        names = value.split(",") if isinstance(value, str) else list(value) if isinstance(value, Sequence) else [value]
        for one in names or [""]:
            rule(name, one.strip() if isinstance(one, str) else one)

    return check


def count(name: str, value: object, low: int, high: int, fix: str = "") -> None:
    """A whole number ≥ ``low``; above ``high`` it can only be a mistake."""
    at_least(name, integer(name, value), low, fix)
    at_most(name, value, high)


def as_count(name: str, value: Any, low: int, high: int) -> int:
    """A whole number of Python, numpy or torch, ``low`` ≤ ``value`` ≤ ``high``; returns it as an ``int``.

    >>> as_count("seed", 3.0, 0, 9)
    3
    """
    value = value.item() if getattr(value, "ndim", None) == 0 else value
    count(name, value, low, high)
    return int(value)


def at_most(name: str, value: object, high: float) -> None:
    """``value`` ≤ ``high``."""
    if not finite(name, value) <= high:
        _refuse(name, f"at most {high}", value, f"Use {high} or less.")


def multiple(name: str, value: object, step: int, high: int = LARGEST) -> None:
    """``value`` = k · ``step``, k ≥ 1, and at most ``high``."""
    number = integer(name, value)
    if number < step or number % step:
        near = min(max(step, number // step * step), high - step)
        _refuse(name, f"a positive multiple of {step}", value, f"Use {near} or {near + step}.")
    at_most(name, value, high)


def text(name: str, value: object) -> None:
    """A text that is not empty."""
    if not isinstance(value, str) or not value.strip():
        _refuse(name, "a text", value, "Put quotes around it, or leave it out.")


def matching(name: str, value: object, pattern: str, meaning: str) -> None:
    """A text that a regular expression matches as a whole."""
    if not isinstance(value, str) or not re.fullmatch(pattern, value):
        _refuse(name, meaning, value, "Correct the value.")


def without(name: str, value: object, characters: str, longest: int) -> None:
    """A text without these characters, at most so long."""
    if len(str(value)) > longest or set(str(value)) & set(characters):
        _refuse(name, f"at most {longest} characters without {' '.join(characters)}", value, "Choose another name.")


def _refuse(name: str, constraint: str, value: object, fix: str) -> NoReturn:
    raise InputError(f"Expected {name} to be {constraint}, but got {value!r}. {fix}")
