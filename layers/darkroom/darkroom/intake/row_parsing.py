"""One data row of the CSV as a request, or the reason why it is none."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from darkroom.errors import Reason, RowRejected
from darkroom.intake.columns import Columns
from darkroom.intake.field_values import (
    read_aspect_ratio,
    read_background,
    read_count,
    read_model,
    read_quality,
    read_resolution,
    read_size,
)
from darkroom.intake.image_lists import check_reference, split_references
from darkroom.intake.names import check_key, check_output_name, default_key
from darkroom.jobs import JobOptions
from darkroom.rows import RowRequest

MAX_INSTRUCTION_CHARS = (
    32_000  # the longest prompt an image model takes (gpt-image; Gemini's is longer)
)
# What SQS does not carry, and no instruction needs.
_FORBIDDEN = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff\ufffe\uffff]")

_READERS: Mapping[str, Callable[[str], object]] = {
    "aspect_ratio": read_aspect_ratio,
    "resolution": read_resolution,
    "size": read_size,
    "quality": read_quality,
    "background": read_background,
    "n": read_count,
    "model": read_model,
}
# Job options that stand in where a row's own cell is empty.
_DEFAULTS = ("aspect_ratio", "resolution", "quality", "background", "model")


def row_key(columns: Columns, cells: Sequence[str], row: int) -> str:
    """The row's identity: its index cell, or its number where that is empty.

    Raises RowRejected (bad_input) when the index cannot name a file.
    """
    index = columns.cell(cells, "index")
    return check_key(index, columns.name("index")) if index else default_key(row)


def parse_row(columns: Columns, cells: Sequence[str], options: JobOptions) -> RowRequest:
    """Raises RowRejected (bad_input) with a sentence that names the column."""
    _check_width(columns, cells)
    values: dict[str, Any] = {
        name: default for name in _DEFAULTS if (default := getattr(options, name)) is not None
    }
    values["instruction"] = _instruction(columns, cells)
    values["images"] = _images(columns, cells)
    mask = columns.cell(cells, "mask")
    if mask:
        values["mask"] = _mask(mask, columns.name("mask"), has_image=bool(values["images"]))
    for name, read in _READERS.items():
        text = columns.cell(cells, name)
        if text:
            values[name] = _read(read, text, columns.name(name))
    output_name = columns.cell(cells, "output_name")
    if output_name:
        values["output_name"] = check_output_name(output_name, columns.name("output_name"))
    try:
        return RowRequest(**values)
    except ValidationError as error:  # a rule of RowRequest that has no sentence of its own above
        first = error.errors(include_input=False, include_url=False)[0]
        raise _rejected(f"column {'.'.join(map(str, first['loc']))}: {first['msg']}") from error


def _rejected(detail: str) -> RowRejected:
    return RowRejected(Reason.BAD_INPUT, detail)


def _check_width(columns: Columns, cells: Sequence[str]) -> None:
    width = len(columns.header)
    if any(cell.strip() for cell in cells[width:]):
        raise _rejected(
            f"the row has {len(cells)} cells where the header has {width}: put cells that contain "
            "the delimiter into quotes, with no blank before the quote"
        )


def _instruction(columns: Columns, cells: Sequence[str]) -> str:
    text = columns.cell(cells, "instruction")
    name = columns.name("instruction")
    if not text:
        raise _rejected(f"column {name} is empty: say what the picture should become")
    if len(text) > MAX_INSTRUCTION_CHARS:
        raise _rejected(
            f"column {name} has {len(text):,} characters: at most {MAX_INSTRUCTION_CHARS:,} can be "
            "sent"
        )
    found = _FORBIDDEN.search(text)
    if found:
        raise _rejected(f"column {name} holds the control character U+{ord(found[0]):04X}")
    return text


def _images(columns: Columns, cells: Sequence[str]) -> tuple[str, ...]:
    text = columns.cell(cells, "images")
    return split_references(text, columns.name("images")) if text else ()


def _mask(reference: str, column: str, *, has_image: bool) -> str:
    if not has_image:
        raise _rejected(f"column {column} names a mask, but the row has no image to apply it to")
    check_reference(reference, column)
    return reference


def _read(read: Callable[[str], object], text: str, column: str) -> object:
    try:
        return read(text)
    except ValueError as error:
        raise _rejected(f"column {column}: {error}") from error
