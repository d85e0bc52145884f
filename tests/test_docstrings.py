"""Docstrings of the public names: arguments, errors, results and an example."""

import inspect
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hydra.utils import get_object

import sdprobe
from sdprobe import mitigations

ROOT = Path(__file__).parent.parent
PROJECT = ("sdprobe", "probes", "datamodules")
TARGETS = {
    target
    for file in (ROOT / "configs").rglob("*.yaml")
    for target in re.findall(r"_target_: ([\w.]+)", file.read_text())
    if target.split(".")[0] in PROJECT
}
# modules are tested by their own names
PUBLIC = {f"sdprobe.{name}" for name in sdprobe.__all__ if not inspect.ismodule(getattr(sdprobe, name))}
NAMES = sorted(PUBLIC | {f"sdprobe.mitigations.{name}" for name in mitigations.__all__} | TARGETS)
SECTIONS = ("Args", "Attributes", "Returns", "Yields", "Raises", "References", "Example")
REFUSES = re.compile(r"raise InputError|\bsettings\.check\(|\bexpect\.\w+\(|\bcheck_padding\(")


def section(doc: str, title: str) -> str:
    """The lines below ``title:``; empty without that section."""
    match = re.search(rf"^{title}:\n((?:(?: .*)?\n?)*)", doc, re.MULTILINE)
    return match[1] if match else ""


def listed(doc: str) -> set[str]:
    """Arguments that a docstring explains, each on a line of its own."""
    return set(re.findall(r"^ {4}\*{0,2}(\w+):", section(doc, "Args"), re.MULTILINE))


def arguments(function: Callable[..., Any]) -> set[str]:
    """Names of the arguments of a function, without ``self``."""
    return set(inspect.signature(function).parameters) - {"self", "cls"}


def own(function: Any) -> bool:
    """Whether a function belongs to this project."""
    return getattr(function, "__module__", "").split(".")[0] in PROJECT


def constructor(target: Any) -> Callable[..., Any] | None:
    """The function whose arguments a docstring must explain; None if it belongs to another project."""
    function = target.__init__ if inspect.isclass(target) else target
    return function if own(function) else None


def methods(kind: type) -> Iterator[tuple[str, Any]]:
    """Public methods, class methods and properties of a class that this project wrote."""
    for name, value in inspect.getmembers_static(kind):
        function = value.fget if isinstance(value, property) else getattr(value, "__func__", value)
        if not name.startswith("_") and inspect.isfunction(function) and own(function):
            yield name, value


def source(function: Callable[..., Any]) -> str:
    """The code of a function; empty for a constructor that a dataclass has."""
    try:
        return inspect.getsource(function)
    except OSError:
        return ""


def returns(function: Callable[..., Any]) -> bool:
    """Whether a function is annotated to return something."""
    return inspect.signature(function).return_annotation not in (None, "None", inspect.Signature.empty)


@pytest.mark.parametrize("name", NAMES)
def test_arguments_errors_result_and_an_example_are_documented(name: str) -> None:
    target = get_object(name)
    doc, function = inspect.getdoc(target) or "", constructor(target)
    assert ">>> " in section(doc, "Example"), "no example"
    if function:
        missing = arguments(function) - listed(doc)
        assert not missing, f"Args lacks {', '.join(sorted(missing))}"
        assert not REFUSES.search(source(function)) or section(doc, "Raises"), "no Raises"
    if not inspect.isclass(target) and returns(target):
        assert section(doc, "Returns") or section(doc, "Yields"), "no Returns"


@pytest.mark.parametrize("name", [name for name in NAMES if inspect.isclass(get_object(name))])
def test_public_methods_are_documented(name: str) -> None:
    for label, value in methods(get_object(name)):
        doc = inspect.getdoc(value) or ""
        assert doc, f"{label} has no docstring"
        if isinstance(value, property):
            continue
        function = getattr(value, "__func__", value)
        if "raise InputError" in source(function):
            assert section(doc, "Raises") or "Raises InputError" in doc, f"{label} has no Raises"
        if returns(function):
            found = section(doc, "Returns") or section(doc, "Yields") or re.match(r"(Return|Yield)s? ", doc)
            assert found, f"{label} has no Returns"


@pytest.mark.parametrize("name", NAMES)
def test_sections_are_spelt_as_sphinx_reads_them(name: str) -> None:
    doc = inspect.getdoc(get_object(name)) or ""
    for title in re.findall(r"^([A-Z]\w+):$", doc, re.MULTILINE):
        assert title in SECTIONS, title
