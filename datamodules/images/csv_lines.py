"""Lines of CSV files."""

import csv
from pathlib import Path

from sdprobe.utilities.errors import InputError


def csv_lines(file: Path, fix: str) -> list[tuple[int, list[str]]]:
    """(number, cells without surrounding spaces) of every line, numbered as an editor does; an empty line has no cells.

    Raises:
        InputError: the file cannot be read as CSV in UTF-8; ``fix`` is the last sentence of the message.
    """
    try:
        with file.open(newline="", encoding="utf-8-sig") as stream:  # spreadsheets write a byte-order mark
            reader = csv.reader(stream, skipinitialspace=True)
            return [(reader.line_num, [cell.strip() for cell in line]) for line in reader]
    except (OSError, ValueError, csv.Error) as error:
        raise InputError(f"Expected {file} to be a CSV file in UTF-8, but it cannot be read ({error}). {fix}") from error
