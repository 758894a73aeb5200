"""`landmarks.csv`: one point a line, by hand, from a spreadsheet program, or as `eden landmarks` writes it.

Columns `image`, `name`, `x` and `y`, in any order and capitalisation; `x` and `y` are pixel indices: (0, 0) is the
centre of the top left pixel. Where there is a column `found`, lines in which it is false are left out. Other columns
are not read. Values are separated by commas, semicolons or tabs, the latter two with decimal points or commas.
"""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

from eden_hf.data.annotations.marks import Mark
from eden_hf.data.errors import SourceError
from eden_hf.data.text_files import read_csv

COLUMNS = ("image", "name", "x", "y")
_TRUTH = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


def read_table(path: Path) -> Iterator[Mark]:
    """The points of a table.

    Raises:
        SourceError: a column is missing, or a line does not fit the header or holds a wrong value.
    """
    try:
        delimiter, lines = read_csv(path)
    except (OSError, ValueError) as error:
        raise SourceError(str(error)) from error
    first, header = lines[0] if lines else (f"{path}, line 1", [])
    header = _header(header, first)
    for where, cells in lines[1:]:
        mark = _mark(_row(header, cells, where), delimiter, where)
        if mark is not None:
            yield mark


def _header(cells: Sequence[str], where: str) -> list[str]:
    header = [cell.lower() for cell in cells]
    if absent := [column for column in COLUMNS if column not in header]:
        raise SourceError(
            f"{where}: there is no column {', '.join(absent)}; the header must be image,name,x,y (and more, if "
            f"you like), it is {','.join(cells)!r}"
        )
    if twice := [column for column in (*COLUMNS, "found") if header.count(column) > 1]:
        raise SourceError(f"{where}: there are two columns {twice[0]}; remove one")
    return header


def _row(header: Sequence[str], line: Sequence[str], where: str) -> dict[str, str]:
    if len(line) != len(header):
        raise SourceError(
            f"{where}: {len(line)} values where the header has {len(header)}: {line}; decimal commas need semicolons "
            "between the values"
        )
    return dict(zip(header, line, strict=True))


def _mark(row: dict[str, str], delimiter: str, where: str) -> Mark | None:
    """The point of a line, `None` for one that was not found."""
    found = row.get("found", "true").lower()
    if found not in _TRUTH:
        raise SourceError(f"{where}: found is true or false, got {row['found']!r}")
    if not _TRUTH[found]:
        return None
    if empty := [column for column in ("image", "name") if not row[column]]:
        raise SourceError(f"{where}: {empty[0]} is empty; fill it in, or remove the line")
    x, y = (_number(row, column, delimiter, where) for column in ("x", "y"))
    return Mark(row["image"], row["name"], where, point=(x, y))


def _number(row: dict[str, str], column: str, delimiter: str, where: str) -> float:
    text = row[column] if delimiter == "," else row[column].replace(",", ".")
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise SourceError(
            f"{where}: {column} is a number of pixels, got {row[column]!r}; remove lines of points that cannot be seen"
        )
    return number
