"""The cell that names a row's images: one, a JSON list, or several between commas or bars."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from darkroom.csv_input.fields import (
    Columns,
    read_aspect_ratio,
    read_background,
    read_count,
    read_model,
    read_quality,
    read_resolution,
    read_size,
)
from darkroom.csv_input.names import check_key, check_output_name, default_key
from darkroom.errors import Reason, RowRejected
from darkroom.formatting import describe_validation, quoted
from darkroom.jobs import JobOptions
from darkroom.rows import RowRequest

MAX_IMAGES = 16  # what the most generous model takes
_LONGEST_REFERENCE = 8_192  # presigned URLs with session tokens take about 2,000
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):(//)?")
_STARTS_URL = re.compile(r"\s*(https?|s3)://", re.IGNORECASE)
_ENDS_AS_IMAGE = re.compile(r"\.(png|jpe?g|webp|gif|bmp|tiff?|avif|heic)$", re.IGNORECASE)
_FORBIDDEN = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff\ufffe\uffff]")


def split_references(cell: str, column: str) -> tuple[str, ...]:
    """References in the order written; none for an empty cell.

    A cell that begins with `[` is a JSON list. Else `|` and line ends separate, and where there are
    none, commas do. A comma belongs to the URL before it (`…/w_400,h_300/a.jpg`) unless a blank or
    another URL follows it, or what stands on both sides ends like an image's name.

    Raises RowRejected (bad_input).
    """
    if cell.startswith("["):
        references = _from_json(cell, column)
    elif "|" in cell or "\n" in cell:
        references = [part.strip() for part in re.split(r"[|\r\n]+", cell)]
    else:
        references = _split_commas(cell)
    references = [reference for reference in references if reference]
    if len(references) > MAX_IMAGES:
        raise RowRejected(
            Reason.BAD_INPUT,
            f"column {column} names {len(references)} images: no model takes more than "
            f"{MAX_IMAGES}",
        )
    for reference in references:
        check_reference(reference, column)
    return tuple(references)


def check_reference(reference: str, column: str) -> None:
    """An https, http or s3 URL or a path; what may be fetched is decided when it is.

    Raises RowRejected (bad_input).
    """
    problem = None
    scheme = _SCHEME.match(reference)
    if len(reference) > _LONGEST_REFERENCE:
        problem = f"is longer than {_LONGEST_REFERENCE:,} characters"
    elif _FORBIDDEN.search(reference):
        problem = "holds a control character"
    elif scheme and scheme[1].lower() == "data":
        raise RowRejected(
            Reason.BAD_INPUT,
            f"column {column} holds the image itself (data:): upload the image to S3 and name it",
        )
    elif scheme and (scheme[1].lower() not in ("https", "http", "s3") or not scheme[2]):
        problem = "is neither an https:// or s3:// URL nor a path relative to the CSV"
    elif scheme and not reference[scheme.end() :].strip("/"):
        problem = "names no host or bucket"
    if problem:
        raise RowRejected(Reason.BAD_INPUT, f"column {column}: {quoted(reference)} {problem}")


def _from_json(cell: str, column: str) -> list[str]:
    try:
        values = json.loads(cell)
    except (ValueError, RecursionError) as error:
        raise RowRejected(
            Reason.BAD_INPUT,
            f"column {column} begins like a JSON list but is none: {quoted(cell)}, write "
            '["a.jpg", "b.jpg"]',
        ) from error
    if not all(isinstance(value, str) for value in values):
        raise RowRejected(
            Reason.BAD_INPUT, f"column {column}: the JSON list must hold texts only: {quoted(cell)}"
        )
    return [value.strip() for value in values]


def _split_commas(cell: str) -> list[str]:
    pieces = cell.split(",")
    references = [pieces[0]]
    for piece in pieces[1:]:
        if _separates(references[-1], piece):
            references.append(piece)
        else:
            references[-1] += "," + piece
    return [reference.strip() for reference in references]


def _separates(before: str, after: str) -> bool:
    """Whether the comma between them ends a reference."""
    if not _STARTS_URL.match(before) or _STARTS_URL.match(after) or after[:1].isspace():
        return True
    if not after.strip():
        return True
    return bool(_ENDS_AS_IMAGE.search(before) and _ENDS_AS_IMAGE.search(after))


# One data row of the CSV as a request, or the reason why it is none.


MAX_INSTRUCTION_CHARS = (
    32_000  # the longest prompt an image model takes (gpt-image; Gemini's is longer)
)
# What SQS does not carry, and no instruction needs.
_FORBIDDEN_row_parsing = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff\ufffe\uffff]")

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
        raise _rejected(f"column {describe_validation(error)}") from error


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
    found = _FORBIDDEN_row_parsing.search(text)
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
