"""Reads the rows of a job from its CSV, streamed: records, and the request each of them contains.

For the same bytes and options every pass yields the same rows, so that the manifest can list rows
(bad input, skipped) of which the ledger has no record.
"""

import codecs
import contextlib
import csv
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from pydantic import ValidationError

from darkroom.csv_input.fields import (
    COLUMN_FIELDS,
    COLUMN_NAMES,
    Columns,
    normalize_name,
    read_columns,
)
from darkroom.csv_input.instructions import InstructionTemplate
from darkroom.csv_input.names import TooManyNames, UsedNames, image_names, parse_key
from darkroom.csv_input.text import (
    HEAD_BYTES,
    MAX_FIELD_CHARS,
    Lines,
    OpenBytes,
    TextFormat,
    read_format,
    read_text,
)
from darkroom.csv_input.values import RowFilter, parse_instruction, parse_row_filter
from darkroom.errors import JobRejected, Reason, RowRejected
from darkroom.formatting import describe_validation, plural, quoted
from darkroom.jobs import JobOptions
from darkroom.rows import RowRequest

DELIMITERS = (",", ";", "\t")
MAX_COLUMNS = 1_000
MAX_ROWS = 10_000_000  # bounds the time of the check and the memory for names (UsedNames)
_REQUEST_FIELDS = tuple(field for field in COLUMN_FIELDS if field.name in RowRequest.model_fields)


class Record(NamedTuple):
    """One data row: its cells, and the byte offset (decompressed) where the next row begins."""

    cells: list[str]
    end: int


@dataclass(frozen=True, slots=True)
class CsvInput:
    """An opened CSV: its format and header row. `records` reads the data rows."""

    open_bytes: OpenBytes
    text_format: TextFormat
    delimiter: str
    header: tuple[str, ...]
    data_start: int  # byte offset in the decompressed text of the first data row
    on_text: Callable[[], None] = lambda: None  # called for every MiB of text, or less

    @classmethod
    def open(cls, open_bytes: OpenBytes) -> "CsvInput":
        """Read the header row, with the delimiter that finds most columns. Raises JobRejected."""
        text_format, head = read_format(open_bytes)
        found, errors = list[CsvInput](), list[JobRejected]()
        for delimiter in DELIMITERS:
            try:
                header, end = _read_header(head, text_format, delimiter)
                found.append(cls(open_bytes, text_format, delimiter, header, end))
            except JobRejected as error:
                errors.append(error)
        best = max(found, key=cls.count_columns, default=None)
        if best is None or (errors and best.count_columns() <= (0, 1)):
            raise errors[0]  # a header of one unknown column: its quote is never closed
        if len(best.header) > MAX_COLUMNS:
            raise JobRejected(f"The header row has more than {MAX_COLUMNS:,} columns.")
        return best

    def count_columns(self) -> tuple[int, int]:
        """Of fields, and of all."""
        known = sum(normalize_name(name) in COLUMN_NAMES for name in self.header)
        return known, len(self.header)

    def records(self, offset: int = 0) -> Iterator[Record]:
        """Data rows from the byte `offset` of an earlier record's `end`; 0: from the first.

        Blank lines, and rows whose cells are all empty, are skipped. Raises JobRejected when the
        remaining file cannot be read as CSV.
        """
        start = offset or self.data_start
        text = read_text(self.open_bytes, self.text_format, start, self.on_text)
        lines = Lines(text, self.text_format.encoding, start, self.on_text)
        lines.line = 0 if offset else 1  # for messages; a header over several lines is rare
        reader = csv.reader(lines, delimiter=self.delimiter, strict=True)
        try:
            for cells in reader:
                lines.record_chars = 0
                if any(cell.strip() for cell in cells):
                    yield Record(cells, lines.offset)
        except csv.Error as error:
            raise JobRejected(_describe_csv_error(error, lines)) from error


def _read_header(
    head: bytes, text_format: TextFormat, delimiter: str
) -> tuple[tuple[str, ...], int]:
    """The header row in the first bytes of a file, and the offset of its end."""
    lines = Lines(_complete_text(head, text_format), text_format.encoding, text_format.start)
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    try:
        for cells in reader:
            is_excel_hint = "".join(cells).lower().startswith("sep=") and not any(cells[1:])
            if any(cell.strip() for cell in cells) and not is_excel_hint:
                _check_complete(lines.offset, head)
                return tuple(cell.strip() for cell in cells), lines.offset
    except csv.Error as error:
        _check_complete(lines.offset, head)
        raise JobRejected(_describe_csv_error(error, lines)) from error
    raise JobRejected("The file is empty: it needs a header row and at least one row.")


def _complete_text(head: bytes, text_format: TextFormat) -> Iterator[bytes]:
    """The text of `head`, without an incomplete character at its end."""
    body = head[text_format.start :]
    if len(head) > HEAD_BYTES:
        decoder = codecs.getincrementaldecoder(text_format.encoding)()
        with contextlib.suppress(UnicodeDecodeError):  # Lines reports it
            body = decoder.decode(body).encode(text_format.encoding)
    yield body


def _check_complete(offset: int, head: bytes) -> None:
    if len(head) > HEAD_BYTES and offset >= len(head) - 4:  # less than a character left
        raise JobRejected(
            f"The header row is longer than {HEAD_BYTES:,} bytes, or a quote in it is never closed."
        )


def _describe_csv_error(error: csv.Error, lines: Lines) -> str:
    text = str(error)
    if "unexpected end of data" in text:
        return (
            "The file ends in the middle of a quoted field: it was probably cut off, "
            "upload it again whole."
        )
    if "field limit" in text:
        return (
            f"Line {lines.line} contains a field of more than {MAX_FIELD_CHARS:,} characters: "
            "probably a quote before it is never closed."
        )
    if "expected after" in text:
        return (
            f"Line {lines.line} has text after a closing quote: double the quotes inside a quoted "
            'field ("").'
        )
    return f"Line {lines.line} cannot be read as CSV ({text})."


@dataclass(frozen=True, slots=True)
class JobRow:
    """One data row. `request` is what to edit, or why the row ends as `failed: bad_input`.

    `skipped` (outside filter-rows) has precedence: such a row is not edited whatever its request.
    The ledger stores a row under `key`; it has no record in this run of rows skipped or rejected.
    """

    row: int  # position in the CSV, the first data row is 0
    key: str
    cells: tuple[str, ...]  # as in the CSV, one for each name of the header
    request: RowRequest | RowRejected
    skipped: bool
    end: int  # byte offset in the decompressed text where the next row begins


@dataclass(frozen=True, slots=True)
class JobRows:
    """A CSV opened with its job options. Every iteration reads the rows from the start again."""

    csv: CsvInput
    columns: Columns
    options: JobOptions
    row_filter: RowFilter

    @property
    def header(self) -> tuple[str, ...]:
        return self.columns.header

    def __iter__(self) -> Iterator[JobRow]:
        return self.from_row(0, 0)

    def from_row(self, row: int, offset: int) -> Iterator[JobRow]:
        """Rows from number `row` on, which begins at byte `offset` (the `end` of the row before).

        Row 0 is found without an offset. Raises JobRejected where the file cannot be read as CSV.
        """
        if self.columns.has("index") or self.columns.has("output_name"):
            # Which row used a name first depends on the rows before: read them, but skip them.
            used, start = UsedNames(), 0
        else:
            used, start = None, row
        records = self.csv.records(offset if start else 0)
        for number, record in _numbered(records, start):
            job_row = self._row(number, record, used)
            if number >= row:
                yield job_row

    def check(self) -> None:
        """Read the whole file without parsing its rows.

        Raises JobRejected: not CSV to its end, no rows, or none selected by filter-rows.
        """
        number, selected = -1, 0
        for number, _ in _numbered(self.csv.records(), 0):
            selected += number in self.row_filter
        if number < 0:
            raise JobRejected("The file has a header row but no rows.")
        if not selected:
            raise JobRejected(
                f"The option filter-rows {quoted(self.options.filter_rows or '')} selects none of "
                f"the file's {plural(number + 1, 'row')} (the first row is 0)."
            )

    def _row(self, number: int, record: Record, used: UsedNames | None) -> JobRow:
        columns, cells = self.columns, record.cells
        key = f"{number:06d}"
        request: RowRequest | RowRejected
        try:
            key = row_key(columns, cells, key)
            request = parse_row(columns, cells, self.options)
            if used is not None:
                self._reject_used_names(request, key, number, used)
        except RowRejected as rejected:
            request = rejected
        skipped = number not in self.row_filter
        return JobRow(number, key, columns.align(cells), request, skipped, record.end)

    def _reject_used_names(
        self, request: RowRequest, key: str, number: int, used: UsedNames
    ) -> None:
        """A second row of the same name would overwrite the record or the images of the first."""
        image_field = "output_name" if self.columns.has("output_name") else "index"
        images = image_names(request.output_name or f"{key}.png", request.n)
        for field, kind, name in (
            ("index", "key", key),
            *((image_field, "image", image) for image in images),
        ):
            try:
                first = used.first_user(f"{kind} {name}", number)
            except TooManyNames:
                raise _rejected(
                    "the rows before name so many images that a name used twice could no longer "
                    "be found: split the file"
                ) from None
            if first is not None and first != number:
                raise _rejected(
                    f"column {self.columns.name(field)}: row {first} already uses the name "
                    f"{quoted(name)}, give each row its own"
                )


def _numbered(records: Iterator[Record], start: int) -> Iterator[tuple[int, Record]]:
    for number, record in enumerate(records, start):
        if number >= MAX_ROWS:
            raise JobRejected(f"The file has more than {MAX_ROWS:,} rows: split it.")
        yield number, record


def read_job_rows(
    open_bytes: OpenBytes, options: JobOptions, on_text: Callable[[], None] = lambda: None
) -> JobRows:
    """Open a CSV. Raises JobRejected: no CSV, no header, no instruction column, bad filter-rows.

    `on_text` is called for every MiB of text that is read, or less: rows tell nothing about time,
    because a file may contain blank lines only. What it raises ends the reading.
    """
    try:
        row_filter = parse_row_filter(":" if options.filter_rows is None else options.filter_rows)
    except ValueError as error:
        raise JobRejected(f"The option filter-rows: {error}.") from error
    csv = replace(CsvInput.open(open_bytes), on_text=on_text)
    return JobRows(csv, read_columns(csv.header, options), options, row_filter)


def row_key(columns: Columns, cells: Sequence[str], default: str) -> str:
    """The row's identity: its index cell, or `default` where that is empty.

    Raises RowRejected (bad_input) when the index cannot be part of file names.
    """
    index = columns.cell(cells, "index")
    return _parse_cell(parse_key, index, columns.name("index")) if index else default


def parse_row(columns: Columns, cells: Sequence[str], options: JobOptions) -> RowRequest:
    """Raises RowRejected (bad_input) with a sentence that names the column."""
    width = len(columns.header)
    if any(cell.strip() for cell in cells[width:]):
        raise _rejected(
            f"the row has {len(cells)} cells where the header has {width}: put cells that contain "
            "the delimiter into quotes, with no space before the quote"
        )
    values: dict[str, Any] = {}
    for field in _REQUEST_FIELDS:
        text = columns.cell(cells, field.name)
        if field.name == "instruction" and not text and columns.template is not None:
            values[field.name] = _from_template(columns.template, cells)
        elif text or field.required:
            values[field.name] = _parse_cell(field.parse, text, columns.name(field.name))
        elif field.option and (default := getattr(options, field.name)) is not None:
            values[field.name] = default
    if "mask" in values and not values.get("images"):
        raise _rejected(f"column {columns.name('mask')}: the row has no image to apply the mask to")
    try:
        return RowRequest(**values)
    except ValidationError as error:  # a rule of RowRequest that no parser checks
        raise _rejected(f"column {describe_validation(error)}") from error


def _from_template(template: InstructionTemplate, cells: Sequence[str]) -> str:
    try:
        return parse_instruction(template.fill(cells))
    except ValueError as error:
        raise _rejected(f"option instruction: {error}") from error


def _parse_cell(parse: Callable[[str], Any], text: str, column: str) -> Any:
    try:
        return parse(text)
    except ValueError as error:
        raise _rejected(f"column {column}: {error}") from error


def _rejected(detail: str) -> RowRejected:
    return RowRejected(Reason.BAD_INPUT, detail)
