"""Reads the rows of a job from its CSV, streamed: records, and the request each of them contains.

For the same bytes and options every pass yields the same rows, so that the manifest can list rows
(bad input, skipped) of which the ledger has no record.
"""

import codecs
import contextlib
import csv
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import Any

from pydantic import ValidationError

from darkroom.csv_input.fields import (
    COLUMN_FIELDS,
    COLUMN_NAMES,
    Columns,
    Field,
    normalize_name,
    read_columns,
)
from darkroom.csv_input.instructions import InstructionTemplate
from darkroom.csv_input.names import (
    ImageNames,
    NameCounts,
    TooManyNames,
    UsedNames,
    content_key,
    image_names,
    parse_key,
    plain_names,
)
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
MAX_ROWS = 10_000_000  # bounds the time of a pass and the memory of its tables (names.py)
_NAMING_FIELDS = tuple(f for f in COLUMN_FIELDS if f.name in ("images", "n", "output_name"))
_REQUEST_FIELDS = tuple(field for field in COLUMN_FIELDS if field.name in RowRequest.model_fields)
_DEFAULTS = {name: field.default for name, field in RowRequest.model_fields.items()}
_to_sorted_json = json.JSONEncoder(sort_keys=True).encode


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

    def records(self) -> Iterator[list[str]]:
        """The cells of each data row; blank lines, and rows of empty cells, are skipped.

        Raises JobRejected when the file cannot be read as CSV.
        """
        start = self.data_start
        text = read_text(self.open_bytes, self.text_format, start, self.on_text)
        lines = Lines(text, self.text_format.encoding, start, self.on_text)
        lines.line = 1  # for messages; a header over several lines is rare
        reader = csv.reader(lines, delimiter=self.delimiter, strict=True)
        try:
            for cells in reader:
                lines.record_chars = 0
                if any(cell.strip() for cell in cells):
                    yield cells
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


class RowsBefore:
    """What a row's identity depends on: the contents and names of the rows before it."""

    def __init__(self, *, named: bool) -> None:
        self._contents = NameCounts()
        self.names = UsedNames() if named else None

    def key(self, content: str) -> str:
        """The key of the next row of this content, which has no index."""
        return content_key(content, self._contents.add(content))


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
        return self.from_row(0)

    def from_row(self, row: int, before: RowsBefore | None = None) -> Iterator[JobRow]:
        """Rows from number `row` on. Raises JobRejected where the file cannot be read as CSV.

        The rows before are read too, because equal rows and used names are counted from the first;
        with `before`, as of `prepare(row)`, they are skipped.
        """
        first = 0 if before is None else row
        before = before or self._no_rows_before()
        for number, cells in _numbered(self.csv.records()):
            if number < first:
                continue
            key, values = self._identify(number, cells, before)
            if number >= row:
                yield self._row(number, key, cells, values)

    def check(self) -> None:
        """Read the whole file without parsing its rows.

        Raises JobRejected: not CSV to its end, no rows, or none selected by filter-rows.
        """
        number, selected = -1, 0
        for number, _ in _numbered(self.csv.records()):
            selected += number in self.row_filter
        if number < 0:
            raise JobRejected("The file has a header row but no rows.")
        if not selected:
            raise JobRejected(
                f"The option filter-rows {quoted(self.options.filter_rows or '')} selects none of "
                f"the file's {plural(number + 1, 'row')} (the first row is 0)."
            )

    def prepare(self, row: int) -> tuple[ImageNames, RowsBefore]:
        """The names of all rows' images, skipped rows included, and what is before number `row`.

        One pass over the file, the slowest for a `row` after its end. Raises JobRejected like
        `from_row`.
        """
        names, before = ImageNames(), self._no_rows_before()
        for number, cells in _numbered(self.csv.records()):
            values: dict[str, Any] | RowRejected | None = None
            if number < row:
                _, values = self._identify(number, cells, before)
            with contextlib.suppress(RowRejected):  # without valid cells there is no image
                names.add(*self._names(number, cells, values))
        return names, before

    def _no_rows_before(self) -> RowsBefore:
        return RowsBefore(named=self.columns.has("index") or self.columns.has("output_name"))

    def _names(
        self, number: int, cells: Sequence[str], values: dict[str, Any] | RowRejected | None
    ) -> tuple[Sequence[str], int]:
        """The names that a row's image may have, and how many images there are.

        Raises RowRejected where these cells are not valid; others need not be.
        """
        if not isinstance(values, dict):
            values = _parse_fields(self.columns, cells, _NAMING_FIELDS)
        n = values.get("n", 1)
        if name := values.get("output_name"):
            return (name,), n
        index = index_key(self.columns, cells)
        return plain_names(number, index, values.get("images", ())), n

    def _identify(
        self, number: int, cells: Sequence[str], before: RowsBefore
    ) -> tuple[str, dict[str, Any] | RowRejected]:
        """The row's key, and its own settings or why it is rejected."""
        key, columns = "", self.columns
        values: dict[str, Any] | RowRejected
        try:
            key = index_key(columns, cells)
            values = parse_cells(columns, cells)
        except RowRejected as rejected:
            values = rejected
        key = key or before.key(_content(columns, cells, values))
        if before.names is not None and not isinstance(values, RowRejected):
            try:
                self._reject_used_names(values, key, number, before.names)
            except RowRejected as rejected:
                values = rejected
        return key, values

    def _row(
        self, number: int, key: str, cells: Sequence[str], values: dict[str, Any] | RowRejected
    ) -> JobRow:
        request: RowRequest | RowRejected
        if isinstance(values, RowRejected):
            request = values
        else:
            try:
                request = _request(values, self.options)
            except RowRejected as rejected:
                request = rejected
        skipped = number not in self.row_filter
        return JobRow(number, key, self.columns.align(cells), request, skipped)

    def _reject_used_names(
        self, values: dict[str, Any], key: str, number: int, used: UsedNames
    ) -> None:
        """A second row of the same name would overwrite the record or the images of the first."""
        output_name = values.get("output_name")
        images = image_names(output_name, values.get("n", 1)) if output_name else ()
        keys = [("index", "key", key)] if self.columns.has("index") else []
        for name_field, kind, name in (
            *keys,
            *(("output_name", "image", image) for image in images),
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
                    f"column {self.columns.name(name_field)}: row {first} already uses the name "
                    f"{quoted(name)}, give each row its own"
                )


def _numbered(records: Iterator[list[str]]) -> Iterator[tuple[int, list[str]]]:
    for number, cells in enumerate(records):
        if number >= MAX_ROWS:
            raise JobRejected(f"The file has more than {MAX_ROWS:,} rows: split it.")
        yield number, cells


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


def index_key(columns: Columns, cells: Sequence[str]) -> str:
    """The row's index cell, its key; may be empty.

    Raises RowRejected (bad_input) when the index cannot be part of file names.
    """
    index = columns.cell(cells, "index")
    return _parse_cell(parse_key, index, columns.name("index")) if index else ""


def parse_row(columns: Columns, cells: Sequence[str], options: JobOptions) -> RowRequest:
    """Raises RowRejected (bad_input) with a sentence that names the column."""
    return _request(parse_cells(columns, cells), options)


def parse_cells(columns: Columns, cells: Sequence[str]) -> dict[str, Any]:
    """The settings in the row's cells, by field of RowRequest. Raises RowRejected (bad_input)."""
    width = len(columns.header)
    if any(cell.strip() for cell in cells[width:]):
        raise _rejected(
            f"the row has {len(cells)} cells where the header has {width}: put cells that contain "
            "the delimiter into quotes, with no space before the quote"
        )
    values = _parse_fields(columns, cells, _REQUEST_FIELDS)
    if "mask" in values and not values.get("images"):
        raise _rejected(f"column {columns.name('mask')}: the row has no image to apply the mask to")
    return values


def _parse_fields(
    columns: Columns, cells: Sequence[str], fields: Sequence[Field]
) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for field in fields:
        if field.name not in columns.positions and not field.required:
            continue
        text = columns.cell(cells, field.name)
        if field.name == "instruction" and not text and columns.template is not None:
            values[field.name] = _from_template(columns.template, cells)
        elif text or field.required:
            values[field.name] = _parse_cell(field.parse, text, columns.name(field.name))
    return values


def _content(columns: Columns, cells: Sequence[str], values: dict[str, Any] | RowRejected) -> str:
    """A digest of what the row's cells ask for, without the job's options.

    Of a row that is rejected, the digest of the cells as they are. Two contents with the same
    digest (in ten million rows, with a probability of 1 in 6) count as equal rows: harmless unless
    they change places, and then only these two are edited again.
    """
    if isinstance(values, RowRejected):
        content: dict[str, Any] = {
            f.name: cell for f in _REQUEST_FIELDS if (cell := columns.cell(cells, f.name))
        }
    else:
        content = {name: value for name, value in values.items() if value != _DEFAULTS[name]}
    if columns.template is not None and not columns.cell(cells, "instruction"):
        content["instruction"] = columns.template.cells(cells)
    return blake2b(_to_sorted_json(content).encode(), digest_size=6).hexdigest()


def _request(values: dict[str, Any], options: JobOptions) -> RowRequest:
    """The row's settings, and the job's options for those it does not have. Raises RowRejected."""
    defaults = {
        field.name: default
        for field in _REQUEST_FIELDS
        if field.option and (default := getattr(options, field.name)) is not None
    }
    try:
        return RowRequest(**defaults | values)
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
