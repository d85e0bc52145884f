"""Constraints on arguments: what meets them passes, and for the rest there is one form of sentence."""

import math
import re
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdprobe.utilities import expect
from sdprobe.utilities.errors import InputError

NUMBERS = st.floats(-10, 10) | st.integers(-10, 10) | st.just(math.nan)


def refused(check: Callable[[], object]) -> bool:
    try:
        check()
    except InputError as error:
        return bool(re.fullmatch(r"Expected x to be .+, but got .+\. [A-Z].+\.", str(error)))
    return False


@given(NUMBERS, st.integers(-5, 5), st.integers(0, 5))
def test_numbers_pass_just_where_the_constraint_holds(value: float, low: int, width: int) -> None:
    assert refused(lambda: expect.at_least("x", value, low)) == (math.isnan(value) or value < low)
    assert refused(lambda: expect.positive("x", value)) == (math.isnan(value) or value <= 0)
    inside = not math.isnan(value) and low <= value and value <= low + width
    assert refused(lambda: expect.between("x", value, low, low + width)) != inside


@given(st.integers(-300, 300), st.integers(1, 64))
def test_multiples_are_positive_and_the_fix_names_the_nearest(value: int, step: int) -> None:
    good = range(step, 400, step)
    assert refused(lambda: expect.multiple("x", value, step)) == (value not in good)
    if value not in good:
        with pytest.raises(InputError) as caught:
            expect.multiple("x", value, step)
        below, above = map(int, re.findall(r"\d+", str(caught.value).rpartition("Use")[2]))
        assert below in good and above == below + step
        assert below < value < above or (value < step and below == step)


def test_an_option_is_returned_and_anything_else_gives_the_sentence() -> None:
    assert expect.one_of("posterior", "sample", ("mode", "sample")) == "sample"
    for options in (("mode", "sample"), ["mode", "sample"], {"mode": 1, "sample": 2}):
        with pytest.raises(InputError) as caught:
            expect.one_of("posterior", "mean", options)
        assert str(caught.value) == "Expected posterior to be one of mode, sample, but got 'mean'. Use mode."


def test_a_fix_of_its_own_replaces_the_usual_one() -> None:
    for check in (
        lambda: expect.one_of("x", "a", ("b",), "Call b."),
        lambda: expect.at_least("x", 0, 1, "Call b."),
        lambda: expect.between("x", 0, 1, 2, "Call b."),
    ):
        with pytest.raises(InputError, match=r"but got ('a'|0)\. Call b\.$"):
            check()
