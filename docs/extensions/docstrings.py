"""Sphinx extension: docstrings of this project as reStructuredText."""

import re
from itertools import takewhile
from typing import Any

from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment


def escape_bars(app: Sphinx, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    """``|x|`` is a magnitude in this project, and a substitution in reStructuredText."""
    for number, line in enumerate(lines):
        if not line.lstrip().startswith((">>>", "...")):
            parts = re.split(r"(``.*?``)", line)  # literals stay as they are
            lines[number] = "".join(part if part.startswith("``") else part.replace("|", r"\|") for part in parts)


def keep_colons(app: Sphinx, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    """Napoleon takes what stands before a colon in the first line of a property for its type; here it is a sentence."""
    if what == "property":
        lines[:0] = ["..", ""]  # an empty comment


def find_by_short_name(app: Sphinx, env: BuildEnvironment, node: pending_xref, content: nodes.TextElement) -> Any:
    """A reference from another module, such as ``:class:`PositionMean```: the nearest documented object of that name."""
    if node.get("refdomain") != "py":
        return None
    domain, module, own = env.domains.python_domain, node.get("py:module"), node.get("py:class")
    found = [name for name, _ in domain.find_obj(env, module, own, node["reftarget"].lstrip("."), node["reftype"], 1)]
    if not found:
        return None
    here = f"{module}.{own}".split(".")
    node["reftarget"] = max(found, key=lambda name: len([*takewhile(_alike, zip(name.split("."), here, strict=False))]))
    node["refspecific"] = False
    return domain.resolve_xref(env, node["refdoc"], app.builder, node["reftype"], node["reftarget"], node, content)


def _alike(pair: tuple[str, str]) -> bool:
    return pair[0] == pair[1]


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("autodoc-process-docstring", keep_colons, priority=100)  # before napoleon
    app.connect("autodoc-process-docstring", escape_bars, priority=900)  # behind it
    app.connect("missing-reference", find_by_short_name)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
