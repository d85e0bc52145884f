"""What a reader clicks on or looks at exists: links, anchors and pictures of the documents, and the errors that they quote."""

import ast
import json
import re
import shlex
from functools import cache
from pathlib import Path
from typing import NamedTuple

import nbformat
import numpy as np
import pytest
from nbclient import NotebookClient
from PIL import Image

from sdprobe.runs import configuration
from sdprobe.runs.arguments import as_overrides

ROOT = Path(__file__).parent.parent
NOTEBOOK = ROOT / "docs" / "tutorial.ipynb"
CARD = ROOT / "assets" / "demo" / "README.md"
TOP = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")]
PAGES = [*TOP, CARD, *sorted((ROOT / "docs").glob("*.md")), NOTEBOOK]
BACKGROUNDS = {"white": (255, 255, 255), "dark": (13, 17, 23)}  # of GitHub
KILOBYTES = 500  # most that the notebook with its outputs may have


class Link(NamedTuple):
    """A link or a picture of a page. ``text`` is what is clicked on, or what stands for the picture."""

    page: Path
    text: str
    target: str
    picture: bool

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}: {self.target}"


def markdown(page: Path) -> str:
    """The Markdown of a page; of a notebook, that of its cells."""
    text = page.read_text()
    if page.suffix != ".ipynb":
        return text
    return "\n\n".join("".join(cell["source"]) for cell in json.loads(text)["cells"] if cell["cell_type"] == "markdown")


def prose(text: str) -> str:
    """The text without code."""
    return re.sub(r"`[^`\n]*`", "`code`", re.sub(r"^( *)```.*?^\1```$", "", text, flags=re.S | re.M))


def links(page: Path) -> list[Link]:
    """Links and pictures in Markdown and HTML."""
    text = prose(markdown(page))
    inline = re.findall(r"(!?)\[([^\[\]]*)\]\(([^()\s]+)\)", text)
    found = [Link(page, words, target, bool(mark)) for mark, words, target in inline]
    outer = [Link(page, "", target, False) for target in re.findall(r"\[!\[[^\]]*\]\([^)]*\)\]\(([^()\s]+)\)", text)]
    for tag in re.findall(r"<(?:img|source|a)\b[^>]*>", text):
        attributes = dict(re.findall(r'([\w-]+)="([^"]*)"', tag))
        if target := attributes.get("src") or attributes.get("srcset") or attributes.get("href"):
            found.append(Link(page, attributes.get("alt", ""), target, tag.startswith("<img")))
    return found + outer


def slugs(text: str) -> set[str]:
    """Anchors that GitHub gives the headings of a page; a name that occurs again is numbered."""
    found: dict[str, int] = {}
    anchors = set(re.findall(r'<a (?:id|name)="([^"]+)"', text))
    for heading in re.findall(r"^#{1,6} +(.+?) *#*$", re.sub(r"^( *)```.*?^\1```$", "", text, flags=re.S | re.M), re.M):
        words = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()
        slug = re.sub(r"[^\w\- ]", "", words).replace(" ", "-")
        anchors.add(f"{slug}-{found[slug]}" if slug in found else slug)
        found[slug] = found.get(slug, 0) + 1
    return anchors


LINKS = [link for page in PAGES for link in links(page)]
RELATIVE = [link for link in LINKS if not re.match(r"https?://|mailto:", link.target)]
SHOWN = [link for link in RELATIVE if link.picture]


def test_slugs_are_githubs() -> None:
    text = "# A `b_c` d: e, [f](g.md)\n## 9 Intervals and tests\n## x\n## x\n```sh\n# no heading\n```\n### metrics.json\n"
    assert slugs(text) == {"a-b_c-d-e-f", "9-intervals-and-tests", "x", "x-1", "metricsjson"}


@pytest.mark.parametrize("link", dict.fromkeys(RELATIVE), ids=str)
def test_links_lead_somewhere(link: Link) -> None:
    name, _, anchor = link.target.partition("#")
    target = (link.page.parent / name).resolve() if name else link.page
    assert target.exists() and target.is_relative_to(ROOT), "no such file"
    if anchor:
        assert anchor in slugs(markdown(target)), f"no such heading in {target.relative_to(ROOT)}"


def test_links_are_found() -> None:
    assert {link.target for link in LINKS} >= {"docs/architecture.md", "methods.md#18-mitigations", "samples.jpg"}
    assert {link.page for link in SHOWN} >= {ROOT / "README.md", ROOT / "docs" / "mitigations.md", CARD}


@pytest.mark.parametrize("link", dict.fromkeys(SHOWN), ids=str)
def test_pictures_can_be_seen(link: Link) -> None:
    assert len(link.text.split()) > 1, f"'{link.text}' does not say what the picture shows"
    path = link.page.parent / link.target
    if path.suffix == ".svg":
        assert "<svg" in path.read_text()
        return
    with Image.open(path) as picture:
        picture.load()
        for name, colour in BACKGROUNDS.items():
            seen = Image.alpha_composite(Image.new("RGBA", picture.size, colour), picture.convert("RGBA"))
            assert np.asarray(seen.convert("L")).std() > 5, f"blank on {name}"


def test_every_picture_is_shown() -> None:
    files = {path for path in (ROOT / "docs").iterdir() if path.suffix in (".png", ".jpg", ".svg")}
    assert files <= {(link.page.parent / link.target).resolve() for link in LINKS}


@cache
def sentences() -> list[str]:
    """Every text in the source; ``…`` stands for what is filled in."""
    found = []
    for folder in ("sdprobe", "probes", "datamodules"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.JoinedStr):
                    found.append("".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values))
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    found.append(node.value)
    return found


@pytest.mark.parametrize("message", re.findall(r"^```text\n(.*?)\n```$", (ROOT / "docs/errors.md").read_text(), re.S | re.M))
def test_quoted_errors_are_what_is_printed(message: str) -> None:
    known = sentences()
    for piece in filter(None, (re.sub(r"^\W+|\W+$", "", piece) for piece in message.split("…"))):
        assert any(piece in sentence for sentence in known), f"nothing says '{piece}'"


def test_settings_with_odd_characters_are_typed_as_the_page_says() -> None:
    typed = re.findall(r"^\|[^|]*\| `((?:prompt=)?['\"].*)` \|$", (ROOT / "docs/errors.md").read_text(), re.M)
    assert len(typed) > 4
    for line in typed:
        configuration.check(as_overrides(["images=folder", "images.root=.", *shlex.split(line)]))


def test_the_tutorial_is_stored_executed() -> None:
    assert NOTEBOOK.stat().st_size < KILOBYTES * 1024
    code = [cell for cell in nbformat.read(NOTEBOOK, 4).cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell.outputs]
    assert {"stream", "display_data"} <= {output.output_type for output in outputs}
    assert not any(output.output_type == "error" for output in outputs)


@pytest.mark.slow
def test_the_tutorial_runs() -> None:
    """Its cells assert what its sentences say."""
    place = {"metadata": {"path": str(NOTEBOOK.parent)}}
    NotebookClient(nbformat.read(NOTEBOOK, 4), timeout=300, kernel_name="python3", resources=place).execute()
