"""Prints tables so that no cell or heading is cut: a table that is wider than the terminal is continued below itself."""

import io
from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import TextType

WIDTH = 110  # characters, at least, where output is not a terminal
BOUND = ("±", "paper")  # headings of columns that belong to the column before


def print_tables(tables: Iterable[Table], console: Console) -> None:
    """Print tables; where output is not a terminal, in as many characters as they need."""
    shown = list(tables)
    if not console.is_terminal:
        console.width = max(console.width, WIDTH, *(table.width or _width(table) for table in shown))
    for table in shown:
        _text(table.title, console, "table.title")
        for part in folded(table, console.width):
            console.print(part)
        _text(table.caption, console, "table.caption")


def printed(tables: Iterable[Table]) -> str:
    """The text that :func:`print_tables` writes into a file: without colours."""
    out = io.StringIO()
    print_tables(tables, Console(file=out, force_terminal=False, color_system=None))
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines()) + "\n"


def folded(table: Table, width: int) -> list[Table]:
    """The table without title and caption, or parts of it that fit; each repeats the left-aligned columns at the beginning.

    A heading of :data:`BOUND` stays with its neighbour.
    """
    if table.width and table.width <= width:  # text of its cells wraps
        whole = _columns(table, range(len(table.columns)))
        whole.width = table.width
        return [whole]
    if _width(table) <= width:
        return [_columns(table, range(len(table.columns)))]
    kept = next((i for i, column in enumerate(table.columns) if column.justify != "left"), len(table.columns))
    groups: list[list[int]] = []
    for index in range(kept, len(table.columns)):
        bound = groups and str(table.columns[index].header).split("\n")[0] in BOUND
        groups = [*groups[:-1], [*groups[-1], index]] if bound else [*groups, [index]]
    parts: list[list[int]] = []
    for group in groups:
        fits = parts and _width(_columns(table, [*range(kept), *parts[-1], *group])) <= width
        parts = [*parts[:-1], [*parts[-1], *group]] if fits else [*parts, group]
    return [_columns(table, [*range(kept), *part]) for part in parts or [[]]]


def _text(text: TextType | None, console: Console, style: str) -> None:
    """A title or a caption, in lines of at most :data:`WIDTH` characters."""
    if text:
        console.print(text, style=style, highlight=False, width=min(console.width, WIDTH))


def _columns(table: Table, indices: Sequence[int]) -> Table:
    """These columns of a table, without title and caption."""
    part = Table(box=table.box, padding=table.padding, show_edge=table.show_edge, show_header=table.show_header)
    chosen = [table.columns[index] for index in indices]
    for column in chosen:
        part.add_column(
            column.header, justify=column.justify, style=column.style, no_wrap=column.no_wrap, overflow=column.overflow
        )
    cells = [list(column.cells) for column in chosen]
    for number, row in enumerate(table.rows):
        part.add_row(*(each[number] for each in cells), style=row.style, end_section=row.end_section)
    return part


def _width(table: Table) -> int:
    """Characters that a table needs without its title and caption."""
    console = Console(width=10_000, file=io.StringIO())
    return Measurement.get(console, console.options, _columns(table, range(len(table.columns)))).maximum
