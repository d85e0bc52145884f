"""Marked blocks of Markdown documents: ``<!-- results:NAME -->`` … ``<!-- /results -->``. Their content is rendered."""

import difflib
import re
from collections.abc import Mapping

from sdprobe.utilities.errors import InputError

BLOCK = re.compile(r"(<!-- results:(\w+) -->\n)(.*?)(\n?<!-- /results -->)", re.S)


def names(text: str) -> list[str]:
    """Names of the blocks, in order.

    Raises:
        InputError: a block is not closed, or a mark does not belong to a block.
    """
    blocks = [match[1] for match in BLOCK.findall(text)]
    marks = len(re.findall(r"<!-- /?results", text))
    if marks != 2 * len(blocks) or any("<!-- results:" in match[2] for match in BLOCK.findall(text)):
        raise InputError(
            f"Expected every block to be '<!-- results:NAME -->' and '<!-- /results -->' on lines of their own, but got "
            f"{marks} marks around {len(blocks)} blocks. Close each block before the next."
        )
    return blocks


def rewritten(text: str, contents: Mapping[str, str]) -> str:
    """The text with replaced blocks; a block without content is not changed."""

    def content(match: re.Match[str]) -> str:
        return f"{match[1]}{contents[match[2]].strip()}\n<!-- /results -->" if match[2] in contents else match[0]

    return BLOCK.sub(content, text)


def changes(document: str, before: str, after: str) -> list[str]:
    """Changed lines of every changed block, old and new."""
    old, new = ({match[1]: match[2].strip() for match in BLOCK.findall(text)} for text in (before, after))
    lines = []
    for name in new:
        if old[name] != new[name]:
            diff = list(difflib.unified_diff(old[name].splitlines(), new[name].splitlines(), n=0, lineterm=""))[2:]
            lines += [f"{document}, {name}:", *(f"  {line}" for line in diff if not line.startswith("@@"))]
    return lines
