"""CSV as people and spreadsheets write it: commas, semicolons or tabs, a decimal comma."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from pathlib import Path

Row = tuple[int, list[str]]  # the number of its line, its cells


def read_table(path: Path) -> tuple[list[Row], list[str], bool]:
    """Numbered lines, the header, and whether numbers may have a decimal comma.

    Raises:
        ValueError: a spreadsheet's own format, or what is not CSV.
    """
    with open(path, "rb") as file:
        start = file.read(4)
    if start[:2] == b"PK" or start == b"\xd0\xcf\x11\xe0":
        raise ValueError(f"{path} is a spreadsheet: save it as CSV first")
    with open(path, newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
        first = file.readline()
        file.seek(0)
        delimiter = delimiter_of(first)
        lines = csv.reader(file, delimiter=delimiter)
        try:
            header = [cell.strip() for cell in next(lines, [])]
            rows = [(lines.line_num, cells) for cells in lines if any(map(str.strip, cells))]
        except csv.Error as error:
            raise ValueError(f"line {lines.line_num} of {path} is not CSV: {error}") from None
    return rows, header, delimiter != ","


def columns_of(header: list[str], names: Sequence[str], path: Path) -> list[int]:
    """Where the columns of these names are, in whatever capitals. ValueError unless each is there once."""
    plain = [cell.lower() for cell in header]
    if any(plain.count(name) != 1 for name in names):
        told = f"{', '.join(names[:-1])} and {names[-1]}"
        raise ValueError(
            f"line 1 of {path} must name the columns {told}, got {','.join(header)[:80]}"
        )
    return [plain.index(name) for name in names]


def delimiter_of(header: str) -> str:
    """What parts the cells of a header."""
    return max(",;\t", key=header.count)


def number_of(text: str, decimal_comma: bool) -> float | None:
    """The number that a cell holds; None where it holds none, or one that is not finite."""
    try:
        value = float(text.strip().replace(",", ".") if decimal_comma else text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None
