"""The documentation site: ``make docs`` builds it into build/docs.

Sphinx reads the whole checkout (``sphinx-build -c docs . build/docs``), so a relative link between two documents or to a
picture means the same here and on GitHub. The front page is README.md.
"""

import shutil
import sys
import tomllib
from pathlib import Path

from sphinx.application import Sphinx

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "docs" / "extensions")]

project = "sdprobe"
author = copyright = "the sdprobe authors"
version = release = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]

root_doc = "README"
include_patterns = ["README.md", "CHANGELOG.md", "CONTRIBUTING.md", "assets/demo*/README.md", "docs/**"]
exclude_patterns = [".*", "build", "outputs", "multirun", "wandb", "dist"]
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinxcontrib.mermaid", "mathml", "docstrings"]
html_math_renderer = "mathml"

# GitHub's Markdown: fenced mathematics and diagrams, dollars, anchors of headings
myst_fence_as_directive = ["math", "mermaid"]
myst_enable_extensions = ["dollarmath", "html_image"]
myst_dmath_double_inline = True
myst_heading_anchors = 4
nb_execution_mode = "off"  # tests/test_pages.py runs the notebook, and the site shows what is committed

autodoc_default_options = {"members": True, "member-order": "bysource"}
autodoc_typehints_format = "short"
napoleon_numpy_docstring = False
napoleon_use_rtype = False  # types are in signatures; a colon under Returns is one of a sentence

# Nitpicky (-n): every reference must have a target. These have none:
nitpick_ignore_regex = [
    ("py:.*", r"(torch|torchmetrics|lightning|diffusers|transformers|numpy|np|yaml|PIL)\..*"),
    ("py:.*", r"(collections|pathlib|omegaconf|datasets|io|os)\..*"),
    ("py:class", r"Tensor|ndarray|Figure|nn\..*"),  # of libraries, as annotations call them
    ("py:class", r"jaxtyping\..*|'.*'"),  # Float[Tensor, "b c h w"] and its shape
    ("py:class", r".*\.(Batch|Item|Name|Network|Part|Piece|Value|Step)"),  # type variables
    ("py:class", r".*\.frozen_sd\.Transform"),  # a protocol of maps
    ("py:data", r".*\b[A-Z_]+|Images"),  # constants have comments, no docstrings
]

html_theme = "furo"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_title = f"sdprobe {version}"
html_copy_source = False
html_show_sourcelink = False

SECTIONS = {
    "Use": [
        "docs/usage",
        "docs/python",
        "docs/explorer",
        "docs/transformers",
        "docs/wandb",
        "docs/tutorial",
        "docs/glossary",
        "docs/errors",
        "docs/trust",
    ],
    "Results": [
        "docs/results",
        "docs/methods",
        "docs/mitigations",
        "docs/role",
        "docs/equivariance",
        "docs/benchmarks",
        "assets/demo/README",
        "assets/demo_dit/README",
    ],
    "Reference": ["docs/api/index", "docs/architecture", "CONTRIBUTING", "CHANGELOG"],
}  # fmt: skip


def add_contents(app: Sphinx, name: str, source: list[str]) -> None:
    """README.md has no table of contents of its own; the site's is appended, and shows in the side bar."""
    if name == root_doc:
        source[0] += "".join(
            f"\n\n```{{toctree}}\n:hidden:\n:caption: {caption}\n\n" + "\n".join(pages) + "\n```\n"
            for caption, pages in SECTIONS.items()
        )


def copy_front_page(app: Sphinx, error: Exception | None) -> None:
    """README.html is also index.html."""
    if error is None and app.builder.name == "html":
        shutil.copyfile(Path(app.outdir) / "README.html", Path(app.outdir) / "index.html")


def setup(app: Sphinx) -> None:
    app.connect("source-read", add_contents)
    app.connect("build-finished", copy_front_page)
