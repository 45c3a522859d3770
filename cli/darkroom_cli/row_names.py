"""How rows are named for people: by the spreadsheet's line, the `index` or the image's file."""

import posixpath
from collections.abc import Sequence
from urllib.parse import urlsplit

from darkroom.csv_input.fields import COLUMN_FIELDS, normalize_name
from darkroom.csv_input.values import parse_images
from darkroom.formatting import quoted

_NAMING_FIELDS = ("index", "images")  # the first that has a value names the row


def spreadsheet_line(row: int) -> int:
    """The line of row `row`, which counts from 0, where the header is line 1.

    Blank lines are not rows, and not counted.
    """
    return row + 2


def row_name(header: Sequence[str], cells: Sequence[str]) -> str:
    """The row's `index`, or else the file name of its first image; empty if it has neither."""
    names = [normalize_name(name) for name in header]
    columns = {field.name: field.columns for field in COLUMN_FIELDS}
    for field in _NAMING_FIELDS:
        position = next((names.index(name) for name in columns[field] if name in names), None)
        cell = cells[position].strip() if position is not None and position < len(cells) else ""
        if cell:
            return cell if field == "index" else _file_name(cell)
    return ""


def _file_name(cell: str) -> str:
    try:
        reference = next(iter(parse_images(cell)), "")
        return posixpath.basename(urlsplit(reference).path if "://" in reference else reference)
    except ValueError:
        return ""


def describe_row(row: int, name: str = "") -> str:
    """`line 7 ('IMG_001.png', row 5)`."""
    return f"line {spreadsheet_line(row):,} ({f'{quoted(name)}, ' if name else ''}row {row:,})"
