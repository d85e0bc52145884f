"""Old names and metaphors do not come back: no document, docstring, comment or message uses them.

``NAMES`` are identifiers and files that were renamed. They are searched for in code and documents. ``PROSE`` are words that
plain sentences replace. They are searched for in documents, docstrings, comments and strings with spaces, without code spans.
"""

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("sdprobe", "probes", "datamodules", "configs", "tools")
DOCUMENTS = (
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "assets/demo/README.md",
    "assets/demo_dit/README.md",
    "tools/demo/card.md",
    "tools/demo/card_dit.md",
)
# old name → new name
NAMES = {
    r"Way": "Variant",
    r"ways\.py": "variants.py",
    r"grids_of": "extract",
    r"fit_or_recall": "fit_or_load",
    r"Resident": "DeviceCache",
    r"sentences\.py": "cli.user_errors",
    r"quiet\.py": "cli.silence_libraries",
    r"assist\.py": "workers.py",
    r"nulls\.py": "baselines.py",
    r"given\.py": "source.py",
    r"keyed\.py": "rng.py",
    r"decisive": "result_settings",
    r"NEUTRAL": "IGNORED_IN_HASH",
    r"circumstances": "provenance",
    r"LEFT": "OUTPUT_FILES",
    r"PatientLogger": "FaultTolerantWandbLogger",
    r"layer_by_question": "selected_layers",
}
# metaphor → plain word
PROSE = {
    r"rooms?": "package, space",
    r"sit|sits|sitting": "is at",
    r"lives?|living": "is in",
    r"mends?|mended|mending": "fix, correct",
    r"twins?": "random-weights baseline, random network",
    r"whoever": "the function, the user",
    r"ways?": "method, variant",
    r"nulls": "baselines",
    r"longer arm": "half-width",
    r"not decided": "inconclusive",
}
# phrases of the field, plain English, and backgrounds of scenes
ALLOWED = re.compile(
    r"live tensors|in the same way|this way|either way|two-way|living room|landscapes?\b[^.]*?\brooms?\b",
    re.I,
)
CODE = re.compile(r"``.*?``|`[^`]*`|\]\([^)]*\)|https?://\S+|:\w+:`[^`]*`", re.S)
FENCE = re.compile(r"^( *)```.*?^\1```$", re.S | re.M)


class Text(NamedTuple):
    """A piece of prose: file relative to the root, first line, content."""

    file: str
    line: int
    content: str


def documents() -> list[Path]:
    """README, documents and model card."""
    return [*(ROOT / name for name in DOCUMENTS), *sorted((ROOT / "docs").glob("*.md"))]


def sources(*suffixes: str) -> list[Path]:
    """Files of the packages with these suffixes, and ``train.py``."""
    files = [file for name in PACKAGES for suffix in suffixes for file in sorted((ROOT / name).rglob(f"*{suffix}"))]
    return [*files, *([ROOT / "train.py"] if ".py" in suffixes else [])]


def blank(match: re.Match[str]) -> str:
    """As many line ends as the match has, so that line numbers stay."""
    return "\n" * match[0].count("\n")


def prose_of_python(file: Path) -> Iterator[Text]:
    """Docstrings, comments and strings with spaces."""
    name, source = str(file.relative_to(ROOT)), file.read_text()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield Text(name, token.start[0], token.string)
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value.strip():
            yield Text(name, node.lineno, node.value)


def prose() -> Iterator[Text]:
    """Everything that a person reads, without code."""
    for file in documents():
        yield Text(str(file.relative_to(ROOT)), 1, FENCE.sub(blank, file.read_text()))
    for file in sources(".py"):
        yield from prose_of_python(file)
    for file in sources(".yaml"):
        for number, line in enumerate(file.read_text().splitlines(), 1):
            if "#" in line:
                yield Text(str(file.relative_to(ROOT)), number, line.partition("#")[2])


@cache
def texts() -> list[Text]:
    """The prose without what is allowed in it; read by the first test, so that workers that run none do not read it."""
    return [text._replace(content=ALLOWED.sub(blank, CODE.sub(blank, text.content))) for text in prose()]


@cache
def whole_files() -> list[Text]:
    """Every file as it is."""
    return [Text(str(file.relative_to(ROOT)), 1, file.read_text()) for file in (*documents(), *sources(".py", ".yaml"))]


def hits(pattern: re.Pattern[str], texts: list[Text]) -> list[str]:
    """``file:line: word`` of every match."""
    return [
        f"{text.file}:{text.line + text.content[: match.start()].count(chr(10))}: {match[0]}"
        for text in texts
        for match in pattern.finditer(text.content)
    ]


@pytest.mark.parametrize("name", NAMES)
def test_old_names_are_gone(name: str) -> None:
    found = hits(re.compile(rf"(?<![\w.])(?:{name})(?!\w)"), whole_files())
    assert not found, f"use {NAMES[name]}: " + ", ".join(found)


@pytest.mark.parametrize("word", PROSE)
def test_metaphors_are_gone(word: str) -> None:
    found = hits(re.compile(rf"(?<![\w./-])(?:{word})(?![\w=(/]|\.\w)", re.I), texts())
    assert not found, f"use {PROSE[word]}: " + ", ".join(found)


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("A room\nof the house.", "rooms?"),
        ("Its twins have random weights.", "twins?"),
        ("a way of matching", "ways?"),
    ],
)
def test_the_search_finds_words(text: str, word: str) -> None:
    assert hits(re.compile(rf"\b(?:{word})\b", re.I), [Text("a.md", 1, text)])


@pytest.mark.parametrize("text", ["`twins=3` random networks", "``way`` in code", "live tensors", "landscapes and rooms"])
def test_code_and_terms_of_the_field_pass(text: str) -> None:
    content = ALLOWED.sub(blank, CODE.sub(blank, text))
    assert not [word for word in PROSE if re.search(rf"\b(?:{word})\b", content, re.I)]
