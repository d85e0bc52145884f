"""Sphinx extension: formulas become MathML, which a browser draws itself, without a script and without network."""

import re

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.application import Sphinx

# browsers ignore mathvariant, so letters in double-struck type are written as the characters they stand for
LETTERS = {"R": "ℝ", "E": "𝔼"}


def mathml(tex: str, display: str) -> str:
    r"""A formula as a ``<math>`` element; ``display`` is ``inline`` or ``block``.

    Raises:
        ValueError: a command that the converter does not know, or a letter that LETTERS lacks.
    """
    made = convert(tex.replace(r"\arg", r"\operatorname{arg}"), display=display)
    made = re.sub(r'<mi mathvariant="double-struck">(.)</mi>', lambda match: f"<mi>{LETTERS.get(match[1], '?')}</mi>", made)
    if unknown := re.search(r"\\\w+|<mi>\?</mi>", made):
        raise ValueError(f"'{unknown[0]}' in the formula '{tex}' has no MathML here")
    return made


def _inline(self: nodes.NodeVisitor, node: nodes.math) -> None:
    self.body.append(mathml(node.astext(), "inline"))  # type: ignore[attr-defined]
    raise nodes.SkipNode


def _block(self: nodes.NodeVisitor, node: nodes.math_block) -> None:
    self.body.append(f'<div style="overflow: auto hidden; padding: 0.5em 0">{mathml(node.astext(), "block")}</div>\n')  # type: ignore[attr-defined]
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_html_math_renderer("mathml", inline_renderers=(_inline, None), block_renderers=(_block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
