"""What constructors of mitigations refuse, each in one sentence."""

from collections.abc import Sequence

from tokens.errors import InputError


def one_of(name: str, value: str, choices: Sequence[str]) -> str:
    """``value`` if it is among the choices.

    Raises:
        InputError: it is not.
    """
    if value not in choices:
        raise InputError(f"Expected {name} to be one of {', '.join(choices)}, but got {value!r}. Choose one of them.")
    return value


def at_least(name: str, value: float, lowest: float, highest: float = float("inf")) -> None:
    """Refuses numbers outside [lowest, highest].

    Raises:
        InputError: it lies outside, or is NaN.
    """
    if not lowest <= value <= highest:
        wanted = f"in [{lowest}, {highest}]" if highest < float("inf") else f"at least {lowest}"
        raise InputError(f"Expected {name} to be {wanted}, but got {value}. Choose another.")


def above_zero(name: str, value: float) -> None:
    """Refuses what is not a positive number.

    Raises:
        InputError: it is zero, negative or NaN.
    """
    if not value > 0:
        raise InputError(f"Expected {name} to be above 0, but got {value}. Choose another.")
