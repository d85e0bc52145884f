"""Lines of CSV files, also as spreadsheets save them."""

import codecs
import csv
import io
import re
from pathlib import Path

from sdprobe.utilities.errors import InputError
from sdprobe.utilities.io import DamagedFile, read_file

SEPARATORS = (",", ";", "\t")


def csv_lines(file: Path, fix: str) -> list[tuple[int, list[str]]]:
    """(number, cells without surrounding spaces) of every line, numbered as an editor does; an empty line has no cells.

    Commas, semicolons or tabs separate the cells: the one that the first line with a separator has most of. In a file with
    semicolons, cells of numbers have a decimal comma, which becomes a point. Text is UTF-8, or UTF-16 with a byte-order mark.

    Raises:
        InputError: the file cannot be read as CSV; ``fix`` is the last sentence of the message.
    """
    try:
        content = read_file(file)
        wide = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        text = content.decode("utf-16" if wide else "utf-8-sig")  # spreadsheets write a byte-order mark
        header = next((line for line in text.splitlines() if line.strip(" ,;\t")), "")
        separator = max(SEPARATORS, key=header.count)
        reader = csv.reader(io.StringIO(text, newline=""), skipinitialspace=True, delimiter=separator)
        lines = [(reader.line_num, [cell.strip() for cell in line]) for line in reader]
    except (OSError, ValueError, csv.Error) as error:
        reason = error.args[1] if isinstance(error, DamagedFile) else error
        raise InputError(f"Expected {file} to be a CSV file in UTF-8, but it cannot be read ({reason}). {fix}") from error
    if separator != ";":
        return lines
    return [(number, [_with_points(cell) for cell in cells]) for number, cells in lines]


def _with_points(cell: str) -> str:
    return re.sub(r"(?<=\d),(?=\d)", ".", cell) if re.fullmatch(r"[-\d,;. ]+", cell) else cell
