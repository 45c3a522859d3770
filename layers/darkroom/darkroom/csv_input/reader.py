"""The CSV as records, streamed: header, delimiter, rows, and where in the text each row ends."""

import codecs
import contextlib
import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from darkroom.csv_input.fields import (
    KNOWN_NAMES,
    Columns,
    RowFilter,
    normalized,
    parse_row_filter,
    read_columns,
)
from darkroom.csv_input.names import UsedNames, copies, default_key
from darkroom.csv_input.row_parser import parse_row, row_key
from darkroom.csv_input.text import HEAD_BYTES, Lines, OpenBytes, TextFormat, read_format, read_text
from darkroom.errors import JobRejected, Reason, RowRejected
from darkroom.formatting import quoted
from darkroom.jobs import JobOptions
from darkroom.rows import RowRequest

DELIMITERS = (",", ";", "\t")
MAX_COLUMNS = 1_000


class Record(NamedTuple):
    """One data row: its cells, and the byte offset (decompressed) where the next row begins."""

    cells: list[str]
    end: int


@dataclass(frozen=True, slots=True)
class CsvInput:
    """An opened CSV: what the header row tells. Rows come from `records`."""

    open_bytes: OpenBytes
    text_format: TextFormat
    delimiter: str
    header: tuple[str, ...]
    data_start: int  # byte offset in the decompressed text of the first data row

    @classmethod
    def open(cls, open_bytes: OpenBytes) -> "CsvInput":
        """Read the header row. Raises JobRejected with the sentence for the user."""
        text_format, head = read_format(open_bytes)
        found: list[_Header] = []
        refused: list[JobRejected] = []
        for delimiter in DELIMITERS:
            try:
                found.append(_read_header(head, text_format, delimiter))
            except JobRejected as error:
                refused.append(error)
        if not found:
            raise refused[0]
        best = max(found, key=lambda header: header.score)
        if refused and best.score <= (0, 1):
            raise refused[0]  # a header of one odd column only because its quote is never closed
        if len(best.names) > MAX_COLUMNS:
            raise JobRejected(f"The header row has more than {MAX_COLUMNS:,} columns.")
        return cls(open_bytes, text_format, best.delimiter, best.names, best.end)

    def records(self, offset: int | None = None) -> Iterator[Record]:
        """Data rows from the byte `offset` of an earlier record's `end`, or from the first.

        Blank lines, and rows whose cells are all empty, are no rows. Raises JobRejected when the
        rest of the file cannot be read as CSV.
        """
        start = self.data_start if offset is None else offset
        lines = Lines(
            read_text(self.open_bytes, self.text_format, start), self.text_format.encoding, start
        )
        if offset is None:
            lines.line = 1  # for messages; a header over several lines is rare
        reader = csv.reader(lines, delimiter=self.delimiter, strict=True)
        while True:
            try:
                cells = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                raise JobRejected(_sentence(error, lines)) from error
            lines.record_chars = 0
            if any(cells) and any(cell.strip() for cell in cells):
                yield Record(cells, lines.offset)


class _Header(NamedTuple):
    """The header row as one delimiter reads it."""

    delimiter: str
    names: tuple[str, ...]
    end: int

    @property
    def score(self) -> tuple[int, int]:
        return sum(normalized(name) in KNOWN_NAMES for name in self.names), len(self.names)


def _read_header(head: bytes, text_format: TextFormat, delimiter: str) -> _Header:
    lines = Lines(_whole_text(head, text_format), text_format.encoding, text_format.start)
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    try:
        for cells in reader:
            if any(cell.strip() for cell in cells) and not _is_excel_hint(cells):
                _check_complete(lines.offset, head)
                return _Header(delimiter, tuple(cell.strip() for cell in cells), lines.offset)
    except csv.Error as error:
        _check_complete(lines.offset, head)
        raise JobRejected(_sentence(error, lines)) from error
    raise JobRejected("The file is empty: it needs a header row and at least one row.")


def _is_excel_hint(cells: list[str]) -> bool:
    """Excel's first line "sep=;", which says the delimiter."""
    return cells[0].lower().startswith("sep=") and not any(cells[1:])


def _whole_text(head: bytes, text_format: TextFormat) -> Iterator[bytes]:
    """The head's text without a character cut in two at its end."""
    body = head[text_format.start :]
    if len(head) > HEAD_BYTES:
        decoder = codecs.getincrementaldecoder(text_format.encoding)()
        with contextlib.suppress(UnicodeDecodeError):  # met again, and named, by Lines
            body = decoder.decode(body).encode(text_format.encoding)
    yield body


def _check_complete(offset: int, head: bytes) -> None:
    if len(head) > HEAD_BYTES and offset >= len(head) - 4:  # less than a character left
        raise JobRejected(
            f"The header row is longer than {HEAD_BYTES:,} bytes, or a quote in it is never closed."
        )


def _sentence(error: csv.Error, lines: Lines) -> str:
    text = str(error)
    if "unexpected end of data" in text:
        return (
            "The file ends in the middle of a quoted field: it was probably cut off, "
            "upload it again whole."
        )
    if "field limit" in text:
        return (
            f"Line {lines.line} holds a field of more than 131,072 characters: probably a quote "
            "before it is never closed."
        )
    if "expected after" in text:
        return (
            f"Line {lines.line} has text after a closing quote: double the quotes inside a quoted "
            'field ("").'
        )
    return f"Line {lines.line} cannot be read as CSV ({text})."


# The rows of a job: what splitter, reporter and quote all read from the pinned CSV.
#
# For the same bytes and the same options every pass gives the same rows, so that the manifest can
# tell of rows (bad input, skipped) that the ledger never heard of.


MAX_ROWS = 5_000_000  # bounds the time of the check and the memory for names (UsedNames)


@dataclass(frozen=True, slots=True)
class JobRow:
    """One data row. `asked` is what it wants, or why it ends as `failed: bad_input`.

    `skipped` (outside filter-rows) comes before both: such a row is not done whatever `asked` says.
    The ledger knows a row by `key`; rows skipped or rejected have no record of this run there.
    """

    row: int  # position in the CSV, the first data row is 0
    key: str
    cells: tuple[str, ...]  # as in the CSV, one for each name of the header
    asked: RowRequest | RowRejected
    skipped: bool
    end: int  # byte offset in the decompressed text where the next row begins


@dataclass(frozen=True, slots=True)
class JobRows:
    """A CSV opened with its options. Iterate for its rows; every iteration reads anew."""

    csv: CsvInput
    columns: Columns
    options: JobOptions
    wanted: RowFilter

    @property
    def header(self) -> tuple[str, ...]:
        return self.columns.header

    @property
    def warnings(self) -> tuple[str, ...]:
        return self.columns.warnings

    def __iter__(self) -> Iterator[JobRow]:
        return self.from_row(0, None)

    def from_row(self, row: int, offset: int | None) -> Iterator[JobRow]:
        """Rows from number `row` on, which begins at byte `offset` (the `end` of the row before).

        Raises JobRejected where the file cannot be read as CSV.
        """
        has_names = self.columns.has("index") or self.columns.has("output_name")
        used = UsedNames() if has_names else None
        if used is not None or offset is None:
            # Which name was used first only the rows before can tell: read, not given out.
            start, records = 0, self.csv.records()
        else:
            start, records = row, self.csv.records(offset)
        for number, record in enumerate(records, start):
            if number >= MAX_ROWS:
                raise JobRejected(f"The file has more than {MAX_ROWS:,} rows: split it.")
            job_row = self._row(number, record.cells, record.end, used)
            if number >= row:
                yield job_row

    def check(self) -> Iterator[int]:
        """Read the whole file as the splitter's first pass, giving each row's number as it goes.

        Raises JobRejected: not CSV to its end, no rows, or none that filter-rows wants.
        """
        number, wanted = -1, 0
        for number, _ in enumerate(self.csv.records()):
            if number >= MAX_ROWS:
                raise JobRejected(f"The file has more than {MAX_ROWS:,} rows: split it.")
            wanted += number in self.wanted
            yield number
        if number < 0:
            raise JobRejected("The file has a header row but no rows.")
        if not wanted:
            raise JobRejected(
                f"The option filter-rows {quoted(self.options.filter_rows or '')} selects none of "
                f"the file's {number + 1:,} rows (the first row is 0)."
            )

    def _row(self, number: int, cells: Sequence[str], end: int, used: UsedNames | None) -> JobRow:
        key = default_key(number)
        asked: RowRequest | RowRejected
        try:
            key = row_key(self.columns, cells, number)
            asked = parse_row(self.columns, cells, self.options)
            if used is not None:
                self._claim_names(asked, key, number, used)
        except RowRejected as rejected:
            asked = rejected
        return JobRow(number, key, self.columns.align(cells), asked, number not in self.wanted, end)

    def _claim_names(self, asked: RowRequest, key: str, number: int, used: UsedNames) -> None:
        """A second row of the same name would overwrite the first one's record or pictures."""
        names = copies(asked.output_name or f"{key}.png", asked.n)
        for name in (f"key {key}", *(f"picture {name}" for name in names)):
            first = used.first_user(name, number)
            if first is not None and first != number:
                raise RowRejected(Reason.BAD_INPUT, self._taken(name, first))

    def _taken(self, name: str, first: int) -> str:
        kind, _, value = name.partition(" ")
        field = "output_name" if kind == "picture" and self.columns.has("output_name") else "index"
        column = self.columns.name(field)
        return (
            f"column {column}: row {first} uses the name {quoted(value)} already, give each its own"
        )


def read_job_rows(open_bytes: OpenBytes, options: JobOptions) -> JobRows:
    """Open a CSV. Raises JobRejected: no CSV, no header, no instruction column, bad filter-rows."""
    wanted = parse_row_filter(options.filter_rows)
    csv = CsvInput.open(open_bytes)
    return JobRows(csv, read_columns(csv.header, options), options, wanted)
